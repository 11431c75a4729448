//! How many prompt tokens fit into a step that also decodes, estimated from the times of earlier steps.

use std::time::Duration;

/// How many times longer a step may take because of prompt tokens: decoding keeps at least a third of its speed, with
/// some margin.
const SLOWER: f64 = 2.5;

/// Prompt tokens in a step that also decodes: before anything is measured, and at least.
const FIRST_PROMPT_TOKENS: usize = 32;
const MIN_PROMPT_TOKENS: usize = 4;

/// Weight of the newest measurement in a moving average.
const NEWEST: f64 = 0.25;

/// Estimates the cost of tokens from measured steps. The estimates affect only how long steps take, never what they
/// compute.
#[derive(Debug, Default)]
pub(super) struct StepCosts {
    /// Seconds of a step that only decodes, without drafts.
    decode: Option<f64>,
    /// Seconds per prompt token.
    prompt_token: Option<f64>,
    /// Seconds per draft token.
    draft_token: Option<f64>,
}

/// Cost of a draft token as a share of a step, before anything is measured.
const FIRST_DRAFT_COST: f64 = 0.1;
/// Smallest cost that is assumed, whatever was measured: the next draft token may take longer.
const LEAST_DRAFT_COST: f64 = 0.01;

impl StepCosts {
    /// Records a step that `took` so long, with its number of prompt tokens and draft tokens.
    pub(super) fn observe(&mut self, prompt_tokens: usize, has_decodes: bool, draft_tokens: usize, took: Duration) {
        let took = took.as_secs_f64();
        if draft_tokens > 0 {
            if let (Some(decode), 0) = (self.decode, prompt_tokens) {
                learn(&mut self.draft_token, (took - decode).max(0.0) / draft_tokens as f64);
            }
            return;
        }
        match (prompt_tokens, has_decodes, self.decode) {
            (0, ..) => learn(&mut self.decode, took),
            (_, false, _) => learn(&mut self.prompt_token, took / prompt_tokens as f64),
            (_, true, Some(decode)) => learn(&mut self.prompt_token, (took - decode).max(0.0) / prompt_tokens as f64),
            (_, true, None) => {}
        }
    }

    /// Cost of each draft token as a share of a step that only decodes.
    pub(super) fn cost_of_draft_token(&self) -> f64 {
        let (Some(decode), Some(draft_token)) = (self.decode, self.draft_token) else { return FIRST_DRAFT_COST };
        (draft_token / decode.max(1e-9)).max(LEAST_DRAFT_COST)
    }

    /// Most prompt tokens in a step that also decodes.
    pub(super) fn max_prompt_tokens_beside_decodes(&self) -> usize {
        let (Some(decode), Some(token)) = (self.decode, self.prompt_token) else { return FIRST_PROMPT_TOKENS };
        // `max` avoids a division by zero; the caller limits the result to the token budget of a step.
        (((SLOWER - 1.0) * decode / token.max(1e-9)) as usize).max(MIN_PROMPT_TOKENS)
    }
}

fn learn(mean: &mut Option<f64>, newest: f64) {
    *mean = Some(mean.map_or(newest, |mean| mean + NEWEST * (newest - mean)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_budget_follows_measured_times() {
        let mut costs = StepCosts::default();
        assert_eq!(costs.max_prompt_tokens_beside_decodes(), FIRST_PROMPT_TOKENS);
        for _ in 0..50 {
            costs.observe(0, true, 0, Duration::from_millis(40));
            costs.observe(100, true, 0, Duration::from_millis(140));
        }
        // 1 ms per prompt token, and 60 ms to spare.
        assert!((59..=60).contains(&costs.max_prompt_tokens_beside_decodes()), "{costs:?}");
        for _ in 0..50 {
            costs.observe(10, false, 0, Duration::from_secs(1));
        }
        assert_eq!(costs.max_prompt_tokens_beside_decodes(), MIN_PROMPT_TOKENS);
    }

    #[test]
    fn the_cost_of_drafts_is_the_time_they_add_to_a_step() {
        let mut costs = StepCosts::default();
        assert_eq!(costs.cost_of_draft_token(), FIRST_DRAFT_COST);
        for _ in 0..50 {
            costs.observe(0, true, 0, Duration::from_millis(40));
            costs.observe(0, true, 5, Duration::from_millis(50));
        }
        assert!((costs.cost_of_draft_token() - 0.05).abs() < 1e-6, "{costs:?}");
    }
}
