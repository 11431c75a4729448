//! The tokens that a check reads: short passages of many kinds for models with a tokenizer, seeded random ids for
//! others.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use sha2::{Digest, Sha256};

use crate::Result;
use crate::text::Tokenizer;

/// Prose, code, tables, numbers, lists, several scripts, repetition. Written for this purpose, so that no model was
/// trained on it. A line of three hyphens separates passages. The first passages, which are read first, differ most
/// from each other.
const TEXT: &str = include_str!("passages.txt");

/// Seed of the ids for models without a tokenizer.
const SEED: u64 = 5;

/// Number of random passages, and their length.
const RANDOM: (usize, usize) = (48, 64);

/// Longest passage in tokens: long enough to exercise attention, short enough that many passages are read.
const MAX_PASSAGE_TOKENS: usize = 96;

/// Tokens of every passage that are read before the rest of any passage, so that a short check covers many kinds of
/// text.
pub(super) const BEGINNING: usize = 24;

/// Token ids to compare kernels on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Passages {
    /// Token ids; each passage is a sequence of its own.
    pub(super) ids: Vec<Vec<u32>>,
    /// Whether the tokens are text, so that their loss is meaningful.
    pub(super) text: bool,
}

/// All passages concatenated.
pub(crate) fn plain_text() -> String {
    TEXT.replace("\n---\n", "\n\n")
}

impl Passages {
    /// `turn` is a chat rendered by the model's chat template, if it has one.
    pub(super) fn new(tokenizer: Option<&Tokenizer>, turn: Option<&str>, vocab_size: usize) -> Result<Self> {
        let known = |ids: &Vec<u32>| !ids.is_empty() && ids.iter().all(|id| (*id as usize) < vocab_size);
        let Some(tokenizer) = tokenizer else { return Ok(Self::random(vocab_size)) };
        let mut passages = Vec::new();
        for (index, text) in TEXT.trim_end().split("\n---\n").enumerate() {
            passages.push(tokenizer.encode_prompt(text)?);
            // The chat comes second, after some plain text, so that even the shortest check reads it.
            if let (0, Some(turn)) = (index, turn) {
                passages.push(tokenizer.encode_chat(turn)?);
            }
        }
        passages.retain(known);
        passages.iter_mut().for_each(|ids| ids.truncate(MAX_PASSAGE_TOKENS));
        if passages.is_empty() {
            return Ok(Self::random(vocab_size));
        }
        Ok(Self { ids: passages, text: true })
    }

    fn random(vocab_size: usize) -> Self {
        let mut rng = Pcg64::seed_from_u64(SEED);
        let (passages, len) = RANDOM;
        let mut passage = |_| (0..len).map(|_| rng.random_range(0..vocab_size) as u32).collect();
        Self { ids: (0..passages).map(&mut passage).collect(), text: false }
    }

    /// All passages as one sequence of at most `most` tokens, without the first passage's first token, so that no token
    /// has the context that it has in its own passage.
    pub(super) fn joined(&self, most: usize) -> Vec<u32> {
        let first = self.ids.iter().flatten().take(1);
        first.chain(self.ids.iter().flatten().skip(BEGINNING)).copied().take(most).collect()
    }

    /// A hash of the tokens, which depend on tokenizer and template.
    pub(super) fn fingerprint(&self) -> [u8; 32] {
        Sha256::digest(format!("{:?}", self.ids)).into()
    }
}
