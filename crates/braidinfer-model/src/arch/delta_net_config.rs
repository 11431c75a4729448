//! The settings of gated delta nets, and of the gated attention between them.

use crate::arch::Description;
use crate::arch::llama_like::{Defaults, LayerKind, decoder, layer_types, per_head_norm, read_attention_bias};
use crate::spec::{
    ActivationFunction, DecayRates, DeltaNetProjections, DeltaNetSpec, FeedForward, Mixer, NormKind, NormSpec,
    ValueHeadOrder,
};
use crate::{JsonFile, Result};

/// Every fourth layer has attention, unless the config says otherwise.
const FULL_ATTENTION_INTERVAL: usize = 4;

/// A decoder whose layers have gated delta nets, or attention with an output gate. Its dense feed-forward networks may be
/// replaced by the caller.
pub(super) fn hybrid(config: &JsonFile, defaults: &Defaults, projections: DeltaNetProjections) -> Result<Description> {
    let mut description = decoder(config, defaults)?;
    let spec = &mut description.spec;
    spec.norm.weight_offset = 1.0;
    spec.attentions[0].qk_norm = per_head_norm(spec.norm);
    spec.attentions[0].output_gate = true;
    // transformers does not read it: published configs say that there is a gate.
    if config.flag("attn_output_gate")? == Some(false) {
        return Err(config.error("attn_output_gate", "true, since attention here has a gate", "false"));
    }
    read_attention_bias(config, "attention_bias", spec)?;
    // All layers are dense so far.
    if !matches!(spec.layers[0].feed_forward, FeedForward::Dense { hidden_act: ActivationFunction::Silu, .. }) {
        let found = config.text("hidden_act")?.unwrap_or_default().to_owned();
        return Err(config.error("hidden_act", "silu, which the convolution is followed by", found));
    }
    spec.delta_nets = vec![delta_net(config, spec.norm.eps, projections)?];
    let kinds = layer_kinds(config, spec.layers.len())?;
    for (layer, kind) in spec.layers.iter_mut().zip(kinds) {
        match kind {
            LayerKind::Full => {}
            LayerKind::Linear => layer.mixer = Mixer::DeltaNet { delta_net: 0 },
            LayerKind::Sliding | LayerKind::Conv => {
                let found = if kind == LayerKind::Conv { "\"conv\"" } else { "\"sliding_attention\"" };
                return Err(config.error("layer_types", "linear_attention or full_attention", found));
            }
        }
    }
    Ok(description)
}

fn layer_kinds(config: &JsonFile, layers: usize) -> Result<Vec<LayerKind>> {
    if let Some(kinds) = layer_types(config, layers)? {
        return Ok(kinds);
    }
    let interval = config.size("full_attention_interval")?.unwrap_or(FULL_ATTENTION_INTERVAL);
    let kind = |layer: usize| if (layer + 1).is_multiple_of(interval) { LayerKind::Full } else { LayerKind::Linear };
    Ok((0..layers).map(kind).collect())
}

/// Longest convolution; published ones cover 4 tokens.
pub(super) const MAX_KERNEL: usize = 64;

/// So that sums of products of sizes do not overflow; published models have 64.
const MAX_HEADS: usize = 1 << 16;

fn delta_net(config: &JsonFile, eps: f64, projections: DeltaNetProjections) -> Result<DeltaNetSpec> {
    let (key_heads, value_heads) =
        (config.size_or("linear_num_key_heads", 16)?, config.size_or("linear_num_value_heads", 32)?);
    if value_heads > MAX_HEADS {
        return Err(config.error("linear_num_value_heads", format!("at most {MAX_HEADS}"), value_heads.to_string()));
    }
    if !value_heads.is_multiple_of(key_heads) {
        let expected = format!("a multiple of {key_heads} key heads");
        return Err(config.error("linear_num_value_heads", expected, value_heads.to_string()));
    }
    let kernel = config.size_or("linear_conv_kernel_dim", 4)?;
    if kernel > MAX_KERNEL {
        return Err(config.error("linear_conv_kernel_dim", format!("at most {MAX_KERNEL}"), kernel.to_string()));
    }
    Ok(DeltaNetSpec {
        linear_num_key_heads: key_heads,
        linear_num_value_heads: value_heads,
        linear_key_head_dim: config.size_or("linear_key_head_dim", 128)?,
        linear_value_head_dim: config.size_or("linear_value_head_dim", 128)?,
        linear_conv_kernel_dim: kernel,
        norm: NormSpec { kind: NormKind::Rms, eps, weight_offset: 0.0, bias: false },
        projections,
        value_heads: ValueHeadOrder::ByKeyHead,
        decay_rates: DecayRates::Logarithm,
    })
}
