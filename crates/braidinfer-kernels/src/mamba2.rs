//! The recurrence of Mamba-2 (Dao and Gu 2024, arXiv:2405.21060), in blocks of tokens.
//!
//! The state `S` of a head is a matrix `[state_dim, head_dim]`. Token `t` decays it by `e^g_t`, and adds `B_t u_t^T`, where
//! `u_t` is the head's input times the token's step; its output is `S^T C_t`. Unrolled from a state before the first token
//! of a block,
//!
//! `y_t = e^(g_1 + .. + g_t) S^T C_t + sum over i <= t of e^(g_(i+1) + .. + g_t) (C_t . B_i) u_i`,
//!
//! so that the products of all tokens with `S` are computed at once, reading it once, and the products `C_t . B_i`, which
//! all heads of a group have in common, only once for all of them. It is the arithmetic of the recurrence in another order,
//! which depends only on the place of a token in its block: not on how many of its tokens are computed together. States are
//! moved on by [`crate::delta::advance`].
//!
//! Widths are multiples of 16, with zeros in the padding.

use crate::delta::{
    add_rows, bounded_decay, decay_of_all, decays_to_last, dot, exp_all, exp_of, lines, lines_mut, softplus,
};
use crate::isa::dispatched;
use crate::simd::{LANES, Simd};

/// A head with its tokens since a state: some that were computed before, and new ones after them.
#[derive(Debug, Clone, Copy)]
pub struct ScanBlock<'a> {
    /// Width of `B` and `C`.
    pub state_dim: usize,
    /// Width of the head.
    pub head_dim: usize,
    /// The state before the first token, `[state_dim][head_dim]`.
    pub state: &'a [f32],
    /// Logarithm of the decay at each token, `[tokens]`.
    pub decays: &'a [f32],
    /// Inputs of all tokens, each times its step, `[tokens][head_dim]`.
    pub updates: &'a [f32],
    /// `C` of the new tokens, `[new][state_dim]`.
    pub queries: &'a [f32],
    /// The products `C . B` of every new token with every token up to itself, see [`scores`]: rows of `stride` values.
    pub scores: &'a [f32],
    /// Length of a row of `scores`, no less than the number of tokens.
    pub stride: usize,
}

/// Length of the scratch buffer that [`scan`] needs for a block of `tokens`.
pub fn scratch_len(tokens: usize) -> usize {
    tokens.next_multiple_of(LANES)
}

/// The step of a token, `softplus(dt + dt_bias)` within limits, and the logarithm of its decay, the step times `rate`,
/// which is negative. A NaN stays one.
///
/// # Panics
///
/// If the limits are not in order.
pub fn step_and_decay(dt: f32, dt_bias: f32, rate: f32, [least, largest]: [f32; 2]) -> [f32; 2] {
    let step = softplus(dt + dt_bias).clamp(least, largest);
    [step, bounded_decay(rate * step)]
}

dispatched! {
    /// The products of `C` of every new token, `[new][state_dim]`, with `B` of every token up to itself,
    /// `[tokens][state_dim]`, the last of which are the new ones: rows of `stride` values, those after a token unchanged.
    pub fn scores(state_dim: usize, keys: &[f32], queries: &[f32], stride: usize, out: &mut [f32]) = scores_lanes;
}
dispatched! {
    /// The outputs of the new tokens of a block, `[new][head_dim]`. `scratch` has [`scratch_len`] values.
    pub fn scan(block: ScanBlock<'_>, scratch: &mut [f32], out: &mut [f32]) = scan_lanes;
}

#[inline(always)]
fn scores_lanes<S: Simd>(simd: S, state_dim: usize, keys: &[f32], queries: &[f32], stride: usize, out: &mut [f32]) {
    let (tokens, new) = (keys.len() / state_dim, queries.len() / state_dim);
    assert_eq!((keys.len(), queries.len()), (tokens * state_dim, new * state_dim));
    assert!(new <= tokens && tokens <= stride);
    let width = state_dim / LANES;
    let (keys, queries) = (lines(keys), lines(queries));
    for (index, (query, out)) in queries.chunks_exact(width).zip(out.chunks_mut(stride)).enumerate() {
        let until = tokens - new + index;
        for (key, out) in keys.chunks_exact(width).zip(&mut out[..=until]) {
            *out = dot(simd, key, query);
        }
    }
}

#[inline(always)]
fn scan_lanes<S: Simd>(simd: S, block: ScanBlock<'_>, scratch: &mut [f32], out: &mut [f32]) {
    let ScanBlock { state_dim, head_dim, decays, stride, .. } = block;
    let (tokens, new) = (decays.len(), block.queries.len() / state_dim);
    assert_eq!((block.updates.len(), out.len()), (tokens * head_dim, new * head_dim));
    assert_eq!((block.state.len(), block.queries.len()), (state_dim * head_dim, new * state_dim));
    read_state(simd, &block, new, lines_mut(out));
    let (updates, out, width) = (lines(block.updates), lines_mut(out), head_dim / LANES);
    let factors = &mut scratch[..scratch_len(tokens)];
    for (index, out) in out.chunks_exact_mut(width).enumerate() {
        let token = tokens - new + index;
        let until = &decays[..=token];
        factors.fill(0.0);
        decays_to_last(until, factors);
        exp_all(simd, factors);
        let scores = &block.scores[index * stride..][..=token];
        factors.iter_mut().zip(scores).for_each(|(factor, score)| *factor *= score);
        add_rows(simd, out, exp_of(simd, decay_of_all(until)), updates, &factors[..=token]);
    }
}

/// The products of the state with `C` of the new tokens, `[new][head_dim]`.
#[inline(always)]
fn read_state<S: Simd>(simd: S, block: &ScanBlock<'_>, new: usize, out: &mut [[f32; LANES]]) {
    let columns = block.head_dim / LANES;
    for token in (0..new).step_by(2) {
        let mut column = 0;
        if new - token >= 2 {
            while column + 2 <= columns {
                read_tile::<S, 2, 2>(simd, block, [token, column], out);
                column += 2;
            }
            if column < columns {
                read_tile::<S, 2, 1>(simd, block, [token, column], out);
            }
            continue;
        }
        while column + 4 <= columns {
            read_tile::<S, 1, 4>(simd, block, [token, column], out);
            column += 4;
        }
        while column < columns {
            read_tile::<S, 1, 1>(simd, block, [token, column], out);
            column += 1;
        }
    }
}

/// [`read_state`] for `N` tokens and `P` vectors of values, from a token and a vector on.
#[inline(always)]
fn read_tile<S: Simd, const N: usize, const P: usize>(
    simd: S,
    block: &ScanBlock<'_>,
    [token, column]: [usize; 2],
    out: &mut [[f32; LANES]],
) {
    let (width, columns) = (block.state_dim, block.head_dim / LANES);
    let state = lines(block.state);
    let queries: [&[f32]; N] = std::array::from_fn(|n| &block.queries[(token + n) * width..][..width]);
    let mut sums = [[simd.splat(0.0); P]; N];
    for d in 0..width {
        for p in 0..P {
            let state = simd.load(&state[d * columns + column + p]);
            for n in 0..N {
                sums[n][p] = simd.fma(simd.splat(queries[n][d]), state, sums[n][p]);
            }
        }
    }
    for (n, sums) in sums.iter().enumerate() {
        let out = &mut out[(token + n) * columns + column..][..P];
        sums.iter().zip(out).for_each(|(sum, out)| simd.store(*sum, out));
    }
}

#[cfg(test)]
mod tests;
