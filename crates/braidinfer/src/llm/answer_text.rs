//! Incremental detokenization of one answer, up to its stop text.

use super::{RequestId, Token};
use crate::Result;
use crate::engine::{FinishReason, SampledToken};
use crate::text::{StopMatcher, StreamDecoder, Tokenizer};

/// Decodes the tokens of one answer and searches its text for stop texts.
#[derive(Debug)]
pub(super) struct AnswerText {
    pub(super) request: RequestId,
    pub(super) choice: usize,
    decoder: StreamDecoder,
    stop: StopMatcher,
}

impl AnswerText {
    pub(super) fn new(request: RequestId, choice: usize, prompt: &[u32], stop: &[String]) -> Self {
        Self { request, choice, decoder: StreamDecoder::after(prompt), stop: StopMatcher::new(stop.to_vec()) }
    }

    /// Decodes a new token and adds the text that is now certain. With the last token, this includes all text held back.
    pub(super) fn push(&mut self, sampled: SampledToken, tokenizer: Option<&Tokenizer>) -> Result<Token> {
        let SampledToken { id, logprobs, mut finished, is_end, prompt } = sampled;
        let mut text = String::new();
        if let Some(tokenizer) = tokenizer {
            // An end token is not part of the text, even if the tokenizer does not treat it as a special token.
            if !is_end {
                let decoded = self.decoder.push(id, tokenizer)?;
                text = self.stop.push(&decoded);
            }
            if finished.is_some() {
                text += &self.flush(tokenizer)?;
            }
        }
        if self.stop.stopped() {
            finished = Some(FinishReason::Stop);
        }
        Ok(Token { id, text, logprobs, finished, prompt })
    }

    /// The text that is held back, for an answer that gets no more tokens.
    pub(super) fn flush(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let rest = self.decoder.finish(tokenizer)?;
        let mut shown = self.stop.push(&rest);
        shown += &self.stop.finish();
        Ok(shown)
    }
}
