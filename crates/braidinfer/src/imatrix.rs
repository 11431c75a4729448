//! Making importance matrices: how large the inputs of a model's matrices are on a text, for [`crate::quantize_with`].
//!
//! As llama.cpp's tool does: the text is tokenized once, with the BOS token if the model has one, and split into chunks
//! without overlap; a shorter last chunk is dropped. Each is read by itself, with its first token replaced by BOS. The
//! output head is left out, as there.

use std::collections::BTreeMap;
use std::io::BufWriter;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use braidinfer_model::arch::gguf::{GgufModel, gguf_model};
use braidinfer_model::format::gguf::Gguf;
use braidinfer_model::format::imatrix::{InputSums, TensorSums};
use braidinfer_model::{ExpertSlot, ModelSource, Param, Parameter, Slot, Stack};

use crate::executor::standard::{InputSquares, Squares};
use crate::executor::{Batch, Kernels, NoProbe, SequenceSlice};
use crate::llm::Prompt;
use crate::loading::{LoadOptions, ModelParts};
use crate::partial_file::PartialFile;
use crate::text::Tokenizer;
use crate::{Error, Result};

/// Called with the number of chunks that were read and of all chunks; `Break` cancels the work.
pub type ImatrixProgress<'a> = &'a mut dyn FnMut(usize, usize) -> ControlFlow<()>;

/// What is read.
#[derive(Debug, Clone, Copy)]
pub struct Calibration<'a> {
    /// The text, or its token ids.
    pub prompt: &'a Prompt,
    /// Its name, for the file.
    pub name: &'a str,
    /// Tokens in each chunk.
    pub chunk: usize,
    /// Most chunks to read; all if `None`.
    pub chunks: Option<usize>,
}

/// The result of [`write_imatrix`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImatrixReport {
    /// Number of tensors in the file.
    pub tensors: usize,
    /// Number of chunks that were read.
    pub chunks: usize,
    /// Size of the file in bytes.
    pub file_bytes: u64,
    /// Remarks, one line each.
    pub notes: Vec<String>,
}

/// Reads a text with standard kernels in f32, and writes an importance matrix as a GGUF file to `destination`.
///
/// The file is created atomically. Fails if it exists, unless `overwrite`; if it is the model; if GGUF has no form of the architecture; on a
/// text shorter than a chunk; on an input that is not finite; and with [`Error::Cancelled`] if `progress` breaks.
pub fn write_imatrix(
    source: &ModelSource,
    destination: &Path,
    reading: Calibration<'_>,
    overwrite: bool,
    threads: Option<usize>,
    progress: ImatrixProgress,
) -> Result<ImatrixReport> {
    let partial = PartialFile::create(destination, overwrite)?;
    partial.keep_apart(source.gguf().into_iter().flat_map(Gguf::paths))?;
    let (sums, notes) = input_sums(source, reading, threads, progress)?;
    sums.write(BufWriter::new(partial.file())).map_err(|source| partial.error(source))?;
    let file_bytes = partial.keep()?;
    Ok(ImatrixReport { tensors: sums.tensors.len(), chunks: sums.chunks as usize, file_bytes, notes })
}

/// Reads a text like [`write_imatrix`], and returns the sums of squares of the inputs of every matrix but the output
/// head, in the names and the order of columns of the model's GGUF file. Also returns notes, one line each.
pub fn input_sums(
    source: &ModelSource,
    reading: Calibration<'_>,
    threads: Option<usize>,
    progress: ImatrixProgress,
) -> Result<(InputSums, Vec<String>)> {
    let Calibration { name, chunk, chunks, .. } = reading;
    for (field, count) in [("chunk", Some(chunk)), ("chunks", chunks)] {
        if count == Some(0) {
            return Err(Error::bad_request(field, "at least 1", 0));
        }
    }
    let options = LoadOptions {
        kernels: Kernels::Standard,
        context: Some(chunk),
        max_sequences: 1,
        prompt_lookup: false,
        threads,
        ..LoadOptions::default()
    };
    let parts = ModelParts::open(source, &options, &|_, _| {})?;
    let model = gguf_model(&parts.label, &parts.spec, parts.weights.head_is_embedding())?;
    let chunks = tokens_of_chunks(&parts, reading)?;
    let squares = Arc::new(InputSquares::default());
    read(&parts, &options, &chunks, &squares, progress)?;
    let squares = squares.by_slot();
    let mut notes = parts.notes.clone();
    notes.extend(unused_experts(&squares, &parts));
    let sums = InputSums {
        tensors: by_tensor(&model, &squares, &parts.label)?,
        datasets: vec![name.to_owned()],
        chunks: u32::try_from(chunks.len()).unwrap_or(u32::MAX),
        chunk_size: u32::try_from(chunk).unwrap_or(u32::MAX),
    };
    Ok((sums, notes))
}

/// The tokens of each chunk.
fn tokens_of_chunks(parts: &ModelParts, reading: Calibration<'_>) -> Result<Vec<Vec<u32>>> {
    let ids = match (reading.prompt, &parts.tokenizer) {
        (Prompt::Ids(ids), _) => ids.clone(),
        (Prompt::Text(text), Some(tokenizer)) => tokenizer.encode_prompt(text)?,
        (Prompt::Text(_), None) => {
            let other = parts.other_tokenizer.as_ref().map_or("none", String::as_str);
            return Err(Error::Unsupported(format!(
                "{}: expected a model with a tokenizer, found {other}",
                parts.label
            )));
        }
        (Prompt::Chat(_), _) => return Err(Error::bad_request("prompt", "a text", "a chat")),
    };
    if ids.len() < reading.chunk {
        let (name, tokens) = (reading.name.to_owned(), ids.len());
        return Err(Error::TextTooShort { name, tokens, setting: "chunk", least: reading.chunk });
    }
    let first = parts.tokenizer.as_ref().and_then(Tokenizer::first_token);
    let chunks = ids.chunks_exact(reading.chunk).take(reading.chunks.unwrap_or(usize::MAX));
    Ok(chunks.map(|chunk| [&[first.unwrap_or(chunk[0])], &chunk[1..]].concat()).collect())
}

/// Passes every chunk through all layers.
fn read(
    parts: &ModelParts,
    options: &LoadOptions,
    chunks: &[Vec<u32>],
    squares: &Arc<InputSquares>,
    progress: ImatrixProgress,
) -> Result<()> {
    let mut decoder = parts.load_observed(options, squares, &|_, _| {})?;
    let block_size = decoder.kv_cache().block_size;
    for (done, chunk) in chunks.iter().enumerate() {
        if progress(done, chunks.len()).is_break() {
            return Err(Error::Cancelled);
        }
        let blocks = (0..chunk.len().div_ceil(block_size) as u32).collect();
        let mut batch = Batch::default();
        batch.push(chunk, SequenceSlice::new(0, chunk.len(), blocks), 0);
        decoder.reserve(&batch)?;
        decoder.forward(&batch, &mut NoProbe)?;
    }
    Ok(())
}

/// A note on experts that no token was routed to.
fn unused_experts(squares: &BTreeMap<Slot, Squares>, parts: &ModelParts) -> Option<String> {
    let is_down = |slot: &Slot| matches!(slot, Slot::Expert(_, _, ExpertSlot::DownProj));
    let all = parts.weights.iter().filter(|(slot, param, _)| is_down(slot) && *param == Param::Weight).count();
    let unused = all.saturating_sub(squares.keys().filter(|slot| is_down(slot)).count());
    (unused > 0)
        .then(|| format!("no token of the text is routed to {unused} of {all} experts: there is no data for them"))
}

/// The sums of every tensor of a file that has any.
fn by_tensor(
    model: &GgufModel,
    squares: &BTreeMap<Slot, Squares>,
    label: &str,
) -> Result<BTreeMap<String, TensorSums>> {
    let mut tensors = BTreeMap::new();
    for stack in model.tensors.iter().filter(|stack| stack.parameters[0].param == Param::Weight) {
        let sums = of_tensor(model, stack, squares);
        if sums.counts.iter().all(|count| *count == 0) {
            continue;
        }
        if let Some(index) = sums.sums.iter().position(|sum| !sum.is_finite()) {
            let (tensor, expected) = (&stack.tensor, "inputs whose squares have a sum in f32");
            let found = format!("{} for column {index}", sums.sums[index]);
            return Err(Error::Unsupported(format!("{label}: tensor `{tensor}`: expected {expected}, found {found}")));
        }
        tensors.insert(stack.tensor.clone(), sums);
    }
    Ok(tensors)
}

/// The sums of a tensor, one after the other for every expert in it. Parameters that are stacked beside each other have
/// the same inputs.
fn of_tensor(model: &GgufModel, stack: &Stack, squares: &BTreeMap<Slot, Squares>) -> TensorSums {
    let expert = |slot: Slot| if let Slot::Expert(_, expert, _) = slot { Some(expert) } else { None };
    let mut parameters: Vec<&Parameter> = stack.parameters.iter().collect();
    parameters.dedup_by_key(|parameter| expert(parameter.slot));
    let columns = stack.shape().last().copied().unwrap_or(0);
    let mut found = TensorSums::default();
    for Parameter { slot, .. } in parameters {
        let mut sums = vec![0.0; columns];
        let squares = squares.get(slot);
        if let Some(squares) = squares {
            sums.iter_mut().zip(&squares.sums).for_each(|(sum, square)| *sum = *square as f32);
            model.transform_columns(*slot, &mut sums);
        }
        found.sums.extend(sums);
        found.counts.push(squares.map_or(0, |squares| squares.rows));
    }
    found
}
