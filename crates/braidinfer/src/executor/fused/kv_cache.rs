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
        let slabs = (batch.blocks_needed(self.config.block_size) * self.config.block_size).div_ceil(SLAB_TOKENS);
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
