//! Faults in the description of a model.

use std::collections::BTreeSet;

use braidinfer::model::spec::{
    ActivationFunction, AltUpSpec, DecayRates, ExpertsSpec, FeedForward, GroupScore, LayerSpec, Mixer, NormKind,
    NormSpec, PerLayerInputSpec, QkNormExtent, RopePairing, RopeScaling, RopeSpec, ScoringFunction, ValueHeadOrder,
};
use braidinfer::model::{DecoderSpec, LayerSlot, Parameter, Slot, TensorNames, parameters};

use super::Fixture;

/// A fault: its name, and the change that plants it. A change that leaves the spec as it is does not apply.
pub type Fault = (&'static str, fn(&mut DecoderSpec));

pub const FAULTS: &[Fault] = &[
    ("RoPE pairs the other dimensions", |spec| each_rope(spec, |rope| rope.pairing = other_pairing(rope.pairing))),
    ("rope_theta of another family", |spec| each_rope(spec, |rope| rope.rope_theta *= 7.0)),
    ("RoPE scaling ignored", |spec| each_rope(spec, |rope| rope.scaling = RopeScaling::Default)),
    ("RoPE factor on cos and sin dropped", |spec| each_rope(spec, drop_attention_factor)),
    ("longrope: short factors forever", |spec| each_rope(spec, short_factors_forever)),
    ("longrope: long factors forever", |spec| each_rope(spec, long_factors_forever)),
    ("dynamic: as if never longer than the original", |spec| each_rope(spec, static_instead_of_dynamic)),
    ("yarn: ramp ends rounded the other way", |spec| each_rope(spec, flip_truncate)),
    ("full instead of partial rotation", |spec| {
        if has_one_head_dim(spec) {
            let width = spec.attentions[0].head_dim - spec.attentions[0].first_rotated();
            each_rope(spec, |rope| rope.rotary_dim = width);
        }
    }),
    ("proportional RoPE as a partial rotation", |spec| each_rope(spec, partial_instead_of_proportional)),
    ("one rotary table for all layers", |spec| {
        if has_one_head_dim(spec) {
            each_layer(spec, |_, rope| *rope = rope.map(|_| 0));
        }
    }),
    ("rotary tables swapped", |spec| {
        if has_one_head_dim(spec) {
            let last = spec.rope.len().saturating_sub(1);
            each_layer(spec, |_, rope| *rope = rope.map(|table| last - table));
        }
    }),
    ("RoPE on layers that have none", |spec| {
        if !spec.rope.is_empty() {
            each_layer(spec, |_, rope| *rope = Some(rope.unwrap_or(0)));
        }
    }),
    ("NoPE layers inverted", invert_nope),
    ("window one key wider", |spec| each_layer(spec, |window, _| *window = window.map(|keys| keys + 1))),
    ("window one key narrower", |spec| each_layer(spec, |window, _| *window = window.map(|keys| keys - 1))),
    ("window ignored", |spec| each_layer(spec, |window, _| *window = None)),
    ("layer pattern inverted", invert_windows),
    ("norm weight w instead of 1 + w, or the reverse", |spec| each_norm(spec, |norm| *norm.0 = 1.0 - *norm.0)),
    ("norm eps 100 times too large", |spec| each_norm(spec, |norm| *norm.1 *= 100.0)),
    ("RMS instead of layer norm", |spec| {
        if spec.norm.kind == NormKind::Layer {
            (spec.norm.kind, spec.norm.bias) = (NormKind::Rms, false);
        }
    }),
    ("norms within latent attention with weight 1 + w", |spec| {
        if let Some(latent) = &mut spec.attentions[0].latent {
            latent.norm.weight_offset += 1.0;
        }
    }),
    ("query/key norm left out", |spec| spec.attentions[0].qk_norm = None),
    ("query/key norm on the other side of RoPE", move_qk_norm),
    ("norm of values left out", |spec| {
        spec.attentions.iter_mut().for_each(|attention| attention.value_norm_eps = None);
    }),
    ("keys and values of another earlier layer", read_other_keys),
    ("inputs for each layer left out", |spec| spec.per_layer_inputs = None),
    ("factor of the embedding for each layer left out", |spec| {
        each_input(spec, |inputs| inputs.embedding_multiplier = 1.0);
    }),
    ("factor of the inputs for each layer left out", |spec| each_input(spec, |inputs| inputs.input_multiplier = 1.0)),
    ("factor at the end of a layer left out", |spec| spec.layer_scalar = false),
    ("gates of heads left out", |spec| spec.attentions.iter_mut().for_each(|spec| spec.head_gate = false)),
    ("the first residual stream is the active one", |spec| each_altup(spec, |altup| altup.altup_active_idx = 0)),
    ("factor of the corrected stream left out", |spec| each_altup(spec, |altup| altup.altup_correct_scale = false)),
    ("factor of the streams' router left out", |spec| each_altup(spec, |altup| altup.router_multiplier = 1.0)),
    ("projections between streams divided by no less than 1", |spec| {
        each_altup(spec, |altup| altup.least_mean_square = 1.0);
    }),
    ("one residual stream instead of several", |spec| spec.altup = None),
    ("low-rank branch left out", |spec| spec.laurel = None),
    ("factor of the sum with the low-rank branch left out", |spec| {
        spec.laurel.iter_mut().for_each(|laurel| laurel.sum_multiplier = 1.0);
    }),
    ("sparsity left out", |spec| each_cutoff(spec, |_| None)),
    ("values cut at their mean", |spec| each_cutoff(spec, |_| Some(0.0))),
    ("attention scale of hidden_size / heads", |spec| {
        spec.attentions[0].scale = (spec.hidden_size as f64 / spec.attentions[0].num_attention_heads as f64).powf(-0.5);
    }),
    ("attention scale of head_dim", |spec| spec.attentions[0].scale = (spec.attentions[0].head_dim as f64).powf(-0.5)),
    ("attention soft cap left out", |spec| spec.attentions[0].logit_softcapping = None),
    ("logit soft cap left out", |spec| spec.final_logit_softcapping = None),
    ("embedding scale left out", |spec| spec.embedding_multiplier = 1.0),
    ("embedding scaled where it is not", |spec| {
        if spec.embedding_multiplier == 1.0 {
            spec.embedding_multiplier = (spec.hidden_size as f64).sqrt();
        }
    }),
    ("residual multiplier left out", |spec| spec.residual_multiplier = 1.0),
    ("logits_scaling left out", |spec| spec.logits_scaling = 1.0),
    ("logits multiplied by logits_scaling", |spec| spec.logits_scaling = 1.0 / spec.logits_scaling),
    ("query scale by position left out", |spec| spec.attentions[0].query_position_scale = None),
    ("biases of q, k, v left out", |spec| spec.attentions[0].qkv_bias = false),
    ("bias of the attention output left out", |spec| spec.attentions[0].output_bias = false),
    ("biases of the feed-forward part left out", |spec| each_feed_forward(spec, |_, bias| *bias = false)),
    ("bias of the output head left out", |spec| spec.lm_head_bias = false),
    ("erf instead of tanh GELU", |spec| {
        swap_activation(spec, ActivationFunction::GeluTanh, ActivationFunction::GeluErf)
    }),
    ("ReLU that is not squared", |spec| swap_activation(spec, ActivationFunction::Relu2, ActivationFunction::Relu)),
    ("tanh GELU instead of xIELU", |spec| {
        swap_activation(spec, ActivationFunction::Xielu, ActivationFunction::GeluTanh)
    }),
    ("tanh GELU instead of SiLU", |spec| swap_activation(spec, ActivationFunction::Silu, ActivationFunction::GeluTanh)),
    ("halves one after the other instead of side by side", |spec| spec.block.parallel = false),
    ("halves side by side instead of one after the other", |spec| {
        let whole = |layer: &LayerSpec| {
            layer.mixer != Mixer::None && layer.feed_forward != FeedForward::None && layer.mamba2_beside.is_none()
        };
        spec.block.parallel |= spec.layers.iter().any(whole);
    }),
    ("norm on the attention output left out", |spec| spec.block.attention_output_norm = false),
    ("norm on the feed-forward output left out", |spec| spec.block.feed_forward_output_norm = false),
    ("attention sinks left out", |spec| spec.attentions[0].sinks = false),
    ("slope of clamped SwiGLU left out", |spec| clamped_swiglu(spec, |alpha, _| *alpha = 1.0)),
    ("limit of clamped SwiGLU left out", |spec| clamped_swiglu(spec, |_, limit| *limit = 1e4)),
    ("one expert fewer", |spec| each_mixture(spec, |experts| experts.num_experts_per_tok -= 1)),
    ("weights of experts normalised, or not", |spec| {
        each_mixture(spec, |experts| experts.router.norm_topk_prob ^= true);
    }),
    ("weights of experts divided by their sum, however small", |spec| {
        each_mixture(spec, |experts| {
            if experts.router.norm_min > 1e-6 {
                experts.router.norm_min = 1e-20;
            }
        });
    }),
    ("scores by another function", |spec| each_mixture(spec, other_scoring)),
    ("SparseMixer's noise of another model", |spec| each_mixture(spec, other_noise)),
    ("bias of the router left out", |spec| each_mixture(spec, |experts| experts.router.bias = false)),
    ("value heads of delta nets in another order", |spec| {
        for net in spec.delta_nets.iter_mut().filter(|net| net.values_per_key() > 1) {
            net.value_heads = ValueHeadOrder::Tiled;
        }
    }),
    ("biases of short convolutions left out", |spec| {
        spec.short_convs.iter_mut().for_each(|conv| conv.conv_bias = false);
    }),
    ("norm of Mamba-2 left out", |spec| spec.mamba2s.iter_mut().for_each(|mamba2| mamba2.norm = None)),
    ("norm of Mamba-2 on the other side of the gate", |spec| {
        spec.mamba2s.iter_mut().filter_map(|mamba2| mamba2.norm.as_mut()).for_each(|norm| norm.before_gate ^= true);
    }),
    ("limits of Mamba-2's steps left out", |spec| {
        for mamba2 in &mut spec.mamba2s {
            // Few steps are below the least one of published models.
            mamba2.least_step = if mamba2.least_step > 0.01 { 0.0 } else { mamba2.least_step };
            mamba2.largest_step = None;
        }
    }),
    ("bias of Mamba-2's convolution left out", |spec| {
        spec.mamba2s.iter_mut().for_each(|mamba2| mamba2.conv_bias = false);
    }),
    ("biases of Mamba-2's projections left out", |spec| {
        spec.mamba2s.iter_mut().for_each(|mamba2| (mamba2.input_bias, mamba2.output_bias) = (false, false));
    }),
    ("rates of decay taken for what they are the exponentials of", |spec| {
        spec.mamba2s.iter_mut().for_each(|mamba2| mamba2.decay_rates = DecayRates::Negative);
    }),
    ("factors of Mamba-2's inputs left out", |spec| {
        spec.mamba2s.iter_mut().for_each(|mamba2| mamba2.multipliers = None);
    }),
    ("Mamba-2 beside attention left out", |spec| {
        spec.layers.iter_mut().for_each(|layer| layer.mamba2_beside = None);
    }),
    ("factors of branches left out", |spec| spec.branch_multipliers = None),
    ("factor of the gate left out", |spec| {
        each_feed_forward(spec, |activation, _| {
            if let ActivationFunction::ScaledSilu { .. } = activation {
                *activation = ActivationFunction::Silu;
            }
        });
    }),
    ("correction of the choice left out", |spec| each_mixture(spec, |experts| experts.router.correction_bias = false)),
    ("factor of the experts' weights left out", |spec| {
        each_mixture(spec, |experts| experts.router.routed_scaling_factor = 1.0);
    }),
    ("groups of experts ignored", |spec| each_mixture(spec, |experts| experts.router.groups = None)),
    ("groups of experts by their best instead of their two best, or the reverse", |spec| {
        each_mixture(spec, |experts| {
            if let Some(groups) = &mut experts.router.groups {
                groups.score = match groups.score {
                    GroupScore::Best => GroupScore::TwoBest,
                    GroupScore::TwoBest => GroupScore::Best,
                };
            }
        });
    }),
    ("factor of each expert left out", |spec| {
        each_mixture(spec, |experts| experts.router.per_expert_scale = false);
    }),
    ("norm of the router's input left out", |spec| {
        each_mixture(spec, |experts| experts.router.norm_multiplier = None);
    }),
    ("factor of the router's norm left out", |spec| {
        each_mixture(spec, |experts| experts.router.norm_multiplier = experts.router.norm_multiplier.map(|_| 1.0));
    }),
    ("norms of dense network and experts left out", |spec| each_mixture(spec, |experts| experts.branch_norms = false)),
    ("shared expert left out", |spec| each_mixture(spec, |experts| experts.shared_expert = None)),
    ("gate of the shared expert left out", |spec| {
        each_mixture(spec, |experts| {
            if let Some(shared) = &mut experts.shared_expert {
                shared.gated = false;
            }
        });
    }),
    ("biases of the shared expert left out", |spec| {
        each_mixture(spec, |experts| {
            if let Some(shared) = &mut experts.shared_expert {
                shared.bias = false;
            }
        });
    }),
];

/// Pairs of modules whose weights have one shape; swapping their names is a fault wherever both exist in tensors
/// of their own.
pub const SWAPS: &[(&str, LayerSlot, LayerSlot)] = &[
    ("gate and up projection swapped", LayerSlot::GateProj, LayerSlot::UpProj),
    ("gate and up projection of the shared expert swapped", LayerSlot::SharedGateProj, LayerSlot::SharedUpProj),
    ("query and key norm swapped", LayerSlot::QNorm, LayerSlot::KNorm),
    ("norms within latent attention swapped", LayerSlot::QANorm, LayerSlot::KvANorm),
    ("key and value projection swapped", LayerSlot::KProj, LayerSlot::VProj),
    ("strength and decay of a delta net swapped", LayerSlot::InProjB, LayerSlot::InProjA),
    ("norms before the halves swapped", LayerSlot::InputNorm, LayerSlot::FeedForwardNorm),
    ("norms after the halves swapped", LayerSlot::AttentionOutputNorm, LayerSlot::FeedForwardOutputNorm),
    ("norms before dense network and experts swapped", LayerSlot::FeedForwardNorm, LayerSlot::ExpertsNorm),
    ("norms after dense network and experts swapped", LayerSlot::SharedExpertOutputNorm, LayerSlot::ExpertsOutputNorm),
    ("norm after a layer's input swapped", LayerSlot::FeedForwardOutputNorm, LayerSlot::PostPerLayerInputNorm),
    ("norm of the streams' router swapped", LayerSlot::StreamRouterNorm, LayerSlot::InputNorm),
    ("norm of the low-rank branch swapped", LayerSlot::LaurelNorm, LayerSlot::AttentionOutputNorm),
];

fn each_mixture(spec: &mut DecoderSpec, change: impl Fn(&mut ExpertsSpec)) {
    for layer in &mut spec.layers {
        if let FeedForward::Experts(experts) = &mut layer.feed_forward {
            change(experts);
        }
    }
}

fn each_altup(spec: &mut DecoderSpec, change: impl Fn(&mut AltUpSpec)) {
    spec.altup.iter_mut().for_each(change);
}

/// Changes how many standard deviations above their mean values take part, where not all do.
fn each_cutoff(spec: &mut DecoderSpec, change: impl Fn(f64) -> Option<f64>) {
    for layer in &mut spec.layers {
        if let FeedForward::Dense { gate_cutoff: Some(cutoff), .. } = layer.feed_forward
            && let FeedForward::Dense { gate_cutoff, .. } = &mut layer.feed_forward
        {
            *gate_cutoff = change(cutoff);
        }
    }
}

fn each_input(spec: &mut DecoderSpec, change: impl Fn(&mut PerLayerInputSpec)) {
    spec.per_layer_inputs.iter_mut().for_each(change);
}

/// Whether any layer may use any rotary table.
fn has_one_head_dim(spec: &DecoderSpec) -> bool {
    spec.attentions.iter().all(|attention| attention.head_dim == spec.attentions[0].head_dim)
}

/// Frequencies of as many pairs as turn, each with the pair next to it, as other architectures rotate a part of a head.
fn partial_instead_of_proportional(rope: &mut RopeSpec) {
    if let RopeScaling::Proportional { rotated_pairs, .. } = rope.scaling {
        (rope.rotary_dim, rope.scaling) = (2 * rotated_pairs, RopeScaling::Default);
    }
}

/// Layers that share keys and values read those of the first layer of their kind, instead of the last one.
fn read_other_keys(spec: &mut DecoderSpec) {
    let kind = |spec: &DecoderSpec, layer: usize| match spec.layers[layer].mixer {
        Mixer::Attention { attention, .. } => Some(attention),
        _ => None,
    };
    for layer in 0..spec.layers.len() {
        let first = (0..layer).find(|other| kind(spec, *other) == kind(spec, layer));
        if let Mixer::Attention { kv_shared_with: Some(source), .. } = &mut spec.layers[layer].mixer {
            *source = first.unwrap_or(*source);
        }
    }
}

fn other_scoring(experts: &mut ExpertsSpec) {
    experts.router.scoring_func = match experts.router.scoring_func {
        ScoringFunction::Softmax => ScoringFunction::Sigmoid,
        ScoringFunction::Sigmoid | ScoringFunction::Sparsemixer { .. } => ScoringFunction::Softmax,
    };
}

fn other_noise(experts: &mut ExpertsSpec) {
    if let ScoringFunction::Sparsemixer { router_jitter_noise } = &mut experts.router.scoring_func {
        *router_jitter_noise /= 4.0;
    }
}

/// Changes every rotary table that a layer uses.
fn each_rope(spec: &mut DecoderSpec, change: impl Fn(&mut RopeSpec)) {
    let table = |layer: &LayerSpec| if let Mixer::Attention { rope, .. } = layer.mixer { rope } else { None };
    let used: BTreeSet<usize> = spec.layers.iter().filter_map(table).collect();
    let tables = spec.rope.iter_mut().enumerate().filter(|(index, _)| used.contains(index));
    tables.for_each(|(_, rope)| change(rope));
}

fn other_pairing(pairing: RopePairing) -> RopePairing {
    match pairing {
        RopePairing::HalfSplit => RopePairing::Interleaved,
        RopePairing::Interleaved => RopePairing::HalfSplit,
    }
}

fn drop_attention_factor(rope: &mut RopeSpec) {
    if let RopeScaling::Yarn { attention_factor, .. } | RopeScaling::Longrope { attention_factor, .. } =
        &mut rope.scaling
    {
        *attention_factor = 1.0;
    }
    if let RopeScaling::Longrope { long_attention_factor, .. } = &mut rope.scaling {
        *long_attention_factor = 1.0;
    }
}

fn short_factors_forever(rope: &mut RopeSpec) {
    if let RopeScaling::Longrope { short_factor, long_factor, .. } = &mut rope.scaling {
        long_factor.clone_from(short_factor);
    }
}

fn long_factors_forever(rope: &mut RopeSpec) {
    if let RopeScaling::Longrope { short_factor, long_factor, .. } = &mut rope.scaling {
        short_factor.clone_from(long_factor);
    }
}

fn static_instead_of_dynamic(rope: &mut RopeSpec) {
    if let RopeScaling::Dynamic { original_max_position_embeddings, .. } = &mut rope.scaling {
        *original_max_position_embeddings = 1 << 20;
    }
}

fn flip_truncate(rope: &mut RopeSpec) {
    if let RopeScaling::Yarn { truncate, .. } = &mut rope.scaling {
        *truncate = !*truncate;
    }
}

fn each_layer(spec: &mut DecoderSpec, change: impl Fn(&mut Option<usize>, &mut Option<usize>)) {
    for layer in &mut spec.layers {
        if let Mixer::Attention { sliding_window, rope, .. } = &mut layer.mixer {
            change(sliding_window, rope);
        }
    }
}

fn invert_nope(spec: &mut DecoderSpec) {
    let without =
        |spec: &DecoderSpec| spec.layers.iter().any(|layer| matches!(layer.mixer, Mixer::Attention { rope: None, .. }));
    if without(spec) && !spec.rope.is_empty() {
        each_layer(spec, |_, rope| *rope = if rope.is_some() { None } else { Some(0) });
    }
}

fn invert_windows(spec: &mut DecoderSpec) {
    let windows: Vec<Option<usize>> = spec
        .layers
        .iter()
        .map(|layer| match layer.mixer {
            Mixer::Attention { sliding_window, .. } => sliding_window,
            _ => None,
        })
        .collect();
    let Some(size) = windows.iter().copied().flatten().next() else { return };
    each_layer(spec, |window, _| *window = if window.is_some() { None } else { Some(size) });
}

fn move_qk_norm(spec: &mut DecoderSpec) {
    if let Some(qk_norm) = &mut spec.attentions[0].qk_norm
        && qk_norm.extent != QkNormExtent::Projection
    {
        qk_norm.after_rope = !qk_norm.after_rope;
    }
}

/// Changes weight offset and eps of every norm.
fn each_norm(spec: &mut DecoderSpec, change: impl Fn((&mut f32, &mut f64))) {
    let change = |norm: &mut NormSpec| {
        let pair = (&mut norm.weight_offset, &mut norm.eps);
        change(pair);
    };
    change(&mut spec.norm);
    if let Some(qk_norm) = &mut spec.attentions[0].qk_norm {
        change(&mut qk_norm.norm);
    }
    if let Some(latent) = &mut spec.attentions[0].latent {
        change(&mut latent.norm);
    }
    spec.delta_nets.iter_mut().for_each(|delta_net| change(&mut delta_net.norm));
    spec.mamba2s.iter_mut().filter_map(|mamba2| mamba2.norm.as_mut()).for_each(|norm| change(&mut norm.norm));
}

fn each_feed_forward(spec: &mut DecoderSpec, change: impl Fn(&mut ActivationFunction, &mut bool)) {
    for layer in &mut spec.layers {
        match &mut layer.feed_forward {
            FeedForward::Dense { hidden_act, bias, .. } => change(hidden_act, bias),
            FeedForward::Experts(experts) => change(&mut experts.hidden_act, &mut experts.bias),
            FeedForward::None => {}
        }
    }
}

fn clamped_swiglu(spec: &mut DecoderSpec, change: impl Fn(&mut f64, &mut f64)) {
    each_feed_forward(spec, |activation, _| {
        if let ActivationFunction::ClampedSwiglu { swiglu_alpha, swiglu_limit } = activation {
            change(swiglu_alpha, swiglu_limit);
        }
    });
}

fn swap_activation(spec: &mut DecoderSpec, from: ActivationFunction, to: ActivationFunction) {
    each_feed_forward(spec, |activation, _| {
        if *activation == from {
            *activation = to;
        }
    });
}

/// The names of a fixture with those of two modules swapped, or `None` if the architecture lacks one or stores both in
/// one tensor.
pub fn swapped(fixture: &Fixture, a: LayerSlot, b: LayerSlot) -> Option<TensorNames> {
    // In every layer that has the module: where only one of both is, there is nothing to swap it with.
    let shapes = |slot| -> Vec<(usize, Vec<usize>)> {
        let of = |found: Parameter| match found.slot {
            Slot::Layer(layer, other) if other == slot => Some((layer, found.shape)),
            _ => None,
        };
        parameters(&fixture.spec()).into_iter().filter_map(of).collect()
    };
    // Weights of rotated queries and keys are multiplied with each other, so a score has no order of them.
    let rotated = fixture.spec().attentions[0].qk_norm.is_some_and(|norm| norm.after_rope);
    if rotated && [a, b] == [LayerSlot::QNorm, LayerSlot::KNorm] {
        return None;
    }
    let names = fixture.description().names;
    let (name_a, name_b) = (names.layer_module(a), names.layer_module(b));
    if shapes(a).is_empty() || shapes(a) != shapes(b) || name_a == name_b {
        return None;
    }
    Some(names.with(&[(a, name_b), (b, name_a)]))
}
