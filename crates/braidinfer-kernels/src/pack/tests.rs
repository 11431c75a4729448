use proptest::prelude::*;

use super::*;
use crate::format::IntFormat;
use crate::prepare::read_row;
use crate::samples::{bits, cases, dtype, floats, seeds};

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn packing_preserves_values(seed in seeds()) {
        for weight_type in WeightType::ALL {
            let matrix = seed.matrix(weight_type);
            let panel = matrix.packed(0xa5);
            let mut values = vec![f32::NAN; matrix.cols];
            for row in 0..LANES {
                read_row(matrix.format(), &panel, matrix.cols, row, &mut values);
                if row < matrix.rows {
                    prop_assert_eq!(bits(&values), bits(&matrix.row(row)), "{:?}, row {}", weight_type, row);
                } else {
                    prop_assert!(values.iter().all(|value| *value == 0.0), "{:?}, row {}", weight_type, row);
                }
            }
        }
    }

    #[test]
    fn every_byte_is_written(seed in seeds()) {
        for weight_type in WeightType::ALL {
            let matrix = seed.matrix(weight_type);
            prop_assert!(matrix.packed(0) == matrix.packed(0xff), "{:?}", weight_type);
        }
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_found(seed in seeds(), two in any::<bool>(), nan in any::<bool>()) {
        for weight_type in WeightType::ALL {
            let mut matrix = seed.matrix(weight_type);
            let places = floats(weight_type);
            if places.is_empty() {
                continue;
            }
            let row_blocks = matrix.cols / weight_type.block_len();
            let mut seed = seed;
            let mut first = usize::MAX;
            for _ in 0..=usize::from(two) {
                let block = seed.below(matrix.rows * row_blocks);
                let float = places[seed.below(places.len())];
                let block_bytes = matrix.block(block);
                let block_bytes = &mut matrix.bytes[block_bytes];
                if weight_type == WeightType::Mxfp4 {
                    // The largest codes, which this exponent makes infinite.
                    block_bytes.fill(0x77);
                }
                float.put(float.infinity() | u32::from(nan), block_bytes);
                first = first.min(block);
            }
            let found = NotFinite { row: first / row_blocks, column: first % row_blocks * weight_type.block_len() };
            let mut panel = vec![0; panel_bytes(matrix.format(), matrix.cols)];
            prop_assert_eq!(pack_panel(weight_type, &matrix.bytes, matrix.cols, &mut panel), Some(found));
            let values = matrix.row(found.row);
            prop_assert!(!values[found.column].is_finite(), "{:?}", weight_type);
        }
    }
}

#[test]
fn blocks_have_the_size_of_the_files() {
    for weight_type in WeightType::ALL {
        let dtype = dtype(weight_type);
        assert_eq!((weight_type.block_len(), weight_type.block_size()), (dtype.block_len(), dtype.block_size()));
    }
}

/// A panel of 16 rows whose byte `at` of row `row` is `byte(row, at)`.
fn packed(weight_type: WeightType, cols: usize, byte: impl Fn(usize, usize) -> u8) -> Vec<u8> {
    let len = weight_type.row_bytes(cols);
    let rows: Vec<u8> = (0..LANES * len).map(|i| byte(i / len, i % len)).collect();
    let mut panel = vec![0xff; panel_bytes(PanelFormat::of(weight_type), cols)];
    assert_eq!(pack_panel(weight_type, &rows, cols, &mut panel), None);
    panel
}

#[test]
fn floats_have_the_documented_layout() {
    let byte = |row: usize, at: usize| (16 * (at % 8) + row) as u8 & 0x3f;
    let (f32s, f16s) = (packed(WeightType::F32, 40, byte), packed(WeightType::F16, 40, byte));
    let pairs = packed(WeightType::Bf16, 40, byte);
    for (row, column) in (0..LANES).flat_map(|row| (0..64).map(move |column| (row, column))) {
        let stored = |size: usize, i: usize| if column < 40 { byte(row, size * column + i) } else { 0 };
        for i in 0..2 {
            assert_eq!(f16s[column * 32 + 2 * row + i], stored(2, i));
            assert_eq!(pairs[column / 2 * 64 + 4 * row + 2 * (column % 2) + i], stored(2, i));
        }
        for i in 0..4 {
            assert_eq!(f32s[column * 64 + 4 * row + i], stored(4, i));
        }
    }
}

#[test]
fn bytes_of_q8_0_have_the_documented_layout() {
    let byte = |row: usize, at: usize| (3 * at + 7 * row) as u8 & 0x3f;
    let panel = packed(WeightType::Q8_0, 288, byte);
    let (chunk, codes) = (256 + 8 * 512, 64);
    for row in 0..LANES {
        for at in 0..2 {
            assert_eq!(panel[5 * 32 + 2 * row + at], byte(row, 5 * 34 + at));
            assert_eq!(panel[chunk + 2 * row + at], byte(row, 8 * 34 + at));
        }
        for column in 0..32 {
            let at = 64 * (column / 4) + 4 * row + column % 4;
            assert_eq!(panel[256 + 5 * 512 + at], byte(row, 5 * 34 + 2 + column) ^ 0x80);
            assert_eq!(panel[chunk + codes + at], byte(row, 8 * 34 + 2 + column) ^ 0x80);
        }
    }
    assert!(panel[chunk + 32..chunk + 64].iter().all(|padding| *padding == 0));
}

#[test]
fn scales_of_q2_k_have_the_documented_layout() {
    let byte = |row: usize, at: usize| (5 * at + 11 * row) as u8 & 0x7b;
    let panel = packed(WeightType::Q2K, 512, byte);
    let second = format_of(WeightType::Q2K).scale_bytes(8) + 8 * 256;
    for row in 0..LANES {
        for at in 0..2 {
            assert_eq!(panel[second + 2 * row + at], byte(row, 84 + 80 + at));
            assert_eq!(panel[second + 32 + 2 * row + at], byte(row, 84 + 82 + at));
        }
        for group in 0..16 {
            assert_eq!(panel[second + 64 + 16 * group + row], byte(row, 84 + group) & 15);
            assert_eq!(panel[second + 320 + 16 * group + row], byte(row, 84 + group) >> 4);
        }
    }
}

#[test]
fn exponents_and_codes_of_mxfp4_have_the_documented_layout() {
    let byte = |row: usize, at: usize| (3 * at + 7 * row) as u8 & 0x7f;
    let panel = packed(WeightType::Mxfp4, 288, byte);
    // A whole chunk of eight blocks, then a chunk of one.
    for (block, scales, codes) in [(5, 5 * 16, 128 + 5 * 256), (8, 128 + 8 * 256, 128 + 8 * 256 + 64)] {
        for row in 0..LANES {
            assert_eq!(panel[scales + row], byte(row, 17 * block));
            for column in 0..16 {
                let stored = panel[codes + 64 * (column / 4) + 4 * row + column % 4];
                assert_eq!(stored, byte(row, 17 * block + 1 + column));
            }
        }
    }
}

#[test]
fn mxfp4_is_packed_unless_a_value_exceeds_f32() {
    for exponent in 0..=255 {
        for code in 0..16 {
            let mut block = vec![0; 17];
            (block[0], block[9]) = (exponent, code << 4);
            let mut panel = vec![0; panel_bytes(PanelFormat::of(WeightType::Mxfp4), 32)];
            let found = pack_panel(WeightType::Mxfp4, &block, 32, &mut panel);
            let mut values = [0.0; 32];
            braidinfer_model::quantization::dequantize(dtype(WeightType::Mxfp4), &block, &mut values);
            let finite = values.iter().all(|value| value.is_finite());
            assert_eq!(found, (!finite).then_some(NotFinite { row: 0, column: 0 }), "{exponent}, code {code}");
            if finite {
                let mut row = [f32::NAN; 32];
                read_row(PanelFormat::of(WeightType::Mxfp4), &panel, 32, 0, &mut row);
                assert_eq!(bits(&row), bits(&values), "{exponent}, code {code}");
            }
        }
    }
}

#[test]
fn codes_of_q5_1_have_the_documented_layout() {
    // The blocks of row r have fifth bits in columns r and r + 16, and low halves r and 15 - r.
    let byte = |row: usize, at: usize| match at {
        0..4 => 0,
        4..8 => ((0x1_0001_u32 << row) >> (8 * (at - 4))) as u8,
        _ => (row | (15 - row) << 4) as u8,
    };
    let panel = packed(WeightType::Q5_1, 32, byte);
    for row in 0..LANES {
        for column in 0..16 {
            assert_eq!(panel[64 + 64 * (column / 4) + 4 * row + column % 4], byte(row, 8));
        }
        let (word, place) = (row / 4, 64 + 256 + 4 * row + row % 4);
        // Of column r, and of column r + 16 two words further in the same vector.
        assert_eq!(panel[place + 64 * (word % 2)], 1 << (2 * (word / 2)) | 1 << (2 * (word / 2 + 2)));
        assert_eq!(panel[place + 64 * (1 - word % 2)], 0);
    }
}

fn format_of(weight_type: WeightType) -> IntFormat {
    match PanelFormat::of(weight_type) {
        PanelFormat::Int(format) => format,
        other => panic!("{other:?}"),
    }
}
