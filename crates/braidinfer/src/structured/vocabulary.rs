//! The vocabulary as the grammar library needs it: the bytes of every token.

use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::llm::ModelText;

/// Limit for untrusted expressions: each lexer state takes one to two kilobytes.
const MAX_LEXER_STATES: usize = 50_000;

/// The bytes of every token of a vocabulary, and its end tokens.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Vocabulary {
    /// The bytes of all tokens, one after the other.
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
    /// Length of each token in bytes.
    lengths: Vec<u32>,
    ends: Vec<u32>,
}

impl Vocabulary {
    /// The vocabulary of a model with `vocab_size` logits. Fails without a tokenizer.
    pub(super) fn new(text: &ModelText, vocab_size: usize) -> Result<Self> {
        let tokenizer = text.require_tokenizer()?;
        let ends: Vec<u32> =
            text.generation().eos_token_id.iter().copied().filter(|id| (*id as usize) < vocab_size).collect();
        let (mut bytes, mut lengths) = (Vec::new(), Vec::with_capacity(vocab_size));
        for id in 0..vocab_size as u32 {
            let before = bytes.len();
            // The spelling of a special token is not output text.
            if tokenizer.is_special(id) || ends.contains(&id) {
                bytes.push(TokTrie::SPECIAL_TOKEN_MARKER);
            }
            bytes.extend(tokenizer.token_bytes(id).unwrap_or_default());
            lengths.push((bytes.len() - before) as u32);
        }
        Ok(Self { bytes, lengths, ends })
    }

    /// What makes parsers for grammars over this vocabulary. Takes up to a second for a large one.
    ///
    /// Fails with a message if the vocabulary cannot be used.
    pub(super) fn parsers(&self) -> Result<ParserFactory, String> {
        let mut rest = self.bytes.as_slice();
        let mut words = Vec::with_capacity(self.lengths.len());
        for len in &self.lengths {
            let (word, after) = rest.split_at_checked(*len as usize).ok_or("the vocabulary is cut short")?;
            words.push(word.to_vec());
            rest = after;
        }
        // Without an end token, an output ends when the grammar allows no further token.
        let end = self.ends.first().copied().unwrap_or(u32::MAX);
        let mut trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, end), &words);
        if !self.ends.is_empty() {
            trie = trie.with_eos_tokens(&self.ends);
        }
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let failed = |error| format!("the vocabulary cannot be used for structured answers: {error}");
        let mut parsers = ParserFactory::new_simple(&environment).map_err(failed)?;
        parsers.quiet();
        let limits = parsers.limits_mut();
        limits.max_lexer_states = MAX_LEXER_STATES;
        // Errors go to the client, who knows the form.
        limits.verbose_errors = false;
        Ok(parsers)
    }
}
