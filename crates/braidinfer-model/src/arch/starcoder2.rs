//! StarCoder2: LayerNorm, an ungated MLP, biases everywhere.

use crate::arch::gguf::{GgufForm, LlamaCpp};
use crate::arch::llama_like::{Defaults, Sizes, decoder, set_all_windows, sliding_window};
use crate::arch::{Architecture, Description};
use crate::layout::{LayerSlot, TensorNames};
use crate::spec::{ActivationFunction, FeedForward, NormKind, NormSpec};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "starcoder2",
    aliases: &[],
    models: "StarCoder2 3B, 7B, 15B",
    describe,
    gguf: Some(GgufForm {
        pre_tokenizer: Some("starcoder"),
        llama_cpp: LlamaCpp { output_bias: true, mlp_bias: true, ..LlamaCpp::PLAIN },
        ..GgufForm::named("starcoder2")
    }),
    fixtures: &["starcoder2"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(49_152, 3072, 12_288, 30, 24),
    num_key_value_heads: Some(2),
    max_position_embeddings: 4096,
    tie_word_embeddings: true,
    ..Defaults::LLAMA
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    let eps = config.positive("norm_epsilon")?.or(config.positive("layer_norm_eps")?).unwrap_or(1e-5);
    spec.norm = NormSpec { kind: NormKind::Layer, eps, weight_offset: 0.0, bias: true };
    let use_bias = config.flag("use_bias")?.unwrap_or(true);
    (spec.attentions[0].qkv_bias, spec.attentions[0].output_bias) = (use_bias, use_bias);
    let window = sliding_window(config, None)?;
    set_all_windows(spec, window);
    let absent = config.text("hidden_act")?.is_none();
    for layer in &mut spec.layers {
        let FeedForward::Dense { hidden_act, gated, bias, .. } = &mut layer.feed_forward else { continue };
        (*gated, *bias) = (false, use_bias);
        if absent {
            *hidden_act = ActivationFunction::GeluTanh;
        }
    }
    description.names =
        TensorNames::default().with(&[(LayerSlot::UpProj, "mlp.c_fc"), (LayerSlot::DownProj, "mlp.c_proj")]);
    Ok(description)
}
