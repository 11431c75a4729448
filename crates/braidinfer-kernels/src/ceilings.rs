//! What the machine can do at most, measured on the spot: how fast it reads memory, and how fast it multiplies.
//!
//! Both are the best of several passes: whatever else the machine is doing lowers a pass and never raises it.

use std::hint::black_box;
use std::io;
use std::time::{Duration, Instant};

use crate::activations::NumericLevel;
use crate::isa::{Isa, dispatched};
use crate::pages::Pages;
use crate::pool::{Chunks, Pool};
use crate::simd::{LANES, Simd};

/// How long a ceiling is measured, after the memory or the loop is prepared.
const BUDGET: Duration = Duration::from_millis(100);

/// Bytes that a thread takes at a time: some ten microseconds of reading.
const PIECE: usize = 1 << 20;

/// Bytes that a thread takes at a time of weights, as large as the pieces of a product.
const SHARE: usize = 128 << 10;

/// Parts of a piece that are read side by side, which keeps several requests to memory in flight.
const STREAMS: usize = 4;

/// Lines that are asked for ahead of their turn in each stream, as kernels do.
const AHEAD: usize = 64;

/// Pieces of a pass: few enough to end, with luck, before another process takes a core.
const PIECES_PER_PASS: usize = 128;

/// A multiplication pass takes at least this long, so that starting it does not count; and not much longer, as above.
const PASS: Duration = Duration::from_millis(2);

/// Pieces of a multiplication pass per thread: a thread that loses its core for a moment does not hold up the pass.
const PIECES_PER_THREAD: usize = 4;

/// Bytes per second that all threads of `pool` together read from memory, from one buffer of `bytes` bytes (rounded
/// up to whole MiB), which must be larger than the caches for the figure to mean memory.
///
/// # Errors
///
/// The system has no room for the buffer.
pub fn read_bandwidth(isa: Isa, pool: &mut Pool, bytes: usize) -> io::Result<f64> {
    let len = bytes.max(1).checked_next_multiple_of(PIECE).ok_or(io::ErrorKind::OutOfMemory)?;
    let mut memory = Pages::zeroed(len)?;
    // Untouched pages all stand for the same page of zeros.
    pool.for_each(Chunks::new(&mut memory, PIECE), |index, piece, _| piece.fill(index as u8 | 1));
    let pieces = PIECES_PER_PASS.min(len / PIECE);
    let (passes, mut next) = (len / PIECE / pieces, 0);
    let best = best_pass(|| {
        let memory = &memory[next * pieces * PIECE..];
        pool.run(pieces, &|index, _| {
            black_box(read(isa, &memory[index * PIECE..(index + 1) * PIECE]));
        });
        next = (next + 1) % passes;
    });
    Ok((pieces * PIECE) as f64 / best.as_secs_f64())
}

/// Reads `memory` once, shared out among all threads as weights are, and computes nothing.
pub fn read_once(isa: Isa, pool: &mut Pool, memory: &[u8]) {
    let piece = |index: usize| &memory[index * SHARE..memory.len().min((index + 1) * SHARE)];
    pool.run(memory.len().div_ceil(SHARE), &|index, _| {
        black_box(read(isa, piece(index)));
    });
}

/// Operations per second, two for each multiplication with its addition, that all threads of `pool` together do at
/// `level`, with operands from the nearest cache.
pub fn multiply_rate(isa: Isa, pool: &mut Pool, level: NumericLevel) -> f64 {
    let operands = Operands::new(level);
    let pieces = pool.threads() * PIECES_PER_THREAD;
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

/// The shortest of the passes that fit the time, three at least.
fn best_pass(mut pass: impl FnMut()) -> Duration {
    let started = Instant::now();
    let mut best = Duration::MAX;
    let mut passes = 0;
    while passes < 3 || started.elapsed() < BUDGET {
        best = best.min(timed(&mut pass));
        passes += 1;
    }
    // A clock that stands still must not make the rate infinite.
    best.max(Duration::from_nanos(1))
}

fn timed(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

dispatched! {
    /// Reads every byte of a piece; what it returns depends on all of them.
    fn read(piece: &[u8]) -> i32 = read_streams;
}

#[inline(always)]
fn read_streams<S: Simd>(simd: S, piece: &[u8]) -> i32 {
    let (vectors, _) = piece.as_chunks::<64>();
    let stream = vectors.len() / STREAMS;
    let streams: [&[[u8; 64]]; STREAMS] = std::array::from_fn(|index| &vectors[index * stream..(index + 1) * stream]);
    let mut sums = [simd.splat_i32(0); STREAMS];
    for index in 0..stream {
        for (sum, stream) in sums.iter_mut().zip(&streams) {
            simd.prefetch(&stream[(index + AHEAD).min(stream.len() - 1)]);
            *sum = simd.or(*sum, simd.load_i32(&stream[index]));
        }
    }
    let [a, b, c, d] = sums;
    simd.sum_i32(simd.or(simd.or(a, b), simd.or(c, d)))
}

/// Steps of a round: what they read stays in the nearest cache.
const STEPS: usize = 32;
/// Vectors and broadcast words of a step: those of the largest tile.
const VECTORS: usize = 2;
const WORDS: usize = 8;

/// What is multiplied, different in every step, so that no product is known before its turn.
struct Operands {
    vectors: [[[u8; 64]; VECTORS]; STEPS],
    words: [[u32; WORDS]; STEPS],
}

impl Operands {
    fn new(level: NumericLevel) -> Self {
        let mut state = 1_u32;
        let mut word = || {
            // A linear congruential generator (Numerical Recipes); its upper bits are the good ones.
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

/// Bits that make no processor hesitate: small bytes, or floats of either sign between 1 and 2.
fn plain_value(level: NumericLevel, random: u32) -> u32 {
    match level {
        NumericLevel::Int8 | NumericLevel::Int16 => random & 0x3f3f_3f3f,
        NumericLevel::Bf16 => random & 0x803f_803f | 0x3f80_3f80,
        NumericLevel::F32 => (random << 31) | (random & 0x007f_ffff) | 0x3f80_0000,
    }
}

/// One multiplication with addition of vectors, at some level.
trait MultiplyAdd {
    /// Operations per lane: two for each product.
    const OPERATIONS: usize;
    type Sum<S: Simd>: Copy;

    fn zero<S: Simd>(simd: S) -> Self::Sum<S>;
    fn add<S: Simd>(simd: S, sum: Self::Sum<S>, vector: S::I32, word: u32) -> Self::Sum<S>;
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

dispatched! {
    /// `rounds` times every step; what it returns depends on every product.
    fn multiply_add(level: NumericLevel, operands: &Operands, rounds: usize) -> i32 = multiply_add_at;
}

#[inline(always)]
fn multiply_add_at<S: Simd>(simd: S, level: NumericLevel, operands: &Operands, rounds: usize) -> i32 {
    match level {
        NumericLevel::Int8 | NumericLevel::Int16 => largest_tile::<S, Int8>(simd, operands, rounds),
        NumericLevel::Bf16 => largest_tile::<S, Bf16>(simd, operands, rounds),
        NumericLevel::F32 => largest_tile::<S, F32>(simd, operands, rounds),
    }
}

/// As many sums as an instruction set has registers for.
#[inline(always)]
fn largest_tile<S: Simd, M: MultiplyAdd>(simd: S, operands: &Operands, rounds: usize) -> i32 {
    if (S::PANELS, S::TILE) == (VECTORS, WORDS) {
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
            for column in 0..N {
                for row in 0..P {
                    sums[row][column] = M::add(simd, sums[row][column], loaded[row], words[column]);
                }
            }
        }
    }
    let mut bits = simd.splat_i32(0);
    for sum in sums.as_flattened() {
        bits = simd.add_i32(bits, M::bits(simd, *sum));
    }
    simd.sum_i32(bits)
}

fn operations_per_round(isa: Isa, level: NumericLevel) -> usize {
    let sums = if isa.tile_rows() == WORDS { VECTORS * WORDS } else { 4 };
    let per_lane = match level {
        NumericLevel::Int8 => Int8::OPERATIONS,
        // High and low bytes are multiplied one after the other.
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
            // Those that multiply one panel by four rows at once.
            let small_tiles = |isa: &Isa| isa.tile_rows() != WORDS;
            let results =
                Isa::available().into_iter().filter(small_tiles).map(|isa| multiply_add(isa, level, &operands, 3));
            let results: Vec<i32> = results.collect();
            assert!(results.iter().all(|result| *result == results[0] && *result != 0), "{level:?}: {results:?}");
        }
    }

    #[test]
    fn every_byte_of_a_piece_counts() {
        for isa in Isa::available() {
            for changed in [0, 63, PIECE / 4 - 1, PIECE / 2, PIECE - 1] {
                let mut piece = vec![0; PIECE];
                assert_eq!(read(isa, &piece), 0);
                piece[changed] = 1;
                assert_ne!(read(isa, &piece), 0, "{} byte {changed}", isa.name());
            }
        }
    }

    #[test]
    fn ceilings_are_positive() {
        let mut pool = Pool::new(2).unwrap();
        for isa in Isa::available() {
            assert!(read_bandwidth(isa, &mut pool, 3 * PIECE + 1).unwrap() > 0.0);
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
