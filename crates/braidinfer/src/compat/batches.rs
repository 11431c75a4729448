//! Passages as batches: one that is compared layer by layer, with a few tokens at far positions, and the rest.

use braidinfer_model::DecoderSpec;
use braidinfer_model::spec::{AttentionSpec, Mixer, RopeScaling};

use super::Thoroughness;
use super::passages::{BEGINNING, Passages};
use crate::executor::{Batch, KvCacheConfig, SequenceSlice};

/// Tokens per stage: enough for full matrix multiplication speed.
const STAGE: usize = 64;

/// A position beyond the first span of keys of the fused attention kernels, with block tables longer than 64 entries.
const SECOND_SPAN: usize = 1040;

/// Most key values, over all heads, in a far context: the reference copies them for each layer.
const FAR_VALUES: [usize; 2] = [1 << 21, 1 << 24];

/// Allocates KV cache blocks in ascending order.
struct BlockAllocator {
    storage: KvCacheConfig,
    next: usize,
    /// BlockAllocator in which every slot is written.
    full: Vec<u32>,
}

impl BlockAllocator {
    fn new(storage: KvCacheConfig) -> Self {
        Self { storage, next: 0, full: Vec::new() }
    }

    /// Number of tokens that still fit.
    fn room(&self) -> usize {
        (self.storage.num_blocks - self.next).saturating_mul(self.storage.block_size)
    }

    fn take(&mut self, tokens: usize) -> Vec<u32> {
        let first = self.next as u32;
        self.next += tokens.div_ceil(self.storage.block_size);
        (first..self.next as u32).collect()
    }

    /// Adds a sequence from its beginning, and requests the logits of all but its first `known` tokens.
    fn add_sequence(&mut self, batch: &mut Batch, ids: &[u32], known: usize) {
        let block_table = self.take(ids.len());
        self.full.extend(&block_table[..ids.len() / self.storage.block_size]);
        let state_slot = batch.sequences.len() as u32;
        let slice = SequenceSlice { state_slot, ..SequenceSlice::new(0, ids.len(), block_table) };
        batch.push(ids, slice, ids.len().saturating_sub(known));
    }

    /// Adds tokens at a far position, on a context made of the blocks of near sequences, repeated. Both kernels see the
    /// same context, and no prefill is needed to get there. But no text has such a context, so the result shows faults,
    /// and not how often tokens change.
    fn add_far_tokens(&mut self, batch: &mut Batch, ids: &[u32], position: usize) {
        let before = position / self.storage.block_size;
        let mut block_table: Vec<u32> = self.full.iter().copied().cycle().take(before).collect();
        block_table.extend(self.take(ids.len()));
        let state_slot = batch.sequences.len() as u32;
        let slice = SequenceSlice { state_slot, ..SequenceSlice::new(position, ids.len(), block_table) };
        batch.push(ids, slice, ids.len());
    }
}

/// The batch that is compared layer by layer: the beginnings of some passages and, if `with_far`, tokens at far
/// positions on blocks of other sequences. Layers with per-sequence state have no state for far positions: such a model
/// reads on past the end of its windows.
pub(super) fn first(
    passages: &Passages,
    spec: &DecoderSpec,
    storage: KvCacheConfig,
    how: Thoroughness,
    with_far: bool,
) -> Batch {
    let limit = storage.capacity().min(spec.context_length());
    let mut batch = Batch::default();
    let mut blocks = BlockAllocator::new(storage);
    let joined = passages.joined(LONG);
    let near: Vec<&[u32]> = match how {
        Thoroughness::Brief | Thoroughness::Normal => beginnings(passages, first_lens(how)),
        Thoroughness::Full => [&joined[..]].into_iter().chain(beginnings(passages, first_lens(how))).collect(),
    };
    let longest = near.iter().map(|ids| ids.len()).max().unwrap_or(0);
    let end = windows(spec).min().filter(|window| !with_far && longest < window + BEYOND).unwrap_or(0);
    // Up to there, other sequences show what this one would.
    let past_window = (joined.len() > end && end > 0).then(|| (&joined[..joined.len().min(end + BEYOND)], end));
    for (ids, known) in near.into_iter().map(|ids| (ids, 0)).chain(past_window) {
        let ids = &ids[..ids.len().min(limit).min(blocks.room())];
        if ids.len() > known {
            blocks.add_sequence(&mut batch, ids, known);
        }
    }
    let (most, rows, values) = match how {
        Thoroughness::Brief => (3, 1, FAR_VALUES[0]),
        Thoroughness::Normal | Thoroughness::Full => (8, 4, FAR_VALUES[1]),
    };
    let limit = limit.min(values / spec.layer_attentions().map(AttentionSpec::key_value_width).max().unwrap_or(1));
    let ids = &passages.ids[0];
    let ids = &ids[..ids.len().min(rows)];
    let positions = if with_far { far_positions(spec, storage.block_size, how) } else { Vec::new() };
    for position in positions.into_iter().filter(|position| position + ids.len() <= limit).take(most) {
        if !blocks.full.is_empty() && blocks.room() >= ids.len() {
            blocks.add_far_tokens(&mut batch, ids, position);
        }
    }
    batch
}

/// Number of tokens of each of the first passages that are compared layer by layer.
fn first_lens(how: Thoroughness) -> &'static [usize] {
    match how {
        Thoroughness::Brief => &[16],
        Thoroughness::Normal => &[48, 24, 24],
        Thoroughness::Full => &[64; 4],
    }
}

/// Most tokens of a long sequence: one that a full check reads, or one past the end of a window.
const LONG: usize = 512;

/// Tokens past the end of a window.
const BEYOND: usize = 16;

/// The sliding windows of the layers that have one.
fn windows(spec: &DecoderSpec) -> impl Iterator<Item = usize> {
    spec.layers.iter().filter_map(|layer| match layer.mixer {
        Mixer::Attention { sliding_window, .. } => sliding_window,
        _ => None,
    })
}

fn beginnings<'a>(passages: &'a Passages, lens: &[usize]) -> Vec<&'a [u32]> {
    passages.ids.iter().zip(lens).map(|(ids, len)| &ids[..ids.len().min(*len)]).collect()
}

/// Positions at which the computation changes, most informative first, rounded up to whole blocks: the ends of sliding
/// windows, and twice as far, where ignoring the window matters more; thresholds of RoPE; a second span of keys; the
/// end of the context.
fn far_positions(spec: &DecoderSpec, block_size: usize, how: Thoroughness) -> Vec<usize> {
    let mut positions: Vec<usize> = windows(spec).flat_map(|window| [window, 2 * window]).collect();
    positions.extend(spec.rope.iter().filter_map(|table| match &table.scaling {
        RopeScaling::Dynamic { original_max_position_embeddings, .. }
        | RopeScaling::Longrope { original_max_position_embeddings, .. } => Some(*original_max_position_embeddings),
        _ => None,
    }));
    let scales = spec.attentions.iter().filter_map(|attention| attention.query_position_scale);
    positions.extend(scales.map(|scale| scale.original_max_position_embeddings));
    positions.push(SECOND_SPAN);
    if how != Thoroughness::Brief {
        positions.push(spec.context_length().saturating_sub(2 * block_size));
    }
    let mut seen = std::collections::BTreeSet::new();
    let rounded = positions.into_iter().map(|position| position.next_multiple_of(block_size));
    rounded.filter(|position| *position > 0 && seen.insert(*position)).collect()
}

/// The tokens that [`first`] leaves out, in stages: the beginnings of the other passages, then the rest of each.
/// Requests logits only of tokens that were not compared before.
pub(super) fn stages(passages: &Passages, spec: &DecoderSpec, storage: KvCacheConfig, how: Thoroughness) -> Vec<Batch> {
    let limit = storage.capacity().min(spec.context_length());
    let lens = first_lens(how);
    let known = |index: usize| lens.get(index).copied().unwrap_or(BEGINNING);
    let others = passages.ids.iter().skip(lens.len()).map(|ids| (&ids[..ids.len().min(BEGINNING)], 0));
    let rests = passages.ids.iter().enumerate().map(|(index, ids)| (&ids[..], known(index)));
    let mut stages = Vec::new();
    let (mut batch, mut blocks) = (Batch::default(), BlockAllocator::new(storage));
    for (ids, known) in others.chain(rests) {
        let ids = &ids[..ids.len().min(limit)];
        if batch.logits_rows.len() >= STAGE || blocks.room() < ids.len() {
            stages.push(std::mem::take(&mut batch));
            blocks = BlockAllocator::new(storage);
        }
        if ids.len() > known {
            blocks.add_sequence(&mut batch, ids, known);
        }
    }
    stages.push(batch);
    stages.retain(|batch| !batch.token_ids.is_empty());
    stages
}

/// Number of requested rows of logits in sequences that begin at position 0; those at far positions come after them.
pub(super) fn near_rows(batch: &Batch) -> usize {
    let near = batch.ranges().filter(|(_, sequence)| sequence.context_len == 0).map(|(range, _)| range.end).max();
    batch.logits_rows.iter().filter(|row| near.is_some_and(|end| **row < end)).count()
}

/// For each requested row of logits, the next token of the text, in sequences that begin at position 0.
pub(super) fn next_tokens(batch: &Batch) -> Vec<Option<u32>> {
    let ids = &batch.token_ids;
    let of = |(range, sequence): (std::ops::Range<usize>, &SequenceSlice)| -> Vec<Option<u32>> {
        let next = |index: usize| (sequence.context_len == 0 && index + 1 < range.end).then(|| ids[index + 1]);
        range.clone().map(next).collect()
    };
    let all: Vec<Option<u32>> = batch.ranges().flat_map(of).collect();
    batch.logits_rows.iter().map(|row| all[*row]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::KvDtype;

    fn storage(num_blocks: usize) -> KvCacheConfig {
        KvCacheConfig { block_size: 16, num_blocks, dtype: KvDtype::F16 }
    }

    fn passages() -> Passages {
        Passages::new(None, None, 100).expect("ids can be drawn")
    }

    /// A model with a sliding window of 4 in some layers, and a context of 512 tokens.
    fn spec() -> DecoderSpec {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/models/gemma3");
        let source = braidinfer_model::ModelSource::open(dir).expect("the fixture is there");
        braidinfer_model::describe(&source).expect("it is described").0.spec
    }

    #[test]
    fn batches_fit_the_kv_cache() {
        for how in [Thoroughness::Brief, Thoroughness::Normal, Thoroughness::Full] {
            for num_blocks in [1, 2, 3, 5, 40, 4096] {
                let (spec, storage) = (spec(), storage(num_blocks));
                let batch = first(&passages(), &spec, storage, how, true);
                batch.validate(&spec, &storage).expect("the batch is sound");
                assert_eq!(next_tokens(&batch).len(), batch.token_ids.len());
                for stage in stages(&passages(), &spec, storage, how) {
                    stage.validate(&spec, &storage).expect("the stage is sound");
                }
            }
        }
    }

    #[test]
    fn every_position_is_compared_exactly_once() {
        let (passages, spec, storage) = (passages(), spec(), storage(4096));
        for how in [Thoroughness::Brief, Thoroughness::Normal] {
            let mut batches = vec![first(&passages, &spec, storage, how, true)];
            batches.extend(stages(&passages, &spec, storage, how));
            let mut seen = std::collections::HashSet::new();
            for batch in &batches {
                for (range, _) in batch.ranges().filter(|(_, sequence)| sequence.context_len == 0) {
                    for row in batch.logits_rows.iter().filter(|row| range.contains(row)) {
                        // Eight tokens identify a passage.
                        let passage = batch.token_ids[range.start..range.start + 8].to_vec();
                        assert!(seen.insert((passage, row - range.start)), "{how:?}");
                    }
                }
            }
            assert_eq!(seen.len(), passages.ids.iter().map(Vec::len).sum::<usize>());
            // The first stage, which a brief check reads, covers several passages.
            assert!(batches[1].sequences.len() >= 3);
        }
    }

    #[test]
    fn far_positions_need_few_tokens() {
        let mut spec = spec();
        spec.max_position_embeddings = 1 << 17;
        for layer in &mut spec.layers {
            if let Mixer::Attention { sliding_window, .. } = &mut layer.mixer {
                *sliding_window = Some(4096);
            }
        }
        let batch = first(&passages(), &spec, storage(8192), Thoroughness::Normal, true);
        let far: Vec<usize> = batch.sequences.iter().map(|s| s.context_len).filter(|len| *len > 0).collect();
        assert_eq!(&far[..3], [4096, 8192, 1040]);
        assert!(batch.token_ids.len() < 120, "{}", batch.token_ids.len());
    }

    #[test]
    fn without_far_positions_a_sequence_goes_past_the_window() {
        let mut spec = spec();
        spec.max_position_embeddings = 4096;
        for (window, longest) in [(4, 20), (100, 116), (400, 416), (600, 16)] {
            for layer in &mut spec.layers {
                if let Mixer::Attention { sliding_window: Some(sliding_window), .. } = &mut layer.mixer {
                    *sliding_window = window;
                }
            }
            let batch = first(&passages(), &spec, storage(4096), Thoroughness::Brief, false);
            batch.validate(&spec, &storage(4096)).expect("the batch is sound");
            assert_eq!(near_rows(&batch), batch.logits_rows.len());
            let lens: Vec<usize> = batch.ranges().map(|(range, _)| range.len()).collect();
            assert_eq!(lens.iter().max(), Some(&longest), "{window}: {lens:?}");
            // Of a further sequence, only what is past the window is requested.
            assert_eq!(batch.logits_rows.len(), if lens.len() > 1 { 32 } else { 16 }, "{window}: {lens:?}");
        }
    }

    #[test]
    fn next_tokens_are_known_within_a_sequence_only() {
        let mut batch = Batch::default();
        let mut blocks = BlockAllocator::new(storage(4));
        blocks.add_sequence(&mut batch, &(0..20).collect::<Vec<u32>>(), 0);
        blocks.add_far_tokens(&mut batch, &[7, 8], 160);
        let next = next_tokens(&batch);
        assert_eq!((next[0], next[19], next[20]), (Some(1), None, None));
    }
}
