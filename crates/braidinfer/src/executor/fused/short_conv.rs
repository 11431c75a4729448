//! Gated short convolutions on the products of the last few tokens.

use braidinfer_kernels::convolution::convolve;
use braidinfer_kernels::{Buffer, Isa, elementwise};

use super::FusedRunner;
use super::heads::gather;
use super::packed::PackedShortConv;
use super::recurrent_state::{GroupState, GroupStep, RecurrentPass};
use super::scratch::Scratch;
use super::trace::Trace;
use crate::Result;
use crate::executor::Batch;

/// A part of the input projection's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConvInput {
    /// Gate of what is convolved.
    Before,
    /// Gate of the convolution's output.
    After,
    /// What is convolved.
    Convolved,
}

impl PackedShortConv {
    /// Reads a part of the input projection's output `[panels][rows][16]` for one token and group of channels.
    pub(super) fn read(&self, input: ConvInput, projected: &[f32], [rows, token, group]: [usize; 3], out: &mut [f32]) {
        let column = input as usize * self.shape.groups * self.width + group * self.width;
        gather(projected, rows, token, column, out);
    }
}

impl FusedRunner {
    /// Moves the states of all sequences past the batch's tokens, and writes the outputs of the convolution to `heads`.
    pub(super) fn run_short_conv(&mut self, index: usize, batch: &Batch, trace: &mut Trace) -> Result<()> {
        let Some(layer) = self.weights.layers[index].short_conv() else { return Ok(()) };
        let Scratch { qkv, heads, rows: scratch, recurrent, .. } = &mut self.scratch;
        let (isa, rows, shape) = (self.isa, self.layout.rows, layer.shape);
        trace.panels("conv.bcx", qkv, rows, 3 * self.spec.hidden_size);
        let qkv = &**qkv;
        #[cfg(test)]
        let (spoil, block_size) =
            (self.planted.and_then(|planted| planted.of_states(index)), self.recurrent_states.block_size);
        let pass =
            RecurrentPass { pool: &mut self.pool, states: &mut self.recurrent_states, layer: index, shape, batch };
        pass.run(layer.width, recurrent, scratch, heads, |step, state, sum: &mut Buffer, out| {
            let pass = ConvPass {
                isa,
                layer,
                qkv,
                rows,
                #[cfg(test)]
                spoil,
                #[cfg(test)]
                block_size,
            };
            pass.run(step, state, sum, out);
        })
    }
}

/// The convolution of one group of channels on the new tokens of one sequence.
struct ConvPass<'a> {
    isa: Isa,
    layer: &'a PackedShortConv,
    /// The output of the input projection.
    qkv: &'a [f32],
    rows: usize,
    /// What is done to the state at block boundaries.
    #[cfg(test)]
    spoil: Option<fn(&mut [f32])>,
    #[cfg(test)]
    block_size: usize,
}

impl ConvPass<'_> {
    /// `out` is `[tokens][width]`, without padding; `sum` is a buffer.
    fn run(&self, step: GroupStep, state: &mut GroupState, sum: &mut Buffer, out: &mut [f32]) {
        let PackedShortConv { shape, width, conv, bias, .. } = self.layer;
        let GroupStep { group, tokens, moved } = step;
        sum.resize(shape.inputs);
        for (index, (token, out)) in tokens.zip(out.chunks_exact_mut(*width)).enumerate() {
            let row = moved.known + index;
            #[cfg(test)]
            if let (Some(spoil), 0) = (self.spoil, row % self.block_size) {
                spoil(&mut state.inputs[row * shape.inputs..(row + shape.before) * shape.inputs]);
            }
            let products = &mut state.inputs[(shape.before + row) * shape.inputs..][..shape.inputs];
            let at = [self.rows, token, group];
            self.layer.read(ConvInput::Before, self.qkv, at, &mut products[..*width]);
            products[*width..].fill(0.0);
            self.layer.read(ConvInput::Convolved, self.qkv, at, &mut sum[..*width]);
            elementwise::multiply(self.isa, &mut products[..*width], &sum[..*width]);
            let inputs = &state.inputs[row * shape.inputs..(row + shape.before + 1) * shape.inputs];
            sum.copy_from_slice(&bias[group]);
            convolve(self.isa, inputs, &conv[group], sum);
            out.copy_from_slice(&sum[..*width]);
        }
        state.pass(*shape, moved.passed);
    }
}
