//! Phi 3, 3.5 and 4-mini: LLaMA with stacked projections, an optional window and longrope.

use crate::arch::gguf::GgufForm;
use crate::arch::llama_like::{Defaults, Sizes, decoder, set_all_windows, sliding_window};
use crate::arch::rope_config::RopeDefaults;
use crate::arch::{Architecture, Description};
use crate::layout::{LayerSlot, TensorNames};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "phi3",
    aliases: &[],
    models: "Phi-3, Phi-3.5, Phi-4, Phi-4-mini",
    describe,
    gguf: Some(GgufForm {
        pre_tokenizer: Some("dbrx"),
        stacked: true,
        control_tokens_strip: true,
        ..GgufForm::named("phi3")
    }),
    fixtures: &["phi3", "phi3-longrope", "phi3-partial", "phi3-su"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(32_064, 3072, 8192, 32, 32),
    rms_norm_eps: 1e-5,
    max_position_embeddings: 4096,
    rope: RopeDefaults { original_max_position_embeddings: Some(4096), ..Defaults::LLAMA.rope },
    ..Defaults::LLAMA
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let window = sliding_window(config, None)?;
    set_all_windows(&mut description.spec, window);
    description.names = TensorNames::default().with(&[
        (LayerSlot::QProj, "self_attn.qkv_proj"),
        (LayerSlot::KProj, "self_attn.qkv_proj"),
        (LayerSlot::VProj, "self_attn.qkv_proj"),
        (LayerSlot::GateProj, "mlp.gate_up_proj"),
        (LayerSlot::UpProj, "mlp.gate_up_proj"),
    ]);
    Ok(description)
}
