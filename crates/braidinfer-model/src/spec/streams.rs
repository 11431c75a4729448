//! Several residual streams, and low-rank branches beside attention.

use serde::Serialize;

/// Alternating updates (Baykal et al. 2023, arXiv:2301.13310): a token has `K` residual streams of `h` values, of which
/// each layer transforms one, the active one, and predicts what the others become.
///
/// With the norm and the matrix `R` `[K, h]` of a layer's router, `m(x) = tanh(R norm(x) router_multiplier)` are `K`
/// numbers. Before a layer, stream `i` of `s` becomes the prediction `p_i = s_i + sum_j P(m(s_a))_ij s_j`, where `a` is the
/// active stream and the matrix `P(m)` has the values of `prediction_coefs m`, row by row. The layer, up to its
/// feed-forward part, turns `p_a` into `y`. After it, stream `i` is `p_i + (1 + (correction_coefs m(y))_i) (y - p_a)`.
///
/// The further input of a layer ([`super::PerLayerInputSpec`]) is gated by the active stream, times
/// `correct_output_scale` if the model has it, and what is made of it is added to all streams but the first.
///
/// The first stream begins as the embedding `x`, and the others as projections of it. The output head reads the mean of
/// the first stream and of projections of the others. Each of these projections `v`, in both places, is multiplied by the
/// ratio of root mean squares of `x`, or of the first stream, and of `v`: `rms / sqrt(max(mean(v^2), least_mean_square))`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct AltUpSpec {
    /// Number of streams, `K`: at least 1, and at most [`AltUpSpec::MOST_INPUTS`].
    pub altup_num_inputs: usize,
    /// Index of the active stream.
    pub altup_active_idx: usize,
    /// Whether the corrected active stream is multiplied by a stored vector `[h]` before a layer's further input is gated by
    /// it.
    pub altup_correct_scale: bool,
    /// Factor of what the router reads.
    pub router_multiplier: f64,
    /// The least mean square by which projections between streams are divided.
    pub least_mean_square: f64,
}

impl AltUpSpec {
    /// The largest number of streams; published models have 4.
    pub const MOST_INPUTS: usize = 16;
}

/// A learned augmented residual layer of low rank (Menghani et al. 2024, arXiv:2411.07501): beside attention, the normed
/// residual stream `n` passes through two matrices, and the stream `y` after attention becomes
/// `sum_multiplier * (y + n + norm(linear_right linear_left n))`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LaurelSpec {
    /// Number of values between the two matrices.
    pub laurel_rank: usize,
    /// Factor of the sum.
    pub sum_multiplier: f64,
}
