use half::bf16;
use proptest::prelude::*;

use super::*;
use crate::activations::encode_row;
use crate::buffer::Buffer;
use crate::format::{BLOCK, WeightType};
use crate::prepare::read_row;
use crate::samples::{Matrix, Seed, bits, cases, seeds};

/// Largest error of a sum, relative to the largest weight times the sum of the activations' magnitudes.
const TOLERANCE: f64 = 1e-5;

fn can_multiply(format: PanelFormat, level: NumericLevel) -> bool {
    match format {
        PanelFormat::Int(_) => level != NumericLevel::Bf16,
        PanelFormat::Bf16 => matches!(level, NumericLevel::F32 | NumericLevel::Bf16),
        PanelFormat::F16 | PanelFormat::F32 => level == NumericLevel::F32,
    }
}

/// Activations `[rows][columns]` of both signs and very different magnitudes.
fn activations(rows: usize, columns: usize, seed: u64) -> Vec<f32> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..rows * columns).map(|index| next() * if index % 37 == 0 { 50.0 } else { 1.0 }).collect()
}

fn encode(isa: Isa, level: NumericLevel, values: &[f32], rows: usize, columns: usize) -> Vec<u32> {
    let mut words = vec![0; level.words(rows, columns)];
    let row_words = level.words(1, columns);
    for tile in isa.tiles(level, rows) {
        let words = &mut words[tile.start * row_words..tile.end * row_words];
        for row in tile.clone() {
            encode_row(isa, level, &values[row * columns..][..columns], row - tile.start, tile.len(), words);
        }
    }
    words
}

/// `[rows][panels][16]`: the product of some panels with some rows.
fn product(
    isa: Isa,
    format: PanelFormat,
    level: NumericLevel,
    data: &[u8],
    values: &[f32],
    columns: usize,
) -> Vec<f32> {
    let (rows, panels) = (values.len() / columns, data.len() / panel_bytes(format, columns));
    let words = encode(isa, level, values, rows, columns);
    let x = Activations { level, rows, columns, words: &words };
    let mut out = Buffer::new();
    out.resize(panels * rows * LANES);
    out.fill(f32::NAN);
    matmul(isa, Panels { format, columns, data, ahead: &[] }, &x, &mut out);
    let line = |row: usize, panel: usize| &out[(panel * rows + row) * LANES..][..LANES];
    (0..rows).flat_map(|row| (0..panels).flat_map(move |panel| line(row, panel).to_vec())).collect()
}

/// A row as rounded at a level.
fn rounded(level: NumericLevel, row: &[f32]) -> Vec<f64> {
    let round = |block: &[f32]| -> Vec<f64> {
        let largest = block.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        match level {
            NumericLevel::F32 => block.iter().map(|x| f64::from(*x)).collect(),
            NumericLevel::Bf16 => block.iter().map(|x| bf16::from_f32(*x).to_f64()).collect(),
            NumericLevel::Int8 => to_integers(block, largest, 127.0),
            NumericLevel::Int16 => to_integers(block, largest, 32_512.0),
        }
    };
    row.chunks(BLOCK).flat_map(round).collect()
}

/// Rounds to integers up to `most`, and scales back.
fn to_integers(block: &[f32], largest: f32, most: f32) -> Vec<f64> {
    if largest == 0.0 {
        return vec![0.0; block.len()];
    }
    let scale = f64::from(largest / most);
    block.iter().map(|x| f64::from((x * (most / largest)).round_ties_even()) * scale).collect()
}

/// A matrix without denormals, because products of denormals differ between instruction sets.
fn sample(seed: Seed, weight_type: WeightType) -> Matrix {
    let mut matrix = seed.matrix(weight_type);
    if weight_type == WeightType::Bf16 {
        for value in matrix.bytes.as_chunks_mut::<2>().0 {
            let bits = u16::from_le_bytes(*value);
            let exponent = 100 + (bits >> 7 & 0xff) % 56;
            *value = (bits & 0x807f | exponent << 7).to_le_bytes();
        }
    }
    matrix
}

fn check_definition(format: PanelFormat, level: NumericLevel, panel: &[u8], values: &[f32], columns: usize) {
    let found = product(Isa::SCALAR, format, level, panel, values, columns);
    for lane in 0..LANES {
        let mut weights = vec![0.0; columns];
        read_row(format, panel, columns, lane, &mut weights);
        let largest = weights.iter().fold(0.0_f64, |largest, weight| largest.max(f64::from(weight.abs())));
        // Other magnitudes would overflow or underflow f32 sums.
        if !(1e-30..1e30).contains(&largest) {
            continue;
        }
        for (row, x) in values.chunks_exact(columns).enumerate() {
            let x = rounded(level, x);
            let expected: f64 = weights.iter().zip(&x).map(|(weight, x)| f64::from(*weight) * x).sum();
            let magnitude = largest * x.iter().map(|x| x.abs()).sum::<f64>();
            let error = (f64::from(found[row * LANES + lane]) - expected).abs();
            assert!(error <= TOLERANCE * magnitude, "{format:?} {}: {error:e} of {magnitude:e}", level.name());
        }
    }
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn products_are_close_to_their_definition(seed in seeds(), rows in 1..4_usize, state in any::<u64>()) {
        for weight_type in WeightType::ALL {
            let matrix = sample(seed, weight_type);
            let values = activations(rows, matrix.cols, state);
            for level in NumericLevel::ALL.into_iter().filter(|level| can_multiply(matrix.format(), *level)) {
                check_definition(matrix.format(), level, &matrix.packed(0), &values, matrix.cols);
            }
        }
    }

    #[test]
    fn results_are_independent_of_instruction_set_and_other_rows(
        seed in seeds(),
        rows in prop_oneof![1..20_usize, 60..84_usize],
        panels in 1..8_usize,
        state in any::<u64>(),
    ) {
        for weight_type in WeightType::ALL {
            let matrix = sample(seed, weight_type);
            let (format, columns) = (matrix.format(), matrix.cols);
            let data = matrix.packed(0).repeat(panels);
            let values = activations(rows, columns, state);
            for level in NumericLevel::ALL.into_iter().filter(|level| can_multiply(format, *level)) {
                let alone = values.chunks_exact(columns);
                let expected: Vec<f32> =
                    alone.flat_map(|row| product(Isa::SCALAR, format, level, &data, row, columns)).collect();
                for isa in Isa::available() {
                    if level == NumericLevel::Bf16 && isa.has_tile_unit() {
                        continue;
                    }
                    let found = product(isa, format, level, &data, &values, columns);
                    assert!(bits(&found) == bits(&expected), "{weight_type:?} {} on {}", level.name(), isa.name());
                }
            }
        }
    }
}

/// The product of a panel of bf16 with a row, in the order of [`crate::simd::tile_unit::BfloatTiles`].
fn tile_order(panel: &[u8], row: &[f32]) -> Vec<f32> {
    let columns = row.len();
    let lane = |lane| {
        let mut weights = vec![0.0; columns];
        read_row(PanelFormat::Bf16, panel, columns, lane, &mut weights);
        let mut sum = 0.0;
        for (weights, x) in weights.chunks(BLOCK).zip(row.chunks(BLOCK)) {
            let mut sums = [0.0_f32; 2];
            for (column, (weight, x)) in weights.iter().zip(x).enumerate() {
                sums[column % 2] = weight.mul_add(bf16::from_f32(*x).to_f32(), sums[column % 2]);
            }
            sum += sums[0] + sums[1];
        }
        sum
    };
    (0..LANES).map(lane).collect()
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn matrix_units_add_products_of_bf16_in_one_order(
        seed in seeds(),
        rows in prop_oneof![1..20_usize, 60..84_usize],
        panels in 1..8_usize,
        state in any::<u64>(),
    ) {
        let matrix = sample(seed, WeightType::Bf16);
        let values = activations(rows, matrix.cols, state);
        let panel = matrix.packed(0);
        let expected: Vec<f32> =
            values.chunks_exact(matrix.cols).flat_map(|row| tile_order(&panel, row).repeat(panels)).collect();
        for isa in Isa::available().into_iter().filter(|isa| isa.has_tile_unit()) {
            let data = panel.repeat(panels);
            let found = product(isa, PanelFormat::Bf16, NumericLevel::Bf16, &data, &values, matrix.cols);
            assert!(bits(&found) == bits(&expected), "{}", isa.name());
        }
    }
}

/// A matrix unit multiplies many rows in parts.
#[test]
fn rows_of_several_parts_are_those_of_rows_alone() {
    let (rows, columns, panels) = (150, 512, 3);
    let values = activations(rows, columns, 5);
    for (weight_type, level) in [
        (WeightType::Q8_0, NumericLevel::Int8),
        (WeightType::Q4K, NumericLevel::Int8),
        (WeightType::Q6K, NumericLevel::Int16),
        (WeightType::Bf16, NumericLevel::Bf16),
    ] {
        let format = PanelFormat::of(weight_type);
        let bytes: Vec<u8> = (0..LANES * weight_type.row_bytes(columns)).map(|at| (at * 7 % 61) as u8).collect();
        let mut panel = vec![0; panel_bytes(format, columns)];
        assert_eq!(crate::pack_panel(weight_type, &bytes, columns, &mut panel), None);
        let data = panel.repeat(panels);
        for isa in Isa::available() {
            let alone = values.chunks_exact(columns);
            let expected: Vec<f32> = alone.flat_map(|row| product(isa, format, level, &data, row, columns)).collect();
            let found = product(isa, format, level, &data, &values, columns);
            assert!(bits(&found) == bits(&expected), "{weight_type:?} {} on {}", level.name(), isa.name());
        }
    }
}

#[test]
fn non_finite_activations_are_not_lost() {
    let columns = 64;
    for weight_type in [WeightType::Q8_0, WeightType::Q4_1, WeightType::Bf16, WeightType::F32] {
        let format = PanelFormat::of(weight_type);
        let rows = vec![0x11; LANES * weight_type.row_bytes(columns)];
        let mut panel = vec![0; panel_bytes(format, columns)];
        assert_eq!(crate::pack_panel(weight_type, &rows, columns, &mut panel), None);
        for (bad, level) in
            [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().flat_map(|bad| NumericLevel::ALL.map(|l| (bad, l)))
        {
            if !can_multiply(format, level) {
                continue;
            }
            let mut values = vec![1.0; columns];
            values[40] = bad;
            for isa in Isa::available() {
                let found = product(isa, format, level, &panel, &values, columns);
                assert!(found.iter().all(|y| !y.is_finite()), "{weight_type:?} {} on {}", level.name(), isa.name());
            }
        }
    }
}

#[test]
fn tiny_and_huge_activations_are_encoded_equally_on_all_instruction_sets() {
    let sizes = [0.0, 1e-45, 1e-38, 3e-37, 4e-37, 1e-30, 1.0, 1e38];
    for isa in Isa::available() {
        for size in sizes {
            let values: Vec<f32> = (0..96).map(|index| size * ((index as f32 - 40.0) / 50.0)).collect();
            for level in NumericLevel::ALL {
                let found = encode(isa, level, &values, 1, 96);
                assert_eq!(
                    found,
                    encode(Isa::SCALAR, level, &values, 1, 96),
                    "{size:e} {} {}",
                    level.name(),
                    isa.name()
                );
            }
        }
    }
}
