//! The commands of one layer.

use braidinfer_gpu::kernels::{AttentionStep, HeadsStep, NormKernel, NormStep, ProductStep};
use braidinfer_gpu::{Buffer, Gpu, stride};

use super::GpuRunner;
use super::memory::{KvBuffers, Scratch};
use super::trace::Trace;
use super::upload::Upload;
use super::weights::{BranchAdd, GpuAttention, GpuFeedForward, GpuLayer, OutputProjection, storage_index};
use crate::executor::KvDtype;
use crate::{Error, Result};

/// What the commands of a layer are made from.
struct Pass<'a> {
    gpu: &'a mut Gpu,
    scratch: &'a Scratch,
    upload: &'a Upload,
    /// Width of the residual stream.
    width: usize,
}

/// The end of a branch: its last product, and how it is added to the residual stream.
struct Branch<'a> {
    output: &'a OutputProjection,
    add: &'a BranchAdd,
    input: &'a Buffer,
    /// The name of its product for probes.
    name: &'static str,
    /// Factor of the residual stream after it was added.
    stream_factor: f32,
}

impl GpuRunner {
    /// Records one layer.
    pub(super) fn record_layer(&mut self, index: usize, kv_dtype: KvDtype, trace: &mut Trace<'_>) -> Result<()> {
        let Some(layer) = &self.layers[index] else {
            return Err(Error::Internal(format!("layer {index} was not loaded on the GPU")));
        };
        let width = self.spec.hidden_size;
        let mut pass = Pass { gpu: &mut self.gpu, scratch: &self.scratch, upload: &self.upload, width };
        let parallel = self.spec.block.parallel && layer.attention.is_some();
        if let Some(attention) = &layer.attention {
            let normed = pass.norm(&layer.input_norm, &pass.scratch.normed);
            trace.rows(pass.gpu, "input_norm", normed, pass.tokens(), width)?;
            if let (true, Some(GpuFeedForward { norm: Some(norm), .. })) = (parallel, &layer.feed_forward) {
                pass.record_norm(norm, &pass.scratch.normed_beside);
            }
            let kv = self.kv.of(index, kv_dtype)?;
            pass.attend(attention, normed, (kv, kv_dtype), trace)?;
            let factor = if layer.feed_forward.is_none() { layer.scalar } else { 1.0 };
            let input = &pass.scratch.heads;
            let (output, add) = (&attention.output, &attention.add);
            pass.add_branch(Branch { output, add, input, name: "attn.out", stream_factor: factor }, trace)?;
            trace.rows(pass.gpu, "attn.residual", &pass.scratch.hidden, pass.tokens(), width)?;
        }
        if let Some(network) = &layer.feed_forward {
            pass.feed_forward(layer, network, parallel, trace)?;
        }
        trace.rows(pass.gpu, "output", &pass.scratch.hidden, pass.tokens(), width)
    }
}

impl<'a> Pass<'a> {
    fn tokens(&self) -> usize {
        self.upload.positions.len()
    }

    /// Norms the residual stream into `output`, if there is a norm. Returns where the result is.
    fn norm(&mut self, norm: &Option<(NormKernel, Buffer)>, output: &'a Buffer) -> &'a Buffer {
        match norm {
            Some(norm) => {
                self.record_norm(norm, output);
                output
            }
            None => &self.scratch.hidden,
        }
    }

    fn record_norm(&mut self, (kernel, weight): &(NormKernel, Buffer), output: &Buffer) {
        let Scratch { hidden, step, nothing, .. } = self.scratch;
        let step = NormStep {
            stream: hidden,
            branch: nothing,
            branch_norm: nothing,
            norm: weight,
            output,
            step: (step, 0),
            width: self.width,
            tokens: self.tokens(),
            factor: 1.0,
            stream_factor: 1.0,
        };
        kernel.record(self.gpu, step);
    }

    /// Projections, heads and attention, into `heads`.
    fn attend(
        &mut self,
        attention: &GpuAttention,
        input: &Buffer,
        (kv, kv_dtype): (&KvBuffers, KvDtype),
        trace: &mut Trace<'_>,
    ) -> Result<()> {
        let Scratch { projected, queries, heads, partials, step, nothing, .. } = self.scratch;
        let (tokens, width) = (self.tokens(), attention.projections.width);
        for part in attention.projections.parts() {
            let step = ProductStep {
                input,
                input_stride: stride(self.width),
                output: projected,
                output_stride: stride(width),
                output_column: part.column,
                tokens,
            };
            part.kernels.record(self.gpu, &part.matrix, step);
        }
        trace.projected(self.gpu, attention, projected, tokens)?;
        let kernels = &attention.by_storage[storage_index(kv_dtype)?];
        let heads_step = HeadsStep {
            input: projected,
            input_stride: stride(width),
            step,
            norms: &attention.head_norms,
            queries,
            query_stride: stride(attention.spec.query_width()),
            keys: &kv.keys,
            values: &kv.values,
            slots_at: self.upload.slots_at,
            rotation_at: attention.rope.map_or([0, 0], |table| self.upload.rotations_at[table]),
            scales_at: self.upload.scales_at[attention.kind],
            tokens,
        };
        kernels.heads.record(self.gpu, heads_step);
        trace.rows(self.gpu, "attn.q_rope", queries, tokens, attention.spec.query_width())?;
        let attention_step = AttentionStep {
            queries,
            step,
            keys: &kv.keys,
            values: &kv.values,
            partials,
            input: projected,
            input_stride: stride(width),
            sinks: attention.sinks.as_ref().unwrap_or(nothing),
            output: heads,
            positions_at: 0,
            tables_at: self.upload.tables_at,
            positions: &self.upload.positions,
        };
        kernels.attention.record(self.gpu, attention_step);
        let gated = attention.spec.output_gate || attention.spec.head_gate;
        let name = if gated { "attn.gated" } else { "attn.heads" };
        trace.rows(self.gpu, name, heads, tokens, attention.spec.query_width())
    }

    fn feed_forward(
        &mut self,
        layer: &GpuLayer,
        network: &GpuFeedForward,
        parallel: bool,
        trace: &mut Trace<'_>,
    ) -> Result<()> {
        let Scratch { normed, normed_beside, inner, .. } = self.scratch;
        let input = match (parallel, &network.norm) {
            (true, Some(_)) => normed_beside,
            // Attention has left it as it was.
            (true, None) => normed,
            (false, norm) => self.norm(norm, normed),
        };
        trace.rows(self.gpu, "ffn.norm", input, self.tokens(), self.width)?;
        let step = ProductStep {
            input,
            input_stride: stride(self.width),
            output: inner,
            output_stride: stride(network.inner_width),
            output_column: 0,
            tokens: self.tokens(),
        };
        network.inner.kernels.record(self.gpu, &network.inner.matrix, step);
        let (output, add) = (&network.output, &network.add);
        self.add_branch(Branch { output, add, input: inner, name: "ffn.out", stream_factor: layer.scalar }, trace)
    }

    /// Adds a branch to the residual stream, through a norm if it has one.
    fn add_branch(&mut self, branch: Branch<'_>, trace: &mut Trace<'_>) -> Result<()> {
        let Branch { output, add, input, name, stream_factor } = branch;
        let Scratch { hidden, branch, step, nothing, .. } = self.scratch;
        let tokens = self.tokens();
        let product = ProductStep {
            input,
            input_stride: stride(output.matrix.columns),
            output: hidden,
            output_stride: stride(self.width),
            output_column: 0,
            tokens,
        };
        if add.norm.is_none() && stream_factor == 1.0 && !trace.wants(name) {
            output.added.record(self.gpu, &output.matrix, product);
            return Ok(());
        }
        output.stored.record(self.gpu, &output.matrix, ProductStep { output: branch, ..product });
        if add.norm.is_none() || name == "attn.out" {
            trace.rows(self.gpu, name, branch, tokens, self.width)?;
        }
        let step = NormStep {
            stream: hidden,
            branch,
            branch_norm: add.norm.as_ref().unwrap_or(nothing),
            norm: nothing,
            output: &self.scratch.normed,
            step: (step, 0),
            width: self.width,
            tokens,
            factor: add.factor,
            stream_factor,
        };
        add.kernel.record(self.gpu, step);
        Ok(())
    }
}
