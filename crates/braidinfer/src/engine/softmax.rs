//! The softmax over a vocabulary and its likeliest tokens: what sampling and log-probabilities have in common.

use std::cmp::Ordering;
use std::sync::LazyLock;

use braidinfer_kernels::{Isa, elementwise};

/// Number of values that are compared at once.
const LANES: usize = 16;

/// Number of values of which the largest is looked at first.
const BLOCK: usize = 64;

/// Which one it is changes no bit.
static ISA: LazyLock<Isa> = LazyLock::new(|| Isa::detect().unwrap_or_else(|_| Isa::available()[0]));

/// Index of the largest logit, the first of equals: the token that greedy sampling takes.
pub fn argmax(logits: &[f32]) -> u32 {
    let largest = largest(logits);
    logits.iter().position(|logit| *logit == largest).unwrap_or(0) as u32
}

/// The largest of the values.
pub(super) fn largest(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut largest = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        raise(&mut largest, chunk);
    }
    raise(&mut largest, rest);
    largest.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// Raises each element of `largest` to the value in `values` if that is larger.
fn raise(largest: &mut [f32; LANES], values: &[f32]) {
    for (largest, value) in largest.iter_mut().zip(values) {
        // This compiles to one instruction, unlike `f32::max`.
        *largest = if *value > *largest { *value } else { *largest };
    }
}

/// Index of the first value that is not finite.
pub(super) fn first_not_finite(logits: &[f32]) -> Option<usize> {
    // A loop without an early exit is vectorized and many times faster, and almost always all values are finite.
    let are_finite = logits.iter().fold(true, |so_far, logit| so_far & logit.is_finite());
    if are_finite { None } else { logits.iter().position(|logit| !logit.is_finite()) }
}

/// Indices of the `count` largest values, or of all if they are fewer: the largest first, and of equals the lowest index.
pub(super) fn likeliest(values: &[f32], count: usize) -> Vec<u32> {
    let larger_first =
        |a: &u32, b: &u32| -> Ordering { values[*b as usize].total_cmp(&values[*a as usize]).then(a.cmp(b)) };
    let mut indices = at_least_largest(values, count);
    if 0 < count && count < indices.len() {
        indices.select_nth_unstable_by(count - 1, larger_first);
    }
    indices.truncate(count);
    indices.sort_unstable_by(larger_first);
    indices
}

/// Indices of the `count` largest values and of some others.
fn at_least_largest(values: &[f32], count: usize) -> Vec<u32> {
    let maxima: Vec<f32> = values.chunks(BLOCK).map(largest).collect();
    if count == 0 || 2 * count > maxima.len() {
        return (0..values.len() as u32).collect();
    }
    // So many blocks have a value that is not below this.
    let bound = *maxima.clone().select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1;
    let blocks = values.chunks(BLOCK).zip(&maxima).enumerate().filter(|(_, (_, largest))| **largest >= bound);
    let mut indices = Vec::new();
    for (block, (values, _)) in blocks {
        let found = values.iter().enumerate().filter(|(_, value)| **value >= bound);
        indices.extend(found.map(|(index, _)| (BLOCK * block + index) as u32));
    }
    indices
}

/// e^((logit - largest logit) / temperature): 1 for the likeliest token, and 0 below 1e-38.
pub(super) fn weights(logits: &[f32], temperature: f64) -> Vec<f32> {
    let mut weights = logits.to_vec();
    let factor = (temperature.recip() as f32).min(f32::MAX);
    elementwise::exponentials(*ISA, &mut weights, largest(logits), factor);
    weights
}

/// The sum of weights.
pub(super) fn sum(weights: &[f32]) -> f64 {
    let (chunks, rest) = weights.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for (sum, weight) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(*weight);
        }
    }
    sums.into_iter().chain(rest.iter().map(|weight| f64::from(*weight))).sum()
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64;

    use super::*;

    #[test]
    fn argmax_takes_the_first_of_equal_logits() {
        assert_eq!(argmax(&[1.0, 3.0, 2.0, -1.0, 0.0]), 1);
        assert_eq!(argmax(&[2.0, 2.0]), 0);
        assert_eq!((argmax(&[]), argmax(&[f32::NEG_INFINITY; 40])), (0, 0));
        for index in 0..67 {
            let mut logits = vec![-5.0; 67];
            logits[index..].fill(-4.0);
            assert_eq!(argmax(&logits), index as u32);
        }
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_found() {
        assert_eq!(first_not_finite(&[0.0; 70]), None);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut logits = vec![1.0; 70];
            (logits[66], logits[68]) = (bad, bad);
            assert_eq!(first_not_finite(&logits), Some(66));
        }
    }

    #[test]
    fn the_likeliest_are_those_of_a_full_sort() {
        let mut rng = Pcg64::seed_from_u64(9);
        for len in [0, 1, 64, 65, 1000, 20_000] {
            // Many equals, and what a constraint forbids.
            let mut value = || match rng.random_range(0..5_u32) {
                0 => f32::NEG_INFINITY,
                kind => kind as f32 * (rng.random_range(0..200_u32) as f32 - 100.0),
            };
            let values: Vec<f32> = (0..len).map(|_| value()).collect();
            let mut sorted: Vec<u32> = (0..len as u32).collect();
            sorted.sort_by(|a, b| values[*b as usize].total_cmp(&values[*a as usize]));
            for count in [0, 1, 2, 40, 64, 150, 5000, 30_000] {
                assert_eq!(likeliest(&values, count), sorted[..count.min(len)], "{count} of {len}");
            }
        }
    }

    #[test]
    fn weights_are_exponentials() {
        let mut rng = Pcg64::seed_from_u64(11);
        let mut logits: Vec<f32> = (0..1003).map(|_| rng.random_range(-40.0..40.0_f32)).collect();
        logits[77] = f32::NEG_INFINITY;
        for temperature in [1e-60, 1e-3, 0.7, 1.0, 5.0] {
            let found = weights(&logits, temperature);
            let largest = f64::from(largest(&logits));
            let expected = |logit: &f32| ((f64::from(*logit) - largest) / temperature).exp();
            for (found, logit) in found.iter().zip(&logits) {
                let expected = expected(logit);
                assert!((f64::from(*found) - expected).abs() <= 3e-5 * expected + 1e-37, "{found} for {expected}");
            }
            let total: f64 = found.iter().map(|weight| f64::from(*weight)).sum();
            assert!((sum(&found) / total - 1.0).abs() < 1e-12);
        }
    }
}
