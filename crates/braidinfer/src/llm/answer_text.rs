//! An answer in the making: from tokens to the text that may be shown.

use super::{RequestId, Token};
use crate::Result;
use crate::engine::{FinishReason, SampledToken};
use crate::text::{StopMatcher, StreamDecoder, Tokenizer};

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

    /// Takes a token and adds the text to show. With the last token comes all that was held back.
    pub(super) fn push(&mut self, sampled: SampledToken, tokenizer: Option<&Tokenizer>) -> Result<Token> {
        let SampledToken { id, logprobs, mut finished, is_end, prompt } = sampled;
        let mut text = String::new();
        if let Some(tokenizer) = tokenizer {
            // The token that ends a text is not part of it, even where the tokenizer calls it an ordinary one.
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

    /// What was held back, when no more tokens come.
    pub(super) fn flush(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let rest = self.decoder.finish(tokenizer)?;
        let mut shown = self.stop.push(&rest);
        shown += &self.stop.finish();
        Ok(shown)
    }
}
