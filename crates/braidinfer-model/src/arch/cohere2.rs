//! Command R7B and Command A: Command R with a window on three of four layers, and RoPE only on these.

use crate::arch::gguf::{GgufForm, LlamaCpp};
use crate::arch::llama_like::{set_windows, sliding_window};
use crate::arch::{Architecture, Description, cohere};
use crate::spec::Mixer;
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "cohere2",
    aliases: &[],
    models: "Command R7B, Command A",
    describe,
    gguf: Some(GgufForm {
        pre_tokenizer: Some("command-r"),
        logit_scale: true,
        llama_cpp: LlamaCpp::WINDOWS,
        ..GgufForm::named("cohere2")
    }),
    fixtures: &["cohere2"],
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = cohere::family(config, 10_000.0)?;
    let spec = &mut description.spec;
    let window = sliding_window(config, Some(4096))?;
    let period = config.size("sliding_window_pattern")?.unwrap_or(4);
    set_windows(config, spec, window, |layer| (layer + 1) % period != 0)?;
    for layer in &mut spec.layers {
        if let Mixer::Attention { sliding_window, rope, .. } = &mut layer.mixer {
            *rope = sliding_window.and(*rope);
        }
    }
    Ok(description)
}
