//! Deliberate arithmetic errors, for testing that the check finds them.

use half::bf16;

use super::{FusedOptions, FusedRunner};
use crate::Result;
use crate::executor::Decoder;
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
    Ok(Decoder::new(spec, options.kv_cache, plan, runner))
}

impl FusedRunner {
    pub(super) fn spoil_projections(&mut self, index: usize) {
        if self.planted == Some(Planted::SumsInBf16 { layer: index }) {
            to_bf16(&mut self.scratch.qkv);
        }
    }

    pub(super) fn spoil_heads(&mut self, index: usize) {
        if self.planted == Some(Planted::ScoreOverflow { layer: index }) {
            // The sign that x86 processors give the NaN of infinity minus infinity.
            self.scratch.heads[0] = -f32::NAN;
        }
    }
}

/// Rounds to nearest even.
pub(super) fn to_bf16(values: &mut [f32]) {
    values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
}
