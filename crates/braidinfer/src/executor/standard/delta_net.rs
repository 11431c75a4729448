//! Gated delta nets, token by token.

use braidinfer_model::spec::DeltaNetSpec;
use candle_core::{DType, Tensor};
use candle_nn::ops::sigmoid;
use rayon::prelude::*;

use super::layer::Context;
use super::linear::Linear;
use super::norm::Norm;
use super::recurrent_state::{State, StateShape, Tokens, convolve};
use super::trace::Trace;
use crate::Result;
use crate::executor::SequenceSlice;

/// Added to the sum of squares of queries and keys.
const L2_EPS: f32 = 1e-6;

/// The recurrent part of a layer.
#[derive(Debug)]
pub(super) struct DeltaNet {
    pub(super) spec: DeltaNetSpec,
    pub(super) projections: Projections,
    /// `[channels][kernel]`.
    pub(super) conv1d: Vec<f32>,
    /// `[value heads]`.
    pub(super) dt_bias: Vec<f32>,
    /// `-exp(A_log)`, `[value heads]`.
    pub(super) rates: Vec<f32>,
    pub(super) norm: Norm,
    pub(super) out_proj: Linear,
}

/// The input projections.
#[derive(Debug)]
pub(super) enum Projections {
    ByKind { qkv: Linear, z: Linear, b: Linear, a: Linear },
    ByKeyHead { qkvz: Linear, ba: Linear },
    StrengthByKeyHead { qkv: Linear, z: Linear, ba: Linear },
}

/// The outputs of the input projections, in f32.
struct Projected {
    /// Queries, keys and values, `[T, channels]`.
    qkv: Tensor,
    /// `[T, value width]`.
    z: Tensor,
    /// `[T, value heads]`.
    b: Tensor,
    /// `[T, value heads]`.
    a: Tensor,
}

impl DeltaNet {
    /// `[T, h]` to `[T, h]`; moves the states of all sequences on.
    pub(super) fn forward(&self, x: &Tensor, context: &Context, trace: &mut Trace) -> Result<Tensor> {
        let projected = self.project(x)?;
        for (name, values) in [("qkv", &projected.qkv), ("z", &projected.z), ("b", &projected.b), ("a", &projected.a)] {
            trace.record(&format!("delta.{name}"), values)?;
        }
        let (value_heads, value_dim) = (self.spec.linear_num_value_heads, self.spec.linear_value_head_dim);
        let mut heads = Vec::with_capacity(x.dim(0)? * self.spec.value_width());
        for (range, sequence) in context.batch.ranges() {
            let tokens = self.tokens(&projected, range)?;
            self.run(tokens, sequence, context, &mut heads)?;
        }
        let heads = Tensor::from_vec(heads, (x.dim(0)?, value_heads, value_dim), x.device())?;
        trace.record("delta.heads", &heads)?;
        let z = projected.z.reshape(heads.shape())?;
        let gated = (self.norm.forward(&heads)? * z.silu()?)?.flatten_from(1)?.to_dtype(x.dtype())?;
        trace.record("delta.gated", &gated)?;
        let out = self.out_proj.forward(&gated)?;
        trace.record("delta.out", &out)?;
        Ok(out)
    }

    /// All projections.
    pub(super) fn projections(&self) -> Vec<&Linear> {
        let mut all = match &self.projections {
            Projections::ByKind { qkv, z, b, a } => vec![qkv, z, b, a],
            Projections::ByKeyHead { qkvz, ba } => vec![qkvz, ba],
            Projections::StrengthByKeyHead { qkv, z, ba } => vec![qkv, z, ba],
        };
        all.push(&self.out_proj);
        all
    }

    fn project(&self, x: &Tensor) -> Result<Projected> {
        let f32 = |linear: &Linear| Ok::<_, crate::Error>(linear.forward(x)?.to_dtype(DType::F32)?);
        let (rows, groups) = (x.dim(0)?, self.spec.linear_num_key_heads);
        let (key, per_key) = (self.spec.linear_key_head_dim, self.spec.values_per_key());
        let value = per_key * self.spec.linear_value_head_dim;
        // `[T, key heads, ..]`; a part of every key head, side by side.
        let by_key_head = |linear: &Linear| Ok::<_, crate::Error>(f32(linear)?.reshape((rows, groups, ()))?);
        let part = |of: &Tensor, first, width| of.narrow(2, first, width)?.contiguous()?.flatten_from(1);
        let (qkv, z, ba) = match &self.projections {
            Projections::ByKind { qkv, z, b, a } => {
                return Ok(Projected { qkv: f32(qkv)?, z: f32(z)?, b: f32(b)?, a: f32(a)? });
            }
            Projections::ByKeyHead { qkvz, ba } => {
                let qkvz = by_key_head(qkvz)?;
                let (q, k, v) = (part(&qkvz, 0, key)?, part(&qkvz, key, key)?, part(&qkvz, 2 * key, value)?);
                (Tensor::cat(&[q, k, v], 1)?, part(&qkvz, 2 * key + value, value)?, by_key_head(ba)?)
            }
            Projections::StrengthByKeyHead { qkv, z, ba } => (f32(qkv)?, f32(z)?, by_key_head(ba)?),
        };
        Ok(Projected { qkv, z, b: part(&ba, 0, per_key)?, a: part(&ba, per_key, per_key)? })
    }

    /// Some of the tokens.
    fn tokens(&self, projected: &Projected, range: std::ops::Range<usize>) -> Result<Tokens> {
        let rows = |tensor: &Tensor| tensor.narrow(0, range.start, range.len())?.flatten_all()?.to_vec1::<f32>();
        let decay = |(index, a): (usize, f32)| {
            let head = index % self.rates.len();
            let x = a + self.dt_bias[head];
            let softplus = if x > 20.0 { x } else { x.exp().ln_1p() };
            (self.rates[head] * softplus).exp()
        };
        Ok(Tokens {
            inputs: rows(&projected.qkv)?,
            decays: rows(&projected.a)?.into_iter().enumerate().map(decay).collect(),
            betas: rows(&sigmoid(&projected.b)?)?,
        })
    }

    /// Appends the outputs of one sequence's tokens, `[tokens][value heads][d_v]`, to `out`.
    fn run(&self, new: Tokens, sequence: &SequenceSlice, context: &Context, out: &mut Vec<f32>) -> Result<()> {
        let (spec, width) = (&self.spec, self.spec.linear_value_head_dim);
        let step = |state: &mut State, inputs: &[f32], known: usize, passed: usize| {
            let convolved = convolve(inputs, &self.conv1d, spec.conv_width(), |_, sum| sum / (1.0 + (-sum).exp()));
            let matrices = state.matrices.par_chunks_mut(spec.linear_key_head_dim * width);
            let head = |(head, matrix): (usize, &mut [f32])| self.head(head, matrix, &convolved, &state.tokens, passed);
            let heads: Vec<Vec<f32>> = matrices.enumerate().map(head).collect();
            for token in known..known + sequence.query_len {
                heads.iter().for_each(|head| out.extend_from_slice(&head[token * width..(token + 1) * width]));
            }
        };
        context.recurrent_states.step(context.index, StateShape::of_delta_net(spec), sequence, &new, step)
    }

    /// The outputs of one value head for all tokens; the matrix is moved past the first `passed` of them.
    fn head(&self, head: usize, matrix: &mut [f32], qkv: &[f32], tokens: &Tokens, passed: usize) -> Vec<f32> {
        let spec = &self.spec;
        let (keys, values, heads) = (spec.linear_key_head_dim, spec.linear_value_head_dim, spec.linear_num_value_heads);
        let key_head = spec.key_head(head);
        let mut current = matrix.to_vec();
        let mut outputs = Vec::new();
        for (token, row) in qkv.chunks_exact(spec.conv_width()).enumerate() {
            let mut query = normalized(&row[key_head * keys..][..keys]);
            query.iter_mut().for_each(|value| *value /= (keys as f32).sqrt());
            let key = normalized(&row[spec.key_width() + key_head * keys..][..keys]);
            let value = &row[2 * spec.key_width() + head * values..][..values];
            let at = token * heads + head;
            outputs.extend(step(&mut current, [&query, &key, value], tokens.decays[at], tokens.betas[at]));
            if token + 1 == passed {
                matrix.copy_from_slice(&current);
            }
        }
        outputs
    }
}

/// `x / sqrt(sum(x²) + 1e-6)`.
fn normalized(x: &[f32]) -> Vec<f32> {
    let squares: f32 = x.iter().map(|value| value * value).sum();
    let inverse = 1.0 / (squares + L2_EPS).sqrt();
    x.iter().map(|value| value * inverse).collect()
}

/// One token of the gated delta rule on a state `[d_k][d_v]`; returns the output.
fn step(state: &mut [f32], [query, key, value]: [&[f32]; 3], decay: f32, beta: f32) -> Vec<f32> {
    state.iter_mut().for_each(|value| *value *= decay);
    let remembered = read(state, key);
    let delta: Vec<f32> = value.iter().zip(remembered).map(|(value, remembered)| (value - remembered) * beta).collect();
    for (row, key) in state.chunks_exact_mut(value.len()).zip(key) {
        row.iter_mut().zip(&delta).for_each(|(value, delta)| *value += key * delta);
    }
    read(state, query)
}

/// The sum of the rows of a state, each times its element of `x`.
fn read(state: &[f32], x: &[f32]) -> Vec<f32> {
    let mut sum = vec![0.0; state.len() / x.len()];
    for (row, x) in state.chunks_exact(sum.len()).zip(x) {
        sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += x * value);
    }
    sum
}
