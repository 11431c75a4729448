//! The input of a forward pass.

use std::collections::HashSet;
use std::ops::Range;

use braidinfer_model::DecoderSpec;
use serde::{Deserialize, Serialize};

use super::KvCacheConfig;
use crate::{Error, Result};

/// Tokens of several sequences, flattened. Prefill, chunked prefill and decode steps all have this form.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Token ids `[T]`: the tokens of the first sequence, then those of the second, and so on.
    pub token_ids: Vec<u32>,
    /// One entry per sequence, in the order in which their tokens are in `token_ids`.
    pub sequences: Vec<SequenceSlice>,
    /// Indices into `token_ids` of the tokens whose logits to return.
    pub logits_rows: Vec<usize>,
    /// Indices into `token_ids` of the tokens of which only the likeliest next token is needed.
    #[serde(default)]
    pub argmax_rows: Vec<usize>,
    /// Indices into `token_ids` of the tokens whose hidden state after the final norm to return.
    pub hidden_rows: Vec<usize>,
}

/// The tokens of one sequence in a batch. Their positions and KV cache slots follow from these fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceSlice {
    /// Number of tokens of this sequence in the batch.
    pub query_len: usize,
    /// Number of tokens before them, whose keys and values are in the KV cache.
    pub context_len: usize,
    /// Sequence length from which length-dependent RoPE frequencies are computed: at least `context_len + query_len`.
    /// In chunked prefill it is the length of the whole prompt, so that every chunk is rotated as in one prefill.
    pub rope_len: usize,
    /// Block ids; position `p` is stored in block `block_table[p / block_size]`. Entries for positions that no layer reads
    /// any more ([`super::LayerState::window`]) mean nothing.
    pub block_table: Vec<u32>,
    /// Slot of the state that layers keep per sequence besides KV cache blocks
    /// ([`super::LayerState::bytes_per_sequence`]). Unused if no layer has such state.
    pub state_slot: u32,
    /// How many of the last tokens are draft tokens: the sequence may be continued from before them.
    pub draft_len: usize,
    /// Index of the adapter that the sequence is computed with, from its first token on, among those of the decoder.
    #[serde(default)]
    pub adapter: Option<u32>,
}

impl SequenceSlice {
    /// The next `query_len` tokens of a sequence with `context_len` cached tokens, without draft tokens. `rope_len` is
    /// the length after these tokens.
    pub fn new(context_len: usize, query_len: usize, block_table: Vec<u32>) -> Self {
        Self {
            query_len,
            context_len,
            rope_len: context_len + query_len,
            block_table,
            state_slot: 0,
            draft_len: 0,
            adapter: None,
        }
    }

    /// Positions of the tokens in the batch.
    pub fn positions(&self) -> Range<usize> {
        self.context_len..self.context_len + self.query_len
    }

    /// The ids of the parts of `tile` tokens that blocks of `block_size` consist of, for the first `len` positions.
    pub(super) fn tiles(&self, len: usize, block_size: usize, tile: usize) -> impl Iterator<Item = u32> + '_ {
        let per_block = block_size / tile;
        let id =
            move |index: usize| self.block_table[index / per_block] * per_block as u32 + (index % per_block) as u32;
        (0..len.div_ceil(tile)).map(id)
    }

    /// KV cache slot of `position`.
    pub fn slot(&self, position: usize, block_size: usize) -> usize {
        self.block_table[position / block_size] as usize * block_size + position % block_size
    }
}

impl Batch {
    /// Adds the next `token_ids` of a sequence and asks for the logits of the last `wanted` of them.
    pub fn push(&mut self, token_ids: &[u32], sequence: SequenceSlice, wanted: usize) {
        debug_assert_eq!(token_ids.len(), sequence.query_len);
        self.token_ids.extend_from_slice(token_ids);
        self.sequences.push(sequence);
        let end = self.token_ids.len();
        self.logits_rows.extend(end - wanted.min(token_ids.len())..end);
    }

    /// Number of blocks that storage must have for all that the sequences use: one more than the largest id.
    pub(super) fn blocks_needed(&self, block_size: usize) -> usize {
        let used = |sequence: &SequenceSlice| sequence.positions().end.div_ceil(block_size);
        let blocks = self.sequences.iter().flat_map(|sequence| &sequence.block_table[..used(sequence)]);
        blocks.max().map_or(0, |block| *block as usize + 1)
    }

    /// Each sequence with the range of its tokens in [`Batch::token_ids`].
    pub fn ranges(&self) -> impl Iterator<Item = (Range<usize>, &SequenceSlice)> {
        self.sequences.iter().scan(0, |start, sequence| {
            let range = *start..*start + sequence.query_len;
            *start = range.end;
            Some((range, sequence))
        })
    }

    /// Checks that this batch is consistent and fits the vocabulary and the KV cache.
    pub fn validate(&self, spec: &DecoderSpec, kv_cache: &KvCacheConfig) -> Result<()> {
        let vocab = spec.vocab_size;
        if let Some(id) = self.token_ids.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::bad_request("token_id", format!("below the vocabulary size {vocab}"), id));
        }
        let tokens = self.sequences.iter().map(|sequence| sequence.query_len).fold(0, usize::saturating_add);
        if tokens != self.token_ids.len() {
            return Err(Error::bad_request(
                "batch",
                format!("{tokens} token ids for its sequences"),
                self.token_ids.len(),
            ));
        }
        for (name, rows) in
            [("logits_row", &self.logits_rows), ("argmax_row", &self.argmax_rows), ("hidden_row", &self.hidden_rows)]
        {
            if let Some(row) = rows.iter().find(|row| **row >= tokens) {
                return Err(Error::bad_request(name, format!("an index below {tokens}"), row));
            }
        }
        self.sequences.iter().try_for_each(|sequence| sequence.validate(kv_cache))?;
        self.validate_slots(kv_cache.block_size)
    }

    /// The same with all sequences computed with an adapter, or with none.
    #[must_use]
    pub(crate) fn with_adapter(mut self, adapter: Option<u32>) -> Self {
        self.sequences.iter_mut().for_each(|sequence| sequence.adapter = adapter);
        self
    }

    /// Fails if a sequence is to be computed with none of `adapters` adapters.
    pub(super) fn validate_adapters(&self, adapters: usize) -> Result<()> {
        let mut named = self.sequences.iter().filter_map(|sequence| sequence.adapter);
        match named.find(|adapter| *adapter as usize >= adapters) {
            Some(adapter) => Err(Error::bad_request("adapter", format!("one of {adapters}, by index"), adapter)),
            None => Ok(()),
        }
    }

    /// Fails if two sequences have the same state slot. Only needed if layers keep state per sequence.
    pub fn validate_state_slots(&self) -> Result<()> {
        let mut seen = HashSet::with_capacity(self.sequences.len());
        match self.sequences.iter().find(|sequence| !seen.insert(sequence.state_slot)) {
            Some(sequence) => {
                Err(Error::bad_request("state_slot", "one that no other sequence has", sequence.state_slot))
            }
            None => Ok(()),
        }
    }

    /// Fails if two tokens would be written to the same KV cache slot.
    fn validate_slots(&self, block_size: usize) -> Result<()> {
        let mut written = HashSet::with_capacity(self.token_ids.len());
        for sequence in &self.sequences {
            for position in sequence.positions() {
                if !written.insert(sequence.slot(position, block_size)) {
                    return Err(Error::bad_request(
                        "block_table",
                        "blocks that no other sequence writes",
                        "a shared slot",
                    ));
                }
            }
        }
        Ok(())
    }
}

impl SequenceSlice {
    fn validate(&self, kv_cache: &KvCacheConfig) -> Result<()> {
        if self.query_len == 0 {
            return Err(Error::bad_request("sequence", "at least one token", "none"));
        }
        let capacity = kv_cache.capacity();
        let Some(len) = self.context_len.checked_add(self.query_len).filter(|len| *len <= capacity) else {
            return Err(Error::bad_request(
                "context_len",
                format!("at most {capacity} tokens in all"),
                self.context_len,
            ));
        };
        let needed = len.div_ceil(kv_cache.block_size);
        if self.draft_len >= self.query_len {
            let expected = format!("fewer than the {} tokens", self.query_len);
            return Err(Error::bad_request("draft_len", expected, self.draft_len));
        }
        if self.rope_len < len {
            return Err(Error::bad_request("rope_len", format!("at least the length {len}"), self.rope_len));
        }
        if self.block_table.len() < needed {
            let expected = format!("{needed} blocks for {len} tokens");
            return Err(Error::bad_request("block_table", expected, self.block_table.len()));
        }
        match self.block_table[..needed].iter().find(|block| **block as usize >= kv_cache.num_blocks) {
            Some(block) => Err(Error::bad_request("block_id", format!("below {}", kv_cache.num_blocks), block)),
            None => Ok(()),
        }
    }
}
