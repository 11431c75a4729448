//! Paged KV cache, in the layout that the attention kernels read.

use braidinfer_kernels::attention::{KvElement, KvSlab, SLAB_TILES};
use braidinfer_model::DecoderSpec;

use crate::executor::{Batch, KvCacheConfig, KvDtype, SequenceSlice};
use crate::{Error, Result};

/// Tokens per tile, the unit that the attention kernels read.
pub(super) const TILE: usize = 16;
/// Tokens per slab, the unit of allocation. The system commits its memory when tokens are first written.
pub(super) const SLAB_TOKENS: usize = TILE * SLAB_TILES;

/// Keys and values of every layer.
#[derive(Debug)]
pub(super) struct KvCache {
    config: KvCacheConfig,
    /// Number of key/value heads and head width of each layer.
    heads: Vec<(usize, usize)>,
    pub(super) layers: Vec<LayerSlabs>,
}

/// Slabs of one layer, for each KV data type; slab `s` of head `g` has index `s * num_key_value_heads + g`. Plans with
/// the same data type share the stored keys and values.
#[derive(Debug, Default)]
pub(super) struct LayerSlabs {
    pub(super) f32: Vec<KvSlab<f32>>,
    pub(super) f16: Vec<KvSlab<u16>>,
}

impl KvCache {
    pub(super) fn new(spec: &DecoderSpec, config: KvCacheConfig) -> Result<Self> {
        if config.block_size == 0 || !config.block_size.is_multiple_of(TILE) {
            return Err(Error::bad_request("block_size", format!("a multiple of {TILE}"), config.block_size));
        }
        let heads = spec.layer_attentions().map(|attention| (attention.num_key_value_heads, attention.head_dim));
        let layers = spec.layers.iter().map(|_| LayerSlabs::default()).collect();
        Ok(Self { config, heads: heads.collect(), layers })
    }

    /// Frees all memory.
    pub(super) fn clear(&mut self) {
        self.layers.iter_mut().for_each(|layer| *layer = LayerSlabs::default());
    }

    pub(super) fn config(&self) -> KvCacheConfig {
        self.config
    }

    /// Allocates every block that `batch` names, in the data type that `dtypes` has for each layer.
    pub(super) fn reserve(&mut self, batch: &Batch, dtypes: &[KvDtype]) {
        let slabs = (batch.blocks_needed(self.config.block_size) * self.config.block_size).div_ceil(SLAB_TOKENS);
        for ((layer, (heads, head_dim)), dtype) in self.layers.iter_mut().zip(&self.heads).zip(dtypes) {
            match dtype {
                KvDtype::F32 => grow(&mut layer.f32, slabs * heads, *head_dim),
                KvDtype::F16 => grow(&mut layer.f16, slabs * heads, *head_dim),
            }
        }
    }

    /// Appends the tiles of a sequence's first `len` positions to `tiles`.
    pub(super) fn tiles(&self, sequence: &SequenceSlice, len: usize, tiles: &mut Vec<u32>) {
        let per_block = self.config.block_size / TILE;
        let tile =
            |index: usize| sequence.block_table[index / per_block] * per_block as u32 + (index % per_block) as u32;
        tiles.extend((0..len.div_ceil(TILE)).map(tile));
    }
}

fn grow<T: KvElement>(layer: &mut Vec<KvSlab<T>>, slabs: usize, head_dim: usize) {
    while layer.len() < slabs {
        layer.push(KvSlab::new(head_dim));
    }
}
