//! RoPE that depends on the current length.
//!
//! When a sequence crosses a boundary (longrope) or grows past the original length (dynamic), every one
//! of its keys turns by other angles than it was stored with, and every later layer saw the difference.
//! The text must be that of a model run without a cache, so the whole sequence is run again, from the
//! tokens that its slots remember. Under dynamic scaling that happens at every step past the boundary.
//! Why this and nothing less: `docs/length-dependent-rope.md`.

use super::kv_cache::{History, KvCache};
use super::unsupported;
use crate::Result;
use crate::executor::{Batch, SequenceSlice};

/// `batch` with every stale sequence run from its start, or `None` if none is stale.
pub(super) fn expand(batch: &Batch, kv_cache: &KvCache) -> Result<Option<Batch>> {
    let Some(history) = kv_cache.history() else { return Ok(None) };
    let block_size = kv_cache.config().block_size;
    if !batch.sequences.iter().any(|sequence| is_stale(sequence, history, block_size)) {
        return Ok(None);
    }
    let mut expanded = Batch::default();
    let mut row_of = Vec::with_capacity(batch.token_ids.len());
    for (range, sequence) in batch.ranges() {
        let mut tokens = Vec::new();
        let mut whole = sequence.clone();
        if is_stale(sequence, history, block_size) {
            tokens = stored_tokens(sequence, history, block_size)?;
            whole = SequenceSlice { context_len: 0, query_len: sequence.positions().end, ..whole };
        }
        let first_new = expanded.token_ids.len() + tokens.len();
        tokens.extend_from_slice(&batch.token_ids[range.clone()]);
        expanded.push(&tokens, whole, 0);
        row_of.extend(first_new..first_new + range.len());
    }
    expanded.logits_rows = batch.logits_rows.iter().map(|row| row_of[*row]).collect();
    Ok(Some(expanded))
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
            Err(unsupported(format!("position {position} of a sequence was never stored, so it cannot be recomputed")))
        }
    };
    (0..sequence.context_len).map(token).collect()
}
