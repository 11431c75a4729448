//! What all layers need to know about a batch: positions, rotations, KV cache locations, and chunks of queries.

use std::ops::Range;

use braidinfer_model::DecoderSpec;
use braidinfer_model::spec::{AttentionSpec, RopePairing, RopeSpec};

use super::kv_cache::{KvCache, TILE};
use crate::executor::{Batch, SequenceSlice};
use braidinfer_kernels::attention::SLAB_TILES;

/// Query rows per attention task: enough to amortise reading keys and values, few enough to balance the load.
const ATTENTION_ROWS: usize = 128;

/// Reused between passes, so that a step of the usual size allocates nothing.
#[derive(Debug, Default)]
pub(super) struct BatchLayout {
    /// Number of tokens in the batch.
    pub(super) rows: usize,
    /// One entry per rotary table.
    pub(super) rotations: Vec<Rotation>,
    /// Position-dependent factors of the rotated queries `[T]`, per attention spec; empty if it has none.
    pub(super) query_scales: Vec<Vec<f32>>,
    /// KV cache tile ids of all sequences.
    tiles: Vec<u32>,
    /// Chunks of queries, in token order.
    pub(super) chunks: Vec<QueryChunk>,
    /// KV cache writes of the new tokens, ordered by slab.
    pub(super) writes: Vec<Write>,
    /// The slabs that are written, each with its range of `writes`.
    pub(super) slabs: Vec<(usize, Range<usize>)>,
}

/// Cosines and sines of one rotary table for every token of the batch.
#[derive(Debug)]
pub(super) struct Rotation {
    pub(super) pairing: RopePairing,
    pairs: usize,
    /// `[T, rotary_dim / 2]`, the attention factor included.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// Queries of consecutive tokens of one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QueryChunk {
    /// Token indices in the batch.
    pub(super) tokens: Range<usize>,
    /// Position of the first token.
    pub(super) position: usize,
    tiles: Range<usize>,
}

impl QueryChunk {
    /// Number of keys up to and including the position of the last query.
    pub(super) fn context(&self) -> usize {
        self.position + self.tokens.len()
    }
}

/// Where in the KV cache a token's key and value are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) token: usize,
    slab: usize,
    /// Tile within the slab.
    pub(super) tile: usize,
    pub(super) lane: usize,
}

impl Rotation {
    /// Cosines and sines of one token.
    pub(super) fn of(&self, token: usize) -> (&[f32], &[f32]) {
        let range = token * self.pairs..(token + 1) * self.pairs;
        (&self.cos[range.clone()], &self.sin[range])
    }

    fn fill(&mut self, table: &RopeSpec, batch: &Batch) {
        self.cos.clear();
        self.sin.clear();
        for sequence in &batch.sequences {
            let factor = table.attention_factor(sequence.rope_len);
            let inv_freq = table.inv_freq(sequence.rope_len);
            for position in sequence.positions() {
                let angles = inv_freq.iter().map(|frequency| position as f32 * frequency);
                self.cos.extend(angles.clone().map(|angle| angle.cos() * factor));
                self.sin.extend(angles.map(|angle| angle.sin() * factor));
            }
        }
    }
}

impl BatchLayout {
    /// Recomputes everything for `batch`.
    pub(super) fn fill(&mut self, spec: &DecoderSpec, batch: &Batch, kv_cache: &KvCache) {
        self.rows = batch.token_ids.len();
        self.fill_rotations(spec, batch);
        self.fill_query_scales(spec, batch);
        let per_group = |attention: &AttentionSpec| attention.num_attention_heads / attention.num_key_value_heads;
        let most = spec.attentions.iter().map(per_group).max().unwrap_or(1);
        self.fill_chunks(batch, kv_cache, (ATTENTION_ROWS / most).max(1));
        self.fill_writes(batch, kv_cache.config().block_size);
    }

    /// Tile ids of the sequence that a chunk belongs to.
    pub(super) fn tiles(&self, chunk: &QueryChunk) -> &[u32] {
        &self.tiles[chunk.tiles.clone()]
    }

    fn fill_query_scales(&mut self, spec: &DecoderSpec, batch: &Batch) {
        self.query_scales.resize(spec.attentions.len(), Vec::new());
        for (scales, attention) in self.query_scales.iter_mut().zip(&spec.attentions) {
            scales.clear();
            if let Some(scale) = attention.query_position_scale {
                let positions = batch.sequences.iter().flat_map(SequenceSlice::positions);
                scales.extend(positions.map(|position| scale.factor(position)));
            }
        }
    }

    fn fill_rotations(&mut self, spec: &DecoderSpec, batch: &Batch) {
        if self.rotations.len() != spec.rope.len() {
            let rotation = |table: &RopeSpec| Rotation {
                pairing: table.pairing,
                pairs: table.rotary_dim / 2,
                cos: Vec::new(),
                sin: Vec::new(),
            };
            self.rotations = spec.rope.iter().map(rotation).collect();
        }
        for (rotation, table) in self.rotations.iter_mut().zip(&spec.rope) {
            rotation.fill(table, batch);
        }
    }

    fn fill_chunks(&mut self, batch: &Batch, kv_cache: &KvCache, len: usize) {
        self.tiles.clear();
        self.chunks.clear();
        for (range, sequence) in batch.ranges() {
            let first_tile = self.tiles.len();
            kv_cache.tiles(sequence, sequence.positions().end, &mut self.tiles);
            for start in range.clone().step_by(len) {
                let tokens = start..range.end.min(start + len);
                let position = sequence.context_len + start - range.start;
                self.chunks.push(QueryChunk { tokens, position, tiles: first_tile..self.tiles.len() });
            }
        }
    }

    fn fill_writes(&mut self, batch: &Batch, block_size: usize) {
        self.writes.clear();
        for (range, sequence) in batch.ranges() {
            for (token, position) in range.zip(sequence.positions()) {
                let slot = sequence.slot(position, block_size);
                let tile = slot / TILE;
                let (slab, tile) = (tile / SLAB_TILES, tile % SLAB_TILES);
                self.writes.push(Write { token, slab, tile, lane: slot % TILE });
            }
        }
        self.writes.sort_unstable_by_key(|write| (write.slab, write.token));
        self.slabs.clear();
        for (index, write) in self.writes.iter().enumerate() {
            match self.slabs.last_mut() {
                Some((slab, writes)) if *slab == write.slab => writes.end = index + 1,
                _ => self.slabs.push((write.slab, index..index + 1)),
            }
        }
    }
}
