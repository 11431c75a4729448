use std::fmt;

use half::f16;
use proptest::prelude::*;

use super::block::widen_values;
use super::*;
use crate::math::tests::hostile;
use crate::samples::cases;
use crate::simd::Scalar;

/// Keys, values and queries of one sequence, and its tiles.
struct Sequence {
    shape: AttentionShape,
    /// Position of the first query; keys run to the last query.
    first: usize,
    tokens: usize,
    queries: Vec<f32>,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    /// One per query head, or none.
    sinks: Vec<f32>,
    /// Tile ids in random order.
    tiles: Vec<u32>,
}

/// Number of key/value heads in storage; the sequence uses the last one.
const HEADS: usize = 2;

impl fmt::Debug for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {} tokens from {}", self.shape, self.tokens, self.first)
    }
}

/// Pseudorandom numbers between -1 and 1.
fn noise(seed: u64, index: usize) -> f32 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (index as u64 + 1).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    ((x >> 40) as f32 / (1 << 23) as f32) - 1.0
}

impl Sequence {
    fn new(shape: AttentionShape, first: usize, tokens: usize, seed: u64) -> Self {
        let (head_dim, len) = (shape.head_dim, first + tokens);
        let vectors = |seed: u64, size: f32| -> Vec<Vec<f32>> {
            (0..len).map(|p| (0..head_dim).map(|d| size * noise(seed, p * head_dim + d)).collect()).collect()
        };
        let count = len.div_ceil(LANES) as u32;
        Self {
            shape,
            first,
            tokens,
            queries: (0..tokens * shape.per_group * head_dim).map(|i| 2.0 * noise(seed, i)).collect(),
            keys: vectors(seed + 1, 3.0),
            values: vectors(seed + 2, 1.0),
            sinks: Vec::new(),
            tiles: (0..count).map(|tile| (tile * 7 + 3) % (count.next_multiple_of(7) + 8)).collect(),
        }
    }

    fn rows(&self) -> usize {
        self.tokens * self.shape.per_group
    }

    fn len(&self) -> usize {
        self.first + self.tokens
    }

    /// Storage that holds the sequence, filled with `junk` everywhere else.
    fn store<T: KvElement>(&self, junk: f32) -> Vec<KvSlab<T>> {
        let slabs = *self.tiles.iter().max().unwrap() as usize / SLAB_TILES + 1;
        let mut slabs: Vec<_> =
            (0..slabs * HEADS).map(|_| KvSlab::new(self.shape.head_dim).expect("there is memory")).collect();
        let junk = vec![junk; self.shape.head_dim];
        for (i, tile) in self.tiles.iter().enumerate() {
            let slab = &mut slabs[*tile as usize / SLAB_TILES * HEADS + 1];
            for lane in 0..LANES {
                let position = i * LANES + lane;
                let key = self.keys.get(position).unwrap_or(&junk);
                slab.write(*tile as usize % SLAB_TILES, lane, key, self.values.get(position).unwrap_or(&junk));
            }
        }
        slabs
    }

    /// The bits of `acc / sum` for the given tokens, computed in one call per span.
    fn run<T: KvElement>(&self, isa: Isa, slabs: &[KvSlab<T>], tokens: Range<usize>) -> Vec<u32> {
        let shape = &self.shape;
        let per_token = shape.per_group * shape.head_dim;
        let rows = tokens.len() * shape.per_group;
        let mut buffers = vec![9.0; 2 * Partial::len(shape, rows)];
        let (total, next) = buffers.split_at_mut(Partial::len(shape, rows));
        let (mut total, mut next) = (Partial::new(shape, rows, total), Partial::new(shape, rows, next));
        let mut scratch = vec![f32::NAN; scratch_len(shape, rows)];
        let kv = PagedHead { slabs, heads: HEADS, head: 1, tiles: &self.tiles };
        let len = self.first + tokens.end;
        for start in (0..len).step_by(SPAN) {
            let task = Attention {
                shape,
                queries: &self.queries[tokens.start * per_token..tokens.end * per_token],
                first_position: self.first + tokens.start,
                kv,
                span: start..len.min(start + SPAN),
            };
            attend(isa, &task, &mut scratch, if start == 0 { &mut total } else { &mut next });
            if start > 0 {
                merge(isa, &mut total, &next);
            }
        }
        if !self.sinks.is_empty() {
            add_sinks(isa, &mut total, &self.sinks);
        }
        let mut out = vec![0.0; rows * shape.head_dim];
        finish(isa, &total, shape.head_dim, &mut out);
        out.iter().map(|value: &f32| value.to_bits()).collect()
    }

    fn all<T: KvElement>(&self, isa: Isa, junk: f32) -> Vec<u32> {
        self.run(isa, &self.store::<T>(junk), 0..self.tokens)
    }

    /// The definition in f64, with heads rounded by `round`.
    fn exact(&self, round: fn(&[f32]) -> Vec<f64>) -> Vec<f64> {
        let shape = &self.shape;
        let rounded = |heads: &[Vec<f32>]| heads.iter().map(|head| round(head)).collect::<Vec<_>>();
        let (keys, values) = (rounded(&self.keys), rounded(&self.values));
        let mut out = Vec::new();
        for row in 0..self.rows() {
            let position = self.first + row / shape.per_group;
            let query = &self.queries[row * shape.head_dim..][..shape.head_dim];
            let sees = |key: usize| key <= position && shape.window.is_none_or(|window| key + window > position);
            let score = |key: usize| {
                let dot: f64 = keys[key].iter().zip(query).map(|(k, q)| k * f64::from(*q)).sum();
                let score = dot * f64::from(shape.scale);
                shape.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
            };
            let scores: Vec<(usize, f64)> =
                (0..self.len()).filter(|key| sees(*key)).map(|key| (key, score(key))).collect();
            let sink = self.sinks.get(row % shape.per_group).map(|sink| f64::from(*sink));
            let all = || scores.iter().map(|(_, score)| *score).chain(sink);
            let max = all().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = all().map(|score| (score - max).exp()).sum();
            out.extend(
                (0..shape.head_dim).map(|d| {
                    scores.iter().map(|(key, score)| (score - max).exp() / sum * values[*key][d]).sum::<f64>()
                }),
            );
        }
        out
    }
}

fn shape(head_dim: usize, per_group: usize, softcap: Option<f32>, window: Option<usize>) -> AttentionShape {
    AttentionShape { head_dim, per_group, scale: 1.5 / (head_dim as f32).sqrt(), softcap, window }
}

fn largest_difference(found: &[u32], exact: &[f64]) -> f64 {
    assert_eq!(found.len(), exact.len());
    found.iter().zip(exact).map(|(found, exact)| (f64::from(f32::from_bits(*found)) - exact).abs()).fold(0.0, f64::max)
}

fn plain(head: &[f32]) -> Vec<f64> {
    head.iter().map(|value| f64::from(*value)).collect()
}

fn half(head: &[f32]) -> Vec<f64> {
    head.iter().map(|value| f16::from_f32(*value).to_f64()).collect()
}

/// The least f16 in magnitude that is at least as large as `scale`, found by search.
fn scale_above(scale: f32) -> f64 {
    let bits = (0..0x7c00_u16).find(|bits| f16::from_bits(*bits).to_f32() >= scale.abs()).expect("in range");
    f16::from_bits(bits).to_f64().copysign(f64::from(scale))
}

/// Heads in 8 bits, in plain f64: a code is the nearest multiple of its block's scale.
fn eight_bits(head: &[f32]) -> Vec<f64> {
    let block = |block: &[f32]| -> Vec<f64> {
        let scale = scale_above(block.iter().fold(0.0_f32, |most, value| most.max(value.abs())) / 127.0);
        let round = |value: &f32| if scale == 0.0 { 0.0 } else { (value / scale as f32).round_ties_even() };
        block.iter().map(|value| f64::from(round(value)) * scale).collect()
    };
    head.chunks(32).flat_map(block).collect()
}

/// Heads in 4 bits, in plain f64: of the multiples from -8 to 7 of its block's scale, a code is the nearest, rounded as
/// [`Q4_0`] says: near halfway it matters what is added in f32.
fn four_bits(head: &[f32]) -> Vec<f64> {
    let block = |block: &[f32]| -> Vec<f64> {
        let largest = block.iter().fold(0.0_f32, |most, value| if value.abs() > most.abs() { *value } else { most });
        let scale = scale_above(largest / -8.0);
        let round = |value: &f32| {
            let code = if scale == 0.0 { 0.0 } else { ((value / scale as f32 + 8.5).floor() - 8.0).clamp(-8.0, 7.0) };
            f64::from(code) * scale
        };
        block.iter().map(round).collect()
    };
    head.chunks(32).flat_map(block).collect()
}

/// Relevant shapes and positions: head widths with padding, odd group sizes, blocks and windows cut anywhere.
fn sequences() -> impl Strategy<Value = Sequence> {
    let heads = prop::sample::select(vec![1, 6, 8, 16, 20, 40, 48, 64, 80, 96, 128, 256]);
    let softcap = prop::option::of(Just(5.0_f32));
    let window = prop::option::of(1_usize..150);
    // Scores are between -5 and 5 or so.
    let sinks = prop::option::of(-90.0_f32..90.0);
    (heads, 1_usize..9, softcap, window, 0_usize..150, 1_usize..12, any::<u64>(), sinks).prop_map(
        |(head_dim, per_group, softcap, window, first, tokens, seed, sinks)| {
            let sequence = Sequence::new(shape(head_dim, per_group, softcap, window), first, tokens, seed >> 1);
            let sink = |head: usize| sinks.map(|size| size * noise(seed >> 1, head).powi(3));
            Sequence { sinks: (0..per_group).filter_map(sink).collect(), ..sequence }
        },
    )
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn attention_is_close_to_its_definition(sequence in sequences()) {
        let error = |found: Vec<u32>, round| largest_difference(&found, &sequence.exact(round));
        let found = error(sequence.all::<f32>(Isa::SCALAR, 1e3), plain);
        prop_assert!(found < 5e-6, "f32: {:e}", found);
        let found = error(sequence.all::<u16>(Isa::SCALAR, 1e3), half);
        prop_assert!(found < 5e-6, "f16: {:e}", found);
        let found = error(sequence.all::<Q8_0>(Isa::SCALAR, 1e3), eight_bits);
        prop_assert!(found < 5e-6, "q8_0: {:e}", found);
        let found = error(sequence.all::<Q4_0>(Isa::SCALAR, 1e3), four_bits);
        prop_assert!(found < 5e-6, "q4_0: {:e}", found);
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits(sequence in sequences()) {
        every_instruction_set_agrees::<f32>(&sequence)?;
        every_instruction_set_agrees::<u16>(&sequence)?;
        every_instruction_set_agrees::<Q8_0>(&sequence)?;
        every_instruction_set_agrees::<Q4_0>(&sequence)?;
    }

    #[test]
    fn results_do_not_depend_on_the_other_tokens(sequence in sequences()) {
        each_token_agrees::<u16>(&sequence)?;
        each_token_agrees::<Q8_0>(&sequence)?;
        each_token_agrees::<Q4_0>(&sequence)?;
    }

    #[test]
    fn memory_after_the_last_position_does_not_matter(sequence in sequences()) {
        let isa = Isa::available()[0];
        let expected = sequence.all::<f32>(isa, 0.0);
        for junk in [f32::NAN, f32::INFINITY, -3e38] {
            prop_assert_eq!(&sequence.all::<f32>(isa, junk), &expected);
        }
    }

    #[test]
    fn masked_positions_do_not_matter(mut sequence in sequences(), token in any::<prop::sample::Index>()) {
        let (isa, token) = (Isa::available()[0], token.index(sequence.tokens));
        let per_token = sequence.shape.per_group * sequence.shape.head_dim;
        let row = token * per_token..(token + 1) * per_token;
        let expected = sequence.all::<f32>(isa, 0.0)[row.clone()].to_vec();
        let visible = sequence.shape.visible(sequence.first + token);
        for position in (0..sequence.len()).filter(|position| !visible.contains(position)) {
            sequence.keys[position].fill(f32::NAN);
            sequence.values[position].fill(f32::INFINITY);
        }
        prop_assert_eq!(&sequence.all::<f32>(isa, 0.0)[row], expected);
    }

    #[test]
    fn hostile_values_give_the_same_bits(
        mut sequence in sequences(),
        hostile in prop::collection::vec((any::<prop::sample::Index>(), hostile()), 1..20),
    ) {
        for (index, value) in hostile {
            let position = index.index(sequence.len());
            sequence.keys[position][0] = value;
            let query = index.index(sequence.queries.len());
            sequence.queries[query] = value;
        }
        hostile_agrees::<f32>(&sequence)?;
        hostile_agrees::<Q8_0>(&sequence)?;
        hostile_agrees::<Q4_0>(&sequence)?;
    }

    /// Half a step in 8 bits; in 4 bits, where one sign reaches to 7 steps only, one step.
    #[test]
    fn what_is_stored_is_within_a_step(
        head in prop::collection::vec(-1.0_f32..1.0, 1..100),
        exponent in -30_i32..12,
        outlier in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut head: Vec<f32> = head.iter().map(|value| value * (exponent as f32).exp2()).collect();
        if let Some(index) = outlier {
            let index = index.index(head.len());
            head[index] *= 50.0;
        }
        let head = head.as_slice();
        for (found, steps, most) in [(read_back::<Q8_0>(head), 127.0, 0.5), (read_back::<Q4_0>(head), 8.0, 1.0)] {
            for (found, values) in found.chunks(32).zip(head.chunks(32)) {
                let largest = values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
                // Quotients are rounded, too.
                let step = scale_above(largest / steps) * (most + 1e-5);
                for (found, value) in found.iter().zip(values) {
                    prop_assert!((f64::from(*found) - f64::from(*value)).abs() <= step, "{} for {}", found, value);
                }
            }
        }
    }

    #[test]
    fn the_hadamard_transform_is_its_definition(
        heads in 1_usize..4,
        width in prop::sample::select(vec![1, 6, 8, 16, 20, 40, 48, 64, 80, 96, 128, 256]),
        seed in any::<u64>(),
    ) {
        let given: Vec<f32> = (0..heads * width).map(|i| noise(seed, i)).collect();
        let size = 1 << width.trailing_zeros();
        let definition = |index: usize| -> f64 {
            let (block, row) = (index / size * size, index % size);
            let sign = |column: usize| if (row & column).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
            let sum: f64 = (0..size).map(|column| sign(column) * f64::from(given[block + column])).sum();
            sum / (size as f64).sqrt()
        };
        let transformed = |isa, of: &[f32]| {
            let mut values = of.to_vec();
            hadamard(isa, &mut values, width);
            values
        };
        let expected = transformed(Isa::SCALAR, &given);
        for (index, value) in expected.iter().enumerate() {
            prop_assert!((f64::from(*value) - definition(index)).abs() < 1e-5);
        }
        for isa in Isa::available() {
            prop_assert_eq!(&transformed(isa, &given), &expected, "{}", isa.name());
        }
        for (back, value) in transformed(Isa::SCALAR, &expected).iter().zip(&given) {
            prop_assert!((back - value).abs() < 1e-5);
        }
    }
}

fn every_instruction_set_agrees<T: KvElement>(sequence: &Sequence) -> Result<(), TestCaseError> {
    let expected = sequence.all::<T>(Isa::SCALAR, 0.0);
    for isa in Isa::available() {
        let name = std::any::type_name::<T>();
        prop_assert_eq!(&sequence.all::<T>(isa, 0.0), &expected, "{} {}", isa.name(), name);
    }
    Ok(())
}

fn each_token_agrees<T: KvElement>(sequence: &Sequence) -> Result<(), TestCaseError> {
    let per_token = sequence.shape.per_group * sequence.shape.head_dim;
    let slabs = sequence.store::<T>(0.0);
    for isa in Isa::available() {
        let together = sequence.run(isa, &slabs, 0..sequence.tokens);
        for token in 0..sequence.tokens {
            let alone = sequence.run(isa, &slabs, token..token + 1);
            prop_assert_eq!(&together[token * per_token..][..per_token], &alone, "token {}", token);
        }
    }
    Ok(())
}

fn hostile_agrees<T: KvElement>(sequence: &Sequence) -> Result<(), TestCaseError> {
    // Infinite scores make NaN, whose bits are not specified.
    let run = |isa| {
        let bits = sequence.all::<T>(isa, 0.0).into_iter().map(f32::from_bits);
        bits.map(|value| if value.is_nan() { None } else { Some(value.to_bits()) }).collect::<Vec<_>>()
    };
    let expected = run(Isa::SCALAR);
    for isa in Isa::available() {
        prop_assert_eq!(run(isa), expected.as_slice(), "{}", isa.name());
    }
    Ok(())
}

/// What storage makes of a head.
fn read_back<T: KvElement>(head: &[f32]) -> Vec<f32> {
    let mut slab = KvSlab::<T>::new(head.len()).expect("there is memory");
    slab.write(3, 2, head, head);
    let padded = head.len().next_multiple_of(LANES);
    let mut out = vec![0.0; LANES * padded];
    widen_values(Scalar, PagedHead { slabs: &[slab], heads: 1, head: 0, tiles: &[3] }.values(0), &mut out);
    out[2 * padded..][..head.len()].to_vec()
}

/// What is not finite, or too large for a scale, is not read as a number.
#[test]
fn values_that_cannot_be_stored_stay_visible() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38] {
        let mut head = [1.0; 40];
        head[3] = bad;
        for found in [read_back::<Q8_0>(&head), read_back::<Q4_0>(&head)] {
            assert!(found[..32].iter().all(|value| value.is_nan()), "{bad}: {found:?}");
            assert!(found[32..].iter().all(|value| (value - 1.0).abs() < 0.01), "{bad}: {found:?}");
        }
    }
}

#[test]
fn bytes_of_a_position() {
    assert_eq!([64, 80].map(f32::position_bytes), [512, 640]);
    assert_eq!([64, 20].map(u16::position_bytes), [256, 104]);
    // Two scales for 64 dimensions, three for 80, of keys and of values.
    assert_eq!([64, 80, 20].map(Q8_0::position_bytes), [136, 172, 56]);
    assert_eq!([64, 80, 20].map(Q4_0::position_bytes), [72, 108, 36]);
}

#[test]
fn several_spans_are_merged() {
    for (window, per_group) in [(None, 3), (Some(1100), 1)] {
        let sequence = Sequence::new(shape(6, per_group, None, window), 2 * SPAN - 4, 9, 5);
        let best = Isa::available()[0];
        let found = sequence.all::<f32>(best, 0.0);
        let error = largest_difference(&found, &sequence.exact(plain));
        assert!(error < 5e-6, "{error:e}");
        assert_eq!(found, sequence.all::<f32>(Isa::SCALAR, 0.0));
        // The last span is invisible to the first tokens; computed alone, they skip it.
        let slabs = sequence.store::<f32>(0.0);
        let per_token = sequence.shape.per_group * sequence.shape.head_dim;
        for token in 0..sequence.tokens {
            let alone = sequence.run(best, &slabs, token..token + 1);
            assert_eq!(&found[token * per_token..][..per_token], &alone, "token {token}");
        }
    }
}

/// Merging is in ascending order: later spans are added to earlier ones, whichever maximum is larger.
#[test]
fn merging_rescales_both_sides() {
    let shape = shape(1, 1, None, None);
    let [mut first, mut second, mut empty] =
        [(2.0_f32, 1.0, 4.0), (5.0, 2.0, 3.0), (f32::NEG_INFINITY, 0.0, 0.0)].map(|(max, sum, acc)| {
            let mut buffer = vec![acc; Partial::len(&shape, 1)];
            buffer[LANES..].copy_from_slice(&[max, sum]);
            buffer
        });
    let earlier = (-3.0_f64).exp();
    let mut into = Partial::new(&shape, 1, &mut first);
    let next = Partial::new(&shape, 1, &mut second);
    merge(Isa::SCALAR, &mut into, &next);
    assert_eq!(into.max[0], 5.0);
    assert!((f64::from(into.sum[0]) - (2.0 + earlier)).abs() < 1e-6);
    assert!((f64::from(into.acc[0]) - (3.0 + 4.0 * earlier)).abs() < 1e-6);
    let mut empty = Partial::new(&shape, 1, &mut empty);
    let before = (into.max[0], into.sum[0], into.acc[0]);
    merge(Isa::SCALAR, &mut into, &empty);
    assert_eq!((into.max[0], into.sum[0], into.acc[0]), before);
    // Even the sign of a zero is kept.
    into.acc.fill(-0.0);
    merge(Isa::SCALAR, &mut into, &empty);
    assert!(into.acc.iter().all(|value| value.to_bits() == (-0.0_f32).to_bits()));
    // If no key was seen before, the next span is the result.
    merge(Isa::SCALAR, &mut empty, &next);
    assert_eq!((empty.max[0], empty.sum[0], empty.acc[0]), (5.0, 2.0, 3.0));
    let mut out = [7.0];
    next.sum[0] = 0.0;
    next.acc.fill(0.0);
    finish(Isa::SCALAR, &next, 1, &mut out);
    assert_eq!(out, [0.0], "a row that saw nothing");
}

/// Exactly `window` keys are visible, including the query's own.
#[test]
fn window_and_mask_end_where_they_should() {
    for window in [1, 2, 63, 64, 65] {
        let mut sequence = Sequence::new(shape(1, 1, None, Some(window)), 130, 3, 1);
        // Equal scores make the result the mean of the visible values.
        sequence.queries.fill(0.0);
        for (position, value) in sequence.values.iter_mut().enumerate() {
            value[0] = position as f32;
        }
        for isa in Isa::available() {
            for (token, bits) in sequence.all::<f32>(isa, 0.0).into_iter().enumerate() {
                let position = 130 + token;
                let mean = (position + position + 1 - window) as f32 / 2.0;
                assert!((f32::from_bits(bits) - mean).abs() < 1e-4, "window {window}, position {position}");
            }
        }
    }
}

#[test]
fn scores_of_minus_infinity_make_no_nan() {
    let mut sequence = Sequence::new(shape(2, 2, None, None), 3, 2, 1);
    sequence.queries.fill(-3e38);
    sequence.keys.iter_mut().for_each(|key| key.fill(3e38));
    let found = sequence.all::<f32>(Isa::SCALAR, 0.0);
    assert!(found.iter().all(|bits| *bits == 0), "no key has any weight");
}

#[test]
fn elements_are_rounded_to_nearest_even() {
    let mut slab = KvSlab::<u16>::new(3).expect("there is memory");
    slab.write(5, 7, &[1.0 + 1.0 / 2048.0, 1e6, -1e-7], &[1.0 + 3.0 / 2048.0, -0.0, 65504.0]);
    let kv = PagedHead { slabs: &[slab], heads: 1, head: 0, tiles: &[5] };
    let key: Vec<u16> = (0..3).map(|d| kv.keys(0).codes[d * LANES + 7]).collect();
    assert_eq!(key, [0x3c00, 0x7c00, 0x8002]);
    assert_eq!(kv.values(0).codes[7 * LANES..][..4], [0x3c02, 0x8000, 0x7bff, 0]);
    assert_eq!(kv.values(0).codes[8 * LANES..].iter().filter(|value| **value != 0).count(), 0);
}
