//! Probabilities of tokens, as chats and as completions write them.

use braidinfer::engine::TokenLogprobs;
use braidinfer::text::{StreamDecoder, Tokenizer};
use serde::Serialize;
use serde_json::{Map, Number, Value};

/// A token of a chat.
#[derive(Debug, Serialize)]
pub struct ChatToken {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: Vec<Likely>,
}

#[derive(Debug, Serialize)]
struct Likely {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatToken {
    pub fn of(found: &TokenLogprobs, tokenizer: &Tokenizer) -> Self {
        let likely = |(id, logprob): &(u32, f32)| {
            let bytes = bytes_of(tokenizer, *id);
            Likely { token: text_of(&bytes), logprob: *logprob, bytes }
        };
        let Likely { token, logprob, bytes } = likely(&(found.token, found.logprob));
        Self { token, logprob, bytes, top_logprobs: found.top.iter().map(likely).collect() }
    }
}

/// The tokens of a completion, side by side.
#[derive(Debug, Default, Serialize)]
pub struct CompletionLogprobs {
    tokens: Vec<String>,
    /// `None` for the first token of a prompt, which follows nothing.
    token_logprobs: Vec<Option<f32>>,
    /// Of tokens with the same text the likelier one is listed.
    top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where each token begins in the text, in characters.
    text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// Adds the tokens of a prompt, of which the first has no probability; returns where its text ends.
    pub fn begin(&mut self, ids: &[u32], found: &[TokenLogprobs], tokenizer: &Tokenizer) -> braidinfer::Result<Offset> {
        // What stands in the text of a prompt depends on the tokens around: special ones are left out, and a first space
        // may be.
        let mut decoder = StreamDecoder::default();
        let mut characters = 0;
        let found = std::iter::once(None).chain(found.iter().map(Some));
        for (id, found) in ids.iter().zip(found) {
            self.add(*id, found, characters, tokenizer);
            characters += decoder.push(*id, tokenizer)?.chars().count();
        }
        characters += decoder.finish(tokenizer)?.chars().count();
        Ok(Offset { characters, begun: Vec::new() })
    }

    /// Adds a token of an answer; `offset` is where it begins, and afterwards where it ends.
    pub fn push(&mut self, found: &TokenLogprobs, tokenizer: &Tokenizer, offset: &mut Offset) {
        self.add(found.token, Some(found), offset.characters, tokenizer);
        // These are not part of a text.
        if !tokenizer.is_special(found.token) {
            offset.pass(&bytes_of(tokenizer, found.token));
        }
    }

    fn add(&mut self, id: u32, found: Option<&TokenLogprobs>, place: usize, tokenizer: &Tokenizer) {
        self.text_offset.push(place);
        self.tokens.push(text_of(&bytes_of(tokenizer, id)));
        self.token_logprobs.push(found.map(|found| found.logprob));
        self.top_logprobs.push(found.map(|found| top(found, tokenizer)));
    }
}

fn top(found: &TokenLogprobs, tokenizer: &Tokenizer) -> Map<String, Value> {
    let mut top = Map::new();
    for (id, logprob) in &found.top {
        // Logits are checked to be finite, and so are these.
        let number = Number::from_f64(f64::from(*logprob)).map_or(Value::Null, Value::Number);
        top.entry(text_of(&bytes_of(tokenizer, *id))).or_insert(number);
    }
    top
}

/// A place in a text of which tokens may hold parts of characters.
#[derive(Debug, Clone, Default)]
pub struct Offset {
    /// Whole characters before it.
    characters: usize,
    /// The beginning of the next one.
    begun: Vec<u8>,
}

impl Offset {
    fn pass(&mut self, bytes: &[u8]) {
        self.begun.extend_from_slice(bytes);
        while let Some(chunk) = self.begun.utf8_chunks().next() {
            let (valid, invalid) = (chunk.valid(), chunk.invalid());
            let passed = valid.len() + invalid.len();
            // What may still become a character waits for the rest of it.
            if passed == self.begun.len() && !invalid.is_empty() && may_go_on(invalid) {
                self.characters += valid.chars().count();
                self.begun.drain(..valid.len());
                return;
            }
            self.characters += valid.chars().count() + usize::from(!invalid.is_empty());
            self.begun.drain(..passed);
        }
    }
}

/// Whether bytes are the beginning of a character.
fn may_go_on(bytes: &[u8]) -> bool {
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
    fn parts_of_characters_have_the_place_of_the_whole() {
        let mut offset = Offset::default();
        let text = "aé日\u{1F600}b".as_bytes();
        let places: Vec<usize> = text
            .iter()
            .map(|byte| {
                let place = offset.characters;
                offset.pass(&[*byte]);
                place
            })
            .collect();
        assert_eq!((places, offset.characters), (vec![0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4], 5));
        // What is no character counts as what stands for it.
        offset.pass(b"\xFFx");
        assert_eq!(offset.characters, 7);
    }
}
