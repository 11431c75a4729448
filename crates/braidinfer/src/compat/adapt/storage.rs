//! Keys and values in 8 or 4 bits, where that was asked for.

use super::{Adapted, TARGET_FRACTIONS, contributions};
use crate::Result;
use crate::compat::judge;
use crate::compat::measure::Run;
use crate::compat::precision::Target;
use crate::compat::reading::Reader;
use crate::compat::{Measurements, Status};
use crate::executor::Decoder;

/// Stores keys and values as the fastest plan does, which is how the user asked for it: in all layers if the whole is
/// then still COMPATIBLE (without a target: not INCOMPATIBLE), or else in those layers that add least to the divergence.
/// `finer` has no quantized keys and values, and is returned if they serve in no choice of layers.
pub(super) fn quantize(
    fused: &mut Decoder<'_>,
    found: &Measurements,
    reader: &mut Reader<'_, '_>,
    finer: Adapted,
    target: Option<Target>,
) -> Result<Adapted> {
    let all = finer.plan.with_kv_of(&found.fastest_plan);
    if all == finer.plan {
        return Ok(finer);
    }
    let serves = |run: &Run| match (target, judge::status_of(&run.divergence)) {
        (Some(_), status) => status == Status::Compatible,
        (None, status) => status != Status::Incompatible,
    };
    let run = reader.read(fused, &all, None)?;
    if serves(&run) {
        return Ok(Adapted::new(found, all, run, finer.holds));
    }
    let allowed = judge::MOST_COMPATIBLE.min(run.divergence.kl_mean);
    let contributions = contributions::measure(fused, &found.truth, &all, &finer.plan)?;
    for share in TARGET_FRACTIONS {
        let plan = contributions.cheapest(&all, &finer.plan, share * allowed);
        if plan == finer.plan {
            break;
        }
        let run = reader.read(fused, &plan, None)?;
        if serves(&run) {
            return Ok(Adapted::new(found, plan, run, finer.holds));
        }
    }
    Ok(finer)
}
