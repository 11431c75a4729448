//! Draft tokens by prompt lookup (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding): where the last tokens of a
//! sequence stood before, the tokens that followed there are drafted.
//!
//! Draft tokens are computed in one step with the newest token, which costs little more than that alone. Each is accepted
//! only if it is the token that is chosen there anyway, so that drafts change no answer, sampled or not; they only save
//! steps.

use std::collections::HashMap;

/// Length of the longest run of last tokens that is looked up; where it did not occur before, shorter ones are.
const ALIKE: usize = 3;
/// Acceptance rates before any is known, by the length of the run that was found.
const FIRST_RATES: [f64; ALIKE] = [0.2, 0.4, 0.5];
/// Stands for tokens that are not looked for.
const ANY: u32 = u32::MAX;

/// Rows that one step computes about as fast as one row; drafts take what answers leave of them.
pub(super) const ROWS: usize = 16;

/// How much each accepted or rejected draft token counts in a rate, and how fast a rate rises while nothing is drafted.
const NEWEST: f64 = 0.2;
const RECOVERY: f64 = 0.02;

/// Drafts for one sequence.
#[derive(Debug)]
pub(super) struct Drafter {
    /// Where up to [`ALIKE`] tokens stood last: the position after them.
    after: HashMap<[u32; ALIKE], usize>,
    /// Tokens that are in `after`.
    seen: usize,
    /// Recent acceptance rates, by the length of the run that was found.
    rates: [f64; ALIKE],
    /// Length of the run of the last draft.
    alike: usize,
}

impl Drafter {
    pub(super) fn new() -> Self {
        Self { after: HashMap::new(), seen: 0, rates: FIRST_RATES, alike: ALIKE }
    }

    /// At most `most` tokens that may follow `tokens`. `cost` is what reading one more token takes of the time of a step:
    /// a token is drafted as long as it is likelier to be accepted than that.
    pub(super) fn draft(&mut self, tokens: &[u32], most: usize, cost: f64) -> Vec<u32> {
        self.remember(tokens);
        let found = (1..=ALIKE).rev().find_map(|alike| Some((alike, *self.after.get(&last(tokens, alike)?)?)));
        let Some((alike, place)) = found.filter(|_| most > 0) else { return Vec::new() };
        self.alike = alike;
        let rate = &mut self.rates[alike - 1];
        let worth = (1..=most).take_while(|count| rate.powi(*count as i32) > cost).count();
        if worth == 0 {
            *rate = (*rate + RECOVERY * cost.min(0.5)).min(1.0);
        }
        // What repeats with a short period goes on with the draft itself.
        let mut drafted: Vec<u32> = Vec::with_capacity(worth);
        for position in place..place + worth {
            drafted.push(tokens.get(position).copied().unwrap_or_else(|| drafted[position - tokens.len()]));
        }
        drafted
    }

    /// Takes note of every place before the end of `tokens`.
    fn remember(&mut self, tokens: &[u32]) {
        for end in self.seen.max(1)..tokens.len() {
            for alike in 1..=ALIKE {
                self.after.extend(last(&tokens[..end], alike).map(|key| (key, end)));
            }
        }
        self.seen = tokens.len();
    }

    /// Learns how many of the last draft's tokens were accepted: all up to the first that was not.
    pub(super) fn record(&mut self, drafted: usize, accepted: usize) {
        let share = &mut self.rates[self.alike - 1];
        for _ in 0..accepted {
            *share += NEWEST * (1.0 - *share);
        }
        if accepted < drafted {
            *share -= NEWEST * *share;
        }
    }
}

/// The last tokens, so many of them; `None` if there are fewer.
fn last(tokens: &[u32], alike: usize) -> Option<[u32; ALIKE]> {
    let own = tokens.len().checked_sub(alike).map(|start| &tokens[start..])?;
    let mut key = [ANY; ALIKE];
    key[ALIKE - alike..].copy_from_slice(own);
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_before_is_drafted_again() {
        let mut drafter = Drafter::new();
        let tokens = [1, 2, 3, 4, 5, 6, 9, 1, 2, 3];
        assert_eq!(drafter.draft(&tokens, 3, 0.01), [4, 5, 6]);
        // The latest place counts.
        let more: Vec<u32> = tokens.into_iter().chain([7, 1, 2, 3]).collect();
        assert_eq!(drafter.draft(&more, 2, 0.01), [7, 1]);
        assert_eq!(Drafter::new().draft(&[1, 2, 3, 4], 4, 0.01), [0; 0], "nothing stood before");
        // Two tokens stood before, and then one.
        assert_eq!(Drafter::new().draft(&[1, 2, 3, 4, 9, 2, 3], 2, 0.01), [4, 9]);
        assert_eq!(Drafter::new().draft(&[1, 2, 3, 4, 9, 3], 2, 0.01), [4, 9]);
    }

    #[test]
    fn a_short_period_goes_on() {
        assert_eq!(Drafter::new().draft(&[1, 2, 1, 2, 1, 2], 5, 0.001), [1, 2, 1, 2, 1]);
        assert_eq!(Drafter::new().draft(&[7, 7, 7, 7], 3, 0.001), [7, 7, 7]);
    }

    /// Steps that `answer` takes after `prompt`, where each draft token costs `cost` of a step.
    fn steps_to_say(prompt: &[u32], answer: &[u32], cost: f64) -> usize {
        let (mut drafter, mut tokens, end) = (Drafter::new(), prompt.to_vec(), prompt.len() + answer.len());
        // The prompt's own step gives the first token.
        tokens.push(answer[0]);
        let mut steps = 1;
        while tokens.len() < end {
            let rest = &answer[tokens.len() - prompt.len()..];
            let draft = drafter.draft(&tokens, (ROWS - 1).min(rest.len() - 1), cost);
            let accepted = draft.iter().zip(rest).take_while(|(drafted, token)| drafted == token).count();
            drafter.record(draft.len(), accepted);
            tokens.extend(&rest[..accepted + 1]);
            steps += 1;
        }
        steps
    }

    #[test]
    fn what_repeats_comes_in_fewer_steps() {
        let prompt: Vec<u32> = (100..220).collect();
        // Half of it can be looked up: the prompt in pieces of 20 tokens, and as many new ones between them.
        let new = |piece: u32| (0..20).map(move |index| 300 + 37 * index % 200 + piece * 7 % 11);
        let half: Vec<u32> = (0..6).flat_map(|piece| (100 + 20 * piece..120 + 20 * piece).chain(new(piece))).collect();
        let steps = steps_to_say(&prompt, &half, 0.1);
        assert!(steps < half.len() * 7 / 10, "{steps} steps for {} tokens", half.len());
        let dear = steps_to_say(&prompt, &half, 0.9);
        assert!(dear > half.len() * 9 / 10, "{dear} steps where a draft token costs nearly a whole one");
    }

    #[test]
    fn drafts_that_do_not_pay_are_not_made() {
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
