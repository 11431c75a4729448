//! Which linear layers the modules of an adapter stand for.

use std::collections::{BTreeMap, BTreeSet};

use super::{Files, Pair};
use crate::arch::gguf::{GgufForm, names_without_file};
use crate::arch::{REGISTRY, checkpoint_names};
use crate::layout::{ExpertNames, ExpertSlot, LayerSlot, Param, Slot, Stack, TensorNames, stacks};
use crate::spec::DecoderSpec;
use crate::{ModelError, ModelSource, Result, describe};

/// How an adapter names modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Layout {
    /// As `transformers` does.
    Transformers,
    /// As llama.cpp does.
    Gguf {
        /// `general.architecture`.
        architecture: String,
    },
}

/// A linear layer, and the part of a module's outputs that is its output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) slot: Slot,
    /// If the module has several parameters, which one it is.
    pub(super) parameter: Option<&'static str>,
    /// Inputs and outputs of the module, for each of its experts.
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Index of the expert among those of the module; one if there are none.
    pub(super) expert: usize,
    pub(super) experts: usize,
    /// Of the module's outputs for the expert, the first one of this layer, their distance and their number.
    first: usize,
    step: usize,
    count: usize,
    /// Heads whose rows are in another order than in the module, with their width.
    reordered: Option<Reordered>,
}

/// The order of the rows of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reordered {
    head_dim: usize,
    /// Whether the base has the two rows of each rotated pair side by side, and the adapter has not; or the reverse.
    base_has_neighbours: bool,
}

impl Reordered {
    /// The row in the module of a row of the base.
    fn of(self, row: usize) -> usize {
        let (half, head, within) = (self.head_dim / 2, row / self.head_dim * self.head_dim, row % self.head_dim);
        let (pair, which) = match self.base_has_neighbours {
            true => (within / 2, within % 2),
            false => (within % half, within / half),
        };
        head + if self.base_has_neighbours { which * half + pair } else { 2 * pair + which }
    }
}

impl Place {
    /// The rows of the module's `B` for each output of the layer.
    pub(super) fn rows(&self) -> impl Iterator<Item = usize> {
        let Self { first, step, count, reordered, .. } = *self;
        (0..count).map(move |row| first + step * reordered.map_or(row, |order| order.of(row)))
    }
}

/// The linear layers of a model that an adapter may change.
pub(super) struct Places {
    spec: DecoderSpec,
    by_module: BTreeMap<String, Vec<Place>>,
    /// Modules that checkpoints have and the model does not use: projections to keys and values of layers that read those of others.
    unused: BTreeSet<String>,
    is_transformers: bool,
    /// Modules within a layer whose parameters hold all of its experts.
    expert_modules: BTreeSet<String>,
    /// Whether the rows of gate and up projections of experts alternate where they share a parameter.
    alternating: bool,
}

impl Places {
    pub(super) fn new(base: &ModelSource, files: &Files) -> Result<Self> {
        let (description, config) = describe(base)?;
        let spec = description.spec;
        let own_form = base.gguf().map(|gguf| crate::arch::gguf::form_of(gguf.metadata())).transpose()?.flatten();
        let (ways, reorder) = match (&files.layout, own_form) {
            (Layout::Transformers, None) => (description.names.ways(), None),
            (Layout::Transformers, Some(form)) => {
                let names = checkpoint_names(&config)?;
                (names.ways(), Some((check_convertible(form, files)?, true)))
            }
            (Layout::Gguf { architecture }, Some(form)) => {
                check_architecture(form, architecture, files)?;
                (vec![description.names], None)
            }
            (Layout::Gguf { architecture }, None) => {
                let form = form_of_model(&spec, architecture, files)?;
                (names_without_file(form).ways(), Some((check_convertible(form, files)?, false)))
            }
        };
        let expert_modules = ways.iter().flat_map(TensorNames::expert_modules).collect();
        let alternating = ways.iter().any(TensorNames::has_alternating_experts);
        let (mut by_module, mut unused) = (BTreeMap::new(), BTreeSet::new());
        for names in &ways {
            let shared = (0..spec.layers.len()).filter(|layer| spec.kv_shared_with(*layer).is_some());
            let of_layer = |layer| [LayerSlot::KProj, LayerSlot::VProj].map(|name| Slot::Layer(layer, name));
            let tensors = shared.flat_map(of_layer).map(|slot| names.tensor(slot, Param::Weight, "", ""));
            unused.extend(tensors.filter_map(|tensor| Some(tensor.strip_suffix(".weight")?.to_owned())));
            for stack in stacks(&spec, false, |slot, param| names.tensor(slot, param, "", "")) {
                if let Some((module, places)) = places_of(&stack, &spec, reorder) {
                    by_module.entry(module).or_insert(places);
                }
            }
        }
        Ok(Self {
            spec,
            by_module,
            unused,
            expert_modules,
            is_transformers: files.layout == Layout::Transformers,
            alternating,
        })
    }

    /// The linear layers that a pair of matrices is for; none if the model does not use the module.
    pub(super) fn of(&self, pair: &Pair<'_>) -> Result<Vec<Place>> {
        let module = if self.is_transformers { without_prefixes(pair.module) } else { pair.module };
        let renamed = || {
            RENAMED.into_iter().find_map(|(in_memory, in_files)| {
                let layer = module.strip_suffix(in_memory).filter(|_| self.is_transformers)?;
                self.by_module.get(&format!("{layer}{in_files}"))
            })
        };
        if let Some(places) = self.by_module.get(module).or_else(renamed) {
            return Ok(places.clone());
        }
        if self.unused.contains(module) {
            return Ok(Vec::new());
        }
        if let Some(places) = self.is_transformers.then(|| self.of_experts(module, pair)).flatten() {
            return places;
        }
        let expected = "a linear layer of this model, whose weights an adapter may change";
        Err(pair.a.error(expected, format!("`{module}`, which is none or not supported")))
    }

    /// The one linear layer whose weights a module has as the base has them, if there is one.
    pub(super) fn whole(&self, module: &str) -> Option<Slot> {
        let module = if self.is_transformers { without_prefixes(module) } else { module };
        match &self.by_module.get(module)?[..] {
            [place] if place.reordered.is_none() && place.count == place.outputs && place.experts == 1 => {
                Some(place.slot)
            }
            _ => None,
        }
    }

    /// The experts that a pair of matrices for a parameter of all of them is for. Which parameter it is follows from the shapes: the
    /// name only says that it is one of the first or the second that is adapted.
    fn of_experts(&self, module: &str, pair: &Pair<'_>) -> Option<Result<Vec<Place>>> {
        let experts_module = module.strip_suffix(".base_layer").unwrap_or(module);
        let (layer, within) = experts_module.strip_prefix("layers.")?.split_once('.')?;
        let layer: usize = layer.parse().ok().filter(|layer| *layer < self.spec.layers.len())?;
        let in_files = RENAMED.into_iter().find_map(|(in_memory, in_files)| (within == in_memory).then_some(in_files));
        let are_experts = [Some(within), in_files].into_iter().flatten().any(|name| self.expert_modules.contains(name));
        let experts = self.spec.experts(layer).filter(|_| are_experts)?;
        let (hidden, inner) = (self.spec.hidden_size, experts.intermediate_size);
        let expanded = if experts.gated { 2 * inner } else { inner };
        let ([_, inputs], [outputs, _]) = (pair.a.shape.as_slice(), pair.b.shape.as_slice()) else { return None };
        let (expands, contracts) = ((*inputs, *outputs) == (hidden, expanded), (*inputs, *outputs) == (inner, hidden));
        let place = |expert: usize, slot: ExpertSlot| {
            let is_second = slot == ExpertSlot::UpProj && experts.gated;
            let (first, step) = match (expands, experts.gated, self.alternating) {
                (true, true, true) => (usize::from(is_second), 2),
                (true, true, false) => (if is_second { inner } else { 0 }, 1),
                _ => (0, 1),
            };
            let parameter = match (expands, experts.gated) {
                (true, true) => "gate_up_proj",
                (true, false) => "up_proj",
                (false, _) => "down_proj",
            };
            Place {
                slot: Slot::Expert(layer, expert, slot),
                parameter: Some(parameter),
                inputs: *inputs,
                outputs: *outputs,
                expert,
                experts: experts.num_experts,
                first,
                step,
                count: if expands { inner } else { hidden },
                reordered: None,
            }
        };
        let slots: &[ExpertSlot] = match (expands, contracts) {
            (true, true) => {
                let found = "shapes that could be those of either projection";
                return Some(Err(pair.a.error("matrices for one projection of the experts", found)));
            }
            (true, false) if experts.gated => &[ExpertSlot::GateProj, ExpertSlot::UpProj],
            (true, false) => &[ExpertSlot::UpProj],
            (false, true) => &[ExpertSlot::DownProj],
            (false, false) => return None,
        };
        Some(Ok((0..experts.num_experts)
            .flat_map(|expert| slots.iter().map(move |slot| place(expert, *slot)))
            .collect()))
    }
}

/// Prefixes of modules that depend on the class that a model was loaded with.
const PREFIXES: [&str; 6] =
    ["base_model.model.", "model.", "language_model.", "text_model.", "backbone.", "transformer."];

/// Modules that `transformers` calls otherwise than files do.
const RENAMED: [(&str, &str); 2] =
    [("self_attn.g_proj", "self_attn.gate_proj"), ("mlp.experts", "block_sparse_moe.experts")];

fn without_prefixes(mut module: &str) -> &str {
    while let Some(rest) = PREFIXES.into_iter().find_map(|prefix| module.strip_prefix(prefix)) {
        module = rest;
    }
    module
}

/// The module of a tensor with linear layers, and these layers.
fn places_of(stack: &Stack, spec: &DecoderSpec, reorder: Option<(GgufForm, bool)>) -> Option<(String, Vec<Place>)> {
    let is_linear =
        |slot: Slot, param: Param, shape: &[usize]| param == Param::Weight && shape.len() == 2 && is_adaptable(slot);
    if !stack.parameters.iter().all(|known| is_linear(known.slot, known.param, &known.shape)) {
        return None;
    }
    let module = stack.tensor.strip_suffix(".weight")?.to_owned();
    let of_expert = |slot: Slot| if let Slot::Expert(_, expert, _) = slot { expert } else { 0 };
    let (first_expert, last_expert) =
        (of_expert(stack.parameters.first()?.slot), of_expert(stack.parameters.last()?.slot));
    let experts = last_expert - first_expert + 1;
    let outputs = stack.parameters.iter().map(|known| known.shape[0]).sum::<usize>() / experts;
    let mut end = 0;
    let place = |known: &crate::Parameter| {
        let first = end;
        end += known.shape[0];
        let expert = of_expert(known.slot) - first_expert;
        Place {
            slot: known.slot,
            parameter: None,
            inputs: known.shape[1],
            outputs,
            expert,
            experts,
            first: first - expert * outputs,
            step: 1,
            count: known.shape[0],
            reordered: reorder.and_then(|(form, of_gguf)| reordered(form, spec, known.slot, of_gguf)),
        }
    };
    let places = stack.parameters.iter().map(place).collect();
    Some((module, places))
}

/// Whether a matrix is that of a linear layer that adapters may change.
fn is_adaptable(slot: Slot) -> bool {
    let coefficients = matches!(slot, Slot::Layer(_, LayerSlot::PredictionCoefs | LayerSlot::CorrectionCoefs));
    !slot.is_norm() && !coefficients && !matches!(slot, Slot::EmbedTokens | Slot::EmbedTokensPerLayer)
}

/// How the rows of a projection of a model in one layout lie in the other one.
fn reordered(form: GgufForm, spec: &DecoderSpec, slot: Slot, base_has_neighbours: bool) -> Option<Reordered> {
    let Slot::Layer(layer, LayerSlot::QProj | LayerSlot::KProj) = slot else { return None };
    let head_dim = spec.attention(layer)?.head_dim;
    form.neighbours.then_some(Reordered { head_dim, base_has_neighbours })
}

/// Fails if adapters of one layout cannot be used with models in the other one: their weights differ by more than names and order.
fn check_convertible(form: GgufForm, files: &Files) -> Result<GgufForm> {
    if form.delta_nets.is_none() && form.mamba2.is_none() {
        return Ok(form);
    }
    let other = if files.layout == Layout::Transformers { "a GGUF file" } else { "safetensors" };
    Err(ModelError::Missing {
        path: files.label.clone(),
        expected: format!("an adapter in the layout of its base, which is {other}"),
        found: format!("one in the other layout, which cannot be converted for {} models", form.architecture),
    })
}

/// Fails unless an adapter is for the architecture of its base.
fn check_architecture(form: GgufForm, architecture: &str, files: &Files) -> Result<()> {
    if form.architecture == architecture {
        return Ok(());
    }
    let expected = format!("an adapter for a {} model", form.architecture);
    Err(ModelError::Missing { path: files.label.clone(), expected, found: format!("one for a {architecture} model") })
}

/// How GGUF files store models like this one.
fn form_of_model(spec: &DecoderSpec, architecture: &str, files: &Files) -> Result<GgufForm> {
    let own = REGISTRY
        .iter()
        .find(|known| known.model_type == spec.model_type || known.aliases.contains(&spec.model_type.as_str()));
    let form = own.and_then(|own| own.gguf).and_then(|form| form.named_as(architecture));
    form.ok_or_else(|| ModelError::Missing {
        path: files.label.clone(),
        expected: format!("an adapter for a {} model", spec.model_type),
        found: format!("one for a {architecture} model"),
    })
}

impl TensorNames {
    /// These names with each of the ways in which experts may be named.
    fn ways(&self) -> Vec<Self> {
        let ways: Vec<Self> =
            self.expert_ways().iter().map(|way| self.clone().with_experts(std::slice::from_ref(way))).collect();
        if ways.is_empty() { vec![self.clone()] } else { ways }
    }

    /// The modules within a layer that hold all experts of it.
    fn expert_modules(&self) -> Vec<String> {
        let parent = |name: &str| name.rsplit_once('.').map(|(parent, _)| parent.to_owned());
        let module = |way: &ExpertNames| match way {
            ExpertNames::Separate { experts, .. } => Some((*experts).to_owned()),
            ExpertNames::Bare { names } | ExpertNames::Alternating { names, .. } => parent(names[1]),
            // Stacked in files alone: `transformers` holds them in a module of this name.
            ExpertNames::Stacked { names } => parent(names[1]).map(|parent| format!("{parent}.experts")),
            ExpertNames::Indexed { .. } => None,
        };
        self.expert_ways().iter().filter_map(module).collect()
    }

    /// Whether rows of gate and up projections of experts take turns where they share a parameter.
    fn has_alternating_experts(&self) -> bool {
        self.expert_ways().iter().any(|way| matches!(way, ExpertNames::Alternating { .. }))
    }
}
