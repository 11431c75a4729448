//! Several residual streams, of which each layer transforms one.
//!
//! They lie in panels like one residual stream of `K` times as many tokens: `[panels][T][K][16]`. While a layer runs,
//! `hidden` is the active stream. Sums over streams run in their order, in f32, each product rounded before it is added.

use braidinfer_kernels::norm::Row;
use braidinfer_kernels::{Buffer, Chunks, LANES, Pool, elementwise};
use braidinfer_model::spec::AltUpSpec;

use super::FusedRunner;
use super::each_row::{each_row, row_sum};
use super::encode::{Input, Source};
use super::packed::{PackedAltUp, PackedLinear};
use super::product::Products;
use super::scratch::{Scratch, panels};
use super::trace::{Trace, from_panels};
use crate::executor::KernelPlan;

/// Buffers of a model with several residual streams.
#[derive(Debug, Default)]
pub(super) struct StreamScratch {
    /// All streams, `[panels][T][K][16]`.
    pub(super) streams: Buffer,
    /// Rows of `streams` that are read.
    rows: Vec<usize>,
    /// What the router of a layer gives, `[T][16]`, or a projection of a stream, `[panels][T][16]`.
    projected: Buffer,
    /// Coefficients of every token: `[T][K * K]` to predict, `[T][K]` to correct.
    coefs: Buffer,
    /// Factors of the projections of every token.
    factors: Vec<f32>,
    /// What the output head reads, `[panels][rows][16]`.
    pub(super) merged: Buffer,
}

/// What the router of a layer reads.
#[derive(Debug, Clone, Copy)]
enum RouterInput {
    /// The active stream, before the layer.
    ActiveStream,
    /// The layer's output, in `hidden`.
    Output,
}

impl FusedRunner {
    /// Makes all streams of the embedding in `hidden`, if there are several.
    pub(super) fn spread_streams(&mut self, plan: &KernelPlan) {
        let Some(projections) = &self.weights.stream_projections else { return };
        let (isa, rows, width, count) = (self.isa, self.layout.rows, self.spec.hidden_size, self.spec.streams());
        let Scratch { hidden, normed, several, rows: scratch, .. } = &mut self.scratch;
        let StreamScratch { streams, projected, factors, .. } = several;
        let streams = panels(streams, width, rows * count);
        put_stream(&mut self.pool, streams, hidden, [rows, count, 0], None);
        let source = Source::Panels { data: hidden, stride: rows, select: None };
        let input = Input { source, rows, width, norm: None };
        let products = Products::new(isa, (&self.weights, &self.adapters), plan, &self.pool);
        let readers: Vec<&PackedLinear> = projections.spread.iter().collect();
        normed.fill(isa, &mut self.pool, scratch, input, products.levels(readers.iter()));
        let least = projections.least_mean_square;
        for (index, linear) in projections.spread.iter().enumerate() {
            let projected = panels(projected, width, rows);
            products.all(&mut self.pool, &[linear], normed, rows, projected);
            let (like, own): (&[f32], &[f32]) = (hidden, projected);
            each_row(&mut self.pool, factors, rows, 0.0, |row| {
                magnitude_ratio(Row { data: like, rows, row, width }, Row { data: own, rows, row, width }, least)
            });
            put_stream(&mut self.pool, streams, projected, [rows, count, index + 1], Some(factors));
        }
    }

    /// What the output head reads of some rows, in `merged`, if there are several streams.
    pub(super) fn merge_streams(&mut self, wanted: &[usize], plan: &KernelPlan) {
        let Some(projections) = self.weights.stream_projections.as_ref().filter(|_| !wanted.is_empty()) else { return };
        let (isa, tokens, width, count) = (self.isa, self.layout.rows, self.spec.hidden_size, self.spec.streams());
        let Scratch { normed, several, rows: scratch, .. } = &mut self.scratch;
        let StreamScratch { streams, rows: selected, projected, factors, merged, .. } = several;
        let (rows, stride) = (wanted.len(), tokens * count);
        let streams = &streams[..];
        let merged = panels(merged, width, rows);
        self.pool.for_each(Chunks::new(merged, rows * LANES), |panel, merged, _| {
            for (merged, token) in merged.chunks_exact_mut(LANES).zip(wanted) {
                merged.copy_from_slice(&streams[(panel * stride + token * count) * LANES..][..LANES]);
            }
        });
        let products = Products::new(isa, (&self.weights, &self.adapters), plan, &self.pool).of_rows(wanted);
        for (index, linear) in projections.merge.iter().enumerate() {
            select(selected, wanted.iter().copied(), [count, index + 1]);
            let source = Source::Panels { data: streams, stride, select: Some(selected) };
            let input = Input { source, rows, width, norm: None };
            normed.fill(isa, &mut self.pool, scratch, input, products.levels([linear].iter()));
            let projected = panels(projected, width, rows);
            products.all(&mut self.pool, &[linear], normed, rows, projected);
            let own = &*projected;
            each_row(&mut self.pool, factors, rows, 0.0, |row| {
                let first = Row { data: streams, rows: stride, row: wanted[row] * count, width };
                magnitude_ratio(first, Row { data: own, rows, row, width }, projections.least_mean_square)
            });
            let factors = &factors[..];
            self.pool.for_each(Chunks::new(merged, rows * LANES), |panel, merged, _| {
                let own = &own[panel * rows * LANES..][..rows * LANES];
                let values = merged.chunks_exact_mut(LANES).zip(own.chunks_exact(LANES)).zip(factors);
                values.for_each(|((merged, own), factor)| elementwise::add_scaled(isa, merged, own, *factor));
            });
        }
        elementwise::scale(isa, merged, 1.0 / count as f32);
    }

    /// What the router of a layer gives for every token, in `projected`, if there are several streams: `K` values in a panel
    /// `[T][16]`.
    fn route_streams(&mut self, index: usize, read: RouterInput, plan: &KernelPlan) {
        const { assert!(AltUpSpec::MOST_INPUTS <= LANES, "one panel has the values of all streams") };
        let Some(altup) = self.weights.layers[index].altup.as_deref() else { return };
        let (isa, rows, width, count) = (self.isa, self.layout.rows, self.spec.hidden_size, altup.count);
        let Scratch { hidden, normed, several, rows: scratch, .. } = &mut self.scratch;
        let StreamScratch { streams, rows: selected, projected, .. } = several;
        let source = match read {
            RouterInput::ActiveStream => {
                select(selected, 0..rows, [count, altup.active]);
                Source::Panels { data: streams, stride: rows * count, select: Some(selected) }
            }
            RouterInput::Output => Source::Panels { data: hidden, stride: rows, select: None },
        };
        let input = Input { source, rows, width, norm: Some(&altup.router_norm) };
        let products = Products::new(isa, (&self.weights, &self.adapters), plan, &self.pool);
        normed.fill(isa, &mut self.pool, scratch, input, products.levels([&altup.router].iter()));
        let modalities = panels(projected, count, rows);
        products.all(&mut self.pool, &[&altup.router], normed, rows, modalities);
        elementwise::softcap(isa, modalities, 1.0);
    }

    /// Predicts all streams before a layer, and makes the active one its input, if there are several.
    pub(super) fn predict_streams(&mut self, index: usize, plan: &KernelPlan, trace: &mut Trace) {
        self.route_streams(index, RouterInput::ActiveStream, plan);
        let Some(altup) = self.weights.layers[index].altup.as_deref() else { return };
        let (rows, width, count) = (self.layout.rows, self.spec.hidden_size, altup.count);
        let Scratch { hidden, several, .. } = &mut self.scratch;
        let StreamScratch { streams, projected, coefs, .. } = several;
        let modalities = &projected[..rows * LANES];
        fill_coefs(&mut self.pool, coefs, modalities, [count * count, count], &altup.prediction_coefs, 0.0);
        #[cfg(test)]
        super::planted::spoil_coefs(self.planted, index, coefs, true);
        let (coefs, active) = (&coefs[..], altup.active);
        let parts = (Chunks::new(streams, rows * count * LANES), Chunks::new(hidden, rows * LANES));
        self.pool.for_each(parts, |_, (streams, hidden), _| {
            let tokens = streams.chunks_exact_mut(count * LANES).zip(hidden.chunks_exact_mut(LANES));
            for ((streams, hidden), coefs) in tokens.zip(coefs.chunks_exact(count * count)) {
                predict(streams, coefs, count);
                hidden.copy_from_slice(&streams[active * LANES..][..LANES]);
            }
        });
        trace.record("altup.predicted", rows, || from_panels(streams, rows * count, width));
    }

    /// Corrects all streams after a layer, whose output is in `hidden`, which then is what gates the layer's further
    /// input.
    pub(super) fn correct_streams(&mut self, index: usize, plan: &KernelPlan, trace: &mut Trace) {
        self.route_streams(index, RouterInput::Output, plan);
        let Some(altup) = self.weights.layers[index].altup.as_deref() else { return };
        let (rows, width, count) = (self.layout.rows, self.spec.hidden_size, altup.count);
        let Scratch { hidden, several, .. } = &mut self.scratch;
        let StreamScratch { streams, projected, coefs, .. } = several;
        let modalities = &projected[..rows * LANES];
        fill_coefs(&mut self.pool, coefs, modalities, [count, count], &altup.correction_coefs, 1.0);
        #[cfg(test)]
        super::planted::spoil_coefs(self.planted, index, coefs, false);
        let coefs = &coefs[..];
        let parts = (Chunks::new(streams, rows * count * LANES), Chunks::new(hidden, rows * LANES));
        self.pool.for_each(parts, |panel, (streams, hidden), _| {
            let tokens = streams.chunks_exact_mut(count * LANES).zip(hidden.chunks_exact_mut(LANES));
            for ((streams, hidden), coefs) in tokens.zip(coefs.chunks_exact(count)) {
                altup.correct(streams, coefs, hidden, panel);
            }
        });
        trace.record("altup.corrected", rows, || from_panels(streams, rows * count, width));
    }

    /// Adds what a layer made of its further input, in `branch`, to all streams but the first, if there are several.
    pub(super) fn add_branch_to_streams(&mut self) {
        let (rows, count) = (self.layout.rows, self.spec.streams());
        let Scratch { several, branch, .. } = &mut self.scratch;
        let branch = &branch[..];
        let chunks = Chunks::new(&mut several.streams, rows * count * LANES);
        self.pool.for_each(chunks, |panel, streams, _| {
            let branch = &branch[panel * rows * LANES..][..rows * LANES];
            for (streams, branch) in streams.chunks_exact_mut(count * LANES).zip(branch.chunks_exact(LANES)) {
                for stream in streams.chunks_exact_mut(LANES).skip(1) {
                    stream.iter_mut().zip(branch).for_each(|(value, added)| *value += added);
                }
            }
        });
    }

    /// The residual stream, or all of them if there are several, and the number of rows that they lie in panels as.
    pub(super) fn stream(&self) -> (&[f32], usize) {
        match self.spec.altup {
            Some(altup) => (&self.scratch.several.streams, self.layout.rows * altup.altup_num_inputs),
            None => (&self.scratch.hidden, self.layout.rows),
        }
    }

    /// The same, resized for the current batch.
    pub(super) fn stream_mut(&mut self) -> (&mut [f32], usize) {
        let rows = self.layout.rows * self.spec.streams();
        let Scratch { hidden, several, .. } = &mut self.scratch;
        let width = self.spec.hidden_size;
        match self.spec.altup {
            Some(_) => {
                // The active stream is copied there.
                panels(hidden, width, self.layout.rows);
                (panels(&mut several.streams, width, rows), rows)
            }
            None => (panels(hidden, width, rows), rows),
        }
    }
}

impl PackedAltUp {
    /// Corrects the streams of a token, `[K][16]` of a panel, and replaces what the layer made of the active one by what
    /// gates its further input.
    fn correct(&self, streams: &mut [f32], coefs: &[f32], activated: &mut [f32], panel: usize) {
        let predicted = &streams[self.active * LANES..][..LANES];
        activated.iter_mut().zip(predicted).for_each(|(value, predicted)| *value -= predicted);
        for (stream, coef) in streams.chunks_exact_mut(LANES).zip(coefs) {
            stream.iter_mut().zip(&*activated).for_each(|(value, innovation)| *value += coef * innovation);
        }
        activated.copy_from_slice(&streams[self.active * LANES..][..LANES]);
        if let Some(scale) = &self.output_scale {
            let scale = &scale[panel * LANES..][..LANES];
            activated.iter_mut().zip(scale).for_each(|(value, scale)| *value *= scale);
        }
    }
}

/// Predicts the streams of a token, `[K][16]` of a panel.
fn predict(streams: &mut [f32], coefs: &[f32], count: usize) {
    let mut before = [[0.0; LANES]; AltUpSpec::MOST_INPUTS];
    for (before, stream) in before.iter_mut().zip(streams.chunks_exact(LANES)) {
        before.copy_from_slice(stream);
    }
    for (stream, coefs) in streams.chunks_exact_mut(LANES).zip(coefs.chunks_exact(count)) {
        let mut sum = [0.0; LANES];
        for (before, coef) in before.iter().zip(coefs) {
            sum.iter_mut().zip(before).for_each(|(sum, value)| *sum += coef * value);
        }
        stream.iter_mut().zip(sum).for_each(|(value, sum)| *value += sum);
    }
}

/// The coefficients of every token, `constant` plus `weights` `[outputs, inputs]` times what the router gives.
fn fill_coefs(
    pool: &mut Pool,
    coefs: &mut Buffer,
    modalities: &[f32],
    [outputs, inputs]: [usize; 2],
    weights: &[f32],
    constant: f32,
) {
    coefs.resize(modalities.len() / LANES * outputs);
    pool.for_each(Chunks::new(coefs, outputs), |token, coefs, _| {
        let modalities = &modalities[token * LANES..][..inputs];
        for (coef, weights) in coefs.iter_mut().zip(weights.chunks_exact(inputs)) {
            let product: f32 = weights.iter().zip(modalities).map(|(weight, value)| weight * value).sum();
            *coef = product + constant;
        }
    });
}

/// The rows of one of `count` streams of some tokens.
fn select(selected: &mut Vec<usize>, tokens: impl Iterator<Item = usize>, [count, stream]: [usize; 2]) {
    selected.clear();
    selected.extend(tokens.map(|token| token * count + stream));
}

/// Sets one stream to `values` `[panels][T][16]`, times a factor for each token.
fn put_stream(
    pool: &mut Pool,
    streams: &mut [f32],
    values: &[f32],
    [rows, count, stream]: [usize; 3],
    factors: Option<&[f32]>,
) {
    pool.for_each(Chunks::new(streams, rows * count * LANES), |panel, streams, _| {
        let values = &values[panel * rows * LANES..][..rows * LANES];
        let tokens = streams.chunks_exact_mut(count * LANES).zip(values.chunks_exact(LANES));
        for (token, (streams, values)) in tokens.enumerate() {
            let factor = factors.map_or(1.0, |factors| factors[token]);
            let stream = &mut streams[stream * LANES..][..LANES];
            stream.iter_mut().zip(values).for_each(|(to, value)| *to = value * factor);
        }
    });
}

/// The factor that makes `own` as large as `like`, whose mean square is taken to be at least `least`.
fn magnitude_ratio(like: Row<'_>, own: Row<'_>, least: f32) -> f32 {
    mean_square(like).sqrt() / mean_square(own).max(least).sqrt()
}

/// The mean of the squares of a row.
fn mean_square(row: Row<'_>) -> f32 {
    row_sum(row, |value| value * value) / row.width as f32
}
