//! Log-probabilities in the formats of chats and completions. They are written as JSON token by token, because a whole
//! answer's, with all their texts, would take much memory.

use braidinfer::engine::TokenLogprobs;
use braidinfer::text::{StreamDecoder, Tokenizer};
use serde::{Serialize, Serializer};

use crate::api::logprobs::{AnswerLogprobs, TokenChoice};

/// The log-probabilities of a whole chat answer.
#[derive(Serialize)]
pub struct ChatLogprobs<'a> {
    content: ChatTokens<'a>,
}

struct ChatTokens<'a>(&'a AnswerLogprobs, &'a Tokenizer);

impl<'a> ChatLogprobs<'a> {
    pub fn new(found: &'a AnswerLogprobs, tokenizer: &'a Tokenizer) -> Self {
        Self { content: ChatTokens(found, tokenizer) }
    }
}

impl Serialize for ChatTokens<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|found| ChatToken::of(found, self.1)))
    }
}

/// A token in the log-probabilities of a chat.
#[derive(Debug, Serialize)]
pub struct ChatToken {
    token: String,
    logprob: f64,
    bytes: Vec<u8>,
    top_logprobs: Vec<TopToken>,
}

#[derive(Debug, Serialize)]
struct TopToken {
    token: String,
    logprob: f64,
    bytes: Vec<u8>,
}

impl ChatToken {
    pub fn of(found: TokenChoice, tokenizer: &Tokenizer) -> Self {
        let top_token = |(id, logprob): &(u32, f32)| {
            let bytes = bytes_of(tokenizer, *id);
            TopToken { token: text_of(&bytes), logprob: f64::from(*logprob), bytes }
        };
        let TopToken { token, logprob, bytes } = top_token(&(found.token, found.logprob));
        Self { token, logprob, bytes, top_logprobs: found.top.iter().map(top_token).collect() }
    }
}

/// The log-probabilities of a completion, as parallel lists with one element per token.
#[derive(Default, Serialize)]
pub struct CompletionLogprobs<'a> {
    tokens: Vec<String>,
    /// `None` for the first token of a prompt, which has no preceding token.
    token_logprobs: Vec<Option<f64>>,
    top_logprobs: Vec<Option<TopByText<'a>>>,
    /// Offset of each token in the text, in characters.
    text_offset: Vec<usize>,
}

/// Log-probabilities by the text of the token; of several tokens with the same text, that of the likeliest.
struct TopByText<'a>(&'a [(u32, f32)], &'a Tokenizer);

impl Serialize for TopByText<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut top: Vec<(String, f64)> = Vec::with_capacity(self.0.len());
        for (id, logprob) in self.0 {
            let text = text_of(&bytes_of(self.1, *id));
            if top.iter().all(|(other, _)| *other != text) {
                top.push((text, f64::from(*logprob)));
            }
        }
        serializer.collect_map(top)
    }
}

impl<'a> CompletionLogprobs<'a> {
    /// Adds the tokens of a prompt, the first one without a log-probability. Returns the offset at the end of its text.
    pub fn begin(
        &mut self,
        ids: &[u32],
        found: &'a [TokenLogprobs],
        tokenizer: &'a Tokenizer,
    ) -> braidinfer::Result<TextOffset> {
        // The offsets in the text of a prompt depend on the decoder: it leaves out special tokens and may drop a leading space.
        let mut decoder = StreamDecoder::default();
        let mut characters = 0;
        let found = std::iter::once(None).chain(found.iter().map(|found| Some(found.into())));
        for (id, found) in ids.iter().zip(found) {
            self.add(*id, found, characters, tokenizer);
            characters += decoder.push(*id, tokenizer)?.chars().count();
        }
        characters += decoder.finish(tokenizer)?.chars().count();
        Ok(TextOffset { characters, incomplete: Vec::new() })
    }

    /// Adds a token of an answer and moves `offset` from its beginning to its end.
    pub fn push(&mut self, found: TokenChoice<'a>, tokenizer: &'a Tokenizer, offset: &mut TextOffset) {
        self.add(found.token, Some(found), offset.characters, tokenizer);
        // Special tokens are not part of the text.
        if !tokenizer.is_special(found.token) {
            offset.advance(&bytes_of(tokenizer, found.token));
        }
    }

    fn add(&mut self, id: u32, found: Option<TokenChoice<'a>>, at: usize, tokenizer: &'a Tokenizer) {
        self.text_offset.push(at);
        self.tokens.push(text_of(&bytes_of(tokenizer, id)));
        self.token_logprobs.push(found.map(|found| f64::from(found.logprob)));
        self.top_logprobs.push(found.map(|found| TopByText(found.top, tokenizer)));
    }
}

/// An offset in a text whose tokens may end within a UTF-8 character.
#[derive(Debug, Clone, Default)]
pub struct TextOffset {
    /// Number of complete characters before the offset.
    characters: usize,
    /// Bytes of the incomplete character after them.
    incomplete: Vec<u8>,
}

impl TextOffset {
    /// Moves the offset past `bytes`.
    fn advance(&mut self, bytes: &[u8]) {
        self.incomplete.extend_from_slice(bytes);
        while let Some(chunk) = self.incomplete.utf8_chunks().next() {
            let (valid, invalid) = (chunk.valid(), chunk.invalid());
            let passed = valid.len() + invalid.len();
            // Bytes that may be the beginning of a character wait for the rest of it.
            if passed == self.incomplete.len() && !invalid.is_empty() && is_incomplete(invalid) {
                self.characters += valid.chars().count();
                self.incomplete.drain(..valid.len());
                return;
            }
            self.characters += valid.chars().count() + usize::from(!invalid.is_empty());
            self.incomplete.drain(..passed);
        }
    }
}

/// Whether bytes are the beginning of a UTF-8 character.
fn is_incomplete(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

fn bytes_of(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    tokenizer.token_bytes(id).unwrap_or_default()
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_one_character_share_its_offset() {
        let mut offset = TextOffset::default();
        let text = "aé日\u{1F600}b".as_bytes();
        let places: Vec<usize> = text
            .iter()
            .map(|byte| {
                let at = offset.characters;
                offset.advance(&[*byte]);
                at
            })
            .collect();
        assert_eq!((places, offset.characters), (vec![0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4], 5));
        // An invalid byte counts as one replacement character.
        offset.advance(b"\xFFx");
        assert_eq!(offset.characters, 7);
    }
}
