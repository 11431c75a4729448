//! Deriving the verdict from the measurements.

use std::collections::BTreeSet;

use super::adapt::Adapted;
use super::measure::{Errors, LayerErrors, Run};
use super::plan_entries::{self, Computed};
use super::plan_words::plan_in_words;
use super::precision::{Target, TargetStatus};
use super::report::{CompatReport, RunKind, RunReport, Status};
use super::{Precision, Predicted};
use crate::Advice;
use crate::divergence::{Divergence, NEAR_TIE};
use crate::executor::ActiveKernels;

/// Largest relative error of an activation under the exact plan.
const EXACT_ERROR: f64 = 1e-4;

/// Scores by mean KL divergence, in nats; between the entries, the score is linear in the logarithm.
const BY_DIVERGENCE: [(f64, f64); 4] = [(1e-3, 1.0), (1e-2, 0.8), (1e-1, 0.5), (1.0, 0.0)];

/// Mean KL divergence, in nats, beyond which a model is no longer COMPATIBLE.
pub(super) const MOST_COMPATIBLE: f64 = BY_DIVERGENCE[1].0;

/// Scores by the fraction of positions, without near ties, at which the most likely token changed.
const BY_CHANGES: [(f64, f64); 4] = [(2e-3, 1.0), (2e-2, 0.8), (1e-1, 0.5), (0.5, 0.0)];

/// Answers are reported as unchanged only if no margin shifts by more than a quarter of what changes a token...
const SAME: Target = Target { kl_mean: 1e-5, shift: NEAR_TIE / 4.0 };

/// ...and if the rate of changed positions is below this with 95 % confidence, which takes some 75 positions without a
/// change.
const SAME_RATE: f64 = 0.05;

/// The interpretation of the measurements.
#[derive(Debug)]
pub(super) struct Judgement {
    /// The first error that the rounding of sums does not explain.
    fault: Option<KernelFault>,
    /// First fault of each layer.
    faults: Vec<Option<String>>,
    /// Whether embedding and output head are right.
    ends_are_right: bool,
    /// Mean KL divergence in the checkpoint's data type (what most people run).
    usual: Option<f64>,
}

#[derive(Debug, Clone)]
struct KernelFault {
    /// The layer; `None` for embedding and output head.
    layer: Option<usize>,
    op: String,
    error: f64,
}

impl Judgement {
    pub(super) fn of(exact: &Errors, run: &Run, checkpoint: Option<&Run>) -> Self {
        let bad = |layer: Option<usize>, op: &str, error: f64| {
            (error.is_nan() || error > EXACT_ERROR).then(|| KernelFault { layer, op: op.to_owned(), error })
        };
        let in_layer = |(layer, errors): (usize, &LayerErrors)| {
            errors.ops.iter().find_map(|(op, error)| bad(Some(layer), op, *error))
        };
        let in_layers: Vec<Option<KernelFault>> = exact.layers.iter().enumerate().map(in_layer).collect();
        let whole = || {
            let apart =
                [&run.divergence, &run.far].map(|found| if found.is_finite() { found.kl_mean } else { f64::NAN });
            let wrong = |kl: &f64| kl.is_nan() || by_table(&BY_DIVERGENCE, *kl) <= 0.8;
            apart.into_iter().find(wrong).map(|error| KernelFault { layer: None, op: "the whole".into(), error })
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

    /// Whether the kernels compute something wrong.
    pub(super) fn has_fault(&self) -> bool {
        self.fault.is_some()
    }

    /// The layers with faults, if the rest of the model has none.
    pub(super) fn faulty_layers(&self) -> Option<BTreeSet<usize>> {
        let faulty: BTreeSet<usize> = (0..self.faults.len()).filter(|layer| self.faults[*layer].is_some()).collect();
        (self.ends_are_right && !faulty.is_empty() && faulty.len() < self.faults.len()).then_some(faulty)
    }

    pub(super) fn fault_in(&self, layer: usize) -> Option<String> {
        self.faults.get(layer).cloned().flatten()
    }

    /// Whether a run is close enough to the truth to count as compatible.
    pub(super) fn is_close(run: &Run) -> bool {
        status_of(&run.divergence) == Status::Compatible
    }

    /// Sets verdict and plan of the report.
    pub(super) fn conclude(&self, adapted: &Adapted, precision: Precision, report: &mut CompatReport) {
        report.score = if self.has_fault() { 0.0 } else { score_of(&adapted.run.divergence) };
        report.status = Status::of(report.score);
        report.same_answers = !self.has_fault() && are_the_same(&adapted.run.divergence);
        let standard = match report.status {
            Status::Incompatible if adapted.standard.is_empty() => Computed::All,
            _ => Computed::Some(&adapted.standard),
        };
        report.plan = plan_entries::entries(&adapted.plan, standard);
        report.kv_dtype = adapted.asked_storage.as_ref().map(|(asked, _)| asked.name().to_owned());
        report.reason = self.reason(adapted, precision);
    }

    fn reason(&self, adapted: &Adapted, precision: Precision) -> String {
        let storage = storage_in_words(adapted);
        if let Some(fault) = &self.fault {
            return self.fault_in_words(fault, adapted) + if adapted.standard.is_empty() { "" } else { &storage };
        }
        let divergence = &adapted.run.divergence;
        if !divergence.is_finite() {
            return "fused kernels give logits that are not finite".into();
        }
        let distance = format!("mean KL {:.1e} nats from f32", divergence.kl_mean);
        let usual = match self.usual {
            Some(usual) if adapted.run.first.kl_mean <= usual => {
                format!(", closer than the checkpoint's own type ({usual:.1e})")
            }
            Some(usual) => format!(", the checkpoint's own type {usual:.1e}"),
            None => String::new(),
        };
        let answers = answers_in_words(divergence);
        let why = match precision {
            Precision::Fast if divergence.disagreements > 0 && adapted.plan.rounds_activations() => {
                match status_of(divergence) {
                    Status::Incompatible => "; that is more than rounding activations usually does",
                    _ if adapted.plan.stores_quantized() => {
                        "; rounding activations, and keys and values, does that, and precision exact, which has neither, asks \
                         for f32's answers"
                    }
                    _ => "; rounding activations does that in every engine, and precision exact asks for f32's answers",
                }
            }
            _ if !adapted.holds => "; that is the nearest that fused kernels come to what was asked for",
            _ => "",
        };
        format!("{}: {answers}; {distance}{usual}{why}{storage}", plan_in_words(&adapted.plan))
    }

    fn fault_in_words(&self, fault: &KernelFault, adapted: &Adapted) -> String {
        let KernelFault { layer, op, error } = fault;
        let place = layer.map_or(String::new(), |layer| format!(" in layer {layer}"));
        let mended = match adapted.standard.len() {
            0 => String::new(),
            count => format!(
                "; with standard kernels in {count} of {} layers, mean KL {:.1e} nats from standard kernels in f32",
                self.faults.len(),
                adapted.run.divergence.kl_mean
            ),
        };
        format!(
            "fused kernels compute something else{place}, from `{op}` on: error {error:.1e} where only sums are rounded{mended}"
        )
    }
}

/// Where keys and values are finer than they were asked for.
fn storage_in_words(adapted: &Adapted) -> String {
    let Some((asked, finer)) = adapted.asked_storage.as_ref().filter(|(_, finer)| !finer.is_empty()) else {
        return String::new();
    };
    let kept = adapted.plan.kv_widths.iter().filter(|width| **width > 0).count();
    let asked = asked.name();
    if finer.len() == kept {
        return format!(
            "; with keys and values in {asked} they would change too often, in every choice of layers that was tried"
        );
    }
    let layers: Vec<String> = finer.iter().map(usize::to_string).collect();
    format!(
        "; K/V finer than {asked} in {} of {kept} layers ({}), since answers would change too often",
        finer.len(),
        layers.join(", ")
    )
}

/// Describes what a divergence means for answers, claiming no more than was measured.
fn answers_in_words(divergence: &Divergence) -> String {
    let (positions, changed) = (divergence.positions, divergence.changed());
    let bound = format!("95 %: at most {}", percent(changed.high));
    if are_the_same(divergence) {
        return format!(
            "the same answers: at {positions} positions no token changed beyond near ties ({bound}), and margins of likely tokens moved by at most {:.1e} nats, where {NEAR_TIE} would change one",
            divergence.shift_max
        );
    }
    if divergence.disagreements == 0 {
        return format!(
            "no token changed beyond near ties at {positions} positions ({bound}); margins of likely tokens moved by up to {:.1e} nats",
            divergence.shift_max
        );
    }
    format!(
        "the likeliest token changes at {} of positions that are no near tie (95 %: {} to {}; {positions} read)",
        percent(changed.share),
        percent(changed.low),
        percent(changed.high)
    )
}

/// The status of a run without faults.
pub(super) fn status_of(divergence: &Divergence) -> Status {
    Status::of(score_of(divergence))
}

/// Whether answers may be reported as unchanged.
fn are_the_same(divergence: &Divergence) -> bool {
    SAME.judge(divergence) != TargetStatus::Missed && divergence.changed().high <= SAME_RATE
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// The score: the lower of those for changed tokens and for divergence.
fn score_of(divergence: &Divergence) -> f64 {
    if !divergence.is_finite() {
        return 0.0;
    }
    by_table(&BY_DIVERGENCE, divergence.kl_mean).min(by_table(&BY_CHANGES, divergence.changed().share))
}

fn by_table(table: &[(f64, f64); 4], value: f64) -> f64 {
    let [first, .., last] = *table;
    if value.is_nan() || value >= last.0 {
        return last.1;
    }
    let above = table.windows(2).find(|pair| value >= pair[0].0 && value < pair[1].0);
    above.map_or(first.1, |pair| {
        let share = (value / pair[0].0).ln() / (pair[1].0 / pair[0].0).ln();
        pair[0].1 + share * (pair[1].1 - pair[0].1)
    })
}

/// The prediction from the weights, in one sentence.
pub(super) fn predicted_reason(predicted: &Predicted) -> String {
    match (predicted.max_weight, predicted.max_ratio) {
        (Some(weight), Some(ratio)) => format!(
            "by the weights alone: the norms on keys have weights up to {weight:.1} and up to {ratio:.1} times their median; {} layers are extreme",
            predicted.extreme_layers
        ),
        _ => "by the weights alone: no norms on keys, so nothing that amplifies rounding before the softmax".into(),
    }
}

/// Begins advice that a quantized type of keys and values stands in the way of.
fn with_own_kv_dtype(begin: &str, report: &CompatReport) -> Advice {
    let advice = Advice::from(begin);
    if report.kv_dtype.is_some() { advice.then_set("kv_dtype", "auto").then(" and ") } else { advice }
}

/// Recommendations for what was found.
pub(super) fn recommend(report: &mut CompatReport) {
    let mut lines = Vec::new();
    match report.kernels() {
        ActiveKernels::Fused => {}
        ActiveKernels::Standard => lines.push(
            Advice::from("run with ")
                .then_set("kernels", "standard")
                .then(", which auto does; please report the model and this result"),
        ),
        ActiveKernels::Mixed => lines.push(Advice::from("keep ").then_set("kernels", "auto").then(
            ", which leaves the layers that fused kernels get wrong to standard ones; please report the model and this \
             result",
        )),
    }
    let changes = report.measured_divergence().is_some_and(|divergence| divergence.disagreements > 0);
    if let Some(asked) = report.useless_kv_dtype() {
        let unless = format!(": with {asked} the model is not loaded, unless by force");
        lines.push(Advice::from("use ").then_set("kv_dtype", "f16").then(unless));
    } else if report.same_answers {
        lines.push("nothing".into());
    } else if report.status == Status::Compatible && !changes {
        lines.push(
            Advice::from("nothing, or ")
                .then_set("thoroughness", "full")
                .then(", to read more: no token changed at the positions read"),
        );
    } else if report.kernels() == ActiveKernels::Fused {
        lines.push(
            with_own_kv_dtype("where answers must be those of f32, run with ", report)
                .then_set("precision", "exact")
                .then(" or ")
                .then_set("kernels", "standard"),
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
        .into()
    }));
    let far = |run: &&RunReport| run.divergence.is_finite() && status_of(&run.divergence) != Status::Compatible;
    lines.extend(report.run(RunKind::Checkpoint).filter(far).map(|run| {
        format!("beware of {} elsewhere: it is {:.1e} nats from f32 on this model", run.name, run.divergence.kl_mean)
            .into()
    }));
    report.recommendations = lines;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_fall_and_meet_the_thresholds() {
        for table in [BY_DIVERGENCE, BY_CHANGES] {
            for (value, score) in table {
                assert!((by_table(&table, value) - score).abs() < 1e-9, "{value}");
            }
            let ends = [0.0, f64::NAN, f64::INFINITY].map(|value| by_table(&table, value));
            assert_eq!(ends, [1.0, 0.0, 0.0]);
            let scores: Vec<f64> = (0..60).map(|step| by_table(&table, 1e-6 * 1.3_f64.powi(step))).collect();
            assert!(scores.windows(2).all(|pair| pair[1] <= pair[0]));
        }
    }

    /// A divergence over `positions`, of which `changed` have another most likely token; the other margins shift by
    /// `shift`.
    fn divergence(positions: usize, changed: usize, shift: f32) -> Divergence {
        let truth = [2.0, 1.0, -20.0].repeat(positions);
        let row = |position: usize| if position < changed { [1.0, 2.0, -20.0] } else { [2.0, 1.0 + shift, -20.0] };
        Divergence::of(&truth, &(0..positions).flat_map(row).collect::<Vec<f32>>(), 3, &[])
    }

    #[test]
    fn changed_tokens_lower_the_score_even_with_a_small_divergence() {
        assert_eq!(score_of(&divergence(100, 0, 0.0)), 1.0);
        // 5 changed positions of 96 are too many for COMPATIBLE.
        assert_eq!(Status::of(score_of(&divergence(96, 5, 0.0))), Status::Warning);
        assert_eq!(Status::of(score_of(&divergence(96, 30, 0.0))), Status::Incompatible);
    }

    #[test]
    fn unchanged_answers_need_small_shifts_at_many_positions() {
        let same = |positions, changed, shift| {
            answers_in_words(&divergence(positions, changed, shift)).starts_with("the same answers")
        };
        assert!(same(80, 0, 0.0) && same(200, 0, 1e-3));
        assert!(!same(60, 0, 0.0) && !same(200, 1, 0.0) && !same(200, 0, 0.02));
        let words = answers_in_words(&divergence(200, 6, 0.0));
        assert!(words.contains("changes at 3.0 % of positions") && words.contains("1.4 % to 6.4 %"), "{words}");
        let words = answers_in_words(&divergence(200, 0, 0.02));
        assert!(words.contains("no token changed") && words.contains("at most 1.9 %"), "{words}");
    }
}
