//! RoPE whose frequencies depend on the current sequence length.
//!
//! When a sequence crosses a threshold (longrope) or grows beyond the original length (dynamic), all of its cached keys
//! were rotated by the wrong angles, and the inputs of all later layers were computed from them. The output must equal
//! that of a model without a KV cache, so the cached tokens are recomputed, from the token ids that are recorded for
//! each slot. With dynamic scaling that happens in every step beyond the threshold. Why nothing cheaper is enough:
//! `docs/length-dependent-rope.md`.

use braidinfer_model::DecoderSpec;
use braidinfer_model::rope::RopeRegime;
use braidinfer_model::spec::RopeSpec;

use super::{Batch, SequenceSlice};
use crate::{Error, Result};

/// Tokens recomputed per batch, which bounds the memory for attention scores of a long sequence.
const MAX_TOKENS: usize = 512;

/// For each KV cache slot, its token and the RoPE regimes that its keys were rotated with.
#[derive(Debug)]
pub(super) struct RopeHistory {
    tables: Vec<RopeSpec>,
    block_size: usize,
    slots: Vec<(u32, Vec<RopeRegime>)>,
}

impl RopeHistory {
    /// A history if the model's RoPE depends on the length, otherwise `None`.
    pub(super) fn new(spec: &DecoderSpec, block_size: usize) -> Option<Self> {
        let by_length = spec.rope.iter().any(RopeSpec::depends_on_length);
        by_length.then(|| Self { tables: spec.rope.clone(), block_size, slots: Vec::new() })
    }

    /// Batches to run before `batch` so that all keys its sequences read are rotated for their current length.
    pub(super) fn stale(&self, batch: &Batch) -> Result<Vec<Batch>> {
        let mut batches = Vec::new();
        for sequence in &batch.sequences {
            if !self.is_stale(sequence) {
                continue;
            }
            let tokens = self.stored_tokens(sequence)?;
            for (index, chunk) in tokens.chunks(MAX_TOKENS).enumerate() {
                let slice =
                    SequenceSlice { context_len: index * MAX_TOKENS, query_len: chunk.len(), ..sequence.clone() };
                let mut replayed = Batch::default();
                replayed.push(chunk, slice, 0);
                batches.push(replayed);
            }
        }
        Ok(batches)
    }

    /// Records the tokens that `batch` stored and how their keys were rotated.
    pub(super) fn remember(&mut self, batch: &Batch) {
        for (range, sequence) in batch.ranges() {
            let regimes = self.regimes(sequence.rope_len);
            for (position, token) in sequence.positions().zip(&batch.token_ids[range]) {
                let slot = sequence.slot(position, self.block_size);
                if slot >= self.slots.len() {
                    self.slots.resize(slot + 1, (0, Vec::new()));
                }
                self.slots[slot] = (*token, regimes.clone());
            }
        }
    }

    /// The RoPE regime of each rotary table at a length.
    fn regimes(&self, rope_len: usize) -> Vec<RopeRegime> {
        self.tables.iter().map(|table| table.regime(rope_len)).collect()
    }

    fn is_stale(&self, sequence: &SequenceSlice) -> bool {
        let regimes = self.regimes(sequence.rope_len);
        let stored = |position| self.slots.get(sequence.slot(position, self.block_size));
        (0..sequence.context_len).any(|position| stored(position).is_none_or(|(_, under)| *under != regimes))
    }

    fn stored_tokens(&self, sequence: &SequenceSlice) -> Result<Vec<u32>> {
        let token = |position| match self.slots.get(sequence.slot(position, self.block_size)) {
            Some((token, under)) if !under.is_empty() => Ok(*token),
            _ => {
                let found = format!("position {position}, which was never stored");
                Err(Error::bad_request("context_len", "positions that were stored before", found))
            }
        };
        (0..sequence.context_len).map(token).collect()
    }
}
