use super::*;
use crate::delta::advance;
use crate::isa::Isa;
use crate::samples::cases;
use proptest::prelude::*;

/// Numbers of a linear congruential generator (Knuth), in `[-1, 1)`.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// A group of heads with random tokens.
struct Group {
    state_dim: usize,
    head_dim: usize,
    /// `B` and `C`, `[tokens][state_dim]`.
    keys: Vec<f32>,
    queries: Vec<f32>,
    heads: Vec<Head>,
}

struct Head {
    state: Vec<f32>,
    /// Steps, and logarithms of decays.
    steps: Vec<f32>,
    decays: Vec<f32>,
    /// Inputs, and inputs times steps, `[tokens][head_dim]`.
    inputs: Vec<f32>,
    updates: Vec<f32>,
}

/// `rows` rows of `width` values, with zeros up to a multiple of 16.
fn padded_rows(rng: &mut Numbers, rows: usize, width: usize) -> Vec<f32> {
    let mut values = vec![0.0; rows * width.next_multiple_of(LANES)];
    for row in values.chunks_exact_mut(width.next_multiple_of(LANES)) {
        row[..width].iter_mut().for_each(|value| *value = rng.next());
    }
    values
}

impl Group {
    fn random(seed: u64, state_width: usize, head_width: usize, tokens: usize, sharpest: f32) -> Self {
        let rng = &mut Numbers(seed);
        let (state_dim, head_dim) = (state_width.next_multiple_of(LANES), head_width.next_multiple_of(LANES));
        // Of a length that does not grow with their width, as the sums are compared with a bound.
        let vectors = |rng: &mut Numbers| -> Vec<f32> {
            let scale = (state_width as f32).powf(-0.5);
            padded_rows(rng, tokens, state_width).into_iter().map(|value| value * scale).collect()
        };
        let (keys, queries) = (vectors(rng), vectors(rng));
        let heads = (0..2).map(|_| Head::random(rng, [state_width, head_width], tokens, sharpest)).collect();
        Self { state_dim, head_dim, keys, queries, heads }
    }

    fn tokens(&self) -> usize {
        self.keys.len() / self.state_dim
    }

    /// Outputs and last state of a head in f64, token by token, as the paper has the recurrence.
    fn exact(&self, head: &Head) -> (Vec<f64>, Vec<f64>) {
        let (rows, columns) = (self.state_dim, self.head_dim);
        let mut state: Vec<f64> = head.state.iter().map(|value| f64::from(*value)).collect();
        let mut out = Vec::new();
        for token in 0..self.tokens() {
            let (decay, step) = (f64::from(head.decays[token]).exp(), f64::from(head.steps[token]));
            for column in 0..columns {
                let input = f64::from(head.inputs[token * columns + column]);
                let mut sum = 0.0;
                for d in 0..rows {
                    let (b, c) = (self.keys[token * rows + d], self.queries[token * rows + d]);
                    let value = &mut state[d * columns + column];
                    *value = decay * *value + step * f64::from(b) * input;
                    sum += f64::from(c) * *value;
                }
                out.push(sum);
            }
        }
        (out, state)
    }

    /// The same by the kernels, with the tokens of a block computed in parts of these lengths.
    fn computed(&self, head: &Head, isa: Isa, block: usize, part: usize) -> (Vec<f32>, Vec<f32>) {
        let (rows, columns, tokens) = (self.state_dim, self.head_dim, self.tokens());
        let (mut state, mut out) = (head.state.clone(), vec![f32::NAN; tokens * columns]);
        for first in (0..tokens).step_by(block) {
            let last = tokens.min(first + block);
            for from in (first..last).step_by(part) {
                let to = last.min(from + part);
                let (stride, queries) = (block, &self.queries[from * rows..to * rows]);
                let mut products = vec![f32::NAN; (to - from) * stride];
                scores(isa, rows, &self.keys[first * rows..to * rows], queries, stride, &mut products);
                let tokens = ScanBlock {
                    state_dim: rows,
                    head_dim: columns,
                    state: &state,
                    decays: &head.decays[first..to],
                    updates: &head.updates[first * columns..to * columns],
                    queries,
                    scores: &products,
                    stride,
                };
                let mut scratch = vec![f32::NAN; scratch_len(to - first)];
                scan(isa, tokens, &mut scratch, &mut out[from * columns..to * columns]);
            }
            let (keys, updates) =
                (&self.keys[first * rows..last * rows], &head.updates[first * columns..last * columns]);
            let mut scratch = vec![f32::NAN; keys.len()];
            advance(isa, &mut state, keys, &head.decays[first..last], updates, &mut scratch);
        }
        (out, state)
    }
}

impl Head {
    fn random(rng: &mut Numbers, [state_width, head_width]: [usize; 2], tokens: usize, sharpest: f32) -> Self {
        let (state_dim, head_dim) = (state_width.next_multiple_of(LANES), head_width.next_multiple_of(LANES));
        let mut state = padded_rows(rng, state_dim, head_width);
        state[state_width * head_dim..].fill(0.0);
        let (rate, bias) = (-rng.next().abs() * sharpest, rng.next());
        let of_token = |rng: &mut Numbers| step_and_decay(3.0 * rng.next(), bias, rate, [0.0, f32::INFINITY]);
        let (steps, decays): (Vec<f32>, Vec<f32>) = (0..tokens).map(|_| of_token(rng).into()).unzip();
        let inputs = padded_rows(rng, tokens, head_width);
        let updates = inputs.iter().enumerate().map(|(index, input)| input * steps[index / head_dim]).collect();
        Self { state, steps, decays, inputs, updates }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn largest_difference(values: &[f32], exact: &[f64]) -> f64 {
    let differences = values.iter().zip(exact).map(|(value, exact)| (f64::from(*value) - exact).abs());
    differences
        .fold(0.0, |largest, difference| if difference > largest || difference.is_nan() { difference } else { largest })
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn blocks_are_the_recurrence(
        seed in any::<u64>(), state_width in 1..40_usize, head_width in 1..90_usize, tokens in 1..50_usize,
        block in 1..20_usize, sharpest in prop::sample::select(vec![0.1_f32, 3.0, 60.0]),
    ) {
        let group = Group::random(seed, state_width, head_width, tokens, sharpest);
        for head in &group.heads {
            let (exact, last) = group.exact(head);
            let (out, state) = group.computed(head, Isa::SCALAR, block, block);
            let (outputs, states) = (largest_difference(&out, &exact), largest_difference(&state, &last));
            prop_assert!(outputs < 2e-5 && states < 2e-5, "outputs {outputs:e}, states {states:e}");
        }
    }

    #[test]
    fn neither_parts_nor_instruction_sets_change_a_bit(
        seed in any::<u64>(), state_width in 1..40_usize, head_width in 1..90_usize, tokens in 1..40_usize,
        part in 1..17_usize,
    ) {
        let group = Group::random(seed, state_width, head_width, tokens, 2.0);
        let head = &group.heads[0];
        let (expected, last) = group.computed(head, Isa::SCALAR, 16, 16);
        for isa in Isa::available() {
            let (out, state) = group.computed(head, isa, 16, part);
            prop_assert!(bits(&out) == bits(&expected), "outputs in parts of {part}, {}", isa.name());
            prop_assert!(bits(&state) == bits(&last), "states in parts of {part}, {}", isa.name());
        }
    }
}

#[test]
fn steps_are_limited_and_nan_stays() {
    let all = [0.0, f32::INFINITY];
    let [step, decay] = step_and_decay(0.5, 0.25, -2.0, all);
    assert!((step - 0.75_f32.exp().ln_1p()).abs() < 1e-6 && (decay + 2.0 * step).abs() < 1e-6);
    assert_eq!(step_and_decay(-30.0, 0.0, -1.0, [0.25, 0.5]), [0.25, -0.25]);
    assert_eq!(step_and_decay(30.0, 0.0, -1.0, [0.25, 0.5]), [0.5, -0.5]);
    assert_eq!(step_and_decay(1e30, 0.0, -1e9, all)[1], bounded_decay(f32::NEG_INFINITY), "e^g is zero, not NaN");
    assert!(step_and_decay(f32::NAN, 0.0, -1.0, [0.25, 0.5]).iter().all(|value| value.is_nan()));
}
