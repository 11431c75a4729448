//! Forward passes that only compute logits, outside of any request.

use std::ops::Range;

use super::Engine;
use super::block_pool::{Block, BlockTable};
use crate::executor::{Batch, Logits, NoProbe, SequenceSlice};
use crate::{Error, Result};

/// Key/value blocks and a state slot for a sequence that belongs to no request; dropping it frees them.
#[derive(Debug)]
pub(crate) struct RawSequence {
    blocks: BlockTable,
    state: Option<Block>,
    len: usize,
    adapter: Option<u32>,
}

impl Engine {
    /// Reserves blocks for a sequence of `len` tokens, which is computed with an adapter, or with none.
    ///
    /// Fails if running requests leave too few free blocks.
    pub(crate) fn begin_raw(&self, len: usize, adapter: Option<u32>) -> Result<RawSequence> {
        let (needed, free) = (len.div_ceil(self.decoder.kv_cache().block_size), self.scheduler.free_blocks());
        let full = || {
            let expected = format!("{needed} free blocks of keys and values for {len} tokens");
            Error::bad_request("tokens", expected, format!("{free}, as requests are running"))
        };
        let (blocks, state) = self.scheduler.allocate(needed).ok_or_else(full)?;
        Ok(RawSequence { blocks, state, len, adapter })
    }

    /// Computes the tokens `ids[step]` and returns the logits of the last `wanted` of them. Earlier calls must have
    /// computed all tokens before `step`.
    pub(crate) fn read_raw(
        &mut self,
        sequence: &RawSequence,
        ids: &[u32],
        step: Range<usize>,
        wanted: usize,
    ) -> Result<Logits> {
        let slice = SequenceSlice {
            rope_len: sequence.len,
            adapter: sequence.adapter,
            state_slot: sequence.state.as_ref().map_or(0, Block::id),
            ..SequenceSlice::new(step.start, step.len(), sequence.blocks.ids())
        };
        let mut batch = Batch::default();
        batch.push(&ids[step], slice, wanted);
        Ok(self.decoder.forward(&batch, &mut NoProbe)?.logits)
    }
}
