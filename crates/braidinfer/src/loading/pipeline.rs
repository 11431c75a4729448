//! Loading models whose layers are computed by the stages of a pipeline.

use std::ops::Range;

use braidinfer_model::ModelSource;
use serde::{Deserialize, Serialize};

use super::{BLOCK_SIZE, LoadOptions, Loaded, ModelParts, decision, has_fused};
use crate::compat::{self, CheckedKernels, CompatReport, PlanEntry};
use crate::engine::state_slots;
use crate::executor::fused::{self, FusedOptions};
use crate::executor::standard::LoadProgress;
use crate::executor::{
    ActiveKernels, Decoder, DeviceChoice, EndsRunner, KernelPlan, Kernels, KvCacheConfig, Stage, StageConnection,
    StagesRunner,
};
use crate::memory::{self, Room};
use crate::{Error, Llm, Result};

/// What all stages of a pipeline agree on: the model, and the kernels by which each layer is computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PipelinePlan {
    /// Checksum of what the verdict is about: weights by samples, levels, instruction set.
    subject: String,
    /// One entry for each layer, and one for the output head.
    kernels: Vec<PlanEntry>,
    /// Size of each layer's weights in memory, in bytes.
    layer_bytes: Vec<usize>,
    /// Longest sequence in tokens.
    context: usize,
    /// Blocks of keys and values that the check had at least: with more room, it looks at more positions.
    checked_blocks: usize,
    /// The report of the check by which kernels were chosen.
    compat: Option<CompatReport>,
}

impl PipelinePlan {
    /// The plan for a model, by the verdict that is kept of it, or forced. Reads of the weights only samples.
    ///
    /// Fails if there is no verdict, or if it wants standard kernels, which stages do not have; and if layers share more than the
    /// residual stream.
    pub fn new(source: &ModelSource, options: &LoadOptions) -> Result<Self> {
        let parts = parts(source, options)?;
        let fused = parts.fused_options(options)?;
        let fastest = fastest(&parts, fused);
        let (subject, checked_blocks, compat) = if options.kernels == Kernels::Fused && options.force {
            let blocks = fused.kv_cache.num_blocks;
            let cache = parts.verdict_cache(options, &checked(&parts, &fused, &fastest, blocks), None)?;
            (cache.subject().to_owned(), blocks, None)
        } else {
            let (subject, blocks, report) = kept_verdict(&parts, options, &fused, &fastest)?;
            (subject, blocks, Some(report))
        };
        let kernels = match &compat {
            Some(report) => fused_entries(&parts, report)?,
            None => compat::entries_of(&fastest),
        };
        let layer = |layer| fused::weight_bytes(&parts.weights.of_layers(&(layer..layer + 1), false));
        let layer_bytes = (0..parts.spec.layers.len()).map(layer).collect();
        Ok(Self { subject, kernels, layer_bytes, context: parts.context, checked_blocks, compat })
    }

    /// Splits the layers into stages whose weights take about the same memory.
    ///
    /// Fails if there are fewer layers than stages, or no stages.
    pub fn split(&self, stages: usize) -> Result<Vec<Range<usize>>> {
        let layers = self.layer_bytes.len();
        if !(1..=layers).contains(&stages) {
            return Err(Error::bad_request("stages", format!("from 1 to {layers}, the number of layers"), stages));
        }
        let whole: usize = self.layer_bytes.iter().sum();
        let mut ends = Vec::with_capacity(stages);
        let (mut end, mut bytes) = (0, 0);
        for stage in 1..=stages {
            // Each gets at least one layer, and leaves as many as there are stages after it.
            let last = layers - (stages - stage);
            let wanted = whole / stages * stage;
            end += 1;
            bytes += self.layer_bytes[end - 1];
            while end < last && (stage == stages || bytes + self.layer_bytes[end] / 2 <= wanted) {
                bytes += self.layer_bytes[end];
                end += 1;
            }
            ends.push(end);
        }
        let starts = [0].into_iter().chain(ends.iter().copied());
        Ok(starts.zip(&ends).map(|(start, end)| start..*end).collect())
    }

    /// Size of the weights of some layers in memory, in bytes.
    pub fn weight_bytes(&self, layers: Range<usize>) -> usize {
        self.layer_bytes[layers].iter().sum()
    }

    /// The plan for the kernels of a model, which must be the one that this was made for.
    fn kernel_plan(&self, parts: &ModelParts, fused: &FusedOptions, options: &LoadOptions) -> Result<KernelPlan> {
        let fastest = fastest(parts, *fused);
        let cache = parts.verdict_cache(options, &checked(parts, fused, &fastest, self.checked_blocks), None)?;
        let found = cache.subject();
        let plan = compat::plan_with(&fastest, &self.kernels).filter(|_| found == self.subject);
        plan.ok_or_else(|| {
            let expected = format!(
                "the model, the options and the instruction set that the pipeline was planned for ({})",
                &self.subject[..self.subject.len().min(12)]
            );
            Error::bad_request("model", expected, format!("{} on {} ({})", parts.label, fused.isa.name(), &found[..12]))
        })
    }
}

impl Stage {
    /// Loads some layers of a model.
    ///
    /// Fails if this is another model than the plan's, another instruction set, or if there is too little memory for the layers and
    /// a sequence as long as the context.
    pub fn open(
        source: &ModelSource,
        options: &LoadOptions,
        plan: &PipelinePlan,
        layers: Range<usize>,
        progress: LoadProgress,
    ) -> Result<Self> {
        let options = LoadOptions { context: Some(plan.context), ..options.clone() };
        let mut parts = parts(source, &options)?;
        let count = parts.spec.layers.len();
        if layers.is_empty() || layers.end > count {
            return Err(Error::bad_request("layers", format!("a range within 0 to {count}"), format!("{layers:?}")));
        }
        let fused = parts.fused_options(&options)?;
        let kernels = plan.kernel_plan(&parts, &fused, &options)?;
        parts.spec = parts.spec.of_layers(layers.clone());
        parts.weights = parts.weights.of_layers(&layers, false);
        parts.label = format!("{}, layers {} to {}", parts.label, layers.start, layers.end - 1);
        parts.check_memory(&options)?;
        parts.fit(&options, Room::now());
        parts.check_kv_room(&options, fused.kv_cache.dtype)?;
        let runner = fused::load_part(&parts.spec, &parts.weights, fused, progress)?;
        Ok(Self {
            plan: kernels.of_layers(&layers, false),
            kv_cache: fused.kv_cache,
            fitting_tokens: parts.fitting_tokens(&options),
            state_slots: state_slots(options.max_sequences),
            spec: parts.spec,
            layers,
            runner,
        })
    }
}

impl Llm {
    /// Opens a model whose layers are computed by stages that were loaded with the same plan and options. Embedding, output head,
    /// scheduling and text are of this process. `fitting_tokens` is the least of [`Stage::fitting_tokens`].
    ///
    /// Fails like [`Llm::open`].
    pub fn over_stages(
        source: &ModelSource,
        options: &LoadOptions,
        plan: &PipelinePlan,
        fitting_tokens: usize,
        connection: Box<dyn StageConnection>,
    ) -> Result<Self> {
        let options = LoadOptions { context: Some(plan.context), shadow_check: 0.0, ..options.clone() };
        let mut parts = parts(source, &options)?;
        let fused = parts.fused_options(&options)?;
        let kernels = plan.kernel_plan(&parts, &fused, &options)?;
        let (none, all) = (0..0, 0..parts.spec.layers.len());
        let (spec, weights) = (parts.spec.of_layers(none.clone()), parts.weights.of_layers(&none, true));
        let bytes = fused::weight_bytes(&weights);
        Room::now().hold(bytes.saturating_add(memory::SLACK), || {
            format!(
                "{}: embedding and output head {}, and {} beside them",
                parts.label,
                memory::size(bytes),
                memory::size(memory::SLACK)
            )
        })?;
        let blocks = parts.blocks(&options, fitting_tokens);
        let fused = FusedOptions { kv_cache: KvCacheConfig { num_blocks: blocks, ..fused.kv_cache }, ..fused };
        let ends = EndsRunner {
            runner: fused::load_part(&spec, &weights, fused, &|_, _| {})?,
            plan: kernels.of_layers(&none, true),
        };
        let stages = StagesRunner::new(parts.spec.clone(), kernels.clone(), (BLOCK_SIZE, fused.isa.name()), connection);
        let decoder = Decoder::new(parts.spec.clone(), fused.kv_cache, kernels, ends);
        let decoder = decoder.with_layers(&all.collect(), stages)?;
        parts.notes.push(match &plan.compat {
            Some(report) => decision(report, true),
            None => "fused kernels at the fastest level, as forced: no check was made".into(),
        });
        Self::assemble(parts, Loaded { decoder, compat: plan.compat.clone(), adapters: Vec::new() }, &options)
    }
}

/// The whole model, if its layers can be computed apart from each other by fused kernels.
fn parts(source: &ModelSource, options: &LoadOptions) -> Result<ModelParts> {
    if options.quantize.is_some() {
        let expected = "none for a pipeline: quantize the model into a file, which all stages read";
        return Err(Error::bad_request("quantize", expected, "one"));
    }
    if !options.adapters.is_empty() {
        return Err(Error::bad_request("adapter", "none in a pipeline", options.adapters.len()));
    }
    if options.kernels == Kernels::Standard || !has_fused(options) || options.device != DeviceChoice::Cpu {
        return Err(Error::bad_request("kernels", "fused ones on the CPU, which are all that stages have", "others"));
    }
    let parts = ModelParts::read(source, options, &|_, _| {})?;
    if !parts.spec.has_separate_layers() {
        let model = &parts.spec.model_type;
        return Err(Error::Unsupported(format!(
            "{}: layers of {model} have common inputs, keys or values, and cannot be computed apart from each other",
            parts.label
        )));
    }
    Ok(parts)
}

/// The plan that a check begins with.
fn fastest(parts: &ModelParts, fused: FusedOptions) -> KernelPlan {
    KernelPlan::fastest(&parts.spec, &parts.weights, fused.coarsest, fused.kv_cache.dtype)
}

/// What a verdict on this model is about that was measured with so many blocks of keys and values.
fn checked<'a>(
    parts: &ModelParts,
    fused: &FusedOptions,
    plan: &'a KernelPlan,
    num_blocks: usize,
) -> CheckedKernels<'a> {
    let keeps_states = memory::state_bytes(&parts.spec, BLOCK_SIZE) > 0;
    let kv_cache = KvCacheConfig { num_blocks, ..fused.kv_cache };
    CheckedKernels { isa: fused.isa.name().to_owned(), plan, kv_cache, keeps_states }
}

/// The verdict that is kept on a model, with the checksum of what it is about, and the blocks of keys and values that the check had.
fn kept_verdict(
    parts: &ModelParts,
    options: &LoadOptions,
    fused: &FusedOptions,
    fastest: &KernelPlan,
) -> Result<(String, usize, CompatReport)> {
    let all = fused.kv_cache.num_blocks;
    // The process that checked had room for all sequences, or for one.
    for blocks in [all, parts.context.div_ceil(BLOCK_SIZE).min(all)] {
        let cache = parts.verdict_cache(options, &checked(parts, fused, fastest, blocks), None)?;
        if let Some(report) = cache.read().filter(|report| compat::plan_of(report, fastest).is_some()) {
            return Ok((cache.subject().to_owned(), blocks, report));
        }
    }
    Err(unchecked(parts))
}

/// The plan of a verdict, if it has fused kernels for all layers.
fn fused_entries(parts: &ModelParts, report: &CompatReport) -> Result<Vec<PlanEntry>> {
    parts.refuse_useless_kv_dtype(report)?;
    match report.kernels() {
        ActiveKernels::Fused => Ok(report.plan.clone()),
        _ => Err(Error::FusedForbidden {
            model: parts.label.clone(),
            status: report.status.as_str(),
            reason: format!("{}; stages of a pipeline have no standard kernels to fall back to", report.reason),
        }),
    }
}

fn unchecked(parts: &ModelParts) -> Error {
    Error::Unsupported(format!(
        "{}: whether fused kernels are right for this model was not measured on this machine, and stages of a pipeline cannot: \
         check it once with the same options (a model that is larger than the memory is read from the disk), or force the kernels",
        parts.label
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plan(layer_bytes: Vec<usize>) -> PipelinePlan {
        PipelinePlan {
            subject: String::new(),
            kernels: Vec::new(),
            layer_bytes,
            context: 1,
            checked_blocks: 1,
            compat: None,
        }
    }

    proptest! {
        #[test]
        fn stages_have_every_layer_once_and_about_the_same_bytes(
            layer_bytes in prop::collection::vec(1usize..1000, 1..40),
            stages in 1usize..40,
        ) {
            let plan = plan(layer_bytes.clone());
            let Ok(split) = plan.split(stages) else {
                prop_assert!(stages > layer_bytes.len());
                return Ok(());
            };
            prop_assert_eq!(split.len(), stages);
            prop_assert!(split.iter().all(|range| !range.is_empty()));
            prop_assert!(split.iter().flat_map(Clone::clone).eq(0..layer_bytes.len()));
            // No stage has more than its share and one layer, unless it has one layer alone.
            let (whole, largest) = (layer_bytes.iter().sum::<usize>(), layer_bytes.iter().max().copied().unwrap_or(0));
            for range in split {
                let bytes = plan.weight_bytes(range.clone());
                prop_assert!(range.len() == 1 || bytes <= whole / stages + largest + stages, "{range:?}: {bytes}");
            }
        }
    }

    #[test]
    fn no_stages_are_refused() {
        assert!(plan(vec![1, 2]).split(0).is_err());
    }
}
