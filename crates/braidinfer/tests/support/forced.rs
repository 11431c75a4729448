//! A constraint that makes an answer say given tokens, and that may be late.

use std::time::Duration;

use braidinfer::engine::{Constraint, ConstraintFactory, TokenMask};

/// Allows one token after the other.
struct Forced {
    tokens: Vec<u32>,
    said: usize,
    /// Length of the draft that masks were asked for.
    draft: Vec<u32>,
    /// How often it is not ready, before each of its replies.
    lateness: usize,
    /// How often it was not ready before the next reply so far.
    waited: usize,
}

/// A constraint for answers that say `tokens`, and that is `lateness` times not ready before each reply.
pub fn forced(tokens: &[u32], lateness: usize) -> ConstraintFactory {
    let tokens = tokens.to_vec();
    ConstraintFactory::new(move || {
        Ok(Box::new(Forced { tokens: tokens.clone(), said: 0, draft: Vec::new(), lateness, waited: 0 }))
    })
}

fn only(token: u32) -> TokenMask {
    let mut words = vec![0; token as usize / 32 + 1];
    words[token as usize / 32] = 1 << (token % 32);
    TokenMask::from_bits(words)
}

impl Forced {
    fn is_late(&mut self) -> bool {
        self.waited += 1;
        let late = self.waited <= self.lateness;
        if !late {
            self.waited = 0;
        }
        late
    }
}

impl Constraint for Forced {
    fn ask_masks(&mut self, draft: &[u32]) {
        self.draft = draft.to_vec();
    }

    fn masks(&mut self, _patience: Duration) -> Option<braidinfer::Result<Vec<TokenMask>>> {
        if self.is_late() {
            return None;
        }
        let rest = &self.tokens[self.said..];
        let right = self.draft.iter().zip(rest).take_while(|(drafted, token)| drafted == token).count();
        Some(Ok(rest.iter().take(right + 1).copied().map(only).collect()))
    }

    fn take(&mut self, token: u32) {
        assert_eq!(token, self.tokens[self.said], "only one token is allowed");
        self.said += 1;
    }

    fn is_complete(&mut self, _patience: Duration) -> Option<braidinfer::Result<bool>> {
        if self.is_late() { None } else { Some(Ok(self.said == self.tokens.len())) }
    }
}
