//! How much of a prompt may be read in one step beside answers that are being written.

use std::time::Duration;

/// A step may take so much longer than one without prompts: written answers keep at least a third of their speed, with
/// room for what is not foreseen.
const SLOWER: f64 = 2.5;

/// Tokens of a prompt beside answers while nothing is known yet, and the fewest.
const FIRST: usize = 32;
const FEWEST: usize = 4;

/// Weight of the newest measurement in a mean.
const NEWEST: f64 = 0.25;

/// Learns from the steps that were made. What it says changes how long steps take, and never what they compute.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Seconds of a step that only writes answers.
    decode: Option<f64>,
    /// Seconds that each token of a prompt takes.
    prompt_token: Option<f64>,
    /// Seconds that each draft token takes.
    draft_token: Option<f64>,
}

/// Share of a step that a draft token takes, while nothing is known yet.
const FIRST_DRAFT_COST: f64 = 0.1;
/// Less than this is never believed: the next one may take more.
const LEAST_DRAFT_COST: f64 = 0.01;

impl Pace {
    /// Takes note of a step of so many tokens of prompts, beside answers with so many draft tokens or not.
    pub(super) fn observe(&mut self, prompt_tokens: usize, with_answers: bool, draft_tokens: usize, took: Duration) {
        let took = took.as_secs_f64();
        if draft_tokens > 0 {
            if let (Some(decode), 0) = (self.decode, prompt_tokens) {
                learn(&mut self.draft_token, (took - decode).max(0.0) / draft_tokens as f64);
            }
            return;
        }
        match (prompt_tokens, with_answers, self.decode) {
            (0, ..) => learn(&mut self.decode, took),
            (_, false, _) => learn(&mut self.prompt_token, took / prompt_tokens as f64),
            (_, true, Some(decode)) => learn(&mut self.prompt_token, (took - decode).max(0.0) / prompt_tokens as f64),
            (_, true, None) => {}
        }
    }

    /// Share of a step that each draft token takes.
    pub(super) fn cost_of_draft_token(&self) -> f64 {
        let (Some(decode), Some(draft_token)) = (self.decode, self.draft_token) else { return FIRST_DRAFT_COST };
        (draft_token / decode.max(1e-9)).max(LEAST_DRAFT_COST)
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
            pace.observe(0, true, 0, Duration::from_millis(40));
            pace.observe(100, true, 0, Duration::from_millis(140));
        }
        // A millisecond for each token, and 60 to spare.
        assert!((59..=60).contains(&pace.prompt_tokens_beside_answers()), "{pace:?}");
        for _ in 0..50 {
            pace.observe(10, false, 0, Duration::from_secs(1));
        }
        assert_eq!(pace.prompt_tokens_beside_answers(), FEWEST);
    }

    #[test]
    fn drafts_cost_what_they_add_to_a_step() {
        let mut pace = Pace::default();
        assert_eq!(pace.cost_of_draft_token(), FIRST_DRAFT_COST);
        for _ in 0..50 {
            pace.observe(0, true, 0, Duration::from_millis(40));
            pace.observe(0, true, 5, Duration::from_millis(50));
        }
        assert!((pace.cost_of_draft_token() - 0.05).abs() < 1e-6, "{pace:?}");
    }
}
