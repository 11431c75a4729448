//! Pipeline stages: layers that other processes compute, each a range of consecutive ones with their keys and values.

use std::ops::Range;

use braidinfer_model::DecoderSpec;
use serde::{Deserialize, Serialize};

use super::fused;
use super::{
    ActiveKernels, Batch, Capabilities, ExecutorReport, KernelPlan, KvCacheConfig, LayerRunner, LayerState, NoProbe,
    Outputs, Probe, Step, WantedRows,
};
use crate::{Error, Result, memory};

/// A way to the stages of a pipeline, which together have all layers of a decoder.
pub trait StageConnection: Send {
    /// Lets each stage in turn compute its layers, with [`Stage::run`]. `hidden` is the residual stream before the first layer, and
    /// what comes back that after the last one, both `[T, stream_width]`.
    ///
    /// Fails with a message that names the stage. Keys and values of all sequences then count as lost.
    fn run(&mut self, step: Vec<u8>, hidden: Vec<f32>) -> std::result::Result<Vec<f32>, String>;
}

/// What all stages are to do, in this order.
#[derive(Debug, Default, Serialize, Deserialize)]
struct StageStep {
    /// Free keys, values and states.
    release: bool,
    /// Copy states from one slot to another.
    copies: Vec<(u32, u32)>,
    /// Run these tokens.
    batch: Batch,
}

impl StageStep {
    /// As bytes for [`Stage::run`].
    fn encoded(&self) -> Result<Vec<u8>> {
        rmp_serde::to_vec(self).map_err(|error| Error::Internal(format!("a step for pipeline stages: {error}")))
    }

    fn decoded(bytes: &[u8]) -> Result<Self> {
        let expected = "one that the engine of a pipeline made";
        rmp_serde::from_slice(bytes).map_err(|error| Error::bad_request("step", expected, error))
    }
}

/// Some consecutive layers of a decoder, with the keys and values of these.
pub struct Stage {
    pub(crate) layers: Range<usize>,
    /// Of these layers only.
    pub(crate) spec: DecoderSpec,
    /// Of these layers only.
    pub(crate) plan: KernelPlan,
    pub(crate) kv_cache: KvCacheConfig,
    pub(crate) runner: Box<dyn LayerRunner>,
    /// Tokens whose keys and values fit in memory.
    pub(crate) fitting_tokens: usize,
    /// Number of slots for states of sequences and prefixes.
    pub(crate) state_slots: usize,
}

impl Stage {
    /// The layers of this stage.
    pub fn layers(&self) -> Range<usize> {
        self.layers.clone()
    }

    /// Tokens whose keys and values there is memory for.
    pub fn fitting_tokens(&self) -> usize {
        self.fitting_tokens
    }

    /// Computes the layers of this stage: takes and returns the residual stream, `[T, stream_width]`. `step` comes from the engine.
    ///
    /// Fails on a step or a residual stream that does not fit this model, and if memory is short. What was kept of the step's
    /// sequences then counts as lost.
    pub fn run(&mut self, step: &[u8], hidden: &[f32]) -> Result<Vec<f32>> {
        let step = StageStep::decoded(step)?;
        self.validate(&step)?;
        let StageStep { release, copies, batch } = step;
        let values = batch.token_ids.len().saturating_mul(self.spec.stream_width());
        if hidden.len() != values {
            return Err(Error::bad_request("hidden", format!("{values} values"), hidden.len()));
        }
        if release {
            self.runner.release_storage()?;
        }
        copies.into_iter().try_for_each(|(from, to)| self.runner.copy_state(from, to))?;
        let step = Step { batch: &batch, plan: &self.plan };
        self.runner.reserve(step)?;
        self.runner.begin(step)?;
        self.runner.set_hidden(hidden)?;
        (0..self.spec.layers.len()).try_for_each(|layer| self.runner.layer(layer, step, &mut NoProbe))?;
        self.runner.hidden()
    }

    /// Fails on a step that does not fit this model, before anything is changed.
    fn validate(&self, step: &StageStep) -> Result<()> {
        let StageStep { copies, batch, .. } = step;
        if batch.token_ids.is_empty() {
            return Err(Error::bad_request("token_ids", "at least one", "none"));
        }
        batch.validate(&self.spec, &self.kv_cache)?;
        let copied = copies.iter().flat_map(|(from, to)| [*from, *to]);
        let slots = batch.sequences.iter().map(|sequence| sequence.state_slot).chain(copied);
        if let Some(slot) = slots.into_iter().find(|slot| *slot as usize >= self.state_slots) {
            return Err(Error::bad_request("state_slot", format!("below {}", self.state_slots), slot));
        }
        let keeps_state = memory::state_bytes(&self.spec, self.kv_cache.block_size) > 0;
        if keeps_state { batch.validate_state_slots() } else { Ok(()) }
    }
}

/// All layers of a decoder, computed by pipeline stages. It has neither embedding nor output head, and probes see nothing of it.
pub(crate) struct StagesRunner {
    spec: DecoderSpec,
    /// The plan that the stages were loaded with.
    plan: KernelPlan,
    block_size: usize,
    isa: &'static str,
    connection: Box<dyn StageConnection>,
    hidden: Vec<f32>,
    /// What the stages have to do before the next tokens.
    next: StageStep,
}

impl StagesRunner {
    pub(crate) fn new(
        spec: DecoderSpec,
        plan: KernelPlan,
        (block_size, isa): (usize, &'static str),
        connection: Box<dyn StageConnection>,
    ) -> Self {
        Self { spec, plan, block_size, isa, connection, hidden: Vec::new(), next: StageStep::default() }
    }

    fn run(&mut self, batch: &Batch) -> Result<()> {
        let Batch { token_ids, sequences, .. } = batch.clone();
        let batch = Batch { token_ids, sequences, ..Batch::default() };
        let step = StageStep { batch, ..std::mem::take(&mut self.next) };
        let hidden = std::mem::take(&mut self.hidden);
        let expected = hidden.len();
        self.hidden = self.connection.run(step.encoded()?, hidden).map_err(Error::Stage)?;
        match self.hidden.len() == expected {
            true => Ok(()),
            false => Err(Error::Stage(format!("expected {expected} values, found {}", self.hidden.len()))),
        }
    }
}

/// An error of a part that is computed elsewhere.
fn elsewhere(part: &str) -> Error {
    Error::Internal(format!("pipeline stages have no {part}"))
}

impl LayerRunner for StagesRunner {
    fn capabilities(&self) -> Capabilities {
        fused::CAPABILITIES
    }

    fn report(&self, plan: &KernelPlan) -> ExecutorReport {
        ExecutorReport {
            kernels: ActiveKernels::Fused,
            isa: self.isa.to_owned(),
            threads: 0,
            weight_bytes: 0,
            pack_time: None,
            levels: plan.summary(),
            main_level: plan.main_level(),
            kv_dtypes: plan.kv_dtypes.clone(),
            device: None,
        }
    }

    fn layer_state(&self, layer: usize, plan: &KernelPlan) -> LayerState {
        fused::layer_state(&self.spec, layer, plan, self.block_size)
    }

    fn begin(&mut self, step: Step<'_>) -> Result<()> {
        match *step.plan == self.plan {
            true => Ok(()),
            false => Err(Error::bad_request("kernel_plan", "the one that the stages were loaded with", "another")),
        }
    }

    fn embed(&mut self, _: Step<'_>, _: &mut dyn Probe) -> Result<()> {
        Err(elsewhere("embedding"))
    }

    fn layer(&mut self, index: usize, step: Step<'_>, _: &mut dyn Probe) -> Result<()> {
        // The stages compute all layers in one go, so that hidden states pass from one to the next.
        if index == 0 { self.run(step.batch) } else { Ok(()) }
    }

    fn head(&mut self, _: WantedRows<'_>, _: Step<'_>, _: &mut dyn Probe) -> Result<Outputs> {
        Err(elsewhere("output head"))
    }

    fn hidden(&mut self) -> Result<Vec<f32>> {
        Ok(self.hidden.clone())
    }

    fn set_hidden(&mut self, hidden: &[f32]) -> Result<()> {
        self.hidden = hidden.to_vec();
        Ok(())
    }

    fn copy_state(&mut self, from: u32, to: u32) -> Result<()> {
        self.next.copies.push((from, to));
        Ok(())
    }

    fn release_storage(&mut self) -> Result<()> {
        self.next = StageStep { release: true, ..StageStep::default() };
        Ok(())
    }
}

/// Embedding and output head of a decoder whose layers are computed by pipeline stages.
pub(crate) struct EndsRunner {
    /// Has no layers.
    pub(crate) runner: Box<dyn LayerRunner>,
    /// Of what this runner computes.
    pub(crate) plan: KernelPlan,
}

impl LayerRunner for EndsRunner {
    fn capabilities(&self) -> Capabilities {
        self.runner.capabilities()
    }

    fn report(&self, plan: &KernelPlan) -> ExecutorReport {
        let own = self.runner.report(&self.plan);
        let (levels, main_level, kv_dtypes) = (plan.summary(), plan.main_level(), plan.kv_dtypes.clone());
        ExecutorReport { levels, main_level, kv_dtypes, ..own }
    }

    fn layer_state(&self, _: usize, _: &KernelPlan) -> LayerState {
        LayerState { bytes_per_token: 0, bytes_per_sequence: 0, window: Some(0) }
    }

    fn reserve(&mut self, step: Step<'_>) -> Result<()> {
        self.runner.reserve(Step { plan: &self.plan, ..step })
    }

    fn release_scratch(&mut self) -> bool {
        self.runner.release_scratch()
    }

    fn begin(&mut self, step: Step<'_>) -> Result<()> {
        self.runner.begin(Step { plan: &self.plan, ..step })
    }

    fn embed(&mut self, step: Step<'_>, probe: &mut dyn Probe) -> Result<()> {
        self.runner.embed(Step { plan: &self.plan, ..step }, probe)
    }

    fn layer(&mut self, index: usize, _: Step<'_>, _: &mut dyn Probe) -> Result<()> {
        Err(Error::Internal(format!("layer {index} is computed by pipeline stages")))
    }

    fn head(&mut self, rows: WantedRows<'_>, step: Step<'_>, probe: &mut dyn Probe) -> Result<Outputs> {
        self.runner.head(rows, Step { plan: &self.plan, ..step }, probe)
    }

    fn hidden(&mut self) -> Result<Vec<f32>> {
        self.runner.hidden()
    }

    fn set_hidden(&mut self, hidden: &[f32]) -> Result<()> {
        self.runner.set_hidden(hidden)
    }

    fn copy_some_weights(&mut self) -> bool {
        self.runner.copy_some_weights()
    }
}
