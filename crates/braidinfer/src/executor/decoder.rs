//! The forward pass over all layers, independent of the kernels that compute them.

use std::collections::BTreeSet;
use std::sync::Arc;

use braidinfer_model::{Adapter, DecoderSpec};

use super::rope_history::RopeHistory;
use super::route::Route;
use super::{
    ActiveKernels, Argmax, Batch, Capabilities, ExecutorReport, KernelPlan, KvCacheConfig, LayerRunner, LayerState,
    Logits, NoProbe, Outputs, Probe, ReadPattern, Step, WantedRows,
};
use crate::{Error, Result};

/// Rows of logits computed at once, which bounds the memory for logits.
pub(crate) const HEAD_ROWS: usize = 64;

/// A model: its layer runners, the table that assigns layers to runners, and the numeric plan.
///
/// Guaranteed for every architecture: the logits of a position depend neither on how its sequence was split into
/// batches nor on the other sequences in the batch. They are bitwise equal if [`Capabilities::same_bits_in_company`] is
/// set, and equal within rounding otherwise.
pub struct Decoder<'a> {
    spec: DecoderSpec,
    storage: KvCacheConfig,
    plan: Arc<KernelPlan>,
    runners: Vec<Box<dyn LayerRunner + 'a>>,
    route: Route,
    adapters: Vec<Arc<Adapter>>,
    /// Set if RoPE depends on the length of the sequence.
    rope_history: Option<RopeHistory>,
}

impl<'a> Decoder<'a> {
    /// A decoder with one runner for everything. `storage` is the KV cache size that the runner was built with.
    pub fn new(spec: DecoderSpec, storage: KvCacheConfig, plan: KernelPlan, runner: impl LayerRunner + 'a) -> Self {
        Self {
            route: Route::whole(spec.layers.len()),
            rope_history: RopeHistory::new(&spec, storage.block_size),
            runners: vec![Box::new(runner)],
            adapters: Vec::new(),
            spec,
            storage,
            plan: Arc::new(plan),
        }
    }

    /// Assigns some layers to another runner.
    ///
    /// Fails if a layer index is out of range, or if layers need more than the residual stream and what they keep
    /// themselves ([`DecoderSpec::has_separate_layers`]).
    pub fn with_layers(mut self, layers: &BTreeSet<usize>, mut runner: impl LayerRunner + 'a) -> Result<Self> {
        let count = self.spec.layers.len();
        if let Some(layer) = layers.iter().find(|layer| **layer >= count) {
            return Err(Error::bad_request("layer", format!("below {count}"), layer));
        }
        if !self.spec.has_separate_layers() {
            let expected = "layers that share nothing, to give some to another runner";
            let found = format!("layers of {} with common inputs, keys or values", self.spec.model_type);
            return Err(Error::bad_request("layer", expected, found));
        }
        runner.set_adapters(&self.adapters)?;
        self.route.set(layers, self.runners.len());
        self.runners.push(Box::new(runner));
        Ok(self)
    }

    /// Adds adapters, which batches name by their index, in place of any before.
    ///
    /// Fails if a runner has no adapters, or if they are for another model.
    pub fn with_adapters(mut self, adapters: &[Arc<Adapter>]) -> Result<Self> {
        for adapter in adapters {
            if let Some(slot) = adapter.modules().keys().find(|slot| self.plan.index_of(**slot).is_none()) {
                return Err(Error::Internal(format!("{}: {slot:?} is no projection of this model", adapter.label())));
            }
        }
        self.runners.iter_mut().try_for_each(|runner| runner.set_adapters(adapters))?;
        self.adapters = adapters.to_vec();
        Ok(self)
    }

    /// The adapters that batches can name.
    pub fn adapters(&self) -> &[Arc<Adapter>] {
        &self.adapters
    }

    /// Replaces the plan. Keys and values that were cached in another data type are not found under the new plan, so
    /// sequences must be computed anew from their first token.
    ///
    /// Fails on a plan for another model, or with a level that is impossible for the type of the weights.
    pub fn with_plan(self, plan: KernelPlan) -> Result<Self> {
        let projections: Vec<_> = self.plan.projections.iter().map(|planned| (planned.slot, planned.dtype)).collect();
        plan.check(&projections, self.spec.layers.len())?;
        let rope_history = RopeHistory::new(&self.spec, self.storage.block_size);
        Ok(Self { rope_history, plan: Arc::new(plan), ..self })
    }

    /// The description of the model.
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// Size of the KV cache.
    pub fn kv_cache(&self) -> KvCacheConfig {
        self.storage
    }

    /// The numeric level of each projection and the KV data type of each layer.
    pub fn plan(&self) -> &KernelPlan {
        &self.plan
    }

    /// The kernels in use and the memory they read.
    pub fn report(&self) -> ExecutorReport {
        let reports: Vec<ExecutorReport> = self.runners.iter().map(|runner| runner.report(&self.plan)).collect();
        let mut report = reports[self.route.head].clone();
        for (layer, runner) in self.route.layers.iter().enumerate() {
            report.kv_dtypes[layer] = reports[*runner].kv_dtypes[layer];
        }
        for (index, other) in reports.iter().enumerate().filter(|(index, _)| *index != self.route.head) {
            let layers = self.route.layers.iter().filter(|runner| **runner == index).count();
            let Some(device) = report.device.as_mut().filter(|_| layers > 0) else { continue };
            report.isa += &format!(", {layers} layers on {}", other.isa);
            report.weight_bytes += other.weight_bytes;
            if let Some(other) = &other.device {
                device.add(other);
            }
        }
        if reports.iter().any(|other| other.kernels != report.kernels) {
            report.kernels = ActiveKernels::Mixed;
        }
        report
    }

    /// The layers that standard kernels compute.
    pub(crate) fn standard_layers(&self) -> BTreeSet<usize> {
        let is_standard = |runner: usize| self.runners[runner].report(&self.plan).kernels == ActiveKernels::Standard;
        let layers = self.route.layers.iter().enumerate();
        layers.filter(|(_, runner)| is_standard(**runner)).map(|(layer, _)| layer).collect()
    }

    /// The capabilities that all runners have in common.
    pub fn capabilities(&self) -> Capabilities {
        let mut promised = Capabilities {
            same_bits_in_company: true,
            // The cached keys of a prefix are rotated for the length of the sequence that they were computed for.
            shares_prefixes: self.rope_history.is_none(),
            takes_back_drafts: self.rope_history.is_none(),
            computes_argmax: true,
        };
        for runner in &self.runners {
            promised = promised.and(runner.capabilities());
        }
        Capabilities { computes_argmax: self.runners[self.route.head].capabilities().computes_argmax, ..promised }
    }

    /// Bytes stored per token and per sequence, summed over all layers.
    pub fn state(&self) -> LayerState {
        let of = |(layer, runner): (usize, &usize)| self.runners[*runner].layer_state(layer, &self.plan);
        // With length-dependent RoPE the whole sequence may have to be recomputed.
        let window = if self.rope_history.is_none() { Some(0) } else { None };
        let nothing = LayerState { bytes_per_token: 0, bytes_per_sequence: 0, window };
        self.route.layers.iter().enumerate().map(of).fold(nothing, |sum, state| LayerState {
            bytes_per_token: sum.bytes_per_token + state.bytes_per_token,
            bytes_per_sequence: sum.bytes_per_sequence + state.bytes_per_sequence,
            window: sum.window.zip(state.window).map(|(a, b)| a.max(b)),
        })
    }

    /// Runs every token of `batch`, updates the KV cache, and returns the outputs that the batch asks for.
    ///
    /// Fails with [`Error::BadRequest`] on a batch that is inconsistent or does not fit the vocabulary or the KV cache,
    /// which is then unchanged.
    pub fn forward(&mut self, batch: &Batch, probe: &mut dyn Probe) -> Result<Outputs> {
        let plan = Arc::clone(&self.plan);
        self.forward_by(Step { batch, plan: &plan }, probe)
    }

    /// Makes sure of memory for keys, values and activations of `batch`, so that running it does not end the process.
    ///
    /// Fails with [`Error::TooLittleMemory`]; other batches can still be run.
    pub fn reserve(&mut self, batch: &Batch) -> Result<()> {
        let plan = Arc::clone(&self.plan);
        let step = Step { batch, plan: &plan };
        self.runners.iter_mut().try_for_each(|runner| runner.reserve(step))
    }

    /// Number of KV cache blocks that there is memory for already.
    pub fn reserved_blocks(&self) -> usize {
        self.runners.iter().map(|runner| runner.reserved_blocks(&self.plan)).min().unwrap_or(0)
    }

    /// Bytes of GPU memory in use.
    pub fn device_bytes(&self) -> u64 {
        self.runners.iter().map(|runner| runner.device_bytes()).sum()
    }

    /// Frees the large buffers of earlier steps, for a time in which nothing is computed.
    pub fn release_scratch(&mut self) {
        let released = self.runners.iter_mut().map(|runner| runner.release_scratch());
        if released.fold(false, |any, large| any | large) {
            braidinfer_kernels::return_freed();
        }
    }

    /// Like [`Decoder::forward`], with another plan than the decoder's own. A sequence must be computed under plans with the
    /// same data types of keys and values from its first token on.
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

    /// Like [`Decoder::forward_by`], but without recomputing stale keys: with length-dependent RoPE, cached keys may be
    /// rotated for another length.
    pub(crate) fn forward_as_stored(&mut self, step: Step<'_>, probe: &mut dyn Probe) -> Result<Outputs> {
        self.validate(step.batch)?;
        self.pass(step, probe)
    }

    /// The residual stream before the first layer, `[T, stream_width]`.
    pub(crate) fn embed(&mut self, step: Step<'_>, probe: &mut dyn Probe) -> Result<Vec<f32>> {
        self.validate(step.batch)?;
        let runner = &mut self.runners[self.route.embed];
        runner.begin(step)?;
        runner.embed(step, probe)?;
        runner.hidden()
    }

    /// Runs a single layer: takes and returns the residual stream, `[T, stream_width]`.
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

    /// The outputs that the batch asks for, from the residual stream after the last layer.
    pub(crate) fn head(&mut self, step: Step<'_>, hidden: &[f32], probe: &mut dyn Probe) -> Result<Outputs> {
        self.validate(step.batch)?;
        let runner = &mut self.runners[self.route.head];
        runner.begin(step)?;
        runner.set_hidden(hidden)?;
        self.outputs(step, probe)
    }

    /// The runner of everything that is not assigned to another runner.
    pub(crate) fn runner_mut(&mut self) -> &mut (dyn LayerRunner + 'a) {
        &mut *self.runners[0]
    }

    /// A decoder with the same runners for the same layers, under another plan.
    pub(crate) fn under_plan(&mut self, plan: KernelPlan) -> Decoder<'_> {
        let mut runners: Vec<Box<dyn LayerRunner + '_>> = Vec::with_capacity(self.runners.len());
        for runner in &mut self.runners {
            let runner: &mut (dyn LayerRunner + '_) = &mut **runner;
            runners.push(Box::new(runner));
        }
        Decoder {
            route: self.route.clone(),
            rope_history: RopeHistory::new(&self.spec, self.storage.block_size),
            spec: self.spec.clone(),
            storage: self.storage,
            adapters: self.adapters.clone(),
            plan: Arc::new(plan),
            runners,
        }
    }

    /// Copies the per-sequence state from one slot to another.
    pub fn copy_state(&mut self, from: u32, to: u32) -> Result<()> {
        let mut runners = 0..self.runners.len();
        runners.try_for_each(|runner| match self.keeps_state(runner) {
            true => self.runners[runner].copy_state(from, to),
            false => Ok(()),
        })
    }

    /// Reads the weights of one step at full memory bandwidth without computing: the lower bound for the time of a
    /// decode step. Returns whether every runner supports this.
    pub fn read_weights(&mut self, pattern: ReadPattern) -> bool {
        self.runners.iter_mut().all(|runner| runner.read_weights(pattern))
    }

    /// Bytes that the device which computes all of the model reads and writes in a second while it copies memory, as measured now.
    /// `None` if there is none, or no room to measure it.
    ///
    /// Fails if the device does.
    pub fn copy_rate(&mut self) -> Result<Option<f64>> {
        match &mut self.runners[..] {
            [runner] => runner.copy_rate(),
            _ => Ok(None),
        }
    }

    /// Copies some of the weights that steps used to memory that is read faster, as every step does, too. Returns whether there
    /// were any.
    pub fn copy_some_weights(&mut self) -> bool {
        self.runners.iter_mut().any(|runner| runner.copy_some_weights())
    }

    /// Frees the KV cache memory and all per-sequence state.
    pub fn release_storage(&mut self) -> Result<()> {
        self.rope_history = RopeHistory::new(&self.spec, self.storage.block_size);
        self.runners.iter_mut().try_for_each(|runner| runner.release_storage())
    }

    /// Bytes of a KV cache block with the keys and values of all layers, as [`Decoder::save_block`] writes it. `None` if sequences
    /// cannot go on from saved blocks alone.
    pub(crate) fn saved_block_bytes(&self) -> Option<usize> {
        if self.state().bytes_per_sequence > 0 || !self.capabilities().shares_prefixes {
            return None;
        }
        let of = |(layer, runner): (usize, &usize)| self.runners[*runner].saved_block_bytes(layer, &self.plan);
        self.route.layers.iter().enumerate().map(of).sum()
    }

    /// What a KV cache block holds that was written with this plan; only where [`Decoder::saved_block_bytes`] says how much that is.
    pub(crate) fn save_block(&self, block: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.saved_block_bytes().unwrap_or(0));
        for (layer, runner) in self.route.layers.iter().enumerate() {
            self.runners[*runner].save_block(layer, block, &self.plan, &mut out);
        }
        out
    }

    /// Sets a KV cache block to what [`Decoder::save_block`] wrote with the same plan.
    ///
    /// Fails with [`Error::TooLittleMemory`], and if there are too few or too many bytes.
    pub(crate) fn restore_block(&mut self, block: u32, mut bytes: &[u8]) -> Result<()> {
        if self.saved_block_bytes() != Some(bytes.len()) || block as usize >= self.storage.num_blocks {
            return Err(Error::Internal(format!("block {block} cannot be restored from {} bytes", bytes.len())));
        }
        for (layer, runner) in self.route.layers.iter().enumerate() {
            let runner = &mut self.runners[*runner];
            let own = runner.saved_block_bytes(layer, &self.plan).unwrap_or(0);
            let (of_layer, others) = bytes.split_at(own);
            runner.restore_block(layer, block, &self.plan, of_layer)?;
            bytes = others;
        }
        Ok(())
    }

    /// Gives up the devices of all runners as if they were lost, to see what follows from it. Returns whether there are any.
    pub fn give_up_device(&mut self) -> bool {
        self.runners.iter_mut().fold(false, |any, runner| any | runner.give_up_device())
    }

    /// Whether a runner keeps state per sequence for one of its layers.
    fn keeps_state(&self, runner: usize) -> bool {
        let state = |layer| self.runners[runner].layer_state(layer, &self.plan);
        let mut layers = self.route.layers.iter().enumerate().filter(|(_, of)| **of == runner);
        layers.any(|(layer, _)| state(layer).bytes_per_sequence > 0)
    }

    fn validate(&self, batch: &Batch) -> Result<()> {
        batch.validate(&self.spec, &self.storage)?;
        batch.validate_adapters(self.adapters.len())?;
        let keeps_state = (0..self.runners.len()).any(|runner| self.keeps_state(runner));
        if keeps_state { batch.validate_state_slots() } else { Ok(()) }
    }

    fn remember(&mut self, batch: &Batch) {
        if let Some(history) = &mut self.rope_history {
            history.remember(batch);
        }
    }

    /// Embedding, all layers and output head. The residual stream stays with a runner until another runner needs it.
    fn pass(&mut self, step: Step<'_>, probe: &mut dyn Probe) -> Result<Outputs> {
        for (index, runner) in self.runners.iter_mut().enumerate() {
            if self.route.uses(index) {
                runner.reserve(step)?;
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

    /// Copies the residual stream to another runner.
    fn hand_over(&mut self, at: &mut usize, next: usize) -> Result<()> {
        if *at != next {
            let hidden = self.runners[*at].hidden()?;
            self.runners[next].set_hidden(&hidden)?;
            *at = next;
        }
        Ok(())
    }

    /// The outputs that the batch asks for; many rows are computed in chunks.
    fn outputs(&mut self, step: Step<'_>, probe: &mut dyn Probe) -> Result<Outputs> {
        let vocab_size = self.spec.vocab_size;
        let runner = &mut self.runners[self.route.head];
        let Batch { logits_rows, argmax_rows, hidden_rows, .. } = step.batch;
        let (computed, others) = match runner.capabilities().computes_argmax {
            true => (&argmax_rows[..], &[][..]),
            false => (&[][..], &argmax_rows[..]),
        };
        let part = |rows: &'_ [usize], chunk: usize| {
            let from = (chunk * HEAD_ROWS).min(rows.len());
            from..rows.len().min(from + HEAD_ROWS)
        };
        let wanted = WantedRows {
            logits: &logits_rows[part(logits_rows, 0)],
            argmax: &computed[part(computed, 0)],
            hidden: hidden_rows,
        };
        let mut outputs = runner.head(wanted, step, probe)?;
        for chunk in 1..logits_rows.len().max(computed.len()).div_ceil(HEAD_ROWS) {
            let (logits, argmax) = (&logits_rows[part(logits_rows, chunk)], &computed[part(computed, chunk)]);
            let more = runner.head(WantedRows { logits, argmax, hidden: &[] }, step, probe)?;
            let mut values = outputs.logits.into_values();
            values.reserve_exact(logits_rows.len().saturating_sub(chunk * HEAD_ROWS) * vocab_size);
            values.extend_from_slice(more.logits.values());
            outputs.logits = Logits::new(values, vocab_size);
            outputs.argmax.extend(more.argmax);
        }
        for rows in others.chunks(HEAD_ROWS) {
            let logits = runner.head(WantedRows { logits: rows, ..WantedRows::default() }, step, probe)?.logits;
            outputs.argmax.extend((0..logits.rows()).map(|row| Argmax::of(logits.row(row))));
        }
        Ok(outputs)
    }
}
