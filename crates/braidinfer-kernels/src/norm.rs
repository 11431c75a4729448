//! Norms of rows and heads.
//!
//! Sums run over chunks of sixteen values in four accumulators, chunk `i` in accumulator `i % 4`. The accumulators are
//! then added in pairs, and their lanes summed: the order depends only on the width.

use crate::elementwise::padded;
use crate::isa::dispatched;
use crate::simd::{LANES, Simd};

/// The kind of norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `w x / sqrt(mean(x²) + eps)`.
    Rms,
    /// `w (x - mean(x)) / sqrt(var(x) + eps) + b` with the biased variance.
    Layer,
}

/// The parameters for normalising one row: `(x - mean) * inverse`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Statistics {
    /// The mean; 0 for RMS norms.
    pub mean: f32,
    /// `1 / sqrt(mean square deviation + eps)`; for RMS norms, the deviation from 0.
    pub inverse: f32,
}

/// One of `rows` rows of `width` values, in panels of sixteen: value `i` is `data[((i / 16) * rows + row) * 16 + i %
/// 16]`. A contiguous row, padded to a multiple of 16, is row 0 of 1. The contents of the padding do not matter.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// `[panels][rows][16]`.
    pub data: &'a [f32],
    /// Number of rows in every panel.
    pub rows: usize,
    /// Index of this row.
    pub row: usize,
    /// Number of values in the row, without padding.
    pub width: usize,
}

impl<'a> Row<'a> {
    /// Values `16 i` to `16 i + 15`, including padding.
    #[inline(always)]
    pub fn chunk(&self, i: usize) -> &'a [f32; LANES] {
        &self.data.as_chunks::<LANES>().0[i * self.rows + self.row]
    }
}

dispatched! {
    /// Normalises one head in place. The head may have any width; `weight` and `bias` must be at least as long.
    pub fn normalize_head(kind: NormKind, x: &mut [f32], weight: &[f32], bias: Option<&[f32]>, eps: f32) =
        normalize_slice;
}
dispatched! {
    /// The statistics of a row, to be passed to [`apply`] for the row or parts of it.
    pub fn statistics(kind: NormKind, x: Row<'_>, eps: f32) -> Statistics = statistics_of;
}
dispatched! {
    /// The sum of the squares of a slice of any width.
    pub fn sum_of_squares(x: &[f32]) -> f32 = squares_of_slice;
}
dispatched! {
    /// Normalises a slice of a row in place, given the statistics of the row. `weight` and `bias` begin at the same
    /// column as the slice and are at least as long.
    pub fn apply(x: &mut [f32], statistics: Statistics, weight: &[f32], bias: Option<&[f32]>) = apply_to_slice;
}

/// A source of values for statistics.
trait Chunks {
    fn width(&self) -> usize;
    /// Values `16 i` to `16 i + 15`; unspecified values beyond the width.
    fn load<S: Simd>(&self, simd: S, i: usize) -> S::F32;
}

impl Chunks for Row<'_> {
    #[inline(always)]
    fn width(&self) -> usize {
        self.width
    }
    #[inline(always)]
    fn load<S: Simd>(&self, simd: S, i: usize) -> S::F32 {
        simd.load(self.chunk(i))
    }
}

impl Chunks for [f32] {
    #[inline(always)]
    fn width(&self) -> usize {
        self.len()
    }
    #[inline(always)]
    fn load<S: Simd>(&self, simd: S, i: usize) -> S::F32 {
        let (chunks, tail) = self.as_chunks::<LANES>();
        match chunks.get(i) {
            Some(chunk) => simd.load(chunk),
            None => simd.load(&padded(tail)),
        }
    }
}

/// The sum over chunk `i` of `term!(i)`; the term must exclude values beyond the width.
macro_rules! sum_of_chunks {
    ($simd:ident, $width:expr, $i:ident => $term:expr) => {{
        let chunks = $width.div_ceil(LANES);
        let mut sums = [$simd.splat(0.0); 4];
        for group in 0..chunks / 4 {
            for lane in 0..4 {
                let $i = 4 * group + lane;
                sums[lane] = $simd.add(sums[lane], $term);
            }
        }
        for lane in 0..4 {
            let $i = chunks / 4 * 4 + lane;
            if $i < chunks {
                sums[lane] = $simd.add(sums[lane], $term);
            }
        }
        $simd.sum($simd.add($simd.add(sums[0], sums[1]), $simd.add(sums[2], sums[3])))
    }};
}

/// Replaces the values of chunk `i` beyond the width by zeros.
#[inline(always)]
fn within<S: Simd>(simd: S, value: S::F32, i: usize, width: usize) -> S::F32 {
    let left = width - i * LANES;
    if left >= LANES {
        return value;
    }
    let lanes = simd.to_f32(simd.widen_u8(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]));
    simd.select_less(lanes, simd.splat(left as f32), value, simd.splat(0.0))
}

#[inline(always)]
fn statistics_of_chunks<S: Simd>(simd: S, kind: NormKind, x: &(impl Chunks + ?Sized), eps: f32) -> Statistics {
    let width = x.width();
    let mean = match kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => sum_of_chunks!(simd, width, i => within(simd, x.load(simd, i), i, width)) / width as f32,
    };
    let square = sum_of_chunks!(simd, width, i => {
        let deviation = within(simd, simd.sub(x.load(simd, i), simd.splat(mean)), i, width);
        simd.mul(deviation, deviation)
    });
    Statistics { mean, inverse: 1.0 / (square / width as f32 + eps).sqrt() }
}

#[inline(always)]
fn statistics_of<S: Simd>(simd: S, kind: NormKind, x: Row<'_>, eps: f32) -> Statistics {
    statistics_of_chunks(simd, kind, &x, eps)
}

#[inline(always)]
fn squares_of_slice<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let width = x.len();
    sum_of_chunks!(simd, width, i => {
        let value = within(simd, x.load(simd, i), i, width);
        simd.mul(value, value)
    })
}

/// `(x - mean) * inverse * weight + bias`.
#[inline(always)]
fn applied<S: Simd>(simd: S, x: S::F32, statistics: Statistics, weight: S::F32, bias: Option<S::F32>) -> S::F32 {
    let x = simd.mul(simd.sub(x, simd.splat(statistics.mean)), simd.splat(statistics.inverse));
    match bias {
        Some(bias) => simd.fma(x, weight, bias),
        None => simd.mul(x, weight),
    }
}

#[inline(always)]
fn parameters<S: Simd>(simd: S, weight: &[f32], bias: Option<&[f32]>, i: usize) -> (S::F32, Option<S::F32>) {
    let weight = weight.load(simd, i);
    match bias {
        Some(bias) => (weight, Some(bias.load(simd, i))),
        None => (weight, None),
    }
}

#[inline(always)]
fn normalize_slice<S: Simd>(simd: S, kind: NormKind, x: &mut [f32], weight: &[f32], bias: Option<&[f32]>, eps: f32) {
    let statistics = statistics_of_chunks(simd, kind, x, eps);
    apply_to_slice(simd, x, statistics, weight, bias);
}

#[inline(always)]
fn apply_to_slice<S: Simd>(simd: S, x: &mut [f32], statistics: Statistics, weight: &[f32], bias: Option<&[f32]>) {
    assert!(weight.len() >= x.len() && bias.is_none_or(|bias| bias.len() >= x.len()));
    let (chunks, tail) = x.as_chunks_mut::<LANES>();
    let whole = chunks.len();
    for (i, to) in chunks.iter_mut().enumerate() {
        let (weight, bias) = parameters(simd, weight, bias, i);
        simd.store(applied(simd, simd.load(to), statistics, weight, bias), to);
    }
    if !tail.is_empty() {
        let mut to = padded(tail);
        let (weight, bias) = parameters(simd, weight, bias, whole);
        simd.store(applied(simd, simd.load(&to), statistics, weight, bias), &mut to);
        tail.copy_from_slice(&to[..tail.len()]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::isa::Isa;
    use crate::math::tests::hostile;

    const KINDS: [NormKind; 2] = [NormKind::Rms, NormKind::Layer];
    const EPS: f32 = 1e-5;

    /// `[panels][rows][16]` with `x` in its row and `filling` everywhere else.
    fn panels(x: &[f32], rows: usize, row: usize, filling: f32) -> Vec<f32> {
        let mut data = vec![filling; x.len().div_ceil(LANES) * rows * LANES];
        for (i, value) in x.iter().enumerate() {
            data[((i / LANES) * rows + row) * LANES + i % LANES] = *value;
        }
        data
    }

    fn exact(kind: NormKind, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f64> {
        let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let mean = if kind == NormKind::Layer { x.iter().sum::<f64>() / x.len() as f64 } else { 0.0 };
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
        let inverse = 1.0 / (variance + f64::from(EPS)).sqrt();
        let bias = |i: usize| bias.map_or(0.0, |bias| f64::from(bias[i]));
        x.iter().enumerate().map(|(i, x)| f64::from(weight[i]) * (x - mean) * inverse + bias(i)).collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    proptest! {
        #[test]
        fn norms_are_close_to_their_definitions(
            values in prop::collection::vec((-8.0_f32..8.0, -2.0_f32..2.0, -1.0_f32..1.0), 1..200),
            (rows, row) in (1_usize..4).prop_flat_map(|rows| (Just(rows), 0..rows)),
            with_bias: bool,
        ) {
            let x: Vec<f32> = values.iter().map(|value| value.0).collect();
            let weight: Vec<f32> = values.iter().map(|value| value.1).collect();
            let bias: Vec<f32> = values.iter().map(|value| value.2).collect();
            let bias = with_bias.then_some(bias.as_slice());
            for kind in KINDS {
                let data = panels(&x, rows, row, 1e9);
                let view = Row { data: &data, rows, row, width: x.len() };
                let mut head = x.clone();
                normalize_head(Isa::SCALAR, kind, &mut head, &weight, bias, EPS);
                for (found, exact) in head.iter().zip(exact(kind, &x, &weight, bias)) {
                    prop_assert!((f64::from(*found) - exact).abs() < 3e-5, "{:?}: {} not {}", kind, found, exact);
                }

                let statistics = statistics(Isa::SCALAR, kind, view, EPS);
                let (mut first, middle) = (x.clone(), x.len() / 3);
                let second = first.split_off(middle);
                let mut parts = [first, second];
                apply(Isa::SCALAR, &mut parts[0], statistics, &weight, bias);
                apply(Isa::SCALAR, &mut parts[1], statistics, &weight[middle..], bias.map(|bias| &bias[middle..]));
                prop_assert_eq!(bits(&parts.concat()), bits(&head));
            }
        }

        #[test]
        fn sums_of_squares_are_those_of_any_width(x in prop::collection::vec(-10f32..10.0, 0..150)) {
            let exact: f64 = x.iter().map(|value| f64::from(*value).powi(2)).sum();
            let sum = sum_of_squares(Isa::SCALAR, &x);
            prop_assert!((f64::from(sum) - exact).abs() <= 1e-5 * exact, "{sum} {exact}");
            for isa in Isa::available() {
                prop_assert_eq!(sum_of_squares(isa, &x).to_bits(), sum.to_bits(), "{}", isa.name());
            }
        }

        #[test]
        fn every_instruction_set_gives_the_same_bits(
            x in prop::collection::vec(hostile(), 1..200),
            (rows, row) in (1_usize..4).prop_flat_map(|rows| (Just(rows), 0..rows)),
        ) {
            let weight: Vec<f32> = (0..x.len()).map(|i| 1.0 - 0.01 * i as f32).collect();
            let run = |isa, kind, bias: Option<&[f32]>| {
                let data = panels(&x, rows, row, -3.0);
                let view = Row { data: &data, rows, row, width: x.len() };
                let mut out = x.clone();
                apply(isa, &mut out, statistics(isa, kind, view, EPS), &weight, bias);
                let mut head = x.clone();
                normalize_head(isa, kind, &mut head, &weight, bias, EPS);
                // Infinite sums turn some values into NaN, whose bits are not specified.
                let values = out.iter().chain(&head).map(|value| if value.is_nan() { f32::NAN } else { *value });
                bits(&values.collect::<Vec<_>>())
            };
            for kind in KINDS {
                for bias in [None, Some(weight.as_slice())] {
                    for isa in Isa::available() {
                        prop_assert_eq!(run(isa, kind, bias), run(Isa::SCALAR, kind, bias), "{}", isa.name());
                    }
                }
            }
        }
    }
}
