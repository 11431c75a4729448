//! A branch of low rank beside attention.

use braidinfer_kernels::norm::{self, Row, Statistics};
use braidinfer_kernels::{Buffer, Chunks, LANES};

use super::FusedRunner;
use super::each_row::each_row;
use super::encode::{Input, Source};
use super::packed::{PackedLaurel, PackedNorm};
use super::product::Products;
use super::scratch::{Scratch, panels};
use super::trace::Trace;
use crate::executor::KernelPlan;

/// Buffers of a low-rank branch.
#[derive(Debug, Default)]
pub(super) struct LaurelScratch {
    /// Its output, `[panels][T][16]`.
    pub(super) branch: Buffer,
    /// Statistics of the residual stream and of the branch, `[T]`.
    statistics: Vec<[Statistics; 2]>,
}

impl FusedRunner {
    /// Computes the low-rank branch of a layer, if it has one, from the normed residual stream in `normed`. The stream
    /// itself is still the layer's input.
    pub(super) fn prepare_laurel(&mut self, index: usize, plan: &KernelPlan, trace: &mut Trace) {
        let layer = &self.weights.layers[index];
        let Some(laurel) = layer.laurel.as_deref() else { return };
        let (isa, rows, width) = (self.isa, self.layout.rows, self.spec.hidden_size);
        let Scratch { hidden, normed, inner, up, laurel: own, rows: scratch, .. } = &mut self.scratch;
        let LaurelScratch { branch, statistics } = own;
        let PackedLaurel { left, right, norm: low_norm, .. } = laurel;
        let products = Products::new(isa, (&self.weights, &self.adapters), plan, &self.pool);
        let low = panels(up, left.rows, rows);
        products.all(&mut self.pool, &[left], normed, rows, low);
        let source = Source::Panels { data: low, stride: rows, select: None };
        let input = Input { source, rows, width: left.rows, norm: None };
        inner.fill(isa, &mut self.pool, scratch, input, products.levels([right].iter()));
        let branch = panels(branch, width, rows);
        products.all(&mut self.pool, &[right], inner, rows, branch);
        let (hidden, low): (&[f32], &[f32]) = (hidden, branch);
        let none = Statistics { mean: 0.0, inverse: 1.0 };
        each_row(&mut self.pool, statistics, rows, [none; 2], |row| {
            let of =
                |norm: &PackedNorm, data| norm::statistics(isa, norm.kind, Row { data, rows, row, width }, norm.eps);
            [layer.input_norm.as_ref().map_or(none, |norm| of(norm, hidden)), of(low_norm, low)]
        });
        let (statistics, panel) = (&statistics[..], rows * LANES);
        self.pool.for_each(Chunks::new(branch, panel), |index, branch, _| {
            let lanes = index * LANES..(index + 1) * LANES;
            let apply = |norm: &PackedNorm, values: &mut [f32], statistics| {
                let bias = norm.bias.as_ref().map(|bias| &bias[lanes.clone()]);
                norm::apply(isa, values, statistics, &norm.weight[lanes.clone()], bias);
            };
            let stream = &hidden[index * panel..(index + 1) * panel];
            let tokens = branch.chunks_exact_mut(LANES).zip(stream.chunks_exact(LANES)).zip(statistics);
            for ((branch, stream), [of_stream, of_branch]) in tokens {
                let mut normed = [0.0; LANES];
                normed.copy_from_slice(stream);
                if let Some(norm) = &layer.input_norm {
                    apply(norm, &mut normed, *of_stream);
                }
                apply(low_norm, branch, *of_branch);
                branch.iter_mut().zip(normed).for_each(|(value, normed)| *value += normed);
            }
        });
        trace.panels("laurel.out", branch, rows, width);
    }

    /// Adds the low-rank branch of a layer, if it has one, to the residual stream after attention.
    pub(super) fn add_laurel(&mut self, index: usize) {
        #[cfg(test)]
        self.spoil_laurel(index);
        let Some(laurel) = self.weights.layers[index].laurel.as_deref() else { return };
        let (panel, factor) = (self.layout.rows * LANES, laurel.sum_multiplier);
        let Scratch { hidden, laurel, .. } = &mut self.scratch;
        let branch = &laurel.branch[..];
        self.pool.for_each(Chunks::new(hidden, panel), |index, hidden, _| {
            let branch = &branch[index * panel..][..hidden.len()];
            hidden.iter_mut().zip(branch).for_each(|(value, branch)| *value = (*value + branch) * factor);
        });
    }
}
