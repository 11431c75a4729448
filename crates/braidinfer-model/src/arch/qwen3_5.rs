//! Qwen 3.5, dense, text part: gated delta nets in three of four layers, and gated attention in the fourth.

use crate::arch::delta_net_config::hybrid;
use crate::arch::gguf::{GgufDeltaNets, GgufForm};
use crate::arch::llama_like::{Defaults, Sizes};
use crate::arch::rope_config::RopeDefaults;
use crate::arch::{Architecture, Description, qwen3_next};
use crate::spec::DeltaNetProjections;
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "qwen3_5_text",
    aliases: &["qwen3_5"],
    models: "Qwen 3.5, dense, text part",
    describe,
    gguf: Some(GgufForm {
        offset_included: true,
        pre_tokenizer: Some("qwen35"),
        feed_forward_norm: "post_attention_norm",
        delta_nets: Some(GgufDeltaNets { projections: DeltaNetProjections::ByKind, tiled: true, rope_sections: true }),
        ..GgufForm::named("qwen35")
    }),
    fixtures: &["qwen3_5", "qwen3_5-vl"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(248_320, 4096, 12_288, 32, 16),
    num_key_value_heads: Some(4),
    // Sections for images (`mrope_section`) mean nothing in text, where all positions are equal.
    rope: RopeDefaults { ..qwen3_next::DEFAULTS.rope },
    ..qwen3_next::DEFAULTS
};

fn describe(config: &JsonFile) -> Result<Description> {
    hybrid(config, &DEFAULTS, DeltaNetProjections::ByKind)
}
