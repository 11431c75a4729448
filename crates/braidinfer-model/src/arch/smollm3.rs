//! SmolLM3: LLaMA in which every fourth layer has no RoPE.

use crate::arch::gguf::GgufForm;
use crate::arch::llama_like::{
    Defaults, Sizes, decoder, read_attention_bias, read_mlp_bias, set_windows, sliding_window,
};
use crate::arch::rope_config::RopeDefaults;
use crate::arch::{Architecture, Description};
use crate::spec::Mixer;
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "smollm3",
    aliases: &[],
    models: "SmolLM3 3B",
    describe,
    gguf: Some(GgufForm { pre_tokenizer: Some("llama-bpe"), neighbours: true, ..GgufForm::named("smollm3") }),
    fixtures: &["smollm3", "smollm3-window"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(128_256, 2048, 11_008, 36, 16),
    num_key_value_heads: Some(4),
    max_position_embeddings: 32_768,
    tie_word_embeddings: true,
    rope: RopeDefaults { rope_theta: 2_000_000.0, ..Defaults::LLAMA.rope },
    ..Defaults::LLAMA
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    read_attention_bias(config, "attention_bias", spec)?;
    read_mlp_bias(config, "mlp_bias", spec)?;
    let rotated = rotated_layers(config, spec.layers.len())?;
    for (layer, rotated) in spec.layers.iter_mut().zip(&rotated) {
        if let Mixer::Attention { rope, .. } = &mut layer.mixer {
            *rope = rotated.then_some(0);
        }
    }
    let enabled = config.flag("use_sliding_window")?.unwrap_or(false);
    let window = if enabled { sliding_window(config, None)? } else { None };
    if window.is_some() {
        set_windows(config, spec, window, |layer| !rotated[layer])?;
    }
    Ok(description)
}

/// The name `no_rope_layers` is misleading: 1 means that the layer has RoPE.
fn rotated_layers(config: &JsonFile, layers: usize) -> Result<Vec<bool>> {
    let interval = config.size("no_rope_layer_interval")?.unwrap_or(4);
    let Some(flags) = config.list("no_rope_layers")? else {
        return Ok((0..layers).map(|layer| (layer + 1) % interval != 0).collect());
    };
    let flags: Vec<bool> = flags.iter().filter_map(|flag| flag.as_u64()).map(|flag| flag != 0).collect();
    if flags.len() != layers {
        return Err(config.error("no_rope_layers", format!("{layers} entries of 0 or 1"), format!("{}", flags.len())));
    }
    Ok(flags)
}
