//! Passing activations to a probe.

use braidinfer_kernels::{Isa, LANES};

use super::encode::Input;
use crate::executor::Probe;

pub(super) struct Trace<'a> {
    probe: &'a mut dyn Probe,
    /// Whether the probe records anything; if not, no names are built.
    active: bool,
    layer: Option<usize>,
}

impl<'a> Trace<'a> {
    pub(super) fn new(probe: &'a mut dyn Probe) -> Self {
        Self { active: probe.is_active(), probe, layer: None }
    }

    pub(super) fn enter_layer(&mut self, index: usize) {
        self.layer = Some(index);
    }

    /// Records `[rows, width]`; `values` is only called if the probe wants the activation.
    pub(super) fn record(&mut self, part: &str, rows: usize, values: impl FnOnce() -> Vec<f32>) {
        if !self.active {
            return;
        }
        let name = match self.layer {
            Some(layer) => format!("layer.{layer}.{part}"),
            None => part.to_owned(),
        };
        if self.probe.wants(&name) {
            self.probe.record(&name, rows, values());
        }
    }

    /// Records `[panels][rows][16]`.
    pub(super) fn panels(&mut self, part: &str, data: &[f32], rows: usize, width: usize) {
        self.record(part, rows, || from_panels(data, rows, width));
    }

    /// Records the rows that are about to be encoded.
    pub(super) fn input(&mut self, part: &str, isa: Isa, input: &Input<'_>) {
        self.record(part, input.rows, || from_input(isa, input));
    }
}

/// The rows that are about to be encoded, `[rows, width]`.
pub(super) fn from_input(isa: Isa, input: &Input<'_>) -> Vec<f32> {
    let mut padded = vec![0.0; input.width.next_multiple_of(LANES)];
    let mut values = Vec::with_capacity(input.rows * input.width);
    for row in 0..input.rows {
        input.read(isa, row..row + 1, 0..input.width, &mut padded);
        values.extend_from_slice(&padded[..input.width]);
    }
    values
}

/// Converts `[panels][rows][16]` to `[rows, width]`.
pub(super) fn from_panels(data: &[f32], rows: usize, width: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(rows * width);
    for row in 0..rows {
        for panel in 0..width.div_ceil(LANES) {
            let lanes = LANES.min(width - panel * LANES);
            values.extend_from_slice(&data[(panel * rows + row) * LANES..][..lanes]);
        }
    }
    values
}
