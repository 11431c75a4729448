//! Quantized matrices in safetensors, which are spread over several tensors: codes, scales, zero points.
//!
//! They are read as one tensor, with the values of the codes: in blocks of a type that holds them exactly if there is one,
//! otherwise in f32. Only what a matrix is multiplied by matters here: activations are not rounded as the checkpoint may
//! ask for.

mod fp8;
mod integers;
mod mxfp4;
mod nvfp4;
mod scales;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::assembled::Assembled;
use super::checkpoint::{Checkpoint, Part};
use crate::dtype::Dtype;
use crate::{JsonFile, ModelError, ModelSource, Result};
pub(super) use fp8::Fp8;
pub(super) use integers::{Columns, PackedRows};
pub(super) use mxfp4::Mxfp4;
pub(super) use nvfp4::Nvfp4;

/// How a checkpoint is quantized, as its `config.json` says.
#[derive(Debug)]
pub(super) struct Method {
    name: String,
    /// Rows and columns that share a scale, where the tensors do not tell.
    block: [usize; 2],
    /// What is added to stored zero points.
    zero_offset: u8,
    /// Bits of a code, where the tensors do not tell.
    bits: usize,
    /// Columns that share a scale, where the tensors do not tell.
    group_size: Option<usize>,
}

/// Methods whose tensors are read here.
pub(crate) const METHODS: [&str; 7] =
    ["mxfp4", "fp8", "fbgemm_fp8", "compressed-tensors", "gptq", "awq", MODEL_OPTIMIZER];
/// NVIDIA's Model Optimizer, and its algorithms whose tensors are read here. With the last one, modules have others of them.
const MODEL_OPTIMIZER: &str = "modelopt";
const ALGORITHMS: [&str; 3] = ["FP8", "NVFP4", "MIXED_PRECISION"];
/// Formats of compressed-tensors whose tensors are read here. With the last one, modules have others of them.
const FORMATS: [&str; 8] = [
    "dense",
    "naive-quantized",
    "float-quantized",
    "int-quantized",
    "pack-quantized",
    "mxfp4-pack-quantized",
    "nvfp4-pack-quantized",
    "mixed-precision",
];

impl Method {
    /// `None` if the checkpoint is not quantized.
    pub(super) fn read(source: &ModelSource) -> Result<Option<Self>> {
        let Some(config) = JsonFile::read(source, "config.json")? else { return Ok(None) };
        let Some(settings) = config.object("quantization_config")? else { return Ok(None) };
        let name = settings.text("quant_method")?.unwrap_or_default().to_owned();
        let v1 = settings.text("checkpoint_format")?.is_none_or(|format| format == "gptq");
        let bits = settings.size("bits")?.or(settings.size("w_bit")?).unwrap_or(4);
        if name == "awq" && settings.text("version")?.is_some_and(|version| !version.eq_ignore_ascii_case("gemm")) {
            let found = settings.text("version")?.unwrap_or_default().to_owned();
            return Err(settings.error("version", "gemm", found));
        }
        // -1 means one group.
        let group_size = settings.number("group_size")?.or(settings.number("q_group_size")?);
        let group_size = group_size.filter(|size| *size >= 1.0).map(|size| size as usize);
        if let Some(format) = settings.text("format")?.filter(|_| name == "compressed-tensors")
            && !FORMATS.contains(&format)
        {
            return Err(settings.error("format", FORMATS.join(", "), format));
        }
        if let Some(algorithm) = settings.text("quant_algo")?.filter(|_| name == MODEL_OPTIMIZER)
            && !ALGORITHMS.contains(&algorithm)
        {
            return Err(settings.error("quant_algo", ALGORITHMS.join(", "), algorithm));
        }
        let block = match settings.list("weight_block_size")? {
            None => [128, 128],
            Some(_) => settings.required_numbers("weight_block_size", 2)?.try_into().map_or([128, 128], whole),
        };
        Ok(Some(Self { zero_offset: u8::from(name == "gptq" && v1), name, block, bits, group_size }))
    }
}

/// A note if the checkpoint asks for rounded activations.
pub(crate) fn note(source: &ModelSource) -> Result<Option<String>> {
    let Some(config) = JsonFile::read(source, "config.json")? else { return Ok(None) };
    let Some(settings) = config.object("quantization_config")? else { return Ok(None) };
    let mut rounded = settings.value("activation_scheme").is_some();
    rounded |= settings.text("quant_method")? == Some(MODEL_OPTIMIZER);
    if let Some(groups) = settings.object("config_groups")? {
        for group in groups.fields() {
            rounded |= groups.object(group)?.is_some_and(|group| group.value("input_activations").is_some());
        }
    }
    let note = "activations are not rounded as `quantization_config` asks: weights alone are quantized here";
    Ok(rounded.then(|| note.to_owned()))
}

fn whole(numbers: [f64; 2]) -> [usize; 2] {
    // Numbers in a list of sizes are above zero; a fraction is no size.
    numbers.map(|number| (number as usize).max(1))
}

/// A matrix that was found, the tensors it takes the place of, and its name, type and shape.
struct Found {
    name: String,
    parts: Vec<String>,
    dtype: Dtype,
    shape: Vec<usize>,
    matrix: Assembled,
}

/// Replaces the parts of quantized matrices by the matrices.
pub(super) fn join(checkpoint: &mut Checkpoint, method: Option<&Method>) -> Result<()> {
    let mut found = Vec::new();
    let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
    for name in &names {
        found.extend(mxfp4::find(checkpoint, name)?);
        if let Some(method) = method {
            found.extend(match method.name.as_str() {
                "fp8" | "fbgemm_fp8" => fp8::find(checkpoint, name, method)?,
                "compressed-tensors" => match fp8::find(checkpoint, name, method)? {
                    Some(found) => Some(found),
                    None => match nvfp4::find(checkpoint, name, nvfp4::COMPRESSED_TENSORS)? {
                        Some(found) => Some(found),
                        None => integers::find_rows(checkpoint, name)?,
                    },
                },
                MODEL_OPTIMIZER => match fp8::find(checkpoint, name, method)? {
                    Some(found) => Some(found),
                    None => nvfp4::find(checkpoint, name, nvfp4::MODEL_OPTIMIZER)?,
                },
                "gptq" | "awq" => integers::find_columns(checkpoint, name, method)?,
                _ => None,
            });
        }
    }
    found.iter().try_for_each(|found| check_width(checkpoint, found))?;
    let blocks = types(&found);
    for Found { name, parts, dtype, shape, mut matrix } in found {
        let exact = blocks.contains(&kind_of(&name));
        let dtype = if exact || !dtype.is_quantized() { dtype } else { decode(&mut matrix, dtype) };
        checkpoint.replace(name, &parts, dtype, shape, matrix);
    }
    Ok(())
}

/// Fails if the bytes of a row in f32 cannot be counted, as an empty tensor's shape may claim.
fn check_width(checkpoint: &Checkpoint, found: &Found) -> Result<()> {
    let counted = |columns: &usize| columns.checked_mul(size_of::<f32>()).is_some();
    let part = [&found.name].into_iter().chain(&found.parts).find_map(|name| checkpoint.part(name));
    match part.filter(|_| !found.shape.last().is_none_or(counted)) {
        Some(part) => Err(error(&part, "rows that fit in memory")),
        None => Ok(()),
    }
}

/// Values in f32 instead of blocks, unless it is of a kind that always has blocks.
fn decode(matrix: &mut Assembled, dtype: Dtype) -> Dtype {
    match matrix {
        Assembled::PackedRows(matrix) => matrix.dtype = Dtype::F32,
        Assembled::Columns(matrix) => matrix.dtype = Dtype::F32,
        Assembled::Mxfp4(_) | Assembled::Nvfp4(_) | Assembled::Fp8(_) | Assembled::SplitHeads(_) => return dtype,
    }
    Dtype::F32
}

/// The kinds of matrices of which all can be read as blocks: the experts of a layer are multiplied together, so that
/// they have to be of one type.
fn types(found: &[Found]) -> BTreeSet<String> {
    let mut kinds: BTreeMap<String, bool> = BTreeMap::new();
    for Found { name, dtype, .. } in found {
        *kinds.entry(kind_of(name)).or_insert(true) &= dtype.is_quantized();
    }
    kinds.into_iter().filter_map(|(kind, exact)| exact.then_some(kind)).collect()
}

/// The name without numbers.
fn kind_of(name: &str) -> String {
    name.chars().filter(|char| !char.is_ascii_digit()).collect()
}

/// An error about a part of a matrix.
fn error(part: &Part<'_>, expected: impl Into<String>) -> ModelError {
    ModelError::Tensor {
        path: part.path.to_owned(),
        tensor: part.name.to_owned(),
        expected: expected.into(),
        found: format!("{} of shape {:?}", part.type_name, part.shape),
    }
}

/// The code at `index` of those of 4 or 8 bits that are packed in little-endian words, the first one lowest.
fn code_at(bytes: &[u8], bits: usize, index: usize) -> u8 {
    match bits {
        8 => bytes[index],
        _ => bytes[index / 2] >> (4 * (index % 2)) & 15,
    }
}

/// Rows `within` of a matrix of `row_bytes` bytes each.
fn row_range(within: &Range<usize>, row_bytes: usize) -> Range<usize> {
    within.start * row_bytes..within.end * row_bytes
}
