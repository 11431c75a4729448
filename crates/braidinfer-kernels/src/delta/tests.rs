use super::*;
use crate::elementwise::logistic;
use crate::isa::Isa;
use crate::samples::cases;
use proptest::prelude::*;

/// Numbers of a linear congruential generator (Knuth), in `[0, 1)`.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 24) as f32
    }
}

/// One value head with random tokens.
struct Head {
    key_dim: usize,
    value_dim: usize,
    state: Vec<f32>,
    keys: Vec<f32>,
    queries: Vec<f32>,
    values: Vec<f32>,
    decays: Vec<f32>,
    betas: Vec<f32>,
}

/// `rows` rows of `width` values, with zeros up to a multiple of 16.
fn padded_rows(rng: &mut Numbers, rows: usize, width: usize) -> Vec<f32> {
    let mut values = vec![0.0; rows * width.next_multiple_of(LANES)];
    for row in values.chunks_exact_mut(width.next_multiple_of(LANES)) {
        row[..width].iter_mut().for_each(|value| *value = 2.0 * rng.next() - 1.0);
    }
    values
}

impl Head {
    fn random(seed: u64, key_width: usize, value_width: usize, tokens: usize, sharpest: f32) -> Self {
        let rng = &mut Numbers(seed);
        let (key_dim, value_dim) = (key_width.next_multiple_of(LANES), value_width.next_multiple_of(LANES));
        let mut state = padded_rows(rng, key_dim, value_width);
        state[key_width * value_dim..].fill(0.0);
        let normed = |rng: &mut Numbers, scale| {
            let mut rows = padded_rows(rng, tokens, key_width);
            rows.chunks_exact_mut(key_dim).for_each(|row| normalize_l2(Isa::SCALAR, row, scale));
            rows
        };
        let (keys, queries) = (normed(rng, 1.0), normed(rng, (key_width as f32).powf(-0.5)));
        let decays = (0..tokens).map(|_| -rng.next().powi(4) * sharpest).collect();
        let betas = (0..tokens).map(|_| rng.next()).collect();
        Self { key_dim, value_dim, state, keys, queries, values: padded_rows(rng, tokens, value_width), decays, betas }
    }

    fn tokens(&self) -> usize {
        self.betas.len()
    }

    /// Outputs and last state in f64, by the recurrence.
    fn exact(&self) -> (Vec<f64>, Vec<f64>) {
        let (rows, columns) = (self.key_dim, self.value_dim);
        let mut state: Vec<f64> = self.state.iter().map(|value| f64::from(*value)).collect();
        let mut out = Vec::new();
        for token in 0..self.tokens() {
            let of = |values: &[f32], width: usize| -> Vec<f64> {
                values[token * width..][..width].iter().map(|value| f64::from(*value)).collect()
            };
            let (key, query, value) = (of(&self.keys, rows), of(&self.queries, rows), of(&self.values, columns));
            state.iter_mut().for_each(|value| *value *= f64::from(self.decays[token]).exp());
            for column in 0..columns {
                let read =
                    |state: &[f64], x: &[f64]| (0..rows).map(|d| state[d * columns + column] * x[d]).sum::<f64>();
                let delta = f64::from(self.betas[token]) * (value[column] - read(&state, &key));
                (0..rows).for_each(|d| state[d * columns + column] += key[d] * delta);
                out.push(read(&state, &query));
            }
        }
        (out, state)
    }

    /// Outputs and last state by the kernels, with the tokens of a block computed in parts of these lengths.
    fn computed(&self, isa: Isa, block: usize, part: usize) -> (Vec<f32>, Vec<f32>) {
        let (rows, columns) = (self.key_dim, self.value_dim);
        let (mut state, mut out) = (self.state.clone(), vec![f32::NAN; self.tokens() * columns]);
        let mut deltas = vec![f32::NAN; self.tokens() * columns];
        for first in (0..self.tokens()).step_by(block) {
            let last = self.tokens().min(first + block);
            for from in (first..last).step_by(part) {
                let to = last.min(from + part);
                let mut scratch = vec![f32::NAN; scratch_len(to - first, to - from, columns)];
                let tokens = DeltaBlock {
                    key_dim: rows,
                    value_dim: columns,
                    state: &state,
                    keys: &self.keys[first * rows..to * rows],
                    decays: &self.decays[first..to],
                    queries: &self.queries[from * rows..to * rows],
                    values: &self.values[from * columns..to * columns],
                    betas: &self.betas[from..to],
                };
                let deltas = &mut deltas[first * columns..to * columns];
                delta_rule(isa, tokens, deltas, &mut scratch, &mut out[from * columns..to * columns]);
            }
            let (keys, deltas) = (&self.keys[first * rows..last * rows], &deltas[first * columns..last * columns]);
            let mut scratch = vec![f32::NAN; keys.len()];
            advance(isa, &mut state, keys, &self.decays[first..last], deltas, &mut scratch);
        }
        (out, state)
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn largest_difference(values: &[f32], exact: &[f64]) -> f64 {
    values
        .iter()
        .zip(exact)
        .map(|(value, exact)| (f64::from(*value) - exact).abs())
        .fold(0.0, |largest, difference| if difference > largest || difference.is_nan() { difference } else { largest })
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn blocks_are_the_recurrence(
        seed in any::<u64>(), key_width in 1..40_usize, value_width in 1..70_usize, tokens in 1..50_usize,
        block in 1..20_usize, sharpest in prop::sample::select(vec![0.1_f32, 3.0, 60.0]),
    ) {
        let head = Head::random(seed, key_width, value_width, tokens, sharpest);
        let (exact, last) = head.exact();
        let (out, state) = head.computed(Isa::SCALAR, block, block);
        let (outputs, states) = (largest_difference(&out, &exact), largest_difference(&state, &last));
        prop_assert!(outputs < 1e-5 && states < 1e-5, "outputs {outputs:e}, states {states:e}");
    }

    #[test]
    fn neither_parts_nor_instruction_sets_change_a_bit(
        seed in any::<u64>(), key_width in 1..40_usize, value_width in 1..70_usize, tokens in 1..40_usize,
        part in 1..17_usize,
    ) {
        let head = Head::random(seed, key_width, value_width, tokens, 2.0);
        let (expected, last) = head.computed(Isa::SCALAR, 16, 16);
        for isa in Isa::available() {
            let (out, state) = head.computed(isa, 16, part);
            prop_assert!(bits(&out) == bits(&expected), "outputs in parts of {part}, {}", isa.name());
            prop_assert!(bits(&state) == bits(&last), "states in parts of {part}, {}", isa.name());
        }
    }
}

#[test]
fn decays_are_bounded_and_nan_stays() {
    assert!((log_decay(0.5, -(-1.0_f32).exp(), 0.25) + (-1.0_f32).exp() * 0.75_f32.exp().ln_1p()).abs() < 1e-6);
    assert_eq!(log_decay(1e30, -5e34, 0.0), LEAST_DECAY);
    assert_eq!(log_decay(-1e30, -1.0, 0.0), 0.0);
    assert!(log_decay(f32::NAN, -1.0, 0.0).is_nan());
    assert_eq!((logistic(0.0), logistic(f32::INFINITY), logistic(f32::NEG_INFINITY)), (0.5, 1.0, 0.0));
}

#[test]
fn vectors_of_zeros_stay_zeros() {
    let mut zeros = [0.0; 32];
    normalize_l2(Isa::SCALAR, &mut zeros, 1.0);
    assert_eq!(zeros, [0.0; 32]);
}
