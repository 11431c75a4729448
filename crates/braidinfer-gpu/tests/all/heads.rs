//! Heads of queries, keys and values against their plain definition.

use std::iter::zip;

use crate::support::{Paged, assert_close, bits, gpu, random, statistics, upload_padded, values, words, words_of};
use braidinfer_gpu::kernels::{HeadNorm, HeadNormExtent, HeadsKernel, HeadsShape, HeadsStep};
use braidinfer_gpu::{Gpu, stride};
use braidinfer_model::spec::{NormKind, NormSpec, RopePairing};
use half::f16;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

/// Blocks of keys and values; more than the tokens fill.
const BLOCKS: usize = 5;

/// What buffers have before, in every word: as f32, and as two f16, an unlikely number.
const BEFORE: u32 = 0x4d5a_4d5a;

/// Nothing but a layout: a query head `[head_dim]` after the other, then keys and values.
fn plain(heads: usize, kv_heads: usize, head_dim: usize) -> HeadsShape {
    HeadsShape {
        heads,
        kv_heads,
        head_dim,
        query_rows: head_dim,
        key_column: Some(heads * head_dim),
        value_column: (heads + kv_heads) * head_dim,
        norm: None,
        value_norm_eps: None,
        rotation: None,
        scales_queries: false,
        half_kv: false,
    }
}

fn norm(extent: HeadNormExtent, kind: NormKind, bias: bool, after_rope: bool) -> Option<HeadNorm> {
    let norm = NormSpec { kind, eps: 1e-5, weight_offset: 0.0, bias };
    Some(HeadNorm { norm, extent, after_rope })
}

/// Every norm that an architecture may have: of whole projections, there is none after the rotation.
fn norms() -> Vec<Option<HeadNorm>> {
    let mut norms = vec![None];
    for kind in [NormKind::Rms, NormKind::Layer] {
        for bias in [false, true] {
            for extent in [HeadNormExtent::Head, HeadNormExtent::EachHead, HeadNormExtent::Projection] {
                norms.push(norm(extent, kind, bias, false));
            }
            norms.push(norm(HeadNormExtent::Head, kind, bias, true));
            norms.push(norm(HeadNormExtent::EachHead, kind, bias, true));
        }
    }
    norms
}

/// What a kernel reads.
#[derive(Clone)]
struct Inputs {
    shape: HeadsShape,
    width: usize,
    input: Vec<f32>,
    norms: Vec<f32>,
    slots: Vec<u32>,
    cosines: Vec<f32>,
    sines: Vec<f32>,
    scales: Vec<f32>,
}

/// Queries `[tokens, heads * head_dim]`, keys and values `[tokens, kv_heads * head_dim]`.
struct Heads {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// What a kernel leaves in its buffers.
#[derive(PartialEq, Debug)]
struct Results {
    queries: Vec<u32>,
    keys: Vec<u32>,
    values: Vec<u32>,
}

impl Inputs {
    fn random(rng: &mut StdRng, shape: HeadsShape, tokens: usize) -> Self {
        let kv_width = shape.kv_heads * shape.head_dim;
        let keys_end = shape.key_column.map_or(0, |_| shape.value_column + kv_width);
        let width = keys_end.max(shape.heads * shape.query_rows);
        let pairs = shape.rotation.map_or(0, |(pairs, _)| pairs);
        let mut slots: Vec<u32> = (0..BLOCKS as u32 * 16).collect();
        slots.shuffle(rng);
        slots.truncate(tokens);
        Self {
            shape,
            width,
            input: random(rng, tokens * width, -3.0..3.0),
            norms: random(rng, 2 * (shape.heads + shape.kv_heads) * shape.head_dim, -1.5..1.5),
            slots,
            cosines: random(rng, tokens * pairs, -1.2..1.2),
            sines: random(rng, tokens * pairs, -1.2..1.2),
            scales: random(rng, tokens, 0.5..2.0),
        }
    }

    /// With what no head has replaced by what is no number.
    fn with_hostile_gaps(mut self) -> Self {
        let HeadsShape { heads, kv_heads, head_dim, query_rows, key_column, value_column, .. } = self.shape;
        let mut is_read = vec![false; self.width];
        (0..heads).for_each(|head| is_read[head * query_rows..][..head_dim].fill(true));
        for column in key_column.into_iter().flat_map(|key_column| [key_column, value_column]) {
            is_read[column..][..kv_heads * head_dim].fill(true);
        }
        for row in self.input.chunks_exact_mut(self.width) {
            zip(row, &is_read).filter(|(_, is_read)| !**is_read).for_each(|(value, _)| *value = f32::NAN);
        }
        self
    }

    fn tokens(&self) -> usize {
        self.slots.len()
    }

    fn paged(&self) -> Paged {
        Paged { kv_heads: self.shape.kv_heads, head_words: self.shape.head_words() }
    }

    /// Those of one token.
    fn token(&self, token: usize) -> Self {
        let of = |values: &[f32]| {
            let width = values.len() / self.tokens();
            values[token * width..][..width].to_vec()
        };
        Self {
            input: of(&self.input),
            slots: vec![self.slots[token]],
            cosines: of(&self.cosines),
            sines: of(&self.sines),
            scales: of(&self.scales),
            ..self.clone()
        }
    }

    fn query_stride(&self) -> usize {
        stride(self.shape.heads * self.shape.head_dim)
    }

    fn run(&self, gpu: &mut Gpu) -> Results {
        let kernel = HeadsKernel::new(gpu, &self.shape).unwrap();
        let input = upload_padded(gpu, &self.input, self.width, f32::NAN);
        // One after the other, behind something else.
        let mut step = vec![u32::MAX; 7];
        let mut append = |words: &[u32]| {
            step.extend(words);
            step.len() - words.len()
        };
        let slots_at = append(&self.slots);
        let rotation_at = [append(&bits(&self.cosines)), append(&bits(&self.sines))];
        let scales_at = append(&bits(&self.scales));
        let (step, norms) = (words(gpu, &step), values(gpu, &self.norms));
        let queries = words(gpu, &vec![BEFORE; self.tokens() * self.query_stride()]);
        let [keys, values] = [0; 2].map(|_| words(gpu, &vec![BEFORE; BLOCKS * self.shape.block_words()]));
        kernel.record(
            gpu,
            HeadsStep {
                input: &input,
                input_stride: stride(self.width),
                step: &step,
                norms: &norms,
                queries: &queries,
                query_stride: self.query_stride(),
                keys: &keys,
                values: &values,
                slots_at,
                rotation_at,
                scales_at,
                tokens: self.tokens(),
            },
        );
        let [queries, keys, values] = [&queries, &keys, &values].map(|buffer| words_of(gpu, buffer));
        gpu.forget_buffers();
        Results { queries, keys, values }
    }

    /// The definition.
    fn expected(&self) -> Heads {
        let HeadsShape { heads, kv_heads, key_column, value_column, head_dim, .. } = self.shape;
        let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for token in 0..self.tokens() {
            let scale = if self.shape.scales_queries { f64::from(self.scales[token]) } else { 1.0 };
            for head in 0..heads {
                let query = self.turned(token, head, 0, [heads, self.shape.query_rows], 0);
                queries.extend(query.into_iter().map(|value| (value * scale) as f32));
            }
            let Some(key_column) = key_column else { continue };
            for head in 0..kv_heads {
                let weights = self.weights_of(heads);
                let key = self.turned(token, head, key_column, [kv_heads, head_dim], weights);
                keys.extend(key.into_iter().map(|value| value as f32));
                let value = self.normed_value(self.input_of(token, value_column + head * head_dim, head_dim));
                values.extend(value.into_iter().map(|value| value as f32));
            }
        }
        Heads { queries, keys, values }
    }

    fn input_of(&self, token: usize, column: usize, count: usize) -> Vec<f64> {
        self.input[token * self.width + column..][..count].iter().map(|value| f64::from(*value)).collect()
    }

    /// How many weights and biases a norm of this many heads has.
    fn weights_of(&self, heads: usize) -> usize {
        let Some(HeadNorm { norm, extent, .. }) = self.shape.norm else { return 0 };
        let with_own = if extent == HeadNormExtent::Head { 1 } else { heads };
        with_own * self.shape.head_dim * (1 + usize::from(norm.bias))
    }

    /// A query or key head, normed and rotated. Its kind has `count` heads from `column` on, `rows` from each other; the weights of
    /// its norm begin at `weights`.
    fn turned(&self, token: usize, head: usize, column: usize, [count, rows]: [usize; 2], weights: usize) -> Vec<f64> {
        let mut x = self.input_of(token, column + head * rows, self.shape.head_dim);
        let after_rope = self.shape.norm.is_some_and(|norm| norm.after_rope);
        if !after_rope {
            self.normalize(token, head, column, count, weights, &mut x);
        }
        self.rotate(token, &mut x);
        if after_rope {
            self.normalize(token, head, column, count, weights, &mut x);
        }
        x
    }

    fn normalize(&self, token: usize, head: usize, column: usize, count: usize, weights: usize, x: &mut [f64]) {
        let Some(HeadNorm { norm, extent, .. }) = self.shape.norm else { return };
        let head_dim = self.shape.head_dim;
        let (mean, inverse) = match extent {
            HeadNormExtent::Projection => statistics(&self.input_of(token, column, count * head_dim), norm),
            _ => statistics(x, norm),
        };
        let (own, with_own) = if extent == HeadNormExtent::Head { (0, 1) } else { (head, count) };
        for (index, x) in x.iter_mut().enumerate() {
            let weight = weights + own * head_dim + index;
            let bias = if norm.bias { self.norms[weight + with_own * head_dim] } else { 0.0 };
            *x = (*x - mean) * inverse * f64::from(self.norms[weight]) + f64::from(bias);
        }
    }

    fn rotate(&self, token: usize, x: &mut [f64]) {
        let Some((pairs, pairing)) = self.shape.rotation else { return };
        for pair in 0..pairs {
            let (first, second) = match pairing {
                RopePairing::HalfSplit => (pair, pair + pairs),
                RopePairing::Interleaved => (2 * pair, 2 * pair + 1),
            };
            let [cosine, sine] = [&self.cosines, &self.sines].map(|angles| f64::from(angles[token * pairs + pair]));
            (x[first], x[second]) = (x[first] * cosine - x[second] * sine, x[second] * cosine + x[first] * sine);
        }
    }

    fn normed_value(&self, x: Vec<f64>) -> Vec<f64> {
        let Some(eps) = self.shape.value_norm_eps else { return x };
        let norm = NormSpec { kind: NormKind::Rms, eps: f64::from(eps), weight_offset: 0.0, bias: false };
        let (_, inverse) = statistics(&x, norm);
        x.into_iter().map(|x| x * inverse).collect()
    }

    /// What is in the places of all tokens, as [`Heads`]. Fails unless every other place is as it was before.
    fn taken_from(&self, results: &Results, what: &str) -> Heads {
        let width = self.shape.heads * self.shape.head_dim;
        let mut queries = Vec::new();
        for row in results.queries.chunks_exact(self.query_stride()) {
            queries.extend(row[..width].iter().map(|word| f32::from_bits(*word)));
            assert!(row[width..].iter().all(|word| *word == BEFORE), "{what}: beyond the queries");
        }
        let paged = self.paged();
        let keys = self.words_at(&results.keys, |slot, head, word| paged.key(slot, head, word), what);
        let values = self.words_at(&results.values, |slot, head, word| paged.value(slot, head, word), what);
        Heads { queries, keys: self.numbers(&keys), values: self.numbers(&values) }
    }

    /// The words `[tokens, kv_heads, head_words]` of keys or values.
    fn words_at(&self, buffer: &[u32], place: impl Fn(usize, usize, usize) -> usize, what: &str) -> Vec<u32> {
        let (mut left, mut words) = (buffer.to_vec(), Vec::new());
        for slot in self.slots.iter().filter(|_| self.shape.key_column.is_some()) {
            for head in 0..self.shape.kv_heads {
                for word in 0..self.shape.head_words() {
                    words.push(std::mem::replace(&mut left[place(*slot as usize, head, word)], BEFORE));
                }
            }
        }
        assert!(left.iter().all(|word| *word == BEFORE), "{what}: other slots");
        words
    }

    fn numbers(&self, words: &[u32]) -> Vec<f32> {
        match self.shape.half_kv {
            true => words.iter().flat_map(|word| halves(*word)).map(f16::to_f32).collect(),
            false => words.iter().map(|word| f32::from_bits(*word)).collect(),
        }
    }

    /// Fails unless the kernel computes what the definition does.
    fn check(&self, gpu: &mut Gpu, what: &str) {
        let what = format!("{what}, {:?}", self.shape);
        let (found, expected) = (self.taken_from(&self.run(gpu), &what), self.expected());
        // An f16 is within 2^-11 of the number, where it is not denormal.
        let kept = if self.shape.half_kv { 5e-4 } else { 1e-5 };
        assert_close(&found.queries, &expected.queries, 1e-5, &format!("{what}: queries"));
        assert_close(&found.keys, &expected.keys, kept, &format!("{what}: keys"));
        assert_close(&found.values, &expected.values, kept, &format!("{what}: values"));
    }
}

fn halves(word: u32) -> [f16; 2] {
    [f16::from_bits(word as u16), f16::from_bits((word >> 16) as u16)]
}

#[test]
fn every_norm_and_rotation_is_that_of_the_definition() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(20);
    for norm in norms() {
        for pairing in [None, Some(RopePairing::HalfSplit), Some(RopePairing::Interleaved)] {
            for half_kv in [false, true] {
                let rotation = pairing.map(|pairing| (40, pairing));
                let shape = HeadsShape { norm, rotation, half_kv, ..plain(6, 2, 80) };
                Inputs::random(&mut rng, shape, 5).check(&mut gpu, "norms");
            }
        }
    }
}

#[test]
fn heads_may_have_any_even_width() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(21);
    let norm = norm(HeadNormExtent::EachHead, NormKind::Layer, true, false);
    for (heads, kv_heads, head_dim) in
        [(1, 1, 2), (7, 1, 6), (3, 3, 64), (8, 2, 96), (9, 3, 128), (4, 1, 256), (2, 1, 512)]
    {
        for half_kv in [false, true] {
            let rotation = Some((head_dim / 2, RopePairing::HalfSplit));
            let shape = HeadsShape { norm, rotation, half_kv, ..plain(heads, kv_heads, head_dim) };
            Inputs::random(&mut rng, shape, 3).check(&mut gpu, "widths");
        }
    }
}

#[test]
fn a_part_of_a_head_may_be_rotated() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(22);
    for pairs in [1, 5, 16, 70, 127] {
        for pairing in [RopePairing::HalfSplit, RopePairing::Interleaved] {
            for norm in [None, norm(HeadNormExtent::Head, NormKind::Rms, false, true)] {
                let shape = HeadsShape { norm, rotation: Some((pairs, pairing)), ..plain(3, 1, 256) };
                let inputs = Inputs::random(&mut rng, shape, 4);
                inputs.check(&mut gpu, "partial");
                if norm.is_none() {
                    let found = inputs.taken_from(&inputs.run(&mut gpu), "partial");
                    let rest = |row: &[f32]| bits(&row[2 * pairs..256]);
                    for (query, row) in
                        zip(found.queries.chunks_exact(3 * 256), inputs.input.chunks_exact(inputs.width))
                    {
                        assert_eq!(rest(query), rest(row), "the rest of a head");
                    }
                }
            }
        }
    }
}

#[test]
fn gates_lie_beside_queries_and_columns_may_have_gaps() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(23);
    for norm in [None, norm(HeadNormExtent::Head, NormKind::Rms, false, false)] {
        for (heads, kv_heads, head_dim) in [(4, 2, 64), (3, 1, 6), (2, 1, 256)] {
            let shape = HeadsShape {
                query_rows: 2 * head_dim,
                // Also the values before the keys, and neither where a vector of four begins.
                value_column: 2 * heads * head_dim + 1,
                key_column: Some((2 * heads + kv_heads) * head_dim + 3),
                rotation: Some((head_dim / 2, RopePairing::Interleaved)),
                norm,
                ..plain(heads, kv_heads, head_dim)
            };
            // The width must be that of the keys, which come last here.
            let mut inputs =
                Inputs::random(&mut rng, HeadsShape { value_column: shape.key_column.unwrap(), ..shape }, 4);
            inputs.shape.value_column = shape.value_column;
            inputs.with_hostile_gaps().check(&mut gpu, "gates");
        }
    }
}

#[test]
fn queries_have_the_factor_of_their_token() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(24);
    for norm in [None, norm(HeadNormExtent::Head, NormKind::Rms, true, true)] {
        let rotation = Some((16, RopePairing::HalfSplit));
        let shape = HeadsShape { norm, rotation, scales_queries: true, ..plain(5, 1, 32) };
        Inputs::random(&mut rng, shape, 9).check(&mut gpu, "factors");
    }
}

#[test]
fn values_may_be_normed_and_may_be_keys_before_their_norm() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(25);
    for norm in [None, norm(HeadNormExtent::Head, NormKind::Rms, false, false)] {
        for value_norm_eps in [None, Some(1e-6)] {
            for key_column in [4 * 96, 6 * 96] {
                let rotation = Some((48, RopePairing::HalfSplit));
                let key_column = Some(key_column);
                let shape =
                    HeadsShape { norm, value_norm_eps, key_column, value_column: 6 * 96, rotation, ..plain(4, 2, 96) };
                Inputs::random(&mut rng, shape, 4).check(&mut gpu, "values");
            }
        }
    }
}

#[test]
fn a_layer_without_keys_of_its_own_writes_none() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(26);
    for half_kv in [false, true] {
        let norm = norm(HeadNormExtent::EachHead, NormKind::Rms, false, false);
        let rotation = Some((20, RopePairing::Interleaved));
        let shape = HeadsShape { key_column: None, norm, rotation, half_kv, ..plain(6, 2, 40) };
        let inputs = Inputs::random(&mut rng, shape, 5);
        assert_eq!(inputs.width, 6 * 40);
        inputs.check(&mut gpu, "without keys");
    }
}

#[test]
fn many_tokens_fill_scattered_slots() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(27);
    for half_kv in [false, true] {
        let shape = HeadsShape { half_kv, ..plain(3, 3, 34) };
        for tokens in [1, 16, 79, BLOCKS * 16] {
            Inputs::random(&mut rng, shape, tokens).check(&mut gpu, "slots");
        }
    }
}

#[test]
fn norms_are_right_where_values_are_extreme() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(31);
    for norm in norms().into_iter().flatten() {
        let shape = HeadsShape { norm: Some(norm), value_norm_eps: Some(1e-5), ..plain(3, 2, 48) };
        let mut inputs = Inputs::random(&mut rng, shape, 4);
        // Nothing at all, squares far below what is added to their mean, at its size, and near the largest number.
        for (row, scale) in zip(inputs.input.chunks_exact_mut(inputs.width), [0.0, 1e-12, 2e-3, 1e15]) {
            row.iter_mut().for_each(|value| *value *= scale);
        }
        inputs.check(&mut gpu, "extremes");
    }
}

#[test]
fn what_is_kept_without_norm_and_rotation_has_the_bits_of_the_input() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(28);
    let mut inputs = Inputs::random(&mut rng, plain(2, 2, 128), 40);
    for value in &mut inputs.input {
        let any = f32::from_bits(rng.random());
        // A processor may choose among those that are no numbers.
        *value = if any.is_nan() { f32::NEG_INFINITY } else { any };
    }
    let found = inputs.taken_from(&inputs.run(&mut gpu), "bits");
    let columns = |first: usize| -> Vec<f32> {
        inputs.input.chunks_exact(inputs.width).flat_map(|row| row[first..first + 256].to_vec()).collect()
    };
    assert_eq!(bits(&found.keys), bits(&columns(256)));
    assert_eq!(bits(&found.values), bits(&columns(512)));
}

/// Numbers that are not easily rounded: whatever has the bits of an f16, what is halfway between two of them and next to that, and what
/// is too small or too large.
fn hard_to_round(rng: &mut StdRng) -> Vec<f32> {
    let mut numbers = vec![0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, f32::MAX, f32::MIN];
    numbers.extend([
        f32::MIN_POSITIVE,
        f32::from_bits(1),
        -f32::from_bits(1),
        65504.0,
        65519.996,
        65520.0,
        -65520.0,
        65536.0,
    ]);
    for half in (0..0x7c00_u16).map(f16::from_bits) {
        let exact = half.to_f32();
        let halfway = (exact + f16::from_bits((half.to_bits() + 1).min(0x7bff)).to_f32()) / 2.0;
        let bits = if rng.random() { exact.to_bits() } else { halfway.to_bits() };
        let sign = u32::from(rng.random::<bool>()) << 31;
        numbers.extend([bits.saturating_sub(1), bits, bits + 1].map(|bits| f32::from_bits(bits | sign)));
    }
    numbers.extend((0..20_000).map(|_| f32::from_bits(rng.random())));
    numbers
}

#[test]
fn halves_are_rounded_to_the_nearest_even_one() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(29);
    let tokens = BLOCKS * 16;
    let numbers = hard_to_round(&mut rng);
    let head_dim = numbers.len().div_ceil(tokens * 3).next_multiple_of(2);
    // All that there are, once as a key and once as a value, which share a column.
    let shape = HeadsShape { half_kv: true, value_column: head_dim, ..plain(1, 3, head_dim) };
    let mut inputs = Inputs::random(&mut rng, shape, tokens);
    let mut left = numbers.iter().cycle();
    for row in inputs.input.chunks_exact_mut(inputs.width) {
        zip(&mut row[head_dim..], &mut left).for_each(|(value, number)| *value = *number);
    }
    let results = inputs.run(&mut gpu);
    let paged = inputs.paged();
    let keys = inputs.words_at(&results.keys, |slot, head, word| paged.key(slot, head, word), "keys");
    let values = inputs.words_at(&results.values, |slot, head, word| paged.value(slot, head, word), "values");
    let rows = inputs.input.chunks_exact(inputs.width).flat_map(|row| &row[head_dim..]);
    let found = zip(keys.iter().flat_map(|word| halves(*word)), values.iter().flat_map(|word| halves(*word)));
    for (number, (key, value)) in zip(rows, found) {
        let expected = f16::from_f32(*number);
        for found in [key, value] {
            let is_same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
            assert!(is_same, "{number:e} is {:#x}, not {:#x}", found.to_bits(), expected.to_bits());
        }
    }
}

#[test]
fn the_bits_of_a_token_do_not_depend_on_the_others() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(30);
    for norm in norms() {
        for half_kv in [false, true] {
            let rotation = Some((24, RopePairing::HalfSplit));
            let (scales_queries, value_norm_eps) = (true, Some(1e-5));
            let shape = HeadsShape { norm, rotation, half_kv, scales_queries, value_norm_eps, ..plain(4, 2, 48) };
            let mut inputs = Inputs::random(&mut rng, shape, 6);
            // One of the others is no number.
            inputs.input[2 * inputs.width..3 * inputs.width].fill(f32::NAN);
            let all = inputs.taken_from(&inputs.run(&mut gpu), "all");
            for token in [0, 3, 5] {
                let alone = inputs.token(token);
                let found = alone.taken_from(&alone.run(&mut gpu), "alone");
                for (found, all) in
                    [(found.queries, &all.queries), (found.keys, &all.keys), (found.values, &all.values)]
                {
                    assert_eq!(bits(&found), bits(&all[token * found.len()..][..found.len()]), "{norm:?}");
                }
            }
        }
    }
}
