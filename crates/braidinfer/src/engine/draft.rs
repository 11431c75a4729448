//! Guessing the next tokens of an answer from what was said before (prompt lookup; Saxena 2023,
//! github.com/apoorvumang/prompt-lookup-decoding): where the last tokens stood before, the same ones may follow again.
//!
//! Guesses are read in one step with the newest token, which costs little more than that alone, and each is kept only if
//! it is the token that is chosen there anyway. So they change no answer, sampled or not; they only come sooner.

use std::collections::HashMap;

/// Most tokens that are looked for before those that are guessed; where so many did not stand together, fewer are.
const ALIKE: usize = 3;
/// Hope to be right, by how many tokens stood alike, before anything is known.
const FIRST_HOPE: [f64; ALIKE] = [0.2, 0.4, 0.5];
/// Stands for tokens that are not looked for.
const ANY: u32 = u32::MAX;

/// Rows that one step reads about as fast as one row; guesses take what answers leave of them.
pub(super) const ROWS: usize = 16;

/// How much each guess that was right or wrong counts, and how fast hope comes back while none are made.
const NEWEST: f64 = 0.2;
const RECOVERY: f64 = 0.02;

/// Guesses for one sequence.
#[derive(Debug)]
pub(super) struct Drafter {
    /// Where up to [`ALIKE`] tokens stood last: the position after them.
    after: HashMap<[u32; ALIKE], usize>,
    /// Tokens that are in `after`.
    seen: usize,
    /// Share of guesses that were right, of late, by how many tokens stood alike.
    right: [f64; ALIKE],
    /// How many stood alike where the last guesses were made.
    alike: usize,
}

impl Drafter {
    pub(super) fn new() -> Self {
        Self { after: HashMap::new(), seen: 0, right: FIRST_HOPE, alike: ALIKE }
    }

    /// At most `most` tokens that may follow `tokens`. `cost` is what reading one more token takes of the time of a step:
    /// a guess is made as long as it is likelier to be right than that.
    pub(super) fn draft(&mut self, tokens: &[u32], most: usize, cost: f64) -> Vec<u32> {
        self.remember(tokens);
        let found = (1..=ALIKE).rev().find_map(|alike| Some((alike, *self.after.get(&last(tokens, alike)?)?)));
        let Some((alike, place)) = found.filter(|_| most > 0) else { return Vec::new() };
        self.alike = alike;
        let right = &mut self.right[alike - 1];
        let worth = (1..=most).take_while(|count| right.powi(*count as i32) > cost).count();
        if worth == 0 {
            *right = (*right + RECOVERY * cost.min(0.5)).min(1.0);
        }
        // What repeats with a short period goes on with the guesses themselves.
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

    /// Learns how many of the guesses were right: all up to the first that was not.
    pub(super) fn judge(&mut self, drafted: usize, right: usize) {
        let share = &mut self.right[self.alike - 1];
        for _ in 0..right {
            *share += NEWEST * (1.0 - *share);
        }
        if right < drafted {
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
    fn what_stood_before_is_guessed_again() {
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

    /// Steps that `answer` takes after `prompt`, where each guess costs `cost` of a step.
    fn steps_to_say(prompt: &[u32], answer: &[u32], cost: f64) -> usize {
        let (mut drafter, mut tokens, end) = (Drafter::new(), prompt.to_vec(), prompt.len() + answer.len());
        // The prompt's own step gives the first token.
        tokens.push(answer[0]);
        let mut steps = 1;
        while tokens.len() < end {
            let rest = &answer[tokens.len() - prompt.len()..];
            let draft = drafter.draft(&tokens, (ROWS - 1).min(rest.len() - 1), cost);
            let right = draft.iter().zip(rest).take_while(|(guess, token)| guess == token).count();
            drafter.judge(draft.len(), right);
            tokens.extend(&rest[..right + 1]);
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
        assert!(dear > half.len() * 9 / 10, "{dear} steps where a guess costs nearly a whole one");
    }

    #[test]
    fn guesses_that_do_not_pay_are_not_made() {
        let mut drafter = Drafter::new();
        let tokens = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3];
        let guess = |drafter: &mut Drafter| drafter.draft(&tokens, 5, 0.1).len();
        assert_eq!(guess(&mut drafter), 3, "a half, a quarter, an eighth");
        for _ in 0..20 {
            drafter.judge(5, 5);
        }
        assert_eq!(guess(&mut drafter), 5);
        for _ in 0..40 {
            drafter.judge(1, 0);
        }
        assert_eq!(guess(&mut drafter), 0);
        // After a while it is tried again.
        assert!((0..200).any(|_| guess(&mut drafter) > 0));
    }
}
