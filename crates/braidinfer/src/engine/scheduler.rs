//! Which tokens run in the next step.

use std::collections::VecDeque;

use super::block_allocator::BlockAllocator;
use super::sequence::Sequence;
use super::{EngineConfig, SequenceId};
use crate::executor::{Batch, KvCacheConfig, SequenceSlice};

/// First come, first served: running sequences in order of arrival, then waiting ones while there is room.
#[derive(Debug)]
pub(super) struct Scheduler {
    config: EngineConfig,
    block_size: usize,
    allocator: BlockAllocator,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
}

impl Scheduler {
    pub(super) fn new(kv_cache: KvCacheConfig, config: EngineConfig) -> Self {
        Self {
            config,
            block_size: kv_cache.block_size,
            allocator: BlockAllocator::new(kv_cache.num_blocks),
            waiting: VecDeque::new(),
            running: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    pub(super) fn sequence_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.running.iter_mut().chain(&mut self.waiting).find(|sequence| sequence.id == id)
    }

    pub(super) fn remove(&mut self, id: SequenceId) {
        self.waiting.retain(|sequence| sequence.id != id);
        if let Some(index) = self.running.iter().position(|sequence| sequence.id == id) {
            let mut sequence = self.running.remove(index);
            self.allocator.release(&mut sequence.block_table);
        }
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        for mut sequence in self.running.drain(..) {
            self.allocator.release(&mut sequence.block_table);
        }
    }

    /// The next batch, and the sequences whose next token its logits rows decide, in order.
    pub(super) fn schedule(&mut self) -> (Batch, Vec<SequenceId>) {
        self.admit();
        let mut batch = Batch::default();
        let mut sampled = Vec::new();
        let mut index = 0;
        while index < self.running.len() {
            let budget = self.config.max_batched_tokens - batch.token_ids.len();
            let chunk = self.running[index].pending().min(budget);
            if chunk == 0 {
                break;
            }
            if !self.reserve(index, chunk) {
                // Only sequences behind this one can be asked to give up blocks; it waits for those ahead.
                break;
            }
            let sequence = &mut self.running[index];
            push(&mut batch, sequence, chunk);
            if sequence.pending() == 0 {
                sampled.push(sequence.id);
            }
            index += 1;
        }
        (batch, sampled)
    }

    fn admit(&mut self) {
        while self.running.len() < self.config.max_sequences {
            let Some(sequence) = self.waiting.pop_front() else { break };
            self.running.push(sequence);
        }
    }

    /// Blocks for the next `chunk` tokens of a running sequence. If they run out, the latest arrivals give
    /// theirs up and will be computed again.
    fn reserve(&mut self, index: usize, chunk: usize) -> bool {
        loop {
            let sequence = &mut self.running[index];
            let blocks = (sequence.computed + chunk).div_ceil(self.block_size);
            if self.allocator.grow(&mut sequence.block_table, blocks) {
                return true;
            }
            if self.running.len() == index + 1 {
                return false;
            }
            let Some(mut latest) = self.running.pop() else { return false };
            self.allocator.release(&mut latest.block_table);
            latest.computed = 0;
            self.waiting.push_front(latest);
        }
    }
}

/// Adds the next `chunk` tokens of `sequence` to `batch` and counts them as computed.
fn push(batch: &mut Batch, sequence: &mut Sequence, chunk: usize) {
    let start = sequence.computed;
    let tokens = &sequence.tokens[start..start + chunk];
    let wanted = usize::from(start + chunk == sequence.tokens.len());
    let slice = SequenceSlice {
        query_len: chunk,
        context_len: start,
        rope_len: sequence.tokens.len(),
        block_table: sequence.block_table.clone(),
    };
    batch.push(tokens, slice, wanted);
    sequence.computed += chunk;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::SamplingParams;
    use crate::executor::KvDtype;

    fn scheduler(num_blocks: usize, max_batched_tokens: usize) -> Scheduler {
        let kv_cache = KvCacheConfig { block_size: 4, num_blocks, dtype: KvDtype::F32 };
        Scheduler::new(kv_cache, EngineConfig { context: 16, max_batched_tokens, max_sequences: 4 })
    }

    fn sequence(id: SequenceId, len: usize) -> Sequence {
        Sequence::new(id, vec![1; len], SamplingParams::default(), Vec::new())
    }

    fn query_lens(batch: &Batch) -> Vec<usize> {
        batch.sequences.iter().map(|sequence| sequence.query_len).collect()
    }

    #[test]
    fn long_prompts_are_fed_in_chunks_and_sampled_once() {
        let mut scheduler = scheduler(8, 6);
        scheduler.add(sequence(0, 10));
        let (batch, sampled) = scheduler.schedule();
        assert_eq!((query_lens(&batch), sampled), (vec![6], vec![]));
        assert_eq!(batch.sequences[0].rope_len, 10);
        let (batch, sampled) = scheduler.schedule();
        assert_eq!((query_lens(&batch), sampled), (vec![4], vec![0]));
        assert_eq!(batch.logits_rows, [3]);
    }

    #[test]
    fn out_of_blocks_the_latest_waits_and_is_recomputed() {
        let mut scheduler = scheduler(3, 64);
        scheduler.add(sequence(0, 8));
        scheduler.add(sequence(1, 4));
        let (batch, sampled) = scheduler.schedule();
        assert_eq!((query_lens(&batch), sampled), (vec![8, 4], vec![0, 1]));
        for id in [0, 1] {
            scheduler.sequence_mut(id).expect("is running").append(5, 16);
        }
        let (batch, sampled) = scheduler.schedule();
        assert_eq!((query_lens(&batch), sampled), (vec![1], vec![0]));
        assert_eq!(scheduler.sequence_mut(1).expect("waits").computed, 0);
        scheduler.remove(0);
        let (batch, sampled) = scheduler.schedule();
        assert_eq!((query_lens(&batch), sampled), (vec![5], vec![1]));
        scheduler.remove(1);
        assert_eq!(scheduler.allocator.available(), 3);
    }
}
