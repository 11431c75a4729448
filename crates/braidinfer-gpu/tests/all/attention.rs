//! Attention against its plain definition.

use std::iter::zip;

use crate::support::{
    Paged, assert_close, assert_zero, bits, download, download_pad, gpu, random, upload_padded, values, words,
};
use braidinfer_gpu::kernels::{AttentionKernels, AttentionShape, AttentionStep, Gate};
use braidinfer_gpu::{Gpu, stride};
use half::f16;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

fn plain(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
    AttentionShape {
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        cap: None,
        window: None,
        sinks: false,
        gate: Gate::None,
        half_kv: false,
    }
}

/// Keys and values `[keys, kv_heads, head_dim]` of a sequence, as they are kept.
#[derive(Clone)]
struct Sequence {
    keys: Vec<f32>,
    values: Vec<f32>,
    blocks: Vec<u32>,
}

/// What the kernels read.
#[derive(Clone)]
struct Inputs {
    shape: AttentionShape,
    sequences: Vec<Sequence>,
    blocks: usize,
    /// The sequence of each token, and its position in it.
    tokens: Vec<(usize, u32)>,
    queries: Vec<f32>,
    sinks: Vec<f32>,
    input_width: usize,
    input: Vec<f32>,
}

impl Inputs {
    /// Sequences of these lengths, and the tokens that query them: the last one of each, and those at some more positions.
    fn random(rng: &mut StdRng, shape: AttentionShape, lengths: &[usize], more: &[(usize, u32)]) -> Self {
        let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
        // Some blocks belong to nothing.
        let blocks = lengths.iter().map(|length| length.div_ceil(16)).sum::<usize>() + 3;
        let mut free: Vec<u32> = (0..blocks as u32).collect();
        free.shuffle(rng);
        let sequences = lengths.iter().map(|length| {
            let kept = |value: f32| if shape.half_kv { f16::from_f32(value).to_f32() } else { value };
            let mut kept = || random(rng, length * kv_heads * head_dim, -2.0..2.0).into_iter().map(kept).collect();
            let (keys, values) = (kept(), kept());
            Sequence { keys, values, blocks: free.split_off(free.len() - length.div_ceil(16)) }
        });
        let sequences: Vec<Sequence> = sequences.collect();
        let last = lengths.iter().enumerate().map(|(sequence, length)| (sequence, *length as u32 - 1));
        let tokens: Vec<(usize, u32)> = last.chain(more.iter().copied()).collect();
        let input_width = 2 * heads * head_dim + heads + 5;
        let queries = random(rng, tokens.len() * heads * head_dim, -2.0..2.0);
        let input = random(rng, tokens.len() * input_width, -6.0..6.0);
        let sinks = random(rng, heads, -4.0..4.0);
        Self { shape, sequences, blocks, tokens, queries, sinks, input_width, input }
    }

    fn width(&self) -> usize {
        self.shape.heads * self.shape.head_dim
    }

    /// Those of some tokens.
    fn part(&self, tokens: std::ops::Range<usize>) -> Self {
        let of = |values: &[f32], width: usize| values[tokens.start * width..tokens.end * width].to_vec();
        Self {
            tokens: self.tokens[tokens.clone()].to_vec(),
            queries: of(&self.queries, self.width()),
            input: of(&self.input, self.input_width),
            ..self.clone()
        }
    }

    /// Keys and values in their blocks. Slots that no key has are what is no number, also as f16.
    fn kept(&self) -> [Vec<u32>; 2] {
        let AttentionShape { kv_heads, head_dim, half_kv, .. } = self.shape;
        let head_words = if half_kv { head_dim / 2 } else { head_dim };
        let paged = Paged { kv_heads, head_words };
        let mut kept = [0; 2].map(|_| vec![u32::MAX; self.blocks * paged.block_words()]);
        for Sequence { keys, values, blocks } in &self.sequences {
            let rows = zip(keys.chunks_exact(head_dim), values.chunks_exact(head_dim)).enumerate();
            for (index, (key, value)) in rows {
                let (position, head) = (index / kv_heads, index % kv_heads);
                let slot = blocks[position / 16] as usize * 16 + position % 16;
                for (word, (key, value)) in zip(packed(key, half_kv), packed(value, half_kv)).enumerate() {
                    kept[0][paged.key(slot, head, word)] = key;
                    kept[1][paged.value(slot, head, word)] = value;
                }
            }
        }
        kept
    }

    fn run(&self, gpu: &mut Gpu) -> Vec<f32> {
        let kernels = AttentionKernels::new(gpu, &self.shape).unwrap();
        let [keys, kept] = self.kept().map(|kept| words(gpu, &kept));
        let positions: Vec<u32> = self.tokens.iter().map(|(_, position)| *position).collect();
        // Behind something else: positions, where tables begin, and then the tables.
        let mut step = [vec![u32::MAX; 3], positions.clone(), vec![u32::MAX; 2]].concat();
        let (positions_at, tables_at) = (3, step.len());
        let mut table = tables_at + self.tokens.len();
        let tables: Vec<usize> =
            self.sequences.iter().map(|sequence| start(&mut table, sequence.blocks.len())).collect();
        step.extend(self.tokens.iter().map(|(sequence, _)| tables[*sequence] as u32));
        self.sequences.iter().for_each(|sequence| step.extend(&sequence.blocks));
        let step = words(gpu, &step);
        let queries = upload_padded(gpu, &self.queries, self.width(), f32::NAN);
        let input = upload_padded(gpu, &self.input, self.input_width, f32::NAN);
        let (sinks, partials) = (values(gpu, &self.sinks), AttentionKernels::partials(&self.shape, &positions));
        // What a kernel has not written itself, it must not read.
        let partials = values(gpu, &vec![f32::NAN; partials]);
        let output = upload_padded(gpu, &vec![f32::NAN; self.queries.len()], self.width(), f32::NAN);
        kernels.record(
            gpu,
            AttentionStep {
                queries: &queries,
                step: &step,
                keys: &keys,
                values: &kept,
                partials: &partials,
                input: &input,
                input_stride: stride(self.input_width),
                sinks: &sinks,
                output: &output,
                positions_at,
                tables_at,
                positions: &positions,
            },
        );
        assert_zero(&download_pad(gpu, &output, self.tokens.len(), self.width()), "beyond the width");
        let found = download(gpu, &output, self.tokens.len(), self.width());
        gpu.forget_buffers();
        found
    }

    /// The definition.
    fn expected(&self) -> Vec<f32> {
        let heads = |token| (0..self.shape.heads).flat_map(move |head| self.head(token, head));
        (0..self.tokens.len()).flat_map(heads).map(|value| value as f32).collect()
    }

    fn head(&self, token: usize, head: usize) -> Vec<f64> {
        let AttentionShape { heads, kv_heads, head_dim, window, .. } = self.shape;
        let (sequence, position) = (&self.sequences[self.tokens[token].0], self.tokens[token].1 as usize);
        let kv_head = head / (heads / kv_heads);
        let query = &self.queries[(token * heads + head) * head_dim..][..head_dim];
        let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
        let row = |key: usize| (key * kv_heads + kv_head) * head_dim..(key * kv_heads + kv_head + 1) * head_dim;
        let scores: Vec<f64> = (first..=position).map(|key| self.score(query, &sequence.keys[row(key)])).collect();
        let sink = if self.shape.sinks { f64::from(self.sinks[head]) } else { f64::NEG_INFINITY };
        let most = scores.iter().copied().fold(sink, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
        let sum = weights.iter().sum::<f64>() + (sink - most).exp();
        let mut out = vec![0.0; head_dim];
        for (key, weight) in zip(first..=position, weights) {
            zip(&mut out, &sequence.values[row(key)]).for_each(|(out, value)| *out += weight / sum * f64::from(*value));
        }
        out.iter().enumerate().map(|(index, value)| value * self.gate(token, head, index)).collect()
    }

    fn score(&self, query: &[f32], key: &[f32]) -> f64 {
        let sum: f64 = zip(query, key).map(|(query, key)| f64::from(*query) * f64::from(*key)).sum();
        let score = sum * f64::from(self.shape.scale);
        self.shape.cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
    }

    fn gate(&self, token: usize, head: usize, index: usize) -> f64 {
        let head_dim = self.shape.head_dim;
        let column = match self.shape.gate {
            Gate::None => return 1.0,
            Gate::Queries => 2 * head * head_dim + head_dim + index,
            Gate::Heads(column) => column + head,
        };
        1.0 / (1.0 + (-f64::from(self.input[token * self.input_width + column])).exp())
    }

    /// Fails unless the kernels compute what the definition does.
    fn check(&self, gpu: &mut Gpu, tolerance: f32, what: &str) {
        assert_close(&self.run(gpu), &self.expected(), tolerance, &format!("{what}, {:?}", self.shape));
    }
}

/// The start of a part of this length, after which the next one begins.
fn start(next: &mut usize, length: usize) -> usize {
    *next += length;
    *next - length
}

/// The words of a head.
fn packed(values: &[f32], half_kv: bool) -> Vec<u32> {
    if !half_kv {
        return bits(values);
    }
    let halves = |pair: &[f32]| [pair[0], pair[1]].map(|value| u32::from(f16::from_f32(value).to_bits()));
    values.chunks_exact(2).map(halves).map(|[first, second]| first | second << 16).collect()
}

/// Scores of the size of those of models: sums of some hundred products in f32 leave this.
const NEAR: f32 = 1e-5;

/// Both ways that keys and values are kept.
const KEPT: [bool; 2] = [false, true];

#[test]
fn heads_of_every_width_and_group_are_those_of_the_definition() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(40);
    for (heads, kv_heads, head_dim) in [
        (1, 1, 2),
        (7, 1, 2),
        (3, 3, 6),
        (24, 2, 6),
        (8, 2, 8),
        (5, 5, 64),
        (16, 2, 64),
        (14, 2, 64),
        (12, 1, 80),
        (6, 2, 96),
        (9, 3, 128),
        (8, 1, 128),
        (4, 2, 256),
        (12, 1, 256),
        (8, 1, 512),
    ] {
        for half_kv in KEPT {
            let shape = AttentionShape { half_kv, ..plain(heads, kv_heads, head_dim) };
            Inputs::random(&mut rng, shape, &[300, 17], &[(0, 0)]).check(&mut gpu, NEAR, "heads");
        }
    }
}

#[test]
fn contexts_may_have_any_length() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(41);
    // Around the ends of blocks and of spans, side by side.
    let lengths = [1, 2, 15, 16, 17, 255, 256, 257, 511, 512, 513, 700];
    for half_kv in KEPT {
        let shape = AttentionShape { half_kv, ..plain(4, 2, 16) };
        let inputs = Inputs::random(&mut rng, shape, &lengths, &[]);
        inputs.check(&mut gpu, NEAR, "lengths");
    }
}

#[test]
fn queries_see_the_keys_of_their_window() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(42);
    for window in [1, 2, 16, 31, 100, 255, 256, 257, 600, 2000] {
        let shape = AttentionShape { window: Some(window), ..plain(3, 1, 8) };
        let more: Vec<(usize, u32)> =
            (0..640).step_by(37).chain([254, 255, 256, 257, 511, 512]).map(|at| (0, at)).collect();
        let inputs = Inputs::random(&mut rng, shape, &[641, 20, 300], &more);
        inputs.check(&mut gpu, NEAR, "windows");
        // Far ones only, so that the first spans are those of no one. What is before the window is as if it were not there.
        let mut far = inputs.part(0..1);
        let before = 641_usize.saturating_sub(window) * 8;
        far.sequences[0].keys[..before].fill(f32::NAN);
        far.sequences[0].values[..before].fill(f32::NAN);
        far.check(&mut gpu, NEAR, "far windows");
    }
}

#[test]
fn scores_may_be_capped() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(43);
    for cap in [0.5, 5.0, 50.0] {
        for scale in [0.01, 1.0, 300.0] {
            let shape = AttentionShape { cap: Some(cap), scale, ..plain(4, 2, 32) };
            let inputs = Inputs::random(&mut rng, shape, &[280, 3], &[]);
            // A capped score of 50 has an error of 50 units of the seventh digit, which is the relative one of its exponential.
            inputs.check(&mut gpu, 3e-5, "caps");
        }
    }
}

#[test]
fn sinks_take_their_part() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(44);
    for half_kv in KEPT {
        for window in [None, Some(40)] {
            let shape = AttentionShape { sinks: true, window, half_kv, ..plain(8, 2, 24) };
            let mut inputs = Inputs::random(&mut rng, shape, &[1, 30, 300, 560], &[]);
            inputs.check(&mut gpu, NEAR, "sinks");
            // Beside some, nothing else is left, and others do not matter.
            inputs.sinks = vec![-1e30, 90.0, -1000.0, 1e30, 0.0, 1.0, f32::MIN, f32::MAX];
            inputs.check(&mut gpu, NEAR, "extreme sinks");
        }
    }
}

#[test]
fn outputs_may_be_gated() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(45);
    for (heads, kv_heads, head_dim) in [(4, 2, 80), (3, 1, 6), (2, 1, 256)] {
        for gate in [Gate::Queries, Gate::Heads(0), Gate::Heads(2 * heads * head_dim + 3)] {
            let shape = AttentionShape { gate, sinks: head_dim == 6, ..plain(heads, kv_heads, head_dim) };
            let mut inputs = Inputs::random(&mut rng, shape, &[40, 270], &[(1, 5)]);
            inputs.check(&mut gpu, NEAR, "gates");
            inputs.input.iter_mut().for_each(|value| *value *= 1e4);
            inputs.check(&mut gpu, NEAR, "open and closed gates");
        }
    }
}

#[test]
fn everything_may_come_together() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(46);
    let (window, cap) = (Some(290), Some(20.0));
    for half_kv in KEPT {
        let gate = Gate::Queries;
        let shape = AttentionShape { window, cap, sinks: true, gate, half_kv, ..plain(14, 2, 96) };
        let more = [(2, 100), (0, 250), (2, 555), (1, 3)];
        Inputs::random(&mut rng, shape, &[257, 33, 690, 1], &more).check(&mut gpu, NEAR, "all");
    }
}

#[test]
fn the_largest_score_decides_where_scores_are_far_from_each_other() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(47);
    for scale in [1e3, -1e3, 1e20] {
        let shape = AttentionShape { scale, ..plain(4, 2, 16) };
        let inputs = Inputs::random(&mut rng, shape, &[400, 5], &[]);
        inputs.check(&mut gpu, NEAR, "one key");
    }
    // All scores are the same, and as far below or above zero as they can be without being infinite.
    for (query, scale) in [(-1e18, 1e18), (1e18, 1e18), (0.0, 1.0), (1.0, 0.0)] {
        let shape = AttentionShape { scale, ..plain(2, 1, 8) };
        let mut inputs = Inputs::random(&mut rng, shape, &[530, 2], &[]);
        inputs.queries.fill(query);
        inputs.sequences.iter_mut().for_each(|sequence| sequence.keys.fill(1.0));
        inputs.check(&mut gpu, NEAR, "all keys");
    }
}

#[test]
fn halves_are_read_exactly_also_where_they_are_denormal() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(48);
    // One key: the output is its value. More of them need no more than every finite f16 once.
    let finite: Vec<f32> =
        (0..=u16::MAX).map(f16::from_bits).filter(|half| half.is_finite()).map(f16::to_f32).collect();
    let (kv_heads, head_dim) = (8, 512);
    let shape = AttentionShape { half_kv: true, ..plain(kv_heads, kv_heads, head_dim) };
    let sequences = finite.len().div_ceil(kv_heads * head_dim);
    let mut inputs = Inputs::random(&mut rng, shape, &vec![1; sequences], &[]);
    let mut left = finite.iter().cycle();
    for value in inputs.sequences.iter_mut().flat_map(|sequence| &mut sequence.values) {
        *value = *left.next().unwrap();
    }
    assert_eq!(inputs.run(&mut gpu), inputs.expected());
    // One dimension: the score is the key, scaled so that the smallest one counts.
    let shape = AttentionShape { half_kv: true, scale: 1e7, ..plain(1, 1, 2) };
    let mut inputs = Inputs::random(&mut rng, shape, &[2; 40], &[]);
    inputs.queries.fill(0.5);
    for (index, sequence) in inputs.sequences.iter_mut().enumerate() {
        let denormal = f16::from_bits(index as u16 + 1).to_f32();
        sequence.keys = vec![denormal, 0.0, 0.0, -denormal];
    }
    inputs.check(&mut gpu, NEAR, "denormal keys");
}

#[test]
fn tokens_whose_results_do_not_fit_together_follow_each_other() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(49);
    // There is memory for 112 tokens: some near the start, then some of which one is far from it, and then only far ones.
    let far = |token: u32| token == 150 || token >= 224;
    let position = |token: u32| if far(token) { (0, 300 + token) } else { (1, token % 7) };
    let more: Vec<(usize, u32)> = (2..232).map(position).collect();
    for window in [None, Some(100)] {
        let shape = AttentionShape { half_kv: true, window, ..plain(48, 8, 256) };
        let mut inputs = Inputs::random(&mut rng, shape, &[600, 7], &more);
        inputs.tokens[0] = (1, 3);
        let positions: Vec<u32> = inputs.tokens.iter().map(|(_, position)| *position).collect();
        assert_eq!(AttentionKernels::partials(&shape, &positions), 112 * 3 * 48 * (256 + 2));
        inputs.check(&mut gpu, NEAR, "chunks");
    }
}

#[test]
fn the_bits_of_a_token_do_not_depend_on_the_others() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(50);
    let windowed = AttentionShape { window: Some(280), sinks: true, cap: Some(30.0), ..plain(6, 2, 64) };
    let halves = AttentionShape { half_kv: true, gate: Gate::Queries, ..plain(8, 1, 128) };
    for shape in [plain(7, 1, 6), windowed, halves] {
        let mut inputs = Inputs::random(&mut rng, shape, &[600, 1, 300, 690, 40], &[(3, 255), (3, 256), (0, 17)]);
        // One of them is no number.
        let width = inputs.width();
        inputs.queries[4 * width..5 * width].fill(f32::NAN);
        let all = inputs.run(&mut gpu);
        assert!(all[4 * width..5 * width].iter().all(|value| value.is_nan()), "what is no number is not hidden");
        for tokens in [0..1, 1..2, 2..4, 3..4, 5..8, 6..7, 7..8] {
            let found = inputs.part(tokens.clone()).run(&mut gpu);
            assert_eq!(bits(&found), bits(&all[tokens.start * width..tokens.end * width]), "{tokens:?}, {shape:?}");
        }
    }
}
