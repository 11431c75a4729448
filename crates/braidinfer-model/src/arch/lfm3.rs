//! LFM3: gated short convolutions, attention with and without a window, whose heads are gated, and norms on both sides.

use crate::arch::lfm2::with_convolutions;
use crate::arch::llama_like::{Defaults, LayerKind, Sizes, layer_types, read_attention_bias};
use crate::arch::rope_config::{KINDS, RopeAbsent, RopeDefaults, check_nested, table_of_kind};
use crate::arch::{Architecture, Description};
use crate::layout::LayerSlot;
use crate::spec::{BlockSpec, Mixer};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "lfm3", aliases: &[], models: "LFM3 1.7B", describe, gguf: None, fixtures: &["lfm3"] };

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(128_000, 2048, 7680, 24, 16),
    num_key_value_heads: Some(4),
    head_dim: Some(128),
    max_position_embeddings: 128_000,
    tie_word_embeddings: true,
    rope: RopeDefaults { rope_theta: 1_000_000.0, ..Defaults::LLAMA.rope },
    ..Defaults::LLAMA
};

/// Tokens that a convolution covers, and that layers with a window see.
const KERNEL: usize = 7;
const SLIDING_WINDOW: usize = 256;
/// Indices into [`crate::DecoderSpec::rope`] and [`KINDS`], and settings.
const FULL_TABLE: usize = 0;
const SLIDING_TABLE: usize = 1;
const ROPE: [RopeAbsent; 2] = [
    RopeAbsent { rope_theta: 1_000_000.0, proportional: Some(0.5) },
    RopeAbsent { rope_theta: 10_000.0, proportional: None },
];

const NAMES: [(LayerSlot, &str); 9] = [
    (LayerSlot::InputNorm, "operator_norm"),
    (LayerSlot::AttentionOutputNorm, "post_operator_norm"),
    (LayerSlot::Conv1d, "conv.conv"),
    (LayerSlot::OutProj, "conv.out_proj"),
    (LayerSlot::FeedForwardNorm, "ffn_norm"),
    (LayerSlot::FeedForwardOutputNorm, "post_ffn_norm"),
    (LayerSlot::GateProj, "feed_forward.w1"),
    (LayerSlot::UpProj, "feed_forward.w3"),
    (LayerSlot::DownProj, "feed_forward.w2"),
];

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = with_convolutions(config, &DEFAULTS, KERNEL)?;
    let spec = &mut description.spec;
    if config.flag("use_sandwich_norm")?.unwrap_or(true) {
        spec.block = BlockSpec::SANDWICH;
    }
    spec.attentions[0].head_gate = config.flag("use_attention_gate")?.unwrap_or(true);
    read_attention_bias(config, "attention_bias", spec)?;
    check_nested(config)?;
    let (head_dim, length) = (spec.attentions[0].head_dim, spec.max_position_embeddings);
    let nested = config.object("rope_parameters")?.is_some_and(|parameters| !parameters.is_empty());
    let common = config.positive("rope_theta")?.unwrap_or(DEFAULTS.rope.rope_theta);
    let table = |kind: usize| {
        // The class's thetas are those of its settings as a whole.
        let rope_theta = if nested { common } else { ROPE[kind].rope_theta };
        let absent = RopeAbsent { rope_theta, proportional: ROPE[kind].proportional };
        table_of_kind(config, KINDS[kind], head_dim, length, &absent)
    };
    spec.rope = vec![table(FULL_TABLE)?, table(SLIDING_TABLE)?];
    let window = if config.has("sliding_window") { config.size("sliding_window")? } else { Some(SLIDING_WINDOW) };
    let layers = spec.layers.len();
    let kinds = layer_types(config, layers)?.unwrap_or_else(|| (0..layers).map(usual_kind).collect());
    for (layer, kind) in spec.layers.iter_mut().zip(kinds) {
        let (sliding_window, table) = match kind {
            LayerKind::Full => (None, FULL_TABLE),
            LayerKind::Sliding => (window, SLIDING_TABLE),
            LayerKind::Conv => {
                layer.mixer = Mixer::ShortConv { short_conv: 0 };
                continue;
            }
            LayerKind::Linear => {
                let expected = "conv, full_attention or sliding_attention";
                return Err(config.error("layer_types", expected, "\"linear_attention\""));
            }
        };
        layer.mixer = Mixer::Attention { attention: 0, sliding_window, rope: Some(table), kv_shared_with: None };
    }
    description.names = description.names.with(&NAMES);
    Ok(description)
}

/// Without a list: attention in every second layer, one after the other with a window and without, but not in the first.
fn usual_kind(layer: usize) -> LayerKind {
    match layer % 4 {
        2 => LayerKind::Full,
        0 if layer > 0 => LayerKind::Sliding,
        _ => LayerKind::Conv,
    }
}
