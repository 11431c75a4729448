//! Guessing the next tokens of an answer from what was said before (prompt lookup; Saxena 2023,
//! github.com/apoorvumang/prompt-lookup-decoding): where the last tokens stood before, the same ones may follow again.
//!
//! Guesses are read in one step with the newest token, which costs little more than that alone, and each is kept only if
//! it is the token that is chosen there anyway. So they change no answer, sampled or not; they only come sooner.

use std::collections::HashMap;

/// Tokens that must stand alike before those that are guessed.
const ALIKE: usize = 3;

/// Rows that one step reads about as fast as one row; guesses take what answers leave of them.
pub(super) const ROWS: usize = 16;

/// How much each guess that was right or wrong counts, and how fast hope comes back while none are made.
const NEWEST: f64 = 0.2;
const HOPE: f64 = 0.02;

/// Guesses for one sequence.
#[derive(Debug)]
pub(super) struct Drafter {
    /// Where tokens stood last: the position after them.
    after: HashMap<[u32; ALIKE], usize>,
    /// Tokens that are in `after`.
    seen: usize,
    /// Share of guesses that were right, of late.
    right: f64,
}

impl Drafter {
    pub(super) fn new() -> Self {
        Self { after: HashMap::new(), seen: 0, right: 0.5 }
    }

    /// At most `most` tokens that may follow `tokens`. `cost` is what reading one more token takes of the time of a step:
    /// a guess is made as long as it is likelier to be right than that.
    pub(super) fn draft(&mut self, tokens: &[u32], most: usize, cost: f64) -> Vec<u32> {
        let Some(last) = tokens.last_chunk::<ALIKE>() else { return Vec::new() };
        let place = self.find(tokens, last);
        let Some(place) = place.filter(|_| most > 0) else { return Vec::new() };
        let worth = (1..=most).take_while(|count| self.right.powi(*count as i32) > cost).count();
        if worth == 0 {
            self.right += HOPE * cost.min(0.5);
        }
        // What repeats with a short period goes on with the guesses themselves.
        let mut drafted: Vec<u32> = Vec::with_capacity(worth);
        for position in place..place + worth {
            drafted.push(tokens.get(position).copied().unwrap_or_else(|| drafted[position - tokens.len()]));
        }
        drafted
    }

    /// The position after the last place where `last` stood before the end; all places up to the end are remembered.
    fn find(&mut self, tokens: &[u32], last: &[u32; ALIKE]) -> Option<usize> {
        for end in self.seen.max(ALIKE)..tokens.len() {
            if let Some(alike) = tokens[..end].last_chunk::<ALIKE>() {
                self.after.insert(*alike, end);
            }
        }
        self.seen = tokens.len();
        self.after.get(last).copied()
    }

    /// Learns how many of the guesses were right: all up to the first that was not.
    pub(super) fn judge(&mut self, drafted: usize, right: usize) {
        for _ in 0..right {
            self.right += NEWEST * (1.0 - self.right);
        }
        if right < drafted {
            self.right -= NEWEST * self.right;
        }
    }
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
        assert_eq!(drafter.draft(&[5, 5], 4, 0.01), [0; 0]);
        assert_eq!(Drafter::new().draft(&[1, 2, 3, 4], 4, 0.01), [0; 0], "nothing stood before");
    }

    #[test]
    fn a_short_period_goes_on() {
        assert_eq!(Drafter::new().draft(&[1, 2, 1, 2, 1, 2], 5, 0.001), [1, 2, 1, 2, 1]);
        assert_eq!(Drafter::new().draft(&[7, 7, 7, 7], 3, 0.001), [7, 7, 7]);
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
