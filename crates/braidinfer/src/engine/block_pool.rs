//! Blocks of the key/value cache: reference counts, free blocks, and free blocks that still hold a cached prefix.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use sha2::{Digest, Sha256};

/// Identifies the contents of a full block: its tokens and all tokens before them. SHA-256, so that nobody can craft two
/// prompts with the same hash.
pub type BlockHash = [u8; 32];

/// The hash of a full block with `tokens`, chained to the hash of the block `before` it.
pub(crate) fn block_hash(before: Option<&BlockHash>, tokens: &[u32]) -> BlockHash {
    let mut hash = Sha256::new();
    hash.update(before.unwrap_or(&[0; 32]));
    tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
    hash.finalize().into()
}

/// Allocates blocks. A block without owners is free. If its contents were registered, [`BlockPool::find`] still finds them
/// until the block is reused; the least recently used block is reused first.
#[derive(Debug, Clone)]
pub(super) struct BlockPool(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    num_blocks: usize,
    /// Every block that was ever allocated, by id. Higher ids are used only when these are taken, so that the storage stays
    /// as small as possible.
    blocks: Vec<Contents>,
    /// Free blocks without registered contents, lowest id first.
    empty: BinaryHeap<Reverse<u32>>,
    /// Free blocks with registered contents.
    cached: LruCache<u32, ()>,
    by_hash: HashMap<BlockHash, u32>,
    /// What changed since it was last asked for, if anybody wants to know.
    events: Option<Vec<BlockEvent>>,
}

/// Where in which sequences a block lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    /// Whether it is the first one, so that what comes before it is nothing but the seed of an adapter.
    pub(super) is_first: bool,
    /// Index of the adapter that it was computed with.
    pub(super) adapter: Option<u32>,
}

/// A change of what the prefix cache holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockEvent {
    /// A block can be found from now on.
    Stored {
        /// Identifies the tokens of the block and all before them.
        hash: BlockHash,
        /// The block before it; `None` if it is the first one of its sequence.
        before: Option<BlockHash>,
        /// The tokens of the block.
        token_ids: Vec<u32>,
        /// Index of the adapter that it was computed with.
        adapter: Option<u32>,
    },
    /// A block cannot be found any more.
    Removed(BlockHash),
    /// No block can be found any more.
    Cleared,
}

#[derive(Debug, Default)]
struct Contents {
    owners: usize,
    hash: Option<BlockHash>,
}

/// One reference to a block; dropping the last one frees the block.
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

/// The blocks of one sequence. They are freed from the last to the first, so that the first blocks, which most other
/// sequences can share, stay cached longest.
#[derive(Debug, Default)]
pub(super) struct BlockTable {
    /// The blocks from index `released` on.
    blocks: VecDeque<Block>,
    /// Number of leading blocks that were released because they are outside of every attention window.
    released: usize,
}

impl BlockTable {
    pub(super) fn len(&self) -> usize {
        self.released + self.blocks.len()
    }

    pub(super) fn push(&mut self, block: Block) {
        self.blocks.push_back(block);
    }

    /// Frees all but the first `len` blocks, the last one first.
    pub(super) fn truncate(&mut self, len: usize) {
        while self.len() > len && self.blocks.pop_back().is_some() {}
        self.released = self.released.min(len);
    }

    /// Frees the first `len` blocks, which are outside of every attention window. They still count in [`BlockTable::len`].
    pub(super) fn release_first(&mut self, len: usize) {
        while self.released < len && self.blocks.pop_front().is_some() {
            self.released += 1;
        }
    }

    /// The block at `index`, which must not be released.
    pub(super) fn get(&self, index: usize) -> &Block {
        &self.blocks[index - self.released]
    }

    /// Block ids in order, with 0 for released blocks.
    pub(super) fn ids(&self) -> Vec<u32> {
        std::iter::repeat_n(0, self.released).chain(self.blocks.iter().map(Block::id)).collect()
    }

    /// Number of blocks that have no other owner, and so would be free without this table.
    pub(super) fn unshared(&self) -> usize {
        self.blocks.iter().filter(|block| block.pool.state().blocks[block.id as usize].owners == 1).count()
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
    /// A pool of `num_blocks` blocks, or of as many state slots.
    pub(super) fn new(num_blocks: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            num_blocks,
            blocks: Vec::new(),
            empty: BinaryHeap::new(),
            cached: LruCache::unbounded(),
            by_hash: HashMap::new(),
            events: None,
        })))
    }

    /// Notes from now on what changes, for [`BlockPool::take_events`].
    pub(super) fn note_events(&self) {
        self.state().events.get_or_insert_default();
    }

    /// What was noted since the last call.
    pub(super) fn take_events(&self) -> Vec<BlockEvent> {
        self.state().events.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// A poisoned lock is ignored: every change leaves the state consistent, even if another thread panicked.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of free blocks.
    pub(super) fn available(&self) -> usize {
        self.state().available()
    }

    /// Number of blocks with at least one owner.
    pub(super) fn used(&self) -> usize {
        let state = self.state();
        state.num_blocks.saturating_sub(state.available())
    }

    /// A free block to write to, or `None` if there is none.
    pub(super) fn allocate(&self) -> Option<Block> {
        let id = self.state().take()?;
        Some(Block { id, pool: self.clone() })
    }

    /// The block with the contents `hash`, to read from.
    pub(super) fn find(&self, hash: &BlockHash) -> Option<Block> {
        let mut state = self.state();
        let id = *state.by_hash.get(hash)?;
        state.own(id);
        drop(state);
        Some(Block { id, pool: self.clone() })
    }

    /// Whether a block has the contents `hash`.
    pub(super) fn has(&self, hash: &BlockHash) -> bool {
        self.state().by_hash.contains_key(hash)
    }

    /// Records the contents of a block so that [`BlockPool::find`] finds it. Nobody may write to the block afterwards. Returns
    /// whether it was not found before.
    pub(super) fn register(&self, block: &Block, hash: BlockHash) -> bool {
        let mut state = self.state();
        // Two sequences may have computed the same block at the same time; one copy is enough.
        if state.by_hash.contains_key(&hash) {
            return false;
        }
        state.forget(block.id);
        state.blocks[block.id as usize].hash = Some(hash);
        state.by_hash.insert(hash, block.id);
        true
    }

    /// Like [`BlockPool::register`], for a block with these tokens after the block `before`, or after the seed of an adapter. Returns
    /// its hash.
    pub(super) fn register_tokens(
        &self,
        block: &Block,
        before: Option<&BlockHash>,
        token_ids: &[u32],
        of: Origin,
    ) -> BlockHash {
        let hash = block_hash(before, token_ids);
        if self.register(block, hash) {
            let Origin { is_first, adapter } = of;
            let before = before.copied().filter(|_| !is_first);
            let event = || BlockEvent::Stored { hash, before, token_ids: token_ids.to_vec(), adapter };
            self.state().note(event);
        }
        hash
    }

    /// Number of blocks that may be allocated.
    pub(super) fn limited(&self) -> usize {
        self.state().num_blocks
    }

    /// Allocates only the first `most` blocks from now on. Blocks after them that have owners stay with them.
    pub(super) fn limit(&self, most: usize) {
        self.state().limit(most);
    }

    /// Forgets the contents of all blocks.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        if !state.by_hash.is_empty() {
            state.note(|| BlockEvent::Cleared);
        }
        state.by_hash.clear();
        state.blocks.iter_mut().for_each(|block| block.hash = None);
        while let Some((id, ())) = state.cached.pop_lru() {
            state.empty.push(Reverse(id));
        }
    }
}

impl State {
    fn available(&self) -> usize {
        self.num_blocks.saturating_sub(self.blocks.len()) + self.empty.len() + self.cached.len()
    }

    fn limit(&mut self, most: usize) {
        let before = std::mem::replace(&mut self.num_blocks, most);
        let (first, known) = (most.min(before), self.blocks.len());
        if most > before {
            let unowned = (before..most.min(known)).filter(|id| self.blocks[*id].owners == 0);
            self.empty.extend(unowned.map(|id| Reverse(id as u32)));
            return;
        }
        self.empty.retain(|Reverse(id)| (*id as usize) < most);
        for id in first..known {
            if self.cached.pop(&(id as u32)).is_some() {
                self.forget(id as u32);
            }
        }
    }

    /// Forgets the contents of a block.
    fn forget(&mut self, id: u32) {
        if let Some(hash) = self.blocks[id as usize].hash.take() {
            self.by_hash.remove(&hash);
            self.note(|| BlockEvent::Removed(hash));
        }
    }

    fn note(&mut self, event: impl FnOnce() -> BlockEvent) {
        if let Some(events) = &mut self.events {
            events.push(event());
        }
    }

    fn take(&mut self) -> Option<u32> {
        let id = if let Some(Reverse(id)) = self.empty.pop() {
            id
        } else if self.blocks.len() < self.num_blocks {
            self.blocks.push(Contents::default());
            (self.blocks.len() - 1) as u32
        } else {
            let (id, ()) = self.cached.pop_lru()?;
            self.forget(id);
            id
        };
        self.blocks[id as usize].owners = 1;
        Some(id)
    }

    fn own(&mut self, id: u32) {
        self.blocks[id as usize].owners += 1;
        self.cached.pop(&id);
    }

    fn disown(&mut self, id: u32) {
        let block = &mut self.blocks[id as usize];
        block.owners -= 1;
        if block.owners == 0 && id as usize >= self.num_blocks {
            return self.forget(id);
        }
        match (block.owners, block.hash) {
            (0, Some(_)) => {
                self.cached.put(id, ());
            }
            (0, None) => self.empty.push(Reverse(id)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER: Origin = Origin { is_first: false, adapter: None };

    fn hash(name: u32) -> BlockHash {
        block_hash(None, &[name])
    }

    #[test]
    fn dropped_blocks_are_free_again() {
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
    fn a_limit_takes_blocks_away_and_gives_them_back() {
        let pool = BlockPool::new(4);
        let held: Vec<_> = (0..4).filter_map(|_| pool.allocate()).collect();
        pool.register(&held[3], hash(3));
        pool.limit(2);
        assert_eq!((pool.available(), pool.used(), pool.limited()), (0, 2, 2));
        drop(held);
        assert_eq!(pool.available(), 2);
        assert!(pool.find(&hash(3)).is_none(), "there may be no memory behind it");
        let some: Vec<_> = (0..2).filter_map(|_| pool.allocate()).collect();
        assert_eq!(some.iter().map(Block::id).collect::<Vec<_>>(), [0, 1]);
        assert!(pool.allocate().is_none());
        pool.limit(4);
        assert_eq!((pool.available(), pool.allocate().map(|block| block.id())), (2, Some(2)));
    }

    #[test]
    fn contents_are_found_until_the_block_is_reused() {
        let pool = BlockPool::new(2);
        for name in [1, 2] {
            pool.register(&pool.allocate().expect("is free"), hash(name));
        }
        assert_eq!(pool.available(), 2);
        // Finding the first block makes it the most recently used one, so the other one is reused.
        drop(pool.find(&hash(1)).expect("is held"));
        let new = pool.allocate().expect("is free");
        assert!(pool.find(&hash(2)).is_none());
        let shared = [pool.find(&hash(1)), pool.find(&hash(1))];
        assert!(shared.iter().flatten().all(|block| block.id() != new.id()));
        assert!(pool.allocate().is_none(), "blocks with owners are not reused");
        drop(shared);
        pool.forget();
        assert!(pool.find(&hash(1)).is_none());
        assert_eq!(pool.available(), 1);
    }

    #[test]
    fn changes_are_noted_for_those_who_ask() {
        let pool = BlockPool::new(1);
        let register =
            |tokens: &[u32]| pool.register_tokens(&pool.allocate().expect("is free"), Some(&hash(1)), tokens, LATER);
        register(&[1, 2]);
        assert_eq!(pool.take_events(), []);
        pool.note_events();
        let (first, second) = (block_hash(Some(&hash(1)), &[1, 2]), register(&[3]));
        pool.register(&pool.find(&second).expect("is held"), second);
        let stored = BlockEvent::Stored { hash: second, before: Some(hash(1)), token_ids: vec![3], adapter: None };
        assert_eq!(pool.take_events(), [BlockEvent::Removed(first), stored]);
        pool.forget();
        pool.forget();
        assert_eq!(pool.take_events(), [BlockEvent::Cleared]);
    }

    #[test]
    fn hashes_depend_on_tokens_and_the_block_before() {
        let first = block_hash(None, &[1, 2]);
        let all = [first, block_hash(None, &[2, 1]), block_hash(Some(&first), &[1, 2]), block_hash(None, &[1])];
        for (index, hash) in all.iter().enumerate() {
            assert_eq!(all.iter().position(|other| other == hash), Some(index));
        }
    }
}
