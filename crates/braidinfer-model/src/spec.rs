//! [`DecoderSpec`]: everything that an executor needs to know about an architecture, as plain data.
//!
//! Field names follow Hugging Face `config.json` if that has the field. No code that uses this type may depend on a
//! model's name: new mathematics becomes a new field here.

use std::ops::Range;

use serde::Serialize;

mod mamba2;
mod streams;

pub use mamba2::{BranchMultipliers, GatedNormSpec, Mamba2Multipliers, Mamba2Spec};
pub use streams::{AltUpSpec, LaurelSpec};

/// Description of a decoder-only transformer.
///
/// Notation of the shapes in this project: `T` tokens, `h` `hidden_size`, `H` `num_attention_heads`,
/// `G` `num_key_value_heads`, `d` `head_dim`, `V` `vocab_size`. Weights are `[out, in]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DecoderSpec {
    /// The architecture's name in `config.json`; for messages only.
    pub model_type: String,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Longest sequence in tokens, as in `config.json`.
    pub max_position_embeddings: usize,
    /// Whether the output head shares the embedding's weights.
    pub tie_word_embeddings: bool,
    /// Factor of the embeddings (not of a tied output head).
    pub embedding_multiplier: f64,
    /// Factor of the outputs of attention and feed-forward network when they are added to the residual stream.
    pub residual_multiplier: f64,
    /// Divisor of the logits.
    pub logits_scaling: f64,
    /// Softcap of the logits: `cap * tanh(logit / cap)`.
    pub final_logit_softcapping: Option<f64>,
    /// Whether the output head has a bias.
    pub lm_head_bias: bool,
    /// All norms of the model except query/key norms.
    pub norm: NormSpec,
    /// The norms of a layer, and how its parts are connected.
    pub block: BlockSpec,
    /// Kinds of attention; layers refer to them by index.
    pub attentions: Vec<AttentionSpec>,
    /// Kinds of gated delta nets; layers refer to them by index.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub delta_nets: Vec<DeltaNetSpec>,
    /// Kinds of gated short convolutions; layers refer to them by index.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub short_convs: Vec<ShortConvSpec>,
    /// Kinds of Mamba-2; layers refer to them by index.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mamba2s: Vec<Mamba2Spec>,
    /// Factors of what attention, Mamba-2 and feed-forward network add to the residual stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub branch_multipliers: Option<BranchMultipliers>,
    /// Rotary tables; layers refer to them by index.
    pub rope: Vec<RopeSpec>,
    /// Further embeddings of the tokens, which enter every layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_layer_inputs: Option<PerLayerInputSpec>,
    /// Several residual streams, of which each layer transforms one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub altup: Option<AltUpSpec>,
    /// A branch of low rank beside attention, in every layer with attention or another mixer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub laurel: Option<LaurelSpec>,
    /// Whether the residual stream is multiplied by a stored number at the end of every layer.
    #[serde(skip_serializing_if = "is_false")]
    pub layer_scalar: bool,
    /// One entry per layer, in order.
    pub layers: Vec<LayerSpec>,
}

/// Inputs of every layer besides the residual stream: vectors of `p` `hidden_size_per_layer_input` values for each token
/// and layer.
///
/// With the embedding `x` `[h]` of a token, multiplied as at the begin of the residual stream, and its row `e` `[layers *
/// p]` of a further embedding, the inputs are `input_multiplier * (norm(projection_multiplier * P x) + embedding_multiplier
/// * e)`, normed for each layer by itself. At the end of a layer, before [`DecoderSpec::layer_scalar`], the residual stream
/// `y` becomes `y + norm(projection(act(gate y) * input))`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PerLayerInputSpec {
    /// Rows of the further embedding. Tokens beyond them have the first row.
    pub vocab_size_per_layer_input: usize,
    /// Width of the input of one layer, `p`.
    pub hidden_size_per_layer_input: usize,
    /// Activation function of the gate.
    pub hidden_act: ActivationFunction,
    /// Factor of the further embedding.
    pub embedding_multiplier: f64,
    /// Factor of the projection of the residual stream's embedding.
    pub projection_multiplier: f64,
    /// Factor of their sum.
    pub input_multiplier: f64,
}

/// For fields that most architectures lack.
fn is_false(flag: &bool) -> bool {
    !flag
}

/// For what most architectures have.
fn is_true(flag: &bool) -> bool {
    *flag
}

/// A normalisation over the last dimension, with statistics in f32.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct NormSpec {
    /// The statistics.
    pub kind: NormKind,
    /// Added to the mean square or variance.
    pub eps: f64,
    /// Added to the stored weight: 1 if checkpoints store `w - 1`.
    pub weight_offset: f32,
    /// Whether it has a bias.
    pub bias: bool,
}

/// Kinds of norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// `w * x / sqrt(mean(x^2) + eps)` (Zhang and Sennrich 2019, arXiv:1910.07467).
    Rms,
    /// `w * (x - mean) / sqrt(var + eps)` with the biased variance (arXiv:1607.06450).
    Layer,
}

/// The norms of a layer, and how attention and feed-forward network are added to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BlockSpec {
    /// `x + attention(n(x)) + feed_forward(m(x))` instead of sequentially; `m` is the norm before the feed-forward
    /// network if there is one, otherwise `n`.
    pub parallel: bool,
    /// Norm before attention.
    pub input_norm: bool,
    /// Norm of the attention output.
    pub attention_output_norm: bool,
    /// Norm before the feed-forward network.
    pub feed_forward_norm: bool,
    /// Norm of the feed-forward network's output.
    pub feed_forward_output_norm: bool,
}

impl BlockSpec {
    /// Norms before attention and feed-forward network: most architectures.
    pub const PRE_NORM: Self = Self {
        parallel: false,
        input_norm: true,
        attention_output_norm: false,
        feed_forward_norm: true,
        feed_forward_output_norm: false,
    };
    /// Norms before and after both.
    pub const SANDWICH: Self = Self { attention_output_norm: true, feed_forward_output_norm: true, ..Self::PRE_NORM };
    /// Norms only after both.
    pub const POST_NORM: Self = Self { input_norm: false, feed_forward_norm: false, ..Self::SANDWICH };
    /// Attention and feed-forward network in parallel, with a shared norm.
    pub const PARALLEL: Self = Self { parallel: true, feed_forward_norm: false, ..Self::PRE_NORM };
}

/// Attention: heads, query/key norms, score computation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct AttentionSpec {
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key/value heads; query head `t` uses key/value head `t / (H / G)`.
    pub num_key_value_heads: usize,
    /// Width of a query or key head, and of a value head unless attention is latent; not necessarily `hidden_size /
    /// num_attention_heads`.
    pub head_dim: usize,
    /// Factor of `q . k`.
    pub scale: f64,
    /// Softcap of scores, `cap * tanh(score / cap)`, after scaling and before masking.
    pub logit_softcapping: Option<f64>,
    /// Norm of queries and keys.
    pub qk_norm: Option<QkNormSpec>,
    /// Whether the query, key and value projections have a bias; of latent attention, those that read the residual
    /// stream through two matrices.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// Position-dependent factor of rotated queries.
    pub query_position_scale: Option<QueryPositionScale>,
    /// Whether the heads' outputs are multiplied by the logistic function of a gate before the output projection (Qiu et
    /// al. 2025, arXiv:2505.06708). The rows of the query projection are then, for each head, those of the query and
    /// after them those of the gate.
    pub output_gate: bool,
    /// Whether the output of each head is multiplied by the logistic function of a number before the output projection,
    /// which a projection `[H, h]` of its own gives.
    #[serde(skip_serializing_if = "is_false")]
    pub head_gate: bool,
    /// Whether each query head has a stored score that takes part in the softmax as that of a further key, whose value is
    /// zero (Xiao et al. 2023, arXiv:2309.17453).
    pub sinks: bool,
    /// Whether the outputs of the key projection, before norm and RoPE, are also the values: there is no value projection.
    #[serde(skip_serializing_if = "is_false")]
    pub attention_k_eq_v: bool,
    /// Norm of every value head, without a weight: `x / sqrt(mean(x^2) + eps)`, with this `eps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_norm_eps: Option<f64>,
    /// How queries, keys and values are computed from narrower vectors, if they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latent: Option<LatentSpec>,
}

/// Multi-head latent attention (DeepSeek-AI 2024, arXiv:2405.04434): keys and values are linear functions of a normed
/// vector that is narrower than they are, and so may be the queries.
///
/// `kv_a_proj_with_mqa` gives this vector, `kv_lora_rank` wide, and after it the part of the keys that is rotated,
/// which all heads share. `kv_b_proj` gives, for each head, the rest of its key and after that its value. The rotated
/// dimensions of a query or key head are its last ones. There are as many key/value heads as query heads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LatentSpec {
    /// Width of the vector that queries are computed from; the residual stream's if `None`.
    pub q_lora_rank: Option<usize>,
    /// Width of the vector that keys and values are computed from.
    pub kv_lora_rank: usize,
    /// Width of that part of a query or key head that is not rotated.
    pub qk_nope_head_dim: usize,
    /// Width of the part that is rotated.
    pub qk_rope_head_dim: usize,
    /// Width of a value head, at most `head_dim`.
    pub v_head_dim: usize,
    /// Norm of the narrower vectors.
    pub norm: NormSpec,
}

impl LatentSpec {
    /// Rows of a head in `kv_b_proj`.
    pub fn expanded_head_rows(&self) -> usize {
        self.qk_nope_head_dim + self.v_head_dim
    }

    /// Rows of `kv_a_proj_with_mqa`.
    pub fn compressed_rows(&self) -> usize {
        self.kv_lora_rank + self.qk_rope_head_dim
    }
}

/// A gated delta net (Yang et al. 2024, arXiv:2412.06464): recurrent layers that keep a matrix per value head.
///
/// Queries, keys and values pass through a causal depthwise convolution and SiLU; queries and keys are divided by
/// `sqrt(sum of squares + 1e-6)`, and queries by `sqrt(d_k)` as well. With the decay `g = -exp(A_log) * softplus(a +
/// dt_bias)` and `beta = sigmoid(b)`, the state `S` `[d_k, d_v]` of a value head becomes, at each token,
/// `S' = e^g S`, then `S' + k (beta (v - S'^T k))^T`, and the output is `S^T q`. It is normed, and multiplied by
/// `silu(z)`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DeltaNetSpec {
    /// Number of query heads, and of key heads.
    pub linear_num_key_heads: usize,
    /// Number of value heads; a multiple of the number of key heads.
    pub linear_num_value_heads: usize,
    /// Width of a query or key head, `d_k`.
    pub linear_key_head_dim: usize,
    /// Width of a value head, `d_v`.
    pub linear_value_head_dim: usize,
    /// Number of tokens, including the current one, that the convolution covers.
    pub linear_conv_kernel_dim: usize,
    /// Norm of each value head's output.
    pub norm: NormSpec,
    /// How the projections are stored.
    pub projections: DeltaNetProjections,
    /// Which value heads use which key head.
    pub value_heads: ValueHeadOrder,
    /// What is stored of `A_log`.
    pub decay_rates: DecayRates,
}

/// Which value heads of a gated delta net use which key head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ValueHeadOrder {
    /// Value head `t` uses key head `t / (value heads / key heads)`.
    ByKeyHead,
    /// Value head `t` uses key head `t % key heads`.
    Tiled,
}

/// What is stored of the rates at which a gated delta net decays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DecayRates {
    /// `A_log`.
    Logarithm,
    /// `-exp(A_log)`.
    Negative,
}

impl DecayRates {
    /// `-exp(A_log)`, given what is stored.
    pub fn negative(self, stored: f32) -> f32 {
        match self {
            Self::Logarithm => -stored.exp(),
            Self::Negative => stored,
        }
    }
}

/// How the input projections of a gated delta net are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeltaNetProjections {
    /// One for queries, keys and values, with the rows of all heads of each kind together, and one each for `z`, `b`, `a`.
    ByKind,
    /// One with the rows of query, key, values and `z` of each key head together, and one with those of `b` and `a`.
    ByKeyHead,
    /// One for queries, keys and values, and one for `z`, with the rows of all heads of each kind together, but one with
    /// the rows of `b` and `a` of each key head together.
    StrengthByKeyHead,
}

/// A gated short convolution (LFM2, Liquid AI 2025, arXiv:2511.23404): recurrent layers that keep the last few products.
///
/// A projection `[3 h, h]` gives `B`, `C` and `x`, each as wide as the residual stream. The products `B x` pass through a
/// causal depthwise convolution, whose outputs are multiplied by `C` before the output projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ShortConvSpec {
    /// Number of tokens, including the current one, that the convolution covers (`conv_L_cache`).
    #[serde(rename = "conv_L_cache")]
    pub conv_l_cache: usize,
    /// Whether convolution and projections have biases.
    pub conv_bias: bool,
}

/// A norm of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct QkNormSpec {
    /// The values over which the statistics are computed.
    pub extent: QkNormExtent,
    /// The norm.
    pub norm: NormSpec,
    /// Whether it is applied after RoPE instead of before; not with statistics over the whole projection.
    pub after_rope: bool,
}

/// The values over which a query/key norm computes its statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNormExtent {
    /// One head; the weight `[d]` is shared by all heads.
    Head,
    /// One head; every head has its own weight: `[H, d]` and `[G, d]`.
    EachHead,
    /// The whole projection; weights `[H*d]` and `[G*d]`.
    Projection,
}

/// The factor `1 + beta * ln(1 + floor(position / original_max_position_embeddings))` of queries after RoPE.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct QueryPositionScale {
    /// Strength (`llama_4_scaling_beta`).
    pub beta: f64,
    /// Positions below this are not scaled.
    pub original_max_position_embeddings: usize,
}

/// One rotary table (Su et al. 2021, arXiv:2104.09864).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RopeSpec {
    /// Which dimensions are rotated together.
    pub pairing: RopePairing,
    /// Number of leading dimensions of a head, or of the rotated part in latent attention, that are rotated; the rest
    /// is unchanged.
    pub rotary_dim: usize,
    /// Base of the frequencies.
    pub rope_theta: f64,
    /// Scaling of the frequencies for long contexts.
    pub scaling: RopeScaling,
}

/// Which dimensions of a head form a rotated pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RopePairing {
    /// `(j, j + rotary_dim / 2)`.
    HalfSplit,
    /// `(2j, 2j + 1)`.
    Interleaved,
}

/// Scaling of the rotary frequencies for long contexts; formulas in [`crate::rope`].
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "rope_type", rename_all = "snake_case")]
pub enum RopeScaling {
    /// No scaling.
    Default,
    /// Divides every frequency by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Increases the base with the current sequence length.
    Dynamic {
        /// Growth per multiple of the original length.
        factor: f64,
        /// Length up to which nothing is scaled.
        original_max_position_embeddings: usize,
    },
    /// Divides low frequencies and keeps high ones, with a ramp in between (Llama 3.1).
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length before scaling.
        original_max_position_embeddings: usize,
    },
    /// Divides low frequencies and keeps high ones, with a ramp over dimensions (Peng et al. 2023, arXiv:2309.00071).
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Context length before scaling.
        original_max_position_embeddings: usize,
        /// Number of rotations at which the ramp begins.
        beta_fast: f64,
        /// Number of rotations at which the ramp ends.
        beta_slow: f64,
        /// Whether the ends of the ramp are rounded to whole dimensions.
        truncate: bool,
        /// Factor of cosines and sines.
        attention_factor: f64,
    },
    /// Divides every frequency by its own factor.
    FrequencyFactors {
        /// One divisor per rotated pair.
        factors: Vec<f64>,
    },
    /// Only the first pairs turn, with the frequencies that they have where all pairs do.
    Proportional {
        /// Number of pairs that turn.
        rotated_pairs: usize,
        /// Divisor of their frequencies.
        factor: f64,
    },
    /// One divisor per pair, from one of two lists depending on the current length (Ding et al. 2024,
    /// arXiv:2402.13753).
    Longrope {
        /// Divisors up to the original length.
        short_factor: Vec<f64>,
        /// Divisors beyond it.
        long_factor: Vec<f64>,
        /// Length up to which `short_factor` applies.
        original_max_position_embeddings: usize,
        /// Factor of cosines and sines up to the original length.
        attention_factor: f64,
        /// Factor of cosines and sines beyond it.
        long_attention_factor: f64,
    },
}

/// A layer: how it mixes positions, and how it transforms each position.
///
/// Both are enums, chosen per layer, so that further kinds can become variants.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LayerSpec {
    /// How positions are mixed.
    pub mixer: Mixer,
    /// Mamba-2 beside that, on the same input; both outputs are added to the residual stream. An index into
    /// [`DecoderSpec::mamba2s`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mamba2_beside: Option<usize>,
    /// How each position is transformed.
    pub feed_forward: FeedForward,
}

/// How a layer mixes positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Mixer {
    /// Causal attention.
    Attention {
        /// Index into [`DecoderSpec::attentions`].
        attention: usize,
        /// Number of keys visible to a query, including its own; all if `None`.
        sliding_window: Option<usize>,
        /// Index into [`DecoderSpec::rope`]; no rotation if `None`.
        rope: Option<usize>,
        /// Index of an earlier layer with heads of the same shape whose keys and values are read; the layer then has
        /// none of its own. An index into [`DecoderSpec::layers`].
        #[serde(skip_serializing_if = "Option::is_none")]
        kv_shared_with: Option<usize>,
    },
    /// A recurrence with a state of fixed size.
    DeltaNet {
        /// Index into [`DecoderSpec::delta_nets`].
        delta_net: usize,
    },
    /// A convolution over the last few tokens.
    ShortConv {
        /// Index into [`DecoderSpec::short_convs`].
        short_conv: usize,
    },
    /// A recurrence with a state of fixed size.
    Mamba2 {
        /// Index into [`DecoderSpec::mamba2s`].
        mamba2: usize,
    },
    /// Not at all: the layer has a feed-forward part only.
    None,
}

/// How a layer transforms each position.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FeedForward {
    /// `down(act(gate x) * up x)`, or `down(act(up x))` if not gated.
    Dense {
        /// Inner width.
        intermediate_size: usize,
        /// Activation function.
        hidden_act: ActivationFunction,
        /// Whether there is a gate projection.
        gated: bool,
        /// Whether the projections have biases.
        bias: bool,
        /// Of the gate's values of a token, only those above their mean plus this many of their standard deviations take
        /// part, each less that: `act(max(g - mean(g) - gate_cutoff * std(g), 0))` with the biased deviation. Only in
        /// networks with a gate.
        #[serde(skip_serializing_if = "Option::is_none")]
        gate_cutoff: Option<f64>,
    },
    /// A mixture of experts.
    Experts(ExpertsSpec),
    /// Not at all: the layer only mixes positions.
    None,
}

/// A mixture of experts: the sum of the outputs of those gated networks `down(act(gate x) * up x)` that a router
/// chooses for each token, times the router's weights, plus that of a network that serves every token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ExpertsSpec {
    /// Number of experts, `E`.
    pub num_experts: usize,
    /// Number of experts chosen for each token.
    pub num_experts_per_tok: usize,
    /// Inner width of each expert.
    pub intermediate_size: usize,
    /// Activation function of all of them, and of the shared one.
    pub hidden_act: ActivationFunction,
    /// Whether the experts and the shared one have gate projections; without, they are `down(act(up x))`.
    #[serde(skip_serializing_if = "is_true")]
    pub gated: bool,
    /// Whether the projections of the experts have biases.
    pub bias: bool,
    /// How experts are chosen and weighted.
    pub router: RouterSpec,
    /// The network that serves every token.
    pub shared_expert: Option<SharedExpertSpec>,
    /// Whether the shared expert and the sum of the routed ones have norms of their own, before and after. The shared
    /// expert's first norm is then the one before the feed-forward network, and the routed ones read the residual stream.
    #[serde(skip_serializing_if = "is_false")]
    pub branch_norms: bool,
}

/// How a router chooses experts: a linear layer gives a logit for each, the logits become scores, the experts with the
/// best scores are chosen, and their scores become weights.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RouterSpec {
    /// How logits become scores.
    pub scoring_func: ScoringFunction,
    /// Whether the linear layer has a bias.
    pub bias: bool,
    /// Whether a stored number per expert is added to its score for the choice only, not for its weight.
    pub correction_bias: bool,
    /// Only experts of the best groups can be chosen.
    pub groups: Option<ExpertGroups>,
    /// Whether the weights of the chosen experts are divided by their sum.
    pub norm_topk_prob: bool,
    /// The least that they are divided by (`moe_norm_min`).
    pub norm_min: f64,
    /// Added to their sum before that.
    pub norm_eps: f64,
    /// Factor of the weights, after that.
    pub routed_scaling_factor: f64,
    /// Whether the weight of each expert is then multiplied by a stored number of its own.
    #[serde(skip_serializing_if = "is_false")]
    pub per_expert_scale: bool,
    /// The router reads the residual stream through a norm of its own, whose stored weight is multiplied by this; if
    /// `None`, it reads what the experts read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_multiplier: Option<f64>,
}

/// How the logits of a router become scores.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ScoringFunction {
    /// Softmax over all experts, in f32.
    Softmax,
    /// Logistic function of each, in f32.
    Sigmoid,
    /// The best expert first, then the next best: each is weighted by a softmax over those whose logits are near its own
    /// (SparseMixer, Liu et al. 2023, arXiv:2310.00811). Expert `j` is near the best remaining one `i` if
    /// `(logit_i - logit_j) / max(|logit_j|, logit_i) <= 2 * router_jitter_noise`.
    Sparsemixer {
        /// How near.
        router_jitter_noise: f64,
    },
}

/// Equal groups of experts, in order, of which only some can be chosen from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ExpertGroups {
    /// Number of groups.
    pub n_group: usize,
    /// Number of groups from which experts are chosen.
    pub topk_group: usize,
    /// What the groups are compared by.
    pub score: GroupScore,
}

/// What groups of experts are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupScore {
    /// Their best score.
    Best,
    /// The sum of their two best scores.
    TwoBest,
}

/// A network like an expert that serves every token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SharedExpertSpec {
    /// Inner width.
    pub intermediate_size: usize,
    /// Whether its output is multiplied by the logistic function of a linear layer with one output.
    pub gated: bool,
    /// Whether its projections have biases.
    pub bias: bool,
}

/// Activation function of the feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationFunction {
    /// `x * sigmoid(x)`.
    Silu,
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    #[serde(rename = "gelu_pytorch_tanh")]
    GeluTanh,
    /// `0.5 x (1 + erf(x / sqrt 2))`.
    #[serde(rename = "gelu")]
    GeluErf,
    /// `max(x, 0)`.
    Relu,
    /// `g * sigmoid(swiglu_alpha * g)` of the gate `g`, clamped to at most `swiglu_limit`. The other factor is 1 plus the up
    /// projection, clamped to at most `swiglu_limit` in magnitude. Only in networks with a gate.
    ClampedSwiglu {
        /// Slope of the logistic function.
        swiglu_alpha: f64,
        /// Largest value of the gate, and magnitude of the other factor before 1 is added.
        swiglu_limit: f64,
    },
    /// `max(x, 0)^2` (So et al. 2021, arXiv:2109.08668).
    Relu2,
    /// SiLU of the input times a factor.
    ScaledSilu {
        /// The factor.
        gate_multiplier: f64,
    },
    /// xIELU with the parameters of its layer, see [`Xielu`].
    Xielu,
}

/// The activation function `positive x^2 + beta x` for positive `x` and `negative (e^x - 1 - x) + beta x` for others
/// (Huang and Schlag 2024, arXiv:2411.13010). `transformers` lets negative values end at -1e-6, which changes results by
/// less than that.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Xielu {
    /// Curvature of positive values.
    pub positive: f32,
    /// Factor of the exponential of negative values.
    pub negative: f32,
    /// Slope at zero.
    pub beta: f32,
}

impl Xielu {
    /// From the stored parameters: the curvature is `ln(1 + e^alpha_p)`, the factor `beta + ln(1 + e^alpha_n)`, and the
    /// slope is 1/2, as loading checks.
    pub fn new(alpha_p: f32, alpha_n: f32) -> Self {
        let beta = 0.5;
        // Beyond this, 1 is below the rounding of e^x.
        let softplus = |x: f32| if x > 20.0 { x } else { x.exp().ln_1p() };
        Self { positive: softplus(alpha_p), negative: beta + softplus(alpha_n), beta }
    }
}

impl PerLayerInputSpec {
    /// The row of the further embedding that a token has.
    pub fn row(&self, token: u32) -> u32 {
        if (token as usize) < self.vocab_size_per_layer_input { token } else { 0 }
    }
}

impl FeedForward {
    /// The largest inner width, over what is computed for one token: that of all chosen experts together.
    pub fn inner_width(&self) -> usize {
        match self {
            Self::Dense { intermediate_size, .. } => *intermediate_size,
            Self::Experts(experts) => {
                let routed = experts.intermediate_size.saturating_mul(experts.num_experts_per_tok);
                routed.max(experts.shared_expert.map_or(0, |shared| shared.intermediate_size))
            }
            Self::None => 0,
        }
    }
}

impl AttentionSpec {
    /// Width of the concatenated query heads, `H*d`.
    pub fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of a value head.
    pub fn value_head_dim(&self) -> usize {
        self.latent.map_or(self.head_dim, |latent| latent.v_head_dim)
    }

    /// Width of the concatenated outputs of all heads, which the output projection reads.
    pub fn output_width(&self) -> usize {
        self.num_attention_heads * self.value_head_dim()
    }

    /// The first dimension of a query or key head that RoPE may turn.
    pub fn first_rotated(&self) -> usize {
        self.latent.map_or(0, |latent| latent.qk_nope_head_dim)
    }

    /// Number of rows of all projections before attention, with or without those of keys and values.
    pub fn projected_rows(&self, has_keys: bool) -> usize {
        let Some(latent) = &self.latent else {
            let projections = match (has_keys, self.attention_k_eq_v) {
                (false, _) => 0,
                (true, true) => 1,
                (true, false) => 2,
            };
            return self.query_rows() + projections * self.key_value_width();
        };
        let expanded = self.num_key_value_heads * latent.expanded_head_rows();
        self.query_rows() + latent.q_lora_rank.unwrap_or(0) + latent.compressed_rows() + expanded
    }

    /// Width of the concatenated key (or value) heads, `G*d`, as they are kept: narrower values are padded with zeros.
    pub fn key_value_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Number of rows of a head in the query projection.
    pub fn query_head_rows(&self) -> usize {
        if self.output_gate { 2 * self.head_dim } else { self.head_dim }
    }

    /// Number of rows of the query projection.
    pub fn query_rows(&self) -> usize {
        self.num_attention_heads * self.query_head_rows()
    }
}

impl DeltaNetSpec {
    /// Width of all query heads, and of all key heads.
    pub fn key_width(&self) -> usize {
        self.linear_num_key_heads * self.linear_key_head_dim
    }

    /// Width of all value heads.
    pub fn value_width(&self) -> usize {
        self.linear_num_value_heads * self.linear_value_head_dim
    }

    /// Number of channels of the convolution: queries, keys and values.
    pub fn conv_width(&self) -> usize {
        2 * self.key_width() + self.value_width()
    }

    /// Number of value heads that use one key head.
    pub fn values_per_key(&self) -> usize {
        self.linear_num_value_heads / self.linear_num_key_heads
    }

    /// The key head that a value head uses.
    pub fn key_head(&self, value_head: usize) -> usize {
        match self.value_heads {
            ValueHeadOrder::ByKeyHead => value_head / self.values_per_key(),
            ValueHeadOrder::Tiled => value_head % self.linear_num_key_heads,
        }
    }

    /// The value head that is at `index` among those that use a key head.
    pub fn value_head(&self, key_head: usize, index: usize) -> usize {
        match self.value_heads {
            ValueHeadOrder::ByKeyHead => key_head * self.values_per_key() + index,
            ValueHeadOrder::Tiled => index * self.linear_num_key_heads + key_head,
        }
    }
}

impl DecoderSpec {
    /// The attention of a layer, if it has one.
    pub fn attention(&self, layer: usize) -> Option<&AttentionSpec> {
        match self.layers[layer].mixer {
            Mixer::Attention { attention, .. } => Some(&self.attentions[attention]),
            _ => None,
        }
    }

    /// Whether any layer has a mixture of experts.
    pub fn has_experts(&self) -> bool {
        self.layers.iter().any(|layer| matches!(layer.feed_forward, FeedForward::Experts(_)))
    }

    /// The mixture of experts of a layer, if it has one.
    pub fn experts(&self, layer: usize) -> Option<&ExpertsSpec> {
        match &self.layers[layer].feed_forward {
            FeedForward::Dense { .. } | FeedForward::None => None,
            FeedForward::Experts(experts) => Some(experts),
        }
    }

    /// The gated delta net of a layer, if it has one.
    pub fn delta_net(&self, layer: usize) -> Option<&DeltaNetSpec> {
        match self.layers[layer].mixer {
            Mixer::DeltaNet { delta_net } => Some(&self.delta_nets[delta_net]),
            _ => None,
        }
    }

    /// The gated short convolution of a layer, if it has one.
    pub fn short_conv(&self, layer: usize) -> Option<&ShortConvSpec> {
        match self.layers[layer].mixer {
            Mixer::ShortConv { short_conv } => Some(&self.short_convs[short_conv]),
            _ => None,
        }
    }

    /// The Mamba-2 of a layer, alone or beside attention.
    pub fn mamba2(&self, layer: usize) -> Option<&Mamba2Spec> {
        let LayerSpec { mixer, mamba2_beside, .. } = self.layers[layer];
        let alone = if let Mixer::Mamba2 { mamba2 } = mixer { Some(mamba2) } else { None };
        alone.or(mamba2_beside).map(|index| &self.mamba2s[index])
    }

    /// Whether a layer keeps a state of fixed size of a sequence.
    pub fn is_recurrent(&self, layer: usize) -> bool {
        self.delta_net(layer).is_some() || self.short_conv(layer).is_some() || self.mamba2(layer).is_some()
    }

    /// The Mamba-2 of every layer that has it, in order.
    pub fn layer_mamba2s(&self) -> impl Iterator<Item = &Mamba2Spec> {
        (0..self.layers.len()).filter_map(|layer| self.mamba2(layer))
    }

    /// Number of residual streams.
    pub fn streams(&self) -> usize {
        self.altup.map_or(1, |altup| altup.altup_num_inputs)
    }

    /// Width of all residual streams of a token together.
    pub fn stream_width(&self) -> usize {
        self.streams() * self.hidden_size
    }

    /// Factors of what attention, Mamba-2 and feed-forward network add to the residual stream.
    pub fn branch_multipliers(&self) -> BranchMultipliers {
        self.branch_multipliers.unwrap_or(BranchMultipliers::NONE)
    }

    /// The attention of every layer that has one, in order.
    pub fn layer_attentions(&self) -> impl Iterator<Item = &AttentionSpec> {
        (0..self.layers.len()).filter_map(|layer| self.attention(layer))
    }

    /// The gated delta net of every layer that has one, in order.
    pub fn layer_delta_nets(&self) -> impl Iterator<Item = &DeltaNetSpec> {
        (0..self.layers.len()).filter_map(|layer| self.delta_net(layer))
    }

    /// The earlier layer whose keys and values a layer reads instead of its own.
    pub fn kv_shared_with(&self, layer: usize) -> Option<usize> {
        match self.layers[layer].mixer {
            Mixer::Attention { kv_shared_with, .. } => kv_shared_with,
            _ => None,
        }
    }

    /// The attention of a layer that keeps keys and values of its own.
    pub fn kept_attention(&self, layer: usize) -> Option<&AttentionSpec> {
        self.attention(layer).filter(|_| self.kv_shared_with(layer).is_none())
    }

    /// Width of the keys (or values) that a layer keeps of a token, over all heads; 0 if it keeps none.
    pub fn key_value_width(&self, layer: usize) -> usize {
        self.kept_attention(layer).map_or(0, AttentionSpec::key_value_width)
    }

    /// Whether a layer needs nothing but the residual stream and what it keeps itself, so that it can be computed apart
    /// from the others.
    pub fn has_separate_layers(&self) -> bool {
        self.per_layer_inputs.is_none() && (0..self.layers.len()).all(|layer| self.kv_shared_with(layer).is_none())
    }

    /// The description of some consecutive layers, which are numbered from 0 in it.
    ///
    /// # Panics
    ///
    /// If the range is out of bounds.
    pub fn of_layers(&self, layers: Range<usize>) -> Self {
        Self { layers: self.layers[layers].to_vec(), ..self.clone() }
    }
}
