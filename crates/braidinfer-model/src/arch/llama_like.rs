//! The common parts of almost all decoders: reading sizes, biases, RoPE and layers. Architecture files provide their
//! defaults and modify the result where they differ.

use crate::arch::rope_config::{RopeDefaults, rope};
use crate::arch::{Description, MAX_LAYERS};
use crate::layout::TensorNames;
use crate::spec::{
    ActivationFunction, AttentionSpec, BlockSpec, DecoderSpec, FeedForward, LayerSpec, Mixer, NormKind, NormSpec,
    QkNormExtent, QkNormSpec, RopePairing,
};
use crate::{JsonFile, Result};

/// Values for missing `config.json` keys: the class defaults of `transformers` 5. Text configs inside multimodal
/// configs omit all values that equal the default, even the main sizes.
pub(super) struct Defaults {
    pub sizes: Sizes,
    pub rms_norm_eps: f64,
    /// Width of a head; `hidden_size / num_attention_heads` if `None`.
    pub head_dim: Option<usize>,
    /// Number of key/value heads; as many as query heads if `None`.
    pub num_key_value_heads: Option<usize>,
    pub max_position_embeddings: usize,
    pub tie_word_embeddings: bool,
    pub rope: RopeDefaults,
}

/// The main sizes of a decoder.
pub(super) struct Sizes {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
}

impl Sizes {
    /// Arguments are in the order of the fields.
    pub(super) const fn new(vocab: usize, hidden: usize, intermediate: usize, layers: usize, heads: usize) -> Self {
        Self {
            vocab_size: vocab,
            hidden_size: hidden,
            intermediate_size: intermediate,
            num_hidden_layers: layers,
            num_attention_heads: heads,
        }
    }
}

impl Defaults {
    pub(super) const LLAMA: Self = Self {
        sizes: Sizes::new(32_000, 4096, 11_008, 32, 32),
        rms_norm_eps: 1e-6,
        head_dim: None,
        num_key_value_heads: None,
        max_position_embeddings: 2048,
        tie_word_embeddings: false,
        rope: RopeDefaults {
            rope_theta: 10_000.0,
            partial_rotary_factor: 1.0,
            pairing: RopePairing::HalfSplit,
            original_max_position_embeddings: None,
        },
    };
}

/// A pre-norm decoder with full attention, gated SiLU and no biases.
pub(super) fn decoder(config: &JsonFile, defaults: &Defaults) -> Result<Description> {
    let hidden_size = config.size_or("hidden_size", defaults.sizes.hidden_size)?;
    let num_attention_heads = config.size_or("num_attention_heads", defaults.sizes.num_attention_heads)?;
    decoder_with_heads(config, defaults, head_dim(config, defaults, hidden_size, num_attention_heads)?)
}

/// The same with heads of this width, whatever the config says.
pub(super) fn decoder_with_heads(config: &JsonFile, defaults: &Defaults, head_dim: usize) -> Result<Description> {
    let sizes = &defaults.sizes;
    let hidden_size = config.size_or("hidden_size", sizes.hidden_size)?;
    let num_attention_heads = config.size_or("num_attention_heads", sizes.num_attention_heads)?;
    let num_key_value_heads = key_value_heads(config, defaults, num_attention_heads)?;
    let max_position_embeddings = config.size("max_position_embeddings")?.unwrap_or(defaults.max_position_embeddings);
    let eps = config.positive("rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps);
    let feed_forward = FeedForward::Dense {
        intermediate_size: config.size_or("intermediate_size", sizes.intermediate_size)?,
        hidden_act: activation(config, "hidden_act")?,
        gated: true,
        bias: false,
        gate_cutoff: None,
    };
    let mixer = Mixer::Attention { attention: 0, sliding_window: None, rope: Some(0), kv_shared_with: None };
    let layer = LayerSpec { mixer, mamba2_beside: None, feed_forward };
    let spec = DecoderSpec {
        model_type: config.text("model_type")?.unwrap_or_default().to_owned(),
        vocab_size: config.size_or("vocab_size", sizes.vocab_size)?,
        hidden_size,
        max_position_embeddings,
        tie_word_embeddings: config.flag("tie_word_embeddings")?.unwrap_or(defaults.tie_word_embeddings),
        embedding_multiplier: 1.0,
        residual_multiplier: 1.0,
        logits_scaling: 1.0,
        final_logit_softcapping: None,
        lm_head_bias: false,
        norm: NormSpec { kind: NormKind::Rms, eps, weight_offset: 0.0, bias: false },
        block: BlockSpec::PRE_NORM,
        attentions: vec![AttentionSpec {
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            scale: (head_dim as f64).powf(-0.5),
            logit_softcapping: None,
            qk_norm: None,
            qkv_bias: false,
            output_bias: false,
            query_position_scale: None,
            output_gate: false,
            head_gate: false,
            sinks: false,
            attention_k_eq_v: false,
            value_norm_eps: None,
            latent: None,
        }],
        delta_nets: Vec::new(),
        short_convs: Vec::new(),
        mamba2s: Vec::new(),
        branch_multipliers: None,
        rope: vec![rope(config, &defaults.rope, head_dim, max_position_embeddings)?],
        per_layer_inputs: None,
        altup: None,
        laurel: None,
        layer_scalar: false,
        layers: vec![layer; layer_count(config, sizes.num_hidden_layers)?],
    };
    Ok(Description { spec, names: TensorNames::default() })
}

fn layer_count(config: &JsonFile, absent: usize) -> Result<usize> {
    match config.size_or("num_hidden_layers", absent)? {
        layers if layers > MAX_LAYERS => {
            Err(config.error("num_hidden_layers", format!("at most {MAX_LAYERS}"), layers.to_string()))
        }
        layers => Ok(layers),
    }
}

fn key_value_heads(config: &JsonFile, defaults: &Defaults, heads: usize) -> Result<usize> {
    // An explicit null means one per query head, unlike an absent key.
    let absent = if config.has("num_key_value_heads") { None } else { defaults.num_key_value_heads };
    Ok(config.size("num_key_value_heads")?.or(absent).unwrap_or(heads))
}

fn head_dim(config: &JsonFile, defaults: &Defaults, hidden_size: usize, heads: usize) -> Result<usize> {
    let absent = if config.has("head_dim") { None } else { defaults.head_dim };
    match config.size("head_dim")?.or(absent) {
        Some(head_dim) => Ok(head_dim),
        None if hidden_size.is_multiple_of(heads) => Ok(hidden_size / heads),
        None => {
            Err(config.error("hidden_size", format!("a multiple of {heads} attention heads"), hidden_size.to_string()))
        }
    }
}

/// The activation function that `field` names; SiLU if absent.
pub(super) fn activation(config: &JsonFile, field: &str) -> Result<ActivationFunction> {
    match config.text(field)? {
        None | Some("silu" | "swish") => Ok(ActivationFunction::Silu),
        Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Ok(ActivationFunction::GeluTanh),
        Some("gelu" | "gelu_python") => Ok(ActivationFunction::GeluErf),
        Some("relu") => Ok(ActivationFunction::Relu),
        Some("relu2") => Ok(ActivationFunction::Relu2),
        Some("xielu") => Ok(ActivationFunction::Xielu),
        Some(other) => Err(config.error(
            field,
            "silu, swish, gelu, gelu_new, gelu_pytorch_tanh, relu, relu2 or xielu",
            format!("`{other}`"),
        )),
    }
}

/// Full or sliding-window attention, or a recurrence with or without decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LayerKind {
    Full,
    Sliding,
    Linear,
    Conv,
}

/// The list `layer_types`; `None` if the config has none.
pub(super) fn layer_types(config: &JsonFile, layers: usize) -> Result<Option<Vec<LayerKind>>> {
    let Some(values) = config.list("layer_types")? else { return Ok(None) };
    if values.len() != layers {
        return Err(config.error(
            "layer_types",
            format!("{layers} entries, one per layer"),
            format!("{}", values.len()),
        ));
    }
    let kind = |value: &serde_json::Value| match value.as_str() {
        Some("full_attention" | "attention") => Ok(LayerKind::Full),
        Some("sliding_attention") => Ok(LayerKind::Sliding),
        Some("linear_attention" | "mamba") => Ok(LayerKind::Linear),
        Some("conv") => Ok(LayerKind::Conv),
        _ => Err(config.error("layer_types", "full_attention or sliding_attention", value.to_string())),
    };
    values.iter().map(kind).collect::<Result<_>>().map(Some)
}

/// Fails if `layer_types` names layers that the architecture does not have.
pub(super) fn check_layer_types(config: &JsonFile, spec: &DecoderSpec) -> Result<()> {
    if spec.layers.iter().any(|layer| layer.mixer == Mixer::None) {
        // There are further names for layers with one half, which their architecture knows.
        return Ok(());
    }
    let Some(kinds) = layer_types(config, spec.layers.len())? else { return Ok(()) };
    let fits = |(kind, layer): (&LayerKind, &LayerSpec)| match layer.mixer {
        Mixer::Attention { .. } => !matches!(kind, LayerKind::Linear | LayerKind::Conv),
        Mixer::DeltaNet { .. } | Mixer::Mamba2 { .. } => *kind == LayerKind::Linear,
        Mixer::ShortConv { .. } => *kind == LayerKind::Conv,
        Mixer::None => true,
    };
    match kinds.iter().zip(&spec.layers).find(|pair| !fits(*pair)) {
        None => Ok(()),
        Some((LayerKind::Conv, _)) => {
            Err(config.error("layer_types", "full_attention or sliding_attention", "\"conv\""))
        }
        Some(_) => Err(config.error("layer_types", "full_attention or sliding_attention", "\"linear_attention\"")),
    }
}

/// Sets the window of the sliding layers of `spec`: those in `layer_types` if present, otherwise those that `rule`
/// selects.
pub(super) fn set_windows(
    config: &JsonFile,
    spec: &mut DecoderSpec,
    window: Option<usize>,
    rule: impl Fn(usize) -> bool,
) -> Result<()> {
    let explicit = layer_types(config, spec.layers.len())?;
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        let sliding = explicit.as_ref().map_or_else(|| rule(index), |kinds| kinds[index] == LayerKind::Sliding);
        if !sliding {
            continue;
        }
        if explicit.is_some() && window.is_none() {
            return Err(config.error("sliding_window", "a window, since layer_types names sliding layers", "none"));
        }
        if let Mixer::Attention { sliding_window, .. } = &mut layer.mixer {
            *sliding_window = window;
        }
    }
    Ok(())
}

/// `sliding_window`: an explicit null means none, unlike an absent key.
pub(super) fn sliding_window(config: &JsonFile, absent: Option<usize>) -> Result<Option<usize>> {
    if config.has("sliding_window") { config.size("sliding_window") } else { Ok(absent) }
}

/// Sets the window of every layer of `spec`, regardless of `layer_types`.
pub(super) fn set_all_windows(spec: &mut DecoderSpec, window: Option<usize>) {
    for layer in &mut spec.layers {
        if let Mixer::Attention { sliding_window, .. } = &mut layer.mixer {
            *sliding_window = window;
        }
    }
}

/// Reads a flag for the biases of all attention projections; false if absent.
pub(super) fn read_attention_bias(config: &JsonFile, field: &str, spec: &mut DecoderSpec) -> Result<()> {
    let bias = config.flag(field)?.unwrap_or(false);
    for attention in &mut spec.attentions {
        (attention.qkv_bias, attention.output_bias) = (bias, bias);
    }
    Ok(())
}

/// Reads a flag for the biases of all feed-forward projections; false if absent.
pub(super) fn read_mlp_bias(config: &JsonFile, field: &str, spec: &mut DecoderSpec) -> Result<()> {
    let value = config.flag(field)?.unwrap_or(false);
    for layer in &mut spec.layers {
        match &mut layer.feed_forward {
            FeedForward::Dense { bias, .. } => *bias = value,
            FeedForward::Experts(experts) => experts.bias = value,
            FeedForward::None => {}
        }
    }
    Ok(())
}

/// Removes the gates of all feed-forward networks, whose activation function is `absent` unless the config names one.
pub(super) fn set_ungated(config: &JsonFile, spec: &mut DecoderSpec, absent: ActivationFunction) -> Result<()> {
    let named = config.text("hidden_act")?.is_some();
    for layer in &mut spec.layers {
        let FeedForward::Dense { hidden_act, gated, .. } = &mut layer.feed_forward else { continue };
        *gated = false;
        if !named {
            *hidden_act = absent;
        }
    }
    Ok(())
}

/// A norm of each query and key head, of the same kind as the model's other norms.
pub(super) fn per_head_norm(norm: NormSpec) -> Option<QkNormSpec> {
    Some(QkNormSpec { extent: QkNormExtent::Head, norm, after_rope: false })
}
