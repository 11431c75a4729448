//! Falcon-H1: attention and Mamba-2 side by side in every layer, and factors of almost everything.

use crate::arch::gguf::{GgufForm, GgufMamba2, LlamaCpp};
use crate::arch::llama_like::{Defaults, Sizes, decoder, read_attention_bias, read_mlp_bias};
use crate::arch::mamba2_config::{Mamba2Fields, check_activation, head_dim, mamba2, named_mamba, read_step_limits};
use crate::arch::{Architecture, Description};
use crate::layout::LayerSlot;
use crate::spec::{
    ActivationFunction, BranchMultipliers, DecoderSpec, FeedForward, GatedNormSpec, Mamba2Multipliers, Mamba2Spec,
};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "falcon_h1",
    aliases: &[],
    models: "Falcon-H1 and its Deep and Tiny variants, 90M to 34B",
    describe,
    gguf: Some(GgufForm {
        pre_tokenizer: Some("falcon-h1"),
        mamba2: Some(GgufMamba2::BesideAttention),
        llama_cpp: LlamaCpp { output_bias: true, mlp_bias: true, ..LlamaCpp::PLAIN },
        ..GgufForm::named("falcon-h1")
    }),
    fixtures: &["falcon_h1", "falcon_h1-norm"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(128_000, 4096, 14_336, 32, 32),
    rms_norm_eps: 1e-5,
    num_key_value_heads: Some(8),
    max_position_embeddings: 8192,
    ..Defaults::LLAMA
};

const FIELDS: Mamba2Fields = Mamba2Fields { output_bias: "projectors_bias", ..Mamba2Fields::PREFIXED };

/// Default width of all heads of Mamba-2.
const INNER_WIDTH: usize = 1024;

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    check_activation(config, "hidden_act")?;
    read_attention_bias(config, "attention_bias", spec)?;
    read_mlp_bias(config, "mlp_bias", spec)?;
    spec.mamba2s = vec![mamba2_of(config, spec)?];
    spec.layers.iter_mut().for_each(|layer| layer.mamba2_beside = Some(0));
    multipliers(config, spec)?;
    description.names = named_mamba(description.names)
        .with(&[
            (LayerSlot::FeedForwardNorm, "pre_ff_layernorm"),
            (LayerSlot::GateProj, "feed_forward.gate_proj"),
            (LayerSlot::UpProj, "feed_forward.up_proj"),
            (LayerSlot::DownProj, "feed_forward.down_proj"),
        ])
        .with_final_norm("final_layernorm");
    Ok(description)
}

fn mamba2_of(config: &JsonFile, spec: &DecoderSpec) -> Result<Mamba2Spec> {
    // An explicit null means the expanded width, unlike an absent key.
    const WIDTH: &str = "mamba_d_ssm";
    let inner = match config.size(WIDTH)? {
        Some(inner) => inner,
        None if config.has(WIDTH) => config.size_or("mamba_expand", 2)?.saturating_mul(spec.hidden_size),
        None => INNER_WIDTH,
    };
    let mut mamba2 = mamba2(config, &FIELDS, spec.norm, |heads| head_dim(config, inner, heads))?;
    if mamba2.inner_width() != inner {
        let found = format!("{} heads of {}", mamba2.mamba_n_heads, mamba2.mamba_d_head);
        return Err(config.error("mamba_d_head", format!("heads of {inner} values together"), found));
    }
    let before_gate = config.flag("mamba_norm_before_gate")?.unwrap_or(true);
    let normed = config.flag("mamba_rms_norm")?.unwrap_or(false);
    mamba2.norm = normed.then_some(GatedNormSpec { norm: spec.norm, before_gate });
    read_step_limits(config, &mut mamba2)?;
    Ok(mamba2)
}

/// Factors of inputs of projections without a bias are factors of their outputs.
fn multipliers(config: &JsonFile, spec: &mut DecoderSpec) -> Result<()> {
    let factor = |field: &str| Ok::<_, crate::ModelError>(config.positive(field)?.unwrap_or(1.0));
    let factors = |field: &str, len: usize| match config.list(field)? {
        None => Ok(vec![1.0; len]),
        Some(_) => config.required_numbers(field, len),
    };
    spec.embedding_multiplier = factor("embedding_multiplier")?;
    spec.logits_scaling = 1.0 / factor("lm_head_multiplier")?;
    let (attention_in, ssm_in) = (factor("attention_in_multiplier")?, factor("ssm_in_multiplier")?);
    let biased = |field: &str, factor: f64, bias: bool| match bias && factor != 1.0 {
        true => Err(config.error(field, "1, since the projections have biases", factor.to_string())),
        false => Ok(()),
    };
    biased("attention_in_multiplier", attention_in, spec.attentions[0].qkv_bias)?;
    biased("ssm_in_multiplier", ssm_in, spec.mamba2s[0].input_bias)?;
    // Of queries and keys, and of values.
    spec.attentions[0].scale *= attention_in * attention_in * factor("key_multiplier")?;
    let [gate, down] = factors("mlp_multipliers", 2)?[..] else { return Ok(()) };
    let branches = BranchMultipliers {
        attention: attention_in * factor("attention_out_multiplier")?,
        mamba2: factor("ssm_out_multiplier")?,
        feed_forward: down,
    };
    spec.branch_multipliers = (branches != BranchMultipliers::NONE).then_some(branches);
    let [z, x, b, c, dt] = factors("ssm_multipliers", 5)?.iter().map(|factor| factor * ssm_in).collect::<Vec<_>>()[..]
    else {
        return Ok(());
    };
    let of_inputs = Mamba2Multipliers { z, x, b, c, dt };
    spec.mamba2s[0].multipliers = (of_inputs != Mamba2Multipliers::NONE).then_some(of_inputs);
    if gate != 1.0 {
        for layer in &mut spec.layers {
            if let FeedForward::Dense { hidden_act, .. } = &mut layer.feed_forward {
                *hidden_act = ActivationFunction::ScaledSilu { gate_multiplier: gate };
            }
        }
    }
    Ok(())
}
