//! Paged KV cache.

use std::collections::BTreeMap;

use braidinfer_model::DecoderSpec;
use braidinfer_model::spec::AttentionSpec;
use candle_core::{DType, Device, Tensor};

use crate::executor::{Batch, KvCacheConfig, KvDtype, SequenceSlice};
use crate::{Error, Result, memory};

/// Keys and values of some layers, indexed by slot. Grows when blocks are first used.
#[derive(Debug)]
pub(super) struct KvCache {
    config: KvCacheConfig,
    /// For each layer index, keys and values, each `[slots, G, d]`.
    layers: BTreeMap<usize, (Tensor, Tensor)>,
}

impl KvCache {
    /// A cache for those of the layers with these indices that keep keys and values.
    pub(super) fn new(
        spec: &DecoderSpec,
        layers: impl IntoIterator<Item = usize>,
        config: KvCacheConfig,
        device: &Device,
    ) -> Result<Self> {
        let dtype = match config.dtype {
            KvDtype::F32 => DType::F32,
            KvDtype::F16 => DType::F16,
            KvDtype::Q8_0 | KvDtype::Q4_0 => {
                return Err(Error::bad_request("kv_dtype", "f32 or f16 with standard kernels", config.dtype.name()));
            }
        };
        let attentions = layers.into_iter().filter_map(|layer| Some((layer, spec.kept_attention(layer)?)));
        let empty = |(layer, attention): (usize, &AttentionSpec)| {
            let store = || Tensor::zeros((0, attention.num_key_value_heads, attention.head_dim), dtype, device);
            Ok((layer, (store()?, store()?)))
        };
        Ok(Self { config, layers: attentions.map(empty).collect::<Result<_>>()? })
    }

    pub(super) fn config(&self) -> KvCacheConfig {
        self.config
    }

    /// Frees all memory.
    pub(super) fn clear(&mut self) -> Result<()> {
        for store in self.layers.values_mut().flat_map(|(keys, values)| [keys, values]) {
            let (_, heads, width) = store.dims3()?;
            *store = Tensor::zeros((0, heads, width), store.dtype(), store.device())?;
        }
        Ok(())
    }

    /// Allocates every block that `batch` names.
    pub(super) fn reserve(&mut self, batch: &Batch) -> Result<()> {
        let needed = batch.blocks_needed(self.config.block_size) * self.config.block_size;
        let current = self.slots();
        if needed <= current {
            return Ok(());
        }
        // Doubling the size makes the total cost of copying linear in the length of a growing sequence.
        let slots = needed.max(2 * current).min(self.config.capacity());
        // The tensor library ends the process if there is no memory. While a tensor is copied there are two of it.
        let row = |store: &Tensor| store.dims()[1..].iter().product::<usize>() * store.dtype().size_in_bytes();
        let rows: Vec<usize> = self.layers.values().flat_map(|(keys, values)| [row(keys), row(values)]).collect();
        let copied = current * rows.iter().max().unwrap_or(&0);
        let bytes = (slots - current).saturating_mul(rows.iter().sum()).saturating_add(copied);
        memory::can_grow(bytes, || format!("keys and values of {slots} tokens"))?;
        for store in self.layers.values_mut().flat_map(|(keys, values)| [keys, values]) {
            // A tensor may have been grown by an earlier call that then ran out of memory.
            if store.dims()[0] < slots {
                *store = grown(store, slots)?;
            }
        }
        Ok(())
    }

    /// Number of blocks that every layer has memory for.
    pub(super) fn reserved_blocks(&self) -> usize {
        self.slots() / self.config.block_size.max(1)
    }

    /// Number of slots that every layer has.
    fn slots(&self) -> usize {
        // The tensors grow in order, so the last one is never larger than the others. Where there are none, nothing is short.
        self.layers.values().next_back().map_or(usize::MAX, |(_, values)| values.dims()[0])
    }

    /// Stores the keys and values of one sequence's new tokens, each `[query_len, G, d]`.
    pub(super) fn write(&self, layer: usize, sequence: &SequenceSlice, keys: &Tensor, values: &Tensor) -> Result<()> {
        let (key_store, value_store) = &self.layers[&layer];
        let block_size = self.config.block_size;
        let positions = sequence.positions();
        let mut position = positions.start;
        while position < positions.end {
            let run = (block_size - position % block_size).min(positions.end - position);
            let slot = sequence.slot(position, block_size);
            for (store, rows) in [(key_store, keys), (value_store, values)] {
                let rows = rows.narrow(0, position - positions.start, run)?;
                store.slice_set(&rows.to_dtype(store.dtype())?.contiguous()?, 0, slot)?;
            }
            position += run;
        }
        Ok(())
    }

    /// Keys and values of a sequence up to and including its tokens in the batch, each `[len, G, d]` in f32.
    pub(super) fn read(&self, layer: usize, sequence: &SequenceSlice) -> Result<(Tensor, Tensor)> {
        let (keys, values) = &self.layers[&layer];
        Ok((self.gather(keys, sequence)?, self.gather(values, sequence)?))
    }

    fn gather(&self, store: &Tensor, sequence: &SequenceSlice) -> Result<Tensor> {
        let len = sequence.positions().end;
        let block_size = self.config.block_size;
        let blocks = &sequence.block_table[..len.div_ceil(block_size)];
        let rows = if blocks.windows(2).all(|pair| pair[1] == pair[0] + 1) {
            store.narrow(0, sequence.slot(0, block_size), len)?
        } else {
            let slots: Vec<u32> = (0..len).map(|position| sequence.slot(position, block_size) as u32).collect();
            store.index_select(&Tensor::new(slots, store.device())?, 0)?
        };
        Ok(rows.to_dtype(DType::F32)?)
    }
}

/// A copy of `store` with room for `slots` rows.
fn grown(store: &Tensor, slots: usize) -> Result<Tensor> {
    let (old, heads, width) = store.dims3()?;
    let larger = Tensor::zeros((slots, heads, width), store.dtype(), store.device())?;
    if old > 0 {
        larger.slice_set(store, 0, 0)?;
    }
    Ok(larger)
}
