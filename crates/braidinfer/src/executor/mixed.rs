//! Fused kernels, and standard ones in the layers where a check found the fused ones wrong.

use std::collections::BTreeSet;

use braidinfer_model::{DecoderSpec, Weights};

use super::fused::FusedExecutor;
use super::rope_history::RopeHistory;
use super::standard::StandardLayers;
use super::{
    ActiveKernels, Batch, Executor, ExecutorReport, KvCacheConfig, KvDtype, LayerByLayer, Layers, NoProbe, Outputs,
    Probe,
};
use crate::Result;

/// The parts of a forward pass, by layer on one of two executors; the embedding and the output head are fused.
pub(crate) struct Mixed<'a> {
    pub(crate) fused: &'a mut FusedExecutor,
    pub(crate) standard: &'a mut dyn Layers,
    /// Layers of the standard one.
    pub(crate) layers: &'a BTreeSet<usize>,
}

impl Layers for Mixed<'_> {
    fn layer(&mut self, index: usize, batch: &Batch, hidden: &[f32], probe: &mut dyn Probe) -> Result<Vec<f32>> {
        match self.layers.contains(&index) {
            true => self.standard.layer(index, batch, hidden, probe),
            false => self.fused.layer(index, batch, hidden, probe),
        }
    }
}

impl LayerByLayer for Mixed<'_> {
    fn embed(&mut self, batch: &Batch, probe: &mut dyn Probe) -> Result<Vec<f32>> {
        LayerByLayer::embed(self.fused, batch, probe)
    }

    fn head(&mut self, batch: &Batch, hidden: &[f32], probe: &mut dyn Probe) -> Result<Outputs> {
        LayerByLayer::head(self.fused, batch, hidden, probe)
    }
}

/// A decoder of which standard kernels compute some layers.
pub struct MixedExecutor {
    fused: FusedExecutor,
    standard: StandardLayers,
    layers: BTreeSet<usize>,
    /// Where RoPE depends on the length of the sequence.
    rope_history: Option<RopeHistory>,
}

impl MixedExecutor {
    /// Loads `layers` for standard kernels; `fused` computes the others by its plan.
    ///
    /// Fails on a weight that is not finite, naming tensor and index.
    pub fn load(fused: FusedExecutor, weights: &Weights, layers: BTreeSet<usize>) -> Result<Self> {
        let storage = fused.kv_cache();
        let standard = StandardLayers::load(fused.spec().clone(), weights, &layers, storage)?;
        let rope_history = RopeHistory::new(fused.spec(), storage.block_size);
        Ok(Self { fused, standard, layers, rope_history })
    }

    fn run(&mut self, batch: &Batch, probe: &mut dyn Probe) -> Result<Outputs> {
        let layers = self.fused.spec().layers.len();
        let mut mixed = Mixed { fused: &mut self.fused, standard: &mut self.standard, layers: &self.layers };
        let mut hidden = mixed.embed(batch, probe)?;
        for index in 0..layers {
            hidden = mixed.layer(index, batch, &hidden, probe)?;
        }
        let outputs = mixed.head(batch, &hidden, probe)?;
        if let Some(history) = &mut self.rope_history {
            history.remember(batch);
        }
        Ok(outputs)
    }
}

impl Executor for MixedExecutor {
    fn spec(&self) -> &DecoderSpec {
        self.fused.spec()
    }

    fn kv_cache(&self) -> KvCacheConfig {
        self.fused.kv_cache()
    }

    fn report(&self) -> ExecutorReport {
        let mut report = ExecutorReport { kernels: ActiveKernels::Mixed, ..self.fused.report() };
        self.standard.indices().for_each(|layer| report.kv_dtypes[layer] = KvDtype::F32);
        report
    }

    fn forward(&mut self, batch: &Batch, probe: &mut dyn Probe) -> Result<Outputs> {
        batch.validate(self.spec(), &self.kv_cache())?;
        if batch.token_ids.is_empty() {
            return Ok(Outputs::none(self.spec().vocab_size));
        }
        for piece in self.rope_history.as_ref().map_or(Ok(Vec::new()), |history| history.pieces(batch))? {
            self.run(&piece, &mut NoProbe)?;
        }
        self.run(batch, probe)
    }
}
