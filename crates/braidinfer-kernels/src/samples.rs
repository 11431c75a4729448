//! Random matrices in the block types of files, for tests: all codes, and all kinds of finite scales.

use std::ops::Range;

use braidinfer_model::Dtype;
use braidinfer_model::quantization::dequantize;
use proptest::prelude::*;

use crate::LANES;
use crate::format::{PanelFormat, WeightType, panel_bytes};
use crate::pack::pack_panel;

/// Up to 16 rows of quantized blocks.
pub(crate) struct Matrix {
    pub weight_type: WeightType,
    pub rows: usize,
    pub cols: usize,
    pub bytes: Vec<u8>,
}

/// Random seed of a matrix of any type.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seed {
    rows: usize,
    size: usize,
    state: u64,
}

pub(crate) fn seeds() -> impl Strategy<Value = Seed> {
    (1..=LANES, 0..4_usize, any::<u64>()).prop_map(|(rows, size, state)| Seed { rows, size, state })
}

/// Format of the floats that decide whether a block is finite: f16, or the floats of a plain type.
#[derive(Clone, Copy)]
pub(crate) struct Float {
    pub bytes: usize,
    exponent: u32,
}

impl Float {
    /// Positive infinity.
    pub fn infinity(self) -> u32 {
        self.exponent
    }

    /// `bits`, with a smaller exponent if that is all ones.
    fn finite(self, bits: u32) -> u32 {
        let lowest = self.exponent & !(self.exponent << 1);
        if bits & self.exponent == self.exponent { bits ^ lowest } else { bits }
    }
}

/// The floats that decide whether a block is finite: their format and their offsets in the block.
pub(crate) fn floats(weight_type: WeightType) -> (Float, &'static [usize]) {
    let half = Float { bytes: 2, exponent: 0x7c00 };
    match weight_type {
        WeightType::F32 => (Float { bytes: 4, exponent: 0x7f80_0000 }, &[0]),
        WeightType::Bf16 => (Float { bytes: 2, exponent: 0x7f80 }, &[0]),
        WeightType::F16 | WeightType::Q4_0 | WeightType::Q5_0 | WeightType::Q8_0 => (half, &[0]),
        WeightType::Iq4Nl | WeightType::Iq4Xs => (half, &[0]),
        WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K => (half, &[0, 2]),
        WeightType::Q2K => (half, &[80, 82]),
        WeightType::Q3K => (half, &[108]),
        WeightType::Q6K => (half, &[208]),
    }
}

/// The same type in `braidinfer_model`.
pub(crate) fn dtype(weight_type: WeightType) -> Dtype {
    match weight_type {
        WeightType::F32 => Dtype::F32,
        WeightType::F16 => Dtype::F16,
        WeightType::Bf16 => Dtype::BF16,
        WeightType::Q4_0 => Dtype::Q4_0,
        WeightType::Q4_1 => Dtype::Q4_1,
        WeightType::Q5_0 => Dtype::Q5_0,
        WeightType::Q5_1 => Dtype::Q5_1,
        WeightType::Q8_0 => Dtype::Q8_0,
        WeightType::Q2K => Dtype::Q2K,
        WeightType::Q3K => Dtype::Q3K,
        WeightType::Q4K => Dtype::Q4K,
        WeightType::Q5K => Dtype::Q5K,
        WeightType::Q6K => Dtype::Q6K,
        WeightType::Iq4Nl => Dtype::Iq4Nl,
        WeightType::Iq4Xs => Dtype::Iq4Xs,
    }
}

impl Seed {
    /// Uniform below `end`, from splitmix64.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ self.state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn cols(self, weight_type: WeightType) -> usize {
        match weight_type.block_len() {
            1 => [1, 37, 255, 290][self.size],
            32 => [32, 96, 256, 288][self.size],
            _ => [256, 512, 512, 768][self.size],
        }
    }

    /// A matrix of finite values.
    pub(crate) fn matrix(mut self, weight_type: WeightType) -> Matrix {
        let cols = self.cols(weight_type);
        let mut bytes = vec![0; self.rows * weight_type.row_bytes(cols)];
        let (float, places) = floats(weight_type);
        for block in bytes.chunks_exact_mut(weight_type.block_size()) {
            // A quarter of the blocks has extreme codes.
            let extreme = [0, 0xff, 0x7f, 0x80][self.below(4)];
            let random = self.below(4) > 0;
            block.fill_with(|| if random { self.next() as u8 } else { extreme });
            for at in places {
                let bits = self.finite(float).to_le_bytes();
                block[*at..][..float.bytes].copy_from_slice(&bits[..float.bytes]);
            }
        }
        Matrix { weight_type, rows: self.rows, cols, bytes }
    }

    /// Zero, the smallest or largest number of either sign, or any number.
    fn finite(&mut self, float: Float) -> u32 {
        let sign = (self.next() as u32 & 1) << (8 * float.bytes - 1);
        match self.below(12) {
            0 => sign,
            1 => sign | 1,
            2 => sign | (float.infinity() - 1),
            _ => float.finite((self.next() >> (64 - 8 * float.bytes)) as u32),
        }
    }
}

impl Matrix {
    pub(crate) fn format(&self) -> PanelFormat {
        PanelFormat::of(self.weight_type)
    }

    /// The exact values of a row, from `braidinfer_model`.
    pub(crate) fn row(&self, row: usize) -> Vec<f32> {
        let len = self.weight_type.row_bytes(self.cols);
        let mut values = vec![f32::NAN; self.cols];
        dequantize(dtype(self.weight_type), &self.bytes[row * len..][..len], &mut values);
        values
    }

    /// The packed panel, in memory that was filled with `before`.
    pub(crate) fn packed(&self, before: u8) -> Vec<u8> {
        let mut panel = vec![before; panel_bytes(self.format(), self.cols)];
        assert_eq!(pack_panel(self.weight_type, &self.bytes, self.cols, &mut panel), None);
        panel
    }

    /// The bytes of block `block` of all rows.
    pub(crate) fn block(&self, block: usize) -> Range<usize> {
        let size = self.weight_type.block_size();
        block * size..(block + 1) * size
    }
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
