//! Comparing other kernels with the standard kernels in f32 on the same tokens, layer by layer.

use braidinfer_model::spec::{ExpertGroups, GroupScore};

use super::batches::{near_rows, next_tokens};
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
        let embed = relative_error(&stream, &fused.embed(by(first), &mut NoProbe)?, rows, 0.0);
        let mut errors = vec![Errors { embed, layers: Vec::with_capacity(layers), logits: 0.0 }; plans.len()];
        let mut streams: Vec<Vec<f32>> = Vec::with_capacity(layers + 1);
        for index in 0..layers {
            let groups = standard.spec().experts(index).and_then(|experts| experts.router.groups);
            let mut truth = Recorder::new(|_: &str| true);
            let next = standard.layer(index, truly, &stream, &mut truth)?;
            // What a sum with the residual stream rounds away.
            let least = f64::from(f32::EPSILON) * usual_norm(&norms(&stream, rows));
            // A layer that reads the keys and values of another gets those that the same plan stored.
            let source = fused.spec().kv_shared_with(index).filter(|_| plans.len() > 1);
            for (plan, errors) in plans.iter().zip(&mut errors) {
                if let Some(source) = source {
                    fused.layer(source, by(plan), &streams[source], &mut NoProbe)?;
                }
                let mut own = Recorder::new(|_: &str| true);
                fused.layer(index, by(plan), &stream, &mut own)?;
                let ops = compare(&truth.activations, &own.activations, groups, least);
                errors.layers.push(LayerErrors { ops });
            }
            streams.push(std::mem::replace(&mut stream, next));
        }
        let true_logits = standard.head(truly, &stream, &mut NoProbe)?.logits.into_values();
        for (plan, errors) in plans.iter().zip(&mut errors) {
            let logits = fused.head(by(plan), &stream, &mut NoProbe)?.logits;
            errors.logits = relative_error(&true_logits, logits.values(), batch.logits_rows.len(), 0.0);
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
        let near = near_rows(&self.batch) * self.vocab_size;
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
        self.of_layers.push(relative_error(truth, &values, rows, 0.0));
    }
}

/// Relative error of every activation of a layer. Tokens for which a near tie between experts went the other way are left
/// out of what is computed after the choice: the experts that ran are others. Rows are taken to have at least the norm
/// `least`.
fn compare(
    truth: &[RecordedActivation],
    own: &[RecordedActivation],
    groups: Option<ExpertGroups>,
    least: f64,
) -> Vec<(String, f64)> {
    // The part of the name after `layer.N.`.
    let op = |name: &str| name.splitn(3, '.').nth(2).unwrap_or(name).to_owned();
    let tied = near_ties(truth, own, groups);
    let mut after_choice = false;
    let mut of = |truth: &RecordedActivation| {
        let own = own.iter().find(|own| own.name == truth.name)?;
        let op = op(&truth.name);
        after_choice |= op == ROUTING;
        let left_out = if after_choice { &tied[..] } else { &[] };
        Some((op, relative_error_of_others(&truth.values, &own.values, truth.rows, left_out, least)))
    };
    truth.iter().filter_map(&mut of).collect()
}

/// What experts are chosen by, `[T][E]`, and the weights of the chosen ones, `[T][E]`.
const CHOICE_SCORES: &str = "ffn.choice_scores";
const ROUTING: &str = "ffn.routing";

/// For each token, whether other experts were chosen than in truth, although no more than rounding tells them apart: the
/// scores of those that changed places differ by no more than these scores themselves moved. Empty without experts. That
/// scores move no more than rounding explains is checked where they are computed.
fn near_ties(truth: &[RecordedActivation], own: &[RecordedActivation], groups: Option<ExpertGroups>) -> Vec<bool> {
    let named = |activations: &[RecordedActivation], part: &str| {
        activations.iter().position(|activation| activation.name.ends_with(part))
    };
    let [Some(a), Some(b), Some(c), Some(d)] =
        [named(truth, CHOICE_SCORES), named(own, CHOICE_SCORES), named(truth, ROUTING), named(own, ROUTING)]
    else {
        return Vec::new();
    };
    let (rows, scores, weights) =
        (truth[a].rows, [&truth[a].values, &own[b].values], [&truth[c].values, &own[d].values]);
    let width = scores[0].len() / rows.max(1);
    if [scores[1], weights[0], weights[1]].iter().any(|values| values.len() != scores[0].len()) || width == 0 {
        return Vec::new();
    }
    let of_row = |row: usize| {
        let part = row * width..(row + 1) * width;
        let [scores, weights] = [scores, weights].map(|pair| pair.map(|values| &values[part.clone()]));
        is_near_tie(scores, weights) || groups.is_some_and(|groups| is_near_tie_of_groups(groups, scores, weights))
    };
    (0..rows).map(of_row).collect()
}

/// Experts of one list of weights that the other lacks.
fn only_in(a: &[f32], b: &[f32]) -> Vec<usize> {
    (0..a.len()).filter(|index| a[*index] != 0.0 && b[*index] == 0.0).collect()
}

/// Whether what is `dropped` could as well have been kept: its scores are no further from those of what was `taken` than
/// these scores moved.
fn are_tied([truth, own]: [&[f32]; 2], dropped: &[usize], taken: &[usize]) -> bool {
    let moved = |index: usize| (truth[index] - own[index]).abs();
    let tied = |a: usize, b: usize| (truth[a] - truth[b]).abs() <= moved(a) + moved(b);
    dropped.iter().all(|a| taken.iter().all(|b| tied(*a, *b)))
}

/// The same for one token; each pair is the truth and what is compared with it, `[E]`.
fn is_near_tie(scores: [&[f32]; 2], [truth, own]: [&[f32]; 2]) -> bool {
    let (dropped, taken) = (only_in(truth, own), only_in(own, truth));
    !dropped.is_empty() && dropped.len() == taken.len() && are_tied(scores, &dropped, &taken)
}

/// Whether the choice between groups of experts was a near tie. Experts of the other groups then follow from that.
fn is_near_tie_of_groups(groups: ExpertGroups, scores: [&[f32]; 2], [truth, own]: [&[f32]; 2]) -> bool {
    let width = truth.len() / groups.n_group.max(1);
    let score = |scores: &[f32]| {
        let mut sorted = scores.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        sorted.iter().take(if groups.score == GroupScore::TwoBest { 2 } else { 1 }).sum::<f32>()
    };
    let chosen = |weights: &[f32]| -> Vec<f32> {
        weights.chunks(width.max(1)).map(|weights| weights.iter().map(|weight| weight.abs()).sum()).collect()
    };
    let of_groups = scores.map(|scores| scores.chunks(width.max(1)).map(score).collect::<Vec<f32>>());
    let (truth, own) = (chosen(truth), chosen(own));
    let (dropped, taken) = (only_in(&truth, &own), only_in(&own, &truth));
    !dropped.is_empty() && !taken.is_empty() && are_tied([&of_groups[0], &of_groups[1]], &dropped, &taken)
}

/// Like [`relative_error`], without the rows that are `left_out`. If none are left, all of them count: then nothing was
/// measured that could speak for the kernels.
fn relative_error_of_others(truth: &[f32], values: &[f32], rows: usize, left_out: &[bool], least: f64) -> f64 {
    let kept: Vec<usize> = (0..rows).filter(|row| !left_out.get(*row).copied().unwrap_or(false)).collect();
    if kept.len() == rows || kept.is_empty() || truth.len() != values.len() {
        return relative_error(truth, values, rows, least);
    }
    let width = truth.len() / rows;
    let only = |values: &[f32]| -> Vec<f32> {
        kept.iter().flat_map(|row| &values[row * width..(row + 1) * width]).copied().collect()
    };
    relative_error(&only(truth), &only(values), kept.len(), least)
}

/// A row that is this much smaller than usual is taken to have this share of the usual norm: what remains where large
/// values cancel is as exact as they are, not as it is small.
const SMALL_ROW: f64 = 0.1;

/// The norm of each row.
fn norms(values: &[f32], rows: usize) -> Vec<f64> {
    let width = (values.len() / rows.max(1)).max(1);
    let norm = |row: &[f32]| row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    values.chunks_exact(width).map(norm).collect()
}

/// The norm in the middle, which a few large or small rows do not change; of two the smaller one, 0 without rows.
fn usual_norm(norms: &[f64]) -> f64 {
    let mut sorted = norms.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

/// Relative error of `values` with respect to `truth`, both `[rows][width]`: the root mean square, over rows, of the
/// norm of the error divided by the norm of the row, which is taken to be at least `least` and [`SMALL_ROW`] of the usual
/// one. Not finite if a value is not.
pub(super) fn relative_error(truth: &[f32], values: &[f32], rows: usize, least: f64) -> f64 {
    if truth.len() != values.len() || rows == 0 {
        return f64::NAN;
    }
    let norms = norms(truth, rows);
    let least = least.max(SMALL_ROW * usual_norm(&norms));
    let square = |((truth, values), norm): ((&[f32], &[f32]), &f64)| {
        let error = |(truth, value): (&f32, &f32)| f64::from(truth - value).powi(2);
        let error = truth.iter().zip(values).map(error).sum::<f64>();
        // The relative error of a zero row is zero if the row is reproduced, otherwise huge.
        if error == 0.0 { 0.0 } else { error / norm.max(least).powi(2).max(f64::from(f32::MIN_POSITIVE)) }
    };
    let width = (truth.len() / rows).max(1);
    let pairs = truth.chunks_exact(width).zip(values.chunks_exact(width));
    (pairs.zip(&norms).map(square).sum::<f64>() / rows as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(part: &str, values: &[f32]) -> RecordedActivation {
        RecordedActivation { name: format!("layer.0.{part}"), rows: 1, values: values.to_vec() }
    }

    /// Errors of a token whose experts have these scores and weights, and whose outputs differ entirely.
    fn errors(scores: [&[f32]; 2], weights: [&[f32]; 2]) -> Vec<f64> {
        let all = |scores: &[f32], weights: &[f32], out: f32| {
            // A second token is the same in both.
            let twice = |part: &str, values: &[f32]| {
                let values = [values, values].concat();
                RecordedActivation { rows: 2, ..recorded(part, &values) }
            };
            let out = RecordedActivation { rows: 2, ..recorded("ffn.out", &[out, 1.0]) };
            let mut all = vec![twice("ffn.choice_scores", scores), twice("ffn.routing", weights), out];
            all[0].values.truncate(scores.len());
            all[0].values.extend([0.5, 0.3, 0.2]);
            all[1].values.truncate(weights.len());
            all[1].values.extend([1.0, 0.0, 0.0]);
            all
        };
        let (truth, own) = (all(scores[0], weights[0], 1.0), all(scores[1], weights[1], -1.0));
        compare(&truth, &own, None, 0.0).into_iter().map(|(_, error)| error).collect()
    }

    #[test]
    fn a_near_tie_between_experts_that_goes_the_other_way_is_no_error_and_a_clear_choice_is() {
        let first = [1.0, 0.0, 0.0];
        let second = [0.0, 1.0, 0.0];
        let tied = errors([&[0.400001, 0.4, 0.2], &[0.4, 0.400001, 0.2]], [&first, &second]);
        assert!(tied[0] < 1e-5 && tied[1] == 0.0 && tied[2] == 0.0, "{tied:?}");
        // The scores do not explain this choice.
        let wrong = errors([&[0.41, 0.4, 0.2], &[0.41, 0.4, 0.2]], [&first, &second]);
        assert!(wrong[0] == 0.0 && wrong[1] > 0.1 && wrong[2] > 0.1, "{wrong:?}");
        // The scores themselves are wrong.
        let moved = errors([&[0.41, 0.4, 0.2], &[0.40, 0.42, 0.2]], [&first, &second]);
        assert!(moved[0] > 1e-3, "{moved:?}");
        // The same experts with other weights.
        let weighted = errors([&[0.4, 0.4, 0.2], &[0.4, 0.4, 0.2]], [&[1.0, 0.0, 0.0], &[0.5, 0.0, 0.0]]);
        assert!(weighted[1] > 0.1 && weighted[2] > 0.1, "{weighted:?}");
    }

    #[test]
    fn rows_have_equal_weight_regardless_of_their_norm() {
        let truth = [1000.0, 0.0, 1.0, 0.0];
        let values = [1000.0, 0.0, 0.0, 0.0];
        assert!((relative_error(&truth, &values, 2, 0.0) - 0.5_f64.sqrt()).abs() < 1e-6);
        assert!(relative_error(&[1.0], &[f32::NAN], 1, 0.0).is_nan());
    }

    #[test]
    fn what_remains_where_values_cancel_is_no_error_and_a_wrong_row_is() {
        let mut truth = [1.0, -0.5, 0.7, -1.2, 1e-7, 0.9];
        let mut values = truth;
        values[4] = 3e-7;
        assert!(relative_error(&truth, &values, 6, 0.0) < 1e-5);
        // A row of the usual size.
        values[0] = 1.001;
        assert!(relative_error(&truth, &values, 6, 0.0) > 1e-4);
        // A small row that is replaced by one of the usual size.
        values = truth;
        values[4] = 1.0;
        assert!(relative_error(&truth, &values, 6, 0.0) > 1.0);
        // All rows are small, also beside what they are added to, or not beside that.
        truth = [1e-12; 6];
        values = [3e-12; 6];
        assert!(relative_error(&truth, &values, 6, f64::from(f32::EPSILON)) < 1e-4);
        assert!(relative_error(&truth, &values, 6, 0.0) > 1.0);
    }
}
