//! The one driver of a forward pass, whoever computes its layers.

use std::collections::BTreeSet;
use std::sync::Arc;

use braidinfer_model::DecoderSpec;

use super::rope_history::RopeHistory;
use super::route::Route;
use super::{
    ActiveKernels, Batch, Capabilities, ExecutorReport, KernelPlan, KvCacheConfig, LayerRunner, LayerState, Logits,
    NoProbe, Outputs, Probe, Step, WantedRows,
};
use crate::{Error, Result};

/// Rows that the output head computes at once, which bounds the memory for logits.
const HEAD_ROWS: usize = 64;

/// A decoder: runners, a table that says which of them computes which layer, and the plan they compute by.
///
/// Promises, for every architecture: the logits of a position do not depend on how its sequence was cut into batches, nor
/// on the other sequences in the batch: to the last bit where [`Capabilities::same_bits_in_company`] says so, and within
/// rounding elsewhere.
pub struct Decoder<'a> {
    spec: DecoderSpec,
    storage: KvCacheConfig,
    plan: Arc<KernelPlan>,
    runners: Vec<Box<dyn LayerRunner + 'a>>,
    route: Route,
    /// Where RoPE depends on the length of the sequence.
    rope_history: Option<RopeHistory>,
}

impl<'a> Decoder<'a> {
    /// A decoder of which one runner computes everything by `plan`; `storage` is what the runner was made for.
    pub fn new(spec: DecoderSpec, storage: KvCacheConfig, plan: KernelPlan, runner: impl LayerRunner + 'a) -> Self {
        Self {
            route: Route::whole(spec.layers.len()),
            rope_history: RopeHistory::new(&spec, storage.block_size),
            runners: vec![Box::new(runner)],
            spec,
            storage,
            plan: Arc::new(plan),
        }
    }

    /// Leaves some layers to another runner.
    ///
    /// Fails on a layer that the decoder does not have.
    pub fn with_layers(mut self, layers: &BTreeSet<usize>, runner: impl LayerRunner + 'a) -> Result<Self> {
        let count = self.spec.layers.len();
        if let Some(layer) = layers.iter().find(|layer| **layer >= count) {
            return Err(Error::bad_request("layer", format!("below {count}"), layer));
        }
        self.route.set(layers, self.runners.len());
        self.runners.push(Box::new(runner));
        Ok(self)
    }

    /// Computes by another plan from now on. What was stored before under other types of keys and values is not found any
    /// more, so sequences begin anew.
    pub fn with_plan(self, plan: KernelPlan) -> Self {
        let rope_history = RopeHistory::new(&self.spec, self.storage.block_size);
        Self { rope_history, plan: Arc::new(plan), ..self }
    }

    /// What is decoded.
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// Shape of the key/value storage.
    pub fn kv_cache(&self) -> KvCacheConfig {
        self.storage
    }

    /// At which level each projection is multiplied.
    pub fn plan(&self) -> &KernelPlan {
        &self.plan
    }

    /// What computes, and how much memory it reads.
    pub fn report(&self) -> ExecutorReport {
        let reports: Vec<ExecutorReport> = self.runners.iter().map(|runner| runner.report(&self.plan)).collect();
        let mut report = reports[self.route.head].clone();
        for (layer, runner) in self.route.layers.iter().enumerate() {
            report.kv_dtypes[layer] = reports[*runner].kv_dtypes[layer];
        }
        if reports.iter().any(|other| other.kernels != report.kernels) {
            report.kernels = ActiveKernels::Mixed;
        }
        report
    }

    /// What all runners promise together.
    pub fn capabilities(&self) -> Capabilities {
        let mut promised = Capabilities {
            same_bits_in_company: true,
            // What is stored for a prefix is rotated for the length of the sequence that it was computed in.
            shares_prefixes: self.rope_history.is_none(),
            takes_back_drafts: self.rope_history.is_none(),
        };
        for runner in &self.runners {
            promised = promised.and(runner.capabilities());
        }
        promised
    }

    /// What is stored of sequences in all layers together.
    pub fn state(&self) -> LayerState {
        let of = |(layer, runner): (usize, &usize)| self.runners[*runner].layer_state(layer, &self.plan);
        // Where RoPE depends on the length, everything may have to be computed again.
        let window = if self.rope_history.is_none() { Some(0) } else { None };
        let nothing = LayerState { bytes_per_token: 0, bytes_per_sequence: 0, window };
        self.route.layers.iter().enumerate().map(of).fold(nothing, |sum, state| LayerState {
            bytes_per_token: sum.bytes_per_token + state.bytes_per_token,
            bytes_per_sequence: sum.bytes_per_sequence + state.bytes_per_sequence,
            window: sum.window.zip(state.window).map(|(a, b)| a.max(b)),
        })
    }

    /// Runs every token of `batch`, stores what its layers keep, and returns what the batch asks for.
    ///
    /// Fails with [`Error::BadRequest`] on a batch that contradicts itself, the vocabulary or the storage; what is stored
    /// is then unchanged.
    pub fn forward(&mut self, batch: &Batch, probe: &mut dyn Probe) -> Result<Outputs> {
        let plan = Arc::clone(&self.plan);
        self.forward_by(Step { batch, plan: &plan }, probe)
    }

    /// The same by another plan than the decoder's own.
    pub fn forward_by(&mut self, step: Step<'_>, probe: &mut dyn Probe) -> Result<Outputs> {
        let Step { batch, plan } = step;
        self.validate(batch)?;
        if batch.token_ids.is_empty() {
            return Ok(Outputs::none(self.spec.vocab_size));
        }
        for replayed in self.rope_history.as_ref().map_or(Ok(Vec::new()), |history| history.stale(batch))? {
            self.pass(Step { batch: &replayed, plan }, &mut NoProbe)?;
            self.remember(&replayed);
        }
        let outputs = self.pass(step, probe)?;
        self.remember(batch);
        Ok(outputs)
    }

    /// The same on what is stored as it is: where RoPE depends on the length of a sequence, its keys may be rotated for
    /// another one.
    pub(crate) fn forward_as_stored(&mut self, step: Step<'_>, probe: &mut dyn Probe) -> Result<Outputs> {
        self.validate(step.batch)?;
        self.pass(step, probe)
    }

    /// The embedding of every token, `[T, hidden_size]`.
    pub(crate) fn embed(&mut self, step: Step<'_>, probe: &mut dyn Probe) -> Result<Vec<f32>> {
        self.validate(step.batch)?;
        let runner = &mut self.runners[self.route.embed];
        runner.begin(step)?;
        runner.embed(step, probe)?;
        runner.hidden()
    }

    /// One layer alone: the residual stream after it, from that before it, both `[T, hidden_size]`.
    pub(crate) fn layer(
        &mut self,
        index: usize,
        step: Step<'_>,
        hidden: &[f32],
        probe: &mut dyn Probe,
    ) -> Result<Vec<f32>> {
        self.validate(step.batch)?;
        let runner = &mut self.runners[self.route.layers[index]];
        runner.begin(step)?;
        runner.set_hidden(hidden)?;
        runner.layer(index, step, probe)?;
        runner.hidden()
    }

    /// What the batch asks for, from the residual stream after the last layer.
    pub(crate) fn head(&mut self, step: Step<'_>, hidden: &[f32], probe: &mut dyn Probe) -> Result<Outputs> {
        self.validate(step.batch)?;
        let runner = &mut self.runners[self.route.head];
        runner.begin(step)?;
        runner.set_hidden(hidden)?;
        self.outputs(step, probe)
    }

    /// The runner that computes everything but what was left to others.
    pub(crate) fn runner_mut(&mut self) -> &mut (dyn LayerRunner + 'a) {
        &mut *self.runners[0]
    }

    /// Copies what is kept of a sequence in one state slot to another one.
    pub fn copy_state(&mut self, from: u32, to: u32) -> Result<()> {
        let (runners, plan) = (&mut self.runners, &self.plan);
        for (index, runner) in runners.iter_mut().enumerate() {
            let keeps_state =
                |(layer, of): (usize, &usize)| *of == index && runner.layer_state(layer, plan).bytes_per_sequence > 0;
            if self.route.layers.iter().enumerate().any(keeps_state) {
                runner.copy_state(from, to)?;
            }
        }
        Ok(())
    }

    /// Reads the weights of one step as fast as memory gives them, and computes nothing: the least time that a step can
    /// take. Returns whether every runner could.
    pub fn read_weights(&mut self) -> bool {
        self.runners.iter_mut().all(|runner| runner.read_weights())
    }

    /// Lets the memory of all that is stored of sequences go.
    pub fn release_storage(&mut self) -> Result<()> {
        self.rope_history = RopeHistory::new(&self.spec, self.storage.block_size);
        self.runners.iter_mut().try_for_each(|runner| runner.release_storage())
    }

    fn validate(&self, batch: &Batch) -> Result<()> {
        batch.validate(&self.spec, &self.storage)?;
        if self.state().bytes_per_sequence > 0 { batch.validate_state_slots() } else { Ok(()) }
    }

    fn remember(&mut self, batch: &Batch) {
        if let Some(history) = &mut self.rope_history {
            history.remember(batch);
        }
    }

    /// One pass through all parts. The residual stream stays with a runner until another one needs it.
    fn pass(&mut self, step: Step<'_>, probe: &mut dyn Probe) -> Result<Outputs> {
        for (index, runner) in self.runners.iter_mut().enumerate() {
            if self.route.uses(index) {
                runner.begin(step)?;
            }
        }
        let mut at = self.route.embed;
        self.runners[at].embed(step, probe)?;
        for layer in 0..self.route.layers.len() {
            self.hand_over(&mut at, self.route.layers[layer])?;
            self.runners[at].layer(layer, step, probe)?;
        }
        self.hand_over(&mut at, self.route.head)?;
        self.outputs(step, probe)
    }

    /// Gives the residual stream to another runner.
    fn hand_over(&mut self, at: &mut usize, next: usize) -> Result<()> {
        if *at != next {
            let hidden = self.runners[*at].hidden()?;
            self.runners[next].set_hidden(&hidden)?;
            *at = next;
        }
        Ok(())
    }

    /// What the batch asks for, some rows at a time.
    fn outputs(&mut self, step: Step<'_>, probe: &mut dyn Probe) -> Result<Outputs> {
        let (runner, vocab_size) = (&mut self.runners[self.route.head], self.spec.vocab_size);
        let Batch { logits_rows, hidden_rows, .. } = step.batch;
        let mut logits = Vec::with_capacity(logits_rows.len() * vocab_size);
        for rows in logits_rows.chunks(HEAD_ROWS) {
            let part = runner.head(WantedRows { logits: rows, hidden: &[] }, step, probe)?;
            match logits_rows.len() == rows.len() {
                true => logits = part.logits.into_values(),
                false => logits.extend_from_slice(part.logits.values()),
            }
        }
        let hidden = match hidden_rows.is_empty() {
            true => Vec::new(),
            false => runner.head(WantedRows { logits: &[], hidden: hidden_rows }, step, probe)?.hidden,
        };
        Ok(Outputs { logits: Logits::new(logits, vocab_size), hidden })
    }
}
