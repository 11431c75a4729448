//! Quantization and dequantization of blocks.

mod affine_k;
mod file_type;
mod fitting;
mod floats;
mod fp4;
mod importance;
mod iq;
mod iq4;
mod iq_grids;
mod k_quants;
mod legacy;
mod symmetric_k;
mod ternary;
mod weighted_legacy;

pub use file_type::FileType;
pub use importance::Importance;
use importance::Rule;
pub(crate) use legacy::packed_nibbles;

use crate::Dtype;

/// Data types that [`quantize`] can write.
pub const QUANTIZABLE: &[Dtype] = &[
    Dtype::F32,
    Dtype::F16,
    Dtype::BF16,
    Dtype::Q4_0,
    Dtype::Q4_1,
    Dtype::Q5_0,
    Dtype::Q5_1,
    Dtype::Q8_0,
    Dtype::Q2K,
    Dtype::Q3K,
    Dtype::Q4K,
    Dtype::Q5K,
    Dtype::Q6K,
    Dtype::Tq1_0,
    Dtype::Tq2_0,
    Dtype::Mxfp4,
];

/// Why values cannot be quantized.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum QuantizeError {
    /// There is no encoder for the type, see [`QUANTIZABLE`].
    #[error("{dtype} can be read but not written")]
    NotWritten {
        /// The requested type.
        dtype: Dtype,
    },
    /// The number of values is not a multiple of the block length.
    #[error("{len} values are not whole blocks of {dtype}, which have {} values each", dtype.block_len())]
    PartialBlock {
        /// The requested type.
        dtype: Dtype,
        /// Number of values.
        len: usize,
    },
    /// A value is not finite, or needs a scale beyond the range of f16 (65504).
    #[error("{value} at index {index} is beyond the range of {dtype}")]
    OutOfRange {
        /// The requested type.
        dtype: Dtype,
        /// Index of the first non-finite value, or of the largest magnitude in the first block whose scale does not
        /// fit.
        index: usize,
        /// The value at that index.
        value: f32,
    },
}

/// Dequantizes whole blocks exactly.
///
/// Bitwise equal to `gguf.quants.dequantize` of the `gguf` Python package: one rounding to f32 after each operation.
/// llama.cpp's C code has the same order, but a compiler may fuse its products and sums, which saves a rounding.
///
/// # Panics
///
/// If `blocks` does not have the size of `out.len()` values of this type.
pub fn dequantize(dtype: Dtype, blocks: &[u8], out: &mut [f32]) {
    assert_eq!(dtype.bytes(out.len()), Some(blocks.len()), "bytes of {} values of {dtype}", out.len());
    match dtype {
        Dtype::F32 => decode_each(blocks, out, floats::read_f32),
        Dtype::F16 => floats::read_f16(blocks, out),
        Dtype::BF16 => decode_each(blocks, out, floats::read_bf16),
        Dtype::Q4_0 => decode_each(blocks, out, legacy::dequantize_q4_0),
        Dtype::Q4_1 => decode_each(blocks, out, legacy::dequantize_q4_1),
        Dtype::Q5_0 => decode_each(blocks, out, legacy::dequantize_q5_0),
        Dtype::Q5_1 => decode_each(blocks, out, legacy::dequantize_q5_1),
        Dtype::Q8_0 => decode_each(blocks, out, legacy::dequantize_q8_0),
        Dtype::Q2K => decode_each(blocks, out, k_quants::dequantize_q2_k),
        Dtype::Q3K => decode_each(blocks, out, k_quants::dequantize_q3_k),
        Dtype::Q4K => decode_each(blocks, out, k_quants::dequantize_q4_k),
        Dtype::Q5K => decode_each(blocks, out, k_quants::dequantize_q5_k),
        Dtype::Q6K => decode_each(blocks, out, k_quants::dequantize_q6_k),
        Dtype::Iq4Nl => decode_each(blocks, out, iq4::dequantize_iq4_nl),
        Dtype::Iq4Xs => decode_each(blocks, out, iq4::dequantize_iq4_xs),
        Dtype::Iq1S => decode_each(blocks, out, iq::dequantize_iq1_s),
        Dtype::Iq1M => decode_each(blocks, out, iq::dequantize_iq1_m),
        Dtype::Iq2Xxs => decode_each(blocks, out, iq::dequantize_iq2_xxs),
        Dtype::Iq2Xs => decode_each(blocks, out, iq::dequantize_iq2_xs),
        Dtype::Iq2S => decode_each(blocks, out, iq::dequantize_iq2_s),
        Dtype::Iq3Xxs => decode_each(blocks, out, iq::dequantize_iq3_xxs),
        Dtype::Iq3S => decode_each(blocks, out, iq::dequantize_iq3_s),
        Dtype::Tq1_0 => decode_each(blocks, out, ternary::dequantize_tq1_0),
        Dtype::Tq2_0 => decode_each(blocks, out, ternary::dequantize_tq2_0),
        Dtype::Mxfp4 => decode_each(blocks, out, fp4::dequantize_mxfp4),
        Dtype::Nvfp4 => decode_each(blocks, out, fp4::dequantize_nvfp4),
    }
}

/// Appends `values`, quantized to blocks, to `out`.
///
/// Floats are rounded to nearest even. `q4_0`, `q4_1`, `q5_0`, `q5_1`, `q8_0`, `tq1_0`, `tq2_0` and `mxfp4` are
/// byte-identical to `gguf.quants.quantize` of the `gguf` Python package. `q2_k` to `q6_k` minimise the sum of squared
/// errors of each super-block. After an error, `out` contains the blocks before the failed one.
pub fn quantize(dtype: Dtype, values: &[f32], out: &mut Vec<u8>) -> Result<(), QuantizeError> {
    let bytes = dtype.bytes(values.len()).ok_or(QuantizeError::PartialBlock { dtype, len: values.len() })?;
    out.reserve(bytes);
    match dtype {
        Dtype::F32 => encode_each(dtype, values, out, floats::write_f32),
        Dtype::F16 => encode_each(dtype, values, out, floats::write_f16),
        Dtype::BF16 => encode_each(dtype, values, out, floats::write_bf16),
        Dtype::Q4_0 => encode_each(dtype, values, out, legacy::quantize_q4_0),
        Dtype::Q4_1 => encode_each(dtype, values, out, legacy::quantize_q4_1),
        Dtype::Q5_0 => encode_each(dtype, values, out, legacy::quantize_q5_0),
        Dtype::Q5_1 => encode_each(dtype, values, out, legacy::quantize_q5_1),
        Dtype::Q8_0 => encode_each(dtype, values, out, legacy::quantize_q8_0),
        Dtype::Q2K => encode_each(dtype, values, out, |x| affine_k::quantize_q2_k(x, None)),
        Dtype::Q3K => encode_each(dtype, values, out, |x| symmetric_k::quantize_q3_k(x, None)),
        Dtype::Q4K => encode_each(dtype, values, out, |x| affine_k::quantize_q4_k(x, None)),
        Dtype::Q5K => encode_each(dtype, values, out, |x| affine_k::quantize_q5_k(x, None)),
        Dtype::Q6K => encode_each(dtype, values, out, |x| symmetric_k::quantize_q6_k(x, None)),
        Dtype::Tq1_0 => encode_each(dtype, values, out, ternary::quantize_tq1_0),
        Dtype::Tq2_0 => encode_each(dtype, values, out, ternary::quantize_tq2_0),
        Dtype::Mxfp4 => encode_each(dtype, values, out, fp4::quantize_mxfp4),
        Dtype::Iq4Nl | Dtype::Iq4Xs | Dtype::Nvfp4 => Err(QuantizeError::NotWritten { dtype }),
        Dtype::Iq1S | Dtype::Iq1M | Dtype::Iq2Xxs | Dtype::Iq2Xs | Dtype::Iq2S | Dtype::Iq3Xxs | Dtype::Iq3S => {
            Err(QuantizeError::NotWritten { dtype })
        }
    }
}

/// Appends rows of `values`, quantized to blocks such that errors in important columns are small, to `out`.
///
/// What is minimised is the sum of squared errors, each times the importance of its column and, but for `q6_k`,
/// `√(s·mean(x²) + x²)` of its value `x`, with the mean of the row for blocks of 32 values and of the super-block for
/// the others; `s` is 1, or 2 from `q3_k` to `q5_k` (llama.cpp's `ggml-quants.c`). That sum is never larger than for the
/// blocks of [`quantize`], by more than rounding and 1e-6 of the block's mean weight. Types for which
/// [`uses_importance`] is false are quantized without.
///
/// # Panics
///
/// If `values` are not whole rows of as many columns as `importance` has.
pub fn quantize_rows(
    dtype: Dtype,
    values: &[f32],
    importance: &Importance,
    out: &mut Vec<u8>,
) -> Result<(), QuantizeError> {
    let columns = importance.columns();
    assert!(
        values.is_empty() || values.len().checked_rem(columns.len()) == Some(0),
        "rows of {} columns",
        columns.len()
    );
    if dtype.bytes(columns.len()).is_none() {
        return Err(QuantizeError::PartialBlock { dtype, len: columns.len() });
    }
    let rows = Rows { dtype, values, columns };
    match dtype {
        Dtype::Q4_0 => rows.encode(Rule::WithinRow, out, weighted_legacy::quantize_q4_0),
        Dtype::Q4_1 => rows.encode(Rule::WithinRow, out, weighted_legacy::quantize_q4_1),
        Dtype::Q5_0 => rows.encode(Rule::WithinRow, out, weighted_legacy::quantize_q5_0),
        Dtype::Q5_1 => rows.encode(Rule::WithinRow, out, weighted_legacy::quantize_q5_1),
        Dtype::Q2K => rows.encode(Rule::WithinBlock(1.0), out, |x, w| affine_k::quantize_q2_k(x, Some(w))),
        Dtype::Q3K => rows.encode(Rule::WithinBlock(2.0), out, |x, w| symmetric_k::quantize_q3_k(x, Some(w))),
        Dtype::Q4K => rows.encode(Rule::WithinBlock(2.0), out, |x, w| affine_k::quantize_q4_k(x, Some(w))),
        Dtype::Q5K => rows.encode(Rule::WithinBlock(2.0), out, |x, w| affine_k::quantize_q5_k(x, Some(w))),
        Dtype::Q6K => rows.encode(Rule::Plain, out, |x, w| symmetric_k::quantize_q6_k(x, Some(w))),
        _ => quantize(dtype, values, out),
    }
}

/// Whether [`quantize_rows`] weights errors for this type: those that llama.cpp weights, of the ones that are written.
pub fn uses_importance(dtype: Dtype) -> bool {
    let legacy = matches!(dtype, Dtype::Q4_0 | Dtype::Q4_1 | Dtype::Q5_0 | Dtype::Q5_1);
    legacy || matches!(dtype, Dtype::Q2K | Dtype::Q3K | Dtype::Q4K | Dtype::Q5K | Dtype::Q6K)
}

/// Rows of values, and the importance of their columns.
struct Rows<'a> {
    dtype: Dtype,
    values: &'a [f32],
    columns: &'a [f32],
}

impl Rows<'_> {
    fn encode<const LEN: usize, const SIZE: usize>(
        &self,
        rule: Rule,
        out: &mut Vec<u8>,
        encode: impl Fn(&[f32; LEN], &[f32; LEN]) -> Option<[u8; SIZE]>,
    ) -> Result<(), QuantizeError> {
        let importance = self.columns.as_chunks::<LEN>().0;
        for (row, values) in self.values.chunks(self.columns.len().max(1)).enumerate() {
            let mean_square = importance::mean_square(values);
            for (i, (values, importance)) in values.as_chunks::<LEN>().0.iter().zip(importance).enumerate() {
                let first = row * self.columns.len() + i * LEN;
                let weights = || importance::weights(values, importance, rule, mean_square);
                out.extend_from_slice(&encode_block(self.dtype, values, first, |values| encode(values, &weights()))?);
            }
        }
        Ok(())
    }
}

fn decode_each<const SIZE: usize, const LEN: usize>(
    blocks: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; SIZE], &mut [f32; LEN]),
) {
    for (block, out) in blocks.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        decode(block, out);
    }
}

fn encode_each<const LEN: usize, const SIZE: usize>(
    dtype: Dtype,
    values: &[f32],
    out: &mut Vec<u8>,
    encode: impl Fn(&[f32; LEN]) -> Option<[u8; SIZE]>,
) -> Result<(), QuantizeError> {
    for (i, values) in values.as_chunks().0.iter().enumerate() {
        out.extend_from_slice(&encode_block(dtype, values, i * LEN, &encode)?);
    }
    Ok(())
}

/// `first` is the index of the first value, for errors.
fn encode_block<const LEN: usize, const SIZE: usize>(
    dtype: Dtype,
    values: &[f32; LEN],
    first: usize,
    encode: impl Fn(&[f32; LEN]) -> Option<[u8; SIZE]>,
) -> Result<[u8; SIZE], QuantizeError> {
    let finite = values.iter().all(|value| value.is_finite());
    finite.then(|| encode(values)).flatten().ok_or_else(|| {
        let at = culprit(values);
        QuantizeError::OutOfRange { dtype, index: first + at, value: values[at] }
    })
}

/// Index of the first non-finite value, or else of the value of largest magnitude.
fn culprit(values: &[f32]) -> usize {
    let largest = || (0..values.len()).max_by(|a, b| values[*a].abs().total_cmp(&values[*b].abs()));
    values.iter().position(|value| !value.is_finite()).or_else(largest).unwrap_or(0)
}
