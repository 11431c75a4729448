//! Finding and checking a spec's parameters in a checkpoint.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use crate::dtype::{Dtype, TensorView};
use crate::format::{Checkpoint, FileMark, quantized, safetensors};
use crate::layout::{ExpertSlot, LayerSlot, Param, Parameter, Slot, Stack, TensorNames, stacks};
use crate::rearranged::{EveryRow, Transposed};
use crate::spec::{DecoderSpec, Xielu};
use crate::tensor_data::TensorData;
use crate::{ModelError, ModelSource, Result, arch};

/// Possible prefixes of `embed_tokens` and `layers`: plain text models first, then text models in multimodal
/// checkpoints, then decoders without a prefix.
const PREFIXES: [&str; 5] = ["model.", "model.language_model.", "language_model.model.", "backbone.", ""];
/// Possible prefixes of the output head.
const HEAD_PREFIXES: [&str; 2] = ["", "language_model."];
/// Stored constants of xIELU: the slope at zero, and where negative values end.
const XIELU_CONSTANTS: [(&str, f32); 2] = [("beta", 0.5), ("eps", -1e-6)];

/// Every parameter that a [`DecoderSpec`] needs, by slot. Shapes and types are already checked; values are checked when
/// they are read.
#[derive(Debug)]
pub struct Weights {
    checkpoint: Arc<Checkpoint>,
    entries: BTreeMap<(Slot, Param), Entry>,
    quantized: BTreeMap<(Slot, Param), Quantized>,
    notes: Vec<String>,
}

/// A parameter, as rows of a stored tensor.
#[derive(Debug, Clone)]
struct Entry {
    tensor: String,
    first_row: usize,
    /// Distance of its rows.
    step: usize,
    /// For a transposed matrix, index and number of rows of the matrix in the tensor that has its rows.
    transposed: Option<(usize, usize)>,
    shape: Vec<usize>,
}

impl Entry {
    /// The parameter's part of the tensor's data, or `None` if it does not begin and end at block boundaries.
    fn view<'a>(&self, checkpoint: &'a Checkpoint) -> Option<TensorView<'a>> {
        let whole = checkpoint.tensor(&self.tensor).ok().flatten()?;
        let width = self.shape[1..].iter().product::<usize>();
        let (rows, row_bytes) = (self.shape[0], || whole.dtype.bytes(width));
        let (tensor, first_row) = match self.transposed {
            None => (whole.data.clone(), self.first_row),
            Some((index, rows)) => {
                let bytes = rows * row_bytes()?;
                let (source, value_bytes) =
                    (whole.data.part(index * bytes..(index + 1) * bytes)?, whole.dtype.bytes(1)?);
                let (id, last) = ((self.tensor.clone(), index), checkpoint.last_matrix());
                (
                    TensorData::computed(Transposed { source, rows, value_bytes, id, last }),
                    self.first_row - index * rows,
                )
            }
        };
        let bytes = |rows: usize| whole.dtype.bytes(rows * width);
        let data = if self.step == 1 {
            tensor.part(bytes(first_row)?..bytes(first_row + rows)?)?
        } else {
            let (row_bytes, step) = (row_bytes()?, self.step);
            let source = tensor.part(first_row * row_bytes..(first_row + (rows - 1) * step + 1) * row_bytes)?;
            TensorData::computed(EveryRow { source, row_bytes, step, rows })
        };
        Some(TensorView { shape: self.shape.clone(), data, ..whole })
    }
}

/// The data of a parameter without a copy. Clones share it.
#[derive(Debug, Clone)]
pub struct WeightBytes(Bytes);

#[derive(Debug, Clone)]
enum Bytes {
    Own(Arc<[u8]>),
    Stored(Arc<StoredParameter>),
}

/// A parameter in a checkpoint.
#[derive(Debug)]
struct StoredParameter {
    checkpoint: Arc<Checkpoint>,
    entry: Entry,
    size: usize,
}

impl WeightBytes {
    /// Number of bytes.
    pub fn size(&self) -> usize {
        match &self.0 {
            Bytes::Own(bytes) => bytes.len(),
            Bytes::Stored(stored) => stored.size,
        }
    }

    /// Part of the bytes. Those in a file are read now, which fails, naming the file, if it was written to since it was opened.
    ///
    /// # Panics
    ///
    /// If the range is out of bounds.
    pub fn part(&self, part: Range<usize>) -> Result<Cow<'_, [u8]>> {
        match &self.0 {
            Bytes::Own(bytes) => Ok(Cow::Borrowed(&bytes[part])),
            Bytes::Stored(stored) => {
                let view = stored.entry.view(&stored.checkpoint);
                view.expect("it was found when its size was").data.read_part(part)
            }
        }
    }
}

impl From<Arc<[u8]>> for WeightBytes {
    fn from(bytes: Arc<[u8]>) -> Self {
        Self(Bytes::Own(bytes))
    }
}

/// A parameter that was quantized after it was read.
#[derive(Debug, Clone)]
struct Quantized {
    dtype: Dtype,
    data: Arc<[u8]>,
}

impl Weights {
    /// Finds every parameter of `spec` in the checkpoint of `source`.
    ///
    /// Fails on a missing tensor, a wrong shape or an unsupported type, naming the tensor.
    pub fn open(source: &ModelSource, spec: &DecoderSpec, names: &TensorNames) -> Result<Self> {
        let checkpoint = match source.gguf() {
            Some(gguf) => Arc::clone(gguf.checkpoint()),
            None => Arc::new(safetensors::open(source)?),
        };
        let resolver = Resolver::new(source, spec, names, &checkpoint);
        let mut notes = Vec::new();
        let entries = resolver.entries(&mut notes)?;
        notes.extend(unused(&checkpoint, &entries));
        if source.gguf().is_none() {
            notes.extend(quantized::note(source)?);
        }
        Ok(Self { checkpoint, entries, quantized: BTreeMap::new(), notes })
    }

    /// The parameters of some consecutive layers, which are numbered from 0 in them; if `with_ends`, with those that belong to no
    /// layer.
    pub fn of_layers(&self, layers: &Range<usize>, with_ends: bool) -> Self {
        let part = |(slot, param): (Slot, Param)| Some((slot.of_layers(layers, with_ends)?, param));
        let entries = self.entries.iter().filter_map(|(key, entry)| Some((part(*key)?, entry.clone())));
        let quantized = self.quantized.iter().filter_map(|(key, data)| Some((part(*key)?, data.clone())));
        Self {
            checkpoint: Arc::clone(&self.checkpoint),
            entries: entries.collect(),
            quantized: quantized.collect(),
            notes: self.notes.clone(),
        }
    }

    /// The parameter in `slot`, or `None` if the spec has none there.
    pub fn get(&self, slot: Slot, param: Param) -> Option<TensorView<'_>> {
        let view = self.entries.get(&(slot, param))?.view(&self.checkpoint)?;
        if let Some(Quantized { dtype, data }) = self.quantized.get(&(slot, param)) {
            return Some(TensorView { dtype: *dtype, data: (&**data).into(), ..view });
        }
        Some(view)
    }

    /// The parameters of xIELU in the network whose down projection is in `down`, or `None` if it has another activation
    /// function.
    pub fn xielu(&self, down: Slot) -> Result<Option<Xielu>> {
        let (Slot::Layer(layer, _) | Slot::Expert(layer, ..)) = down else { return Ok(None) };
        let slot = Slot::Layer(layer, LayerSlot::Activation);
        let value = |param| self.get(slot, param).map(|view| view.read::<f32>().map(|values| values[0])).transpose();
        let (alpha_p, alpha_n) = (value(Param::AlphaP)?, value(Param::AlphaN)?);
        Ok(alpha_p.zip(alpha_n).map(|(alpha_p, alpha_n)| Xielu::new(alpha_p, alpha_n)))
    }

    /// Replaces a parameter by `data`, blocks of `dtype`; if it is the embedding, a tied output head as well.
    pub fn replace(&mut self, slot: Slot, param: Param, dtype: Dtype, data: Arc<[u8]>) {
        if slot == Slot::EmbedTokens && self.head_is_embedding() {
            self.quantized.insert((Slot::LmHead, param), Quantized { dtype, data: Arc::clone(&data) });
        }
        self.quantized.insert((slot, param), Quantized { dtype, data });
    }

    /// The data of a parameter, if it was replaced.
    pub fn replaced(&self, slot: Slot, param: Param) -> Option<WeightBytes> {
        self.quantized.get(&(slot, param)).map(|quantized| WeightBytes(Bytes::Own(Arc::clone(&quantized.data))))
    }

    /// The data of the parameter in `slot`, in memory or in the checkpoint file, which is read on each access.
    pub fn bytes(&self, slot: Slot, param: Param) -> Option<WeightBytes> {
        if let Some(replaced) = self.replaced(slot, param) {
            return Some(replaced);
        }
        let entry = self.entries.get(&(slot, param))?.clone();
        let size = entry.view(&self.checkpoint)?.data.len();
        let checkpoint = Arc::clone(&self.checkpoint);
        Some(WeightBytes(Bytes::Stored(Arc::new(StoredParameter { checkpoint, entry, size }))))
    }

    /// The files that the parameters are read from, as they are now; `None` if some are in memory.
    ///
    /// Fails if a file was written to since it was opened.
    pub fn file_marks(&self) -> Result<Option<Vec<FileMark>>> {
        if self.quantized.is_empty() { self.checkpoint_marks() } else { Ok(None) }
    }

    /// The files of the checkpoint, as they are now, also where parameters were quantized from them; `None` if it is in memory.
    ///
    /// Fails if a file was written to since it was opened.
    pub fn checkpoint_marks(&self) -> Result<Option<Vec<FileMark>>> {
        self.checkpoint.file_marks()
    }

    /// Whether the output head shares the embedding's weights.
    pub fn head_is_embedding(&self) -> bool {
        let name = |slot| self.entries.get(&(slot, Param::Weight)).map(|entry| &entry.tensor);
        name(Slot::LmHead) == name(Slot::EmbedTokens)
    }

    /// The data type of most of the weight bytes.
    pub fn dtype(&self) -> Dtype {
        let bytes = self.sizes();
        bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or(Dtype::F32, |(dtype, _)| dtype)
    }

    /// Number of bytes per data type, counting shared parameters once.
    pub fn sizes(&self) -> Vec<(Dtype, usize)> {
        let mut sizes: Vec<(Dtype, usize)> = Vec::new();
        for view in self.distinct() {
            match sizes.iter_mut().find(|(dtype, _)| *dtype == view.dtype) {
                Some((_, bytes)) => *bytes += view.data.len(),
                None => sizes.push((view.dtype, view.data.len())),
            }
        }
        sizes
    }

    /// Every parameter once, even if several modules share it.
    fn distinct(&self) -> impl Iterator<Item = TensorView<'_>> {
        let mut seen = BTreeSet::new();
        let entries = self.entries.iter().filter(move |(_, entry)| seen.insert((&entry.tensor, entry.first_row)));
        entries.filter_map(|((slot, param), _)| self.get(*slot, *param))
    }

    /// Number of parameter values, counting shared parameters once.
    pub fn parameter_count(&self) -> usize {
        self.distinct().map(|view| view.len()).sum()
    }

    /// Slot and tensor view of every parameter, in slot order.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, Param, TensorView<'_>)> {
        self.entries.keys().filter_map(|(slot, param)| Some((*slot, *param, self.get(*slot, *param)?)))
    }

    /// The stored tensors that contain the parameters, by name.
    pub fn tensors(&self) -> impl Iterator<Item = TensorView<'_>> {
        let names: BTreeSet<&str> = self.entries.values().map(|entry| entry.tensor.as_str()).collect();
        names.into_iter().filter_map(|name| self.checkpoint.tensor(name).ok().flatten())
    }

    /// Size of the checkpoint's tensor data in bytes.
    pub fn size(&self) -> usize {
        self.checkpoint.size()
    }

    /// Remarks for the user on ignored tensors and decisions, one line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

struct Resolver<'a> {
    source: &'a ModelSource,
    spec: &'a DecoderSpec,
    names: TensorNames,
    checkpoint: &'a Checkpoint,
    prefix: &'static str,
    head_prefix: &'static str,
}

impl<'a> Resolver<'a> {
    fn new(source: &'a ModelSource, spec: &'a DecoderSpec, names: &'a TensorNames, checkpoint: &'a Checkpoint) -> Self {
        let present = |slot, prefix: &str, head_prefix: &str| {
            checkpoint.contains(&names.tensor(slot, Param::Weight, prefix, head_prefix))
        };
        // Names in GGUF files have no prefix.
        let fallback = if source.gguf().is_some() { "" } else { PREFIXES[0] };
        let prefix = PREFIXES.into_iter().find(|prefix| present(Slot::EmbedTokens, prefix, "")).unwrap_or(fallback);
        let head_prefix = HEAD_PREFIXES.into_iter().find(|head| present(Slot::LmHead, "", head)).unwrap_or("");
        let names = names.with_stored_experts(spec, |names, slot| {
            checkpoint.contains(&names.tensor(slot, Param::Weight, prefix, head_prefix))
        });
        Self { source, spec, names, checkpoint, prefix, head_prefix }
    }

    fn tensor_name(&self, slot: Slot, param: Param) -> String {
        self.names.tensor(slot, param, self.prefix, self.head_prefix)
    }

    fn entries(&self, notes: &mut Vec<String>) -> Result<BTreeMap<(Slot, Param), Entry>> {
        let head_is_embedding = self.head_is_embedding(notes)?;
        let mut entries = BTreeMap::new();
        let stacks = stacks(self.spec, head_is_embedding, |slot, param| self.tensor_name(slot, param));
        let parameters: BTreeSet<String> = stacks.iter().map(|stack| stack.tensor.clone()).collect();
        for stack in stacks {
            self.check(&stack)?;
            self.check_scale(&stack.tensor, &parameters)?;
            self.place(stack, &mut entries);
        }
        if head_is_embedding {
            let embedding = entries[&(Slot::EmbedTokens, Param::Weight)].clone();
            entries.insert((Slot::LmHead, Param::Weight), embedding);
        }
        self.check_experts(&entries)?;
        Ok(entries)
    }

    /// Adds the parameters of a tensor.
    fn place(&self, stack: Stack, entries: &mut BTreeMap<(Slot, Param), Entry>) {
        let mut end = 0;
        for Parameter { slot, param, shape } in stack.parameters {
            let (rows, order) = (shape[0], self.names.order(slot, param));
            let step = if order.alternating { 2 } else { 1 };
            // Row `i` of a gate projection is followed by row `i` of the up projection.
            let after = order.alternating && matches!(slot, Slot::Expert(_, _, ExpertSlot::UpProj));
            let first_row = if after { end - rows + 1 } else { end };
            let transposed = order.transposed.then(|| (end / (rows * step), rows * step));
            entries.insert((slot, param), Entry { tensor: stack.tensor.clone(), first_row, step, transposed, shape });
            end += rows;
        }
    }

    /// Checks that the experts of a layer have the same type, since they are planned and multiplied together.
    fn check_experts(&self, entries: &BTreeMap<(Slot, Param), Entry>) -> Result<()> {
        for ((slot, param), entry) in entries {
            let Slot::Expert(layer, 1.., projection) = *slot else { continue };
            let first = &entries[&(Slot::Expert(layer, 0, projection), *param)].tensor;
            if let (Some(view), Some(first)) = (self.checkpoint.tensor(&entry.tensor)?, self.checkpoint.tensor(first)?)
                && view.dtype != first.dtype
            {
                let expected = format!("{}, as `{}`, since experts are multiplied together", first.dtype, first.name);
                return Err(view.error(expected, view.dtype.to_string()));
            }
        }
        Ok(())
    }

    /// Checks that the tensor of `stack` exists and has the rows of all its parameters.
    fn check(&self, stack: &Stack) -> Result<()> {
        let mut shape = stack.shape();
        let order = stack.parameters.first().map(|first| self.names.order(first.slot, first.param)).unwrap_or_default();
        if order.transposed {
            let columns = shape.len() - 1;
            shape.swap(columns - 1, columns);
        }
        let Some(view) = self.checkpoint.tensor(&stack.tensor)? else {
            return Err(ModelError::Tensor {
                path: self.source.label(),
                tensor: stack.tensor.clone(),
                expected: format!("a tensor of shape {shape:?}"),
                found: "no such tensor".into(),
            });
        };
        // Dimensions of one value are often left out, or added.
        let extents = |shape: &[usize]| shape.iter().copied().filter(|extent| *extent != 1).collect::<Vec<_>>();
        // llama.cpp has a row for each group.
        let by_group = |slot: Slot| matches!(slot, Slot::Layer(_, LayerSlot::MambaNorm)) && view.len() == shape[0];
        let is_by_group = stack.parameters.first().is_some_and(|first| by_group(first.slot));
        if extents(&view.shape) != extents(&shape) && !is_by_group {
            return Err(view.error(format!("shape {shape:?}"), format!("shape {:?}", view.shape)));
        }
        if order.transposed && view.dtype.is_quantized() {
            return Err(view.error("plain numbers, since its rows are stored as columns", view.dtype.to_string()));
        }
        let whole_blocks = |parameter: &Parameter| view.dtype.bytes(parameter.shape.iter().product()).is_some();
        if !stack.parameters.iter().all(whole_blocks) {
            let expected = format!("whole blocks of {} values in each of its parts", view.dtype.block_len());
            let shapes: Vec<_> = stack.parameters.iter().map(|parameter| &parameter.shape).collect();
            return Err(view.error(expected, format!("{} in parts of shape {shapes:?}", view.dtype)));
        }
        let xielu = |parameter: &Parameter| parameter.param == Param::AlphaP;
        if stack.parameters.iter().any(xielu) { self.check_xielu(&stack.tensor) } else { Ok(()) }
    }

    /// xIELU's constants are stored beside its parameters, and `transformers` reads them, except in its CUDA kernel. Here
    /// they are those of every published model, so that files without them can be read, too.
    fn check_xielu(&self, alpha_p: &str) -> Result<()> {
        for (suffix, constant) in XIELU_CONSTANTS {
            let Some(view) = self.checkpoint.tensor(&xielu_constant(alpha_p, suffix))? else { continue };
            if view.shape.iter().any(|extent| *extent != 1) {
                return Err(view.error("one value", format!("shape {:?}", view.shape)));
            }
            let value = view.read::<f32>()?[0];
            if ![constant, bf16::from_f32(constant).to_f32(), f16::from_f32(constant).to_f32()].contains(&value) {
                return Err(view.error(format!("{constant:e}, which is built in here"), format!("{value:e}")));
            }
        }
        Ok(())
    }

    /// A GGUF file may have a factor of all values of a matrix as a tensor of its own, usually beside `nvfp4`. It is
    /// not applied, so that it has to be 1, unless it is one of the `parameters`.
    fn check_scale(&self, tensor: &str, parameters: &BTreeSet<String>) -> Result<()> {
        let Some(module) = tensor.strip_suffix(".weight").filter(|_| self.source.gguf().is_some()) else {
            return Ok(());
        };
        let scale = format!("{module}.scale");
        let Some(view) = self.checkpoint.tensor(&scale)?.filter(|_| !parameters.contains(&scale)) else {
            return Ok(());
        };
        match view.read::<f32>()?.into_iter().find(|scale| *scale != 1.0) {
            None => Ok(()),
            Some(other) => {
                Err(view.error(format!("1, since factors of `{tensor}` are not applied"), other.to_string()))
            }
        }
    }

    /// A tied checkpoint may still store an output head. If it differs from the embedding, the stored head is used, as
    /// in `transformers` 5.
    fn head_is_embedding(&self, notes: &mut Vec<String>) -> Result<bool> {
        if !self.spec.tie_word_embeddings {
            return Ok(false);
        }
        let head = self.tensor_name(Slot::LmHead, Param::Weight);
        let embedding = self.tensor_name(Slot::EmbedTokens, Param::Weight);
        let (Some(head), Some(embedding)) = (self.checkpoint.tensor(&head)?, self.checkpoint.tensor(&embedding)?)
        else {
            return Ok(true);
        };
        if head.dtype == embedding.dtype && head.data.same(&embedding.data)? {
            return Ok(true);
        }
        notes.push(format!(
            "the config ties the output head to the embedding, but `{}` differs from it: using the stored head",
            head.name
        ));
        Ok(false)
    }
}

/// The name of a constant of xIELU beside its parameter `alpha_p`.
fn xielu_constant(alpha_p: &str, suffix: &str) -> String {
    alpha_p.replace("alpha_p", suffix)
}

/// A line that names the tensors that no slot uses, if there are any.
fn unused(checkpoint: &Checkpoint, entries: &BTreeMap<(Slot, Param), Entry>) -> Option<String> {
    const NAMED: usize = 6;
    let used: BTreeSet<&str> = entries.values().map(|entry| entry.tensor.as_str()).collect();
    let redundant_head = |name: &str| name.ends_with("lm_head.weight");
    let alphas = entries.iter().filter(|((_, param), _)| *param == Param::AlphaP).map(|(_, entry)| &entry.tensor);
    let constants: BTreeSet<String> =
        alphas.flat_map(|alpha| XIELU_CONSTANTS.map(|(suffix, _)| xielu_constant(alpha, suffix))).collect();
    let checked = |name: &str| constants.contains(name) || arch::gguf::is_setting(name);
    let read = |name: &str| used.contains(name) || redundant_head(name) || checked(name);
    let unused: Vec<&str> = checkpoint.names().filter(|name| !read(name)).collect();
    let more = unused.len().saturating_sub(NAMED);
    let names = unused.iter().take(NAMED).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!unused.is_empty())
        .then(|| format!("ignored {} tensors the config does not call for: {names}{rest}", unused.len()))
}
