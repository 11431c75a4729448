//! RoPE that depends on the current length.
//!
//! When a sequence crosses a boundary (longrope) or grows past the original length (dynamic), every one
//! of its keys turns by other angles than it was stored with, and every later layer saw the difference.
//! The text must be that of a model run without a cache, so what is stored is computed again, from the
//! tokens that the slots remember. Under dynamic scaling that happens at every step past the boundary.
//! Why this and nothing less: `docs/length-dependent-rope.md`.

use braidinfer_model::DecoderSpec;
use braidinfer_model::rope::RopeRegime;
use braidinfer_model::spec::RopeSpec;

use super::{Batch, SequenceSlice};
use crate::{Error, Result};

/// Tokens run again at once; bounds the scores of a long sequence.
const MAX_TOKENS: usize = 512;

/// Which token each slot of the key/value storage holds, and how its key was rotated.
#[derive(Debug)]
pub(super) struct RopeHistory {
    tables: Vec<RopeSpec>,
    block_size: usize,
    slots: Vec<(u32, Vec<RopeRegime>)>,
}

impl RopeHistory {
    /// A history for a decoder whose RoPE depends on the length, `None` for any other.
    pub(super) fn new(spec: &DecoderSpec, block_size: usize) -> Option<Self> {
        let by_length = spec.rope.iter().any(RopeSpec::depends_on_length);
        by_length.then(|| Self { tables: spec.rope.clone(), block_size, slots: Vec::new() })
    }

    /// Batches to run before `batch`, so that every key its sequences read is rotated for their length.
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

    /// Notes which tokens `batch` stored and how their keys were rotated.
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

    /// The regime of every table of the spec at a length.
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
