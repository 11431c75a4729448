//! Prefixes that are saved and restored, block by block.

use super::Engine;
use super::block_pool::{BlockEvent, BlockHash, Origin, block_hash};
use crate::saved_prefixes::{BlockShape, PrefixFolder, SavedBlock};
use crate::{Error, Result};

impl Engine {
    /// The shape of saved blocks; `None` if prefixes of this model cannot be saved with these kernels.
    pub(crate) fn saved_shape(&self) -> Option<BlockShape> {
        let data = self.decoder.saved_block_bytes().filter(|_| self.config().prefix_cache)?;
        Some(BlockShape { tokens: self.block_size(), data })
    }

    /// The blocks of the longest prefix of these tokens that is in the prefix cache; `seed` is what comes before the first one.
    pub(crate) fn saved_prefix(&self, seed: Option<BlockHash>, tokens: &[u32]) -> Vec<SavedBlock> {
        let blocks = self.scheduler.cached_prefix(seed, tokens);
        let saved =
            |(block, tokens): (_, &[u32])| SavedBlock { tokens: tokens.to_vec(), data: self.decoder.save_block(block) };
        blocks.iter().map(|block| block.id()).zip(tokens.chunks_exact(self.block_size())).map(saved).collect()
    }

    /// Puts a block that follows those that `before` stands for into the prefix cache, for sequences with an adapter, or with none.
    /// Returns whether it is there now: not if no block is free.
    ///
    /// Fails if there is too little memory.
    pub(crate) fn restore_block(
        &mut self,
        before: Option<&BlockHash>,
        block: &SavedBlock,
        adapter: Option<u32>,
    ) -> Result<bool> {
        if self.scheduler.has_cached(&block_hash(before, &block.tokens)) {
            return Ok(true);
        }
        let Some(free) = self.scheduler.free_block() else { return Ok(false) };
        self.decoder.restore_block(free.id(), &block.data)?;
        let of = Origin { is_first: before.copied() == self.seed(adapter)?, adapter };
        self.scheduler.register(&free, before, &block.tokens, of);
        self.restored_blocks += 1;
        Ok(true)
    }

    /// Keeps blocks in a folder as they are computed, and restores from it what new prompts begin with.
    pub(crate) fn keep_prefixes(&mut self, folder: PrefixFolder) {
        self.scheduler.take_block_events();
        self.prefix_folder = Some(folder);
    }

    /// Why no prefixes are kept any more, if that was not told yet.
    pub(crate) fn take_prefix_failure(&mut self) -> Option<String> {
        self.prefix_folder.as_ref()?.take_failure()
    }

    /// Restores what the prompt of a request with an adapter, or with none, begins with.
    pub(super) fn restore_beginning(&mut self, prompt: &[u32], adapter: Option<u32>) {
        let Ok(mut before) = self.seed(adapter) else { return };
        let Some(folder) = self.prefix_folder.take() else { return };
        // The last token is always computed.
        let whole = prompt[..prompt.len() - 1].chunks_exact(self.block_size());
        for tokens in whole {
            let hash = block_hash(before.as_ref(), tokens);
            if !self.scheduler.has_cached(&hash) {
                let restored = match folder.has(&hash).then(|| folder.read(&hash, tokens)).flatten() {
                    Some(block) => self.restore_block(before.as_ref(), &block, adapter),
                    None => Ok(false),
                };
                // What is not restored is computed.
                if !matches!(restored, Ok(true)) {
                    break;
                }
            }
            before = Some(hash);
        }
        self.prefix_folder = Some(folder);
    }

    /// Keeps the blocks that became part of the prefix cache.
    pub(super) fn keep_blocks(&self, events: &[BlockEvent]) {
        let Some(folder) = &self.prefix_folder else { return };
        for event in events {
            let BlockEvent::Stored { hash, token_ids, .. } = event else { continue };
            if folder.has(hash) {
                continue;
            }
            // It may have been replaced in the same step.
            if let Some(block) = self.scheduler.cached_block(hash) {
                let data = self.decoder.save_block(block.id());
                folder.keep(*hash, SavedBlock { tokens: token_ids.clone(), data });
            }
        }
    }

    /// Fails unless prefixes can be saved.
    pub(crate) fn require_saved_shape(&self) -> Result<BlockShape> {
        self.saved_shape().ok_or_else(|| {
            let expected = "fused kernels on the CPU, a prefix cache, and a model whose layers are all attention";
            Error::bad_request("prompt_cache", expected, "another model, device or kernels")
        })
    }
}
