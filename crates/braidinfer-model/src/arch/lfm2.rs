//! LFM2, dense: gated short convolutions in most layers, attention in the others.

use crate::arch::delta_net_config::MAX_KERNEL;
use crate::arch::expert_config::{layer_indices, stated};
use crate::arch::gguf::GgufForm;
use crate::arch::llama_like::{Defaults, LayerKind, Sizes, decoder, layer_types, per_head_norm};
use crate::arch::rope_config::RopeDefaults;
use crate::arch::{Architecture, Description};
use crate::layout::LayerSlot;
use crate::spec::{FeedForward, Mixer, ShortConvSpec};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "lfm2",
    aliases: &[],
    models: "LFM2 and LFM2.5, 350M to 2.6B",
    describe,
    gguf: Some(GgufForm { short_convs: true, pre_tokenizer: Some("lfm2"), ..GgufForm::named("lfm2") }),
    fixtures: &["lfm2", "lfm2-bias"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(65_536, 2560, 12_288, 32, 32),
    num_key_value_heads: Some(8),
    max_position_embeddings: 128_000,
    tie_word_embeddings: true,
    rope: RopeDefaults { rope_theta: 1_000_000.0, ..Defaults::LLAMA.rope },
    ..Defaults::LLAMA
};

const NAMES: [(LayerSlot, &str); 11] = [
    (LayerSlot::InputNorm, "operator_norm"),
    (LayerSlot::QNorm, "self_attn.q_layernorm"),
    (LayerSlot::KNorm, "self_attn.k_layernorm"),
    (LayerSlot::OProj, "self_attn.out_proj"),
    (LayerSlot::Conv1d, "conv.conv"),
    (LayerSlot::OutProj, "conv.out_proj"),
    (LayerSlot::FeedForwardNorm, "ffn_norm"),
    (LayerSlot::GateProj, "feed_forward.w1"),
    (LayerSlot::UpProj, "feed_forward.w3"),
    (LayerSlot::DownProj, "feed_forward.w2"),
    (LayerSlot::Router, "feed_forward.gate"),
];

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = hybrid(config, &DEFAULTS)?;
    let width = inner_width(config)?;
    for layer in &mut description.spec.layers {
        if let FeedForward::Dense { intermediate_size, .. } = &mut layer.feed_forward {
            *intermediate_size = width;
        }
    }
    Ok(description)
}

/// A decoder whose layers have gated short convolutions or attention, with dense feed-forward networks.
pub(super) fn hybrid(config: &JsonFile, defaults: &Defaults) -> Result<Description> {
    let mut description = with_convolutions(config, defaults, 3)?;
    let spec = &mut description.spec;
    let kinds = layer_kinds(config, spec.layers.len())?;
    for (layer, kind) in spec.layers.iter_mut().zip(kinds) {
        match kind {
            LayerKind::Full => {}
            LayerKind::Conv => layer.mixer = Mixer::ShortConv { short_conv: 0 },
            LayerKind::Sliding | LayerKind::Linear => {
                let found = if kind == LayerKind::Linear { "\"linear_attention\"" } else { "\"sliding_attention\"" };
                return Err(config.error("layer_types", "conv or full_attention", found));
            }
        }
    }
    description.names = description.names.with(&NAMES);
    Ok(description)
}

/// What the family has in common, but which layers have convolutions, and names. `kernel` is the number of tokens that
/// these cover if the config does not say.
pub(super) fn with_convolutions(config: &JsonFile, defaults: &Defaults, kernel: usize) -> Result<Description> {
    // transformers does not read it.
    stated(config, "hidden_act", "silu")?;
    let mut description = decoder(config, defaults)?;
    let spec = &mut description.spec;
    spec.norm.eps = config.positive("norm_eps")?.unwrap_or(1e-5);
    spec.attentions[0].qk_norm = per_head_norm(spec.norm);
    if let Some(tied) = config.flag("tie_embedding")? {
        spec.tie_word_embeddings = tied;
    }
    let conv_l_cache = config.size_or("conv_L_cache", kernel)?;
    if conv_l_cache > MAX_KERNEL {
        return Err(config.error("conv_L_cache", format!("at most {MAX_KERNEL}"), conv_l_cache.to_string()));
    }
    spec.short_convs = vec![ShortConvSpec { conv_l_cache, conv_bias: config.flag("conv_bias")?.unwrap_or(false) }];
    description.names = description.names.with_final_norm("embedding_norm");
    Ok(description)
}

/// Older configs list the layers with attention; without a list, all have it.
fn layer_kinds(config: &JsonFile, layers: usize) -> Result<Vec<LayerKind>> {
    if let Some(kinds) = layer_types(config, layers)? {
        return Ok(kinds);
    }
    if config.list("full_attn_idxs")?.is_none() {
        return Ok(vec![LayerKind::Full; layers]);
    }
    let full = layer_indices(config, "full_attn_idxs")?;
    let kind = |layer| if full.contains(&layer) { LayerKind::Full } else { LayerKind::Conv };
    Ok((0..layers).map(kind).collect())
}

/// Two thirds of the width in the config, times a factor, rounded up to a multiple, unless it is to be taken as it is.
fn inner_width(config: &JsonFile) -> Result<usize> {
    let field = if config.has("block_ff_dim") { "block_ff_dim" } else { "intermediate_size" };
    let width = config.size_or(field, DEFAULTS.sizes.intermediate_size)?;
    if config.flag("block_auto_adjust_ff_dim")? == Some(false) {
        return Ok(width);
    }
    let width = (2.0 * width as f64 / 3.0).floor();
    const FACTOR: &str = "block_ffn_dim_multiplier";
    let factor = if config.has(FACTOR) { config.positive(FACTOR)? } else { Some(1.0) };
    let multiple = config.size_or("block_multiple_of", 256)?;
    // So that the result is as limited as sizes are.
    const MOST: f64 = (1_u64 << 31) as f64;
    let scaled = factor.map_or(width, |factor| (factor * width).floor());
    if !(1.0..MOST).contains(&scaled) {
        let found = format!("{} and {field} {width}", factor.unwrap_or(1.0));
        return Err(config.error(FACTOR, "a factor that gives an inner width from 1 to 2^31", found));
    }
    let scaled = scaled as usize;
    Ok(if factor.is_some() { scaled.next_multiple_of(multiple) } else { scaled })
}
