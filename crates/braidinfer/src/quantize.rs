//! Quantizing models: in memory while loading, or into a GGUF file.

mod importance;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;

use braidinfer_model::arch::gguf::{GgufModel, gguf_model};
use braidinfer_model::format::gguf::{Gguf, GgufWriter, Metadata, TensorHeader};
use braidinfer_model::quantization::{self, FileType, Importance};
use braidinfer_model::spec::{AttentionSpec, DeltaNetSpec};
use braidinfer_model::{
    DecoderSpec, Dtype, GenerationConfig, ModelError, ModelSource, Param, Parameter, Slot, Stack, TensorNames,
    TensorView, Weights, describe, stacks,
};
use rayon::prelude::*;

use self::importance::TensorImportance;
use crate::executor::standard::LoadProgress;
use crate::memory::{Room, SLACK};
use crate::partial_file::PartialFile;
use crate::text::{Tokenizer, TokenizerSettings, write_tokenizer};
use crate::threads::Threads;
use crate::{Error, Result};

/// Number of values that a thread quantizes at a time.
const GROUP: usize = 1 << 20;

/// Called with the number of finished tensors and of all tensors; `Break` cancels the quantization.
pub type QuantizeProgress<'a> = &'a mut dyn FnMut(usize, usize) -> ControlFlow<()>;

/// The result of [`quantize`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantizeReport {
    /// Size of the original weights in bytes.
    pub source_bytes: usize,
    /// Size of the file in bytes.
    pub file_bytes: u64,
    /// Number of tensors of each type.
    pub tensors: BTreeMap<&'static str, usize>,
    /// Remarks for the user of the file, one line each.
    pub notes: Vec<String>,
}

/// How [`quantize_with`] quantizes.
#[derive(Debug, Clone, Copy)]
pub struct QuantizeOptions<'a> {
    /// What becomes of the matrices.
    pub file_type: FileType,
    /// Whether a file that is there is replaced.
    pub overwrite: bool,
    /// A file with an importance matrix: how much errors in each column of the matrices count.
    pub imatrix: Option<&'a Path>,
}

/// [`quantize_with`], without an importance matrix.
pub fn quantize(
    source: &ModelSource,
    destination: &Path,
    file_type: FileType,
    overwrite: bool,
    threads: &Threads,
    progress: QuantizeProgress,
) -> Result<QuantizeReport> {
    let options = QuantizeOptions { file_type, overwrite, imatrix: None };
    quantize_with(source, destination, options, threads, progress)
}

/// Writes the model as a GGUF file at `destination`.
///
/// The file is created atomically. Fails if it exists, unless it may be overwritten; if it is made from itself; if GGUF cannot describe the decoder
/// or its tokenizer; if the importance matrix is not one for this model; and with [`Error::Cancelled`] if `progress`
/// breaks.
pub fn quantize_with(
    source: &ModelSource,
    destination: &Path,
    options: QuantizeOptions<'_>,
    threads: &Threads,
    progress: QuantizeProgress,
) -> Result<QuantizeReport> {
    let QuantizeOptions { file_type, overwrite, imatrix } = options;
    let partial = PartialFile::create(destination, overwrite)?;
    partial.keep_apart(source.gguf().into_iter().flat_map(Gguf::paths))?;
    let (description, config) = describe(source)?;
    let spec = description.spec;
    let weights = Weights::open(source, &spec, &description.names)?;
    let needed = streaming_bytes(&spec, threads).saturating_add(SLACK);
    let needed = needed.saturating_add(imatrix.map_or(Ok(0), importance::bytes)?);
    Room::now().hold(needed, || format!("{}: quantizing into a file", source.label()))?;
    let head_is_embedding = weights.head_is_embedding();
    let mut model = gguf_model(&source.label(), &spec, head_is_embedding)?;
    let mut notes = weights.notes().to_vec();
    notes.append(&mut model.notes);
    let generation = GenerationConfig::read(source, &config)?;
    notes.extend(complete(source, &spec, &generation, destination, file_type, &mut model.metadata)?);
    notes.extend(requantized(&weights));
    let mut importance = None;
    if let Some(path) = imatrix {
        let dtype = |stack: &Stack| file_type.dtype_with_importance(&spec, stack, head_is_embedding);
        let (read, found) = TensorImportance::read(path, &mut model, dtype)?;
        partial.keep_apart([path])?;
        importance = Some(read);
        notes.extend(found);
    }
    let importance = importance.as_ref();
    let (spec, weights, model) = (&spec, &weights, &model);
    let quantizer = GgufQuantizer { spec, weights, model, file_type, head_is_embedding, importance, threads };
    notes.extend(quantizer.fallbacks());
    let file_bytes = quantizer.write(partial, progress)?;
    let mut tensors = BTreeMap::new();
    for stack in &model.tensors {
        *tensors.entry(quantizer.dtype(stack).name()).or_insert(0) += 1;
    }
    Ok(QuantizeReport { source_bytes: weights.size(), file_bytes, tensors, notes })
}

/// Quantizes the matrices of `weights` in memory, as [`quantize`] would in a file. `progress` receives the finished
/// fraction, in layers. Returns notes, one line each.
pub fn quantize_weights(
    spec: &DecoderSpec,
    weights: &mut Weights,
    file_type: FileType,
    threads: &Threads,
    progress: LoadProgress,
) -> Result<Vec<String>> {
    let head_is_embedding = weights.head_is_embedding();
    let mut notes: Vec<String> = requantized(weights).into_iter().collect();
    let model = gguf_model("", spec, head_is_embedding);
    let tensors = match model {
        Ok(model) => model.tensors,
        // Architectures without a GGUF form have no stacked tensors.
        Err(_) => stacks(spec, head_is_embedding, |slot, param| TensorNames::default().tensor(slot, param, "", "")),
    };
    notes.extend(fallbacks(spec, tensors.iter(), file_type, head_is_embedding));
    for (done, stack) in tensors.iter().enumerate() {
        progress(done * spec.layers.len() / tensors.len(), spec.layers.len());
        let dtype = file_type.dtype(spec, stack, head_is_embedding);
        for Parameter { slot, param, .. } in &stack.parameters {
            let Some(view) = weights.get(*slot, *param).filter(|view| view.shape.len() == 2 && view.dtype != dtype)
            else {
                continue;
            };
            let data = encode_matrix(&view, dtype, threads)?;
            drop(view);
            weights.replace(*slot, *param, dtype, data);
        }
    }
    Ok(notes)
}

/// Size of the matrices in memory once [`quantize_weights`] has quantized them, in bytes.
pub(crate) fn quantized_bytes(spec: &DecoderSpec, weights: &Weights, file_type: FileType) -> usize {
    let tied = weights.head_is_embedding();
    let tensors = stacks(spec, tied, |slot, param| TensorNames::default().tensor(slot, param, "", ""))
        .into_iter()
        .filter(|stack| stack.shape().len() > 1);
    let bytes = tensors.map(|stack| {
        let dtype = file_type.dtype(spec, &stack, tied);
        let values = stack.shape().iter().fold(1, |product: usize, extent| product.saturating_mul(*extent));
        dtype.bytes(values).unwrap_or(usize::MAX)
    });
    bytes.fold(0, usize::saturating_add)
}

/// Memory for quantizing into a file, in bytes: groups of rows in f32, one for each thread, and quantized, two for each, which
/// are written together. A quantized value takes no more than 4 bytes. The weights stay in their files.
fn streaming_bytes(spec: &DecoderSpec, threads: &Threads) -> usize {
    let of_values = spec.layer_delta_nets().map(DeltaNetSpec::value_width);
    let widest = spec.layer_attentions().map(AttentionSpec::query_width).chain(of_values).max().unwrap_or(0);
    let head_dim = spec.layer_attentions().map(|attention| attention.head_dim).max().unwrap_or(1);
    let group = GROUP.max(widest.max(spec.hidden_size).saturating_mul(head_dim));
    group.saturating_mul(4 + 2 * 4).saturating_mul(threads.count())
}

/// Quantizes a whole matrix to blocks of `dtype`, rows in parallel.
fn encode_matrix(view: &TensorView, dtype: Dtype, threads: &Threads) -> Result<Arc<[u8]>> {
    let columns = view.shape[1];
    let row = dtype.bytes(columns).ok_or_else(|| Error::Internal(format!("{columns} values as {dtype}")))?;
    let groups = groups(&view.shape, 1);
    let mut data = vec![0; view.shape[0] * row];
    // Large buffers are allocated here, by the caller: those that a worker frees would stay with its thread.
    let parts = data.par_chunks_mut(groups.first().map_or(1, ExactSizeIterator::len) * row);
    let encode_part = |(part, rows): (&mut [u8], Range<usize>)| -> Result<()> {
        let values = view.read_rows::<f32>(rows.clone())?;
        part.copy_from_slice(&encode(view.name, view.path, dtype, &values, rows.start * columns, None)?);
        Ok(())
    };
    threads.run(|| parts.zip(groups).try_for_each(encode_part))?;
    Ok(data.into())
}

/// Adds all metadata except the architecture's: name, type, tokenizer. Returns notes, one line each.
fn complete(
    source: &ModelSource,
    spec: &DecoderSpec,
    generation: &GenerationConfig,
    destination: &Path,
    file_type: FileType,
    metadata: &mut Metadata,
) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    if let Some(gguf) = source.gguf() {
        let tokenizer = Tokenizer::read(source, &TokenizerSettings::read(source)?)?;
        notes.extend(tokenizer.iter().flat_map(Tokenizer::notes).cloned());
        let kept = |key: &str| {
            let general = key.starts_with("general.") && key != "general.alignment" && key != "general.architecture";
            general || key.starts_with("tokenizer.") || key.starts_with("braidinfer.")
        };
        for (key, value) in gguf.metadata().iter().filter(|(key, _)| kept(key)) {
            metadata.insert(key, value.clone());
        }
    } else {
        let ends = &generation.eos_token_id;
        let written = write_tokenizer(source, spec.vocab_size, generation.bos_token_id, ends, metadata)?;
        notes.extend(written);
        generation.write(metadata);
        metadata.insert("general.type", "model");
        metadata.insert("general.name", name(source, destination).as_str());
    }
    metadata.insert("general.file_type", file_type.number());
    metadata.insert("general.quantization_version", 2u32);
    Ok(notes)
}

/// The model's name: its directory, its repository in the Hugging Face cache, or the output file.
fn name(source: &ModelSource, destination: &Path) -> String {
    let path = match source {
        ModelSource::Directory(path) => fs::canonicalize(path).unwrap_or_else(|_| path.clone()),
        _ => destination.with_extension(""),
    };
    let part = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // models--org--name/snapshots/commit
    let repository = path.ancestors().nth(2).map(part).filter(|_| path.parent().map(part) == Some("snapshots".into()));
    let cached =
        repository.and_then(|repository| Some(repository.strip_prefix("models--")?.split_once("--")?.1.to_owned()));
    cached.unwrap_or_else(|| part(&path))
}

/// A note if the weights were already quantized.
fn requantized(weights: &Weights) -> Option<String> {
    let types: Vec<&str> =
        weights.sizes().into_iter().filter(|(dtype, _)| dtype.is_quantized()).map(|(dtype, _)| dtype.name()).collect();
    (!types.is_empty()).then(|| format!("the weights were quantized before ({}): errors add up", types.join(", ")))
}

/// A note on tensors whose rows do not fit the intended type.
fn fallbacks<'a>(
    spec: &DecoderSpec,
    tensors: impl ExactSizeIterator<Item = &'a Stack>,
    file_type: FileType,
    head_is_embedding: bool,
) -> Option<String> {
    let all = tensors.len();
    let count = tensors.filter(|stack| file_type.falls_back(spec, stack, head_is_embedding)).count();
    let reason = "their rows are not whole blocks, so they have a type with smaller blocks";
    (count > 0).then(|| format!("{count} of {all} tensors cannot be what {file_type} asks for: {reason}"))
}

/// Rows that a file may reorder together: those of a head, in a layer.
fn head_dim(spec: &DecoderSpec, slot: Slot) -> usize {
    match slot {
        Slot::Layer(layer, _) => spec.attention(layer).map_or(1, |attention| attention.head_dim),
        _ => 1,
    }
}

/// Splits the rows of a matrix into groups of about [`GROUP`] values, each a multiple of `step` rows.
fn groups(shape: &[usize], step: usize) -> Vec<Range<usize>> {
    let (rows, columns) = (shape[0], shape[1..].iter().product::<usize>().max(1));
    let size = (GROUP / columns).next_multiple_of(step).max(step);
    (0..rows).step_by(size).map(|start| start..rows.min(start + size)).collect()
}

/// Encodes values as blocks; `first` is the index of the first value in its tensor, for errors.
fn encode(
    tensor: &str,
    path: &str,
    dtype: Dtype,
    values: &[f32],
    first: usize,
    importance: Option<&Importance>,
) -> Result<Vec<u8>> {
    let mut blocks = Vec::with_capacity(dtype.bytes(values.len()).unwrap_or(0));
    let encoded = match importance {
        Some(importance) => quantization::quantize_rows(dtype, values, importance, &mut blocks),
        None => quantization::quantize(dtype, values, &mut blocks),
    };
    encoded.map_err(|fault| {
        let found = match fault {
            quantization::QuantizeError::OutOfRange { index, value, .. } => {
                format!("{value} at index {}", first + index)
            }
            other => other.to_string(),
        };
        let (path, tensor) = (path.to_owned(), tensor.to_owned());
        ModelError::Tensor { path, tensor, expected: format!("values within the range of {dtype}"), found }
    })?;
    Ok(blocks)
}

/// Writes one GGUF file.
struct GgufQuantizer<'a> {
    spec: &'a DecoderSpec,
    weights: &'a Weights,
    model: &'a GgufModel,
    file_type: FileType,
    head_is_embedding: bool,
    importance: Option<&'a TensorImportance>,
    threads: &'a Threads,
}

impl GgufQuantizer<'_> {
    fn dtype(&self, stack: &Stack) -> Dtype {
        match self.importance {
            Some(_) => self.file_type.dtype_with_importance(self.spec, stack, self.head_is_embedding),
            None => self.file_type.dtype(self.spec, stack, self.head_is_embedding),
        }
    }

    fn fallbacks(&self) -> Option<String> {
        fallbacks(self.spec, self.model.tensors.iter(), self.file_type, self.head_is_embedding)
    }

    /// Writes all tensors and returns the size of the file.
    fn write(&self, partial: PartialFile, progress: QuantizeProgress) -> Result<u64> {
        let stacks = &self.model.tensors;
        let header = |stack: &Stack| self.model.header(stack, self.dtype(stack));
        let mut headers: Vec<TensorHeader> = stacks.iter().map(header).collect();
        for (name, values) in &self.model.settings {
            headers.push(TensorHeader { name: (*name).to_owned(), shape: vec![values.len()], dtype: Dtype::F32 });
        }
        let out = BufWriter::new(partial.file());
        let failed = |source: io::Error| partial.error(source);
        let mut writer = GgufWriter::begin(out, &self.model.metadata, &headers).map_err(failed)?;
        for (done, stack) in stacks.iter().enumerate() {
            let going_on = &mut || progress(done, stacks.len());
            self.write_stack(stack, &mut writer, going_on).map_err(|fault| fault.at(&partial))?;
        }
        for (_, values) in &self.model.settings {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            writer.tensor([Ok::<_, io::Error>(bytes)]).map_err(failed)?;
        }
        writer.finish().map_err(failed)?.into_inner().map_err(|fault| partial.error(fault.into_error()))?;
        partial.keep()
    }

    /// Quantizes in parallel, a few groups of rows at a time, and writes them in order. Calls `going_on` between them.
    fn write_stack<W: Write>(
        &self,
        stack: &Stack,
        writer: &mut GgufWriter<W>,
        going_on: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<(), WriteError> {
        let (dtype, spec) = (self.dtype(stack), self.spec);
        let mut work = Vec::new();
        for parameter in &stack.parameters {
            let rows = groups(&parameter.shape, head_dim(spec, parameter.slot));
            work.extend(rows.into_iter().map(|rows| (parameter, rows)));
        }
        let at_once = self.threads.count() * 2;
        let part = |(parameter, rows): &(&Parameter, Range<usize>)| -> Result<Vec<u8>, WriteError> {
            let importance = self.importance.and_then(|known| known.of(&stack.tensor, parameter.slot));
            Ok(self.part(parameter, rows.clone(), dtype, importance)?)
        };
        let parts = work.chunks(at_once).flat_map(|work| match going_on() {
            ControlFlow::Break(()) => vec![Err(Error::Cancelled.into())],
            ControlFlow::Continue(()) => self.threads.run(|| work.par_iter().map(part).collect()),
        });
        writer.tensor(parts)?;
        Ok(())
    }

    fn part(
        &self,
        parameter: &Parameter,
        rows: Range<usize>,
        dtype: Dtype,
        importance: Option<&Importance>,
    ) -> Result<Vec<u8>> {
        let Parameter { slot, param, shape } = parameter;
        let view = self.weights.get(*slot, *param);
        let view = view.ok_or_else(|| Error::Internal(format!("the weights lack {slot:?}")))?;
        let columns = if *param == Param::Weight { shape[1..].iter().product() } else { 1 };
        let first = rows.start * columns;
        let mut values = match &self.model.source_rows(*slot, rows.clone())[..] {
            [rows] => view.read_rows::<f32>(rows.clone())?,
            parts => {
                let mut values = Vec::with_capacity(parts.iter().map(ExactSizeIterator::len).sum::<usize>() * columns);
                for rows in parts {
                    values.extend(view.read_rows::<f32>(rows.clone())?);
                }
                values
            }
        };
        self.model.transform(*slot, *param, rows, columns, &mut values);
        encode(view.name, view.path, dtype, &values, first, importance)
    }
}

/// An error while reading or writing a tensor.
enum WriteError {
    Read(Error),
    Write(io::Error),
}

impl From<Error> for WriteError {
    fn from(error: Error) -> Self {
        Self::Read(error)
    }
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

impl WriteError {
    fn at(self, partial: &PartialFile) -> Error {
        match self {
            Self::Read(error) => error,
            Self::Write(source) => partial.error(source),
        }
    }
}
