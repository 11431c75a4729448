//! How close to f32 the answers of a plan must be.

use serde::{Deserialize, Serialize};

use crate::divergence::{Divergence, NEAR_TIE};

/// The trade-off between closeness to f32 and speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Close enough to f32 that greedy decoding generates the same text, at the least cost.
    #[default]
    Auto,
    /// The most likely token is that of f32 at every position that is no near tie, with a wide margin.
    Exact,
    /// The fastest level that causes no fault.
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

    /// The target that a plan must meet; `None` if there is none.
    pub(super) fn target(self) -> Option<Target> {
        match self {
            Self::Auto => Some(Target { kl_mean: 1e-5, shift: NEAR_TIE / 2.0 }),
            Self::Exact => Some(Target { kl_mean: 2.5e-7, shift: NEAR_TIE / 4.0 }),
            Self::Fast => None,
        }
    }
}

/// The largest allowed divergence of a plan. Shifts of margins decide, because every position has one, while only some
/// positions change their token: a token that is no near tie can change if its margin shifts by [`NEAR_TIE`] or more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Target {
    /// Mean KL divergence, in nats.
    pub(super) kl_mean: f64,
    /// Largest shift of a margin at any position read, in nats.
    pub(super) shift: f64,
}

/// Whether the divergence measured so far meets a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TargetStatus {
    Met,
    /// Met so far, but so narrowly that a little more text could change the result.
    BarelyMet,
    Missed,
}

impl Target {
    pub(super) fn judge(&self, divergence: &Divergence) -> TargetStatus {
        let within = |share: f64| {
            divergence.is_finite()
                && divergence.disagreements == 0
                && divergence.kl_mean <= share * self.kl_mean
                && divergence.shift_max <= share * self.shift
        };
        match (within(1.0), within(0.5)) {
            (_, true) => TargetStatus::Met,
            (true, false) => TargetStatus::BarelyMet,
            (false, false) => TargetStatus::Missed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_limits_shift_and_divergence() {
        let target = Target { kl_mean: 1e-3, shift: 0.02 };
        let of = |shift: f32| Divergence::of(&[3.0, 2.0, 0.0], &[3.0, 2.0 + shift, 0.0], 3, &[]);
        let found = [0.0, 0.009, 0.015, 0.03, f32::NAN].map(|shift| target.judge(&of(shift)));
        assert_eq!(
            found,
            [TargetStatus::Met, TargetStatus::Met, TargetStatus::BarelyMet, TargetStatus::Missed, TargetStatus::Missed]
        );
        // With a smaller limit the same divergence misses the target.
        assert_eq!(Target { kl_mean: 1e-9, ..target }.judge(&of(0.009)), TargetStatus::Missed);
        assert_eq!(target.judge(&Divergence::of(&[1.0, 0.9], &[0.9, 1.0], 2, &[])), TargetStatus::Missed);
    }
}
