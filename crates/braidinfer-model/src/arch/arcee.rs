//! Arcee AFM: LLaMA with an ungated feed-forward network of squared ReLU.

use crate::arch::gguf::{GgufForm, LlamaCpp};
use crate::arch::llama_like::{Defaults, Sizes, decoder, read_attention_bias, read_mlp_bias, set_ungated};
use crate::arch::{Architecture, Description};
use crate::spec::ActivationFunction;
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "arcee",
    aliases: &[],
    models: "Arcee AFM 4.5B",
    describe,
    gguf: Some(GgufForm {
        pre_tokenizer: Some("llama-bpe"),
        neighbours: true,
        llama_cpp: LlamaCpp { rope_freqs: true, ..LlamaCpp::PLAIN },
        ..GgufForm::named("arcee")
    }),
    fixtures: &["arcee"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(32_000, 2560, 18_432, 32, 32),
    rms_norm_eps: 1e-5,
    max_position_embeddings: 4096,
    ..Defaults::LLAMA
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    read_attention_bias(config, "attention_bias", spec)?;
    read_mlp_bias(config, "mlp_bias", spec)?;
    set_ungated(config, spec, ActivationFunction::Relu2)?;
    Ok(description)
}
