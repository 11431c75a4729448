//! Probabilities of tokens, as chats and as completions write them.

use braidinfer::engine::TokenLogprobs;
use braidinfer::text::Tokenizer;
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
    /// Adds the first token of a prompt.
    pub fn begin(&mut self, id: u32, tokenizer: &Tokenizer, offset: &mut usize) {
        self.add_token(id, tokenizer, offset);
        self.token_logprobs.push(None);
        self.top_logprobs.push(None);
    }

    /// Adds a token; `offset` is where it begins, and afterwards where it ends.
    pub fn push(&mut self, found: &TokenLogprobs, tokenizer: &Tokenizer, offset: &mut usize) {
        self.add_token(found.token, tokenizer, offset);
        self.token_logprobs.push(Some(found.logprob));
        let mut top = Map::new();
        for (id, logprob) in &found.top {
            // Logits are checked to be finite, and so are these.
            let number = Number::from_f64(f64::from(*logprob)).map_or(Value::Null, Value::Number);
            top.entry(text_of(&bytes_of(tokenizer, *id))).or_insert(number);
        }
        self.top_logprobs.push(Some(top));
    }

    fn add_token(&mut self, id: u32, tokenizer: &Tokenizer, offset: &mut usize) {
        let text = text_of(&bytes_of(tokenizer, id));
        self.text_offset.push(*offset);
        *offset += text.chars().count();
        self.tokens.push(text);
    }
}

fn bytes_of(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    tokenizer.token_bytes(id).unwrap_or_default()
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
