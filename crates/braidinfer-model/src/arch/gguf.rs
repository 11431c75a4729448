//! Architectures in llama.cpp's GGUF files: converting keys to a [`Description`], and back.
//!
//! The keys are converted to an equivalent `config.json`, so that there is only one reader per architecture. Then the
//! description is adapted to what llama.cpp stores differently (permuted rows, norm weights, names).

mod by_kind;
mod config;
mod keys;
mod mamba2;
mod streams;

use std::collections::BTreeSet;

use crate::arch::{Architecture, Description, REGISTRY, check};
use crate::format::Checkpoint;
use crate::format::gguf::{Gguf, Metadata};
use crate::layout::{ExpertNames, LayerSlot, Slot, TensorNames};
use crate::spec::{
    DecayRates, DecoderSpec, DeltaNetProjections, FeedForward, Mixer, RopePairing, RopeScaling, ScoringFunction,
    SharedExpertSpec, ValueHeadOrder,
};
use crate::{JsonFile, ModelError, Result};

pub use keys::{GgufModel, gguf_model};
pub use mamba2::GgufMamba2;

/// How llama.cpp's files store an architecture.
#[derive(Debug, Clone, Copy)]
pub struct GgufForm {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// Whether query and key rows are permuted so that RoPE is interleaved.
    pub neighbours: bool,
    /// Whether stored norm weights include the offset that `transformers` adds at run time.
    pub offset_included: bool,
    /// Whether projections with the same input are stacked in one tensor.
    pub stacked: bool,
    /// Whether gate and up projection are stacked in one tensor.
    pub stacked_gate_up: bool,
    /// Names of modules that differ from those of most architectures.
    pub names: &'static [(LayerSlot, &'static str)],
    /// Whether sliding layers have keys for the width of their heads, and sizes that differ between layers are lists.
    /// Files then also have keys for layers that share keys and values, and for further inputs of all layers.
    pub layer_kinds: bool,
    /// Whether models have several residual streams, low-rank branches and sparse networks, and keys for them.
    pub streams: bool,
    /// Whether files have keys for the multipliers of embeddings, residual stream, scores and logits.
    pub multipliers: bool,
    /// Whether files have a key for the factor of logits, the inverse of `logits_scaling`.
    pub logit_scale: bool,
    /// Whether files have a key that says whether attention and feed-forward network are parallel.
    pub parallel_residual: bool,
    /// For files older than the key `tokenizer.ggml.pre`, the pre-tokenizer of byte-level BPE: the value that key would
    /// have.
    pub pre_tokenizer: Option<&'static str>,
    /// Whether control tokens strip the white space after them, for which files have no key.
    pub control_tokens_strip: bool,
    /// Whether the ends of YaRN's ramp are rounded to whole dimensions, for which files have no key.
    pub yarn_truncate: bool,
    /// Name of the norm before the feed-forward network.
    pub feed_forward_norm: &'static str,
    /// How files store a mixture of experts, if they have one.
    pub experts: Option<GgufExperts>,
    /// How files store gated delta nets, if they have some.
    pub delta_nets: Option<GgufDeltaNets>,
    /// Whether layers without key/value heads have gated short convolutions.
    pub short_convs: bool,
    /// Whether files have the widths of latent attention.
    pub latent: bool,
    /// Where files have Mamba-2, if they have it.
    pub mamba2: Option<GgufMamba2>,
    /// `general.architecture` of models with experts, if that is another one.
    pub with_experts: Option<&'static str>,
    /// What llama.cpp supports in such files.
    pub llama_cpp: LlamaCpp,
}

/// How llama.cpp's files store a mixture of experts.
#[derive(Debug, Clone, Copy)]
pub struct GgufExperts {
    /// Whether the weights of the chosen experts are divided by their sum if the file does not say.
    pub norm_topk_prob: bool,
    /// Whether llama.cpp supports first layers without experts.
    pub leading_dense: bool,
    /// Whether files of the architecture may also have no experts at all.
    pub optional: bool,
    /// Whether the expert that serves every token has the names of a dense network.
    pub beside_dense: bool,
}

impl GgufExperts {
    /// Weights are the scores among all experts.
    pub(super) const OF_ALL: Self =
        Self { norm_topk_prob: false, leading_dense: false, optional: false, beside_dense: false };
    /// Weights are the scores among the chosen experts.
    pub(super) const OF_CHOSEN: Self = Self { norm_topk_prob: true, ..Self::OF_ALL };
}

/// How llama.cpp's files store gated delta nets: their rates of decay are `-exp(A_log)`, and the weights of their norms
/// include no offset.
#[derive(Debug, Clone, Copy)]
pub struct GgufDeltaNets {
    /// How the projections are stored.
    pub projections: DeltaNetProjections,
    /// Whether the value heads of each key head are apart from each other.
    pub tiled: bool,
    /// Whether llama.cpp wants to know how rotated dimensions are divided between the axes of images, which means nothing
    /// in text.
    pub rope_sections: bool,
}

/// What llama.cpp supports in files of an architecture; this engine supports all of it. When a file is written with
/// features that llama.cpp does not support, a note says so.
#[derive(Debug, Clone, Copy)]
pub struct LlamaCpp {
    /// Sliding windows.
    pub windows: bool,
    /// Begin and end of YaRN's ramp.
    pub yarn_ramp: bool,
    /// Biases of attention output projections.
    pub output_bias: bool,
    /// Biases of the feed-forward network.
    pub mlp_bias: bool,
    /// Divisors of RoPE frequencies.
    pub rope_freqs: bool,
}

impl LlamaCpp {
    pub(super) const PLAIN: Self =
        Self { windows: false, yarn_ramp: false, output_bias: false, mlp_bias: false, rope_freqs: false };
    /// What it supports in the llama family.
    pub(super) const LLAMA: Self = Self { output_bias: true, mlp_bias: true, rope_freqs: true, ..Self::PLAIN };
    /// Sliding windows.
    pub(super) const WINDOWS: Self = Self { windows: true, ..Self::PLAIN };
}

impl GgufForm {
    /// A form with everything stored as in Hugging Face checkpoints.
    pub(super) const fn named(architecture: &'static str) -> Self {
        Self {
            architecture,
            neighbours: false,
            offset_included: false,
            stacked: false,
            stacked_gate_up: false,
            names: &[],
            layer_kinds: false,
            streams: false,
            multipliers: false,
            logit_scale: false,
            parallel_residual: false,
            pre_tokenizer: None,
            control_tokens_strip: false,
            yarn_truncate: true,
            feed_forward_norm: "ffn_norm",
            experts: None,
            delta_nets: None,
            short_convs: false,
            latent: false,
            mamba2: None,
            with_experts: None,
            llama_cpp: LlamaCpp::PLAIN,
        }
    }

    /// This form in files of `architecture`; `None` if it has another name.
    pub(crate) fn named_as(self, architecture: &str) -> Option<Self> {
        [self.of(false), self.of(true)].into_iter().find(|form| form.architecture == architecture)
    }

    /// This form for models with or without experts.
    fn of(self, has_experts: bool) -> Self {
        let named = self.with_experts.filter(|_| has_experts);
        Self { architecture: named.unwrap_or(self.architecture), ..self }
    }

    /// Adapts a description of a Hugging Face checkpoint to the row order and norm weights of GGUF files.
    fn adjust(&self, spec: &mut DecoderSpec) {
        if self.neighbours {
            spec.rope.iter_mut().for_each(|table| table.pairing = RopePairing::Interleaved);
        }
        if self.offset_included {
            spec.norm.weight_offset = 0.0;
            if let Some(qk_norm) = &mut spec.attentions[0].qk_norm {
                qk_norm.norm.weight_offset = 0.0;
            }
        }
        for net in spec.delta_nets.iter_mut().filter(|_| self.delta_nets.is_some()) {
            net.decay_rates = DecayRates::Negative;
            if self.delta_nets.is_some_and(|form| form.tiled) && net.values_per_key() > 1 {
                net.value_heads = ValueHeadOrder::Tiled;
            }
        }
        if let Some(mamba2) = self.mamba2 {
            mamba2.adjust(spec);
        }
    }
}

/// Tensor names in GGUF, without stacked tensors (but experts are always stacked).
fn tensor_names(form: GgufForm) -> TensorNames {
    use LayerSlot::*;
    let layer = [
        (InputNorm, "attn_norm"),
        (QProj, "attn_q"),
        (KProj, "attn_k"),
        (VProj, "attn_v"),
        (QAProj, "attn_q_a"),
        (QANorm, "attn_q_a_norm"),
        (QBProj, "attn_q_b"),
        (KvAProj, "attn_kv_a_mqa"),
        (KvANorm, "attn_kv_a_norm"),
        (KvBProj, "attn_kv_b"),
        (OProj, "attn_output"),
        (QNorm, "attn_q_norm"),
        (KNorm, "attn_k_norm"),
        (Sinks, "attn_sinks"),
        (AttentionOutputNorm, "post_attention_norm"),
        (FeedForwardNorm, form.feed_forward_norm),
        (GateProj, "ffn_gate"),
        (UpProj, "ffn_up"),
        (DownProj, "ffn_down"),
        (Router, ROUTER),
        (SharedGateProj, "ffn_gate_shexp"),
        (SharedUpProj, "ffn_up_shexp"),
        (SharedDownProj, "ffn_down_shexp"),
        (SharedExpertGate, "ffn_gate_inp_shexp"),
        (FeedForwardOutputNorm, "post_ffw_norm"),
        (InProjQkv, "attn_qkv"),
        (InProjZ, "attn_gate"),
        (InProjB, "ssm_beta"),
        (InProjA, "ssm_alpha"),
        (InProjQkvz, INPUTS_BY_KEY_HEAD),
        (InProjBa, "ssm_ba"),
        (InProjZxbcdt, "ssm_in"),
        (MambaNorm, "ssm_norm"),
        (Conv1d, "ssm_conv1d"),
        (DeltaNorm, "ssm_norm"),
        (OutProj, "ssm_out"),
        (ExpertsNorm, "pre_ffw_norm_2"),
        (SharedExpertOutputNorm, "post_ffw_norm_1"),
        (ExpertsOutputNorm, "post_ffw_norm_2"),
        (PerLayerInputGate, "inp_gate"),
        (PerLayerProjection, "proj"),
        (PostPerLayerInputNorm, "post_norm"),
        (LayerScalar, "layer_output_scale"),
        (StreamRouterNorm, "altup_router_norm"),
        (StreamRouter, "altup_router"),
        (PredictionCoefs, "altup_predict_coef"),
        (CorrectionCoefs, "altup_correct_coef"),
        (CorrectOutputScale, "altup_correct_scale"),
        (LaurelLeft, "laurel_l"),
        (LaurelRight, "laurel_r"),
        (LaurelNorm, "laurel_post_norm"),
    ];
    let experts = [
        ExpertNames::Stacked { names: ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"] },
        ExpertNames::Stacked { names: ["ffn_gate_up_exps", "ffn_gate_up_exps", "ffn_down_exps"] },
        // Files of 2023 and early 2024.
        ExpertNames::Indexed { names: ["ffn_gate", "ffn_up", "ffn_down"] },
    ];
    let tensors = [
        (RouterCorrection, ROUTER_CORRECTION),
        (DtBias, "ssm_dt.bias"),
        (ALog, "ssm_a"),
        (SkipD, "ssm_d"),
        (RouterNorm, "ffn_gate_inp.scale"),
        (PerExpertScale, "ffn_down_exps.scale"),
    ];
    let mut names = TensorNames::gguf(&layer, &experts).with(form.names).with_tensor(&tensors);
    if form.short_convs {
        names = names.with(&SHORT_CONV).with_final_norm("token_embd_norm");
    }
    if form.mamba2 == Some(GgufMamba2::BesideAttention) {
        names = names.with_tensor(&[(FeedForwardNorm, form.feed_forward_norm)]);
    }
    if form.experts.is_some_and(|experts| experts.beside_dense) {
        names = names.with(&[(SharedGateProj, "ffn_gate"), (SharedUpProj, "ffn_up"), (SharedDownProj, "ffn_down")]);
    }
    names
}

const SHORT_CONV: [(LayerSlot, &str); 3] = [
    (LayerSlot::InProjBcx, "shortconv.in_proj"),
    (LayerSlot::Conv1d, "shortconv.conv"),
    (LayerSlot::OutProj, "shortconv.out_proj"),
];

/// Queries, keys, values and gate of a delta net by key head, as in older files.
const INPUTS_BY_KEY_HEAD: &str = "ssm_in";

/// The router, and what corrects its choice.
const ROUTER: &str = "ffn_gate_inp";
/// `general.architecture` of models with the latent attention of DeepSeek.
const DEEPSEEK: &str = "deepseek2";
const ROUTER_CORRECTION: &str = "exp_probs_b.bias";

const STACKED_QKV: [(LayerSlot, &str); 3] =
    [(LayerSlot::QProj, "attn_qkv"), (LayerSlot::KProj, "attn_qkv"), (LayerSlot::VProj, "attn_qkv")];
const SEPARATE_QKV: [(LayerSlot, &str); 3] =
    [(LayerSlot::QProj, "attn_q"), (LayerSlot::KProj, "attn_k"), (LayerSlot::VProj, "attn_v")];
const STACKED_GATE_UP: [(LayerSlot, &str); 2] = [(LayerSlot::GateProj, "ffn_up"), (LayerSlot::UpProj, "ffn_up")];

/// Key for the position-dependent factor of queries.
const TEMPERATURE_SCALE: &str = "attention.temperature_scale";

/// Key for attention and feed-forward network in parallel.
const PARALLEL_RESIDUAL: &str = "use_parallel_residual";
/// Keys for the number of value heads of a delta net, and for their width together.
const VALUE_HEADS: &str = "ssm.time_step_rank";
const VALUE_WIDTH: &str = "ssm.inner_size";
/// Key for the number of tokens that a short convolution covers.
const CONVOLVED_TOKENS: &str = "shortconv.l_cache";
/// Every how many layers there is attention, and a list that says which layers have none.
const FULL_ATTENTION_INTERVAL: &str = "full_attention_interval";
const RECURRENT_LAYERS: &str = "attention.recurrent_layers";

/// Tensors with RoPE settings.
const ROPE_FREQS: &str = "rope_freqs.weight";
const ROPE_FACTORS_SHORT: &str = "rope_factors_short.weight";
const ROPE_FACTORS_LONG: &str = "rope_factors_long.weight";

/// Describes the decoder of a GGUF model; also returns the equivalent `config.json`.
pub(super) fn describe(gguf: &Gguf) -> Result<(Description, JsonFile)> {
    let (architecture, form) = architecture(gguf.metadata(), gguf.checkpoint())?;
    let file = File { metadata: gguf.metadata(), checkpoint: gguf.checkpoint(), form };
    let config = config::config(&file, architecture.model_type)?;
    let mut description = (architecture.describe)(&config)?;
    file.adjust(&mut description)?;
    file.check_window(&description.spec)?;
    check(&config, &description.spec)?;
    Ok((description, config))
}

/// The architecture that a file names.
fn architecture(metadata: &Metadata, checkpoint: &Checkpoint) -> Result<(&'static Architecture, GgufForm)> {
    const KEY: &str = "general.architecture";
    let name = metadata.text(KEY)?.ok_or_else(|| metadata.error(KEY, "the name of an architecture", "nothing"))?;
    let experts = metadata.unsigned(&format!("{name}.expert_count"))?.unwrap_or(0);
    let forms = || REGISTRY.iter().filter_map(|arch| Some((arch, arch.gguf?)));
    // Several architectures use the form of llama, and two that of OLMo 2; they differ in their sliding windows.
    let windowed = metadata.unsigned(&format!("{name}.attention.sliding_window"))?.unwrap_or(0) > 0;
    let patterned = metadata.get(&format!("{name}.attention.sliding_window_pattern")).is_some();
    let wanted = match (name, windowed, patterned) {
        ("llama", true, true) => "ministral",
        ("llama", true, false) => "mistral",
        ("olmo2", true, _) => "olmo3",
        (DEEPSEEK, ..) if sigmoid_router(metadata, checkpoint)? => "deepseek_v3",
        (DEEPSEEK, ..) => "deepseek_v2",
        _ => "",
    };
    let of_form = |(arch, form): (&'static Architecture, GgufForm)| Some((arch, form.named_as(name)?));
    let mut candidates: Vec<_> = forms().filter_map(of_form).collect();
    candidates.sort_by_key(|(arch, form)| (form.experts.is_some() != (experts > 0), arch.model_type != wanted));
    match candidates.first() {
        Some((_, form)) if experts == 0 && form.experts.is_some_and(|experts| !experts.optional) => {
            Err(metadata.error(&format!("{name}.expert_count"), "a number of experts above zero", "none"))
        }
        Some(found) if experts == 0 || found.1.experts.is_some() => Ok(*found),
        found => {
            let supported: BTreeSet<&str> =
                forms().flat_map(|(_, form)| [form.of(false).architecture, form.of(true).architecture]).collect();
            let reason = if found.is_some() { super::MIXTURE_OF_EXPERTS } else { "is not a known architecture" };
            Err(ModelError::UnsupportedArchitecture {
                path: metadata.path().to_owned(),
                model_type: name.to_owned(),
                reason: reason.to_owned(),
                supported: supported.into_iter().collect::<Vec<_>>().join(", "),
            })
        }
    }
}

/// Whether a file of the DeepSeek family has the router of V3. Files of GLM 4.7 Flash have no key for it, but a correction of
/// the choice, which V2 has not.
fn sigmoid_router(metadata: &Metadata, checkpoint: &Checkpoint) -> Result<bool> {
    let key = format!("{DEEPSEEK}.expert_gating_func");
    Ok(match metadata.unsigned(&key)?.filter(|function| *function != 0) {
        Some(function) => function == gating_func(ScoringFunction::Sigmoid).0,
        None => checkpoint.names().any(|name| name.ends_with(ROUTER_CORRECTION)),
    })
}

/// The form of the architecture that a file names; `None` if that is unknown.
pub fn form_of(metadata: &Metadata) -> Result<Option<GgufForm>> {
    let name = metadata.text("general.architecture")?;
    let Some(name) = name else { return Ok(None) };
    let mut forms = REGISTRY.iter().filter_map(|architecture| architecture.gguf);
    Ok(forms.find_map(|form| form.named_as(name)))
}

/// Whether a token with this spelling is an end-of-sequence token. Files name at most three such tokens; llama.cpp
/// recognizes further ones by the same spellings, and treats them as control tokens regardless of their type in the
/// file.
pub fn ends_text(token: &str) -> bool {
    const ENDS: [&str; 20] = [
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<end_of_turn>",
        "<turn|>",
        "<|tool_response>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "</s>",
        "<eos>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<end_of_utterance>",
        "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    ];
    ENDS.contains(&token)
}

/// Tensor names of models in this form, as llama.cpp writes them.
pub(crate) fn names_without_file(form: GgufForm) -> TensorNames {
    let names = tensor_names(form);
    let names = if form.stacked { names.with(&STACKED_QKV) } else { names };
    if form.stacked || form.stacked_gate_up { names.with(&STACKED_GATE_UP) } else { names }
}

/// A GGUF file that is being described.
struct File<'a> {
    metadata: &'a Metadata,
    checkpoint: &'a Checkpoint,
    form: GgufForm,
}

impl File<'_> {
    /// The key `suffix`, prefixed with the architecture's name.
    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.form.architecture)
    }

    /// A size that the file must have.
    fn required_size(&self, suffix: &str) -> Result<u64> {
        let key = self.key(suffix);
        let size = self.metadata.unsigned(&key)?.filter(|size| *size > 0);
        size.ok_or_else(|| self.metadata.error(&key, "a positive whole number", "nothing"))
    }

    fn first_layer_has(&self, tensor: &str) -> bool {
        self.layer_has(0, tensor)
    }

    fn layer_has(&self, layer: usize, tensor: &str) -> bool {
        self.checkpoint.contains(&format!("blk.{layer}.{tensor}"))
    }

    /// Whether the first layer with attention has a tensor.
    fn attention_has(&self, spec: &DecoderSpec, tensor: &str) -> bool {
        let layer = (0..spec.layers.len()).find(|layer| spec.attention(*layer).is_some());
        layer.is_some_and(|layer| self.layer_has(layer, tensor))
    }

    /// Adapts a description to what llama.cpp stores differently from Hugging Face checkpoints.
    fn adjust(&self, description: &mut Description) -> Result<()> {
        let spec = &mut description.spec;
        self.form.adjust(spec);
        self.read_factors(spec)?;
        if let Some(scale) = self.metadata.number(&self.key("attention.scale"))?.filter(|scale| *scale > 0.0) {
            spec.attentions[0].scale = scale;
        }
        self.adjust_delta_nets(spec);
        self.adjust_feed_forward(spec)?;
        self.adjust_biases(spec);
        self.adjust_halves(spec);
        description.names = self.names(spec);
        Ok(())
    }

    /// How the projections of delta nets are stored is told by the tensors of the first layer that has one.
    fn adjust_delta_nets(&self, spec: &mut DecoderSpec) {
        let Some(form) = self.form.delta_nets else { return };
        let layer = (0..spec.layers.len()).find(|layer| spec.delta_net(*layer).is_some());
        let old = layer.is_some_and(|layer| self.layer_has(layer, &format!("{INPUTS_BY_KEY_HEAD}.weight")));
        let projections = if old { DeltaNetProjections::ByKeyHead } else { form.projections };
        spec.delta_nets.iter_mut().for_each(|net| net.projections = projections);
    }

    /// Which layers have experts, and what belongs to a mixture, is told by the tensors of each layer.
    fn adjust_feed_forward(&self, spec: &mut DecoderSpec) -> Result<()> {
        let Some(form) = self.form.experts else { return Ok(()) };
        if !spec.has_experts() && form.optional {
            return Ok(());
        }
        let key = self.key("feed_forward_length");
        let intermediate_size = match form.beside_dense || self.form.mamba2 == Some(GgufMamba2::OneHalf) {
            // The network is there in any case, or which layers have experts is known.
            true => None,
            false => self.metadata.unsigned(&key)?.and_then(|size| usize::try_from(size).ok()),
        };
        for (index, layer) in spec.layers.iter_mut().enumerate() {
            let FeedForward::Experts(experts) = &mut layer.feed_forward else { continue };
            let tensor = |name: &str| self.checkpoint.tensor(&format!("blk.{index}.{name}"));
            if tensor(&format!("{ROUTER}.weight"))?.is_none() {
                let beside = experts.shared_expert.filter(|_| form.beside_dense).map(|shared| shared.intermediate_size);
                let missing = || self.metadata.error(&key, "the width of layers without experts", "nothing");
                layer.feed_forward = FeedForward::Dense {
                    intermediate_size: beside.or(intermediate_size).filter(|size| *size > 0).ok_or_else(missing)?,
                    hidden_act: experts.hidden_act,
                    gated: experts.gated,
                    bias: tensor("ffn_down.bias")?.is_some(),
                    gate_cutoff: None,
                };
                continue;
            }
            experts.router.bias = tensor(&format!("{ROUTER}.bias"))?.is_some();
            experts.router.correction_bias = tensor(ROUTER_CORRECTION)?.is_some();
            experts.bias = tensor("ffn_down_exps.bias")?.is_some();
            if form.beside_dense {
                continue;
            }
            let shared = tensor("ffn_up_shexp.weight")?.and_then(|view| view.shape.first().copied());
            let gated = tensor("ffn_gate_inp_shexp.weight")?.is_some();
            let bias = tensor("ffn_down_shexp.bias")?.is_some();
            experts.shared_expert = shared.map(|intermediate_size| SharedExpertSpec { intermediate_size, gated, bias });
        }
        if !spec.has_experts() {
            let expected = format!("none, since no layer has a tensor `{ROUTER}.weight`");
            let count = self.metadata.unsigned(&self.key("expert_count"))?.unwrap_or(0);
            return Err(self.metadata.error(&self.key("expert_count"), expected, count.to_string()));
        }
        self.check_gating(spec)
    }

    /// Fails on another scoring function than the architecture's.
    fn check_gating(&self, spec: &DecoderSpec) -> Result<()> {
        let Some(experts) = (0..spec.layers.len()).find_map(|layer| spec.experts(layer)) else { return Ok(()) };
        let key = self.key("expert_gating_func");
        let (number, name) = gating_func(experts.router.scoring_func);
        match self.metadata.unsigned(&key)? {
            None | Some(0) => Ok(()),
            // 3: a softmax over the chosen experts, which is one over all of them whose weights then sum to one.
            Some(3) if number == 1 && experts.router.norm_topk_prob => Ok(()),
            Some(found) if found == number => Ok(()),
            Some(found) => Err(self.metadata.error(&key, format!("{number} ({name})"), found.to_string())),
        }
    }

    /// Fails on a sliding window that the description lacks: ignoring it would silently change outputs.
    fn check_window(&self, spec: &DecoderSpec) -> Result<()> {
        let key = self.key("attention.sliding_window");
        let window = self.metadata.unsigned(&key)?.unwrap_or(0);
        if window == 0 || mixers(spec).any(|(window, _)| window.is_some()) {
            return Ok(());
        }
        let expected = format!("no window, since {} models have none here", spec.model_type);
        Err(self.metadata.error(&key, expected, window.to_string()))
    }

    /// Reads Llama 3.1's RoPE scaling, which is stored as a tensor of divisors.
    fn read_factors(&self, spec: &mut DecoderSpec) -> Result<()> {
        let Some(factors) = self.vector(ROPE_FREQS)? else { return Ok(()) };
        // Sliding layers of the other kind have a table of their own, which is not scaled.
        let tables = if self.form.layer_kinds { 1 } else { spec.rope.len() };
        for table in &mut spec.rope[..tables] {
            self.check_factors(ROPE_FREQS, &factors, table.rotary_dim)?;
            table.scaling = RopeScaling::FrequencyFactors { factors: factors.clone() };
        }
        Ok(())
    }

    /// Adds the biases that the file has; biases that the architecture always has are required.
    fn adjust_biases(&self, spec: &mut DecoderSpec) {
        let has = |tensor| self.attention_has(spec, tensor);
        let inputs = ["attn_q.bias", "attn_qkv.bias", "attn_kv_a_mqa.bias"];
        let (qkv, output) = (inputs.into_iter().any(has), has("attn_output.bias"));
        for attention in &mut spec.attentions {
            attention.qkv_bias |= qkv;
            attention.output_bias |= output;
        }
        let layer = (0..spec.layers.len()).find(|layer| spec.short_conv(*layer).is_some());
        let conv_bias = layer.is_some_and(|layer| self.layer_has(layer, "shortconv.conv.bias"));
        spec.short_convs.iter_mut().for_each(|conv| conv.conv_bias = conv_bias);
        spec.lm_head_bias |= self.checkpoint.contains("output.bias");
        let present = self.first_layer_has("ffn_down.bias");
        for layer in &mut spec.layers {
            if let FeedForward::Dense { bias, .. } = &mut layer.feed_forward {
                *bias |= present;
            }
        }
    }

    /// Tensor names. In files of any architecture, projections with the same input may be stacked in one tensor.
    fn names(&self, spec: &DecoderSpec) -> TensorNames {
        let mut names = tensor_names(self.form);
        if self.attention_has(spec, "attn_qkv.weight") {
            names = names.with(&STACKED_QKV);
        }
        if self.attention_has(spec, "attn_q.bias") {
            names = names.with_bias(&SEPARATE_QKV);
        }
        let gated =
            spec.layers.iter().any(|layer| matches!(layer.feed_forward, FeedForward::Dense { gated: true, .. }));
        if gated && self.form.experts.is_none() && !self.first_layer_has("ffn_gate.weight") {
            names = names.with(&STACKED_GATE_UP);
        }
        names
    }

    /// The values of a small tensor; `None` if the file has no such tensor.
    fn vector(&self, tensor: &str) -> Result<Option<Vec<f64>>> {
        // One factor per rotated pair; no head is wider than this.
        const MOST: usize = 1 << 16;
        let Some(view) = self.checkpoint.tensor(tensor)? else { return Ok(None) };
        if view.len() > MOST {
            return Err(view.error(format!("at most {MOST} values"), view.len().to_string()));
        }
        Ok(Some(view.read::<f32>()?.into_iter().map(f64::from).collect()))
    }

    fn check_factors(&self, tensor: &str, factors: &[f64], rotary_dim: usize) -> Result<()> {
        let pairs = rotary_dim / 2;
        if factors.len() == pairs && factors.iter().all(|factor| *factor > 0.0) {
            return Ok(());
        }
        Err(ModelError::Tensor {
            path: self.metadata.path().to_owned(),
            tensor: tensor.to_owned(),
            expected: format!("{pairs} numbers above zero, one per rotated pair"),
            found: format!(
                "{} numbers, {} of them above zero",
                factors.len(),
                factors.iter().filter(|factor| **factor > 0.0).count()
            ),
        })
    }
}

/// llama.cpp's number of a scoring function, and its name.
fn gating_func(scoring_func: ScoringFunction) -> (u64, &'static str) {
    match scoring_func {
        ScoringFunction::Softmax | ScoringFunction::Sparsemixer { .. } => (1, "softmax"),
        ScoringFunction::Sigmoid => (2, "sigmoid"),
    }
}

/// Whether a tensor holds settings, which are read with the description, and no parameters.
pub(crate) fn is_setting(tensor: &str) -> bool {
    [ROPE_FREQS, ROPE_FACTORS_SHORT, ROPE_FACTORS_LONG].contains(&tensor)
}

/// Rotary table and sliding window of each layer, which GGUF derives from the architecture.
fn mixers(spec: &DecoderSpec) -> impl Iterator<Item = (Option<usize>, Option<usize>)> {
    spec.layers.iter().map(|layer| match layer.mixer {
        Mixer::Attention { sliding_window, rope, .. } => (sliding_window, rope),
        _ => (None, None),
    })
}

/// Whether llama.cpp permutes the rows of this slot.
fn is_rotated(slot: Slot) -> bool {
    matches!(slot, Slot::Layer(_, LayerSlot::QProj | LayerSlot::KProj))
}
