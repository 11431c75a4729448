//! Gemma 4 with images and sound in the decoder itself, text part: Gemma 4 without inputs for each layer and experts.

use crate::arch::Architecture;
use crate::arch::gemma2;
use crate::arch::gemma4::{GGUF, Gemma4Defaults, family};
use crate::arch::llama_like::{Defaults, Sizes};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "gemma4_unified_text",
    aliases: &["gemma4_unified"],
    models: "the text part of Gemma 4 12B",
    describe: |config| family(config, &DEFAULTS),
    gguf: Some(GGUF),
    fixtures: &["gemma4-unified"],
};

const DEFAULTS: Gemma4Defaults = Gemma4Defaults {
    decoder: Defaults {
        sizes: Sizes::new(262_144, 2304, 9216, 30, 8),
        max_position_embeddings: 262_144,
        ..gemma2::DEFAULTS
    },
    sliding_window: 1024,
    hidden_size_per_layer_input: None,
};
