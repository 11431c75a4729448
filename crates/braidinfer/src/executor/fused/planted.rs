//! Deliberate arithmetic errors, for testing that the check finds them.

use half::bf16;

use super::mixture::MixturePass;
use super::packed::PackedFeedForward;
use super::{FusedOptions, FusedRunner};
use crate::Result;
use crate::executor::Decoder;
use braidinfer_kernels::router::Choice;
use braidinfer_model::{DecoderSpec, Weights};

/// A deliberate error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Planted {
    /// The outputs of a layer's query, key and value projections are rounded to bf16.
    SumsInBf16 { layer: usize },
    /// Keys are stored in bf16, in every layer.
    KeysInBf16,
    /// An attention score of a layer overflows, so that the softmax returns NaN.
    ScoreOverflow { layer: usize },
    /// A layer's attention sinks take no part in the softmax.
    SinksForgotten { layer: usize },
    /// The logits of a layer's router are off by a hundredth.
    RouterLogits { layer: usize },
    /// The best expert of a layer's router gives its place to the one after it.
    WrongExpert { layer: usize },
    /// The experts of a layer all have the same weight.
    EqualWeights { layer: usize },
    /// The recurrent states of a layer are rounded to bf16 at every block boundary.
    StatesInBf16 { layer: usize },
    /// The recurrent states of a layer begin anew at every block boundary.
    StatesForgotten { layer: usize },
    /// What is copied between state slots is zero where matrices should be.
    StatesCopiedWrong,
    /// The residual streams before a layer are taken for the predicted ones.
    PredictionForgotten { layer: usize },
    /// All residual streams are corrected by as much as the active one changed.
    EqualCorrections { layer: usize },
    /// A layer's low-rank branch is zero.
    LaurelForgotten { layer: usize },
    /// All values of a layer's gate take part.
    SparsityForgotten { layer: usize },
}

impl Planted {
    /// The error, if it is one of the mixture of experts in this layer.
    pub(super) fn in_layer(self, index: usize) -> Option<Self> {
        match self {
            Self::RouterLogits { layer } | Self::WrongExpert { layer } | Self::EqualWeights { layer } => {
                (layer == index).then_some(self)
            }
            _ => None,
        }
    }

    /// How the states of a layer are spoiled.
    pub(super) fn of_states(self, index: usize) -> Option<fn(&mut [f32])> {
        match self {
            Self::StatesInBf16 { layer } if layer == index => Some(to_bf16),
            Self::StatesForgotten { layer } if layer == index => Some(|state| state.fill(0.0)),
            _ => None,
        }
    }
}

impl MixturePass<'_> {
    pub(super) fn spoil_router(&self, logits: &mut [f32]) {
        if let Some(Planted::RouterLogits { .. }) = self.planted {
            logits.iter_mut().for_each(|logit| *logit *= 1.01);
        }
    }

    pub(super) fn spoil_choices(&self, choices: &mut [Choice]) {
        let (chosen, experts) = (self.mixture.chosen, self.mixture.experts);
        for choices in choices.chunks_exact_mut(chosen) {
            match self.planted {
                Some(Planted::WrongExpert { .. }) => {
                    let heaviest = (0..chosen).max_by(|a, b| choices[*a].weight.total_cmp(&choices[*b].weight));
                    let free = (0..experts).find(|expert| choices.iter().all(|choice| choice.expert != *expert));
                    if let (Some(heaviest), Some(free)) = (heaviest, free) {
                        choices[heaviest].expert = free;
                        choices.sort_by_key(|choice| choice.expert);
                    }
                }
                Some(Planted::EqualWeights { .. }) => {
                    let mean = choices.iter().map(|choice| choice.weight).sum::<f32>() / chosen as f32;
                    choices.iter_mut().for_each(|choice| choice.weight = mean);
                }
                _ => {}
            }
        }
    }
}

/// Loads a decoder with an error in its kernels, or without.
pub(crate) fn load(
    spec: DecoderSpec,
    weights: &Weights,
    options: FusedOptions,
    planted: Option<Planted>,
) -> Result<Decoder<'static>> {
    let (plan, mut runner) = FusedRunner::load(&spec, weights, options, &|_, _| {})?;
    runner.planted = planted;
    if let Some(Planted::SparsityForgotten { layer }) = planted
        && let PackedFeedForward::Dense(network) = &mut runner.weights.layers[layer].feed_forward
    {
        network.gate_cutoff = None;
    }
    Ok(Decoder::new(spec, options.kv_cache, plan, runner))
}

impl FusedRunner {
    pub(super) fn spoil_projections(&mut self, index: usize) {
        if self.planted == Some(Planted::SumsInBf16 { layer: index }) {
            to_bf16(&mut self.scratch.qkv);
        }
    }

    pub(super) fn spoil_laurel(&mut self, index: usize) {
        if self.planted == Some(Planted::LaurelForgotten { layer: index }) {
            self.scratch.laurel.branch.fill(0.0);
        }
    }

    pub(super) fn spoil_heads(&mut self, index: usize) {
        if self.planted == Some(Planted::ScoreOverflow { layer: index }) {
            // The sign that x86 processors give the NaN of infinity minus infinity.
            self.scratch.heads[0] = -f32::NAN;
        }
    }
}

/// Spoils the coefficients by which residual streams are predicted, or else corrected.
pub(super) fn spoil_coefs(planted: Option<Planted>, index: usize, coefs: &mut [f32], predicted: bool) {
    match planted {
        Some(Planted::PredictionForgotten { layer }) if layer == index && predicted => coefs.fill(0.0),
        Some(Planted::EqualCorrections { layer }) if layer == index && !predicted => coefs.fill(1.0),
        _ => {}
    }
}

/// Rounds to nearest even.
pub(super) fn to_bf16(values: &mut [f32]) {
    values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
}
