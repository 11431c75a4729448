//! What sets a decoder apart from a plain one, in a few words each.

use std::collections::BTreeSet;

use crate::spec::{
    AttentionSpec, BlockSpec, DecoderSpec, ExpertsSpec, FeedForward, Mixer, NormKind, QkNormExtent, RopeScaling,
    ScoringFunction,
};

/// What a decoder has beside attention with RMS norms before it and before a gated feed-forward network, without biases.
pub fn features(spec: &DecoderSpec) -> Vec<&'static str> {
    let mut features = Vec::new();
    features.extend(mixers(spec));
    features.extend(spec.attentions.iter().flat_map(attention));
    features.extend(positions(spec));
    features.extend(spec.layers.iter().filter_map(|layer| experts(&layer.feed_forward)).flatten());
    features.extend(block(spec));
    let mut seen = BTreeSet::new();
    features.retain(|feature| seen.insert(*feature));
    features
}

fn mixers(spec: &DecoderSpec) -> impl Iterator<Item = &'static str> {
    let windows = |layer: &Mixer| match layer {
        Mixer::Attention { sliding_window, .. } => Some(sliding_window.is_some()),
        _ => None,
    };
    let kinds: BTreeSet<Option<bool>> = spec.layers.iter().map(|layer| windows(&layer.mixer)).collect();
    let window = kinds.contains(&Some(true)).then_some(match kinds.contains(&Some(false)) {
        true => "windows in some layers",
        false => "windows",
    });
    let any = |is: fn(&Mixer) -> bool| spec.layers.iter().any(|layer| is(&layer.mixer));
    let recurrent = [
        any(|mixer| matches!(mixer, Mixer::DeltaNet { .. })).then_some("gated delta net"),
        any(|mixer| matches!(mixer, Mixer::ShortConv { .. })).then_some("gated short convolutions"),
        any(|mixer| matches!(mixer, Mixer::Mamba2 { .. })).then_some("Mamba-2"),
        spec.layers.iter().any(|layer| layer.mamba2_beside.is_some()).then_some("Mamba-2 beside attention"),
        any(|mixer| *mixer == Mixer::None).then_some("layers with one half"),
    ];
    recurrent.into_iter().flatten().chain(window)
}

fn attention(attention: &AttentionSpec) -> impl Iterator<Item = &'static str> + use<> {
    let norm = attention.qk_norm.map(|norm| match norm.extent {
        QkNormExtent::Head | QkNormExtent::EachHead => "norms of query and key heads",
        QkNormExtent::Projection => "norms of queries and keys",
    });
    let all = [
        attention.latent.map(|_| "latent attention"),
        norm,
        (attention.qkv_bias || attention.output_bias).then_some("biases of attention"),
        attention.logit_softcapping.map(|_| "soft cap of scores"),
        attention.query_position_scale.map(|_| "queries scaled by position"),
        (attention.output_gate || attention.head_gate).then_some("gated attention"),
        attention.sinks.then_some("attention sinks"),
    ];
    all.into_iter().flatten()
}

fn positions(spec: &DecoderSpec) -> Vec<&'static str> {
    let mut features = Vec::new();
    let heads = |table: usize| {
        spec.layers.iter().find_map(|layer| match layer.mixer {
            Mixer::Attention { attention, rope: Some(rope), .. } if rope == table => Some(spec.attentions[attention]),
            _ => None,
        })
    };
    let without = |mixer: &Mixer| matches!(mixer, Mixer::Attention { rope: None, .. });
    if spec.layers.iter().any(|layer| without(&layer.mixer)) {
        features.push("layers without RoPE");
    }
    for (index, table) in spec.rope.iter().enumerate() {
        if heads(index).is_some_and(|attention| table.rotary_dim < attention.head_dim - attention.first_rotated()) {
            features.push("partial RoPE");
        }
        features.extend(match table.scaling {
            RopeScaling::Default => None,
            RopeScaling::Yarn { .. } => Some("YaRN"),
            RopeScaling::Longrope { .. } => Some("longrope"),
            _ => Some("scaled RoPE"),
        });
    }
    features
}

fn experts(feed_forward: &FeedForward) -> Option<Vec<&'static str>> {
    let FeedForward::Experts(ExpertsSpec { router, shared_expert, .. }) = feed_forward else { return None };
    let mut features = vec![match router.scoring_func {
        ScoringFunction::Softmax => "experts by softmax",
        ScoringFunction::Sigmoid => "experts by sigmoid",
        ScoringFunction::Sparsemixer { .. } => "experts by SparseMixer",
    }];
    features.extend(router.groups.map(|_| "groups of experts"));
    features.extend(router.correction_bias.then_some("corrected choice of experts"));
    features.extend(shared_expert.map(|shared| if shared.gated { "gated shared expert" } else { "shared experts" }));
    Some(features)
}

fn block(spec: &DecoderSpec) -> impl Iterator<Item = &'static str> {
    let block = match spec.block {
        BlockSpec::PRE_NORM => None,
        BlockSpec::SANDWICH => Some("norms before and after"),
        BlockSpec::POST_NORM => Some("norms after"),
        BlockSpec { parallel: true, .. } => Some("attention beside feed-forward"),
        _ => Some("other norms"),
    };
    let scaled = [spec.embedding_multiplier, spec.residual_multiplier, spec.logits_scaling];
    let sparse = |feed_forward: &FeedForward| matches!(feed_forward, FeedForward::Dense { gate_cutoff: Some(_), .. });
    let sparse = spec.layers.iter().any(|layer| sparse(&layer.feed_forward));
    let all = [
        block,
        spec.altup.map(|_| "several residual streams"),
        spec.laurel.map(|_| "low-rank branches"),
        sparse.then_some("sparse feed-forward layers"),
        (spec.norm.kind == NormKind::Layer).then_some("layer norms"),
        scaled.iter().any(|factor| *factor != 1.0).then_some("multipliers"),
        spec.final_logit_softcapping.map(|_| "soft cap of logits"),
    ];
    all.into_iter().flatten()
}
