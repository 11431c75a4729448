//! Storage formats of weights: the types in files, and packed panels.
//!
//! A matrix of `rows` outputs by `cols` inputs is packed into panels of [`LANES`] rows; the last panel is padded with
//! zero rows. A panel stores its columns in chunks of [`CHUNK`], the last of which may be shorter, and a chunk consists
//! of blocks of [`BLOCK`] columns. The size of every chunk is a multiple of 64 bytes.
//!
//! A chunk of `n` blocks of [`PanelFormat::Int`] begins with its scales, padded with zeros to a multiple of 64 bytes:
//!
//! - [`Scales::F16`]: `[n][16 rows]` f16 scales.
//! - [`Scales::F16Min`]: the same, then `[n][16 rows]` f16 minima.
//! - [`Scales::Super`]: `[16 rows]` f16 `d`, then `[groups][16 rows]` i8 `sc`.
//! - [`Scales::SuperMin`]: `[16 rows]` f16 `d`, `[16 rows]` f16 `dmin`, then `[groups][16 rows]` u8 `sc` and as
//!   many u8 `m`.
//! - [`Scales::E8m0`] and [`Scales::Ue4m3`]: `[groups][16 rows]` bytes.
//!
//! Then come its codes, in vectors of 64 bytes; bytes `4r..4r + 4` belong to row `r`. For each block:
//!
//! - [`CodeBits::Eight`]: vector `j` of 8 has the codes of columns `4j..4j + 4`.
//! - [`CodeBits::Four`]: vector `j` of 4 has the codes of columns `4j..4j + 4` in the low halves of its bytes and those
//!   of columns `16 + 4j..16 + 4j + 4` in the high halves.
//! - [`CodeBits::Six`]: 4 vectors of the low four bits as above, then 2 of the upper two: those of columns
//!   `4j..4j + 4` in vector `j % 2`, from bit `2 * (j / 2)` of its bytes on.
//!
//! Floats have no scales. Columns are padded with zeros to whole blocks, and everything is little-endian:
//!
//! - [`PanelFormat::Bf16`]: `[cols / 2][16 rows]` pairs, that of column `2i` in the lower half of 32 bits.
//! - [`PanelFormat::F16`] and [`PanelFormat::F32`]: `[cols][16 rows]`.

use std::ops::Range;

use crate::LANES;

/// Columns per block; the number of columns per scale divides it.
pub const BLOCK: usize = 32;

/// Blocks per chunk.
pub const CHUNK_BLOCKS: usize = CHUNK / BLOCK;

/// Columns per chunk; the last chunk of a panel may have fewer.
pub const CHUNK: usize = 256;

/// Alignment of the parts of a chunk, in bytes.
pub(crate) const VECTOR: usize = 64;

/// Data type of a matrix in a file. Names and layouts of the block types are llama.cpp's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of binary32.
    Bf16,
    /// 32 values of 4 bits with a scale.
    Q4_0,
    /// 32 values of 4 bits with a scale and a minimum.
    Q4_1,
    /// 32 values of 5 bits with a scale.
    Q5_0,
    /// 32 values of 5 bits with a scale and a minimum.
    Q5_1,
    /// 32 values of 8 bits with a scale.
    Q8_0,
    /// 256 values of 2 bits, 4-bit scale and minimum per 16.
    Q2K,
    /// 256 values of 3 bits, 6-bit scale per 16.
    Q3K,
    /// 256 values of 4 bits, 6-bit scale and minimum per 32.
    Q4K,
    /// 256 values of 5 bits, 6-bit scale and minimum per 32.
    Q5K,
    /// 256 values of 6 bits, 8-bit scale per 16.
    Q6K,
    /// 32 values from a table of 16 uneven levels, with a scale.
    Iq4Nl,
    /// 256 values from the same table, 6-bit scale per 32.
    Iq4Xs,
    /// 256 values near -1, 0 and 1 in groups from a grid of 2048, 3-bit scale per 32.
    Iq1S,
    /// 256 values from the same grid, 3-bit scale per 16.
    Iq1M,
    /// 256 values of three magnitudes in groups from a grid of 256, 4-bit scale per 32.
    Iq2Xxs,
    /// 256 values of three magnitudes in groups from a grid of 512, 4-bit scale per 16.
    Iq2Xs,
    /// 256 values of three magnitudes in groups from a grid of 1024, 4-bit scale per 16.
    Iq2S,
    /// 256 values of eight magnitudes in groups from a grid of 256, 4-bit scale per 32.
    Iq3Xxs,
    /// 256 values of eight magnitudes in groups from a grid of 512, 4-bit scale per 32.
    Iq3S,
    /// 256 values -1, 0 or 1, five in a byte, with a scale.
    Tq1_0,
    /// 256 values -1, 0, 1 or 2, four in a byte, with a scale.
    Tq2_0,
    /// 32 floats of 4 bits with a power of two as scale.
    Mxfp4,
    /// 64 floats of 4 bits with an 8-bit float as scale per 16.
    Nvfp4,
}

impl WeightType {
    /// All types.
    pub const ALL: [Self; 26] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
        Self::Iq1S,
        Self::Iq1M,
        Self::Iq2Xxs,
        Self::Iq2Xs,
        Self::Iq2S,
        Self::Iq3Xxs,
        Self::Iq3S,
        Self::Tq1_0,
        Self::Tq2_0,
        Self::Mxfp4,
        Self::Nvfp4,
    ];

    /// Values per block; 1 for floats.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Iq4Nl => 32,
            Self::Mxfp4 => 32,
            Self::Nvfp4 => 64,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Iq4Xs => 256,
            Self::Iq1S | Self::Iq1M | Self::Iq2Xxs | Self::Iq2Xs | Self::Iq2S | Self::Iq3Xxs | Self::Iq3S => 256,
            Self::Tq1_0 | Self::Tq2_0 => 256,
        }
    }

    /// Bytes per block.
    pub const fn block_size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Mxfp4 => 17,
            Self::Nvfp4 => 36,
            Self::Iq1S => 50,
            Self::Tq1_0 => 54,
            Self::Iq1M => 56,
            Self::Iq2Xxs | Self::Tq2_0 => 66,
            Self::Iq2Xs => 74,
            Self::Iq2S => 82,
            Self::Q2K => 84,
            Self::Iq3Xxs => 98,
            Self::Q3K | Self::Iq3S => 110,
            Self::Iq4Xs => 136,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes per row of `cols` values, which must be whole blocks.
    pub const fn row_bytes(self, cols: usize) -> usize {
        assert!(cols.is_multiple_of(self.block_len()), "rows of whole blocks");
        cols / self.block_len() * self.block_size()
    }
}

/// Storage format of a panel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PanelFormat {
    /// Small integers with scales.
    Int(IntFormat),
    /// The upper half of binary32.
    Bf16,
    /// IEEE binary16.
    F16,
    /// IEEE binary32.
    F32,
}

/// A format with values `scale[row][group] * (level - zero) + min[row][group]`, where levels are unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IntFormat {
    /// Bits per code.
    pub(crate) bits: CodeBits,
    /// Which level a code stands for.
    pub(crate) levels: Levels,
    /// Columns that share a scale in each row.
    pub(crate) group: GroupLen,
    /// How scales are stored, and whether there are minima.
    pub(crate) scales: Scales,
    /// The level that represents zero: 0 in formats with minima, otherwise 4, 8, 16, 32, 64 or 128.
    pub(crate) zero: u8,
}

/// Bits per code in a panel; the code may have fewer in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CodeBits {
    /// Two codes in a byte.
    Four,
    /// Four codes in three bytes.
    Six,
    /// One byte per code.
    Eight,
}

/// Which levels codes stand for. The tables are looked up where codes are unpacked, so that weights take 4 bits in
/// memory that would take 6 or 8 as plain numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Levels {
    /// Codes are levels.
    Even,
    /// Twice the 4-bit floats of `mxfp4` and `nvfp4`.
    E2m1,
    /// -1, 0 and 1, plus an eighth (codes 0 to 2) or minus an eighth (from 4 on), in eighths.
    Iq1,
    /// 8, 25 and 43 (codes 0 to 2), and the same below zero (from 4 on), in eighths.
    Iq2,
    /// 16 uneven levels, denser near zero.
    Iq4,
    /// Eight magnitudes above zero, then below, in halves.
    Iq3Xxs,
    /// The odd numbers to 15, then those below zero.
    Iq3S,
}

/// Columns that share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupLen {
    /// 16 columns.
    Sixteen,
    /// 32 columns.
    ThirtyTwo,
}

/// How the scales of the groups of a chunk are stored, for each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scales {
    /// f16 scales.
    F16,
    /// f16 scales and f16 minima.
    F16Min,
    /// `scale = d * sc`, with an f16 `d` for the whole chunk and a signed byte for the group.
    Super,
    /// `scale = d * sc` and `min = -(dmin * m)`, with f16 `d` and `dmin` and unsigned bytes.
    SuperMin,
    /// `scale = 2^(e - 128)`, with a byte `e`: half of an E8M0 number, since levels are doubled.
    E8m0,
    /// Half of an unsigned 8-bit float, with four bits of exponent (bias 7) and three of fraction; all codes are
    /// numbers.
    Ue4m3,
}

impl PanelFormat {
    /// The format that represents every value of a type exactly.
    pub const fn of(weight_type: WeightType) -> Self {
        use CodeBits::{Eight, Four, Six};
        use GroupLen::{Sixteen, ThirtyTwo};
        let (bits, group, scales, zero) = match weight_type {
            WeightType::F32 => return Self::F32,
            WeightType::F16 => return Self::F16,
            WeightType::Bf16 => return Self::Bf16,
            WeightType::Q4_0 => (Four, ThirtyTwo, Scales::F16, 8),
            WeightType::Q4_1 => (Four, ThirtyTwo, Scales::F16Min, 0),
            WeightType::Q5_0 => (Six, ThirtyTwo, Scales::F16, 16),
            WeightType::Q5_1 => (Six, ThirtyTwo, Scales::F16Min, 0),
            WeightType::Q8_0 => (Eight, ThirtyTwo, Scales::F16, 128),
            WeightType::Q2K => (Four, Sixteen, Scales::SuperMin, 0),
            WeightType::Q3K => (Four, Sixteen, Scales::Super, 4),
            WeightType::Q4K => (Four, ThirtyTwo, Scales::SuperMin, 0),
            WeightType::Q5K => (Six, ThirtyTwo, Scales::SuperMin, 0),
            WeightType::Q6K => (Six, Sixteen, Scales::Super, 32),
            WeightType::Tq1_0 | WeightType::Tq2_0 => (Four, ThirtyTwo, Scales::Super, 4),
            WeightType::Iq4Nl => return Self::table(Levels::Iq4, ThirtyTwo, Scales::F16),
            WeightType::Iq4Xs => return Self::table(Levels::Iq4, ThirtyTwo, Scales::Super),
            WeightType::Iq1S => return Self::table(Levels::Iq1, ThirtyTwo, Scales::Super),
            WeightType::Iq1M => return Self::table(Levels::Iq1, Sixteen, Scales::Super),
            WeightType::Iq2Xxs => return Self::table(Levels::Iq2, ThirtyTwo, Scales::Super),
            WeightType::Iq2Xs | WeightType::Iq2S => return Self::table(Levels::Iq2, Sixteen, Scales::Super),
            WeightType::Iq3Xxs => return Self::table(Levels::Iq3Xxs, ThirtyTwo, Scales::Super),
            WeightType::Iq3S => return Self::table(Levels::Iq3S, ThirtyTwo, Scales::Super),
            WeightType::Mxfp4 => return Self::table(Levels::E2m1, ThirtyTwo, Scales::E8m0),
            WeightType::Nvfp4 => return Self::table(Levels::E2m1, Sixteen, Scales::Ue4m3),
        };
        Self::Int(IntFormat { bits, levels: Levels::Even, group, scales, zero })
    }

    /// A format of 4-bit codes that stand for levels of a table.
    const fn table(levels: Levels, group: GroupLen, scales: Scales) -> Self {
        let zero = match levels {
            Levels::Even => 0,
            Levels::E2m1 | Levels::Iq1 | Levels::Iq3S => 16,
            Levels::Iq3Xxs => 32,
            Levels::Iq2 => 64,
            Levels::Iq4 => 128,
        };
        Self::Int(IntFormat { bits: CodeBits::Four, levels, group, scales, zero })
    }
}

impl Levels {
    /// The level of every 4-bit code, if codes are not levels. All but those of `Iq4` are below 128, so that two
    /// products of a level with a signed byte fit in 16 bits. Codes that no type has stand for zero.
    pub(crate) const fn table(self) -> Option<&'static [u8; 16]> {
        match self {
            Self::Even => None,
            Self::E2m1 => Some(&[16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4]),
            // Those of llama.cpp's `kvalues_iq4nl`.
            Self::Iq4 => Some(&[1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241]),
            Self::Iq1 => Some(&[9, 17, 25, 16, 7, 15, 23, 16, 16, 16, 16, 16, 16, 16, 16, 16]),
            Self::Iq2 => Some(&[72, 89, 107, 64, 56, 39, 21, 64, 64, 64, 64, 64, 64, 64, 64, 64]),
            Self::Iq3Xxs => Some(&[34, 38, 42, 46, 50, 54, 58, 63, 30, 26, 22, 18, 14, 10, 6, 1]),
            Self::Iq3S => Some(&[17, 19, 21, 23, 25, 27, 29, 31, 15, 13, 11, 9, 7, 5, 3, 1]),
        }
    }

    /// What a level of one is worth in units of the stored scale: a power of two.
    pub(crate) const fn unit(self) -> f32 {
        match self {
            Self::Even | Self::E2m1 | Self::Iq4 | Self::Iq3S => 1.0,
            Self::Iq3Xxs => 0.5,
            Self::Iq1 | Self::Iq2 => 0.125,
        }
    }
}

impl IntFormat {
    /// Number of groups in `blocks32` blocks.
    pub const fn groups(self, blocks32: usize) -> usize {
        match self.group {
            GroupLen::Sixteen => 2 * blocks32,
            GroupLen::ThirtyTwo => blocks32,
        }
    }

    /// Whether there are minima.
    pub const fn has_mins(self) -> bool {
        matches!(self.scales, Scales::F16Min | Scales::SuperMin)
    }

    /// Bytes of the scales of a chunk, including padding.
    pub const fn scale_bytes(self, blocks32: usize) -> usize {
        let bytes = match self.scales {
            Scales::F16 => 2 * LANES * blocks32,
            Scales::F16Min => 4 * LANES * blocks32,
            Scales::Super => 2 * LANES + LANES * self.groups(blocks32),
            Scales::SuperMin => 4 * LANES + 2 * LANES * self.groups(blocks32),
            Scales::E8m0 | Scales::Ue4m3 => LANES * self.groups(blocks32),
        };
        bytes.next_multiple_of(VECTOR)
    }

    /// Number of 64-byte vectors for the codes of a block.
    pub const fn code_vectors(self) -> usize {
        match self.bits {
            CodeBits::Four => 4,
            CodeBits::Six => 6,
            CodeBits::Eight => 8,
        }
    }
}

/// Size in bytes of a chunk of `blocks32` blocks, from 1 to [`CHUNK_BLOCKS`].
pub const fn chunk_bytes(format: PanelFormat, blocks32: usize) -> usize {
    match format {
        PanelFormat::Int(format) => format.scale_bytes(blocks32) + blocks32 * format.code_vectors() * VECTOR,
        PanelFormat::Bf16 | PanelFormat::F16 => 2 * LANES * BLOCK * blocks32,
        PanelFormat::F32 => 4 * LANES * BLOCK * blocks32,
    }
}

/// Number of chunks in a panel.
pub const fn chunks(cols: usize) -> usize {
    cols.div_ceil(CHUNK)
}

/// Number of blocks in chunk `chunk` of a panel of `cols` columns.
pub const fn chunk_blocks(cols: usize, chunk: usize) -> usize {
    let left = cols.div_ceil(BLOCK) - CHUNK_BLOCKS * chunk;
    if left < CHUNK_BLOCKS { left } else { CHUNK_BLOCKS }
}

/// Offset of chunk `chunk` in a panel, in bytes.
pub const fn chunk_start(format: PanelFormat, chunk: usize) -> usize {
    chunk * chunk_bytes(format, CHUNK_BLOCKS)
}

/// The bytes of chunk `chunk` in a panel of `cols` columns.
pub(crate) const fn chunk_range(format: PanelFormat, cols: usize, chunk: usize) -> Range<usize> {
    let start = chunk_start(format, chunk);
    start..start + chunk_bytes(format, chunk_blocks(cols, chunk))
}

/// Size in bytes of a panel of `cols` columns.
pub const fn panel_bytes(format: PanelFormat, cols: usize) -> usize {
    let tail = cols.div_ceil(BLOCK) % CHUNK_BLOCKS;
    let whole = cols.div_ceil(BLOCK) / CHUNK_BLOCKS;
    chunk_start(format, whole) + if tail > 0 { chunk_bytes(format, tail) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_is_whole_vectors() {
        for weight_type in WeightType::ALL {
            let format = PanelFormat::of(weight_type);
            for blocks32 in 1..=CHUNK_BLOCKS {
                assert!(chunk_bytes(format, blocks32).is_multiple_of(VECTOR), "{weight_type:?}, {blocks32} blocks");
            }
        }
    }

    #[test]
    fn chunk_sizes_add_up_to_the_panel_size() {
        for weight_type in WeightType::ALL {
            let format = PanelFormat::of(weight_type);
            for cols in [1, 32, 255, 256, 257, 288, 512, 1000] {
                let lens = (0..chunks(cols)).map(|chunk| chunk_bytes(format, chunk_blocks(cols, chunk)));
                assert_eq!(lens.sum::<usize>(), panel_bytes(format, cols), "{weight_type:?}, {cols} columns");
            }
        }
    }

    #[test]
    fn formats_with_minima_have_zero_point_zero() {
        for weight_type in WeightType::ALL {
            if let PanelFormat::Int(format) = PanelFormat::of(weight_type) {
                assert_eq!(format.has_mins(), format.zero == 0, "{weight_type:?}");
            }
        }
    }

    #[test]
    fn chunk_sizes_match_the_documented_layout() {
        let bytes = |weight_type, blocks32| chunk_bytes(PanelFormat::of(weight_type), blocks32);
        assert_eq!(bytes(WeightType::Q8_0, 8), 256 + 4096);
        assert_eq!(bytes(WeightType::Q8_0, 1), 64 + 512);
        assert_eq!(bytes(WeightType::Q5_1, 3), 192 + 3 * 384);
        assert_eq!(bytes(WeightType::Q6K, 8), 320 + 8 * 384);
        assert_eq!(bytes(WeightType::Q4K, 8), 320 + 8 * 256);
        assert_eq!(bytes(WeightType::Bf16, 8), 256 * 32);
        assert_eq!(bytes(WeightType::Mxfp4, 8), 128 + 8 * 256);
        assert_eq!(bytes(WeightType::Mxfp4, 1), 64 + 256);
        assert_eq!(bytes(WeightType::Nvfp4, 2), 64 + 2 * 256);
        assert_eq!(bytes(WeightType::Iq2Xxs, 8), 192 + 8 * 256);
    }
}
