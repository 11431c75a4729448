//! Passing activations to a probe.

use candle_core::{DType, Tensor};

use crate::Result;
use crate::executor::Probe;

pub(super) struct Trace<'a> {
    probe: &'a mut dyn Probe,
    layer: Option<usize>,
}

impl<'a> Trace<'a> {
    pub(super) fn new(probe: &'a mut dyn Probe) -> Self {
        Self { probe, layer: None }
    }

    pub(super) fn enter_layer(&mut self, index: usize) {
        self.layer = Some(index);
    }

    /// Records `x`, whose first dimension is the tokens.
    pub(super) fn record(&mut self, part: &str, x: &Tensor) -> Result<()> {
        let name = self.name(part);
        if self.probe.wants(&name) {
            let values = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            self.probe.record(&name, x.dim(0)?, values);
        }
        Ok(())
    }

    /// Records one row of values per token.
    pub(super) fn rows(&mut self, part: &str, rows: impl ExactSizeIterator<Item = Vec<f32>>) {
        let name = self.name(part);
        if self.probe.wants(&name) {
            let count = rows.len();
            self.probe.record(&name, count, rows.flatten().collect());
        }
    }

    fn name(&self, part: &str) -> String {
        match self.layer {
            Some(layer) => format!("layer.{layer}.{part}"),
            None => part.to_owned(),
        }
    }
}
