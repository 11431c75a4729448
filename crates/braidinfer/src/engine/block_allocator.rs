//! Which blocks of the key/value storage are free.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Hands out block ids, lowest first, so that storage grows no further than it must.
#[derive(Debug)]
pub(super) struct BlockAllocator {
    num_blocks: usize,
    /// Blocks from here on were never handed out.
    fresh: usize,
    /// Blocks that were handed out and came back.
    returned: BinaryHeap<Reverse<u32>>,
}

impl BlockAllocator {
    pub(super) fn new(num_blocks: usize) -> Self {
        Self { num_blocks, fresh: 0, returned: BinaryHeap::new() }
    }

    /// Blocks that can be handed out.
    pub(super) fn available(&self) -> usize {
        self.num_blocks - self.fresh + self.returned.len()
    }

    /// Extends `table` to `blocks` entries, or leaves it and returns false if too few are free.
    pub(super) fn grow(&mut self, table: &mut Vec<u32>, blocks: usize) -> bool {
        let missing = blocks.saturating_sub(table.len());
        if missing > self.available() {
            return false;
        }
        table.extend((0..missing).map(|_| self.take()));
        true
    }

    /// The lowest free block; there must be one.
    fn take(&mut self) -> u32 {
        if let Some(Reverse(block)) = self.returned.pop() {
            return block;
        }
        self.fresh += 1;
        (self.fresh - 1) as u32
    }

    /// Takes back every block of `table`.
    pub(super) fn release(&mut self, table: &mut Vec<u32>) {
        self.returned.extend(table.drain(..).map(Reverse));
    }
}
