//! Gemma 4, text part: two kinds of attention with heads of their own widths, values with a norm, layers that read the
//! keys and values of earlier ones, inputs for each layer, and a dense network beside experts.

use crate::arch::gguf::{GgufExperts, GgufForm, LlamaCpp};
use crate::arch::llama_like::{Defaults, LayerKind, Sizes, decoder, layer_types, per_head_norm, read_attention_bias};
use crate::arch::rope_config::{KINDS, RopeAbsent, check_nested, table_of_kind};
use crate::arch::{Architecture, Description, gemma2};
use crate::layout::{ExpertNames, LayerSlot, TensorNames};
use crate::spec::{
    ActivationFunction, AttentionSpec, BlockSpec, DecoderSpec, ExpertsSpec, FeedForward, LayerSpec, Mixer,
    PerLayerInputSpec, RouterSpec, SharedExpertSpec,
};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "gemma4_text",
    aliases: &["gemma4"],
    models: "the text part of Gemma 4 E2B, E4B, 26B-A4B, 31B",
    describe: |config| family(config, &DEFAULTS),
    gguf: Some(GGUF),
    fixtures: &["gemma4", "gemma4-global", "gemma4-moe", "gemma4-vl"],
};

/// How GGUF files store all of them.
pub(super) const GGUF: GgufForm = GgufForm {
    layer_kinds: true,
    experts: Some(GgufExperts { optional: true, beside_dense: true, ..GgufExperts::OF_CHOSEN }),
    llama_cpp: LlamaCpp { rope_freqs: true, ..LlamaCpp::WINDOWS },
    ..GgufForm::named("gemma4")
};

/// Class defaults of a generation.
pub(super) struct Gemma4Defaults {
    pub decoder: Defaults,
    pub sliding_window: usize,
    /// Width of the inputs for each layer; none in a class that lacks them, and experts too.
    pub hidden_size_per_layer_input: Option<usize>,
}

const DEFAULTS: Gemma4Defaults = Gemma4Defaults {
    decoder: Defaults {
        sizes: Sizes::new(262_144, 2304, 9216, 30, 8),
        max_position_embeddings: 131_072,
        ..gemma2::DEFAULTS
    },
    sliding_window: 512,
    hidden_size_per_layer_input: Some(256),
};
const GLOBAL_HEAD_DIM: usize = 512;
/// One in so many layers has full attention, unless the config says otherwise.
const PATTERN: usize = 6;

const FULL_ROPE: RopeAbsent = RopeAbsent { rope_theta: 1_000_000.0, proportional: Some(0.25) };
const SLIDING_ROPE: RopeAbsent = RopeAbsent { rope_theta: 10_000.0, proportional: None };

/// Indices into [`DecoderSpec::attentions`] and [`DecoderSpec::rope`].
const FULL: usize = 0;
const SLIDING: usize = 1;

/// The decoder of a generation of Gemma 4.
pub(super) fn family(config: &JsonFile, defaults: &Gemma4Defaults) -> Result<Description> {
    check_supported(config)?;
    let mut description = decoder(config, &defaults.decoder)?;
    let spec = &mut description.spec;
    spec.embedding_multiplier = (spec.hidden_size as f64).sqrt();
    spec.final_logit_softcapping = gemma2::cap(config, "final_logit_softcapping", None)?;
    spec.block = BlockSpec::SANDWICH;
    spec.layer_scalar = true;
    let kinds = layer_kinds(config, spec.layers.len())?;
    spec.attentions = attentions(config, spec, &kinds)?;
    read_attention_bias(config, "attention_bias", spec)?;
    let head_dim = |kind: usize| spec.attentions[kind].head_dim;
    let length = spec.max_position_embeddings;
    spec.rope = vec![
        table_of_kind(config, KINDS[FULL], head_dim(FULL), length, &FULL_ROPE)?,
        table_of_kind(config, KINDS[SLIDING], head_dim(SLIDING), length, &SLIDING_ROPE)?,
    ];
    spec.per_layer_inputs = per_layer_inputs(config, spec, defaults)?;
    let window = config.size_or("sliding_window", defaults.sliding_window)?;
    let sources = kv_sources(config, &kinds, 0)?;
    let experts = defaults.hidden_size_per_layer_input.is_some() && config.flag("enable_moe_block")? == Some(true);
    let experts = experts.then(|| experts_beside_dense(config, spec)).transpose()?;
    let wider = if config.flag("use_double_wide_mlp")? == Some(true) { 2 } else { 1 };
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        let (attention, sliding_window) = match kinds[index] {
            LayerKind::Sliding => (SLIDING, Some(window)),
            LayerKind::Full | LayerKind::Linear | LayerKind::Conv => (FULL, None),
        };
        let kv_shared_with = sources[index];
        layer.mixer = Mixer::Attention { attention, sliding_window, rope: Some(attention), kv_shared_with };
        let times = if kv_shared_with.is_some() { wider } else { 1 };
        set_feed_forward(layer, experts, times);
    }
    description.names = tensor_names();
    Ok(description)
}

/// Fails on settings that would change the results and are not supported.
fn check_supported(config: &JsonFile) -> Result<()> {
    // Among patches of images only, which are no part of text.
    if let Some(kind) = config.text("use_bidirectional_attention")?.filter(|kind| *kind != "vision") {
        return Err(config.error("use_bidirectional_attention", "attention to earlier text only", format!("`{kind}`")));
    }
    check_nested(config)?;
    match config.text("hidden_activation")? {
        None | Some("gelu_pytorch_tanh") => Ok(()),
        Some(other) => Err(config.error("hidden_activation", "gelu_pytorch_tanh", format!("`{other}`"))),
    }
}

/// Full or sliding attention for every layer. As in `transformers`, the last one is full, whatever the list says.
fn layer_kinds(config: &JsonFile, layers: usize) -> Result<Vec<LayerKind>> {
    let by_pattern =
        |layer: usize| if (layer + 1).is_multiple_of(PATTERN) { LayerKind::Full } else { LayerKind::Sliding };
    let mut kinds = layer_types(config, layers)?.unwrap_or_else(|| (0..layers).map(by_pattern).collect());
    if let Some(last) = kinds.last_mut() {
        *last = LayerKind::Full;
    }
    Ok(kinds)
}

/// The attention of full layers and that of sliding ones.
fn attentions(config: &JsonFile, spec: &DecoderSpec, kinds: &[LayerKind]) -> Result<Vec<AttentionSpec>> {
    let base = AttentionSpec {
        scale: 1.0,
        qk_norm: per_head_norm(spec.norm),
        value_norm_eps: Some(spec.norm.eps),
        ..spec.attentions[0]
    };
    let k_eq_v = config.flag("attention_k_eq_v")?.unwrap_or(false);
    let full = AttentionSpec { attention_k_eq_v: k_eq_v, ..base };
    if let Some(layers) = config.object("per_layer_config")? {
        return Ok(vec![
            with_overrides(&layers, full, kinds, LayerKind::Full)?,
            with_overrides(&layers, base, kinds, LayerKind::Sliding)?,
        ]);
    }
    let key_value_heads = if k_eq_v { config.size("num_global_key_value_heads")? } else { None };
    Ok(vec![
        AttentionSpec {
            head_dim: config.size_or("global_head_dim", GLOBAL_HEAD_DIM)?,
            num_key_value_heads: key_value_heads.unwrap_or(base.num_key_value_heads),
            ..full
        },
        base,
    ])
}

/// Attention with what `per_layer_config`, in which `transformers` 5 writes what differs between layers, says about all
/// layers of a kind.
fn with_overrides(
    overrides: &JsonFile,
    attention: AttentionSpec,
    kinds: &[LayerKind],
    kind: LayerKind,
) -> Result<AttentionSpec> {
    let of_layer = |index: usize| -> Result<AttentionSpec> {
        let Some(layer) = overrides.object(&index.to_string())? else { return Ok(attention) };
        if let Some(other) = layer.fields().find(|field| !["head_dim", "num_key_value_heads"].contains(field)) {
            return Err(layer.error(other, "head_dim and num_key_value_heads only", format!("`{other}`")));
        }
        Ok(AttentionSpec {
            head_dim: layer.size("head_dim")?.unwrap_or(attention.head_dim),
            num_key_value_heads: layer.size("num_key_value_heads")?.unwrap_or(attention.num_key_value_heads),
            ..attention
        })
    };
    let mut found = None;
    for index in (0..kinds.len()).filter(|index| kinds[*index] == kind) {
        let of_layer = of_layer(index)?;
        if *found.get_or_insert(of_layer) != of_layer {
            let expected = "the same for all layers of a kind";
            return Err(overrides.error(&index.to_string(), expected, "heads of another shape"));
        }
    }
    Ok(found.unwrap_or(attention))
}

fn per_layer_inputs(
    config: &JsonFile,
    spec: &DecoderSpec,
    defaults: &Gemma4Defaults,
) -> Result<Option<PerLayerInputSpec>> {
    let Some(absent) = defaults.hidden_size_per_layer_input else { return Ok(None) };
    let width = config.count_or("hidden_size_per_layer_input", absent)?;
    if width == 0 {
        return Ok(None);
    }
    let field = "vocab_size_per_layer_input";
    let rows = config.size_or(field, defaults.decoder.sizes.vocab_size)?;
    if rows < spec.vocab_size {
        return Err(config.error(field, format!("at least vocab_size ({})", spec.vocab_size), rows.to_string()));
    }
    Ok(Some(PerLayerInputSpec {
        vocab_size_per_layer_input: rows,
        hidden_size_per_layer_input: width,
        hidden_act: ActivationFunction::GeluTanh,
        embedding_multiplier: (width as f64).sqrt(),
        projection_multiplier: (spec.hidden_size as f64).powf(-0.5),
        input_multiplier: 0.5_f64.sqrt(),
    }))
}

/// For each layer, the one whose keys and values it reads: the last `num_kv_shared_layers` ones have none, and read those
/// of the last layer of their kind that has. `absent` is the number of these if the config has none.
pub(super) fn kv_sources(config: &JsonFile, kinds: &[LayerKind], absent: usize) -> Result<Vec<Option<usize>>> {
    let shared = config.count_or("num_kv_shared_layers", absent)?;
    let first = kinds.len().saturating_sub(shared);
    let source = |layer: usize| {
        if layer < first {
            return Ok(None);
        }
        let source = kinds[..first].iter().rposition(|kind| *kind == kinds[layer]);
        let expected = "fewer than leave no layer of each kind with keys and values";
        source.map(Some).ok_or_else(|| config.error("num_kv_shared_layers", expected, shared.to_string()))
    };
    (0..kinds.len()).map(source).collect()
}

/// Experts beside a dense network, as wide as in layers without experts, which serves every token.
fn experts_beside_dense(config: &JsonFile, spec: &DecoderSpec) -> Result<ExpertsSpec> {
    Ok(ExpertsSpec {
        num_experts: config.required_size("num_experts")?,
        num_experts_per_tok: config.required_size("top_k_experts")?,
        intermediate_size: config.required_size("moe_intermediate_size")?,
        hidden_act: ActivationFunction::GeluTanh,
        gated: true,
        bias: false,
        router: RouterSpec {
            norm_multiplier: Some((spec.hidden_size as f64).powf(-0.5)),
            per_expert_scale: true,
            ..RouterSpec::SOFTMAX_OF_CHOSEN
        },
        shared_expert: None,
        branch_norms: true,
    })
}

/// Sets the width of a layer's network, and puts experts beside it.
fn set_feed_forward(layer: &mut LayerSpec, experts: Option<ExpertsSpec>, times: usize) {
    let FeedForward::Dense { intermediate_size, hidden_act, .. } = &mut layer.feed_forward else { return };
    *hidden_act = ActivationFunction::GeluTanh;
    *intermediate_size = intermediate_size.saturating_mul(times);
    let shared_expert = Some(SharedExpertSpec { intermediate_size: *intermediate_size, gated: false, bias: false });
    if let Some(experts) = experts {
        layer.feed_forward = FeedForward::Experts(ExpertsSpec { shared_expert, ..experts });
    }
}

/// The names of Gemma 4: those of Gemma 2, the dense network where it has experts beside it, and experts in one tensor.
fn tensor_names() -> TensorNames {
    const EXPERTS: ExpertNames =
        ExpertNames::Bare { names: ["experts.gate_up_proj", "experts.gate_up_proj", "experts.down_proj"] };
    let beside_experts = [
        (LayerSlot::SharedGateProj, "mlp.gate_proj"),
        (LayerSlot::SharedUpProj, "mlp.up_proj"),
        (LayerSlot::SharedDownProj, "mlp.down_proj"),
        (LayerSlot::Router, "router.proj"),
    ];
    gemma2::tensor_names().with(&beside_experts).with_experts(&[EXPERTS])
}
