//! How close to f32 the answers of a plan must be.

use serde::{Deserialize, Serialize};

use crate::divergence::{Divergence, NEAR_TIE};

/// What matters more: that answers are those of f32, or speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// As close to f32 as to leave greedy text as f32 has it, at the least cost.
    #[default]
    Auto,
    /// The likeliest token of f32 at every position that is no near tie, with a wide margin.
    Exact,
    /// The fastest level wherever it is no fault.
    Fast,
}

impl Precision {
    /// The name in flags and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Exact => "exact",
            Self::Fast => "fast",
        }
    }

    /// What a plan has to hold; `None` if nothing.
    pub(super) fn target(self) -> Option<Target> {
        match self {
            Self::Auto => Some(Target { kl_mean: 1e-5, shift: NEAR_TIE / 2.0 }),
            Self::Exact => Some(Target { kl_mean: 2.5e-7, shift: NEAR_TIE / 4.0 }),
            Self::Fast => None,
        }
    }
}

/// The largest divergence that a plan may have. Shifts of margins decide, because they are seen at every position, and
/// changes of a token only at some: a token that is no near tie changes from [`NEAR_TIE`] on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Target {
    /// Mean divergence, in nats.
    pub(super) kl_mean: f64,
    /// Largest shift of a margin at any position read, in nats.
    pub(super) shift: f64,
}

/// Whether what was read so far holds a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    Yes,
    /// So far, but not by so much that a little more text could not change it.
    Barely,
    No,
}

impl Target {
    pub(super) fn judge(&self, divergence: &Divergence) -> Holds {
        let within = |share: f64| {
            divergence.is_finite()
                && divergence.disagreements == 0
                && divergence.kl_mean <= share * self.kl_mean
                && divergence.shift_max <= share * self.shift
        };
        match (within(1.0), within(0.5)) {
            (_, true) => Holds::Yes,
            (true, false) => Holds::Barely,
            (false, false) => Holds::No,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_held_by_shifts_and_divergence() {
        let target = Target { kl_mean: 1e-3, shift: 0.02 };
        let of = |shift: f32| Divergence::of(&[3.0, 2.0, 0.0], &[3.0, 2.0 + shift, 0.0], 3, &[]);
        let found = [0.0, 0.009, 0.015, 0.03, f32::NAN].map(|shift| target.judge(&of(shift)));
        assert_eq!(found, [Holds::Yes, Holds::Yes, Holds::Barely, Holds::No, Holds::No]);
        // The same divergence counts for less where less is allowed.
        assert_eq!(Target { kl_mean: 1e-9, ..target }.judge(&of(0.009)), Holds::No);
        assert_eq!(target.judge(&Divergence::of(&[1.0, 0.9], &[0.9, 1.0], 2, &[])), Holds::No);
    }
}
