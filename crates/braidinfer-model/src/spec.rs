//! [`DecoderSpec`]: everything an executor must know about an architecture, as plain data.
//!
//! Field names follow Hugging Face `config.json` where that has one. Nothing behind this type may depend
//! on a model's name: new mathematics becomes a new field here.

use serde::Serialize;

/// A decoder-only transformer, described.
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
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the output head is the embedding itself.
    pub tie_word_embeddings: bool,
    /// Factor on the embedding (not on a tied head).
    pub embedding_multiplier: f64,
    /// Factor on what attention and feed-forward add to the residual stream.
    pub residual_multiplier: f64,
    /// Divisor of the logits.
    pub logits_scaling: f64,
    /// `cap * tanh(logit / cap)` on the logits.
    pub final_logit_softcapping: Option<f64>,
    /// Whether the output head has a bias.
    pub lm_head_bias: bool,
    /// Every norm of the model but those on queries and keys.
    pub norm: NormSpec,
    /// Which norms a layer has, and how its parts are joined.
    pub block: BlockSpec,
    /// Kinds of attention; layers name theirs by index.
    pub attentions: Vec<AttentionSpec>,
    /// Rotary tables; layers name theirs by index.
    pub rope: Vec<RopeSpec>,
    /// One entry per layer, in order.
    pub layers: Vec<LayerSpec>,
}

/// A normalisation over the last dimension, with statistics in f32.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct NormSpec {
    /// The statistics.
    pub kind: NormKind,
    /// Added to the mean square or variance.
    pub eps: f64,
    /// Added to the stored weight: 1 where checkpoints store `w - 1`.
    pub weight_offset: f32,
    /// Whether it has a bias.
    pub bias: bool,
}

/// Which statistics a norm takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// `w * x / sqrt(mean(x^2) + eps)` (Zhang and Sennrich 2019, arXiv:1910.07467).
    Rms,
    /// `w * (x - mean) / sqrt(var + eps)` with the biased variance (arXiv:1607.06450).
    Layer,
}

/// Norms of a layer and how its two halves join the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BlockSpec {
    /// `x + attention(n) + feed_forward(n)` with one shared input norm, instead of one after the other.
    pub parallel: bool,
    /// A norm before attention.
    pub input_norm: bool,
    /// A norm on what attention returns.
    pub attention_output_norm: bool,
    /// A norm before the feed-forward part.
    pub feed_forward_norm: bool,
    /// A norm on what the feed-forward part returns.
    pub feed_forward_output_norm: bool,
}

impl BlockSpec {
    /// Norms before each half: most architectures.
    pub const PRE_NORM: Self = Self {
        parallel: false,
        input_norm: true,
        attention_output_norm: false,
        feed_forward_norm: true,
        feed_forward_output_norm: false,
    };
    /// Norms before and after each half.
    pub const SANDWICH: Self = Self { attention_output_norm: true, feed_forward_output_norm: true, ..Self::PRE_NORM };
    /// Norms only after each half.
    pub const POST_NORM: Self = Self { input_norm: false, feed_forward_norm: false, ..Self::SANDWICH };
    /// Both halves read one norm.
    pub const PARALLEL: Self = Self { parallel: true, feed_forward_norm: false, ..Self::PRE_NORM };
}

/// Attention: projections, query/key norms, score arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct AttentionSpec {
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads; query head `t` reads key/value head `t / (H / G)`.
    pub num_key_value_heads: usize,
    /// Width of a head; independent of `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Factor on `q . k`.
    pub scale: f64,
    /// `cap * tanh(score / cap)`, after scaling and before masking.
    pub logit_softcapping: Option<f64>,
    /// Norm on queries and keys before RoPE.
    pub qk_norm: Option<QkNormSpec>,
    /// Whether the query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// Position-dependent factor on rotated queries.
    pub query_position_scale: Option<QueryPositionScale>,
}

/// A norm on queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct QkNormSpec {
    /// Over which values the statistics run.
    pub extent: QkNormExtent,
    /// The norm.
    pub norm: NormSpec,
}

/// Over which values a query/key norm takes its statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNormExtent {
    /// One head; the weight `[d]` is shared by all heads.
    Head,
    /// The whole projection; weights `[H*d]` and `[G*d]`.
    Projection,
}

/// `1 + beta * ln(1 + floor(position / original_max_position_embeddings))` on queries after RoPE.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct QueryPositionScale {
    /// Strength (`llama_4_scaling_beta`).
    pub beta: f64,
    /// Positions up to here are not scaled.
    pub original_max_position_embeddings: usize,
}

/// One rotary table (Su et al. 2021, arXiv:2104.09864).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RopeSpec {
    /// Which dimensions turn together.
    pub pairing: RopePairing,
    /// How many leading dimensions of a head turn; the rest pass through.
    pub rotary_dim: usize,
    /// Base of the frequencies.
    pub rope_theta: f64,
    /// Change of the frequencies for long contexts.
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

/// Long-context change of the rotary frequencies; formulas in [`crate::rope`].
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "rope_type", rename_all = "snake_case")]
pub enum RopeScaling {
    /// None.
    Default,
    /// Every frequency divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// The base grows with the current length.
    Dynamic {
        /// Growth per length beyond the original.
        factor: f64,
        /// Length up to which nothing changes.
        original_max_position_embeddings: usize,
    },
    /// Low frequencies divided, high ones kept, a ramp between (Llama 3.1).
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
    /// A ramp over dimensions between kept and divided (Peng et al. 2023, arXiv:2309.00071).
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Context length before scaling.
        original_max_position_embeddings: usize,
        /// Rotations at which the ramp begins.
        beta_fast: f64,
        /// Rotations at which the ramp ends.
        beta_slow: f64,
        /// Whether the ramp's ends are rounded to whole dimensions.
        truncate: bool,
        /// Factor on cosines and sines.
        attention_factor: f64,
    },
    /// Every frequency divided by a number of its own.
    FrequencyFactors {
        /// One per rotated pair.
        factors: Vec<f64>,
    },
    /// One divisor per dimension, from one of two lists by the current length (Ding et al. 2024, arXiv:2402.13753).
    Longrope {
        /// Divisors up to the original length.
        short_factor: Vec<f64>,
        /// Divisors beyond it.
        long_factor: Vec<f64>,
        /// Where the lists change.
        original_max_position_embeddings: usize,
        /// Factor on cosines and sines.
        attention_factor: f64,
    },
}

/// One layer: how it mixes positions, and how it transforms each.
///
/// Both are enums so that state-space mixers and expert mixtures become variants, chosen per layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LayerSpec {
    /// Mixes positions.
    pub mixer: Mixer,
    /// Transforms each position.
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
        /// Keys visible to a query, itself included; all if `None`.
        sliding_window: Option<usize>,
        /// Index into [`DecoderSpec::rope`]; no rotation if `None`.
        rope: Option<usize>,
    },
}

/// How a layer transforms each position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FeedForward {
    /// `down(act(gate x) * up x)`, or `down(act(up x))` where not gated.
    Dense {
        /// Inner width.
        intermediate_size: usize,
        /// Nonlinearity.
        hidden_act: Activation,
        /// Whether there is a gate projection.
        gated: bool,
        /// Whether the projections have biases.
        bias: bool,
    },
}

/// Nonlinearity of the feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
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
}

impl AttentionSpec {
    /// Width of the concatenated query heads, `H*d`.
    pub fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of the concatenated key (or value) heads, `G*d`.
    pub fn key_value_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}

impl DecoderSpec {
    /// The attention of a layer.
    pub fn attention(&self, layer: usize) -> &AttentionSpec {
        let Mixer::Attention { attention, .. } = self.layers[layer].mixer;
        &self.attentions[attention]
    }

    /// The attention of every layer, in order.
    pub fn layer_attentions(&self) -> impl Iterator<Item = &AttentionSpec> {
        (0..self.layers.len()).map(|layer| self.attention(layer))
    }
}
