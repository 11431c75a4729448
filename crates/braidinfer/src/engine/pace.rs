//! How much of a prompt may be read in one step beside answers that are being written.

use std::time::Duration;

/// A step may take so much longer than one without prompts: written answers keep at least a third of their speed, with
/// room for what is not foreseen.
const SLOWER: f64 = 2.5;

/// Tokens of a prompt beside answers while nothing is known yet, and the fewest.
const FIRST: usize = 32;
const FEWEST: usize = 16;

/// Weight of the newest measurement in a mean.
const NEWEST: f64 = 0.25;

/// Learns from the steps that were made. What it says changes how long steps take, and never what they compute.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Seconds of a step that only writes answers.
    decode: Option<f64>,
    /// Seconds that each token of a prompt takes.
    prompt_token: Option<f64>,
}

impl Pace {
    /// Takes note of a step of so many tokens of prompts, beside answers or not.
    pub(super) fn observe(&mut self, prompt_tokens: usize, with_answers: bool, took: Duration) {
        let took = took.as_secs_f64();
        match (prompt_tokens, with_answers, self.decode) {
            (0, ..) => learn(&mut self.decode, took),
            (_, false, _) => learn(&mut self.prompt_token, took / prompt_tokens as f64),
            (_, true, Some(decode)) => learn(&mut self.prompt_token, (took - decode).max(0.0) / prompt_tokens as f64),
            (_, true, None) => {}
        }
    }

    /// Most tokens of prompts in a step that also writes answers.
    pub(super) fn prompt_tokens_beside_answers(&self) -> usize {
        let (Some(decode), Some(token)) = (self.decode, self.prompt_token) else { return FIRST };
        // A token that seems to take no time at all would ask for a step without end; the budget of a step ends it.
        (((SLOWER - 1.0) * decode / token.max(1e-9)) as usize).max(FEWEST)
    }
}

fn learn(mean: &mut Option<f64>, newest: f64) {
    *mean = Some(mean.map_or(newest, |mean| mean + NEWEST * (newest - mean)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_take_what_answers_can_spare() {
        let mut pace = Pace::default();
        assert_eq!(pace.prompt_tokens_beside_answers(), FIRST);
        for _ in 0..50 {
            pace.observe(0, true, Duration::from_millis(40));
            pace.observe(100, true, Duration::from_millis(140));
        }
        // A millisecond for each token, and 60 to spare.
        assert!((59..=60).contains(&pace.prompt_tokens_beside_answers()), "{pace:?}");
        for _ in 0..50 {
            pace.observe(10, false, Duration::from_secs(1));
        }
        assert_eq!(pace.prompt_tokens_beside_answers(), FEWEST);
    }
}
