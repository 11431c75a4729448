//! Gemma 3n, text part: several residual streams, low-rank branches beside attention, networks of which most values are
//! zero, inputs for each layer, and last layers that read the keys and values of earlier ones.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::arch::gguf::{GgufForm, LlamaCpp};
use crate::arch::llama_like::read_attention_bias;
use crate::arch::llama_like::{Defaults, LayerKind, Sizes, activation, decoder, layer_types, per_head_norm};
use crate::arch::rope_config::{RopeDefaults, two_tables};
use crate::arch::{Architecture, Description, gemma2, gemma4};
use crate::normal_quantile::normal_quantile;
use crate::spec::{
    ActivationFunction, AltUpSpec, AttentionSpec, BlockSpec, DecoderSpec, FeedForward, LaurelSpec, LayerSpec, Mixer,
    PerLayerInputSpec,
};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "gemma3n_text",
    aliases: &["gemma3n"],
    models: "the text part of Gemma 3n E2B, E4B",
    describe,
    gguf: Some(GgufForm { streams: true, llama_cpp: LlamaCpp::WINDOWS, ..GgufForm::named("gemma3n") }),
    fixtures: &["gemma3n"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(262_400, 2048, 16_384, 35, 8),
    num_key_value_heads: Some(2),
    max_position_embeddings: 32_768,
    rope: RopeDefaults { rope_theta: 1_000_000.0, ..gemma2::DEFAULTS.rope },
    ..gemma2::DEFAULTS
};
/// Theta of the sliding layers.
const SLIDING_THETA: f64 = 10_000.0;
/// Indices into [`DecoderSpec::rope`].
const FULL_TABLE: usize = 0;
const SLIDING_TABLE: usize = 1;
/// One in so many layers has full attention, unless the config says otherwise.
const PATTERN: usize = 5;
const SLIDING_WINDOW: usize = 512;
const KV_SHARED_LAYERS: usize = 15;
const LAUREL_RANK: usize = 64;
/// Width of the inputs for each layer, and rows of their embedding.
const PER_LAYER_INPUT: usize = 256;
const PER_LAYER_VOCAB: usize = 262_144;
/// Without a list, the first layers of deep models are sparse: so many, and this share of their values is zero.
const SPARSE_LAYERS: usize = 10;
const SPARSITY: f64 = 0.95;

fn describe(config: &JsonFile) -> Result<Description> {
    if config.flag("use_bidirectional_attention")? == Some(true) {
        return Err(config.error("use_bidirectional_attention", "false, since attention here is causal", "true"));
    }
    let widths = inner_widths(config)?;
    let first = widths.as_ref().and_then(|widths| widths.first());
    let single = first.map(|first| with_inner_width(config, *first));
    let mut description = decoder(single.as_ref().unwrap_or(config), &DEFAULTS)?;
    let spec = &mut description.spec;
    spec.embedding_multiplier = (spec.hidden_size as f64).sqrt();
    spec.final_logit_softcapping = gemma2::cap(config, "final_logit_softcapping", Some(30.0))?;
    spec.block = BlockSpec::SANDWICH;
    spec.attentions[0] = AttentionSpec {
        scale: 1.0,
        qk_norm: per_head_norm(spec.norm),
        value_norm_eps: Some(spec.norm.eps),
        ..spec.attentions[0]
    };
    read_attention_bias(config, "attention_bias", spec)?;
    let head_dim = spec.attentions[0].head_dim;
    spec.rope = two_tables(config, &DEFAULTS.rope, SLIDING_THETA, head_dim, spec.max_position_embeddings)?.into();
    spec.altup = Some(altup(config, spec)?);
    let sum_multiplier = 0.5_f64.sqrt();
    spec.laurel = Some(LaurelSpec { laurel_rank: config.size_or("laurel_rank", LAUREL_RANK)?, sum_multiplier });
    let hidden_act = hidden_act(config)?;
    spec.per_layer_inputs = Some(per_layer_inputs(config, spec, hidden_act)?);
    set_mixers(config, spec)?;
    set_networks(config, spec, widths.as_deref(), hidden_act)?;
    description.names = gemma2::tensor_names();
    Ok(description)
}

/// The widths of the networks of all layers, if the config has a list of them.
fn inner_widths(config: &JsonFile) -> Result<Option<Vec<usize>>> {
    const FIELD: &str = "intermediate_size";
    let Some(Value::Array(values)) = config.value(FIELD) else { return Ok(None) };
    let layers = config.size_or("num_hidden_layers", DEFAULTS.sizes.num_hidden_layers)?;
    if values.len() != layers {
        return Err(config.error(
            FIELD,
            format!("one number, or {layers} of them"),
            format!("{} of them", values.len()),
        ));
    }
    let width = |value: &Value| match value.as_u64() {
        Some(width) if (1..1 << 31).contains(&width) => Ok(width as usize),
        _ => Err(config.error(FIELD, "positive whole numbers below 2^31", value.to_string())),
    };
    values.iter().map(width).collect::<Result<_>>().map(Some)
}

/// The config with one width for the networks of all layers.
fn with_inner_width(config: &JsonFile, width: usize) -> JsonFile {
    let single = Map::from_iter([("intermediate_size".to_owned(), json!(width))]);
    config.clone().overlaid(&JsonFile::from_fields(config.path().to_owned(), single, BTreeMap::new()))
}

fn hidden_act(config: &JsonFile) -> Result<ActivationFunction> {
    match config.value("hidden_activation") {
        None => Ok(ActivationFunction::GeluTanh),
        Some(_) => match activation(config, "hidden_activation")? {
            ActivationFunction::Xielu => {
                Err(config.error("hidden_activation", "an activation function without parameters", "`xielu`"))
            }
            function => Ok(function),
        },
    }
}

fn altup(config: &JsonFile, spec: &DecoderSpec) -> Result<AltUpSpec> {
    const INPUTS: &str = "altup_num_inputs";
    const ACTIVE: &str = "altup_active_idx";
    let inputs = config.size_or(INPUTS, 4)?;
    if inputs > AltUpSpec::MOST_INPUTS {
        return Err(config.error(INPUTS, format!("at most {}", AltUpSpec::MOST_INPUTS), inputs.to_string()));
    }
    let active = match config.value(ACTIVE) {
        None => 0,
        Some(value) => value
            .as_u64()
            .filter(|index| *index < inputs as u64)
            .ok_or_else(|| config.error(ACTIVE, format!("the index of one of {inputs} streams"), value.to_string()))?,
    };
    // Limits the coefficients while a model is trained, and never afterwards.
    config.positive("altup_coef_clip")?;
    Ok(AltUpSpec {
        altup_num_inputs: inputs,
        altup_active_idx: active as usize,
        altup_correct_scale: config.flag("altup_correct_scale")?.unwrap_or(true),
        router_multiplier: 1.0 / spec.hidden_size as f64,
        least_mean_square: 1e-5,
    })
}

fn per_layer_inputs(
    config: &JsonFile,
    spec: &DecoderSpec,
    hidden_act: ActivationFunction,
) -> Result<PerLayerInputSpec> {
    let width = config.size_or("hidden_size_per_layer_input", PER_LAYER_INPUT)?;
    Ok(PerLayerInputSpec {
        vocab_size_per_layer_input: config.size_or("vocab_size_per_layer_input", PER_LAYER_VOCAB)?,
        hidden_size_per_layer_input: width,
        hidden_act,
        embedding_multiplier: (width as f64).sqrt(),
        projection_multiplier: (spec.hidden_size as f64).powf(-0.5),
        input_multiplier: 0.5_f64.sqrt(),
    })
}

/// Sets windows, rotary tables, and whose keys and values the layers read.
fn set_mixers(config: &JsonFile, spec: &mut DecoderSpec) -> Result<()> {
    let layers = spec.layers.len();
    let by_pattern =
        |layer: usize| if (layer + 1).is_multiple_of(PATTERN) { LayerKind::Full } else { LayerKind::Sliding };
    let kinds = layer_types(config, layers)?.unwrap_or_else(|| (0..layers).map(by_pattern).collect());
    let window = config.size_or("sliding_window", SLIDING_WINDOW)?;
    let sources = gemma4::kv_sources(config, &kinds, KV_SHARED_LAYERS)?;
    for ((layer, kind), kv_shared_with) in spec.layers.iter_mut().zip(&kinds).zip(sources) {
        let (sliding_window, table) = match kind {
            LayerKind::Sliding => (Some(window), SLIDING_TABLE),
            LayerKind::Full | LayerKind::Linear | LayerKind::Conv => (None, FULL_TABLE),
        };
        layer.mixer = Mixer::Attention { attention: 0, sliding_window, rope: Some(table), kv_shared_with };
    }
    Ok(())
}

/// Sets widths, activation function and sparsity of the networks.
fn set_networks(
    config: &JsonFile,
    spec: &mut DecoderSpec,
    widths: Option<&[usize]>,
    function: ActivationFunction,
) -> Result<()> {
    let sparsity = sparsity(config, spec.layers.len())?;
    for (index, LayerSpec { feed_forward, .. }) in spec.layers.iter_mut().enumerate() {
        let FeedForward::Dense { intermediate_size, hidden_act, gate_cutoff, .. } = feed_forward else { continue };
        *hidden_act = function;
        *intermediate_size = widths.map_or(*intermediate_size, |widths| widths[index]);
        // The share is rounded to f32 before use, as in transformers.
        *gate_cutoff = (sparsity[index] > 0.0).then(|| normal_quantile(f64::from(sparsity[index])));
    }
    Ok(())
}

/// The share of values that are zero in the network of each layer.
fn sparsity(config: &JsonFile, layers: usize) -> Result<Vec<f32>> {
    const FIELD: &str = "activation_sparsity_pattern";
    let Some(values) = config.list(FIELD)? else {
        let sparse = if layers > SPARSE_LAYERS { SPARSE_LAYERS } else { 0 };
        return Ok((0..layers).map(|layer| if layer < sparse { SPARSITY as f32 } else { 0.0 }).collect());
    };
    if values.len() != layers {
        return Err(config.error(
            FIELD,
            format!("{layers} numbers, one per layer"),
            format!("{} of them", values.len()),
        ));
    }
    let share = |value: &Value| match value.as_f64().map(|share| share as f32) {
        Some(share) if (0.0..1.0).contains(&share) => Ok(share),
        _ => Err(config.error(FIELD, "numbers from 0 to below 1", value.to_string())),
    };
    values.iter().map(share).collect()
}
