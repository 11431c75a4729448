//! What a check reads: short passages of many kinds for models with a tokenizer, seeded token ids for others.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use sha2::{Digest, Sha256};

use crate::Result;
use crate::text::Tokenizer;

/// Prose, code, tables, numbers, lists, several scripts, repetition. Written for this purpose, so that no model was trained
/// on it; a line of three hyphens ends a passage. The first ones are read first, so that they differ most.
const TEXT: &str = include_str!("passages.txt");

/// Seed of the ids for models without a tokenizer.
const SEED: u64 = 5;

/// Passages of random ids, and how long each one is.
const RANDOM: (usize, usize) = (48, 64);

/// Most tokens of a passage: enough for what attention does, few enough that many passages are read.
const LONGEST: usize = 96;

/// Tokens of a passage that are read before any passage is read on, so that little text is of many kinds.
pub(super) const BEGINNING: usize = 24;

/// Token ids to compare kernels on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Passages {
    /// Each a sequence of its own.
    pub(super) ids: Vec<Vec<u32>>,
    /// Whether they are text, so that a loss says something.
    pub(super) text: bool,
}

/// All passages as one text.
pub(crate) fn plain_text() -> String {
    TEXT.replace("\n---\n", "\n\n")
}

impl Passages {
    /// `turn` is a chat that the model's template has written, if it has one.
    pub(super) fn new(tokenizer: Option<&Tokenizer>, turn: Option<&str>, vocab_size: usize) -> Result<Self> {
        let known = |ids: &Vec<u32>| !ids.is_empty() && ids.iter().all(|id| (*id as usize) < vocab_size);
        let Some(tokenizer) = tokenizer else { return Ok(Self::random(vocab_size)) };
        let mut passages = Vec::new();
        for (index, text) in TEXT.trim_end().split("\n---\n").enumerate() {
            passages.push(tokenizer.encode_prompt(text)?);
            // After some plain text, and within what even the shortest check reads.
            if let (0, Some(turn)) = (index, turn) {
                passages.push(tokenizer.encode_chat(turn)?);
            }
        }
        passages.retain(known);
        passages.iter_mut().for_each(|ids| ids.truncate(LONGEST));
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

    /// All of them in one sequence of at most `most` tokens, without the beginning of the first: no token has the context that
    /// it has in its own passage.
    pub(super) fn joined(&self, most: usize) -> Vec<u32> {
        let first = self.ids.iter().flatten().take(1);
        first.chain(self.ids.iter().flatten().skip(BEGINNING)).copied().take(most).collect()
    }

    /// A fingerprint: another tokenizer or template makes other passages.
    pub(super) fn fingerprint(&self) -> [u8; 32] {
        Sha256::digest(format!("{:?}", self.ids)).into()
    }
}
