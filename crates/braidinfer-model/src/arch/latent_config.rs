//! Multi-head latent attention in `config.json`: what its architectures share.

use crate::arch::Description;
use crate::arch::llama_like::{Defaults, decoder_with_heads, read_attention_bias};
use crate::arch::rope_config::scale_by_yarn;
use crate::spec::{LatentSpec, NormKind, NormSpec};
use crate::{JsonFile, Result};

/// Class defaults of the widths.
pub(super) struct Widths {
    pub q_lora_rank: usize,
    pub kv_lora_rank: usize,
    pub qk_nope_head_dim: usize,
    pub qk_rope_head_dim: usize,
    /// `hidden_size / num_attention_heads` if `None`.
    pub v_head_dim: Option<usize>,
}

/// Limit against overflow from a corrupt width; published heads have at most 256 dimensions.
const WIDEST_HEAD: usize = 1 << 24;

/// The classes' norms of narrower vectors have this epsilon, whatever the model's other norms have.
const NORM: NormSpec = NormSpec { kind: NormKind::Rms, eps: 1e-6, weight_offset: 0.0, bias: false };

/// A pre-norm decoder with latent attention and gated SiLU. `head_dim`, which `transformers` 5 writes for the width of
/// the rotated part, is not read.
pub(super) fn latent_decoder(config: &JsonFile, defaults: &Defaults, widths: &Widths) -> Result<Description> {
    let qk_rope_head_dim = config.size_or("qk_rope_head_dim", widths.qk_rope_head_dim)?;
    let mut description = decoder_with_heads(config, defaults, qk_rope_head_dim)?;
    let spec = &mut description.spec;
    read_attention_bias(config, "attention_bias", spec)?;
    let attention = &mut spec.attentions[0];
    let latent = LatentSpec {
        // An explicit null means that queries are projected directly, unlike an absent key.
        q_lora_rank: match config.has("q_lora_rank") {
            true => config.size("q_lora_rank")?,
            false => Some(widths.q_lora_rank),
        },
        kv_lora_rank: config.size_or("kv_lora_rank", widths.kv_lora_rank)?,
        qk_nope_head_dim: config.size_or("qk_nope_head_dim", widths.qk_nope_head_dim)?,
        qk_rope_head_dim,
        v_head_dim: match config.size("v_head_dim")?.or(widths.v_head_dim) {
            Some(width) => width,
            None => spec.hidden_size / attention.num_attention_heads,
        },
        norm: NORM,
    };
    attention.head_dim = latent.qk_nope_head_dim + qk_rope_head_dim;
    attention.scale = scale_by_yarn(config)? / (attention.head_dim as f64).sqrt();
    attention.latent = Some(latent);
    check(config, &description)?;
    Ok(description)
}

/// `rope_interleave`, true if absent.
pub(super) fn interleaved(config: &JsonFile) -> Result<bool> {
    Ok(config.flag("rope_interleave")?.unwrap_or(!config.has("rope_interleave")))
}

fn check(config: &JsonFile, description: &Description) -> Result<()> {
    let attention = &description.spec.attentions[0];
    let Some(latent) = attention.latent else { return Ok(()) };
    let (heads, kv_heads) = (attention.num_attention_heads, attention.num_key_value_heads);
    if heads != kv_heads {
        let expected = format!("{heads}, as many as attention heads");
        return Err(config.error("num_key_value_heads", expected, kv_heads.to_string()));
    }
    if attention.head_dim > WIDEST_HEAD {
        let expected = format!("at most {WIDEST_HEAD} with qk_rope_head_dim");
        return Err(config.error("qk_nope_head_dim", expected, latent.qk_nope_head_dim.to_string()));
    }
    if !(1..=attention.head_dim).contains(&latent.v_head_dim) {
        let expected = format!("a width from 1 to that of queries and keys, {}", attention.head_dim);
        return Err(config.error("v_head_dim", expected, latent.v_head_dim.to_string()));
    }
    let rotated = description.spec.rope[0].rotary_dim;
    if rotated != latent.qk_rope_head_dim {
        let expected = format!("1: all of the {} dimensions that may be", latent.qk_rope_head_dim);
        return Err(config.error("partial_rotary_factor", expected, format!("{rotated} rotated dimensions")));
    }
    Ok(())
}
