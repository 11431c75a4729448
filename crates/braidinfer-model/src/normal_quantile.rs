//! Quantiles of the normal distribution.

use std::f64::consts::PI;

/// The value below which a standard normal variable is with a probability above 0 and below 1, up to about 1e-10 for
/// probabilities between 1e-6 and `1 - 1e-6`.
///
/// It is found by halving an interval. The share below `x` is `1/2 + phi(x) (x + x^3/3 + x^5/(3 5) + ...)` with the density
/// `phi` (Abramowitz and Stegun 1964, 26.2.11), a series whose terms all have one sign.
pub(crate) fn normal_quantile(probability: f64) -> f64 {
    let (mut low, mut high) = (-8.0, 8.0);
    for _ in 0..64 {
        let middle = 0.5 * (low + high);
        if share_below(middle) < probability {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// The probability that a standard normal variable is below `x`, of at most some tens.
pub(crate) fn share_below(x: f64) -> f64 {
    let (mut term, mut sum, mut next) = (x, x, 3.0);
    while term.abs() > 1e-18 * sum.abs() {
        term *= x * x / next;
        sum += term;
        next += 2.0;
    }
    0.5 + sum * (-0.5 * x * x).exp() / (2.0 * PI).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_tables() {
        for (probability, expected) in [
            (0.5, 0.0),
            (0.95, 1.644_853_626_951_472_2),
            (0.975, 1.959_963_984_540_054),
            (0.2, -0.841_621_233_572_914_3),
            (0.999_999, 4.753_424_308_822_899),
        ] {
            let found = normal_quantile(probability);
            assert!((found - expected).abs() < 1e-9, "{probability}: {found}");
        }
    }
}
