//! Mamba-2, and what only architectures with it have.

use serde::Serialize;

use super::{DecayRates, NormSpec};

/// Mamba-2 (Dao and Gu 2024, arXiv:2405.21060): recurrent layers that keep a matrix per head.
///
/// A projection gives a gate `z` and inputs `x`, both `[H, d_head]`, vectors `B` and `C` `[G, d_state]`, and a number `dt`
/// for each head, in this order. `x`, `B` and `C` pass through a causal depthwise convolution and SiLU. With the step
/// `s = softplus(dt + dt_bias)`, within limits, and `A = -exp(A_log)`, the state `S` `[d_state, d_head]` of a head becomes,
/// at each token, `e^(s A) S + B (s x)^T`, and the output is `S^T C + D x`; head `t` uses `B` and `C` of group
/// `t / (H / G)`. The outputs are multiplied by `silu(z)`, and may be normed before or after that.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Mamba2Spec {
    /// Number of heads, `H`.
    pub mamba_n_heads: usize,
    /// Width of a head.
    pub mamba_d_head: usize,
    /// Number of groups of heads with the same `B` and `C`, `G`.
    pub mamba_n_groups: usize,
    /// Width of `B` and `C`.
    pub mamba_d_state: usize,
    /// Number of tokens, including the current one, that the convolution covers.
    pub mamba_d_conv: usize,
    /// Whether the convolution has a bias.
    pub conv_bias: bool,
    /// Whether the input projection has a bias.
    pub input_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// The least step.
    pub least_step: f64,
    /// The largest step, if there is a limit.
    pub largest_step: Option<f64>,
    /// Norm of the outputs.
    pub norm: Option<GatedNormSpec>,
    /// What is stored of `A_log`.
    pub decay_rates: DecayRates,
    /// Factors of what the input projection gives.
    pub multipliers: Option<Mamba2Multipliers>,
}

/// The norm of the outputs of a Mamba-2 layer, over all heads of a group; the weight is that of all groups, `[H * d_head]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct GatedNormSpec {
    /// The norm.
    pub norm: NormSpec,
    /// Whether the outputs are normed before they are multiplied by `silu(z)`.
    pub before_gate: bool,
}

/// Factors of the outputs of the input projection of a Mamba-2 layer, including its bias.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Mamba2Multipliers {
    /// Of the gate.
    pub z: f64,
    /// Of the inputs.
    pub x: f64,
    /// Of `B`.
    pub b: f64,
    /// Of `C`.
    pub c: f64,
    /// Of the numbers that give the steps.
    pub dt: f64,
}

/// Factors of what is added to the residual stream, besides the one that all have in common.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BranchMultipliers {
    /// Of the output of attention.
    pub attention: f64,
    /// Of the output of Mamba-2.
    pub mamba2: f64,
    /// Of the output of the feed-forward network.
    pub feed_forward: f64,
}

impl Mamba2Multipliers {
    /// No factors.
    pub const NONE: Self = Self { z: 1.0, x: 1.0, b: 1.0, c: 1.0, dt: 1.0 };
}

impl BranchMultipliers {
    /// No factors.
    pub const NONE: Self = Self { attention: 1.0, mamba2: 1.0, feed_forward: 1.0 };
}

impl Mamba2Spec {
    /// Width of all heads.
    pub fn inner_width(&self) -> usize {
        self.mamba_n_heads * self.mamba_d_head
    }

    /// Width of `B`, or of `C`, of all groups.
    pub fn state_width(&self) -> usize {
        self.mamba_n_groups * self.mamba_d_state
    }

    /// Number of channels of the convolution: `x`, `B` and `C`.
    pub fn conv_width(&self) -> usize {
        self.inner_width() + 2 * self.state_width()
    }

    /// Number of rows of the input projection.
    pub fn input_rows(&self) -> usize {
        self.inner_width() + self.conv_width() + self.mamba_n_heads
    }

    /// Number of heads in a group.
    pub fn heads_per_group(&self) -> usize {
        self.mamba_n_heads / self.mamba_n_groups
    }

    /// Least and largest step.
    pub fn step_limits(&self) -> [f32; 2] {
        [self.least_step as f32, self.largest_step.map_or(f32::INFINITY, |step| step as f32)]
    }

    /// Factors of what the input projection gives.
    pub fn multipliers(&self) -> Mamba2Multipliers {
        self.multipliers.unwrap_or(Mamba2Multipliers::NONE)
    }
}
