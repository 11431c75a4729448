//! The parts of a forward pass, one by one.

use braidinfer_kernels::LANES;

use super::trace::{Trace, from_panels};
use super::{FusedExecutor, scratch};
use crate::Result;
use crate::executor::{Batch, LayerByLayer, Layers, Outputs, Probe};

impl Layers for FusedExecutor {
    fn layer(&mut self, index: usize, batch: &Batch, hidden: &[f32], probe: &mut dyn Probe) -> Result<Vec<f32>> {
        self.begin(batch)?;
        self.set_hidden(hidden);
        let mut trace = Trace::new(probe);
        trace.enter_layer(index);
        self.decode_layer(index, &mut trace);
        let hidden = self.hidden();
        trace.record("output", batch.token_ids.len(), || hidden.clone());
        Ok(hidden)
    }
}

impl LayerByLayer for FusedExecutor {
    fn embed(&mut self, batch: &Batch, probe: &mut dyn Probe) -> Result<Vec<f32>> {
        self.begin(batch)?;
        FusedExecutor::embed(self, &batch.token_ids);
        let hidden = self.hidden();
        Trace::new(probe).record("embed", batch.token_ids.len(), || hidden.clone());
        Ok(hidden)
    }

    fn head(&mut self, batch: &Batch, hidden: &[f32], probe: &mut dyn Probe) -> Result<Outputs> {
        self.begin(batch)?;
        self.set_hidden(hidden);
        Ok(self.outputs(batch, &mut Trace::new(probe)))
    }
}

impl FusedExecutor {
    fn begin(&mut self, batch: &Batch) -> Result<()> {
        batch.validate(&self.spec, &self.kv_cache.config())?;
        self.kv_cache.reserve(batch);
        self.step.fill(&self.spec, batch, &self.kv_cache);
        Ok(())
    }

    /// The residual stream `[T, hidden_size]`.
    fn hidden(&self) -> Vec<f32> {
        from_panels(&self.scratch.hidden, self.step.rows, self.spec.hidden_size)
    }

    fn set_hidden(&mut self, values: &[f32]) {
        let (rows, width) = (self.step.rows, self.spec.hidden_size);
        let hidden = scratch::panels(&mut self.scratch.hidden, width, rows);
        hidden.fill(0.0);
        for (row, values) in values.chunks_exact(width).enumerate() {
            for (panel, values) in values.chunks(LANES).enumerate() {
                hidden[(panel * rows + row) * LANES..][..values.len()].copy_from_slice(values);
            }
        }
    }
}
