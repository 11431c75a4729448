//! Which blocks of the key/value storage are free.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Hands out block ids, lowest first, so that storage grows no further than it must.
#[derive(Debug)]
pub(super) struct BlockAllocator {
    free: BinaryHeap<Reverse<u32>>,
}

impl BlockAllocator {
    pub(super) fn new(num_blocks: usize) -> Self {
        Self { free: (0..num_blocks as u32).map(Reverse).collect() }
    }

    /// Extends `table` to `blocks` entries, or leaves it and returns false if too few are free.
    pub(super) fn grow(&mut self, table: &mut Vec<u32>, blocks: usize) -> bool {
        let missing = blocks.saturating_sub(table.len());
        if missing > self.free.len() {
            return false;
        }
        table.extend((0..missing).filter_map(|_| self.free.pop()).map(|Reverse(block)| block));
        true
    }

    /// Takes back every block of `table`.
    pub(super) fn release(&mut self, table: &mut Vec<u32>) {
        self.free.extend(table.drain(..).map(Reverse));
    }

    #[cfg(test)]
    pub(super) fn available(&self) -> usize {
        self.free.len()
    }
}
