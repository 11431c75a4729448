//! Paged KV cache, in the layout that the attention kernels read.

use std::io;

use braidinfer_kernels::attention::{KvElement, KvSlab, Q4_0, Q8_0, SLAB_TILES};
use braidinfer_model::DecoderSpec;

use crate::executor::{Batch, KvCacheConfig, KvDtype, SequenceSlice};
use crate::{Error, Result, memory};

/// Tokens per tile, the unit that the attention kernels read.
pub(super) const TILE: usize = 16;
/// Tokens per slab, the unit of allocation. The system commits its memory when tokens are first written.
pub(super) const SLAB_TOKENS: usize = TILE * SLAB_TILES;

/// Keys and values of every layer.
#[derive(Debug)]
pub(super) struct KvCache {
    config: KvCacheConfig,
    /// Number of key/value heads and head width of each layer; 0 if it keeps none.
    heads: Vec<(usize, usize)>,
    pub(super) layers: Vec<LayerSlabs>,
}

/// Slabs of one layer, for each KV data type; slab `s` of head `g` has index `s * num_key_value_heads + g`. Plans with
/// the same data type share the stored keys and values.
#[derive(Debug, Default)]
pub(super) struct LayerSlabs {
    pub(super) f32: Vec<KvSlab<f32>>,
    pub(super) f16: Vec<KvSlab<u16>>,
    pub(super) q8_0: Vec<KvSlab<Q8_0>>,
    pub(super) q4_0: Vec<KvSlab<Q4_0>>,
}

impl KvCache {
    pub(super) fn new(spec: &DecoderSpec, config: KvCacheConfig) -> Result<Self> {
        if config.block_size == 0 || !config.block_size.is_multiple_of(TILE) {
            return Err(Error::bad_request("block_size", format!("a multiple of {TILE}"), config.block_size));
        }
        let heads = |layer| {
            spec.kept_attention(layer).map_or((0, 0), |attention| (attention.num_key_value_heads, attention.head_dim))
        };
        let layers = spec.layers.iter().map(|_| LayerSlabs::default()).collect();
        Ok(Self { config, heads: (0..spec.layers.len()).map(heads).collect(), layers })
    }

    /// Frees all memory.
    pub(super) fn clear(&mut self) {
        self.layers.iter_mut().for_each(|layer| *layer = LayerSlabs::default());
    }

    pub(super) fn config(&self) -> KvCacheConfig {
        self.config
    }

    /// Allocates every block that `batch` names, in the data type that `dtypes` has for each layer.
    ///
    /// Fails if there is too little memory; what it got before is kept for later.
    pub(super) fn reserve(&mut self, batch: &Batch, dtypes: &[KvDtype]) -> Result<()> {
        self.reserve_blocks(batch.blocks_needed(self.config.block_size), dtypes)
    }

    /// The same, for the first `blocks`.
    fn reserve_blocks(&mut self, blocks: usize, dtypes: &[KvDtype]) -> Result<()> {
        let slabs = (blocks * self.config.block_size).div_ceil(SLAB_TOKENS);
        let bytes = self.missing_bytes(slabs, dtypes);
        if bytes == 0 {
            return Ok(());
        }
        let what = || format!("keys and values of {} tokens", slabs * SLAB_TOKENS);
        memory::can_grow(bytes, what)?;
        for ((layer, (heads, head_dim)), dtype) in self.layers.iter_mut().zip(&self.heads).zip(dtypes) {
            match dtype {
                KvDtype::F32 => grow(&mut layer.f32, slabs * heads, *head_dim),
                KvDtype::F16 => grow(&mut layer.f16, slabs * heads, *head_dim),
                KvDtype::Q8_0 => grow(&mut layer.q8_0, slabs * heads, *head_dim),
                KvDtype::Q4_0 => grow(&mut layer.q4_0, slabs * heads, *head_dim),
            }
            .map_err(|_| memory::exhausted(bytes, what()))?;
        }
        Ok(())
    }

    /// Bytes of the slabs that are yet to be allocated so that every layer has this many for each head.
    fn missing_bytes(&self, slabs: usize, dtypes: &[KvDtype]) -> usize {
        let layers = self.layers.iter().zip(&self.heads).zip(dtypes);
        let missing = layers.map(|((layer, (heads, head_dim)), dtype)| {
            (slabs * heads).saturating_sub(layer.count(*dtype)) * SLAB_TOKENS * dtype.stored_bytes(*head_dim)
        });
        missing.sum()
    }

    /// Bytes of a block of a layer, as [`KvCache::save_block`] writes it.
    pub(super) fn block_bytes(&self, layer: usize, dtype: KvDtype) -> usize {
        let (heads, head_dim) = self.heads[layer];
        let tile = match dtype {
            KvDtype::F32 => KvSlab::<f32>::tile_bytes(head_dim),
            KvDtype::F16 => KvSlab::<u16>::tile_bytes(head_dim),
            KvDtype::Q8_0 => KvSlab::<Q8_0>::tile_bytes(head_dim),
            KvDtype::Q4_0 => KvSlab::<Q4_0>::tile_bytes(head_dim),
        };
        heads * tile * (self.config.block_size / TILE)
    }

    /// Appends a block of a layer: the tiles of each head, one after another. There must be memory for it.
    pub(super) fn save_block(&self, layer: usize, block: u32, dtype: KvDtype, out: &mut Vec<u8>) {
        let (heads, per_block) = (self.heads[layer].0, self.config.block_size / TILE);
        let slabs = &self.layers[layer];
        for (head, tile) in tiles_of(heads, block as usize, per_block) {
            let (slab, tile) = (tile / SLAB_TILES * heads + head, tile % SLAB_TILES);
            match dtype {
                KvDtype::F32 => slabs.f32[slab].save_tile(tile, out),
                KvDtype::F16 => slabs.f16[slab].save_tile(tile, out),
                KvDtype::Q8_0 => slabs.q8_0[slab].save_tile(tile, out),
                KvDtype::Q4_0 => slabs.q4_0[slab].save_tile(tile, out),
            }
        }
    }

    /// Sets a block of a layer to what [`KvCache::save_block`] wrote.
    ///
    /// Fails if there is too little memory.
    pub(super) fn restore_block(&mut self, layer: usize, block: u32, dtypes: &[KvDtype], bytes: &[u8]) -> Result<()> {
        self.reserve_blocks(block as usize + 1, dtypes)?;
        let (heads, per_block) = (self.heads[layer].0, self.config.block_size / TILE);
        let slabs = &mut self.layers[layer];
        let each = bytes.len() / (heads * per_block).max(1);
        for ((head, tile), bytes) in tiles_of(heads, block as usize, per_block).zip(bytes.chunks(each.max(1))) {
            let (slab, tile) = (tile / SLAB_TILES * heads + head, tile % SLAB_TILES);
            match dtypes[layer] {
                KvDtype::F32 => slabs.f32[slab].restore_tile(tile, bytes),
                KvDtype::F16 => slabs.f16[slab].restore_tile(tile, bytes),
                KvDtype::Q8_0 => slabs.q8_0[slab].restore_tile(tile, bytes),
                KvDtype::Q4_0 => slabs.q4_0[slab].restore_tile(tile, bytes),
            }
        }
        Ok(())
    }

    /// Number of blocks that every layer has memory for.
    pub(super) fn reserved_blocks(&self, dtypes: &[KvDtype]) -> usize {
        let layers = self.layers.iter().zip(&self.heads).zip(dtypes);
        let with_heads = layers.filter(|((_, (heads, _)), _)| *heads > 0);
        let slabs = with_heads.map(|((layer, (heads, _)), dtype)| layer.count(*dtype) / heads);
        // Where no layer keeps anything in blocks, nothing is short.
        slabs.min().map_or(usize::MAX, |slabs| slabs * SLAB_TOKENS / self.config.block_size)
    }

    /// Appends the tiles of a sequence's first `len` positions to `tiles`.
    pub(super) fn tiles(&self, sequence: &SequenceSlice, len: usize, tiles: &mut Vec<u32>) {
        tiles.extend(sequence.tiles(len, self.config.block_size, TILE));
    }
}

/// The heads and tiles of a block, in the order in which they are saved.
fn tiles_of(heads: usize, block: usize, per_block: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..heads).flat_map(move |head| (0..per_block).map(move |tile| (head, block * per_block + tile)))
}

impl LayerSlabs {
    fn count(&self, dtype: KvDtype) -> usize {
        match dtype {
            KvDtype::F32 => self.f32.len(),
            KvDtype::F16 => self.f16.len(),
            KvDtype::Q8_0 => self.q8_0.len(),
            KvDtype::Q4_0 => self.q4_0.len(),
        }
    }
}

fn grow<T: KvElement>(layer: &mut Vec<KvSlab<T>>, slabs: usize, head_dim: usize) -> io::Result<()> {
    while layer.len() < slabs {
        layer.push(KvSlab::new(head_dim)?);
    }
    Ok(())
}
