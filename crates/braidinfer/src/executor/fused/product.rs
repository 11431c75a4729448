//! Projections: panels shared out among threads in small pieces.

use std::ops::Range;

use braidinfer_kernels::{Activation, Chunks, Isa, LANES, NumericLevel, Pool, elementwise, matmul};

use super::encode::Encoded;
use super::packed::{PackedDecoder, PackedLinear};
use crate::executor::KernelPlan;

/// Panels of a piece of work: few, so that a slow core holds nobody up, and enough that taking a piece costs little.
const PIECE: usize = 4;

/// What every product needs.
pub(super) struct Products<'a> {
    pub(super) isa: Isa,
    pub(super) weights: &'a PackedDecoder,
    pub(super) plan: &'a KernelPlan,
    pub(super) threads: usize,
}

impl Products<'_> {
    /// At which levels some projections are multiplied.
    pub(super) fn levels<'b>(
        &'b self,
        linears: &'b [&PackedLinear],
    ) -> impl Iterator<Item = NumericLevel> + Clone + 'b {
        linears.iter().map(|linear| self.level(linear))
    }

    fn level(&self, linear: &PackedLinear) -> NumericLevel {
        self.plan.projections[linear.planned].level
    }

    /// Projections of the same rows, one after the other in `out`: `[panels of all][rows][16]`.
    pub(super) fn all(&self, pool: &mut Pool, linears: &[&PackedLinear], x: &Encoded, rows: usize, out: &mut [f32]) {
        let width = rows * LANES;
        pool.for_each(Chunks::new(out, PIECE * width), |piece, out, _| {
            let (start, end) = (piece * PIECE, piece * PIECE + out.len() / width);
            let mut first = 0;
            for linear in linears {
                let (from, to) = (start.max(first), end.min(first + linear.panels()));
                if from < to {
                    let out = &mut out[(from - start) * width..(to - start) * width];
                    let panels = from - first..to - first;
                    self.panels(linear, panels.clone(), (linear, self.next(&panels)), x, out);
                }
                first += linear.panels();
            }
        });
    }

    /// `activation(gate x) * (up x)` in `up`; `gate` is overwritten.
    pub(super) fn gated(
        &self,
        pool: &mut Pool,
        linears: [&PackedLinear; 2],
        activation: Activation,
        x: &Encoded,
        rows: usize,
        [gate, up]: [&mut [f32]; 2],
    ) {
        let chunk = PIECE * rows * LANES;
        pool.for_each((Chunks::new(gate, chunk), Chunks::new(up, chunk)), |piece, (gate, up), _| {
            let panels = piece * PIECE..piece * PIECE + up.len() / (rows * LANES);
            let next = self.next(&panels);
            // Both have as many panels; what comes after them begins where the second ends.
            let following = if next < linears[0].panels() { linears[0] } else { linears[1] };
            self.panels(linears[0], panels.clone(), (linears[1], panels.start), x, gate);
            self.panels(linears[1], panels, (following, next), x, up);
            elementwise::gated(self.isa, activation, gate, up);
        });
    }

    /// `activation(up x)`.
    pub(super) fn activated(
        &self,
        pool: &mut Pool,
        linear: &PackedLinear,
        activation: Activation,
        x: &Encoded,
        rows: usize,
        up: &mut [f32],
    ) {
        pool.for_each(Chunks::new(up, PIECE * rows * LANES), |piece, up, _| {
            let panels = piece * PIECE..piece * PIECE + up.len() / (rows * LANES);
            self.panels(linear, panels.clone(), (linear, self.next(&panels)), x, up);
            elementwise::activate(self.isa, activation, up);
        });
    }

    /// Adds `factor * (W x + b)` to `sum`; `out` keeps the product.
    pub(super) fn onto(
        &self,
        pool: &mut Pool,
        linear: &PackedLinear,
        x: &Encoded,
        rows: usize,
        factor: f32,
        [out, sum]: [&mut [f32]; 2],
    ) {
        let chunk = PIECE * rows * LANES;
        pool.for_each((Chunks::new(out, chunk), Chunks::new(sum, chunk)), |piece, (out, sum), _| {
            let panels = piece * PIECE..piece * PIECE + out.len() / (rows * LANES);
            self.panels(linear, panels.clone(), (linear, self.next(&panels)), x, out);
            elementwise::add_scaled(self.isa, sum, out, factor);
        });
    }

    /// The panel at which the piece begins that a thread will probably take after `panels`.
    fn next(&self, panels: &Range<usize>) -> usize {
        panels.end + (self.threads - 1) * PIECE
    }

    /// Some panels of one projection, with its bias. `following` is what the thread will probably read next.
    fn panels(
        &self,
        linear: &PackedLinear,
        panels: Range<usize>,
        following: (&PackedLinear, usize),
        x: &Encoded,
        out: &mut [f32],
    ) {
        let first = panels.start;
        let x = x.at(self.level(linear));
        matmul(self.isa, self.weights.panels(linear, panels, following), &x, out);
        let Some(bias) = &linear.bias else { return };
        for (panel, out) in out.chunks_exact_mut(x.rows * LANES).enumerate() {
            let bias = &bias[(first + panel) * LANES..][..LANES];
            for out in out.chunks_exact_mut(LANES) {
                out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
            }
        }
    }
}
