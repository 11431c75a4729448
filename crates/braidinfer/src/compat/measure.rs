//! Comparing other kernels with the standard kernels in f32 on the same tokens, layer by layer.

use super::batches::{near_tokens, next_tokens};
use crate::Result;
use crate::divergence::{Divergence, Tally};
use crate::executor::{Batch, Decoder, KernelPlan, NoProbe, Probe, RecordedActivation, Recorder, Step};
use crate::threads::Threads;

/// The results of the standard kernels in f32, with which everything is compared.
pub(super) struct Truth {
    batch: Batch,
    vocab_size: usize,
    /// The residual stream before every layer and after the last one.
    streams: Vec<Vec<f32>>,
    /// `[T][vocab_size]`.
    logits: Vec<f32>,
    /// Threads for computing divergences.
    threads: Threads,
}

/// Errors of one layer, run on the true residual stream.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LayerErrors {
    /// Relative error of every activation, in the order of computation.
    pub(super) ops: Vec<(String, f64)>,
}

/// Errors of every part of a decoder, each run on its true input.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Errors {
    /// Relative error of the embeddings.
    pub(super) embed: f64,
    pub(super) layers: Vec<LayerErrors>,
    /// Relative error of the logits.
    pub(super) logits: f64,
}

/// A run of the whole model, on its own residual stream.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) divergence: Divergence,
    /// Divergence in the first measurement, which every run includes.
    pub(super) first: Divergence,
    /// Divergence at far positions, whose contexts are not text.
    pub(super) far: Divergence,
    /// Per-position data from which `divergence` was computed.
    pub(super) tally: Tally,
    /// Relative error of the residual stream after each layer.
    pub(super) drift: Vec<f64>,
}

impl Truth {
    /// Runs `standard` and, on the same true inputs, every part of `fused` with each of the plans.
    pub(super) fn observe(
        standard: &mut Decoder<'_>,
        fused: &mut Decoder<'_>,
        plans: &[&KernelPlan],
        batch: Batch,
        threads: &Threads,
    ) -> Result<(Self, Vec<Errors>)> {
        let (layers, vocab_size) = (fused.spec().layers.len(), fused.spec().vocab_size);
        let rows = batch.token_ids.len();
        let own_plan = standard.plan().clone();
        let truly = Step { batch: &batch, plan: &own_plan };
        let by = |plan| Step { batch: &batch, plan };
        let mut stream = standard.embed(truly, &mut NoProbe)?;
        let first = plans.first().copied().unwrap_or(&own_plan);
        let embed = relative_error(&stream, &fused.embed(by(first), &mut NoProbe)?, rows);
        let mut errors = vec![Errors { embed, layers: Vec::with_capacity(layers), logits: 0.0 }; plans.len()];
        let mut streams = Vec::with_capacity(layers + 1);
        for index in 0..layers {
            let mut truth = Recorder::new(|_: &str| true);
            let next = standard.layer(index, truly, &stream, &mut truth)?;
            for (plan, errors) in plans.iter().zip(&mut errors) {
                let mut own = Recorder::new(|_: &str| true);
                fused.layer(index, by(plan), &stream, &mut own)?;
                let ops = compare(&truth.activations, &own.activations);
                errors.layers.push(LayerErrors { ops });
            }
            streams.push(std::mem::replace(&mut stream, next));
        }
        let true_logits = standard.head(truly, &stream, &mut NoProbe)?.logits.into_values();
        for (plan, errors) in plans.iter().zip(&mut errors) {
            let logits = fused.head(by(plan), &stream, &mut NoProbe)?.logits;
            errors.logits = relative_error(&true_logits, logits.values(), rows);
        }
        streams.push(stream);
        Ok((Self { batch, vocab_size, streams, logits: true_logits, threads: threads.clone() }, errors))
    }

    /// The divergence of the truth from itself: the number of positions and the loss.
    pub(super) fn self_divergence(&self) -> Divergence {
        Divergence::of(&self.logits, &self.logits, self.vocab_size, &next_tokens(&self.batch))
    }

    /// Runs the whole model with a plan.
    pub(super) fn run(&self, decoder: &mut Decoder<'_>, plan: &KernelPlan) -> Result<Run> {
        let mut drift = Drift { truth: self, of_layers: Vec::with_capacity(self.streams.len()) };
        let step = Step { batch: &self.batch, plan };
        let logits = decoder.forward_as_stored(step, &mut drift)?.logits.into_values();
        let near = near_tokens(&self.batch) * self.vocab_size;
        let mut tally = Tally::on(&self.threads);
        tally.add(&self.logits[..near], &logits[..near], self.vocab_size, &next_tokens(&self.batch));
        let far = Divergence::of(&self.logits[near..], &logits[near..], self.vocab_size, &[]);
        let divergence = tally.divergence();
        Ok(Run { first: divergence.clone(), divergence, far, tally, drift: drift.of_layers })
    }
}

/// Records the relative error of the residual stream after each layer.
struct Drift<'a> {
    truth: &'a Truth,
    of_layers: Vec<f64>,
}

impl Probe for Drift<'_> {
    fn wants(&self, name: &str) -> bool {
        name.starts_with("layer.") && name.ends_with(".output")
    }

    fn record(&mut self, _name: &str, rows: usize, values: Vec<f32>) {
        // Layers are recorded in ascending order.
        let truth = &self.truth.streams[self.of_layers.len() + 1];
        self.of_layers.push(relative_error(truth, &values, rows));
    }
}

fn compare(truth: &[RecordedActivation], own: &[RecordedActivation]) -> Vec<(String, f64)> {
    // The part of the name after `layer.N.`.
    let op = |name: &str| name.splitn(3, '.').nth(2).unwrap_or(name).to_owned();
    let of = |truth: &RecordedActivation| {
        let own = own.iter().find(|own| own.name == truth.name)?;
        Some((op(&truth.name), relative_error(&truth.values, &own.values, truth.rows)))
    };
    truth.iter().filter_map(of).collect()
}

/// Relative error of `values` with respect to `truth`, both `[rows][width]`: the root mean square, over rows, of the
/// norm of the error divided by the norm of the row. Not finite if a value is not.
pub(super) fn relative_error(truth: &[f32], values: &[f32], rows: usize) -> f64 {
    if truth.len() != values.len() || rows == 0 {
        return f64::NAN;
    }
    let width = truth.len() / rows;
    let squares = |truth: &[f32], values: &[f32]| {
        let error = |(truth, value): (&f32, &f32)| f64::from(truth - value).powi(2);
        let (error, length) = (
            truth.iter().zip(values).map(error).sum::<f64>(),
            truth.iter().map(|truth| f64::from(*truth).powi(2)).sum::<f64>(),
        );
        // The relative error of a zero row is zero if the row is reproduced, otherwise huge.
        if error == 0.0 { 0.0 } else { error / length.max(f64::from(f32::MIN_POSITIVE)) }
    };
    let sum: f64 = truth.chunks_exact(width).zip(values.chunks_exact(width)).map(|(a, b)| squares(a, b)).sum();
    (sum / rows as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_equal_weight_regardless_of_their_norm() {
        let truth = [1000.0, 0.0, 1.0, 0.0];
        let values = [1000.0, 0.0, 0.0, 0.0];
        assert!((relative_error(&truth, &values, 2) - 0.5_f64.sqrt()).abs() < 1e-6);
        assert!(relative_error(&[1.0], &[f32::NAN], 1).is_nan());
    }
}
