//! What weighted encoders promise, whatever the weights. The sums are computed here once more, in f64.

use braidinfer_model::Dtype;
use braidinfer_model::quantization::{
    Importance, QUANTIZABLE, QuantizeError, dequantize, quantize, quantize_rows, uses_importance,
};
use proptest::prelude::*;

fn weighted_types() -> impl Iterator<Item = Dtype> {
    QUANTIZABLE.iter().copied().filter(|dtype| uses_importance(*dtype))
}

fn importance(columns: &[f32]) -> Importance {
    Importance::new(columns.to_vec()).expect("no number is negative")
}

fn decoded(dtype: Dtype, blocks: &[u8], len: usize) -> Vec<f32> {
    let mut values = vec![f32::NAN; len];
    dequantize(dtype, blocks, &mut values);
    values
}

/// Values with and without weights, as decoders see them.
fn both(dtype: Dtype, values: &[f32], columns: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut plain, mut weighted) = (Vec::new(), Vec::new());
    quantize(dtype, values, &mut plain).expect("the values are in range");
    quantize_rows(dtype, values, &importance(columns), &mut weighted).expect("the values are in range");
    (decoded(dtype, &plain, values.len()), decoded(dtype, &weighted, values.len()))
}

fn mean_square(values: &[f32]) -> f64 {
    values.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>() / values.len() as f64
}

/// The weight of every error of a row, by llama.cpp's rules; 1 in blocks without any.
fn error_weights(dtype: Dtype, row: &[f32], columns: &[f32]) -> Vec<f64> {
    let len = dtype.block_len();
    let blocks = row.chunks(len).zip(columns.chunks(len));
    let weights = blocks.flat_map(|(block, columns)| {
        let sigma = match dtype {
            Dtype::Q2K => mean_square(block),
            Dtype::Q3K | Dtype::Q4K | Dtype::Q5K => 2.0 * mean_square(block),
            _ => mean_square(row),
        };
        let factor = |x: f32| if dtype == Dtype::Q6K { 1.0 } else { (sigma + f64::from(x) * f64::from(x)).sqrt() };
        let weights: Vec<f64> = block.iter().zip(columns).map(|(x, w)| f64::from(*w) * factor(*x)).collect();
        if weights.iter().all(|weight| *weight == 0.0) { vec![1.0; len] } else { weights }
    });
    weights.collect()
}

fn error(weights: &[f64], values: &[f32], decoded: &[f32]) -> f64 {
    let squares = values.iter().zip(decoded).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2));
    weights.iter().zip(squares).map(|(weight, square)| weight * square).sum()
}

/// Fails if a block of a row has a larger weighted error than without weights.
fn check_row(dtype: Dtype, values: &[f32], columns: &[f32]) -> Result<(), TestCaseError> {
    let (plain, weighted) = both(dtype, values, columns);
    let weights = error_weights(dtype, values, columns);
    let len = dtype.block_len();
    for block in (0..values.len()).step_by(len).map(|start| start..start + len) {
        let (values, weights) = (&values[block.clone()], &weights[block.clone()]);
        let (without, with) = (&plain[block.clone()], &weighted[block]);
        let mean = weights.iter().sum::<f64>() / len as f64;
        let largest = values.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
        // Errors are summed in f32, and that of a value is known to some ulps of the value; no weight is below 1e-6 of
        // the mean.
        let rounding = mean * len as f64 * (f64::from(largest) * 2f64.powi(-22)).powi(2);
        let floor = 1.01e-6 * mean * error(&vec![1.0; len], values, without);
        let bound = error(weights, values, without) * 1.001 + floor + rounding;
        let found = error(weights, values, with);
        prop_assert!(found <= bound, "{}: {} with weights, {} without", dtype, found, bound);
    }
    Ok(())
}

fn values(len: usize) -> impl Strategy<Value = Vec<f32>> {
    let value = (-1.0f32..1.0, -3i32..3).prop_map(|(fraction, exponent)| fraction * 4f32.powi(exponent));
    (prop::collection::vec(value, len), -12i32..4).prop_map(|(values, exponent)| {
        let scale = 10f32.powi(exponent);
        values.into_iter().map(|value| value * scale).collect()
    })
}

/// Numbers of one magnitude, of all, with zeros among them, one alone, none.
fn columns(len: usize) -> impl Strategy<Value = Vec<f32>> {
    let near = prop::collection::vec(0.1f32..10.0, len);
    let apart = prop::collection::vec((-44i32..38).prop_map(|exponent| 10f32.powi(exponent)), len);
    let sparse = prop::collection::vec(prop_oneof![Just(0.0f32), 0.0f32..1.0], len);
    let alone = (0..len, prop_oneof![Just(f32::MAX), Just(1.0f32), Just(1e-45f32)]).prop_map(move |(at, value)| {
        let mut columns = vec![0.0; len];
        columns[at] = value;
        columns
    });
    prop_oneof![near, apart, sparse, alone, Just(vec![0.0; len]), Just(vec![f32::MAX; len])]
}

proptest! {
    #[test]
    fn weights_never_make_the_weighted_error_larger(values in values(512), columns in columns(512)) {
        for dtype in weighted_types() {
            check_row(dtype, &values, &columns)?;
        }
    }

    /// Any finite values and weights are either written, and stay near, or refused with the place.
    #[test]
    fn values_are_kept_or_refused(bits in prop::collection::vec(any::<u32>(), 256), exponent in 0u32..255, columns in columns(256)) {
        let values: Vec<f32> = bits.iter().map(|bits| f32::from_bits(bits & 0x807f_ffff | exponent << 23)).collect();
        for dtype in weighted_types() {
            let (mut blocks, mut plain) = (Vec::new(), Vec::new());
            let written = quantize_rows(dtype, &values, &importance(&columns), &mut blocks);
            prop_assert_eq!(&written, &quantize(dtype, &values, &mut plain));
            if written.is_ok() {
                let decoded = decoded(dtype, &blocks, values.len());
                prop_assert!(decoded.iter().all(|value| value.is_finite()), "{}: {:?}", dtype, decoded);
            }
        }
    }

    /// Only ratios count.
    #[test]
    fn multiples_of_weights_are_the_same_weights(values in values(256), columns in prop::collection::vec(0.001f32..1.0, 256)) {
        let doubled: Vec<f32> = columns.iter().map(|column| column * 1024.0).collect();
        for dtype in weighted_types() {
            let (mut once, mut twice) = (Vec::new(), Vec::new());
            quantize_rows(dtype, &values, &importance(&columns), &mut once).expect("the values are in range");
            quantize_rows(dtype, &values, &importance(&doubled), &mut twice).expect("the values are in range");
            prop_assert_eq!(once, twice);
        }
    }
}

/// Values from a simple generator: sums of uniform numbers.
fn gaussian(len: usize) -> Vec<f32> {
    let mut state = 20_261_128u32;
    let mut uniform = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 16_777_216.0 - 0.5
    };
    (0..len).map(|_| (0..12).map(|_| uniform()).sum()).collect()
}

/// Where a few columns matter much, their errors get small.
#[test]
fn important_columns_err_less() {
    let rows = gaussian(64 * 512);
    let columns: Vec<f32> = (0..512).map(|i| if i % 7 == 0 { 100.0 } else { 1.0 }).collect();
    for dtype in weighted_types() {
        let (plain, weighted) = both(dtype, &rows, &columns);
        let weights: Vec<f64> = rows.chunks(512).flat_map(|row| error_weights(dtype, row, &columns)).collect();
        let part = error(&weights, &rows, &weighted) / error(&weights, &rows, &plain);
        assert!(part < 0.7, "{dtype}: {part}");
    }
}

#[test]
fn other_types_are_written_without_weights() {
    let values = gaussian(512);
    let columns: Vec<f32> = (0..256).map(|i| (1 + i % 9) as f32).collect();
    for dtype in QUANTIZABLE.iter().copied().filter(|dtype| !uses_importance(*dtype)) {
        let (mut plain, mut weighted) = (Vec::new(), Vec::new());
        quantize(dtype, &values, &mut plain).expect("the values are in range");
        quantize_rows(dtype, &values, &importance(&columns), &mut weighted).expect("the values are in range");
        assert_eq!(plain, weighted, "{dtype}");
    }
}

#[test]
fn numbers_that_are_no_importance_are_refused() {
    for wrong in [f32::NAN, f32::INFINITY, -f32::INFINITY, -1.0, -1e-45] {
        assert_eq!(Importance::new(vec![0.0, 1.0, wrong, wrong]), Err(2), "{wrong}");
    }
    assert!(Importance::new(vec![0.0, -0.0, f32::MAX]).is_ok());
}

#[test]
fn errors_say_where_in_all_rows() {
    let mut values = vec![0.5f32; 3 * 512];
    values[1200] = f32::NAN;
    for dtype in weighted_types() {
        let error = quantize_rows(dtype, &values, &importance(&[1.0; 512]), &mut Vec::new()).expect_err("NaN");
        let QuantizeError::OutOfRange { index, .. } = error else { panic!("{error}") };
        assert_eq!(index, 1200, "{dtype}");
        let error = quantize_rows(dtype, &values[..96], &importance(&[1.0; 48]), &mut Vec::new());
        assert_eq!(error, Err(QuantizeError::PartialBlock { dtype, len: 48 }));
    }
}
