//! What a device keeps of sequences, and the activations of a step.

use braidinfer_gpu::kernels::AttentionKernels;
use braidinfer_gpu::{Buffer, Gpu, stride};
use braidinfer_model::DecoderSpec;

use super::weights::{Ends, GpuLayer, storage_index};
use crate::executor::{Batch, KvCacheConfig, KvDtype, SequenceSlice};
use crate::{Error, Result};

/// Tokens of the unit in which keys and values lie together.
pub(super) const TILE: usize = 16;

/// The first tiles that memory is made for; it is doubled from there.
const FIRST_TILES: usize = 16;

/// Keys and values of every layer.
pub(super) struct KvMemory {
    config: KvCacheConfig,
    /// Values of the keys of a token, for each layer.
    widths: Vec<usize>,
    /// Keys and values in f32, and in f16.
    layers: Vec<[Option<KvBuffers>; 2]>,
}

/// Keys and values of a layer, in one type.
pub(super) struct KvBuffers {
    pub(super) keys: Buffer,
    pub(super) values: Buffer,
    tiles: usize,
}

impl KvMemory {
    pub(super) fn new(spec: &DecoderSpec, config: KvCacheConfig) -> Result<Self> {
        if config.block_size == 0 || !config.block_size.is_multiple_of(TILE) {
            return Err(Error::bad_request("block_size", format!("a multiple of {TILE}"), config.block_size));
        }
        let widths: Vec<usize> = (0..spec.layers.len()).map(|layer| spec.key_value_width(layer)).collect();
        Ok(Self { config, layers: widths.iter().map(|_| [None, None]).collect(), widths })
    }

    pub(super) fn config(&self) -> KvCacheConfig {
        self.config
    }

    /// The keys and values of a layer, for which memory was made.
    pub(super) fn of(&self, layer: usize, dtype: KvDtype) -> Result<&KvBuffers> {
        let buffers = &self.layers[layer][storage_index(dtype)?];
        buffers.as_ref().ok_or_else(|| Error::Internal(format!("no memory for keys and values of layer {layer}")))
    }

    /// Makes memory for every block that `batch` names, in the type that `dtypes` has for each layer that is computed here.
    ///
    /// Fails if there is too little; what there was before is kept.
    pub(super) fn reserve(
        &mut self,
        gpu: &mut Gpu,
        batch: &Batch,
        dtypes: &[KvDtype],
        layers: &[Option<GpuLayer>],
    ) -> Result<()> {
        let tiles = batch.blocks_needed(self.config.block_size) * (self.config.block_size / TILE);
        for (layer, dtype) in dtypes.iter().enumerate().filter(|(layer, _)| layers[*layer].is_some()) {
            self.reserve_layer(gpu, (layer, *dtype), tiles)?;
        }
        Ok(())
    }

    /// Makes memory for some tiles of a layer.
    pub(super) fn reserve_layer(
        &mut self,
        gpu: &mut Gpu,
        (layer, dtype): (usize, KvDtype),
        tiles: usize,
    ) -> Result<()> {
        let which = storage_index(dtype)?;
        let there = self.layers[layer][which].as_ref().map_or(0, |buffers| buffers.tiles);
        if tiles <= there || self.widths[layer] == 0 {
            return Ok(());
        }
        let most = self.config.num_blocks.saturating_mul(self.config.block_size / TILE);
        let tile_bytes = TILE * self.widths[layer] * if dtype == KvDtype::F16 { 2 } else { 4 };
        let doubled = tiles.max(2 * there).max(FIRST_TILES).min(most.max(tiles));
        // Near the end of the memory, or of what can be bound, no more than is needed.
        let grown = self.grow(gpu, (layer, which), doubled, tile_bytes);
        if grown.is_err() && doubled > tiles { self.grow(gpu, (layer, which), tiles, tile_bytes) } else { grown }
    }

    fn grow(&mut self, gpu: &mut Gpu, (layer, which): (usize, usize), tiles: usize, tile_bytes: usize) -> Result<()> {
        let keys = gpu.buffer("keys", tiles * tile_bytes)?;
        let values = gpu.buffer("values", tiles * tile_bytes)?;
        if let Some(before) = self.layers[layer][which].take() {
            let words = before.tiles * tile_bytes / 4;
            gpu.copy((&before.keys, 0), (&keys, 0), words);
            gpu.copy((&before.values, 0), (&values, 0), words);
            gpu.submit()?;
            gpu.forget_buffers();
        }
        self.layers[layer][which] = Some(KvBuffers { keys, values, tiles });
        Ok(())
    }

    /// Number of blocks that every layer has memory for.
    pub(super) fn reserved_blocks(&self, dtypes: &[KvDtype], layers: &[Option<GpuLayer>]) -> usize {
        let of = |(layer, dtype): (usize, &KvDtype)| {
            let which = storage_index(*dtype).ok()?;
            Some(self.layers[layer][which].as_ref().map_or(0, |buffers| buffers.tiles))
        };
        let kept = dtypes.iter().enumerate().filter(|(layer, _)| layers[*layer].is_some() && self.widths[*layer] > 0);
        kept.map(|layer| of(layer).unwrap_or(0)).min().map_or(usize::MAX, |tiles| tiles * TILE / self.config.block_size)
    }

    /// Frees what there is of a layer.
    pub(super) fn clear_layer(&mut self, layer: usize) {
        self.layers[layer] = [None, None];
    }

    /// Frees all of it.
    pub(super) fn clear(&mut self) {
        self.layers.iter_mut().for_each(|layer| *layer = [None, None]);
    }

    /// Appends the tiles of a sequence to `tiles`.
    pub(super) fn tiles(&self, sequence: &SequenceSlice, tiles: &mut Vec<u32>) {
        tiles.extend(sequence.tiles(sequence.positions().end, self.config.block_size, TILE));
    }
}

/// Widths of the activations of a decoder, over all layers that are computed here.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Widths {
    hidden: usize,
    projected: usize,
    heads: usize,
    inner: usize,
    vocab: usize,
}

impl Widths {
    pub(super) fn of(spec: &DecoderSpec, layers: &[Option<GpuLayer>], ends: Option<&Ends>) -> Self {
        let mut widths = Self { hidden: spec.hidden_size, ..Self::default() };
        for layer in layers.iter().flatten() {
            if let Some(attention) = &layer.attention {
                widths.projected = widths.projected.max(attention.projections.width);
                widths.heads = widths.heads.max(attention.spec.query_width());
            }
            if let Some(network) = &layer.feed_forward {
                widths.inner = widths.inner.max(network.inner_width);
            }
        }
        widths.vocab = ends.map_or(0, |ends| ends.lm_head.rows);
        widths
    }
}

/// Activations of a step, `[tokens, stride]` each.
pub(super) struct Scratch {
    widths: Widths,
    tokens: usize,
    pub(super) hidden: Buffer,
    pub(super) normed: Buffer,
    /// The input of a feed-forward network beside attention, if it has a norm of its own.
    pub(super) normed_beside: Buffer,
    pub(super) projected: Buffer,
    pub(super) queries: Buffer,
    pub(super) heads: Buffer,
    pub(super) partials: Buffer,
    pub(super) inner: Buffer,
    pub(super) branch: Buffer,
    /// Rows before the output head, and logits.
    pub(super) head_rows_normed: Buffer,
    pub(super) logits: Buffer,
    /// Two words for each row whose likeliest token is wanted.
    pub(super) argmax: Buffer,
    /// Which rows these are.
    pub(super) rows: Buffer,
    /// What is uploaded for a step.
    pub(super) step: Buffer,
    /// Bound where a kernel reads nothing.
    pub(super) nothing: Buffer,
}

impl Scratch {
    /// Without room for anything.
    pub(super) fn new(gpu: &mut Gpu, widths: Widths) -> Result<Self> {
        let mut buffer = || gpu.buffer("activations", 4);
        Ok(Self {
            widths,
            tokens: 0,
            hidden: buffer()?,
            normed: buffer()?,
            normed_beside: buffer()?,
            projected: buffer()?,
            queries: buffer()?,
            heads: buffer()?,
            partials: buffer()?,
            inner: buffer()?,
            branch: buffer()?,
            head_rows_normed: buffer()?,
            logits: buffer()?,
            argmax: buffer()?,
            rows: buffer()?,
            step: buffer()?,
            nothing: buffer()?,
        })
    }

    /// Makes room for the activations of some tokens.
    pub(super) fn reserve_tokens(&mut self, gpu: &mut Gpu, tokens: usize) -> Result<()> {
        if tokens <= self.tokens {
            return Ok(());
        }
        // A few sizes only, so that a step that is larger by one does not make all of them anew.
        let tokens = tokens.next_power_of_two();
        // What is replaced is freed at once, also if there is too little memory for all of it.
        gpu.forget_buffers();
        let Widths { hidden, projected, heads, inner, .. } = self.widths;
        for (buffer, width) in [
            (&mut self.hidden, hidden),
            (&mut self.normed, hidden),
            (&mut self.normed_beside, hidden),
            (&mut self.branch, hidden),
            (&mut self.projected, projected),
            (&mut self.queries, heads),
            (&mut self.heads, heads),
            (&mut self.inner, inner),
        ] {
            *buffer = gpu.buffer("activations", tokens * stride(width) * 4)?;
        }
        self.tokens = tokens;
        Ok(())
    }

    /// Makes room for the results of attention over spans.
    pub(super) fn reserve_partials(
        &mut self,
        gpu: &mut Gpu,
        layers: &[Option<GpuLayer>],
        positions: &[u32],
    ) -> Result<()> {
        let attentions = layers.iter().flatten().filter_map(|layer| layer.attention.as_ref());
        let of = |shape| AttentionKernels::partials(shape, positions);
        let values = attentions.map(|attention| of(&attention.by_storage[0].attention_shape)).max().unwrap_or(0);
        grow(gpu, &mut self.partials, values)
    }

    /// Makes room for some rows before the output head, and the logits of some of them.
    pub(super) fn reserve_head(&mut self, gpu: &mut Gpu, rows: usize, logits_rows: usize) -> Result<()> {
        let Widths { hidden, vocab, .. } = self.widths;
        grow(gpu, &mut self.head_rows_normed, rows * stride(hidden))?;
        grow(gpu, &mut self.rows, rows)?;
        grow(gpu, &mut self.logits, logits_rows * stride(vocab))?;
        grow(gpu, &mut self.argmax, 2 * logits_rows)?;
        Ok(())
    }

    /// Makes room for what is uploaded for a step.
    pub(super) fn reserve_step(&mut self, gpu: &mut Gpu, words: usize) -> Result<()> {
        grow(gpu, &mut self.step, words)
    }
}

/// Makes room for some words, in a few sizes only.
fn grow(gpu: &mut Gpu, buffer: &mut Buffer, words: usize) -> Result<()> {
    if buffer.bytes() < words as u64 * 4 {
        let largest = gpu.max_binding_bytes() as usize;
        let bytes = (words * 4).next_power_of_two().min(largest).max(words * 4);
        *buffer = gpu.buffer("activations", bytes)?;
        gpu.forget_buffers();
    }
    Ok(())
}
