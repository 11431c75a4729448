//! EXAONE 4: norms only after attention and feed-forward network, query/key norms, and in models with windows no RoPE
//! in full-attention layers.

use crate::arch::gguf::{GgufForm, LlamaCpp};
use crate::arch::llama_like::{Defaults, Sizes, decoder, layer_types, per_head_norm, set_windows, sliding_window};
use crate::arch::{Architecture, Description};
use crate::spec::{BlockSpec, Mixer};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "exaone4",
    aliases: &[],
    models: "EXAONE 4.0 1.2B, 32B",
    describe,
    gguf: Some(GgufForm {
        pre_tokenizer: Some("exaone4"),
        llama_cpp: LlamaCpp { windows: true, rope_freqs: true, ..LlamaCpp::PLAIN },
        ..GgufForm::named("exaone4")
    }),
    fixtures: &["exaone4", "exaone4-full"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(102_400, 4096, 16_384, 32, 32),
    rms_norm_eps: 1e-5,
    num_key_value_heads: Some(32),
    ..Defaults::LLAMA
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    spec.block = BlockSpec::POST_NORM;
    spec.attentions[0].qk_norm = per_head_norm(spec.norm);
    let Some(window) = sliding_window(config, Some(4096))? else { return Ok(description) };
    let period = match layer_types(config, spec.layers.len())? {
        // The list decides, beside which published configs have a pattern of letters.
        Some(_) => 1,
        None => config.size("sliding_window_pattern")?.unwrap_or(4),
    };
    set_windows(config, spec, Some(window), |layer| (layer + 1) % period != 0)?;
    for layer in &mut spec.layers {
        if let Mixer::Attention { sliding_window, rope, .. } = &mut layer.mixer {
            *rope = sliding_window.and(*rope);
        }
    }
    Ok(description)
}
