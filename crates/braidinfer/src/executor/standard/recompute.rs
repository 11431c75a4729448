//! RoPE that depends on the current length.
//!
//! When a sequence crosses a boundary (longrope) or grows past the original length (dynamic), every one
//! of its keys turns by other angles than it was stored with, and every later layer saw the difference.
//! The text must be that of a model run without a cache, so what is stored is computed again, from the
//! tokens that the slots remember. Under dynamic scaling that happens at every step past the boundary.
//! Why this and nothing less: `docs/length-dependent-rope.md`.

use super::kv_cache::{History, KvCache};
use crate::executor::{Batch, SequenceSlice};
use crate::{Error, Result};

/// Tokens run again at once; bounds the scores of a long sequence.
const MAX_TOKENS: usize = 512;

/// Batches to run before `batch`, so that every key its sequences read is rotated for their length.
pub(super) fn pieces(batch: &Batch, kv_cache: &KvCache) -> Result<Vec<Batch>> {
    let Some(history) = kv_cache.history() else { return Ok(Vec::new()) };
    let block_size = kv_cache.config().block_size;
    let mut pieces = Vec::new();
    for sequence in &batch.sequences {
        if !is_stale(sequence, history, block_size) {
            continue;
        }
        let tokens = stored_tokens(sequence, history, block_size)?;
        for (index, chunk) in tokens.chunks(MAX_TOKENS).enumerate() {
            let slice = SequenceSlice { context_len: index * MAX_TOKENS, query_len: chunk.len(), ..sequence.clone() };
            let mut piece = Batch::default();
            piece.push(chunk, slice, 0);
            pieces.push(piece);
        }
    }
    Ok(pieces)
}

fn is_stale(sequence: &SequenceSlice, history: &History, block_size: usize) -> bool {
    let regimes = history.regimes(sequence.rope_len);
    let stored = |position| history.slot(sequence.slot(position, block_size));
    (0..sequence.context_len).any(|position| stored(position).is_none_or(|(_, under)| *under != regimes))
}

fn stored_tokens(sequence: &SequenceSlice, history: &History, block_size: usize) -> Result<Vec<u32>> {
    let token = |position| match history.slot(sequence.slot(position, block_size)) {
        Some((token, under)) if !under.is_empty() => Ok(*token),
        _ => {
            let found = format!("position {position}, which was never stored");
            Err(Error::bad_request("context_len", "positions that were stored before", found))
        }
    };
    (0..sequence.context_len).map(token).collect()
}
