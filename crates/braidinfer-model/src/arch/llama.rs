//! LLaMA 1 to 3.2, CodeLlama, TinyLlama: the plain pre-norm decoder.

use crate::arch::gguf::{GgufForm, LlamaCpp};
use crate::arch::llama_like::{Defaults, decoder, read_attention_bias, read_mlp_bias};
use crate::arch::{Architecture, Description};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "llama",
    aliases: &[],
    models: "TinyLlama, Llama 2, 3, 3.1, 3.2, CodeLlama, Yi, SmolLM 1 and 2",
    describe,
    gguf: Some(GgufForm {
        pre_tokenizer: Some("llama-bpe"),
        neighbours: true,
        llama_cpp: LlamaCpp::LLAMA,
        ..GgufForm::named("llama")
    }),
    fixtures: &[
        "llama",
        "llama-bias",
        "llama-codellama",
        "llama-dynamic",
        "llama-eos-list",
        "llama-f16",
        "llama-f32",
        "llama-head-dim",
        "llama-linear",
        "llama-sharded",
        "llama-tied",
        "llama-yarn",
        "llama-yarn-mscale",
        "llama3",
    ],
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &Defaults::LLAMA)?;
    read_attention_bias(config, "attention_bias", &mut description.spec)?;
    read_mlp_bias(config, "mlp_bias", &mut description.spec)?;
    Ok(description)
}
