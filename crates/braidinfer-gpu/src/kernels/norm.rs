//! Norms of the residual stream, with what is added to it before.

use braidinfer_model::spec::{NormKind, NormSpec};
use serde::Serialize;

use super::template::{literal, render};
use crate::{Buffer, Gpu, Kernel, Result, stride};

/// What is added to the residual stream before it is normed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Add {
    /// Nothing.
    Nothing,
    /// A branch.
    Branch,
    /// A branch through a norm of its own.
    Normed(NormSpec),
}

/// A kernel that adds a branch to the residual stream, norms it, or does both, token by token.
#[derive(Debug, Clone)]
pub struct NormKernel {
    kernel: Kernel,
}

/// The buffers of one run.
#[derive(Debug, Clone, Copy)]
pub struct NormStep<'a> {
    /// The residual stream `[tokens, stride]`.
    pub stream: &'a Buffer,
    /// What is added to it, `[tokens, stride]`; any buffer but the others if there is nothing.
    pub branch: &'a Buffer,
    /// The weight of the branch's norm, then its bias if it has one.
    pub branch_norm: &'a Buffer,
    /// The weight of the norm, then its bias if it has one.
    pub norm: &'a Buffer,
    /// The normed stream, `[tokens, stride]`; any buffer but the others if there is no norm.
    pub output: &'a Buffer,
    /// What lists the rows that are normed, and where, if not all are.
    pub step: (&'a Buffer, usize),
    /// Width of the residual stream.
    pub width: usize,
    /// Number of tokens, or of the rows that are listed.
    pub tokens: usize,
    /// Factor of what is added.
    pub factor: f32,
    /// Factor of the sum.
    pub stream_factor: f32,
}

#[derive(Serialize)]
struct Values {
    selects: bool,
    add: &'static str,
    branch_layer: bool,
    branch_bias: bool,
    branch_eps: String,
    norm: &'static str,
    bias: bool,
    eps: String,
}

impl NormKernel {
    /// Compiles it. `selects` is for a norm of listed rows; nothing can be added then.
    ///
    /// Fails if the driver refuses it.
    pub fn new(gpu: &mut Gpu, add: Add, norm: Option<NormSpec>, selects: bool) -> Result<Self> {
        let branch = if let Add::Normed(spec) = add { Some(spec) } else { None };
        let is_layer = |spec: NormSpec| spec.kind == NormKind::Layer;
        let eps = |spec: Option<NormSpec>| literal(spec.map_or(0.0, |spec| spec.eps as f32));
        let values = Values {
            selects,
            add: match add {
                Add::Nothing => "none",
                Add::Branch => "plain",
                Add::Normed(_) => "normed",
            },
            branch_layer: branch.is_some_and(is_layer),
            branch_bias: branch.is_some_and(|spec| spec.bias),
            branch_eps: eps(branch),
            norm: norm.map_or("none", |spec| if is_layer(spec) { "layer" } else { "rms" }),
            bias: norm.is_some_and(|spec| spec.bias),
            eps: eps(norm),
        };
        Ok(Self { kernel: gpu.kernel("norm", render("norm", values), 6, 1 | 1 << 4)? })
    }

    /// Records it.
    pub fn record(&self, gpu: &mut Gpu, step: NormStep<'_>) {
        let stride = stride(step.width) as u32;
        let parameters = [
            step.width as u32,
            stride,
            stride,
            stride,
            step.factor.to_bits(),
            step.stream_factor.to_bits(),
            step.step.1 as u32,
        ];
        let buffers = [step.stream, step.branch, step.branch_norm, step.norm, step.output, step.step.0];
        let most = gpu.max_groups() as usize;
        assert!(step.tokens <= most, "{} tokens in a step", step.tokens);
        gpu.dispatch(&self.kernel, &buffers, &parameters, [step.tokens as u32, 1, 1]);
    }
}
