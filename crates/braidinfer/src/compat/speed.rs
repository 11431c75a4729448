//! What a plan costs.

use std::time::Instant;

use super::report::Speed;
use crate::Result;
use crate::executor::fused::{FusedExecutor, KernelPlan};
use crate::executor::{Batch, Executor, NoProbe, SequenceSlice};

/// How often both plans decode in turn, and how many tokens each time.
const REPETITIONS: usize = 5;
const TOKENS: usize = 4;

/// Decodes by both plans in turn. The executor is left with the second one.
pub(super) fn compare(fused: &mut FusedExecutor, fastest: &KernelPlan, plan: &KernelPlan) -> Result<Option<Speed>> {
    // Some tokens stand before those that are timed.
    let tokens = 2 * TOKENS;
    let storage = fused.kv_cache();
    if fastest == plan || storage.capacity() < tokens {
        return Ok(None);
    }
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..REPETITIONS {
        for (plan, times) in [fastest, plan].into_iter().zip(&mut times) {
            fused.set_plan(plan.clone())?;
            decode(fused, 0..TOKENS)?;
            let started = Instant::now();
            decode(fused, TOKENS..tokens)?;
            times.push(started.elapsed().as_secs_f64());
        }
    }
    let [fastest_tok_s, plan_tok_s] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        TOKENS as f64 / times[REPETITIONS / 2].max(f64::MIN_POSITIVE)
    });
    Ok(Some(Speed { fastest_tok_s, plan_tok_s }))
}

/// Reads token 0 at some positions, one at a time.
fn decode(fused: &mut FusedExecutor, positions: std::ops::Range<usize>) -> Result<()> {
    let blocks = positions.end.div_ceil(fused.kv_cache().block_size) as u32;
    for position in positions {
        let slice = SequenceSlice {
            query_len: 1,
            context_len: position,
            rope_len: position + 1,
            block_table: (0..blocks).collect(),
        };
        let mut batch = Batch::default();
        batch.push(&[0], slice, 1);
        fused.forward(&batch, &mut NoProbe)?;
    }
    Ok(())
}
