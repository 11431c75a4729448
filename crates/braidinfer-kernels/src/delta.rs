//! The gated delta rule (Yang et al. 2024, arXiv:2412.06464), in blocks of tokens.
//!
//! The state `S` of a value head is a matrix `[key_dim, value_dim]`. Token `t` decays it by `e^g_t`, and adds `k_t u_t^T`
//! with `u_t = beta_t (v_t - S^T k_t)`; its output is `S^T q_t`. Unrolled from a state before the first token of a block,
//!
//! `S_t = e^(g_1 + .. + g_t) S + sum over i <= t of e^(g_(i+1) + .. + g_t) k_i u_i^T`,
//!
//! so that the products of all tokens with `S` can be computed at once, reading it once, and only sums over the few tokens
//! of the block depend on one another. It is the arithmetic of the recurrence in another order, which depends only on the
//! place of a token in its block: not on how many of its tokens are computed together.
//!
//! Widths are multiples of 16, with zeros in the padding.

use crate::isa::dispatched;
use crate::math::exp;
use crate::simd::{LANES, Simd};

/// Added to the sum of squares of queries and keys.
const L2_EPS: f32 = 1e-6;

/// The least logarithm of a decay: below it, `e^g` is zero. Keeps sums of several finite.
const LEAST_DECAY: f32 = -104.0;

/// Value heads with their tokens since a state: some that were computed before, and new ones after them.
#[derive(Debug, Clone, Copy)]
pub struct DeltaBlock<'a> {
    /// Width of keys and queries.
    pub key_dim: usize,
    /// Width of values.
    pub value_dim: usize,
    /// The state before the first token, `[key_dim][value_dim]`.
    pub state: &'a [f32],
    /// Keys of all tokens, `[tokens][key_dim]`.
    pub keys: &'a [f32],
    /// Logarithm of the decay at each token, `[tokens]`.
    pub decays: &'a [f32],
    /// Queries of the new tokens, `[new][key_dim]`.
    pub queries: &'a [f32],
    /// Values of the new tokens, `[new][value_dim]`.
    pub values: &'a [f32],
    /// Strengths of the updates of the new tokens, `[new]`.
    pub betas: &'a [f32],
}

/// Length of the scratch buffer that [`delta_rule`] needs for a block of `tokens`, of which `new` are new.
pub fn scratch_len(tokens: usize, new: usize, value_dim: usize) -> usize {
    3 * tokens.next_multiple_of(LANES) + new * value_dim
}

/// The logarithm of a token's decay, `rate * softplus(a + dt_bias)`; `rate` is negative.
pub fn log_decay(a: f32, rate: f32, dt_bias: f32) -> f32 {
    bounded_decay(rate * softplus(a + dt_bias))
}

/// `ln(1 + e^x)`.
pub fn softplus(x: f32) -> f32 {
    // Above 20 the difference is below the precision.
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

/// The logarithm of a decay, no less than the least one. A NaN stays one.
pub(crate) fn bounded_decay(decay: f32) -> f32 {
    if decay < LEAST_DECAY { LEAST_DECAY } else { decay }
}

dispatched! {
    /// `x = scale * x / sqrt(sum(x²) + 1e-6)`.
    pub fn normalize_l2(x: &mut [f32], scale: f32) = normalize_l2_lanes;
}
dispatched! {
    /// Computes the new tokens of a block: their updates `u`, which follow those of the earlier tokens in `deltas`,
    /// `[tokens][value_dim]`, and their outputs `[new][value_dim]`. `scratch` has [`scratch_len`] values.
    pub fn delta_rule(block: DeltaBlock<'_>, deltas: &mut [f32], scratch: &mut [f32], out: &mut [f32]) = rule_lanes;
}
dispatched! {
    /// Moves a state `[key_dim][value_dim]` past tokens with these keys `[tokens][key_dim]`, logarithms of decays and
    /// updates `[tokens][value_dim]`. `scratch` has as many values as there are keys' values.
    pub fn advance(state: &mut [f32], keys: &[f32], decays: &[f32], deltas: &[f32], scratch: &mut [f32]) =
        advance_lanes;
}

#[inline(always)]
pub(crate) fn lines(values: &[f32]) -> &[[f32; LANES]] {
    let (lines, rest) = values.as_chunks::<LANES>();
    assert!(rest.is_empty(), "widths are multiples of {LANES}");
    lines
}

#[inline(always)]
pub(crate) fn lines_mut(values: &mut [f32]) -> &mut [[f32; LANES]] {
    let (lines, rest) = values.as_chunks_mut::<LANES>();
    assert!(rest.is_empty(), "widths are multiples of {LANES}");
    lines
}

/// The sum of products over lines, in one vector.
#[inline(always)]
pub(crate) fn dot<S: Simd>(simd: S, a: &[[f32; LANES]], b: &[[f32; LANES]]) -> f32 {
    let mut sum = simd.splat(0.0);
    for (a, b) in a.iter().zip(b) {
        sum = simd.fma(simd.load(a), simd.load(b), sum);
    }
    simd.sum(sum)
}

#[inline(always)]
fn normalize_l2_lanes<S: Simd>(simd: S, x: &mut [f32], scale: f32) {
    let x = lines_mut(x);
    let factor = simd.splat(scale / (dot(simd, x, x) + L2_EPS).sqrt());
    for line in x {
        simd.store(simd.mul(simd.load(line), factor), line);
    }
}

/// Sets `to[i]` to the logarithm of the decay from token `i` to the last token. Sums begin at the last token, so that the
/// small ones are exact where earlier ones are large.
#[inline(always)]
pub(crate) fn decays_to_last(decays: &[f32], to: &mut [f32]) {
    let mut sum = 0.0;
    for (index, to) in to[..decays.len()].iter_mut().enumerate().rev() {
        *to = sum;
        sum += decays[index];
    }
}

/// The logarithm of the decay from before the first token to the last one, summed in the same order.
#[inline(always)]
pub(crate) fn decay_of_all(decays: &[f32]) -> f32 {
    decays.iter().rev().fold(0.0, |sum, decay| sum + decay)
}

#[inline(always)]
pub(crate) fn exp_of<S: Simd>(simd: S, x: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    simd.store(exp(simd, simd.splat(x)), &mut lanes);
    lanes[0]
}

#[inline(always)]
pub(crate) fn exp_all<S: Simd>(simd: S, values: &mut [f32]) {
    for line in lines_mut(values) {
        simd.store(exp(simd, simd.load(line)), line);
    }
}

/// `out = factor * out + sum of coefficients[i] * rows[i]`, rows being `[n][out.len()]`.
#[inline(always)]
pub(crate) fn add_rows<S: Simd>(
    simd: S,
    out: &mut [[f32; LANES]],
    factor: f32,
    rows: &[[f32; LANES]],
    coefficients: &[f32],
) {
    let width = out.len();
    let factor = simd.splat(factor);
    for (column, out) in out.iter_mut().enumerate() {
        let mut sum = simd.mul(simd.load(out), factor);
        for (row, coefficient) in coefficients.iter().enumerate() {
            sum = simd.fma(simd.splat(*coefficient), simd.load(&rows[row * width + column]), sum);
        }
        simd.store(sum, out);
    }
}

#[inline(always)]
fn rule_lanes<S: Simd>(simd: S, block: DeltaBlock<'_>, deltas: &mut [f32], scratch: &mut [f32], out: &mut [f32]) {
    let DeltaBlock { key_dim, value_dim, .. } = block;
    let (tokens, new) = (block.decays.len(), block.betas.len());
    assert_eq!((block.keys.len(), deltas.len()), (tokens * key_dim, tokens * value_dim));
    assert_eq!((block.queries.len(), block.values.len(), out.len()), (new * key_dim, new * value_dim, new * value_dim));
    assert_eq!(block.state.len(), key_dim * value_dim);
    let padded = tokens.next_multiple_of(LANES);
    let (of_block, remembered) = scratch.split_at_mut(3 * padded);
    let (factors, products) = of_block.split_at_mut(padded);
    let (by_key, by_query) = products.split_at_mut(padded);
    let remembered = &mut remembered[..new * value_dim];
    let known = tokens - new;
    read_state(simd, &block, known, remembered, out);
    let (keys, queries, values) = (lines(block.keys), lines(block.queries), lines(block.values));
    let (deltas, remembered, out) = (lines_mut(deltas), lines_mut(remembered), lines_mut(out));
    let (key_lines, value_lines) = (key_dim / LANES, value_dim / LANES);
    for index in 0..new {
        let token = known + index;
        let until = &block.decays[..=token];
        factors[..padded].fill(0.0);
        decays_to_last(until, factors);
        exp_all(simd, factors);
        let whole = exp_of(simd, decay_of_all(until));
        let query = &queries[index * key_lines..][..key_lines];
        let key = &keys[token * key_lines..][..key_lines];
        for earlier in 0..=token {
            let other = &keys[earlier * key_lines..][..key_lines];
            by_key[earlier] = dot(simd, other, key) * factors[earlier];
            by_query[earlier] = dot(simd, other, query) * factors[earlier];
        }
        let at = index * value_lines..(index + 1) * value_lines;
        let (before, after) = deltas.split_at_mut(token * value_lines);
        let expected = &mut remembered[at.clone()];
        add_rows(simd, expected, whole, before, &by_key[..token]);
        let beta = simd.splat(block.betas[index]);
        for ((delta, value), expected) in after.iter_mut().zip(&values[at.clone()]).zip(expected.iter()) {
            simd.store(simd.mul(beta, simd.sub(simd.load(value), simd.load(expected))), delta);
        }
        add_rows(simd, &mut out[at], whole, &deltas[..(token + 1) * value_lines], &by_query[..=token]);
    }
}

/// The products of the state with the keys and the queries of the new tokens, each `[new][value_dim]`.
#[inline(always)]
fn read_state<S: Simd>(simd: S, block: &DeltaBlock<'_>, known: usize, by_key: &mut [f32], by_query: &mut [f32]) {
    let new = block.betas.len();
    let keys = &block.keys[known * block.key_dim..];
    let columns = block.value_dim / LANES;
    let (by_key, by_query) = (lines_mut(by_key), lines_mut(by_query));
    for first in (0..new).step_by(2) {
        let mut column = 0;
        if new - first >= 2 {
            while column < columns {
                read_tile::<S, 2, 1>(simd, block, keys, [first, column], [&mut *by_key, &mut *by_query]);
                column += 1;
            }
        }
        while column + 2 <= columns {
            read_tile::<S, 1, 2>(simd, block, keys, [first, column], [&mut *by_key, &mut *by_query]);
            column += 2;
        }
        if column < columns {
            read_tile::<S, 1, 1>(simd, block, keys, [first, column], [&mut *by_key, &mut *by_query]);
        }
    }
}

/// [`read_state`] for `N` tokens and `P` vectors of values, from a token and a vector on.
#[inline(always)]
fn read_tile<S: Simd, const N: usize, const P: usize>(
    simd: S,
    block: &DeltaBlock<'_>,
    keys: &[f32],
    [token, column]: [usize; 2],
    [by_key, by_query]: [&mut [[f32; LANES]]; 2],
) {
    let (width, columns) = (block.key_dim, block.value_dim / LANES);
    let state = lines(block.state);
    let mut sums = [[[simd.splat(0.0); P]; N]; 2];
    let rows: [[&[f32]; N]; 2] =
        [keys, block.queries].map(|rows| std::array::from_fn(|n| &rows[(token + n) * width..][..width]));
    for d in 0..width {
        for p in 0..P {
            let state = simd.load(&state[d * columns + column + p]);
            for n in 0..N {
                sums[0][n][p] = simd.fma(simd.splat(rows[0][n][d]), state, sums[0][n][p]);
                sums[1][n][p] = simd.fma(simd.splat(rows[1][n][d]), state, sums[1][n][p]);
            }
        }
    }
    for (sums, out) in sums.iter().zip([by_key, by_query]) {
        for (n, sums) in sums.iter().enumerate() {
            let out = &mut out[(token + n) * columns + column..][..P];
            sums.iter().zip(out).for_each(|(sum, out)| simd.store(*sum, out));
        }
    }
}

#[inline(always)]
fn advance_lanes<S: Simd>(
    simd: S,
    state: &mut [f32],
    keys: &[f32],
    decays: &[f32],
    deltas: &[f32],
    scratch: &mut [f32],
) {
    let tokens = decays.len();
    if tokens == 0 {
        return;
    }
    let (key_dim, columns) = (keys.len() / tokens, deltas.len() / tokens / LANES);
    assert_eq!((keys.len(), deltas.len()), (key_dim * tokens, columns * LANES * tokens));
    assert_eq!(state.len(), key_dim * columns * LANES);
    let mut to_last = 0.0;
    // Transposed, `[key_dim][tokens]`: a row of the state takes one value of each key.
    let weights = &mut scratch[..keys.len()];
    for token in (0..tokens).rev() {
        let factor = exp_of(simd, to_last);
        for d in 0..key_dim {
            weights[d * tokens + token] = keys[token * key_dim + d] * factor;
        }
        to_last += decays[token];
    }
    let whole = exp_of(simd, to_last);
    let deltas = lines(deltas);
    for (d, row) in lines_mut(state).chunks_exact_mut(columns).enumerate() {
        add_rows(simd, row, whole, deltas, &weights[d * tokens..][..tokens]);
    }
}

#[cfg(test)]
mod tests;
