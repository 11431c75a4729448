//! Nemotron-H and Nemotron 3: every layer is one of Mamba-2, attention without RoPE, a network of squared ReLU, or experts
//! with such networks.

use serde_json::Value;

use crate::arch::expert_config::ExpertFields;
use crate::arch::gguf::{GgufExperts, GgufForm, GgufMamba2, LlamaCpp};
use crate::arch::glm4_moe::{SigmoidDefaults, sigmoid_experts};
use crate::arch::llama_like::{Defaults, Sizes, activation, decoder};
use crate::arch::mamba2_config::{Mamba2Fields, check_activation, mamba2};
use crate::arch::{Architecture, Description, MAX_LAYERS};
use crate::layout::{ExpertNames, LayerSlot};
use crate::spec::{
    ActivationFunction, DecoderSpec, ExpertsSpec, FeedForward, LayerSpec, Mamba2Spec, Mixer, SharedExpertSpec,
};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "nemotron_h",
    aliases: &[],
    models: "Nemotron-H, Nemotron Nano 2, Nemotron 3 Nano",
    describe,
    gguf: Some(GgufForm {
        with_experts: Some("nemotron_h_moe"),
        feed_forward_norm: "attn_norm",
        experts: Some(GgufExperts { optional: true, ..GgufExperts::OF_CHOSEN }),
        mamba2: Some(GgufMamba2::OneHalf),
        llama_cpp: LlamaCpp { output_bias: true, mlp_bias: true, ..LlamaCpp::PLAIN },
        ..GgufForm::named("nemotron_h")
    }),
    fixtures: &["nemotron_h", "nemotron_h-moe"],
};

const DEFAULTS: Defaults = Defaults {
    sizes: Sizes::new(131_072, 4096, 21_504, 4, 32),
    rms_norm_eps: 1e-5,
    head_dim: Some(128),
    num_key_value_heads: Some(8),
    max_position_embeddings: 4096,
    ..Defaults::LLAMA
};

const FIELDS: Mamba2Fields = Mamba2Fields {
    heads: ("mamba_num_heads", 128),
    groups: ("n_groups", 8),
    state: ("ssm_state_size", 128),
    kernel: ("conv_kernel", 4),
    conv_bias: "use_conv_bias",
    input_bias: "use_bias",
    output_bias: "use_bias",
};

const EXPERTS: ExpertFields = ExpertFields {
    num_experts: ("n_routed_experts", 8),
    num_experts_per_tok: ("num_experts_per_tok", 2),
    intermediate_size: ("moe_intermediate_size", 7688),
};

const ROUTER: SigmoidDefaults = SigmoidDefaults { norm_topk_prob: true, routed_scaling_factor: 1.0, groups: [1, 1] };

/// Experts with tensors of their own, and as `transformers` 5 keeps them in memory. They have no gates.
const EXPERT_NAMES: [ExpertNames; 2] = [
    ExpertNames::Separate { experts: "mixer.experts", names: ["no gate", "up_proj", "down_proj"] },
    ExpertNames::Bare { names: ["no gate", "mixer.experts.up_proj", "mixer.experts.down_proj"] },
];

/// What a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Mamba2,
    Attention,
    Network,
    Experts,
}

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = decoder(config, &DEFAULTS)?;
    let spec = &mut description.spec;
    spec.norm.eps = config.positive("layer_norm_epsilon")?.unwrap_or(DEFAULTS.rms_norm_eps);
    // No layer rotates anything.
    spec.rope.clear();
    check_activation(config, "mamba_hidden_act")?;
    spec.mamba2s = vec![mamba2_of(config, spec)?];
    let hidden_act = match config.text("mlp_hidden_act")? {
        None => ActivationFunction::Relu2,
        Some(_) => activation(config, "mlp_hidden_act")?,
    };
    let bias = config.flag("mlp_bias")?.unwrap_or(false);
    let intermediate_size = config.size_or("intermediate_size", DEFAULTS.sizes.intermediate_size)?;
    let network = FeedForward::Dense { intermediate_size, hidden_act, gated: false, bias, gate_cutoff: None };
    let kinds = kinds(config)?;
    let experts = match kinds.contains(&Kind::Experts) {
        true => Some(FeedForward::Experts(experts(config, spec, hidden_act, bias)?)),
        false => None,
    };
    let attention = Mixer::Attention { attention: 0, sliding_window: None, rope: None, kv_shared_with: None };
    let layer = |kind| match kind {
        Kind::Mamba2 => (Mixer::Mamba2 { mamba2: 0 }, FeedForward::None),
        Kind::Attention => (attention, FeedForward::None),
        Kind::Network => (Mixer::None, network),
        Kind::Experts => (Mixer::None, experts.unwrap_or(network)),
    };
    let halves = kinds.into_iter().map(layer);
    spec.layers = halves.map(|(mixer, feed_forward)| LayerSpec { mixer, mamba2_beside: None, feed_forward }).collect();
    description.names = description
        .names
        .with(&NAMES)
        .with_tensor(&[
            (LayerSlot::DtBias, "mixer.dt_bias"),
            (LayerSlot::ALog, "mixer.A_log"),
            (LayerSlot::SkipD, "mixer.D"),
            (LayerSlot::RouterCorrection, "mixer.gate.e_score_correction_bias"),
        ])
        .with_experts(&EXPERT_NAMES)
        .with_embed_tokens("embeddings")
        .with_final_norm("norm_f");
    Ok(description)
}

/// The norm of a layer has the same name whatever follows it.
const NAMES: [(LayerSlot, &str); 15] = [
    (LayerSlot::InputNorm, "norm"),
    (LayerSlot::FeedForwardNorm, "norm"),
    (LayerSlot::QProj, "mixer.q_proj"),
    (LayerSlot::KProj, "mixer.k_proj"),
    (LayerSlot::VProj, "mixer.v_proj"),
    (LayerSlot::OProj, "mixer.o_proj"),
    (LayerSlot::InProjZxbcdt, "mixer.in_proj"),
    (LayerSlot::Conv1d, "mixer.conv1d"),
    (LayerSlot::MambaNorm, "mixer.norm"),
    (LayerSlot::OutProj, "mixer.out_proj"),
    (LayerSlot::UpProj, "mixer.up_proj"),
    (LayerSlot::DownProj, "mixer.down_proj"),
    (LayerSlot::Router, "mixer.gate"),
    (LayerSlot::SharedUpProj, "mixer.shared_experts.up_proj"),
    (LayerSlot::SharedDownProj, "mixer.shared_experts.down_proj"),
];

/// The layers: a list, or a character for each.
fn kinds(config: &JsonFile) -> Result<Vec<Kind>> {
    const PATTERN: &str = "hybrid_override_pattern";
    const DEFAULT: [Kind; 4] = [Kind::Mamba2, Kind::Experts, Kind::Attention, Kind::Network];
    for field in ["layers_block_type", "layer_types"] {
        let Some(list) = config.list(field)? else { continue };
        check_count(config, field, list.len())?;
        let kind = |value: &Value| match value.as_str() {
            Some("mamba" | "linear_attention") => Ok(Kind::Mamba2),
            Some("attention" | "full_attention") => Ok(Kind::Attention),
            Some("mlp") => Ok(Kind::Network),
            Some("moe") => Ok(Kind::Experts),
            _ => Err(config.error(field, "mamba, attention, mlp or moe", value.to_string())),
        };
        return list.iter().map(kind).collect();
    }
    let Some(pattern) = config.text(PATTERN)? else { return Ok(DEFAULT.to_vec()) };
    check_count(config, PATTERN, pattern.chars().count())?;
    let kind = |letter: char| match letter {
        'M' => Ok(Kind::Mamba2),
        '*' => Ok(Kind::Attention),
        '-' => Ok(Kind::Network),
        'E' => Ok(Kind::Experts),
        _ => Err(config.error(PATTERN, "M, *, - or E for each layer", format!("{letter:?}"))),
    };
    pattern.chars().map(kind).collect()
}

fn check_count(config: &JsonFile, field: &str, layers: usize) -> Result<()> {
    if (1..=MAX_LAYERS).contains(&layers) {
        return Ok(());
    }
    Err(config.error(field, format!("1 to {MAX_LAYERS} layers"), layers.to_string()))
}

fn mamba2_of(config: &JsonFile, spec: &DecoderSpec) -> Result<Mamba2Spec> {
    // Older names of fields, which win if they are there.
    let newer = |older: &'static str, field: &'static str| if config.has(older) { older } else { field };
    let fields = Mamba2Fields {
        groups: (newer("mamba_n_groups", FIELDS.groups.0), FIELDS.groups.1),
        kernel: (newer("mamba_d_conv", FIELDS.kernel.0), FIELDS.kernel.1),
        conv_bias: newer("mamba_conv_bias", FIELDS.conv_bias),
        ..FIELDS
    };
    let mut mamba2 = mamba2(config, &fields, spec.norm, |_| config.size_or("mamba_head_dim", 64))?;
    // `time_step_limit` is not read by transformers.
    let least = config.number(newer("mamba_dt_min", "time_step_min"))?;
    mamba2.least_step = least.unwrap_or(0.001).max(0.0);
    Ok(mamba2)
}

fn experts(config: &JsonFile, spec: &DecoderSpec, hidden_act: ActivationFunction, bias: bool) -> Result<ExpertsSpec> {
    const LATENT: &str = "moe_latent_size";
    if let Some(latent) = config.size(LATENT)? {
        let expected = "none: experts on a projection of the residual stream are not supported yet";
        return Err(config.error(LATENT, expected, latent.to_string()));
    }
    let mut experts = sigmoid_experts(config, spec, &EXPERTS, &ROUTER)?;
    (experts.hidden_act, experts.gated) = (hidden_act, false);
    let intermediate_size = config.size_or("moe_shared_expert_intermediate_size", 7688)?;
    experts.shared_expert = Some(SharedExpertSpec { intermediate_size, gated: false, bias });
    Ok(experts)
}
