//! NVFP4: floats of 4 bits, two in a byte, the first one lower, with a float of 8 bits (e4m3) as scale of each 16 in a row,
//! and a number for the whole matrix. In compressed-tensors they are `NAME.weight_packed` `[rows, columns / 2]`,
//! `NAME.weight_scale` `[rows, columns / 16]` and `NAME.weight_global_scale`, by which the scales are divided; in NVIDIA's
//! Model Optimizer `NAME.weight`, `NAME.weight_scale` and `NAME.weight_scale_2`, by which they are multiplied.
//!
//! GGUF's blocks of the same name have no number for the whole matrix, so that values are read in f32.

use std::ops::Range;

use super::super::assembled::Assembled;
use super::super::checkpoint::{Checkpoint, Part, Place};
use super::{Found, code_at, error, fp8, row_range};
use crate::Result;
use crate::dtype::Dtype;
use crate::tensor_data::{Computed, TensorData};

/// Values that share a scale.
const GROUP: usize = 16;
/// The values of the codes: a sign, two bits of exponent, one of fraction.
const VALUES: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// How a method names what belongs to the codes, and what its number for the whole matrix does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    codes: &'static str,
    whole: &'static str,
    divides: bool,
}

pub(super) const COMPRESSED_TENSORS: Form =
    Form { codes: ".weight_packed", whole: ".weight_global_scale", divides: true };
pub(super) const MODEL_OPTIMIZER: Form = Form { codes: ".weight", whole: ".weight_scale_2", divides: false };
const SCALES: &str = ".weight_scale";
/// Of activations, which are not rounded here.
const INPUT_SCALES: [&str; 2] = [".input_global_scale", ".input_scale"];

/// Where codes `[rows, columns / 2]`, scales and the number for the whole matrix are.
#[derive(Debug)]
pub(in crate::format) struct Nvfp4 {
    codes: Place,
    scales: Place,
    whole: f32,
    divides: bool,
    shape: [usize; 2],
}

pub(super) fn find(checkpoint: &Checkpoint, name: &str, form: Form) -> Result<Option<Found>> {
    let (Some(module), Some(codes)) = (name.strip_suffix(form.codes), checkpoint.part(name)) else { return Ok(None) };
    let named = |suffix: &str| format!("{module}{suffix}");
    let scales = checkpoint.part(&named(SCALES)).filter(|scales| scales.type_name == "F8_E4M3");
    // Other formats have bytes, too, but no such scales.
    let Some(scales) = scales.filter(|_| codes.type_name == "U8") else { return Ok(None) };
    let Some(whole) = checkpoint.part(&named(form.whole)) else {
        return Err(error(&codes, format!("a number for the whole matrix in `{}`", named(form.whole))));
    };
    if let Some(scaled) = checkpoint.part(&named(".pre_quant_scale")) {
        return Err(error(&scaled, "no such tensor, since inputs are not scaled here"));
    }
    let shape = shape(&codes, &scales)?;
    if whole.dtype != Some(Dtype::F32) || whole.shape.iter().product::<usize>() != 1 {
        return Err(error(&whole, "one number in F32"));
    }
    let bytes = checkpoint.data(&whole.place).read()?;
    let number = bytes.first_chunk().map_or(f32::NAN, |bytes| f32::from_le_bytes(*bytes));
    if !(number.is_finite() && number > 0.0) {
        return Err(error(&whole, "a finite number above zero"));
    }
    let further = [SCALES, form.whole].into_iter().chain(INPUT_SCALES).map(named);
    let parts = further.chain([name.to_owned()]).filter(|part| checkpoint.contains(part)).collect();
    let matrix = Nvfp4 { codes: codes.place, scales: scales.place, whole: number, divides: form.divides, shape };
    let matrix = Assembled::Nvfp4(matrix);
    Ok(Some(Found { name: named(".weight"), parts, dtype: Dtype::F32, shape: shape.to_vec(), matrix }))
}

/// The shape of the values.
fn shape(codes: &Part<'_>, scales: &Part<'_>) -> Result<[usize; 2]> {
    let [rows, bytes] = codes.shape else { return Err(error(codes, "codes in rows and columns")) };
    let columns = bytes.checked_mul(2).filter(|columns| columns.is_multiple_of(GROUP));
    let columns = columns.ok_or_else(|| error(codes, format!("rows of groups of {GROUP} values")))?;
    let expected = [*rows, columns / GROUP];
    if scales.shape != expected {
        return Err(error(scales, format!("scales of shape {expected:?}, one for each {GROUP} values")));
    }
    Ok([*rows, columns])
}

impl Nvfp4 {
    pub(in crate::format) fn data<'a>(&'a self, checkpoint: &'a Checkpoint) -> TensorData<'a> {
        TensorData::computed(Rows { matrix: self, checkpoint, scale_values: fp8::values(3) })
    }
}

#[derive(Debug)]
struct Rows<'a> {
    matrix: &'a Nvfp4,
    checkpoint: &'a Checkpoint,
    /// The value of each code of a scale.
    scale_values: [f32; 256],
}

impl Computed for Rows<'_> {
    fn rows(&self) -> usize {
        self.matrix.shape[0]
    }

    fn row_bytes(&self) -> usize {
        self.matrix.shape[1] * size_of::<f32>()
    }

    fn read_rows(&self, rows: Range<usize>) -> Result<Vec<u8>> {
        let (columns, whole) = (self.matrix.shape[1], self.matrix.whole);
        let codes = self.checkpoint.data(&self.matrix.codes).read_part(row_range(&rows, columns / 2))?;
        let scales = self.checkpoint.data(&self.matrix.scales).read_part(row_range(&rows, columns / GROUP))?;
        let mut bytes = Vec::with_capacity(rows.len() * self.row_bytes());
        for (codes, scale) in codes.chunks_exact(GROUP / 2).zip(&*scales) {
            let scale = self.scale_values[usize::from(*scale)];
            let scale = if self.matrix.divides { scale / whole } else { scale * whole };
            let value = |index| VALUES[usize::from(code_at(codes, 4, index))] * scale;
            bytes.extend((0..GROUP).flat_map(|index| value(index).to_le_bytes()));
        }
        Ok(bytes)
    }
}
