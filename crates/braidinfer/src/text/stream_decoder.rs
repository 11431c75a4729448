//! Incremental detokenization of an output.

use super::Tokenizer;
use crate::Result;

/// Limit of tokens that are held back until a character is complete. No character has this many bytes, so what is no
/// text after that many tokens will never be. The limit prevents decoding a long output of such tokens from its
/// beginning at every token.
const MAX_HELD_TOKENS: usize = 32;

/// Turns tokens into pieces of text whose concatenation is the text of all tokens.
///
/// A token may be part of a character, and its text may depend on the token before it. So each piece is the difference
/// between decoding a short window of recent tokens without and with the new one, and a piece that ends inside a
/// character is held back.
///
/// One exception: tokenizers of the `tokenizers` crate with byte fallback decode a run of bytes that is not valid UTF-8
/// to U+FFFD throughout, even its valid beginning. For an output that ends inside a character, this decoder keeps that
/// beginning.
#[derive(Debug, Clone, Default)]
pub struct StreamDecoder {
    ids: Vec<u32>,
    /// Start of the window.
    start: usize,
    /// Tokens whose text has been returned.
    shown: usize,
}

impl StreamDecoder {
    /// A decoder that continues after `context`, whose text is not returned.
    pub fn after(context: &[u32]) -> Self {
        // A few tokens are enough context for the beginning of the first new one.
        const WINDOW: usize = 8;
        let ids = context[context.len().saturating_sub(WINDOW)..].to_vec();
        Self { start: 0, shown: ids.len(), ids }
    }

    /// Takes the next token, and returns the text that can no longer change.
    pub fn push(&mut self, id: u32, tokenizer: &Tokenizer) -> Result<String> {
        self.ids.push(id);
        let (before, after) = self.window(tokenizer)?;
        let is_long = self.ids.len() - self.shown >= MAX_HELD_TOKENS;
        if !is_long && (after.len() <= before.len() || after.ends_with(char::REPLACEMENT_CHARACTER)) {
            return Ok(String::new());
        }
        let piece = difference(&before, &after);
        // If the first token of a window had no text of its own, the space that begins the next token could be lost.
        if is_long || !tokenizer.decode(&self.ids[self.shown..], true)?.is_empty() {
            self.start = self.shown;
        }
        self.shown = self.ids.len();
        Ok(piece)
    }

    /// Ends the text: returns what was held back, with incomplete characters replaced.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let (before, after) = self.window(tokenizer)?;
        self.shown = self.ids.len();
        Ok(difference(&before, &after))
    }

    /// Text of the window: as already returned, and including newer tokens.
    fn window(&self, tokenizer: &Tokenizer) -> Result<(String, String)> {
        let before = tokenizer.decode(&self.ids[self.start..self.shown], true)?;
        Ok((before, tokenizer.decode(&self.ids[self.start..], true)?))
    }
}

/// The part of `after` beyond the common prefix with `before`, which is normally all of `before`.
fn difference(before: &str, after: &str) -> String {
    let common = before.chars().zip(after.chars()).take_while(|(a, b)| a == b);
    let common: usize = common.map(|(a, _)| a.len_utf8()).sum();
    after[common..].to_owned()
}
