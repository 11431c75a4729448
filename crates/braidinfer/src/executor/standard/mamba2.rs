//! Mamba-2, token by token.

use braidinfer_model::spec::{GatedNormSpec, Mamba2Spec};
use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::layer::Context;
use super::linear::Linear;
use super::norm::Norm;
use super::recurrent_state::{State, StateShape, Tokens, convolve};
use super::trace::Trace;
use crate::Result;
use crate::executor::SequenceSlice;

/// The recurrent part of a layer.
#[derive(Debug)]
pub(super) struct Mamba2 {
    pub(super) spec: Mamba2Spec,
    pub(super) in_proj: Linear,
    /// `[channels][kernel]`.
    pub(super) conv1d: Vec<f32>,
    /// `[channels]`.
    pub(super) conv_bias: Option<Vec<f32>>,
    /// `[heads]`, as are the next two.
    pub(super) dt_bias: Vec<f32>,
    /// `-exp(A_log)`.
    pub(super) rates: Vec<f32>,
    /// `D`.
    pub(super) skip: Vec<f32>,
    /// The weight of the norm of all groups, `[heads * width]`.
    pub(super) norm: Option<Vec<f32>>,
    pub(super) out_proj: Linear,
}

/// The outputs of the input projection, in f32: `[T, ..]`.
struct Projected {
    z: Tensor,
    /// Inputs, `B` and `C`.
    xbc: Tensor,
    dt: Tensor,
}

impl Mamba2 {
    /// `[T, h]` to `[T, h]`; moves the states of all sequences on.
    pub(super) fn forward(&self, x: &Tensor, context: &Context, trace: &mut Trace) -> Result<Tensor> {
        let rows = x.dim(0)?;
        let projected = self.project(x)?;
        let all = [&projected.z, &projected.xbc, &projected.dt];
        trace.record("mamba.zxbcdt", &Tensor::cat(&all, 1)?)?;
        let mut heads = Vec::with_capacity(rows * self.spec.inner_width());
        for (range, sequence) in context.batch.ranges() {
            let tokens = self.tokens(&projected, range)?;
            self.run(tokens, sequence, context, &mut heads)?;
        }
        let heads = Tensor::from_vec(heads, (rows, self.spec.inner_width()), x.device())?;
        trace.record("mamba.heads", &heads)?;
        let gated = self.gate(&heads, &projected.z)?.to_dtype(x.dtype())?;
        trace.record("mamba.gated", &gated)?;
        let out = self.out_proj.forward(&gated)?;
        trace.record("mamba.out", &out)?;
        Ok(out)
    }

    /// All projections.
    pub(super) fn projections(&self) -> Vec<&Linear> {
        vec![&self.in_proj, &self.out_proj]
    }

    fn project(&self, x: &Tensor) -> Result<Projected> {
        let (inner, state, heads) = (self.spec.inner_width(), self.spec.state_width(), self.spec.mamba_n_heads);
        let all = self.in_proj.forward(x)?.to_dtype(DType::F32)?;
        let part = |first: usize, width: usize, factor: f64| all.narrow(1, first, width)? * factor;
        let factors = self.spec.multipliers();
        let xbc = [
            part(inner, inner, factors.x)?,
            part(2 * inner, state, factors.b)?,
            part(2 * inner + state, state, factors.c)?,
        ];
        Ok(Projected {
            z: part(0, inner, factors.z)?,
            xbc: Tensor::cat(&xbc, 1)?,
            dt: part(2 * inner + 2 * state, heads, factors.dt)?,
        })
    }

    /// Some of the tokens, with their steps as strengths of updates.
    fn tokens(&self, projected: &Projected, range: std::ops::Range<usize>) -> Result<Tokens> {
        let rows = |tensor: &Tensor| tensor.narrow(0, range.start, range.len())?.flatten_all()?.to_vec1::<f32>();
        let [least, largest] = self.spec.step_limits();
        let step = |(index, dt): (usize, f32)| {
            let x = dt + self.dt_bias[index % self.dt_bias.len()];
            let softplus = if x > 20.0 { x } else { x.exp().ln_1p() };
            softplus.clamp(least, largest)
        };
        let betas: Vec<f32> = rows(&projected.dt)?.into_iter().enumerate().map(step).collect();
        let decay = |(index, step): (usize, &f32)| (self.rates[index % self.rates.len()] * step).exp();
        Ok(Tokens { inputs: rows(&projected.xbc)?, decays: betas.iter().enumerate().map(decay).collect(), betas })
    }

    /// Appends the outputs of one sequence's tokens, `[tokens][heads][width]`, to `out`.
    fn run(&self, new: Tokens, sequence: &SequenceSlice, context: &Context, out: &mut Vec<f32>) -> Result<()> {
        let (spec, width) = (&self.spec, self.spec.mamba_d_head);
        let bias = |channel: usize| self.conv_bias.as_ref().map_or(0.0, |bias| bias[channel]);
        let silu = |sum: f32| sum / (1.0 + (-sum).exp());
        let step = |state: &mut State, inputs: &[f32], known: usize, passed: usize| {
            let finish = |channel, sum: f32| silu(sum + bias(channel));
            let convolved = convolve(inputs, &self.conv1d, spec.conv_width(), finish);
            let matrices = state.matrices.par_chunks_mut(spec.mamba_d_state * width);
            let head = |(head, matrix): (usize, &mut [f32])| self.head(head, matrix, &convolved, &state.tokens, passed);
            let heads: Vec<Vec<f32>> = matrices.enumerate().map(head).collect();
            for token in known..known + sequence.query_len {
                heads.iter().for_each(|head| out.extend_from_slice(&head[token * width..(token + 1) * width]));
            }
        };
        context.recurrent_states.step(context.index, StateShape::of_mamba2(spec), sequence, &new, step)
    }

    /// The outputs of one head for all tokens; its state is moved past the first `passed` of them.
    fn head(&self, head: usize, matrix: &mut [f32], xbc: &[f32], tokens: &Tokens, passed: usize) -> Vec<f32> {
        let spec = &self.spec;
        let (width, state, inner) = (spec.mamba_d_head, spec.mamba_d_state, spec.inner_width());
        let b = inner + head / spec.heads_per_group() * state;
        let c = b + spec.state_width();
        let mut current = matrix.to_vec();
        let mut outputs = Vec::new();
        for (token, row) in xbc.chunks_exact(spec.conv_width()).enumerate() {
            let at = token * spec.mamba_n_heads + head;
            let x = &row[head * width..][..width];
            let vectors = [&row[b..][..state], &row[c..][..state]];
            let sums = step(&mut current, x, vectors, tokens.decays[at], tokens.betas[at]);
            outputs.extend(sums.iter().zip(x).map(|(sum, x)| sum + self.skip[head] * x));
            if token + 1 == passed {
                matrix.copy_from_slice(&current);
            }
        }
        outputs
    }

    /// Multiplies the outputs by `silu(z)`, and norms them before or after that.
    fn gate(&self, heads: &Tensor, z: &Tensor) -> Result<Tensor> {
        let gate = z.silu()?;
        let (Some(GatedNormSpec { norm, before_gate }), Some(weight)) = (&self.spec.norm, &self.norm) else {
            return Ok((heads * gate)?);
        };
        let weight = Tensor::new(&weight[..], heads.device())?;
        let normed = |x: &Tensor| -> Result<Tensor> {
            let groups = x.reshape((x.dim(0)?, self.spec.mamba_n_groups, ()))?;
            let plain = Norm::plain(norm.eps, groups.dim(2)?, x.device())?;
            Ok(plain.forward(&groups)?.reshape(x.shape())?.broadcast_mul(&weight)?)
        };
        Ok(if *before_gate { (normed(heads)? * gate)? } else { normed(&(heads * gate)?)? })
    }
}

/// One token of the recurrence on a state `[d_state][width]`: it decays, and `B (step x)^T` is added to it. Returns the sum
/// of its rows, each times its element of `C`.
fn step(state: &mut [f32], x: &[f32], [b, c]: [&[f32]; 2], decay: f32, step: f32) -> Vec<f32> {
    let mut sums = vec![0.0; x.len()];
    for (row, (b, c)) in state.chunks_exact_mut(x.len()).zip(b.iter().zip(c)) {
        for ((value, x), sum) in row.iter_mut().zip(x).zip(&mut sums) {
            *value = decay * *value + b * (step * x);
            *sum += c * *value;
        }
    }
    sums
}
