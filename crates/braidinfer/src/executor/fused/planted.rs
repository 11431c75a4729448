//! Faults of arithmetic, planted to see a check find them.

use half::bf16;

use super::{FusedOptions, FusedRunner};
use crate::Result;
use crate::executor::Decoder;
use braidinfer_model::{DecoderSpec, Weights};

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Planted {
    /// What projections to queries, keys and values of a layer sum up is rounded to bf16.
    SumsInBf16 { layer: usize },
    /// Keys are stored in bf16, in every layer.
    KeysInBf16,
    /// A score of a layer is beyond the range of its type, so that the softmax is not a number.
    ScoreOverflow { layer: usize },
}

/// A decoder with a fault in its kernels, or none.
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
            // As the processor makes it of infinities.
            self.scratch.heads[0] = -f32::NAN;
        }
    }
}

/// Rounds to nearest even.
pub(super) fn to_bf16(values: &mut [f32]) {
    values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
}
