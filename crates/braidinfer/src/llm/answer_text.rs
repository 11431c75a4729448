//! Incremental detokenization of one answer, up to its stop text.

use super::{RequestId, Token};
use crate::Result;
use crate::conversation::{AnswerFormat, ReasoningSplitter, ShownTokens, SplitText};
use crate::engine::{FinishReason, SampledToken};
use crate::text::{StopMatcher, StreamDecoder, Tokenizer};

/// Decodes the tokens of one answer, tells its reasoning from its text, and searches the text for stop texts.
#[derive(Debug)]
pub(super) struct AnswerText {
    pub(super) request: RequestId,
    pub(super) choice: usize,
    decoder: StreamDecoder,
    special_tokens: ShownTokens,
    reasoning: Option<ReasoningSplitter>,
    stop: StopMatcher,
}

impl AnswerText {
    pub(super) fn new(
        request: RequestId,
        choice: usize,
        prompt: &[u32],
        stop: &[String],
        format: &AnswerFormat,
    ) -> Self {
        Self {
            request,
            choice,
            decoder: StreamDecoder::after(prompt),
            special_tokens: format.special_tokens.clone(),
            reasoning: format.reasoning.map(|found| ReasoningSplitter::new(found.format, found.start)),
            stop: StopMatcher::new(stop.to_vec()),
        }
    }

    /// Decodes a new token and adds the text that is now certain. With the last token, this includes all text held back.
    pub(super) fn push(&mut self, sampled: SampledToken, tokenizer: Option<&Tokenizer>) -> Result<Token> {
        let SampledToken { id, logprobs, mut finished, is_end, prompt } = sampled;
        let is_reasoning = self.reasoning.as_ref().is_some_and(ReasoningSplitter::is_in_reasoning);
        let mut text = SplitText::default();
        if let Some(tokenizer) = tokenizer {
            // An end token is not part of the text, even if the tokenizer does not treat it as a special token.
            if !is_end {
                let decoded = self.special_tokens.decode(&mut self.decoder, id, tokenizer)?;
                text = self.split(&decoded);
            }
            if finished.is_some() {
                text.append(self.flush(tokenizer)?);
            }
        }
        let stop = self.stop.found().map(str::to_owned);
        if stop.is_some() {
            finished = Some(FinishReason::Stop);
        }
        let SplitText { reasoning, answer: text } = text;
        Ok(Token { id, text, reasoning, is_reasoning, logprobs, finished, stop, prompt })
    }

    /// The text that is held back, for an answer that gets no more tokens.
    pub(super) fn flush(&mut self, tokenizer: &Tokenizer) -> Result<SplitText> {
        let rest = self.decoder.finish(tokenizer)?;
        let mut text = self.split(&rest);
        let rest = self.reasoning.as_mut().map(ReasoningSplitter::finish).unwrap_or_default();
        text.reasoning += &rest.reasoning;
        text.answer += &self.stop.push(&rest.answer);
        text.answer += &self.stop.finish();
        Ok(text)
    }

    /// Splits new text into reasoning and the answer, in which stop texts are searched.
    fn split(&mut self, text: &str) -> SplitText {
        let mut split = match &mut self.reasoning {
            Some(splitter) => splitter.push(text),
            None => SplitText { answer: text.to_owned(), ..SplitText::default() },
        };
        split.answer = self.stop.push(&split.answer);
        split
    }
}
