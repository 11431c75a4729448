//! Text of a growing answer, a token at a time.

use super::Tokenizer;
use crate::Result;

/// Tokens that may wait for the rest of a character. None has so many bytes: what does not become text after these never
/// will, and an answer of nothing else must not be decoded from its beginning with each token.
const MOST_HELD: usize = 32;

/// Turns tokens into text pieces whose concatenation is the text of all tokens together.
///
/// A token may hold part of a character, and its text may depend on the token before it. So each piece is
/// the difference between decoding a short window of recent tokens without and with the new one, and
/// a piece that ends inside a character waits for the rest.
///
/// One exception: tokenizers of the `tokenizers` crate with byte fallback decode a run of bytes that is no text to
/// U+FFFD throughout, even its valid beginning. An answer that is cut inside a character keeps that beginning here.
#[derive(Debug, Clone, Default)]
pub struct StreamDecoder {
    ids: Vec<u32>,
    /// Start of the window.
    start: usize,
    /// Tokens whose text has been returned.
    shown: usize,
}

impl StreamDecoder {
    /// Continues after `context`, whose text is not returned.
    pub fn after(context: &[u32]) -> Self {
        // A few tokens are enough to settle how the first new one begins.
        const WINDOW: usize = 8;
        let ids = context[context.len().saturating_sub(WINDOW)..].to_vec();
        Self { start: 0, shown: ids.len(), ids }
    }

    /// Takes the next token and returns the text that is now certain.
    pub fn push(&mut self, id: u32, tokenizer: &Tokenizer) -> Result<String> {
        self.ids.push(id);
        let (before, after) = self.window(tokenizer)?;
        let is_long = self.ids.len() - self.shown >= MOST_HELD;
        if !is_long && (after.len() <= before.len() || after.ends_with(char::REPLACEMENT_CHARACTER)) {
            return Ok(String::new());
        }
        let piece = difference(&before, &after);
        // A window whose first token shows no text of its own could lose a space that belongs to the next one.
        if is_long || !tokenizer.decode(&self.ids[self.shown..], true)?.is_empty() {
            self.start = self.shown;
        }
        self.shown = self.ids.len();
        Ok(piece)
    }

    /// Ends the text: returns what was held back, broken characters replaced.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let (before, after) = self.window(tokenizer)?;
        self.shown = self.ids.len();
        Ok(difference(&before, &after))
    }

    /// Text of the window as shown, and with everything since.
    fn window(&self, tokenizer: &Tokenizer) -> Result<(String, String)> {
        let before = tokenizer.decode(&self.ids[self.start..self.shown], true)?;
        Ok((before, tokenizer.decode(&self.ids[self.start..], true)?))
    }
}

/// What `after` has beyond the beginning it shares with `before`, which is normally all of `before`.
fn difference(before: &str, after: &str) -> String {
    let common = before.chars().zip(after.chars()).take_while(|(a, b)| a == b);
    let common: usize = common.map(|(a, _)| a.len_utf8()).sum();
    after[common..].to_owned()
}
