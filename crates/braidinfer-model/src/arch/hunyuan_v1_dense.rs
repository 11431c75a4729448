//! Hunyuan dense: LLaMA with query/key norms after RoPE, and a RoPE base stretched by `alpha`.

use crate::arch::gguf::GgufForm;
use crate::arch::llama_like::{Defaults, Sizes, decoder, read_attention_bias};
use crate::arch::rope_config::settings;
use crate::arch::{Architecture, Description};
use crate::layout::{LayerSlot, TensorNames};
use crate::spec::{QkNormExtent, QkNormSpec, RopeScaling};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "hunyuan_v1_dense",
    aliases: &[],
    models: "Hunyuan 0.5B, 1.8B, 4B, 7B",
    describe,
    gguf: Some(GgufForm { pre_tokenizer: Some("hunyuan-dense"), ..GgufForm::named("hunyuan-dense") }),
    fixtures: &["hunyuan_v1_dense"],
};

const DEFAULTS: Defaults =
    Defaults { sizes: Sizes::new(290_943, 4096, 11_008, 32, 32), rms_norm_eps: 1e-5, ..Defaults::LLAMA };

fn describe(config: &JsonFile) -> Result<Description> {
    if config.flag("use_qk_norm")? == Some(false) {
        return Err(config.error("use_qk_norm", "true, as transformers assumes", "false"));
    }
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    spec.attentions[0].qk_norm = Some(QkNormSpec { extent: QkNormExtent::Head, norm: spec.norm, after_rope: true });
    read_attention_bias(config, "attention_bias", spec)?;
    // With `alpha`, scaling called dynamic is static: the base is stretched once, whatever the length.
    let alpha = settings(config)?.map(|settings| settings.number("alpha")).transpose()?.flatten();
    let alpha = alpha.filter(|alpha| *alpha > 0.0);
    if let (Some(alpha), RopeScaling::Dynamic { .. }) = (alpha, &spec.rope[0].scaling) {
        let width = spec.rope[0].rotary_dim as f64;
        spec.rope[0].rope_theta *= alpha.powf(width / (width - 2.0));
        spec.rope[0].scaling = RopeScaling::Default;
    }
    description.names = TensorNames::default()
        .with(&[(LayerSlot::QNorm, "self_attn.query_layernorm"), (LayerSlot::KNorm, "self_attn.key_layernorm")]);
    Ok(description)
}
