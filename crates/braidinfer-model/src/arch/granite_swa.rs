//! Granite with windows: attention sinks, windows in three of four layers, and a RoPE base for each layer, where 0 is none.

use crate::arch::llama_like::{Defaults, Sizes, set_windows, sliding_window};
use crate::arch::{Architecture, Description, granite, granitemoe};
use crate::layout::{ExpertNames, LayerSlot};
use crate::spec::{DecoderSpec, Mixer, RopeSpec};
use crate::{JsonFile, Result};

/// Without experts.
pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "granite_swa",
    aliases: &[],
    models: "Granite Swash 2B",
    describe,
    gguf: None,
    fixtures: &["granite_swa"],
};

/// With experts.
pub(super) const WITH_EXPERTS: Architecture = Architecture {
    model_type: "granitemoe_swa",
    models: "Granite Swash 3B-A600M",
    describe: describe_with_experts,
    fixtures: &["granitemoe_swa"],
    ..ARCHITECTURE
};

/// As `transformers` keeps them in memory, which is how it writes them.
const EXPERTS: ExpertNames = ExpertNames::Bare {
    names: [
        "block_sparse_moe.experts.gate_up_proj",
        "block_sparse_moe.experts.gate_up_proj",
        "block_sparse_moe.experts.down_proj",
    ],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(100_352, 2560, 8192, 24, 20),
    rms_norm_eps: 1e-5,
    num_key_value_heads: Some(4),
    max_position_embeddings: 8192,
    tie_word_embeddings: true,
    ..Defaults::LLAMA
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = granite::decoder_with(config, &DEFAULTS)?;
    add_windows(config, &mut description.spec)?;
    Ok(description)
}

fn describe_with_experts(config: &JsonFile) -> Result<Description> {
    let mut description = granitemoe::describe(config)?;
    add_windows(config, &mut description.spec)?;
    let router = [(LayerSlot::Router, "block_sparse_moe.router")];
    description.names = description.names.with(&router).with_experts(&[EXPERTS]);
    Ok(description)
}

fn add_windows(config: &JsonFile, spec: &mut DecoderSpec) -> Result<()> {
    spec.attentions[0].sinks = true;
    let window = sliding_window(config, Some(128))?;
    set_windows(config, spec, window, |layer| !layer.is_multiple_of(4))?;
    let Some(bases) = config.list("layer_rope_theta")? else { return Ok(()) };
    let layers = spec.layers.len();
    let bases: Option<Vec<f64>> = bases.iter().map(serde_json::Value::as_f64).collect();
    let valid = |bases: &Vec<f64>| bases.len() == layers && bases.iter().all(|base| base.is_finite() && *base >= 0.0);
    let Some(bases) = bases.filter(valid) else {
        let found = config.value("layer_rope_theta").map(ToString::to_string).unwrap_or_default();
        return Err(config.error("layer_rope_theta", format!("{layers} numbers from 0 on, one per layer"), found));
    };
    set_bases(spec, &bases);
    Ok(())
}

/// Gives each layer the rotary table with its base.
fn set_bases(spec: &mut DecoderSpec, bases: &[f64]) {
    let table = spec.rope[0].clone();
    let mut tables: Vec<RopeSpec> = Vec::new();
    for (layer, base) in spec.layers.iter_mut().zip(bases) {
        let Mixer::Attention { rope, .. } = &mut layer.mixer else { continue };
        let known = tables.iter().position(|table| table.rope_theta == *base);
        *rope = (*base > 0.0).then(|| {
            known.unwrap_or_else(|| {
                tables.push(RopeSpec { rope_theta: *base, ..table.clone() });
                tables.len() - 1
            })
        });
    }
    if !tables.is_empty() {
        spec.rope = tables;
    }
}
