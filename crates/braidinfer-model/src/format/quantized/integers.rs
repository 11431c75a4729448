//! Matrices in integers of 4 or 8 bits: the value of a code is `scale * (code - zero)`, with scales and zero points for
//! groups of columns.
//!
//! compressed-tensors stores rows: `NAME.weight_packed` with the codes of a row in 32-bit words, the first one lowest,
//! `NAME.weight_scale`, and if zeros differ `NAME.weight_zero_point`, packed down the columns. Codes of 8 bits may also be
//! signed bytes in `NAME.weight`. GPTQ and AWQ store columns: `NAME.qweight`, `NAME.qzeros` and `NAME.scales`. The words of
//! GPTQ have codes of one output each, those of AWQ have codes of one input each, in an order of their own. In GPTQ,
//! `NAME.g_idx` may tell the group of each input.

use std::borrow::Cow;
use std::ops::Range;

use half::f16;

use super::super::assembled::Assembled;
use super::super::checkpoint::{Checkpoint, Part, Place};
use super::scales::Scales;
use super::{Found, Method, code_at, error, row_range};
use crate::Result;
use crate::dtype::Dtype;
use crate::quantization::packed_nibbles;
use crate::rearranged::MatrixId;
use crate::tensor_data::{Computed, TensorData};

/// Values of a block of [`Dtype::Q4_0`] or [`Dtype::Q8_0`].
const BLOCK: usize = 32;
const WORD_BITS: usize = 32;
/// The place of each of eight outputs in a word of AWQ.
const AWQ_ORDER: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Codes in rows.
#[derive(Debug)]
pub(in crate::format) struct PackedRows {
    codes: Place,
    /// Whether codes are signed bytes.
    signed: bool,
    scales: Scales,
    zeros: Option<Place>,
    bits: usize,
    shape: [usize; 2],
    pub(super) dtype: Dtype,
}

/// Codes in columns.
#[derive(Debug)]
pub(in crate::format) struct Columns {
    codes: Place,
    zeros: Place,
    zero_offset: u8,
    /// One row of scales per group.
    scales: Scales,
    /// The group of each input, if they are not in order.
    groups: Option<Place>,
    group_len: usize,
    awq: bool,
    bits: usize,
    shape: [usize; 2],
    pub(super) dtype: Dtype,
}

/// The zero point of signed codes.
fn middle(bits: usize) -> u8 {
    1 << (bits - 1)
}

/// The type of blocks that hold such values exactly, for groups of `group` columns.
fn block_type(bits: usize, columns: usize, group: usize) -> Option<Dtype> {
    let whole = columns.is_multiple_of(BLOCK) && group.is_multiple_of(BLOCK);
    whole.then_some(if bits == 4 { Dtype::Q4_0 } else { Dtype::Q8_0 })
}

pub(super) fn find_rows(checkpoint: &Checkpoint, name: &str) -> Result<Option<Found>> {
    let packed = name.strip_suffix(".weight_packed");
    let Some(module) = packed.or(name.strip_suffix(".weight")) else { return Ok(None) };
    let Some(part) = checkpoint.part(name).filter(|part| ["I32", "I8"].contains(&part.type_name)) else {
        return Ok(None);
    };
    let get = |suffix: &str| checkpoint.part(&format!("{module}.{suffix}"));
    let scales = get("weight_scale").ok_or_else(|| error(&part, format!("scales in `{module}.weight_scale`")))?;
    if let Some(order) = get("weight_g_idx") {
        return Err(error(&order, "no such tensor: groups are columns in their order"));
    }
    let (shape, bits) = match (part.type_name, part.shape, get("weight_shape")) {
        ("I8", [rows, columns], _) => ([*rows, *columns], 8),
        ("I32", [rows, words], Some(shape)) => {
            let columns = stored_shape(checkpoint, &shape)?[1];
            let bits = words * WORD_BITS / columns.max(1);
            ([*rows, columns], bits)
        }
        _ => return Err(error(&part, format!("a matrix, with its shape in `{module}.weight_shape`"))),
    };
    let words = |count: usize| (count * bits).div_ceil(WORD_BITS);
    if ![4, 8].contains(&bits) || (part.type_name == "I32" && part.shape[1] != words(shape[1])) {
        return Err(error(&part, format!("codes of 4 or 8 bits for {shape:?} values")));
    }
    let scales_of = Scales::of(&scales, shape, [1, 128])?;
    let zeros = get("weight_zero_point");
    if let Some(zeros) = &zeros
        && (zeros.type_name != "I32" || zeros.shape != [words(shape[0]), scales_of.columns()])
    {
        return Err(error(zeros, format!("I32 of shape {:?}", [words(shape[0]), scales_of.columns()])));
    }
    let blocks = block_type(bits, shape[1], scales_of.group()).filter(|_| zeros.is_none());
    let dtype = if scales_of.are_f16(checkpoint)? { blocks.unwrap_or(Dtype::F32) } else { Dtype::F32 };
    let parts = ["weight_packed", "weight_scale", "weight_shape", "weight_zero_point"];
    let parts = parts.map(|suffix| format!("{module}.{suffix}")).into_iter().filter(|part| checkpoint.contains(part));
    let matrix = PackedRows {
        codes: part.place.clone(),
        signed: part.type_name == "I8",
        scales: scales_of,
        zeros: zeros.map(|zeros| zeros.place),
        bits,
        shape,
        dtype,
    };
    let (name, matrix) = (format!("{module}.weight"), Assembled::PackedRows(matrix));
    Ok(Some(Found { name, parts: parts.collect(), dtype, shape: shape.to_vec(), matrix }))
}

/// The two numbers of a tensor that holds a shape.
fn stored_shape(checkpoint: &Checkpoint, part: &Part<'_>) -> Result<[usize; 2]> {
    const MOST: u64 = 1 << 31;
    let bytes = checkpoint.data(&part.place).read_part(0..checkpoint.data(&part.place).len().min(16))?;
    let number = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
    match bytes.as_chunks::<8>() {
        ([rows, columns], []) if part.type_name == "I64" && number(rows) < MOST && number(columns) < MOST => {
            Ok([number(rows) as usize, number(columns) as usize])
        }
        _ => Err(error(part, "two I64 numbers, the shape of the matrix")),
    }
}

pub(super) fn find_columns(checkpoint: &Checkpoint, name: &str, method: &Method) -> Result<Option<Found>> {
    let (Some(module), Some(part)) = (name.strip_suffix(".qweight"), checkpoint.part(name)) else { return Ok(None) };
    let (awq, bits) = (method.name == "awq", method.bits);
    let get = |suffix: &str| checkpoint.part(&format!("{module}.{suffix}"));
    let (Some(scales), Some(zeros)) = (get("scales"), get("qzeros")) else {
        return Err(error(&part, format!("scales and zero points in `{module}.scales` and `{module}.qzeros`")));
    };
    let ([first, second], [groups, outputs]) = (part.shape, scales.shape) else {
        return Err(error(&part, "a matrix, with a matrix of scales"));
    };
    if ![4, 8].contains(&bits) || (awq && bits != 4) {
        return Err(error(&part, format!("codes of 4 bits{}, not of {bits}", if awq { "" } else { " or 8 bits" })));
    }
    let per_word = WORD_BITS / bits;
    let (inputs, fits) = match awq {
        true => (*first, *second * per_word == *outputs),
        false => (*first * per_word, *second == *outputs),
    };
    let zero_words = [*groups, outputs.div_ceil(per_word)];
    let typed = part.type_name == "I32" && zeros.type_name == "I32";
    if !fits || !typed || zeros.shape != zero_words || !outputs.is_multiple_of(per_word) {
        let expected = format!("I32 codes and zero points of {bits} bits for {outputs} outputs in {groups} groups");
        return Err(error(&part, expected));
    }
    let order = get("g_idx");
    let shape = [*outputs, inputs];
    let usual = method.group_size.filter(|len| inputs.div_ceil(*len) == *groups);
    let equal = (*groups > 0 && inputs.is_multiple_of(*groups)).then(|| (inputs / groups).max(1));
    let group_len = usual.or(equal).ok_or_else(|| error(&scales, format!("scales of groups of {inputs} inputs")))?;
    let mut matrix = Columns {
        codes: part.place.clone(),
        zeros: zeros.place,
        zero_offset: method.zero_offset,
        // Groups are rows of scales here.
        scales: Scales::of(&scales, [inputs, *outputs], [group_len, 1])?,
        groups: None,
        group_len,
        awq,
        bits,
        shape,
        dtype: Dtype::F32,
    };
    if let Some(order) = order {
        matrix.set_order(checkpoint, &order, *groups)?;
    }
    matrix.dtype = matrix.exact_type(checkpoint)?;
    let parts = ["qweight", "qzeros", "scales", "g_idx"].map(|suffix| format!("{module}.{suffix}"));
    let parts = parts.into_iter().filter(|part| checkpoint.contains(part)).collect();
    let (name, dtype) = (format!("{module}.weight"), matrix.dtype);
    Ok(Some(Found { name, parts, dtype, shape: shape.to_vec(), matrix: Assembled::Columns(matrix) }))
}

impl PackedRows {
    pub(in crate::format) fn data<'a>(&'a self, checkpoint: &'a Checkpoint) -> TensorData<'a> {
        TensorData::computed(Rows { matrix: self, checkpoint })
    }
}

#[derive(Debug)]
struct Rows<'a> {
    matrix: &'a PackedRows,
    checkpoint: &'a Checkpoint,
}

impl Computed for Rows<'_> {
    fn rows(&self) -> usize {
        self.matrix.shape[0]
    }

    fn row_bytes(&self) -> usize {
        row_bytes(self.matrix.dtype, self.matrix.shape[1])
    }

    fn read_rows(&self, rows: Range<usize>) -> Result<Vec<u8>> {
        let PackedRows { scales, bits, shape, dtype, signed, .. } = self.matrix;
        let code_bytes = if *signed { shape[1] } else { (shape[1] * bits).div_ceil(WORD_BITS) * 4 };
        let stored = self.checkpoint.data(&self.matrix.codes).read_part(row_range(&rows, code_bytes))?;
        let first = scales.row_of(rows.start);
        let read = scales.read(self.checkpoint, first..scales.row_of(rows.end - 1) + 1)?;
        // Words of zero points have those of consecutive rows.
        let per_word = WORD_BITS / bits;
        let words = rows.start / per_word..rows.end.div_ceil(per_word);
        let zeros =
            self.matrix.zeros.as_ref().map(|place| {
                self.checkpoint.data(place).read_part(row_range(&words, scales.columns() * WORD_BITS / 8))
            });
        let zeros = zeros.transpose()?;
        let mut bytes = Vec::with_capacity(rows.len() * self.row_bytes());
        let mut codes = vec![0; shape[1]];
        for (row, stored) in rows.zip(stored.chunks_exact(code_bytes)) {
            for (column, code) in codes.iter_mut().enumerate() {
                *code = if *signed { stored[column] ^ 0x80 } else { code_at(stored, *bits, column) };
            }
            let scales_of_row = &read[(scales.row_of(row) - first) * scales.columns()..][..scales.columns()];
            let zero = |group: usize| {
                f32::from(match &zeros {
                    Some(zeros) => packed_down(zeros, *bits, row - words.start * per_word, group, scales.columns()),
                    None => middle(*bits),
                })
            };
            let group = scales.group();
            encode(*dtype, &codes, |column| (scales_of_row[column / group], zero(column / group)), &mut bytes);
        }
        Ok(bytes)
    }
}

/// The code of `row` in `column`, where words have codes of consecutive rows: `[words, columns]`.
fn packed_down(words: &[u8], bits: usize, row: usize, column: usize, columns: usize) -> u8 {
    let per_word = WORD_BITS / bits;
    let word = &words[(row / per_word * columns + column) * 4..][..4];
    code_at(word, bits, row % per_word)
}

fn row_bytes(dtype: Dtype, columns: usize) -> usize {
    // Blocks were only chosen for rows of whole blocks.
    columns / dtype.block_len() * dtype.block_size()
}

/// Appends a row of values, whose scales and zero points `of` tells for each column, in blocks or in f32.
fn encode(dtype: Dtype, codes: &[u8], of: impl Fn(usize) -> (f32, f32), bytes: &mut Vec<u8>) {
    if dtype == Dtype::F32 {
        bytes.extend(codes.iter().enumerate().flat_map(|(column, code)| {
            let (scale, zero) = of(column);
            (scale * (f32::from(*code) - zero)).to_le_bytes()
        }));
        return;
    }
    for (block, codes) in codes.as_chunks::<BLOCK>().0.iter().enumerate() {
        bytes.extend(f16::from_f32(of(block * BLOCK).0).to_le_bytes());
        if dtype == Dtype::Q4_0 {
            bytes.extend(packed_nibbles(codes));
        } else {
            bytes.extend(codes.iter().map(|code| code ^ 0x80));
        }
    }
}

impl Columns {
    /// Notes the group of each input unless they are in order.
    fn set_order(&mut self, checkpoint: &Checkpoint, part: &Part<'_>, groups: usize) -> Result<()> {
        let bytes = checkpoint.data(&part.place).read()?;
        let (order, rest) = bytes.as_chunks::<4>();
        let group = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes) as usize;
        let typed = part.type_name == "I32" && rest.is_empty() && order.len() == self.shape[1];
        if !typed || order.iter().any(|bytes| group(bytes) >= groups) {
            return Err(error(part, format!("one I32 per input, each below {groups}")));
        }
        if order.iter().enumerate().any(|(input, bytes)| group(bytes) != input / self.group_len) {
            self.groups = Some(part.place.clone());
        }
        Ok(())
    }

    /// Blocks if they hold the values exactly, otherwise f32.
    fn exact_type(&self, checkpoint: &Checkpoint) -> Result<Dtype> {
        let Some(blocks) = block_type(self.bits, self.shape[1], self.group_len).filter(|_| self.groups.is_none())
        else {
            return Ok(Dtype::F32);
        };
        let zeros = checkpoint.data(&self.zeros).read()?;
        let middle = middle(self.bits).wrapping_sub(self.zero_offset);
        let all = if self.bits == 4 { middle | middle << 4 } else { middle };
        let symmetric = zeros.iter().all(|byte| *byte == all);
        Ok(if symmetric && self.scales.are_f16(checkpoint)? { blocks } else { Dtype::F32 })
    }

    pub(in crate::format) fn data<'a>(&'a self, checkpoint: &'a Checkpoint, id: MatrixId) -> TensorData<'a> {
        TensorData::computed(Whole { matrix: self, checkpoint, id })
    }

    /// All rows of values.
    fn compute(&self, checkpoint: &Checkpoint) -> Result<Vec<u8>> {
        let [outputs, inputs] = self.shape;
        let read = |place: &Place| checkpoint.data(place).read();
        let (codes, zeros) = (read(&self.codes)?, read(&self.zeros)?);
        let order: Option<Cow<'_, [u8]>> = self.groups.as_ref().map(read).transpose()?;
        let scales = self.scales.read(checkpoint, 0..self.scales.rows())?;
        let groups: Vec<usize> = match &order {
            Some(bytes) => bytes.as_chunks::<4>().0.iter().map(|group| u32::from_le_bytes(*group) as usize).collect(),
            None => (0..inputs).map(|input| input / self.group_len).collect(),
        };
        let per_word = WORD_BITS / self.bits;
        // Codes of consecutive outputs in words: `[rows, outputs / per_word]`.
        let across = |words: &[u8], row: usize, output: usize| {
            let place = if self.awq { AWQ_ORDER[output % 8] } else { output % per_word };
            let word = &words[(row * (outputs / per_word) + output / per_word) * 4..][..4];
            code_at(word, self.bits, place)
        };
        let mut bytes = Vec::with_capacity(outputs * row_bytes(self.dtype, inputs));
        let mut row = vec![0; inputs];
        for output in 0..outputs {
            for (input, code) in row.iter_mut().enumerate() {
                *code = match self.awq {
                    true => across(&codes, input, output),
                    false => packed_down(&codes, self.bits, input, output, outputs),
                };
            }
            let zero = |group: usize| f32::from(across(&zeros, group, output)) + f32::from(self.zero_offset);
            let of = |input: usize| (scales[groups[input] * outputs + output], zero(groups[input]));
            encode(self.dtype, &row, of, &mut bytes);
        }
        Ok(bytes)
    }
}

#[derive(Debug)]
struct Whole<'a> {
    matrix: &'a Columns,
    checkpoint: &'a Checkpoint,
    id: MatrixId,
}

impl Computed for Whole<'_> {
    fn rows(&self) -> usize {
        self.matrix.shape[0]
    }

    fn row_bytes(&self) -> usize {
        row_bytes(self.matrix.dtype, self.matrix.shape[1])
    }

    fn read_rows(&self, rows: Range<usize>) -> Result<Vec<u8>> {
        let whole = self.checkpoint.last_matrix().get(&self.id, || self.matrix.compute(self.checkpoint))?;
        Ok(whole[row_range(&rows, self.row_bytes())].to_vec())
    }
}
