//! Speed of attention on one thread: prefill in GFLOP/s of fused multiply-adds, decode in GB/s of keys and values, and in
//! positions a second.
#![allow(clippy::print_stdout, reason = "a measuring program")]

use std::time::{Duration, Instant};

use braidinfer_kernels::attention::{
    Attention, AttentionShape, KvElement, KvSlab, PagedHead, Partial, Q4_0, Q8_0, SLAB_TILES, SPAN, attend, finish,
    merge, scratch_len,
};
use braidinfer_kernels::{Isa, LANES};

const ROUNDS: usize = 15;

/// Keys and values of one head for every position of a sequence.
fn slabs<T: KvElement>(head_dim: usize, positions: usize) -> Vec<KvSlab<T>> {
    let mut slabs: Vec<_> =
        (0..positions.div_ceil(LANES * SLAB_TILES)).map(|_| KvSlab::new(head_dim).expect("there is memory")).collect();
    for position in 0..positions {
        let key: Vec<f32> = (0..head_dim).map(|d| ((position * 31 + d * 17) % 101) as f32 / 101.0 - 0.5).collect();
        let tile = position / LANES;
        slabs[tile / SLAB_TILES].write(tile % SLAB_TILES, position % LANES, &key, &key);
    }
    slabs
}

fn least(mut run: impl FnMut()) -> Duration {
    let time = |run: &mut dyn FnMut()| {
        let start = Instant::now();
        run();
        start.elapsed()
    };
    (0..ROUNDS).map(|_| time(&mut run)).min().unwrap_or_default()
}

struct Case<'a, T: KvElement> {
    isa: Isa,
    shape: AttentionShape,
    slabs: &'a [KvSlab<T>],
    tiles: &'a [u32],
}

impl<T: KvElement> Case<'_, T> {
    /// All tokens from `first` on, `tokens_at_once` in one call, span by span.
    fn run(&self, queries: &[f32], first: usize, tokens_at_once: usize, out: &mut [f32]) {
        let shape = &self.shape;
        let per_token = shape.per_group * shape.head_dim;
        let rows = tokens_at_once * shape.per_group;
        let mut scratch = vec![0.0; scratch_len(shape, rows)];
        let mut buffers = vec![0.0; 2 * Partial::len(shape, rows)];
        let (total, next) = buffers.split_at_mut(Partial::len(shape, rows));
        let mut total = Partial::new(shape, rows, total);
        let mut next = Partial::new(shape, rows, next);
        let parts = queries.chunks(tokens_at_once * per_token).zip(out.chunks_mut(tokens_at_once * per_token));
        for (i, (queries, out)) in parts.enumerate() {
            let first_position = first + i * tokens_at_once;
            let len = first_position + tokens_at_once;
            for start in (0..len).step_by(SPAN) {
                let kv = PagedHead { slabs: self.slabs, heads: 1, head: 0, tiles: self.tiles };
                let span = start..len.min(start + SPAN);
                let task = Attention { shape, queries, first_position, kv, span };
                attend(self.isa, &task, &mut scratch, if start == 0 { &mut total } else { &mut next });
                if start > 0 {
                    merge(self.isa, &mut total, &next);
                }
            }
            finish(self.isa, &total, shape.head_dim, out);
        }
    }
}

fn measure<T: KvElement>(isa: Isa, element: &str, head_dim: usize, per_group: usize) {
    let shape =
        AttentionShape { head_dim, per_group, scale: 1.0 / (head_dim as f32).sqrt(), softcap: None, window: None };
    let (prompt, context, tokens_at_once) = (512, 8192, (128 / per_group).max(1));
    // Decode goes round many heads, more than caches hold.
    let heads = (64 * 1024 * 1024 / (context * T::position_bytes(head_dim))).max(1);
    let all: Vec<Vec<KvSlab<T>>> = (0..heads).map(|_| slabs(head_dim, context)).collect();
    let tiles: Vec<u32> = (0..(context / LANES) as u32).collect();
    let queries: Vec<f32> = (0..prompt * per_group * head_dim).map(|i| (i * 7 % 97) as f32 / 97.0 - 0.5).collect();
    let mut out = vec![0.0; queries.len()];
    let case = |slabs| Case { isa, shape, slabs, tiles: &tiles };
    let prefill = least(|| case(&all[0]).run(&queries, 0, tokens_at_once, &mut out));
    let products = (prompt * (prompt + 1) / 2 * per_group * head_dim * 2) as f64;
    let one = per_group * head_dim;
    let decode = least(|| {
        for slabs in &all {
            case(slabs).run(&queries[..one], context - 1, 1, &mut out[..one]);
        }
    });
    let positions = (heads * context) as f64;
    let bytes = positions * T::position_bytes(head_dim) as f64;
    println!(
        "{:9} {element:4} head {head_dim:3} x{per_group}: prefill {:6.1} GFLOP/s, decode {:5.1} GB/s, {:6.1} M positions/s",
        isa.name(),
        2.0 * products / prefill.as_secs_f64() / 1e9,
        bytes / decode.as_secs_f64() / 1e9,
        positions / decode.as_secs_f64() / 1e6,
    );
}

fn main() {
    let only = std::env::args().nth(1);
    for isa in Isa::available() {
        if isa.name() == "scalar" || only.as_ref().is_some_and(|only| only != isa.name()) {
            continue;
        }
        for (head_dim, per_group) in [(64, 8), (128, 4), (128, 8), (64, 1), (80, 1), (256, 2)] {
            measure::<u16>(isa, "f16", head_dim, per_group);
            measure::<Q8_0>(isa, "q8_0", head_dim, per_group);
            measure::<Q4_0>(isa, "q4_0", head_dim, per_group);
        }
        for (head_dim, per_group) in [(64, 8), (128, 1)] {
            measure::<f32>(isa, "f32", head_dim, per_group);
        }
    }
}
