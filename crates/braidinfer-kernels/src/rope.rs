//! Rotary position embedding of one head.

use crate::elementwise::padded;
use crate::isa::dispatched;
use crate::simd::{LANES, Simd};

/// Which dimensions are rotated together, for `pairs` angles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// `j` and `j + pairs`.
    HalfSplit,
    /// `2j` and `2j + 1`.
    Interleaved,
}

dispatched! {
    /// Rotates the first `2 * cos.len()` values of a head: each pair (a, b) becomes `(a cos - b sin, b cos + a sin)`,
    /// where the second product is rounded and the sum is fused with the first. The rest of the head is unchanged.
    /// Cosines and sines are `[pairs]`, for one position.
    pub fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32], pairing: Pairing) = rotate_lanes;
}

#[inline(always)]
fn rotate_lanes<S: Simd>(simd: S, head: &mut [f32], cos: &[f32], sin: &[f32], pairing: Pairing) {
    assert_eq!(cos.len(), sin.len());
    let turning = &mut head[..2 * cos.len()];
    match pairing {
        Pairing::HalfSplit => half_split(simd, turning, cos, sin),
        Pairing::Interleaved => interleaved(simd, turning, cos, sin),
    }
}

#[inline(always)]
fn half_split<S: Simd>(simd: S, head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (a, b) = head.split_at_mut(cos.len());
    let (a, a_tail) = a.as_chunks_mut::<LANES>();
    let (b, b_tail) = b.as_chunks_mut::<LANES>();
    let (cos, cos_tail) = cos.as_chunks::<LANES>();
    let (sin, sin_tail) = sin.as_chunks::<LANES>();
    for i in 0..a.len() {
        turn(simd, &mut a[i], &mut b[i], &cos[i], &sin[i]);
    }
    if !a_tail.is_empty() {
        let (mut first, mut second) = (padded(a_tail), padded(b_tail));
        turn(simd, &mut first, &mut second, &padded(cos_tail), &padded(sin_tail));
        a_tail.copy_from_slice(&first[..a_tail.len()]);
        b_tail.copy_from_slice(&second[..b_tail.len()]);
    }
}

/// Deinterleaves sixteen pairs at a time, rotates them and interleaves them again.
#[inline(always)]
fn interleaved<S: Simd>(simd: S, head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (pairs, _) = head.as_chunks_mut::<2>();
    for (i, pairs) in pairs.chunks_mut(LANES).enumerate() {
        let (mut a, mut b) = ([0.0; LANES], [0.0; LANES]);
        for (lane, pair) in pairs.iter().enumerate() {
            (a[lane], b[lane]) = (pair[0], pair[1]);
        }
        let angles = i * LANES..i * LANES + pairs.len();
        turn(simd, &mut a, &mut b, &padded(&cos[angles.clone()]), &padded(&sin[angles]));
        for (lane, pair) in pairs.iter_mut().enumerate() {
            *pair = [a[lane], b[lane]];
        }
    }
}

#[inline(always)]
fn turn<S: Simd>(simd: S, a: &mut [f32; LANES], b: &mut [f32; LANES], cos: &[f32; LANES], sin: &[f32; LANES]) {
    let (x, y) = (simd.load(a), simd.load(b));
    let (cos, sin) = (simd.load(cos), simd.load(sin));
    let minus_sin = simd.sub(simd.splat(0.0), sin);
    simd.store(simd.fma(x, cos, simd.mul(y, minus_sin)), a);
    simd.store(simd.fma(y, cos, simd.mul(x, sin)), b);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::isa::Isa;
    use crate::math::tests::hostile;

    const PAIRINGS: [Pairing; 2] = [Pairing::HalfSplit, Pairing::Interleaved];

    fn pair(pairing: Pairing, pairs: usize, j: usize) -> (usize, usize) {
        match pairing {
            Pairing::HalfSplit => (j, j + pairs),
            Pairing::Interleaved => (2 * j, 2 * j + 1),
        }
    }

    proptest! {
        #[test]
        fn pairs_are_rotated_and_the_rest_is_unchanged(
            angles in prop::collection::vec(-10.0_f32..10.0, 1..40),
            rest in 0_usize..20,
            values in prop::collection::vec(-5.0_f32..5.0, 100),
        ) {
            let cos: Vec<f32> = angles.iter().map(|angle| angle.cos()).collect();
            let sin: Vec<f32> = angles.iter().map(|angle| angle.sin()).collect();
            let pairs = angles.len();
            let head = &values[..2 * pairs + rest];
            for pairing in PAIRINGS {
                let mut turned = head.to_vec();
                rotate(Isa::SCALAR, &mut turned, &cos, &sin, pairing);
                prop_assert_eq!(&turned[2 * pairs..], &head[2 * pairs..]);
                for j in 0..pairs {
                    let (first, second) = pair(pairing, pairs, j);
                    let (a, b) = (f64::from(head[first]), f64::from(head[second]));
                    let (cos, sin) = (f64::from(cos[j]), f64::from(sin[j]));
                    prop_assert!((f64::from(turned[first]) - (a * cos - b * sin)).abs() < 2e-6);
                    prop_assert!((f64::from(turned[second]) - (b * cos + a * sin)).abs() < 2e-6);
                }
            }
        }

        #[test]
        fn every_instruction_set_gives_the_same_bits(
            table in prop::collection::vec((-1.0_f32..1.0, -1.0_f32..1.0), 1..40),
            head in prop::collection::vec(hostile(), 90),
        ) {
            let (cos, sin): (Vec<f32>, Vec<f32>) = table.into_iter().unzip();
            for pairing in PAIRINGS {
                let turned = |isa| {
                    let mut turned = head.clone();
                    rotate(isa, &mut turned, &cos, &sin, pairing);
                    turned.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                };
                for isa in Isa::available() {
                    prop_assert_eq!(turned(isa), turned(Isa::SCALAR), "{} {:?}", isa.name(), pairing);
                }
            }
        }
    }
}
