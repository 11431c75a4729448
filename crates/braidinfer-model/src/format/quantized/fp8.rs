//! Matrices in floats of 8 bits with scales: `NAME.weight` and `NAME.weight_scale_inv` or `NAME.weight_scale`, by which
//! the values are multiplied, despite the first name.

use std::ops::Range;

use super::super::assembled::Assembled;
use super::super::checkpoint::{Checkpoint, Place};
use super::scales::Scales;
use super::{Found, Method, error, row_range};
use crate::Result;
use crate::dtype::Dtype;
use crate::tensor_data::{Computed, TensorData};

const WEIGHT: &str = ".weight";
const SCALES: [&str; 2] = [".weight_scale_inv", ".weight_scale"];

/// Codes `[rows, columns]` of one byte, and their scales.
#[derive(Debug)]
pub(in crate::format) struct Fp8 {
    codes: Place,
    scales: Scales,
    shape: [usize; 2],
    /// Bits of the mantissa: 3 or 2.
    mantissa: u32,
}

pub(super) fn find(checkpoint: &Checkpoint, name: &str, method: &Method) -> Result<Option<Found>> {
    let (Some(module), Some(part)) = (name.strip_suffix(WEIGHT), checkpoint.part(name)) else { return Ok(None) };
    let mantissa = match part.type_name {
        "F8_E4M3" => 3,
        "F8_E5M2" => 2,
        _ => return Ok(None),
    };
    let scales = SCALES.iter().find_map(|suffix| checkpoint.part(&format!("{module}{suffix}")));
    let ([rows, columns], Some(scales)) = (part.shape, scales) else {
        return Err(error(
            &part,
            format!("a matrix, with scales in `{module}{}` or `{module}{}`", SCALES[0], SCALES[1]),
        ));
    };
    let shape = [*rows, *columns];
    let matrix = Fp8 { codes: part.place, scales: Scales::of(&scales, shape, method.block)?, shape, mantissa };
    let parts = vec![scales.name.to_owned()];
    let matrix = Assembled::Fp8(matrix);
    Ok(Some(Found { name: name.to_owned(), parts, dtype: Dtype::F32, shape: shape.to_vec(), matrix }))
}

impl Fp8 {
    pub(in crate::format) fn data<'a>(&'a self, checkpoint: &'a Checkpoint) -> TensorData<'a> {
        let (values, codes) = (values(self.mantissa), checkpoint.data(&self.codes));
        TensorData::computed(Rows { matrix: self, codes, checkpoint, values })
    }
}

#[derive(Debug)]
struct Rows<'a> {
    matrix: &'a Fp8,
    codes: TensorData<'a>,
    checkpoint: &'a Checkpoint,
    /// The value of each code.
    values: [f32; 256],
}

impl Computed for Rows<'_> {
    fn rows(&self) -> usize {
        self.matrix.shape[0]
    }

    fn row_bytes(&self) -> usize {
        self.matrix.shape[1] * size_of::<f32>()
    }

    fn read_rows(&self, rows: Range<usize>) -> Result<Vec<u8>> {
        let (columns, scales) = (self.matrix.shape[1], &self.matrix.scales);
        let codes = self.codes.read_part(row_range(&rows, columns))?;
        let first = scales.row_of(rows.start);
        let read = scales.read(self.checkpoint, first..scales.row_of(rows.end - 1) + 1)?;
        let mut bytes = Vec::with_capacity(rows.len() * self.row_bytes());
        for (row, codes) in rows.zip(codes.chunks_exact(columns)) {
            let scales_of_row = &read[(scales.row_of(row) - first) * scales.columns()..][..scales.columns()];
            for (codes, scale) in codes.chunks(scales.group()).zip(scales_of_row) {
                bytes.extend(codes.iter().flat_map(|code| (self.values[usize::from(*code)] * scale).to_le_bytes()));
            }
        }
        Ok(bytes)
    }
}

/// The values of all codes, as in Micikevicius et al. 2022 (arXiv:2209.05433).
pub(super) fn values(mantissa: u32) -> [f32; 256] {
    std::array::from_fn(|code| value(code as u32, mantissa))
}

fn value(code: u32, mantissa: u32) -> f32 {
    let (exponent, fraction) = (code >> mantissa & ((1 << (7 - mantissa)) - 1), code & ((1 << mantissa) - 1));
    let bias = (1 << (6 - mantissa)) - 1;
    let magnitude = match (mantissa, exponent) {
        // Only the largest code is no number.
        (3, 15) if fraction == 7 => f32::NAN,
        (2, 31) => {
            if fraction == 0 {
                f32::INFINITY
            } else {
                f32::NAN
            }
        }
        // As exponent and fraction of f32, the bits are too small by a power of two; subnormal numbers are, too.
        _ => f32::from_bits((code & 127) << (23 - mantissa)) * 2.0f32.powi(127 - bias),
    };
    if code >= 128 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_values_of_the_formats() {
        let e4m3 = values(3);
        for (code, value) in
            [(0x00, 0.0), (0x01, 0.001_953_125), (0x38, 1.0), (0x7e, 448.0), (0xbc, -1.5), (0x08, 0.015_625)]
        {
            assert_eq!(e4m3[code], value, "{code:#x}");
        }
        assert!(e4m3[0x7f].is_nan() && e4m3[0xff].is_nan());
        let e5m2 = values(2);
        for (code, value) in [(0x3c, 1.0), (0x7b, 57_344.0), (0x01, 2.0f32.powi(-16)), (0xc0, -2.0)] {
            assert_eq!(e5m2[code], value, "{code:#x}");
        }
        assert_eq!(e5m2[0xfc], f32::NEG_INFINITY);
        assert!(e5m2[0x7d].is_nan());
        assert_eq!([&e4m3[..], &e5m2[..]].concat().iter().filter(|value| value.is_nan()).count(), 2 + 6);
    }
}
