//! Blocks of the key/value storage: who owns them, and which of those that nobody owns still hold something of use.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use sha2::{Digest, Sha256};

/// Names what a full block holds: its tokens and all before them. SHA-256, so that nobody can make one prompt pass for
/// another.
pub(super) type BlockHash = [u8; 32];

/// The hash of a full block, from that of the block before it.
pub(super) fn block_hash(before: Option<&BlockHash>, tokens: &[u32]) -> BlockHash {
    let mut hash = Sha256::new();
    hash.update(before.unwrap_or(&[0; 32]));
    tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
    hash.finalize().into()
}

/// Hands out blocks. A block that nobody owns any more is free; if its contents were registered they can be found, until
/// the block is needed for something else, the longest unused first.
#[derive(Debug, Clone)]
pub(super) struct BlockPool(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    num_blocks: usize,
    /// Blocks that were handed out, by id; those from here on never were, so that storage grows no further than it must.
    blocks: Vec<Contents>,
    /// Blocks without owner and contents, lowest first.
    empty: BinaryHeap<Reverse<u32>>,
    /// Blocks without owner that hold something.
    idle: LruCache<u32, ()>,
    by_hash: HashMap<BlockHash, u32>,
}

#[derive(Debug, Default)]
struct Contents {
    owners: usize,
    hash: Option<BlockHash>,
}

/// An owned block; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Block {
    id: u32,
    pool: BlockPool,
}

impl Block {
    pub(super) fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.pool.state().disown(self.id);
    }
}

/// The blocks of one sequence. They are given back last first, since the first ones are of use to most others.
#[derive(Debug, Default)]
pub(super) struct BlockTable {
    /// From the first that was not let go on.
    blocks: VecDeque<Block>,
    /// Blocks before them, which no query sees any more.
    unseen: usize,
}

impl BlockTable {
    pub(super) fn len(&self) -> usize {
        self.unseen + self.blocks.len()
    }

    pub(super) fn push(&mut self, block: Block) {
        self.blocks.push_back(block);
    }

    /// Gives back all but the first `len`, last first.
    pub(super) fn truncate(&mut self, len: usize) {
        while self.len() > len && self.blocks.pop_back().is_some() {}
        self.unseen = self.unseen.min(len);
    }

    /// Lets the first `len` go, which no query sees any more. They count on.
    pub(super) fn release_first(&mut self, len: usize) {
        while self.unseen < len && self.blocks.pop_front().is_some() {
            self.unseen += 1;
        }
    }

    /// A block that was not let go.
    pub(super) fn get(&self, index: usize) -> &Block {
        &self.blocks[index - self.unseen]
    }

    /// In order; those that were let go are named 0.
    pub(super) fn ids(&self) -> Vec<u32> {
        std::iter::repeat_n(0, self.unseen).chain(self.blocks.iter().map(Block::id)).collect()
    }

    pub(super) fn clear(&mut self) {
        self.truncate(0);
    }
}

impl Drop for BlockTable {
    fn drop(&mut self) {
        self.clear();
    }
}

impl BlockPool {
    /// Of blocks, or of state slots, which are counted alike.
    pub(super) fn new(num_blocks: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            num_blocks,
            blocks: Vec::new(),
            empty: BinaryHeap::new(),
            idle: LruCache::unbounded(),
            by_hash: HashMap::new(),
        })))
    }

    /// Every change leaves the state whole, so that it is of use even after a panic elsewhere.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks that can be handed out.
    pub(super) fn available(&self) -> usize {
        self.state().available()
    }

    /// Blocks that someone owns.
    pub(super) fn used(&self) -> usize {
        let state = self.state();
        state.num_blocks - state.available()
    }

    /// A block to write to, or `None` if all are owned.
    pub(super) fn allocate(&self) -> Option<Block> {
        let id = self.state().take()?;
        Some(Block { id, pool: self.clone() })
    }

    /// The block that holds what `hash` names, to read from.
    pub(super) fn find(&self, hash: &BlockHash) -> Option<Block> {
        let mut state = self.state();
        let id = *state.by_hash.get(hash)?;
        state.own(id);
        drop(state);
        Some(Block { id, pool: self.clone() })
    }

    /// Whether a block holds what `hash` names.
    pub(super) fn has(&self, hash: &BlockHash) -> bool {
        self.state().by_hash.contains_key(hash)
    }

    /// Notes what a block holds, so that it can be found; from now on nobody may write to it.
    pub(super) fn register(&self, block: &Block, hash: BlockHash) {
        let mut state = self.state();
        // Two sequences may have computed the same side by side; one of them is enough.
        if state.by_hash.contains_key(&hash) {
            return;
        }
        if let Some(before) = state.blocks[block.id as usize].hash.replace(hash) {
            state.by_hash.remove(&before);
        }
        state.by_hash.insert(hash, block.id);
    }

    /// Forgets what blocks hold.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        state.by_hash.clear();
        state.blocks.iter_mut().for_each(|block| block.hash = None);
        while let Some((id, ())) = state.idle.pop_lru() {
            state.empty.push(Reverse(id));
        }
    }
}

impl State {
    fn available(&self) -> usize {
        self.num_blocks - self.blocks.len() + self.empty.len() + self.idle.len()
    }

    fn take(&mut self) -> Option<u32> {
        let id = if let Some(Reverse(id)) = self.empty.pop() {
            id
        } else if self.blocks.len() < self.num_blocks {
            self.blocks.push(Contents::default());
            (self.blocks.len() - 1) as u32
        } else {
            let (id, ()) = self.idle.pop_lru()?;
            if let Some(hash) = self.blocks[id as usize].hash.take() {
                self.by_hash.remove(&hash);
            }
            id
        };
        self.blocks[id as usize].owners = 1;
        Some(id)
    }

    fn own(&mut self, id: u32) {
        self.blocks[id as usize].owners += 1;
        self.idle.pop(&id);
    }

    fn disown(&mut self, id: u32) {
        let block = &mut self.blocks[id as usize];
        block.owners -= 1;
        match (block.owners, block.hash) {
            (0, Some(_)) => {
                self.idle.put(id, ());
            }
            (0, None) => self.empty.push(Reverse(id)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(name: u32) -> BlockHash {
        block_hash(None, &[name])
    }

    #[test]
    fn blocks_come_back_by_themselves() {
        let pool = BlockPool::new(2);
        let (first, second) = (pool.allocate().expect("is free"), pool.allocate().expect("is free"));
        assert!(pool.allocate().is_none());
        assert_eq!((first.id(), second.id(), pool.available(), pool.used()), (0, 1, 0, 2));
        drop(first);
        assert_eq!(pool.allocate().map(|block| block.id()), Some(0));
        drop(second);
        assert_eq!(pool.available(), 2);
    }

    #[test]
    fn contents_are_found_until_the_block_is_needed() {
        let pool = BlockPool::new(2);
        for name in [1, 2] {
            pool.register(&pool.allocate().expect("is free"), hash(name));
        }
        assert_eq!(pool.available(), 2);
        // Found again, the first one is now the last that would be let go.
        drop(pool.find(&hash(1)).expect("is held"));
        let new = pool.allocate().expect("is free");
        assert!(pool.find(&hash(2)).is_none());
        let shared = [pool.find(&hash(1)), pool.find(&hash(1))];
        assert!(shared.iter().flatten().all(|block| block.id() != new.id()));
        assert!(pool.allocate().is_none(), "what is owned is not let go");
        drop(shared);
        pool.forget();
        assert!(pool.find(&hash(1)).is_none());
        assert_eq!(pool.available(), 1);
    }

    #[test]
    fn hashes_tell_tokens_and_what_was_before_them() {
        let first = block_hash(None, &[1, 2]);
        let all = [first, block_hash(None, &[2, 1]), block_hash(Some(&first), &[1, 2]), block_hash(None, &[1])];
        for (index, hash) in all.iter().enumerate() {
            assert_eq!(all.iter().position(|other| other == hash), Some(index));
        }
    }
}
