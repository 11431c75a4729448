//! What a device is told about a step: positions, slots, tables, rotations.

use braidinfer_model::DecoderSpec;

use super::memory::{KvMemory, TILE};
use crate::executor::{Batch, SequenceSlice};

/// The words of a step, and where each kind of them begins.
#[derive(Debug, Default)]
pub(super) struct Upload {
    pub(super) words: Vec<u32>,
    /// Positions of all tokens, which are the first words.
    pub(super) positions: Vec<u32>,
    /// Where the storage slots of all tokens are.
    pub(super) slots_at: usize,
    /// Where it says of every token where the tiles of its sequence begin.
    pub(super) tables_at: usize,
    /// Where cosines and sines are, for each rotary table.
    pub(super) rotations_at: Vec<[usize; 2]>,
    /// Where the factors of queries are, for each kind of attention; 0 for those without.
    pub(super) scales_at: Vec<usize>,
}

impl Upload {
    /// Makes it anew for `batch`.
    pub(super) fn fill(&mut self, spec: &DecoderSpec, batch: &Batch, kv: &KvMemory) {
        self.words.clear();
        self.positions.clear();
        for sequence in &batch.sequences {
            self.positions.extend(sequence.positions().map(|position| position as u32));
        }
        self.words.extend(&self.positions);
        self.fill_slots(batch, kv.config().block_size);
        self.fill_tables(batch, kv);
        self.fill_rotations(spec, batch);
        self.fill_scales(spec, batch);
    }

    /// Words that [`Upload::fill`] makes of a batch, at most.
    pub(super) fn words_of(spec: &DecoderSpec, batch: &Batch) -> usize {
        let tokens = batch.token_ids.len();
        let tiles = batch.sequences.iter().map(|sequence| sequence.positions().end.div_ceil(TILE)).sum::<usize>();
        let rotated = spec.rope.iter().map(|table| table.rotary_dim).sum::<usize>();
        tokens * (3 + rotated + spec.attentions.len()) + tiles
    }

    fn fill_slots(&mut self, batch: &Batch, block_size: usize) {
        self.slots_at = self.words.len();
        for sequence in &batch.sequences {
            self.words.extend(sequence.positions().map(|position| sequence.slot(position, block_size) as u32));
        }
    }

    fn fill_tables(&mut self, batch: &Batch, kv: &KvMemory) {
        self.tables_at = self.words.len();
        let mut at = self.tables_at + batch.token_ids.len();
        for sequence in &batch.sequences {
            self.words.extend(std::iter::repeat_n(at as u32, sequence.query_len));
            at += sequence.positions().end.div_ceil(TILE);
        }
        for sequence in &batch.sequences {
            kv.tiles(sequence, &mut self.words);
        }
    }

    /// As on the CPU: in f32, from the frequencies that the length of the sequence gives.
    fn fill_rotations(&mut self, spec: &DecoderSpec, batch: &Batch) {
        self.rotations_at.clear();
        for table in &spec.rope {
            let cosines_at = self.words.len();
            let mut sines = Vec::new();
            for sequence in &batch.sequences {
                let factor = table.attention_factor(sequence.rope_len);
                let inv_freq = table.inv_freq(sequence.rope_len);
                for position in sequence.positions() {
                    let angles = inv_freq.iter().map(|frequency| position as f32 * frequency);
                    self.words.extend(angles.clone().map(|angle| (angle.cos() * factor).to_bits()));
                    sines.extend(angles.map(|angle| (angle.sin() * factor).to_bits()));
                }
            }
            self.rotations_at.push([cosines_at, self.words.len()]);
            self.words.extend(sines);
        }
    }

    fn fill_scales(&mut self, spec: &DecoderSpec, batch: &Batch) {
        self.scales_at.clear();
        for attention in &spec.attentions {
            let Some(scale) = attention.query_position_scale else {
                self.scales_at.push(0);
                continue;
            };
            self.scales_at.push(self.words.len());
            let positions = batch.sequences.iter().flat_map(SequenceSlice::positions);
            self.words.extend(positions.map(|position| scale.factor(position).to_bits()));
        }
    }
}
