//! The speed of a plan, compared with the fastest one.

use std::time::Instant;

use super::report::Speed;
use crate::Result;
use crate::executor::{Batch, Decoder, KernelPlan, NoProbe, SequenceSlice, Step};

/// How often the two plans take turns decoding, and the number of tokens each time.
const REPETITIONS: usize = 5;
const TOKENS: usize = 4;

/// Number of prompt tokens.
const PROMPT: usize = 128;

/// Times decoding and prefill with both plans in turn.
pub(super) fn compare(
    fused: &mut Decoder<'_>,
    adapter: Option<u32>,
    fastest: &KernelPlan,
    plan: &KernelPlan,
) -> Result<Option<Speed>> {
    // Some tokens are decoded before the timed ones.
    let tokens = 2 * TOKENS;
    let storage = fused.kv_cache();
    if fastest == plan || storage.capacity() < tokens {
        return Ok(None);
    }
    let prompt = PROMPT.min(storage.capacity());
    let mut decoding = [Vec::new(), Vec::new()];
    let mut prefill = [Vec::new(), Vec::new()];
    for _ in 0..REPETITIONS {
        for (index, plan) in [fastest, plan].into_iter().enumerate() {
            for position in 0..TOKENS {
                read(fused, adapter, plan, position..position + 1)?;
            }
            let started = Instant::now();
            for position in TOKENS..tokens {
                read(fused, adapter, plan, position..position + 1)?;
            }
            decoding[index].push(started.elapsed().as_secs_f64());
            let started = Instant::now();
            read(fused, adapter, plan, 0..prompt)?;
            prefill[index].push(started.elapsed().as_secs_f64());
        }
    }
    let rate = |tokens: usize, mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        tokens as f64 / times[REPETITIONS / 2].max(f64::MIN_POSITIVE)
    };
    let [fastest_tok_s, plan_tok_s] = decoding.map(|times| rate(TOKENS, times));
    let [fastest_prefill_tok_s, plan_prefill_tok_s] = prefill.map(|times| rate(prompt, times));
    Ok(Some(Speed { fastest_tok_s, plan_tok_s, fastest_prefill_tok_s, plan_prefill_tok_s }))
}

/// Runs token 0 at all `positions` in one batch, and requests the logits of the last.
fn read(
    fused: &mut Decoder<'_>,
    adapter: Option<u32>,
    plan: &KernelPlan,
    positions: std::ops::Range<usize>,
) -> Result<()> {
    let block_table = (0..positions.end.div_ceil(fused.kv_cache().block_size) as u32).collect();
    let slice = SequenceSlice { adapter, ..SequenceSlice::new(positions.start, positions.len(), block_table) };
    let mut batch = Batch::default();
    batch.push(&vec![0; positions.len()], slice, 1);
    fused.forward_by(Step { batch: &batch, plan }, &mut NoProbe).map(drop)
}
