//! Log-probabilities of an answer.

use braidinfer::engine::TokenLogprobs;

/// The log-probabilities of an answer so far, without an allocation for each token.
#[derive(Debug, Default)]
pub struct AnswerLogprobs {
    /// Each token with its log-probability and the number of its alternatives.
    tokens: Vec<(u32, f32, usize)>,
    /// The alternatives of all tokens.
    top: Vec<(u32, f32)>,
}

impl AnswerLogprobs {
    pub fn push(&mut self, found: &TokenLogprobs) {
        self.tokens.push((found.token, found.logprob, found.top.len()));
        self.top.extend_from_slice(&found.top);
    }

    /// The tokens in order.
    pub fn iter(&self) -> impl Iterator<Item = TokenChoice<'_>> {
        let mut rest = self.top.as_slice();
        self.tokens.iter().map(move |&(token, logprob, count)| {
            let (top, after) = rest.split_at(count);
            rest = after;
            TokenChoice { token, logprob, top }
        })
    }
}

/// A token with its log-probability and the likeliest alternatives.
#[derive(Debug, Clone, Copy)]
pub struct TokenChoice<'a> {
    pub token: u32,
    pub logprob: f32,
    pub top: &'a [(u32, f32)],
}

impl<'a> From<&'a TokenLogprobs> for TokenChoice<'a> {
    fn from(found: &'a TokenLogprobs) -> Self {
        Self { token: found.token, logprob: found.logprob, top: &found.top }
    }
}
