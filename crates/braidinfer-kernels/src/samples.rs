//! What tests of kernels draw: random matrices in the block types of files (all codes, and all kinds of finite scales), and
//! how many cases of a property.

use std::ops::Range;

use braidinfer_model::Dtype;
use braidinfer_model::quantization::dequantize;
use proptest::prelude::*;

use crate::LANES;
use crate::format::{PanelFormat, WeightType, panel_bytes};
use crate::pack::pack_panel;

/// `usual` cases of a property, or fewer where `PROPTEST_CASES` says so, as on emulated processors.
pub(crate) fn cases(usual: u32) -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig { cases: usual.min(config.cases), ..config }
}

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

/// A number that decides whether a block is finite: an f16, a float of a plain type, or an exponent.
#[derive(Clone, Copy)]
pub(crate) enum Float {
    /// So many bytes from an offset on, with the exponent bits of the mask.
    Bytes { at: usize, bytes: usize, exponent: u32 },
    /// An f16 of which each quarter is the upper half of the last byte of a 16-bit number, from an offset on.
    Quarters { at: usize },
    /// The exponent of `mxfp4`, the first byte: the largest three make large codes infinite.
    Exponent,
}

impl Float {
    const fn half(at: usize) -> Self {
        Self::Bytes { at, bytes: 2, exponent: 0x7c00 }
    }

    fn bits(self) -> usize {
        match self {
            Self::Bytes { bytes, .. } => 8 * bytes,
            Self::Quarters { .. } => 16,
            Self::Exponent => 8,
        }
    }

    /// Positive infinity, or the largest exponent.
    pub fn infinity(self) -> u32 {
        match self {
            Self::Bytes { exponent, .. } => exponent,
            Self::Quarters { .. } => 0x7c00,
            Self::Exponent => 0xff,
        }
    }

    /// `bits`, with a smaller exponent if that is all ones.
    fn finite(self, bits: u32) -> u32 {
        if matches!(self, Self::Exponent) {
            return bits.min(252);
        }
        let exponent = self.infinity();
        let lowest = exponent & !(exponent << 1);
        if bits & exponent == exponent { bits ^ lowest } else { bits }
    }

    /// Writes the number into a block.
    pub fn put(self, bits: u32, block: &mut [u8]) {
        match self {
            Self::Bytes { at, bytes, .. } => block[at..][..bytes].copy_from_slice(&bits.to_le_bytes()[..bytes]),
            Self::Quarters { at } => {
                for i in 0..4 {
                    let byte = &mut block[at + 2 * i + 1];
                    *byte = *byte & 15 | ((bits >> (4 * i)) as u8) << 4;
                }
            }
            Self::Exponent => block[0] = bits as u8,
        }
    }
}

/// The numbers that decide whether a block is finite; `nvfp4` has none, because all of its blocks are.
pub(crate) fn floats(weight_type: WeightType) -> &'static [Float] {
    const FIRST: [Float; 2] = [Float::half(0), Float::half(2)];
    match weight_type {
        WeightType::F32 => &[Float::Bytes { at: 0, bytes: 4, exponent: 0x7f80_0000 }],
        WeightType::Bf16 => &[Float::Bytes { at: 0, bytes: 2, exponent: 0x7f80 }],
        WeightType::F16 | WeightType::Q4_0 | WeightType::Q5_0 | WeightType::Q8_0 => &FIRST[..1],
        WeightType::Iq4Nl | WeightType::Iq4Xs | WeightType::Iq1S | WeightType::Iq2Xxs => &FIRST[..1],
        WeightType::Iq2Xs | WeightType::Iq2S | WeightType::Iq3Xxs | WeightType::Iq3S => &FIRST[..1],
        WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K => &FIRST,
        WeightType::Q2K => const { &[Float::half(80), Float::half(82)] },
        WeightType::Q3K => const { &[Float::half(108)] },
        WeightType::Q6K => const { &[Float::half(208)] },
        WeightType::Tq1_0 => const { &[Float::half(52)] },
        WeightType::Tq2_0 => const { &[Float::half(64)] },
        WeightType::Iq1M => &[Float::Quarters { at: 48 }],
        WeightType::Mxfp4 => &[Float::Exponent],
        WeightType::Nvfp4 => &[],
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
        WeightType::Iq1S => Dtype::Iq1S,
        WeightType::Iq1M => Dtype::Iq1M,
        WeightType::Iq2Xxs => Dtype::Iq2Xxs,
        WeightType::Iq2Xs => Dtype::Iq2Xs,
        WeightType::Iq2S => Dtype::Iq2S,
        WeightType::Iq3Xxs => Dtype::Iq3Xxs,
        WeightType::Iq3S => Dtype::Iq3S,
        WeightType::Tq1_0 => Dtype::Tq1_0,
        WeightType::Tq2_0 => Dtype::Tq2_0,
        WeightType::Mxfp4 => Dtype::Mxfp4,
        WeightType::Nvfp4 => Dtype::Nvfp4,
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
            64 => [64, 192, 256, 320][self.size],
            _ => [256, 512, 512, 768][self.size],
        }
    }

    /// A matrix of finite values.
    pub(crate) fn matrix(mut self, weight_type: WeightType) -> Matrix {
        let cols = self.cols(weight_type);
        let mut bytes = vec![0; self.rows * weight_type.row_bytes(cols)];
        for block in bytes.chunks_exact_mut(weight_type.block_size()) {
            // A quarter of the blocks has extreme codes.
            let extreme = [0, 0xff, 0x7f, 0x80][self.below(4)];
            let random = self.below(4) > 0;
            block.fill_with(|| if random { self.next() as u8 } else { extreme });
            for float in floats(weight_type) {
                float.put(self.finite(*float), block);
            }
        }
        Matrix { weight_type, rows: self.rows, cols, bytes }
    }

    /// Zero, the smallest or largest number of either sign, or any number.
    fn finite(&mut self, float: Float) -> u32 {
        let sign = (self.next() as u32 & 1) << (float.bits() - 1);
        match self.below(12) {
            0 => float.finite(sign),
            1 => float.finite(sign | 1),
            2 => float.finite(sign | (float.infinity() - 1)),
            _ => float.finite((self.next() >> (64 - float.bits())) as u32),
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
