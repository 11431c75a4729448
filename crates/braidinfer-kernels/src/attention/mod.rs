//! Causal attention over paged keys and values.
//!
//! Softmax is computed online over blocks of 64 positions. Every row (one query head of one token) takes the same
//! steps, whichever rows are computed with it: only blocks with a key visible to it, in ascending order, and only
//! positions visible to it. Contexts longer than [`SPAN`] are computed span by span, possibly by different threads, and
//! merged in ascending order.

mod block;
mod hadamard;
mod kv;
mod kv_types;
mod microkernels;
mod partial;
#[cfg(test)]
mod tests;

use std::ops::Range;

pub use hadamard::hadamard;
pub use kv::{KvElement, KvSlab, PagedHead, SLAB_TILES};
pub use kv_types::{Q4_0, Q8_0};
pub use partial::{Partial, add_sinks, finish, merge};

use crate::isa::Isa;
use crate::simd::LANES;
use block::DIRECT_ROWS;

/// Key positions per partial result.
pub const SPAN: usize = 1024;

/// Key positions per update of the running softmax.
const BLOCK: usize = 64;

/// Tiles per block.
const BLOCK_TILES: usize = BLOCK / LANES;

/// Attention parameters of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Width of a head.
    pub head_dim: usize,
    /// Query heads that share a key/value head.
    pub per_group: usize,
    /// Factor of the dot product of query and key.
    pub scale: f32,
    /// `cap * tanh(score / cap)` after scaling.
    pub softcap: Option<f32>,
    /// A query at position `p` sees keys `j <= p`, and with a window `w` only those with `j > p - w`.
    pub window: Option<usize>,
}

impl AttentionShape {
    /// Width of a head, padded to a multiple of 16.
    pub fn padded_dim(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// The positions visible to a query at `position`.
    fn visible(&self, position: usize) -> Range<usize> {
        let first = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        first..position + 1
    }
}

/// An attention task: consecutive tokens of one sequence, one key/value head, one span of keys.
#[derive(Debug)]
#[expect(private_bounds, reason = "how elements are loaded is this crate's own")]
pub struct Attention<'a, T: kv_types::Stored> {
    /// Attention parameters.
    pub shape: &'a AttentionShape,
    /// Queries `[tokens][per_group][head_dim]`, normed and rotated, not scaled.
    pub queries: &'a [f32],
    /// Position of the first token.
    pub first_position: usize,
    /// Keys and values of the sequence, including those of the tokens themselves.
    pub kv: PagedHead<'a, T>,
    /// Key positions: begins at a multiple of [`SPAN`] and is at most [`SPAN`] long. Later keys are not read.
    pub span: Range<usize>,
}

/// Length of the scratch space that [`attend`] needs for `rows` rows.
pub fn scratch_len(shape: &AttentionShape, rows: usize) -> usize {
    if rows > DIRECT_ROWS { BLOCK * (shape.head_dim + shape.padded_dim()) } else { 0 }
}

/// Attention of tokens to a span of keys, with scores `scale (q · k)`, softcapped and masked. For every row, writes to
/// `out` the largest score `m`, the sum of `exp(score - m)`, and the sum of `exp(score - m)` times values.
///
/// Row `token * per_group + head` of `out` belongs to that query. Rows that see no key of the span get minus infinity,
/// 0 and zeros. `scratch` must have at least [`scratch_len`] values.
pub fn attend<T: KvElement>(isa: Isa, task: &Attention<'_, T>, scratch: &mut [f32], out: &mut Partial<'_>) {
    T::attend(isa, task, scratch, out);
}
