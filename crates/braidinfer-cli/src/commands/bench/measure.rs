//! Timing of all cases, in rounds.

use anyhow::Context;
use braidinfer::executor::ReadPattern;
use serde::{Deserialize, Serialize};

use super::contestant::Contestant;
use super::plan::{Case, Phase, Plan};
use crate::output;

/// Rates of repeated runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// `None` without values.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + sorted[middle]) / 2.0 } else { sorted[middle] };
        Some(Self { median, min, max })
    }
}

/// The measured rates of one case on one kind of kernels.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub case: Case,
    /// Index of the contestant.
    pub contestant: usize,
    /// Tokens per second of all sequences together.
    pub rate: Spread,
}

/// Runs every case on every contestant, first once untimed and then in rounds, so that temporary disturbances of the
/// machine affect all of them alike.
///
/// Between the runs memory is measured alone: weights on the CPU are read with `pattern`.
pub fn measure(
    contestants: &mut [Contestant],
    plan: &Plan,
    pattern: Option<ReadPattern>,
) -> anyhow::Result<Vec<Sample>> {
    let pairs = plan.cases.iter().flat_map(|case| (0..contestants.len()).map(move |index| (*case, index)));
    let pairs: Vec<(Case, usize)> = pairs.collect();
    let mut rates = vec![Vec::with_capacity(plan.repetitions); pairs.len()];
    let bar = output::progress_bar("measuring", "runs");
    bar.set_length((pairs.len() * (plan.repetitions + 1)) as u64);
    for round in 0..=plan.repetitions {
        for ((case, index), rates) in pairs.iter().zip(&mut rates) {
            if case.phase == Phase::Decode {
                contestants[*index].measure_memory(pattern)?;
            }
            // Prefill needs no untimed run: every contestant computed a prompt when it was opened.
            if round > 0 || case.phase == Phase::Decode {
                let seconds = contestants[*index].run(*case)?.as_secs_f64();
                // `max` avoids an infinite rate if the clock did not advance.
                rates.extend((round > 0).then_some((case.batch * case.tokens) as f64 / seconds.max(1e-9)));
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let sample = |((case, contestant), rates): ((Case, usize), &Vec<f64>)| {
        Some(Sample { case, contestant, rate: Spread::of(rates)? })
    };
    pairs.into_iter().zip(&rates).map(sample).collect::<Option<_>>().context("repetitions: expected at least 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_value_or_the_mean_of_the_middle_two() {
        let spread = |values: &[f64]| Spread::of(values).map(|spread| (spread.median, spread.min, spread.max));
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[3.0]), Some((3.0, 3.0, 3.0)));
        assert_eq!(spread(&[9.0, 1.0, 2.0]), Some((2.0, 1.0, 9.0)));
        assert_eq!(spread(&[4.0, 1.0, 9.0, 2.0]), Some((3.0, 1.0, 9.0)));
    }
}
