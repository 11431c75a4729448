//! Some consecutive layers of a decoder whose other layers have another runner.

use std::ops::Range;

use braidinfer_model::{DecoderSpec, Weights};

use super::{CAPABILITIES, FusedOptions, FusedRunner, layer_state};
use crate::Result;
use crate::executor::standard::LoadProgress;
use crate::executor::{
    Capabilities, ExecutorReport, KernelPlan, LayerRunner, LayerState, Outputs, Probe, ReadPattern, Step, WantedRows,
    no_ends,
};

/// Runs some layers under plans for all of them.
struct FusedPart {
    /// Of the whole decoder.
    spec: DecoderSpec,
    layers: Range<usize>,
    block_size: usize,
    /// Numbers these layers from 0.
    runner: FusedRunner,
    /// The last plan for the whole decoder, and what it says of these layers.
    plans: [KernelPlan; 2],
}

/// A runner for `layers` of a decoder, under the plans of all of it.
///
/// Fails like [`super::load`].
pub(crate) fn load_layers(
    spec: &DecoderSpec,
    weights: &Weights,
    (layers, plan): (Range<usize>, &KernelPlan),
    options: FusedOptions,
    progress: LoadProgress,
) -> Result<impl LayerRunner + use<>> {
    let part = weights.of_layers(&layers, false);
    let (_, runner) = FusedRunner::load(&spec.of_layers(layers.clone()), &part, options, progress)?;
    let plans = [plan.clone(), plan.of_layers(&layers, false)];
    Ok(FusedPart { spec: spec.clone(), layers, block_size: options.kv_cache.block_size, runner, plans })
}

impl FusedPart {
    /// Remembers the plan of a step.
    fn take_plan(&mut self, plan: &KernelPlan) {
        if self.plans[0] != *plan {
            self.plans = [plan.clone(), plan.of_layers(&self.layers, false)];
        }
    }
}

impl LayerRunner for FusedPart {
    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn report(&self, plan: &KernelPlan) -> ExecutorReport {
        let part = self.runner.report(&plan.of_layers(&self.layers, false));
        ExecutorReport { kv_dtypes: plan.kv_dtypes.clone(), ..part }
    }

    fn layer_state(&self, layer: usize, plan: &KernelPlan) -> LayerState {
        layer_state(&self.spec, layer, plan, self.block_size)
    }

    fn reserve(&mut self, step: Step<'_>) -> Result<()> {
        self.take_plan(step.plan);
        self.runner.reserve(Step { plan: &self.plans[1], ..step })
    }

    fn reserved_blocks(&self, plan: &KernelPlan) -> usize {
        self.runner.reserved_blocks(&plan.of_layers(&self.layers, false))
    }

    fn release_scratch(&mut self) -> bool {
        self.runner.release_scratch()
    }

    fn begin(&mut self, step: Step<'_>) -> Result<()> {
        self.take_plan(step.plan);
        self.runner.begin(Step { plan: &self.plans[1], ..step })
    }

    fn embed(&mut self, _step: Step<'_>, _probe: &mut dyn Probe) -> Result<()> {
        Err(no_ends())
    }

    fn layer(&mut self, index: usize, step: Step<'_>, probe: &mut dyn Probe) -> Result<()> {
        let mut probe = Renumbered { first: self.layers.start, probe };
        self.runner.layer(index - self.layers.start, Step { plan: &self.plans[1], ..step }, &mut probe)
    }

    fn head(&mut self, _rows: WantedRows<'_>, _step: Step<'_>, _probe: &mut dyn Probe) -> Result<Outputs> {
        Err(no_ends())
    }

    fn hidden(&mut self) -> Result<Vec<f32>> {
        self.runner.hidden()
    }

    fn set_hidden(&mut self, hidden: &[f32]) -> Result<()> {
        self.runner.set_hidden(hidden)
    }

    fn copy_state(&mut self, from: u32, to: u32) -> Result<()> {
        self.runner.copy_state(from, to)
    }

    fn read_weights(&mut self, pattern: ReadPattern) -> bool {
        self.runner.read_weights(pattern)
    }

    fn copy_some_weights(&mut self) -> bool {
        self.runner.copy_some_weights()
    }

    fn release_storage(&mut self) -> Result<()> {
        self.runner.release_storage()
    }
}

/// Passes activations on under the numbers that layers have in the whole decoder.
struct Renumbered<'a> {
    first: usize,
    probe: &'a mut dyn Probe,
}

impl Renumbered<'_> {
    fn name(&self, name: &str) -> String {
        let numbered = name.strip_prefix("layer.").and_then(|rest| rest.split_once('.'));
        let shifted = numbered.and_then(|(layer, part)| Some((layer.parse::<usize>().ok()? + self.first, part)));
        shifted.map_or_else(|| name.to_owned(), |(layer, part)| format!("layer.{layer}.{part}"))
    }
}

impl Probe for Renumbered<'_> {
    fn is_active(&self) -> bool {
        self.probe.is_active()
    }

    fn wants(&self, name: &str) -> bool {
        self.probe.wants(&self.name(name))
    }

    fn record(&mut self, name: &str, rows: usize, values: Vec<f32>) {
        let name = self.name(name);
        self.probe.record(&name, rows, values);
    }
}
