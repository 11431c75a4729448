use proptest::prelude::*;

use super::*;
use crate::format::{WeightType, chunks};
use crate::isa::{Isa, dispatched};
use crate::samples::{bits, cases, seeds};

/// Scales, and codes expanded to bytes.
struct Prepared {
    scales: ChunkScales,
    codes: ChunkCodes,
}

impl Prepared {
    const ZERO: Self = Self { scales: ChunkScales::ZERO, codes: ChunkCodes::ZERO };
}

dispatched! {
    fn prepare_on(format: IntFormat, chunk: &[u8], blocks32: usize, out: &mut Prepared) = prepare;
}

#[inline(always)]
fn prepare<S: Simd>(simd: S, format: IntFormat, chunk: &[u8], blocks32: usize, out: &mut Prepared) {
    prepare_scales(simd, format, chunk, blocks32, &mut out.scales);
    prepare_codes(simd, format, chunk, blocks32, &mut out.codes);
}

/// Calls `take` for every chunk of an integer panel, with its number of blocks and its first column.
fn each_chunk(format: IntFormat, panel: &[u8], cols: usize, mut take: impl FnMut(&[u8], usize, usize)) {
    let panel_format = PanelFormat::Int(format);
    for chunk in 0..chunks(cols) {
        let blocks32 = chunk_blocks(cols, chunk);
        take(&panel[chunk_range(panel_format, cols, chunk)], blocks32, chunk * CHUNK_BLOCKS * BLOCK);
    }
}

/// The value at a row and column of a chunk.
fn value(format: IntFormat, prepared: &Prepared, codes: &[[u8; VECTOR]], row: usize, column: usize) -> f32 {
    let group = column * format.groups(CHUNK_BLOCKS) / (CHUNK_BLOCKS * BLOCK);
    let code = codes[column / 4][4 * row + column % 4];
    let product = prepared.scales.scales[group][row] * (f32::from(code) - f32::from(format.zero));
    if format.has_mins() { product + prepared.scales.mins[group][row] } else { product }
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn every_instruction_set_prepares_the_same(seed in seeds()) {
        for weight_type in WeightType::ALL {
            let matrix = seed.matrix(weight_type);
            let PanelFormat::Int(format) = matrix.format() else { continue };
            each_chunk(format, &matrix.packed(0), matrix.cols, |chunk, blocks32, _| {
                let mut expected = Prepared::ZERO;
                prepare_on(Isa::SCALAR, format, chunk, blocks32, &mut expected);
                for isa in Isa::available() {
                    let mut found = Prepared::ZERO;
                    prepare_on(isa, format, chunk, blocks32, &mut found);
                    let name = isa.name();
                    assert!(found.codes.0 == expected.codes.0, "{weight_type:?} on {name}");
                    assert_eq!(bits(found.scales.scales.as_flattened()), bits(expected.scales.scales.as_flattened()), "on {name}");
                    assert_eq!(bits(found.scales.mins.as_flattened()), bits(expected.scales.mins.as_flattened()), "on {name}");
                }
            });
        }
    }

    #[test]
    fn prepared_chunks_have_the_values_of_the_panel(seed in seeds()) {
        for weight_type in WeightType::ALL {
            let matrix = seed.matrix(weight_type);
            let PanelFormat::Int(format) = matrix.format() else { continue };
            let panel = matrix.packed(0);
            each_chunk(format, &panel, matrix.cols, |chunk, blocks32, first| {
                let mut prepared = Prepared::ZERO;
                prepare_on(Isa::available()[0], format, chunk, blocks32, &mut prepared);
                let codes = &prepared.codes.0;
                let mut row_values = vec![f32::NAN; matrix.cols];
                for row in 0..LANES {
                    read_row(matrix.format(), &panel, matrix.cols, row, &mut row_values);
                    let columns = 0..blocks32 * BLOCK;
                    let values: Vec<f32> =
                        columns.map(|column| value(format, &prepared, codes, row, column)).collect();
                    let expected = &row_values[first..][..values.len()];
                    assert_eq!(bits(&values), bits(expected), "{weight_type:?}, row {row}");
                }
            });
        }
    }
}

#[test]
#[should_panic(expected = "bytes of a panel")]
fn panels_of_the_wrong_size_panic() {
    read_row(PanelFormat::F32, &[0; 64], 32, 0, &mut [0.0; 32]);
}
