//! Activations for probes, which are read back where they are wanted.

use braidinfer_gpu::{Buffer, Gpu, stride};

use super::weights::GpuAttention;
use crate::Result;
use crate::executor::Probe;

pub(super) struct Trace<'a> {
    probe: &'a mut dyn Probe,
    active: bool,
    layer: Option<usize>,
}

impl<'a> Trace<'a> {
    pub(super) fn new(probe: &'a mut dyn Probe, layer: Option<usize>) -> Self {
        Self { active: probe.is_active(), probe, layer }
    }

    fn name(&self, part: &str) -> String {
        match self.layer {
            Some(layer) => format!("layer.{layer}.{part}"),
            None => part.to_owned(),
        }
    }

    /// Whether the probe wants an activation.
    pub(super) fn wants(&self, part: &str) -> bool {
        self.active && self.probe.wants(&self.name(part))
    }

    /// Records the rows of a buffer, if the probe wants them.
    pub(super) fn rows(&mut self, gpu: &mut Gpu, part: &str, buffer: &Buffer, rows: usize, width: usize) -> Result<()> {
        self.columns(gpu, part, (buffer, stride(width)), rows, 0..width)
    }

    /// Records some columns of the rows of a buffer with a stride.
    fn columns(
        &mut self,
        gpu: &mut Gpu,
        part: &str,
        (buffer, stride): (&Buffer, usize),
        rows: usize,
        columns: std::ops::Range<usize>,
    ) -> Result<()> {
        if self.wants(part) {
            let values = gpu.read_f32(&[(buffer, 0..rows * stride)])?;
            self.record(part, rows, || {
                values.chunks_exact(stride).flat_map(|row| row[columns.clone()].to_vec()).collect()
            });
        }
        Ok(())
    }

    /// Records what was read already, if the probe wants it.
    pub(super) fn record(&mut self, part: &str, rows: usize, values: impl FnOnce() -> Vec<f32>) {
        if self.wants(part) {
            let name = self.name(part);
            self.probe.record(&name, rows, values());
        }
    }

    /// Records the outputs of the projections of queries, keys and values.
    pub(super) fn projected(
        &mut self,
        gpu: &mut Gpu,
        attention: &GpuAttention,
        projected: &Buffer,
        rows: usize,
    ) -> Result<()> {
        let [queries, keys, values] = attention.columns;
        let (query, key) = (attention.spec.query_rows(), attention.spec.key_value_width());
        for (part, first, width) in [("attn.q", queries, query), ("attn.k", keys, key), ("attn.v", values, key)] {
            let source = (projected, stride(attention.projections.width));
            self.columns(gpu, part, source, rows, first..first + width)?;
        }
        Ok(())
    }
}
