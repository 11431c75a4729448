//! Roofline: the least memory traffic and arithmetic of a run, compared with what the machine can do.

use braidinfer::executor::KvDtype;
use braidinfer::kernels::NumericLevel;
use braidinfer::model::DecoderSpec;
use braidinfer::model::spec::{AttentionSpec, ExpertsSpec, FeedForward, LayerSpec, Mixer, SharedExpertSpec};
use serde::{Deserialize, Serialize};

use super::contestant::Described;
use super::machine::Ceilings;
use super::plan::{Case, Phase};

/// Memory traffic and arithmetic of one run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Workload {
    /// Bytes read: the weights that a step needs, once per step, and the keys and values that every sequence attends to.
    pub bytes: f64,
    /// Two operations per token and weight of a projection; attention is left out.
    pub operations: f64,
}

/// The ceiling that limits a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// Memory bandwidth.
    Read,
    /// Arithmetic throughput.
    Multiply,
    /// How fast the memory of a GPU is copied, read and written together.
    Copy,
}

impl Bound {
    /// The name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Multiply => "multiply",
            Self::Copy => "copy",
        }
    }
}

impl Workload {
    /// The share that the run reached in `seconds` of how fast the memory of a GPU can be copied.
    pub fn share_of_copy(&self, seconds: f64, copy_gb_s: f64) -> (f64, Bound) {
        (self.bytes / seconds / 1e9 / copy_gb_s, Bound::Copy)
    }

    pub fn of(case: Case, described: &Described) -> Self {
        let (spec, executor) = (&described.spec, &described.executor);
        let steps: Vec<_> = case.steps(described.step_tokens).collect();
        let seen: usize = steps.iter().map(|len| visible_bytes(spec, &executor.kv_dtypes, *len)).sum();
        let tokens = if case.phase == Phase::Prefill { case.tokens.min(described.step_tokens) } else { case.batch };
        let sampled = if case.phase == Phase::Prefill { 1 } else { case.tokens };
        let products = case.tokens as f64 * layer_weights(spec, chosen) + sampled as f64 * head_weights(spec);
        Self {
            bytes: steps.len() as f64 * executor.weight_bytes as f64 * share_read(spec, tokens)
                + (case.batch * seen) as f64,
            operations: 2.0 * case.batch as f64 * products,
        }
    }

    /// The share of the ceiling that the run reached in `seconds`, and which ceiling that is: arithmetic for prefill, memory
    /// bandwidth for decoding one sequence, and the one with the larger share for several sequences.
    pub fn share(&self, case: Case, seconds: f64, level: NumericLevel, ceilings: &Ceilings) -> (f64, Bound) {
        let read = (self.bytes / seconds / 1e9 / ceilings.read_gb_s, Bound::Read);
        let multiply = (self.operations / seconds / 1e9 / ceilings.multiply(level), Bound::Multiply);
        match case.phase {
            Phase::Prefill => multiply,
            Phase::Decode if case.batch == 1 || read.0 >= multiply.0 => read,
            Phase::Decode => multiply,
        }
    }
}

/// Size of the keys and values that the last token of a sequence of `len` tokens attends to, in all layers, in bytes.
fn visible_bytes(spec: &DecoderSpec, kv_dtypes: &[KvDtype], len: usize) -> usize {
    let of_layer = |(index, layer): (usize, &LayerSpec)| {
        let Mixer::Attention { attention, sliding_window, kv_shared_with, .. } = layer.mixer else { return 0 };
        let AttentionSpec { num_key_value_heads, head_dim, .. } = spec.attentions[attention];
        kv_dtypes[kv_shared_with.unwrap_or(index)].token_bytes(num_key_value_heads, head_dim)
            * sliding_window.map_or(len, |window| window.min(len))
    };
    spec.layers.iter().enumerate().map(of_layer).sum()
}

/// Number of weights in the projections of all layers; in layers with a mixture of experts, `used` of them count.
fn layer_weights(spec: &DecoderSpec, used: impl Fn(&ExpertsSpec) -> f64) -> f64 {
    // A layer's share of the projection of its further inputs, its gate, and the way back.
    let further = spec.per_layer_inputs.map_or(0, |inputs| 3 * inputs.hidden_size_per_layer_input);
    // Those of a low-rank branch, and of the router of residual streams.
    let further = further + spec.laurel.map_or(0, |laurel| 2 * laurel.laurel_rank);
    let further = further + spec.altup.map_or(0, |altup| altup.altup_num_inputs);
    let of_layer = |layer: &LayerSpec| {
        let mixer = match layer.mixer {
            Mixer::Attention { attention, kv_shared_with, .. } => {
                let attention = &spec.attentions[attention];
                attention.projected_rows(kv_shared_with.is_none()) + attention.output_width()
            }
            Mixer::DeltaNet { delta_net } => {
                let net = &spec.delta_nets[delta_net];
                net.conv_width() + 2 * net.value_width() + 2 * net.linear_num_value_heads
            }
            Mixer::ShortConv { .. } => 4 * spec.hidden_size,
            Mixer::Mamba2 { .. } | Mixer::None => 0,
        };
        let mamba2 = match layer.mixer {
            Mixer::Mamba2 { mamba2 } => Some(mamba2),
            _ => layer.mamba2_beside,
        };
        let mamba2 = mamba2.map_or(0, |index| spec.mamba2s[index].input_rows() + spec.mamba2s[index].inner_width());
        ((mixer + mamba2) as f64 + feed_forward_rows(&layer.feed_forward, &used) + further as f64)
            * spec.hidden_size as f64
    };
    spec.layers.iter().map(of_layer).sum()
}

/// Rows of as many values as the residual stream has, in all matrices of a feed-forward part.
fn feed_forward_rows(feed_forward: &FeedForward, used: impl Fn(&ExpertsSpec) -> f64) -> f64 {
    match feed_forward {
        FeedForward::Dense { intermediate_size, gated, .. } => (if *gated { 3 } else { 2 } * intermediate_size) as f64,
        FeedForward::Experts(experts) => {
            let matrices = if experts.gated { 3 } else { 2 };
            let of_shared = |shared: SharedExpertSpec| matrices * shared.intermediate_size + usize::from(shared.gated);
            let shared = experts.shared_expert.map_or(0, of_shared);
            used(experts) * (matrices * experts.intermediate_size) as f64 + (shared + experts.num_experts) as f64
        }
        FeedForward::None => 0.0,
    }
}

fn chosen(experts: &ExpertsSpec) -> f64 {
    experts.num_experts_per_tok as f64
}

/// The share of the weights that a step with this many tokens reads, if tokens choose experts independently of each other.
fn share_read(spec: &DecoderSpec, tokens: usize) -> f64 {
    let all = |experts: &ExpertsSpec| experts.num_experts as f64;
    let used = |experts: &ExpertsSpec| {
        let unused = (1.0 - chosen(experts) / all(experts)).powf(tokens as f64);
        all(experts) * (1.0 - unused)
    };
    (layer_weights(spec, used) + head_weights(spec)) / (layer_weights(spec, all) + head_weights(spec))
}

/// Number of weights in the output head, and in projections between residual streams.
fn head_weights(spec: &DecoderSpec) -> f64 {
    ((spec.vocab_size + 2 * (spec.streams() - 1) * spec.hidden_size) * spec.hidden_size) as f64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use braidinfer::executor::{ActiveKernels, ExecutorReport, KvDtype, ReadPattern};
    use braidinfer::model::{Weights, describe};

    use super::*;
    use crate::demo;

    fn demo_model() -> Described {
        let (description, _) = describe(&demo::SOURCE).expect("the demo model is whole");
        let executor = ExecutorReport {
            kernels: ActiveKernels::Fused,
            isa: "scalar".into(),
            threads: 1,
            weight_bytes: 1_000_000,
            pack_time: None,
            levels: Vec::new(),
            main_level: NumericLevel::F32,
            kv_dtypes: vec![KvDtype::F16; description.spec.layers.len()],
            device: None,
        };
        let time = Duration::ZERO;
        let spec = description.spec;
        Described {
            name: "fused".into(),
            spec,
            executor,
            step_tokens: 512,
            load: time,
            first_token: time,
            peak_memory: None,
            read_gb_s: None,
            copy_gb_s: None,
        }
    }

    fn case(phase: Phase, batch: usize, context: usize, tokens: usize) -> Case {
        Case { phase, batch, context, tokens }
    }

    #[test]
    fn every_weight_of_a_matrix_is_multiplied_once_per_token() {
        let (description, _) = describe(&demo::SOURCE).expect("the demo model is whole");
        let weights = Weights::open(&demo::SOURCE, &description.spec, &description.names).expect("it is whole");
        let spec = &description.spec;
        assert!(spec.tie_word_embeddings, "so that the head is counted once");
        let norms = (2 * spec.layers.len() + 1) * spec.hidden_size;
        let matrices = (weights.parameter_count() - norms) as f64;
        let model = demo_model();
        let work = |case| Workload::of(case, &model).operations;
        assert_eq!(work(case(Phase::Decode, 3, 10, 5)), 2.0 * 3.0 * 5.0 * matrices);
        let head = (spec.vocab_size * spec.hidden_size) as f64;
        assert_eq!(work(case(Phase::Prefill, 1, 0, 700)), 2.0 * (700.0 * (matrices - head) + head));
    }

    #[test]
    fn weights_are_read_once_per_step_and_keys_and_values_per_sequence() {
        let mut model = demo_model();
        // 4 layers, keys and values, 2 heads, 32 values of 2 bytes.
        let position = 4 * 2 * 2 * 32 * 2;
        let bytes = |model: &Described, case| Workload::of(case, model).bytes as usize;
        assert_eq!(bytes(&model, case(Phase::Decode, 3, 10, 2)), 2 * 1_000_000 + 3 * (11 + 12) * position);
        assert_eq!(bytes(&model, case(Phase::Prefill, 1, 0, 700)), 2 * 1_000_000 + (512 + 700) * position);
        if let Mixer::Attention { sliding_window, .. } = &mut model.spec.layers[0].mixer {
            *sliding_window = Some(8);
        }
        let windowed = (3 * 11 + 8) * position / 4;
        assert_eq!(bytes(&model, case(Phase::Decode, 1, 10, 1)), 1_000_000 + windowed);
    }

    #[test]
    fn the_ceiling_is_that_of_the_bottleneck() {
        let ceilings = Ceilings {
            read_gb_s: 10.0,
            read_pattern: ReadPattern::ALL[0],
            int8_gop_s: 400.0,
            bf16_gflop_s: 200.0,
            f32_gflop_s: 100.0,
        };
        let share = |bytes, operations, phase, batch, level| {
            let work = Workload { bytes, operations };
            work.share(case(phase, batch, 0, 1), 2.0, level, &ceilings)
        };
        let level = NumericLevel::F32;
        assert_eq!(share(10e9, 20e9, Phase::Decode, 1, level), (0.5, Bound::Read));
        assert_eq!(share(10e9, 20e9, Phase::Decode, 8, level), (0.5, Bound::Read));
        assert_eq!(share(10e9, 160e9, Phase::Decode, 8, level), (0.8, Bound::Multiply));
        assert_eq!(share(10e9, 160e9, Phase::Decode, 1, level), (0.5, Bound::Read));
        assert_eq!(share(10e9, 20e9, Phase::Prefill, 1, NumericLevel::Int8), (0.025, Bound::Multiply));
    }
}
