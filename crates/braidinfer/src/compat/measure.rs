//! The same tokens through the standard kernels in f32 and through others, layer by layer.

use std::ops::Range;

use super::divergence::{self, Divergence, relative_error};
use crate::Result;
use crate::executor::fused::{FusedExecutor, KernelPlan};
use crate::executor::{
    Activation, Batch, Executor, KvCacheConfig, LayerByLayer, Layers, NoProbe, Recorder, SequenceSlice,
};

/// Positions whose logits are computed at once.
const HEAD_ROWS: usize = 64;

/// What the standard kernels compute in f32, kept for every comparison.
pub(super) struct Truth {
    batch: Batch,
    vocab_size: usize,
    layers: usize,
    /// The residual stream before every layer, and after the last one.
    streams: Vec<Vec<f32>>,
    /// `[T][vocab_size]`.
    logits: Vec<f32>,
}

/// Errors of one layer that was given the true residual stream.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LayerErrors {
    /// Relative error of every activation, in the order of computation.
    pub(super) ops: Vec<(String, f64)>,
    /// Relative error of what the layer adds to the residual stream.
    pub(super) update: f64,
}

/// Every part of a decoder, each on its true input.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Errors {
    /// Relative error of the embeddings.
    pub(super) embed: f64,
    pub(super) layers: Vec<LayerErrors>,
    /// Relative error of the logits.
    pub(super) logits: f64,
}

/// A whole run, on its own residual stream.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Run {
    pub(super) divergence: Divergence,
    /// Relative error of the residual stream after each layer.
    pub(super) drift: Vec<f64>,
}

/// Most tokens of the short sequence.
const SHORT: usize = 64;

/// `ids` as whole sequences: a long one and, where there is room for it, a short one with the same beginning, which RoPE may
/// rotate by other frequencies.
pub(super) fn sequences(ids: &[u32], storage: KvCacheConfig) -> Batch {
    let blocks = |tokens: usize| tokens.div_ceil(storage.block_size) as u32;
    let (long, short) = ids.split_at(ids.len() - (ids.len() / 4).min(SHORT));
    let short = &ids[..short.len()];
    let room = (blocks(long.len()) + blocks(short.len())) as usize <= storage.num_blocks;
    let mut batch = Batch::default();
    let mut first = 0;
    for ids in if room && !short.is_empty() { vec![long, short] } else { vec![ids] } {
        let slice = SequenceSlice {
            query_len: ids.len(),
            context_len: 0,
            rope_len: ids.len(),
            block_table: (first..first + blocks(ids.len())).collect(),
        };
        batch.push(ids, slice, ids.len());
        first += blocks(ids.len());
    }
    batch
}

impl Truth {
    /// Runs `standard`, and beside every part of it the same one of `fused` by each of the plans, on the true input. The
    /// executor is left with the last plan.
    pub(super) fn observe(
        standard: &mut dyn LayerByLayer,
        fused: &mut FusedExecutor,
        plans: &[&KernelPlan],
        batch: Batch,
    ) -> Result<(Self, Vec<Errors>)> {
        let (layers, vocab_size) = (fused.spec().layers.len(), fused.spec().vocab_size);
        let rows = batch.token_ids.len();
        let mut stream = standard.embed(&batch)?;
        let embed = relative_error(&stream, &fused.embed(&batch)?, rows);
        let mut errors = vec![Errors { embed, layers: Vec::with_capacity(layers), logits: 0.0 }; plans.len()];
        let mut streams = Vec::with_capacity(layers + 1);
        for index in 0..layers {
            let mut truth = Recorder::new(|_: &str| true);
            let next = standard.layer(index, &batch, &stream, &mut truth)?;
            for (plan, errors) in plans.iter().zip(&mut errors) {
                fused.set_plan((*plan).clone())?;
                let mut own = Recorder::new(|_: &str| true);
                let output = fused.layer(index, &batch, &stream, &mut own)?;
                let ops = compare(&truth.activations, &own.activations);
                errors.layers.push(LayerErrors { ops, update: update_error(&stream, &next, &output, rows) });
            }
            streams.push(std::mem::replace(&mut stream, next));
        }
        let true_logits = logits(standard, &batch, &stream, vocab_size)?;
        for (plan, errors) in plans.iter().zip(&mut errors) {
            fused.set_plan((*plan).clone())?;
            errors.logits = relative_error(&true_logits, &logits(fused, &batch, &stream, vocab_size)?, rows);
        }
        streams.push(stream);
        Ok((Self { batch, vocab_size, layers, streams, logits: true_logits }, errors))
    }

    /// Tokens compared.
    pub(super) fn tokens(&self) -> usize {
        self.batch.token_ids.len()
    }

    /// Mean negative log-likelihood of the next token.
    pub(super) fn loss(&self) -> f64 {
        divergence::loss(&self.logits, self.vocab_size, &self.next())
    }

    /// The token after each one of the long sequence; the short one says nothing new.
    fn next(&self) -> Vec<Option<u32>> {
        let ids = &self.batch.token_ids;
        let after =
            |range: Range<usize>| range.clone().map(move |index| (index + 1 < range.end).then(|| ids[index + 1]));
        self.batch.ranges().take(1).flat_map(|(range, _)| after(range)).collect()
    }

    /// [`LayerErrors::update`] of one layer, measured again.
    pub(super) fn update_error(&self, executor: &mut dyn LayerByLayer, layer: usize) -> Result<f64> {
        let (before, after) = (&self.streams[layer], &self.streams[layer + 1]);
        let own = executor.layer(layer, &self.batch, before, &mut NoProbe)?;
        Ok(update_error(before, after, &own, self.tokens()))
    }

    /// Runs an executor from the tokens to the logits.
    pub(super) fn run(&self, executor: &mut dyn LayerByLayer) -> Result<Run> {
        let mut stream = executor.embed(&self.batch)?;
        let mut drift = Vec::with_capacity(self.layers);
        for index in 0..self.layers {
            stream = executor.layer(index, &self.batch, &stream, &mut NoProbe)?;
            drift.push(relative_error(&self.streams[index + 1], &stream, self.tokens()));
        }
        let logits = logits(executor, &self.batch, &stream, self.vocab_size)?;
        let divergence = Divergence::of(&self.logits, &logits, self.vocab_size, &self.next());
        Ok(Run { divergence, drift })
    }
}

/// Logits of every position, some positions at a time.
fn logits(executor: &mut dyn LayerByLayer, batch: &Batch, stream: &[f32], vocab_size: usize) -> Result<Vec<f32>> {
    let positions: Vec<usize> = (0..batch.token_ids.len()).collect();
    let mut values = Vec::with_capacity(positions.len() * vocab_size);
    for rows in positions.chunks(HEAD_ROWS) {
        let part = Batch { logits_rows: rows.to_vec(), ..batch.clone() };
        let logits = executor.head(&part, stream)?;
        (0..logits.rows()).for_each(|row| values.extend_from_slice(logits.row(row)));
    }
    Ok(values)
}

/// Relative error of what leads from `before` to `after`, where `own` is what another executor makes of `before`.
fn update_error(before: &[f32], after: &[f32], own: &[f32], rows: usize) -> f64 {
    let update =
        |after: &[f32]| -> Vec<f32> { after.iter().zip(before).map(|(after, before)| after - before).collect() };
    relative_error(&update(after), &update(own), rows)
}

fn compare(truth: &[Activation], own: &[Activation]) -> Vec<(String, f64)> {
    // What comes after `layer.N.`.
    let op = |name: &str| name.splitn(3, '.').nth(2).unwrap_or(name).to_owned();
    let of = |truth: &Activation| {
        let own = own.iter().find(|own| own.name == truth.name)?;
        Some((op(&truth.name), relative_error(&truth.values, &own.values, truth.rows)))
    };
    truth.iter().filter_map(of).collect()
}
