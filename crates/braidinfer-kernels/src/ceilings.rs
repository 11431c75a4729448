//! Measured limits of the machine: memory bandwidth and multiplication rate.
//!
//! Both are the best of several passes, because other load on the machine can only slow a pass down.

use std::fmt;
use std::hint::black_box;
use std::io;
use std::time::{Duration, Instant};

use crate::activations::NumericLevel;
use crate::isa::{Isa, dispatched, dispatched_bf16};
use crate::pages::Pages;
use crate::pool::{Chunks, Pool};
use crate::simd::tile_unit::{PEAK_PRODUCTS, TileUnit};
use crate::simd::{LANES, Simd};

/// How long a limit is measured, after the memory or the loop is prepared.
const BUDGET: Duration = Duration::from_millis(100);

/// How long reading is measured, over all patterns.
const READ_BUDGET: Duration = Duration::from_millis(300);

/// Guards against a division by zero if the clock does not advance.
const SHORTEST: Duration = Duration::from_nanos(1);

/// Bytes per task: some ten microseconds of reading.
const TASK_BYTES: usize = 1 << 20;

/// Bytes per task when reading weights, like the tasks of a matrix product.
const WEIGHT_TASK_BYTES: usize = 128 << 10;

/// How a thread reads the memory of a task. Which way is the fastest differs between processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadPattern {
    /// Parts of the task that are read side by side: 1, 4 or 16.
    streams: usize,
    /// Whether each stream asks for lines [`AHEAD`] lines before their use, or leaves that to the processor.
    prefetch: bool,
}

impl ReadPattern {
    /// All that are tried.
    pub const ALL: [Self; 6] = [
        Self { streams: 1, prefetch: false },
        Self { streams: 1, prefetch: true },
        Self { streams: 4, prefetch: false },
        Self { streams: 4, prefetch: true },
        Self { streams: 16, prefetch: false },
        Self { streams: 16, prefetch: true },
    ];
}

impl fmt::Display for ReadPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let streams = if self.streams == 1 { "1 stream".into() } else { format!("{} streams", self.streams) };
        write!(f, "{streams} per thread, {}", if self.prefetch { "prefetched" } else { "not prefetched" })
    }
}

/// Prefetch distance in each stream, in cache lines.
const AHEAD: usize = 64;

/// Tasks per pass: few, so that a pass is likely to end before another process takes a core.
const TASKS_PER_PASS: usize = 128;

/// Minimum duration of a multiplication pass, so that its start does not count; not much longer, for the same reason.
const PASS: Duration = Duration::from_millis(2);

/// Tasks per thread in a multiplication pass: if a thread briefly loses its core, others take over its tasks.
const TASKS_PER_THREAD: usize = 4;

/// Memory bandwidth of all threads of `pool` together, in bytes per second, for reading a buffer of `bytes` bytes
/// (rounded up to whole MiB), with the fastest pattern. The buffer must be larger than the CPU caches. Its pages are those
/// that weights have.
///
/// # Errors
///
/// The system is out of memory.
pub fn read_bandwidth(isa: Isa, pool: &mut Pool, bytes: usize) -> io::Result<(f64, ReadPattern)> {
    let len = bytes.max(1).checked_next_multiple_of(TASK_BYTES).ok_or(io::ErrorKind::OutOfMemory)?;
    let mut memory = Pages::zeroed(len)?;
    // Untouched pages would all be mapped to the same zero page.
    pool.for_each(Chunks::new(&mut memory, TASK_BYTES), |index, piece, _| piece.fill(index as u8 | 1));
    let pieces = TASKS_PER_PASS.min(len / TASK_BYTES);
    let (passes, mut next) = (len / TASK_BYTES / pieces, 0);
    let mut pass = |memory: &[u8], pattern| {
        timed(|| {
            pool.run(pieces, &|index, _| {
                black_box(read(isa, &memory[index * TASK_BYTES..(index + 1) * TASK_BYTES], pattern));
            });
        })
    };
    // In turn, so that other load on the machine slows all of them down.
    let mut best = [Duration::MAX; ReadPattern::ALL.len()];
    best_of(READ_BUDGET, || {
        for (pattern, best) in ReadPattern::ALL.into_iter().zip(&mut best) {
            *best = pass(&memory[next % passes * pieces * TASK_BYTES..], pattern).clamp(SHORTEST, *best);
            next += 1;
        }
        // One more, so that no pattern always reads the same parts of the memory, which differ in speed.
        next += 1;
    });
    let (time, pattern) = best.into_iter().zip(ReadPattern::ALL).min_by_key(|(time, _)| *time).expect("patterns");
    Ok(((pieces * TASK_BYTES) as f64 / time.as_secs_f64(), pattern))
}

/// Reads `memory` once, distributed over all threads like weights, and computes nothing.
pub fn read_once(isa: Isa, pool: &mut Pool, memory: &[u8], pattern: ReadPattern) {
    let piece = |index: usize| &memory[index * WEIGHT_TASK_BYTES..memory.len().min((index + 1) * WEIGHT_TASK_BYTES)];
    pool.run(memory.len().div_ceil(WEIGHT_TASK_BYTES), &|index, _| {
        black_box(read(isa, piece(index), pattern));
    });
}

/// Multiplication rate of all threads of `pool` together, in operations per second (a multiply-add counts as two), at
/// `level`, with operands from the L1 cache.
pub fn multiply_rate(isa: Isa, pool: &mut Pool, level: NumericLevel) -> f64 {
    let operands = Operands::new(level);
    let pieces = pool.threads() * TASKS_PER_THREAD;
    let mut rounds = 1;
    let mut pass = |rounds: usize| {
        pool.run(pieces, &|_, _| {
            black_box(multiply_add(isa, level, black_box(&operands), rounds));
        });
    };
    while timed(|| pass(rounds)) < PASS {
        rounds *= 2;
    }
    let operations = pieces * rounds * operations_per_round(isa, level);
    operations as f64 / best_pass(|| pass(rounds)).as_secs_f64()
}

/// The shortest pass.
fn best_pass(mut pass: impl FnMut()) -> Duration {
    let mut best = Duration::MAX;
    best_of(BUDGET, || best = timed(&mut pass).clamp(SHORTEST, best));
    best
}

/// Runs as many passes as fit in the time budget, at least three.
fn best_of(budget: Duration, mut pass: impl FnMut()) {
    let started = Instant::now();
    let mut passes = 0;
    while passes < 3 || started.elapsed() < budget {
        pass();
        passes += 1;
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

dispatched! {
    /// Reads every byte of `piece`; the result depends on all of them.
    fn read(piece: &[u8], pattern: ReadPattern) -> i32 = read_as;
}

#[inline(always)]
fn read_as<S: Simd>(simd: S, piece: &[u8], pattern: ReadPattern) -> i32 {
    match (pattern.streams, pattern.prefetch) {
        (1, false) => read_streams::<S, 1, false>(simd, piece),
        (1, true) => read_streams::<S, 1, true>(simd, piece),
        (4, false) => read_streams::<S, 4, false>(simd, piece),
        (4, true) => read_streams::<S, 4, true>(simd, piece),
        (16, false) => read_streams::<S, 16, false>(simd, piece),
        (16, true) => read_streams::<S, 16, true>(simd, piece),
        _ => unreachable!("{pattern:?} is none of those that are tried"),
    }
}

/// Lines of a stream that are read before those of the next one.
const LINES: usize = 4;

#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "iterators would not be compiled for the instruction set")]
fn read_streams<S: Simd, const STREAMS: usize, const PREFETCH: bool>(simd: S, piece: &[u8]) -> i32 {
    let (vectors, _) = piece.as_chunks::<64>();
    let (groups, rest) = vectors.as_chunks::<LINES>();
    let stream = groups.len() / STREAMS;
    let mut sums = [simd.splat_i32(0); LINES];
    for index in 0..stream {
        for first in 0..STREAMS {
            let at = first * stream + index;
            if PREFETCH {
                let ahead = &groups[first * stream + (index + AHEAD / LINES).min(stream - 1)];
                for line in 0..LINES {
                    simd.prefetch(&ahead[line]);
                }
            }
            let group = &groups[at];
            for line in 0..LINES {
                sums[line] = simd.or(sums[line], simd.load_i32(&group[line]));
            }
        }
    }
    for at in STREAMS * stream..groups.len() {
        for line in 0..LINES {
            sums[line] = simd.or(sums[line], simd.load_i32(&groups[at][line]));
        }
    }
    for at in 0..rest.len() {
        sums[0] = simd.or(sums[0], simd.load_i32(&rest[at]));
    }
    let [a, b, c, d] = sums;
    simd.sum_i32(simd.or(simd.or(a, b), simd.or(c, d)))
}

/// Steps per round; their operands fit in the L1 cache.
const STEPS: usize = 32;
/// Vectors and broadcast words per step: those of the largest tile.
const VECTORS: usize = 2;
const WORDS: usize = 8;

/// Operands that differ in every step, so that no product can be computed in advance.
struct Operands {
    vectors: [[[u8; 64]; VECTORS]; STEPS],
    words: [[u32; WORDS]; STEPS],
}

impl Operands {
    fn new(level: NumericLevel) -> Self {
        let mut state = 1_u32;
        let mut word = || {
            // A linear congruential generator (Numerical Recipes), whose upper bits are the more random ones.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            plain_value(level, state >> 8)
        };
        let words = std::array::from_fn(|_| std::array::from_fn(|_| word()));
        let mut vector = || {
            let mut bytes = [0; 64];
            let (lanes, _) = bytes.as_chunks_mut::<4>();
            lanes.iter_mut().for_each(|lane| *lane = word().to_le_bytes());
            bytes
        };
        Self { words, vectors: std::array::from_fn(|_| std::array::from_fn(|_| vector())) }
    }
}

/// Values that no processor handles slowly: small bytes, or floats of either sign between 1 and 2.
fn plain_value(level: NumericLevel, random: u32) -> u32 {
    match level {
        NumericLevel::Int8 | NumericLevel::Int16 => random & 0x3f3f_3f3f,
        NumericLevel::Bf16 => random & 0x803f_803f | 0x3f80_3f80,
        NumericLevel::F32 => (random << 31) | (random & 0x007f_ffff) | 0x3f80_0000,
    }
}

/// A multiply-add of vectors at some numeric level.
trait MultiplyAdd {
    /// Operations per lane; each product counts as two.
    const OPERATIONS: usize;
    type Sum<S: Simd>: Copy;

    fn zero<S: Simd>(simd: S) -> Self::Sum<S>;
    fn add<S: Simd>(simd: S, sum: Self::Sum<S>, vector: S::I32, word: u32) -> Self::Sum<S>;
    /// Adds the products of each of `P` vectors with each of `N` words.
    #[inline(always)]
    fn add_tile<S: Simd, const P: usize, const N: usize>(
        simd: S,
        sums: &mut [[Self::Sum<S>; N]; P],
        vectors: [S::I32; P],
        words: &[u32; N],
    ) {
        for row in 0..N {
            for panel in 0..P {
                sums[panel][row] = Self::add(simd, sums[panel][row], vectors[panel], words[row]);
            }
        }
    }
    fn bits<S: Simd>(simd: S, sum: Self::Sum<S>) -> S::I32;
}

struct Int8;
struct Bf16;
struct F32;

impl MultiplyAdd for Int8 {
    const OPERATIONS: usize = 8;
    type Sum<S: Simd> = S::I32;

    #[inline(always)]
    fn zero<S: Simd>(simd: S) -> S::I32 {
        simd.splat_i32(0)
    }
    #[inline(always)]
    fn add<S: Simd>(simd: S, sum: S::I32, vector: S::I32, word: u32) -> S::I32 {
        simd.dot_u8_i8(sum, vector, simd.splat_i32(word as i32))
    }
    /// As kernels multiply levels of fewer than 8 bits, which [`plain_value`] gives.
    #[inline(always)]
    fn add_tile<S: Simd, const P: usize, const N: usize>(
        simd: S,
        sums: &mut [[S::I32; N]; P],
        vectors: [S::I32; P],
        words: &[u32; N],
    ) {
        simd.dot_tile::<P, N, 7>(sums, vectors, words);
    }
    #[inline(always)]
    fn bits<S: Simd>(_: S, sum: S::I32) -> S::I32 {
        sum
    }
}

impl MultiplyAdd for Bf16 {
    const OPERATIONS: usize = 4;
    type Sum<S: Simd> = S::F32;

    #[inline(always)]
    fn zero<S: Simd>(simd: S) -> S::F32 {
        simd.splat(0.0)
    }
    #[inline(always)]
    fn add<S: Simd>(simd: S, sum: S::F32, vector: S::I32, word: u32) -> S::F32 {
        simd.dot_bf16(sum, vector, simd.splat_i32(word as i32))
    }
    #[inline(always)]
    fn bits<S: Simd>(simd: S, sum: S::F32) -> S::I32 {
        simd.bits_of(sum)
    }
}

impl MultiplyAdd for F32 {
    const OPERATIONS: usize = 2;
    type Sum<S: Simd> = S::F32;

    #[inline(always)]
    fn zero<S: Simd>(simd: S) -> S::F32 {
        simd.splat(0.0)
    }
    #[inline(always)]
    fn add<S: Simd>(simd: S, sum: S::F32, vector: S::I32, word: u32) -> S::F32 {
        simd.fma(simd.float_of(vector), simd.splat(f32::from_bits(word)), sum)
    }
    #[inline(always)]
    fn bits<S: Simd>(simd: S, sum: S::F32) -> S::I32 {
        simd.bits_of(sum)
    }
}

dispatched_bf16! {
    /// Multiplies the operands of every step, `rounds` times; the result depends on every product. A matrix unit
    /// multiplies operands of its own.
    fn multiply_add(level: NumericLevel, operands: &Operands, rounds: usize) -> i32 = multiply_add_at;
}

#[inline(always)]
fn multiply_add_at<S: Simd>(simd: S, level: NumericLevel, operands: &Operands, rounds: usize) -> i32 {
    if let Some(unit) = simd.unit().filter(|_| level != NumericLevel::F32) {
        unit.multiply_peak(level == NumericLevel::Bf16, rounds);
        return 0;
    }
    match level {
        NumericLevel::Int8 | NumericLevel::Int16 => largest_tile::<S, Int8>(simd, operands, rounds),
        NumericLevel::Bf16 => largest_tile::<S, Bf16>(simd, operands, rounds),
        NumericLevel::F32 => largest_tile::<S, F32>(simd, operands, rounds),
    }
}

/// Uses as many sums as the instruction set has registers for.
#[inline(always)]
fn largest_tile<S: Simd, M: MultiplyAdd>(simd: S, operands: &Operands, rounds: usize) -> i32 {
    if const { S::PANELS == VECTORS && S::TILE == WORDS } {
        tile::<S, M, VECTORS, WORDS>(simd, operands, rounds)
    } else {
        tile::<S, M, 1, 4>(simd, operands, rounds)
    }
}

#[inline(always)]
fn tile<S: Simd, M: MultiplyAdd, const P: usize, const N: usize>(simd: S, operands: &Operands, rounds: usize) -> i32 {
    let mut sums = [[M::zero(simd); N]; P];
    for _ in 0..rounds {
        for (vectors, words) in operands.vectors.iter().zip(&operands.words) {
            let mut loaded = [simd.splat_i32(0); P];
            for (loaded, vector) in loaded.iter_mut().zip(vectors) {
                *loaded = simd.load_i32(vector);
            }
            M::add_tile(
                simd,
                &mut sums,
                loaded,
                words.first_chunk().expect("as many words as the largest tile has rows"),
            );
        }
    }
    let mut bits = simd.splat_i32(0);
    for sum in sums.as_flattened() {
        bits = simd.add_i32(bits, M::bits(simd, *sum));
    }
    simd.sum_i32(bits)
}

dispatched! {
    /// Operations in a round of [`multiply_add`].
    fn operations_per_round(level: NumericLevel) -> usize = operations_at;
}

#[inline(always)]
fn operations_at<S: Simd>(simd: S, level: NumericLevel) -> usize {
    if simd.unit().is_some() && level != NumericLevel::F32 {
        let operations = PEAK_PRODUCTS * S::Unit::peak_operations(level == NumericLevel::Bf16);
        return if level == NumericLevel::Int16 { operations / 2 } else { operations };
    }
    let sums = if S::TILE == WORDS { VECTORS * WORDS } else { 4 };
    let per_lane = match level {
        NumericLevel::Int8 => Int8::OPERATIONS,
        // High and low bytes are multiplied separately.
        NumericLevel::Int16 => Int8::OPERATIONS / 2,
        NumericLevel::Bf16 => Bf16::OPERATIONS,
        NumericLevel::F32 => F32::OPERATIONS,
    };
    STEPS * sums * LANES * per_lane
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_does_the_same_products() {
        for level in NumericLevel::ALL {
            let operands = Operands::new(level);
            // The instruction sets that multiply one panel by four rows at a time.
            let small_tiles = |isa: &Isa| isa.tiles(level, WORDS).count() > 1;
            let results =
                Isa::available().into_iter().filter(small_tiles).map(|isa| multiply_add(isa, level, &operands, 3));
            let results: Vec<i32> = results.collect();
            assert!(results.iter().all(|result| *result == results[0] && *result != 0), "{level:?}: {results:?}");
        }
    }

    #[test]
    fn every_byte_of_a_task_is_read() {
        for isa in Isa::available() {
            for changed in
                [0, 63, TASK_BYTES / 4 - 1, TASK_BYTES / 2, TASK_BYTES - 1, TASK_BYTES + 64, TASK_BYTES + 319]
            {
                let mut piece = vec![0; TASK_BYTES + LINES * 64 + 64];
                for pattern in ReadPattern::ALL {
                    piece[changed] = 0;
                    assert_eq!(read(isa, &piece, pattern), 0);
                    piece[changed] = 1;
                    assert_ne!(read(isa, &piece, pattern), 0, "{} byte {changed}, {pattern}", isa.name());
                }
            }
        }
    }

    #[test]
    fn ceilings_are_positive() {
        let mut pool = Pool::new(2).unwrap();
        for isa in Isa::available() {
            assert!(read_bandwidth(isa, &mut pool, 3 * TASK_BYTES + 1).unwrap().0 > 0.0);
            for level in NumericLevel::ALL {
                assert!(multiply_rate(isa, &mut pool, level) > 0.0, "{} {level:?}", isa.name());
            }
        }
    }

    #[test]
    fn a_buffer_that_does_not_fit_is_an_error() {
        let mut pool = Pool::new(1).unwrap();
        assert_eq!(read_bandwidth(Isa::SCALAR, &mut pool, usize::MAX).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
    }
}
