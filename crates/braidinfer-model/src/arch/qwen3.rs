//! Qwen 3, dense: query/key norms, and a head width independent of the hidden size.

use crate::arch::gguf::GgufForm;
use crate::arch::llama_like::{Defaults, decoder, per_head_norm, read_attention_bias};
use crate::arch::{Architecture, Description, qwen2};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "qwen3",
    aliases: &[],
    models: "Qwen 3 0.6B to 32B",
    describe,
    gguf: Some(GgufForm { pre_tokenizer: Some("qwen2"), ..GgufForm::named("qwen3") }),
    fixtures: &["qwen3", "qwen3-bias", "qwen3-extreme", "qwen3-window"],
};

const DEFAULTS: Defaults = Defaults { head_dim: Some(128), ..qwen2::DEFAULTS };

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    spec.attentions[0].qk_norm = per_head_norm(spec.norm);
    read_attention_bias(config, "attention_bias", spec)?;
    qwen2::set_upper_windows(config, spec)?;
    Ok(description)
}
