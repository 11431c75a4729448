//! Draft tokens by prompt lookup (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding): if the last tokens of a
//! sequence (an n-gram) occurred earlier in it, the tokens that followed them there are the draft.
//!
//! Draft tokens are computed in the same step as the newest token, which costs little more than that token alone. A draft
//! token is accepted only if it equals the token that the sampler chooses at its position, so drafts never change an
//! output, greedy or sampled; they only save steps.

use std::collections::HashMap;

/// Length of the longest n-gram that is looked up; if it did not occur before, shorter ones are tried.
const MAX_NGRAM: usize = 3;
/// Acceptance rates before any is measured, by the length of the n-gram that was found.
const FIRST_RATES: [f64; MAX_NGRAM] = [0.2, 0.4, 0.5];
/// Pads the keys of n-grams shorter than [`MAX_NGRAM`].
const PADDING: u32 = u32::MAX;

/// Rows that one step computes about as fast as one row; drafts use the rows that decoding sequences leave over.
pub(super) const MAX_DECODE_ROWS: usize = 16;

/// Weight of each accepted or rejected draft token in the moving average of a rate, and how fast a rate rises while
/// nothing is drafted.
const RATE_WEIGHT: f64 = 0.2;
const RECOVERY: f64 = 0.02;

/// Tokens that a step with `depth` draft tokens gives on average, if each is accepted with probability `rate` where those before it
/// were.
pub(super) fn expected_tokens(rate: f64, depth: usize) -> f64 {
    (0..=depth).map(|count| rate.powi(count as i32)).sum()
}

/// Draft tokens of a sequence, and who proposed them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Draft {
    pub(super) tokens: Vec<u32>,
    /// Whether they are those of a draft model, and not looked up.
    pub(super) is_of_model: bool,
}

/// Proposes draft tokens for one sequence.
#[derive(Debug)]
pub(super) struct Drafter {
    /// The position after the latest occurrence of each n-gram of up to [`MAX_NGRAM`] tokens.
    next_position: HashMap<[u32; MAX_NGRAM], usize>,
    /// Number of tokens whose n-grams are in `next_position`.
    num_indexed: usize,
    /// Recent acceptance rates, by the length of the n-gram that was found.
    rates: [f64; MAX_NGRAM],
    /// Length of the n-gram that gave the last draft.
    ngram_len: usize,
}

impl Drafter {
    pub(super) fn new() -> Self {
        Self { next_position: HashMap::new(), num_indexed: 0, rates: FIRST_RATES, ngram_len: MAX_NGRAM }
    }

    /// Drafts at most `most` tokens after `tokens`. `cost` is the time of one more token as a share of the time of a step:
    /// a token is drafted only if its probability of being accepted is above `cost`.
    pub(super) fn draft(&mut self, tokens: &[u32], most: usize, cost: f64) -> Vec<u32> {
        self.index_ngrams(tokens);
        let found = (1..=MAX_NGRAM)
            .rev()
            .find_map(|ngram_len| Some((ngram_len, *self.next_position.get(&ngram_key(tokens, ngram_len)?)?)));
        let Some((ngram_len, place)) = found.filter(|_| most > 0) else { return Vec::new() };
        self.ngram_len = ngram_len;
        let rate = &mut self.rates[ngram_len - 1];
        let worth = (1..=most).take_while(|count| rate.powi(*count as i32) > cost).count();
        if worth == 0 {
            *rate = (*rate + RECOVERY * cost.min(0.5)).min(1.0);
        }
        // With a short repeating pattern the copied range reaches into the draft itself.
        let mut drafted: Vec<u32> = Vec::with_capacity(worth);
        for position in place..place + worth {
            drafted.push(tokens.get(position).copied().unwrap_or_else(|| drafted[position - tokens.len()]));
        }
        drafted
    }

    /// How many times as fast tokens are expected to come with the last draft, which has `drafted` tokens.
    pub(super) fn gain(&self, drafted: usize, cost: f64) -> f64 {
        expected_tokens(self.rates[self.ngram_len - 1], drafted) / (1.0 + cost * drafted as f64)
    }

    /// Indexes every n-gram of `tokens` except the one at the end.
    fn index_ngrams(&mut self, tokens: &[u32]) {
        for end in self.num_indexed.max(1)..tokens.len() {
            for ngram_len in 1..=MAX_NGRAM {
                self.next_position.extend(ngram_key(&tokens[..end], ngram_len).map(|key| (key, end)));
            }
        }
        self.num_indexed = tokens.len();
    }

    /// Updates the acceptance rate with the last draft: its first `accepted` tokens were accepted.
    pub(super) fn record(&mut self, drafted: usize, accepted: usize) {
        let share = &mut self.rates[self.ngram_len - 1];
        for _ in 0..accepted {
            *share += RATE_WEIGHT * (1.0 - *share);
        }
        if accepted < drafted {
            *share -= RATE_WEIGHT * *share;
        }
    }
}

/// The n-gram of the last `ngram_len` tokens as a key; `None` if there are fewer tokens.
fn ngram_key(tokens: &[u32], ngram_len: usize) -> Option<[u32; MAX_NGRAM]> {
    let own = tokens.len().checked_sub(ngram_len).map(|start| &tokens[start..])?;
    let mut key = [PADDING; MAX_NGRAM];
    key[MAX_NGRAM - ngram_len..].copy_from_slice(own);
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_the_tokens_after_the_latest_earlier_match() {
        let mut drafter = Drafter::new();
        let tokens = [1, 2, 3, 4, 5, 6, 9, 1, 2, 3];
        assert_eq!(drafter.draft(&tokens, 3, 0.01), [4, 5, 6]);
        // The latest occurrence counts.
        let more: Vec<u32> = tokens.into_iter().chain([7, 1, 2, 3]).collect();
        assert_eq!(drafter.draft(&more, 2, 0.01), [7, 1]);
        assert_eq!(Drafter::new().draft(&[1, 2, 3, 4], 4, 0.01), [0; 0], "nothing stood before");
        // Matches of two tokens, and of one token.
        assert_eq!(Drafter::new().draft(&[1, 2, 3, 4, 9, 2, 3], 2, 0.01), [4, 9]);
        assert_eq!(Drafter::new().draft(&[1, 2, 3, 4, 9, 3], 2, 0.01), [4, 9]);
    }

    #[test]
    fn a_repeating_pattern_is_continued() {
        assert_eq!(Drafter::new().draft(&[1, 2, 1, 2, 1, 2], 5, 0.001), [1, 2, 1, 2, 1]);
        assert_eq!(Drafter::new().draft(&[7, 7, 7, 7], 3, 0.001), [7, 7, 7]);
    }

    /// Number of steps to generate `answer` after `prompt` if each draft token costs the share `cost` of a step.
    fn steps_to_generate(prompt: &[u32], answer: &[u32], cost: f64) -> usize {
        let (mut drafter, mut tokens, end) = (Drafter::new(), prompt.to_vec(), prompt.len() + answer.len());
        // The prompt's own step gives the first token.
        tokens.push(answer[0]);
        let mut steps = 1;
        while tokens.len() < end {
            let rest = &answer[tokens.len() - prompt.len()..];
            let draft = drafter.draft(&tokens, (MAX_DECODE_ROWS - 1).min(rest.len() - 1), cost);
            let accepted = draft.iter().zip(rest).take_while(|(drafted, token)| drafted == token).count();
            drafter.record(draft.len(), accepted);
            tokens.extend(&rest[..accepted + 1]);
            steps += 1;
        }
        steps
    }

    #[test]
    fn repeated_text_takes_fewer_steps() {
        let prompt: Vec<u32> = (100..220).collect();
        // Half of the answer can be looked up: it alternates 20 tokens of the prompt with 20 new ones.
        let new = |piece: u32| (0..20).map(move |index| 300 + 37 * index % 200 + piece * 7 % 11);
        let half: Vec<u32> = (0..6).flat_map(|piece| (100 + 20 * piece..120 + 20 * piece).chain(new(piece))).collect();
        let steps = steps_to_generate(&prompt, &half, 0.1);
        assert!(steps < half.len() * 7 / 10, "{steps} steps for {} tokens", half.len());
        let dear = steps_to_generate(&prompt, &half, 0.9);
        assert!(dear > half.len() * 9 / 10, "{dear} steps where a draft token costs nearly a whole one");
    }

    #[test]
    fn drafts_that_cost_more_than_they_save_are_not_made() {
        let mut drafter = Drafter::new();
        let tokens = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3];
        let drafted = |drafter: &mut Drafter| drafter.draft(&tokens, 5, 0.1).len();
        assert_eq!(drafted(&mut drafter), 3, "a half, a quarter, an eighth");
        for _ in 0..20 {
            drafter.record(5, 5);
        }
        assert_eq!(drafted(&mut drafter), 5);
        for _ in 0..40 {
            drafter.record(1, 0);
        }
        assert_eq!(drafted(&mut drafter), 0);
        // After a while it is tried again.
        assert!((0..200).any(|_| drafted(&mut drafter) > 0));
    }
}
