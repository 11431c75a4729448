//! A runner whose layers keep a recurrent state, and nothing in blocks: `s = s / 2 + x`, of which `x + s` goes on.

use std::collections::HashMap;

use braidinfer::executor::{
    ActiveKernels, Capabilities, Decoder, ExecutorReport, KernelPlan, KvCacheConfig, KvDtype, LayerRunner, LayerState,
    Logits, Outputs, Probe, Step, WantedRows,
};
use braidinfer::kernels::NumericLevel;
use braidinfer::model::{DecoderSpec, Weights};
use braidinfer::{Error, Result};

pub struct Recurrent {
    spec: DecoderSpec,
    block_size: usize,
    /// By state slot and layer.
    states: HashMap<(u32, usize), State>,
    hidden: Vec<Vec<f32>>,
    /// A layer that forgets nothing, which is wrong.
    wrong: Option<usize>,
    /// How far back it says that blocks are read, which are not read at all.
    window: Option<usize>,
}

/// The state at a block boundary, and what came after it.
#[derive(Clone, Default)]
struct State {
    boundary: usize,
    sum: Vec<f32>,
    inputs: Vec<Vec<f32>>,
}

/// A decoder of such layers with the sizes of `spec`.
pub fn decoder(
    spec: &DecoderSpec,
    weights: &Weights,
    storage: KvCacheConfig,
    wrong: Option<usize>,
    window: Option<usize>,
) -> Decoder<'static> {
    let plan = KernelPlan::fastest(spec, weights, NumericLevel::F32, KvDtype::F32);
    let (states, hidden) = (HashMap::new(), Vec::new());
    let runner = Recurrent { spec: spec.clone(), block_size: storage.block_size, states, hidden, wrong, window };
    Decoder::new(spec.clone(), storage, plan, runner)
}

impl Recurrent {
    fn embedding(&self, token: u32) -> Vec<f32> {
        let value = |index| ((token as usize * 31 + index * (7 + token as usize % 5)) % 17) as f32 / 17.0 - 0.5;
        (0..self.spec.hidden_size).map(value).collect()
    }
}

fn advance(sum: &mut Vec<f32>, input: &[f32], share: f32) {
    sum.resize(input.len(), 0.0);
    sum.iter_mut().zip(input).for_each(|(sum, input)| *sum = *sum * share + input);
}

impl LayerRunner for Recurrent {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            same_bits_in_company: true,
            shares_prefixes: true,
            takes_back_drafts: true,
            computes_argmax: false,
        }
    }

    fn report(&self, plan: &KernelPlan) -> ExecutorReport {
        let (isa, kv_dtypes) = ("none", plan.kv_dtypes.clone());
        let (kernels, main_level, levels) = (ActiveKernels::Fused, NumericLevel::F32, plan.summary());
        ExecutorReport {
            kernels,
            isa: isa.to_owned(),
            threads: 1,
            weight_bytes: 0,
            pack_time: None,
            levels,
            main_level,
            kv_dtypes,
            device: None,
        }
    }

    fn layer_state(&self, _layer: usize, _plan: &KernelPlan) -> LayerState {
        let inputs = 2 * self.block_size;
        let bytes_per_sequence = 4 * self.spec.hidden_size * (1 + inputs);
        LayerState { bytes_per_token: 0, bytes_per_sequence, window: self.window }
    }

    fn begin(&mut self, _step: Step<'_>) -> Result<()> {
        Ok(())
    }

    fn embed(&mut self, step: Step<'_>, _probe: &mut dyn Probe) -> Result<()> {
        self.hidden = step.batch.token_ids.iter().map(|token| self.embedding(*token)).collect();
        Ok(())
    }

    fn layer(&mut self, index: usize, step: Step<'_>, probe: &mut dyn Probe) -> Result<()> {
        let share = if self.wrong == Some(index) { 1.0 } else { 0.5 };
        for (range, sequence) in step.batch.ranges() {
            let state = self.states.entry((sequence.state_slot, index)).or_default();
            if sequence.context_len == 0 {
                *state = State::default();
            }
            let known = sequence.context_len.checked_sub(state.boundary).filter(|known| *known <= state.inputs.len());
            let Some(known) = known else {
                let found = format!("position {} after {}", sequence.context_len, state.boundary);
                return Err(Error::Internal(format!("slot {}: {found}", sequence.state_slot)));
            };
            state.inputs.truncate(known);
            let mut sum = state.sum.clone();
            state.inputs.iter().for_each(|input| advance(&mut sum, input, share));
            for hidden in &mut self.hidden[range] {
                advance(&mut sum, hidden, share);
                state.inputs.push(hidden.clone());
                hidden.iter_mut().zip(&sum).for_each(|(hidden, sum)| *hidden += sum);
            }
            let certain = sequence.positions().end - sequence.draft_len;
            let boundary = certain / self.block_size * self.block_size;
            for input in state.inputs.drain(..boundary.saturating_sub(state.boundary)) {
                advance(&mut state.sum, &input, share);
            }
            state.boundary = boundary.max(state.boundary);
        }
        let name = format!("layer.{index}.output");
        if probe.wants(&name) {
            probe.record(&name, self.hidden.len(), self.hidden.concat());
        }
        Ok(())
    }

    fn head(&mut self, rows: WantedRows<'_>, _step: Step<'_>, _probe: &mut dyn Probe) -> Result<Outputs> {
        let logit =
            |hidden: &Vec<f32>, token| hidden.iter().zip(self.embedding(token)).map(|(a, b)| a * b).sum::<f32>();
        let of = |row: &usize| {
            let hidden = &self.hidden[*row];
            (0..self.spec.vocab_size as u32).map(move |token| logit(hidden, token))
        };
        let logits = rows.logits.iter().flat_map(of).collect();
        let hidden = rows.hidden.iter().map(|row| self.hidden[*row].clone()).collect();
        Ok(Outputs { logits: Logits::new(logits, self.spec.vocab_size), argmax: Vec::new(), hidden })
    }

    fn hidden(&mut self) -> Result<Vec<f32>> {
        Ok(self.hidden.concat())
    }

    fn set_hidden(&mut self, hidden: &[f32]) -> Result<()> {
        self.hidden = hidden.chunks(self.spec.hidden_size).map(<[f32]>::to_vec).collect();
        Ok(())
    }

    fn copy_state(&mut self, from: u32, to: u32) -> Result<()> {
        for layer in 0..self.spec.layers.len() {
            let state = self.states.get(&(from, layer)).cloned().unwrap_or_default();
            self.states.insert((to, layer), state);
        }
        Ok(())
    }
}
