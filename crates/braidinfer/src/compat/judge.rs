//! From measurements to a verdict.

use std::collections::BTreeSet;

use super::Predicted;
use super::adapt::Adapted;
use super::measure::{Errors, LayerErrors, Run};
use super::plan_entries::{self, Computed};
use super::report::{CompatReport, RunKind, RunReport, Status};
use crate::executor::ActiveKernels;

/// Largest relative error of an activation where nothing is rounded but sums.
const EXACT_ERROR: f64 = 1e-4;

/// Mean divergences, in nats, and the scores they get; in between, scores fall with the logarithm.
const SCORES: [(f64, f64); 4] = [(1e-3, 1.0), (1e-2, 0.8), (1e-1, 0.5), (1.0, 0.0)];

/// Least score of a run that is closer to the truth than what most people run.
const AS_GOOD_AS_USUAL: f64 = 0.9;

/// What the measurements mean.
#[derive(Debug)]
pub(super) struct Judgement {
    /// The first error that rounding of sums does not explain.
    fault: Option<Fault>,
    /// First fault of each layer.
    faults: Vec<Option<String>>,
    /// Whether what comes before the first layer and after the last is as it should be.
    ends_are_right: bool,
    /// Mean divergence of what most people run.
    usual: Option<f64>,
}

#[derive(Debug, Clone)]
struct Fault {
    /// `None` before the first layer and after the last.
    layer: Option<usize>,
    op: String,
    error: f64,
}

impl Judgement {
    pub(super) fn of(exact: &Errors, run: &Run, checkpoint: Option<&Run>) -> Self {
        let bad = |layer: Option<usize>, op: &str, error: f64| {
            (error.is_nan() || error > EXACT_ERROR).then(|| Fault { layer, op: op.to_owned(), error })
        };
        let in_layer = |(layer, errors): (usize, &LayerErrors)| {
            errors.ops.iter().find_map(|(op, error)| bad(Some(layer), op, *error))
        };
        let in_layers: Vec<Option<Fault>> = exact.layers.iter().enumerate().map(in_layer).collect();
        let whole = || {
            let divergence = &run.divergence;
            let wrong = !divergence.is_finite() || score_of(divergence.kl_mean) <= 0.8;
            wrong.then(|| Fault { layer: None, op: "the whole".into(), error: divergence.kl_mean })
        };
        let (before, after) = (bad(None, "embed", exact.embed), bad(None, "logits", exact.logits));
        let ends_are_right = before.is_none() && after.is_none();
        let fault = before.or_else(|| in_layers.iter().flatten().next().cloned()).or(after).or_else(whole);
        Self {
            ends_are_right,
            fault,
            faults: in_layers.into_iter().map(|fault| fault.map(|fault| fault.op)).collect(),
            usual: checkpoint.map(|run| run.divergence.kl_mean),
        }
    }

    /// Whether kernels compute something else than they should.
    pub(super) fn has_fault(&self) -> bool {
        self.fault.is_some()
    }

    /// Layers that compute something else than they should, if the others and all around them do not.
    pub(super) fn faulty_layers(&self) -> Option<BTreeSet<usize>> {
        let faulty: BTreeSet<usize> = (0..self.faults.len()).filter(|layer| self.faults[*layer].is_some()).collect();
        (self.ends_are_right && !faulty.is_empty() && faulty.len() < self.faults.len()).then_some(faulty)
    }

    pub(super) fn fault_in(&self, layer: usize) -> Option<String> {
        self.faults.get(layer).cloned().flatten()
    }

    /// Whether a run is close enough to the truth by itself.
    pub(super) fn is_close(run: &Run) -> bool {
        run.divergence.is_finite() && Status::of(score_of(run.divergence.kl_mean)) == Status::Compatible
    }

    /// Whether nothing is left to gain: once a model has to be raised, it is raised this far.
    pub(super) fn is_as_close_as_healthy(run: &Run) -> bool {
        run.divergence.is_finite() && run.divergence.kl_mean <= SCORES[0].0
    }

    fn score(&self, run: &Run) -> f64 {
        let divergence = &run.divergence;
        if !divergence.is_finite() || self.has_fault() {
            return 0.0;
        }
        let score = score_of(divergence.kl_mean);
        match self.usual {
            Some(usual) if divergence.kl_mean <= usual => score.max(AS_GOOD_AS_USUAL),
            _ => score,
        }
    }

    /// Fills in verdict and plan.
    pub(super) fn conclude(&self, adapted: &Adapted, report: &mut CompatReport) {
        report.score = self.score(&adapted.run);
        report.status = Status::of(report.score);
        let standard = match report.status {
            Status::Incompatible if adapted.standard.is_empty() => Computed::All,
            _ => Computed::Some(&adapted.standard),
        };
        report.plan = plan_entries::entries(&adapted.plan, standard);
        report.reason = self.reason(adapted, report.status);
    }

    fn reason(&self, adapted: &Adapted, status: Status) -> String {
        if let Some(Fault { layer, op, error }) = &self.fault {
            let place = layer.map_or(String::new(), |layer| format!(" in layer {layer}"));
            let mended = match adapted.standard.len() {
                0 => String::new(),
                count => format!(
                    "; with standard kernels in {count} of {} layers, mean KL {:.1e} nats from standard kernels in f32",
                    self.faults.len(),
                    adapted.run.divergence.kl_mean
                ),
            };
            return format!(
                "fused kernels compute something else{place}, from `{op}` on: error {error:.1e} where only sums are rounded{mended}"
            );
        }
        let divergence = &adapted.run.divergence;
        if !divergence.is_finite() {
            return "fused kernels give logits that are not finite".into();
        }
        let distance = format!("mean KL {:.1e} nats from standard kernels in f32", divergence.kl_mean);
        let usual = match self.usual {
            Some(usual) if divergence.kl_mean <= usual => {
                format!(", closer than the checkpoint's own type ({usual:.1e})")
            }
            Some(usual) => format!(", the checkpoint's own type {usual:.1e}"),
            None => String::new(),
        };
        let raised = match adapted.raised.len() {
            0 => String::new(),
            1 => " with one layer more exact".to_owned(),
            count => format!(" with {count} layers more exact"),
        };
        let verb = if status == Status::Compatible {
            "fused kernels give the same answers"
        } else {
            "fused kernels change the answers"
        };
        format!("{verb}{raised}: {distance}{usual}")
    }
}

fn score_of(kl: f64) -> f64 {
    let [first, .., last] = SCORES;
    if kl.is_nan() || kl >= last.0 {
        return last.1;
    }
    let above = SCORES.windows(2).find(|pair| kl >= pair[0].0 && kl < pair[1].0);
    above.map_or(first.1, |pair| {
        let share = (kl / pair[0].0).ln() / (pair[1].0 / pair[0].0).ln();
        pair[0].1 + share * (pair[1].1 - pair[0].1)
    })
}

/// What the weights alone say, in one sentence.
pub(super) fn predicted_reason(predicted: &Predicted) -> String {
    match (predicted.max_weight, predicted.max_ratio) {
        (Some(weight), Some(ratio)) => format!(
            "by the weights alone: the norms on keys have weights up to {weight:.1} and up to {ratio:.1} times their median; {} layers are extreme",
            predicted.extreme_layers
        ),
        _ => "by the weights alone: no norms on keys, so nothing that amplifies rounding before the softmax".into(),
    }
}

/// What to do, by what was found.
pub(super) fn recommend(report: &mut CompatReport) {
    let mut lines = Vec::new();
    match report.kernels() {
        ActiveKernels::Fused => {}
        ActiveKernels::Standard => lines
            .push("run with --kernels standard, which auto does; please report the model and this result".to_owned()),
        ActiveKernels::Mixed => lines.push(
            "keep --kernels auto, which leaves the layers that fused kernels get wrong to standard ones; please report \
             the model and this result"
                .to_owned(),
        ),
    }
    let raised = report.layers.iter().filter(|layer| layer.raised.is_some()).count();
    if raised > 0 && report.kernels() != ActiveKernels::Standard {
        lines.push(format!("keep --kernels auto: it computes {raised} of {} layers more exactly", report.layers.len()));
    }
    if report.status == Status::Compatible && raised == 0 {
        lines.push("nothing: the fastest level gives the right answers".to_owned());
    }
    if report.status == Status::Warning {
        lines.push(
            "where answers must be those of standard kernels, run with --dtype f32 or --kernels standard".to_owned(),
        );
    }
    let measured = report.measured.as_ref().filter(|_| report.text_is_lost());
    lines.extend(measured.map(|measured| {
        format!(
            "look at the model itself: its loss on plain text is {:.2} nats per token, where knowing nothing gives {:.2}. \
             It was trained on something else, or not at all, or its architecture, RoPE or tokenizer is misread, which \
             comparing kernels cannot show",
            measured.loss, measured.uniform_loss
        )
    }));
    let far = |run: &&RunReport| {
        run.divergence.is_finite() && Status::of(score_of(run.divergence.kl_mean)) != Status::Compatible
    };
    lines.extend(report.run(RunKind::Checkpoint).filter(far).map(|run| {
        format!("beware of {} elsewhere: it is {:.1e} nats from f32 on this model", run.name, run.divergence.kl_mean)
    }));
    report.recommendations = lines;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_fall_with_divergence_and_meet_the_thresholds() {
        for (kl, score) in SCORES {
            assert!((score_of(kl) - score).abs() < 1e-9, "{kl}");
        }
        assert_eq!((score_of(0.0), score_of(f64::NAN), score_of(f64::INFINITY)), (1.0, 0.0, 0.0));
        let scores: Vec<f64> = (0..60).map(|step| score_of(1e-6 * 1.3_f64.powi(step))).collect();
        assert!(scores.windows(2).all(|pair| pair[1] <= pair[0]));
    }
}
