//! Granite 4: Granite's multipliers, Mamba-2 in most layers and attention in the others, with experts beside a network for
//! every token, or with that network alone.

use crate::arch::expert_config::set_experts;
use crate::arch::gguf::{GgufExperts, GgufForm, GgufMamba2, LlamaCpp};
use crate::arch::llama_like::{Defaults, LayerKind, layer_types};
use crate::arch::mamba2_config::{Mamba2Fields, check_activation, head_dim, mamba2, named_mamba, read_step_limits};
use crate::arch::{Architecture, Description, granite, granitemoe};
use crate::layout::LayerSlot;
use crate::spec::{FeedForward, Mamba2Spec, Mixer, NormSpec, SharedExpertSpec};
use crate::{JsonFile, Result};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "granitemoehybrid",
    aliases: &[],
    models: "Granite 4.0: Nano, Micro, Tiny and Small, with and without Mamba-2",
    describe,
    gguf: Some(GgufForm {
        pre_tokenizer: Some("refact"),
        neighbours: true,
        multipliers: true,
        experts: Some(GgufExperts { optional: true, ..GgufExperts::OF_CHOSEN }),
        mamba2: Some(GgufMamba2::InSomeLayers),
        llama_cpp: LlamaCpp::LLAMA,
        ..GgufForm::named("granitehybrid")
    }),
    fixtures: &["granitemoehybrid", "granitemoehybrid-dense"],
};

fn describe(config: &JsonFile) -> Result<Description> {
    let mut description = granite::decoder_with(config, &Defaults::LLAMA)?;
    let spec = &mut description.spec;
    check_activation(config, "hidden_act")?;
    spec.mamba2s = vec![mamba2_of(config, spec.hidden_size, spec.norm)?];
    let kinds = match layer_types(config, spec.layers.len())? {
        Some(kinds) => kinds,
        None => vec![LayerKind::Linear; spec.layers.len()],
    };
    // Unlike Granite before, only the layers of models that ask for it have RoPE.
    let rotates = config.text("position_embedding_type")? == Some("rope");
    for (layer, kind) in spec.layers.iter_mut().zip(kinds) {
        match (kind, &mut layer.mixer) {
            (LayerKind::Full, Mixer::Attention { rope, .. }) => *rope = rotates.then_some(0),
            (LayerKind::Full, _) => {}
            (LayerKind::Linear, _) => layer.mixer = Mixer::Mamba2 { mamba2: 0 },
            (LayerKind::Sliding | LayerKind::Conv, _) => {
                let found = if kind == LayerKind::Conv { "\"conv\"" } else { "\"sliding_attention\"" };
                return Err(config.error("layer_types", "mamba or attention", found));
            }
        }
    }
    feed_forward(config, &mut description)?;
    description.names = named_mamba(description.names);
    Ok(description)
}

fn mamba2_of(config: &JsonFile, hidden_size: usize, norm: NormSpec) -> Result<Mamba2Spec> {
    let expanded = config.size_or("mamba_expand", 2)?.saturating_mul(hidden_size);
    let mut spec = mamba2(config, &Mamba2Fields::PREFIXED, norm, |heads| head_dim(config, expanded, heads))?;
    if config.has("mamba_expand") && spec.inner_width() != expanded {
        let found = format!("{} heads of {}", spec.mamba_n_heads, spec.mamba_d_head);
        return Err(config.error("mamba_d_head", format!("heads of {expanded} values together"), found));
    }
    read_step_limits(config, &mut spec)?;
    Ok(spec)
}

/// Experts beside the network that serves every token, or that network alone.
fn feed_forward(config: &JsonFile, description: &mut Description) -> Result<()> {
    let shared = config.size_or("shared_intermediate_size", 1024)?;
    let names = &description.names;
    // Zero experts are none.
    if config.number("num_local_experts")? == Some(0.0) {
        for layer in &mut description.spec.layers {
            if let FeedForward::Dense { intermediate_size, bias, .. } = &mut layer.feed_forward {
                (*intermediate_size, *bias) = (shared, false);
            }
        }
        description.names = names.clone().with(&[
            (LayerSlot::GateProj, "shared_mlp.input_linear"),
            (LayerSlot::UpProj, "shared_mlp.input_linear"),
            (LayerSlot::DownProj, "shared_mlp.output_linear"),
        ]);
        return Ok(());
    }
    let mut experts = granitemoe::experts_of(config, &description.spec)?;
    experts.shared_expert = Some(SharedExpertSpec { intermediate_size: shared, gated: false, bias: false });
    set_experts(&mut description.spec, experts, |_| true);
    description.names = granitemoe::named_experts(names.clone());
    Ok(())
}
