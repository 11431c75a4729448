//! How long steps take, estimated from the times of earlier ones, and how much work may join a step because of that.

use std::time::Duration;

/// How many times longer a step may take because of prompt tokens: decoding keeps at least a third of its speed, with
/// some margin.
const SLOWER: f64 = 2.5;
/// The same if they are prompts of other clients, or if clients decode more sequences than others.
const SLOWER_FOR_OTHERS: f64 = 2.0;
/// How many times longer a step may take because clients decode more sequences than others do.
const SLOWER_BY_SEQUENCES: f64 = 1.25;

/// Prompt tokens in a step that also decodes: before anything is measured, and at least.
const FIRST_PROMPT_TOKENS: usize = 32;
const MIN_PROMPT_TOKENS: usize = 4;

/// Most steps in a row with both decoding sequences and other tokens: after them, one only decodes, so that its time is known.
const MOST_MIXED_STEPS: u32 = 32;

/// Weight of the newest measurement in a moving average.
const NEWEST: f64 = 0.25;
/// What is left of the weight of earlier decode steps after each new one.
const KEPT: f64 = 0.98;

/// Estimates the cost of tokens from measured steps. The estimates affect only how long steps take, never what they
/// compute.
#[derive(Debug, Default)]
pub(super) struct StepCosts {
    decode: DecodeTimes,
    /// Steps with decoding sequences and other tokens since the last one that only decoded.
    mixed_steps: u32,
    /// Seconds per prompt token.
    prompt_token: Option<f64>,
    /// Seconds per draft token.
    draft_token: Option<f64>,
}

/// Cost of a draft token as a share of a step, before anything is measured.
const FIRST_DRAFT_COST: f64 = 0.1;
/// Smallest cost that is assumed, whatever was measured: the next draft token may take longer.
const LEAST_DRAFT_COST: f64 = 0.01;

/// Tokens of a step.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StepTokens {
    pub(super) prompt: usize,
    /// Sequences that decode.
    pub(super) decodes: usize,
    pub(super) draft: usize,
}

impl StepCosts {
    /// Records a step that `took` so long.
    pub(super) fn observe(&mut self, tokens: StepTokens, took: Duration) {
        let took = took.as_secs_f64();
        let decode = self.decode.of(tokens.decodes);
        match (tokens.decodes, tokens.prompt + tokens.draft) {
            (0, _) => {}
            (_, 0) => self.mixed_steps = 0,
            _ => self.mixed_steps += 1,
        }
        if tokens.draft > 0 {
            if let (Some(decode), 0) = (decode, tokens.prompt) {
                learn(&mut self.draft_token, (took - decode).max(0.0) / tokens.draft as f64);
            }
            return;
        }
        match (tokens.prompt, tokens.decodes, decode) {
            (0, decodes, _) => self.decode.observe(decodes, took),
            (prompt, 0, _) => learn(&mut self.prompt_token, took / prompt as f64),
            (prompt, _, Some(decode)) => learn(&mut self.prompt_token, (took - decode).max(0.0) / prompt as f64),
            (_, _, None) => {}
        }
    }

    /// Whether the next step should only decode, if any sequence can: what that takes is not known, or was measured long ago.
    pub(super) fn is_decode_time_wanted(&self) -> bool {
        self.mixed_steps >= if self.decode.of(1).is_none() { 1 } else { MOST_MIXED_STEPS }
    }

    /// Cost of each draft token as a share of a step that only decodes `decodes` sequences.
    pub(super) fn cost_of_draft_token(&self, decodes: usize) -> f64 {
        let (Some(decode), Some(draft_token)) = (self.decode.of(decodes), self.draft_token) else {
            return FIRST_DRAFT_COST;
        };
        (draft_token / decode.max(1e-9)).max(LEAST_DRAFT_COST)
    }

    /// Seconds of a step that only decodes `decodes` sequences, if that is known, and for each draft token in it.
    pub(super) fn decode_and_draft_token(&self, decodes: usize) -> (Option<f64>, f64) {
        let decode = self.decode.of(decodes);
        (decode, self.draft_token.unwrap_or(FIRST_DRAFT_COST * decode.unwrap_or(0.0)))
    }

    /// Most prompt tokens in a step that also decodes `decodes` sequences of one client.
    pub(super) fn max_prompt_tokens_beside_decodes(&self, decodes: usize) -> usize {
        self.max_prompt_tokens(self.decode.of(decodes).map(|decode| (SLOWER - 1.0) * decode))
    }

    /// The same in a step of several clients, where `if_equal` sequences would decode if each had as many as the others.
    pub(super) fn max_prompt_tokens_beside_clients(&self, decodes: usize, if_equal: usize) -> usize {
        let times = self.decode.of(decodes).zip(self.decode.of(if_equal));
        self.max_prompt_tokens(times.map(|(decode, if_equal)| SLOWER_FOR_OTHERS * if_equal - decode))
    }

    /// The prompt tokens that take so many seconds.
    fn max_prompt_tokens(&self, seconds: Option<f64>) -> usize {
        let (Some(seconds), Some(token)) = (seconds, self.prompt_token) else { return FIRST_PROMPT_TOKENS };
        // `max` avoids a division by zero; the caller limits the result to the token budget of a step.
        ((seconds / token.max(1e-9)) as usize).max(MIN_PROMPT_TOKENS)
    }

    /// How many of `most` sequences may decode in a step of several clients, where `if_equal` would decode if each had as many
    /// as the others.
    pub(super) fn max_decodes_beside_clients(&self, if_equal: usize, most: usize) -> usize {
        let Some(limit) = self.decode.of(if_equal).map(|time| SLOWER_BY_SEQUENCES * time) else { return most };
        let fits = |decodes: &usize| self.decode.of(*decodes).is_some_and(|time| time <= limit);
        (if_equal..=most).rev().find(fits).unwrap_or(if_equal)
    }
}

fn learn(mean: &mut Option<f64>, newest: f64) {
    *mean = Some(mean.map_or(newest, |mean| mean + NEWEST * (newest - mean)));
}

/// Times of steps that only decode: a line over the number of their sequences, by least squares. Later steps count more. A step
/// that had no sequences and took no time is added to those that were measured, so that time is assumed to be in proportion to
/// the sequences as long as all steps had the same number of them.
#[derive(Debug, Default)]
pub(super) struct DecodeTimes {
    /// Sum of the weights, and weighted sums of what they are named after.
    weight: f64,
    sequences: f64,
    squares: f64,
    seconds: f64,
    products: f64,
}

impl DecodeTimes {
    pub(super) fn observe(&mut self, sequences: usize, seconds: f64) {
        let sequences = sequences as f64;
        let newest = [1.0, sequences, sequences * sequences, seconds, sequences * seconds];
        let sums = [&mut self.weight, &mut self.sequences, &mut self.squares, &mut self.seconds, &mut self.products];
        sums.into_iter().zip(newest).for_each(|(sum, newest)| *sum = KEPT * *sum + newest);
    }

    /// Seconds of a step that decodes so many sequences; `None` if there was none yet.
    pub(super) fn of(&self, sequences: usize) -> Option<f64> {
        if self.squares == 0.0 {
            return None;
        }
        let weight = self.weight + 1.0;
        let variance = self.squares - self.sequences * self.sequences / weight;
        let slope = ((self.products - self.sequences * self.seconds / weight) / variance).max(0.0);
        let start = (self.seconds - slope * self.sequences) / weight;
        match start >= 0.0 {
            true => Some(start + slope * sequences as f64),
            false => Some(self.products / self.squares * sequences as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(prompt: usize, decodes: usize, draft: usize) -> StepTokens {
        StepTokens { prompt, decodes, draft }
    }

    fn millis(milliseconds: usize) -> Duration {
        Duration::from_millis(milliseconds as u64)
    }

    #[test]
    fn the_prompt_budget_follows_measured_times() {
        let mut costs = StepCosts::default();
        assert_eq!(costs.max_prompt_tokens_beside_decodes(1), FIRST_PROMPT_TOKENS);
        for _ in 0..50 {
            costs.observe(tokens(0, 1, 0), millis(40));
            costs.observe(tokens(100, 1, 0), millis(140));
        }
        // 1 ms per prompt token, and 60 ms to spare; 40 ms if others decode.
        assert!((59..=60).contains(&costs.max_prompt_tokens_beside_decodes(1)), "{costs:?}");
        assert!((39..=40).contains(&costs.max_prompt_tokens_beside_clients(1, 1)), "{costs:?}");
        for _ in 0..50 {
            costs.observe(tokens(10, 0, 0), Duration::from_secs(1));
        }
        assert_eq!(costs.max_prompt_tokens_beside_decodes(1), MIN_PROMPT_TOKENS);
    }

    #[test]
    fn now_and_then_a_step_only_decodes_so_that_its_time_is_known() {
        let mut costs = StepCosts::default();
        costs.observe(tokens(100, 0, 0), millis(100));
        assert!(!costs.is_decode_time_wanted(), "nothing has decoded");
        costs.observe(tokens(10, 1, 0), millis(50));
        assert!(costs.is_decode_time_wanted());
        costs.observe(tokens(0, 1, 0), millis(40));
        for step in 0..MOST_MIXED_STEPS {
            assert!(!costs.is_decode_time_wanted(), "after {step} steps");
            costs.observe(tokens(10, 1, step as usize % 2), millis(50));
        }
        assert!(costs.is_decode_time_wanted());
    }

    #[test]
    fn the_cost_of_drafts_is_the_time_they_add_to_a_step() {
        let mut costs = StepCosts::default();
        assert_eq!(costs.cost_of_draft_token(1), FIRST_DRAFT_COST);
        for _ in 0..50 {
            costs.observe(tokens(0, 1, 0), millis(40));
            costs.observe(tokens(0, 1, 5), millis(50));
        }
        assert!((costs.cost_of_draft_token(1) - 0.05).abs() < 1e-6, "{costs:?}");
    }

    #[test]
    fn more_sequences_decode_beside_other_clients_where_that_costs_little() {
        let mut costs = StepCosts::default();
        assert_eq!(costs.max_decodes_beside_clients(2, 16), 16, "nothing is known");
        // Steps are only known with as many sequences as there are: each may take an equal part of the time.
        (0..100).for_each(|_| costs.observe(tokens(0, 16, 0), millis(56)));
        assert_eq!(costs.max_decodes_beside_clients(4, 16), 5);
        // As it turns out, most of the time is spent on the weights: 40 ms, and 1 ms for each sequence.
        (0..20).for_each(|_| costs.observe(tokens(0, 5, 0), millis(45)));
        let most = costs.max_decodes_beside_clients(4, 16);
        assert!((10..=16).contains(&most), "{most}: {costs:?}");
        // With small weights it is the other way round.
        for _ in 0..200 {
            costs.observe(tokens(0, 16, 0), millis(160));
            costs.observe(tokens(0, 5, 0), millis(50));
        }
        assert_eq!(costs.max_decodes_beside_clients(4, 16), 5);
        assert_eq!(costs.max_decodes_beside_clients(16, 16), 16);
    }
}
