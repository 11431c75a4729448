//! Mixtures of experts, written plainly: every expert runs on the tokens that chose it.

use braidinfer_model::spec::{ExpertGroups, ExpertsSpec, GroupScore, RouterSpec, ScoringFunction};
use candle_core::{DType, Tensor};

use super::feed_forward::DenseFeedForward;
use super::linear::Linear;
use super::norm::Norm;
use super::trace::Trace;
use crate::Result;
use crate::executor::branch_norms::BranchNorms;

/// A router, its experts, and the expert that serves every token.
#[derive(Debug)]
pub(super) struct Mixture {
    pub(super) spec: ExpertsSpec,
    pub(super) router: Linear,
    /// Added to the scores for the choice, `[E]`.
    pub(super) correction: Option<Vec<f32>>,
    pub(super) experts: Vec<DenseFeedForward>,
    pub(super) shared_expert: Option<SharedExpert>,
    /// Norm of the router's input, if that is the residual stream.
    pub(super) router_norm: Option<Norm>,
    /// Factor of the weight of every expert, `[E]`.
    pub(super) per_expert_scale: Option<Vec<f32>>,
    pub(super) branch_norms: Option<BranchNorms<Norm>>,
}

/// The expert that serves every token.
#[derive(Debug)]
pub(super) struct SharedExpert {
    pub(super) network: DenseFeedForward,
    /// To one output, whose logistic function is a factor of the network's output.
    pub(super) gate: Option<Linear>,
}

/// An expert that was chosen for a token, and the factor of its output.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Choice {
    expert: usize,
    weight: f32,
}

impl Mixture {
    /// `[T, h]` to `[T, h]`; `x` is the normed residual stream. Outputs are summed in f32, in the order of the experts, that
    /// of the shared one last.
    pub(super) fn forward(&self, x: &Tensor, residual: &Tensor, trace: &mut Trace) -> Result<Tensor> {
        let choices = self.route(x, residual, trace)?;
        let routed = match &self.branch_norms {
            Some(norms) => norms.experts_output.forward(&self.sum(&norms.experts.forward(residual)?, &choices)?)?,
            None => self.sum(x, &choices)?,
        };
        let sum = match (&self.shared_expert, &self.branch_norms) {
            (Some(shared), Some(norms)) => (routed + norms.shared_output.forward(&shared.forward(x)?)?)?,
            (Some(shared), None) => (routed + shared.forward(x)?)?,
            (None, _) => routed,
        };
        Ok(sum.to_dtype(x.dtype())?)
    }

    /// The experts of every token.
    fn route(&self, x: &Tensor, residual: &Tensor, trace: &mut Trace) -> Result<Vec<Vec<Choice>>> {
        let logits = match &self.router_norm {
            Some(norm) => self.router.forward_f32(&norm.forward(residual)?)?,
            None => self.router.forward_f32(x)?,
        };
        trace.record("ffn.router", &logits)?;
        let rows = logits.to_vec2::<f32>()?;
        let choices: Vec<Vec<Choice>> = rows.iter().map(|logits| self.choose(logits)).collect();
        trace.rows(
            "ffn.choice_scores",
            rows.iter().map(|logits| self.choice_scores(&scores(&self.spec.router, logits))),
        );
        trace.rows("ffn.routing", choices.iter().map(|choices| self.routing(choices)));
        Ok(choices)
    }

    /// The weighted sum of the chosen experts, in f32.
    fn sum(&self, x: &Tensor, choices: &[Vec<Choice>]) -> Result<Tensor> {
        let mut sum = Tensor::zeros(x.shape(), DType::F32, x.device())?;
        for (index, expert) in self.experts.iter().enumerate() {
            let of =
                |choices: &[Choice]| choices.iter().find(|choice| choice.expert == index).map(|found| found.weight);
            let chosen = choices.iter().enumerate().filter_map(|(row, choices)| Some((row as u32, of(choices)?)));
            let (tokens, weights): (Vec<u32>, Vec<f32>) = chosen.unzip();
            if tokens.is_empty() {
                continue;
            }
            let weights = Tensor::new(weights, x.device())?.unsqueeze(1)?;
            let tokens = Tensor::new(tokens, x.device())?;
            let output = expert.forward(&x.index_select(&tokens, 0)?)?.to_dtype(DType::F32)?;
            sum = sum.index_add(&tokens, &output.broadcast_mul(&weights)?, 0)?;
        }
        Ok(sum)
    }

    /// All linear layers.
    pub(super) fn projections(&self) -> impl Iterator<Item = &Linear> {
        let networks = self.experts.iter().chain(self.shared_expert.iter().map(|shared| &shared.network));
        let gate = self.shared_expert.iter().filter_map(|shared| shared.gate.as_ref());
        networks.flat_map(DenseFeedForward::projections).chain([&self.router]).chain(gate)
    }

    /// What experts with these scores are chosen by, `[E]`.
    fn choice_scores(&self, scores: &[f32]) -> Vec<f32> {
        match &self.correction {
            Some(correction) => scores.iter().zip(correction).map(|(score, correction)| score + correction).collect(),
            None => scores.to_vec(),
        }
    }

    /// The weight of every expert for a token, `[E]`: zero where it is not chosen.
    fn routing(&self, choices: &[Choice]) -> Vec<f32> {
        let mut weights = vec![0.0; self.spec.num_experts];
        choices.iter().for_each(|choice| weights[choice.expert] = choice.weight);
        weights
    }

    /// The experts for a token, in the order of their indices.
    fn choose(&self, logits: &[f32]) -> Vec<Choice> {
        let router = &self.spec.router;
        let mut choices = match router.scoring_func {
            ScoringFunction::Sparsemixer { router_jitter_noise } => {
                sparsemixer(logits, self.spec.num_experts_per_tok, router_jitter_noise as f32)
            }
            ScoringFunction::Softmax | ScoringFunction::Sigmoid => self.best(logits),
        };
        if router.norm_topk_prob {
            let sum = choices.iter().map(|choice| choice.weight).sum::<f32>() + router.norm_eps as f32;
            choices.iter_mut().for_each(|choice| choice.weight /= sum.max(router.norm_min as f32));
        }
        choices.iter_mut().for_each(|choice| choice.weight *= router.routed_scaling_factor as f32);
        if let Some(scale) = &self.per_expert_scale {
            choices.iter_mut().for_each(|choice| choice.weight *= scale[choice.expert]);
        }
        choices.sort_by_key(|choice| choice.expert);
        choices
    }

    /// The experts with the best scores, each with its score as weight.
    fn best(&self, logits: &[f32]) -> Vec<Choice> {
        let scores = scores(&self.spec.router, logits);
        let mut by = self.choice_scores(&scores);
        if let Some(groups) = self.spec.router.groups {
            exclude_groups(groups, &mut by);
        }
        let order = descending(&by).into_iter().take(self.spec.num_experts_per_tok);
        order.map(|expert| Choice { expert, weight: scores[expert] }).collect()
    }
}

impl SharedExpert {
    /// `[T, h]` to `[T, h]` in f32.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let output = self.network.forward(x)?.to_dtype(DType::F32)?;
        let Some(gate) = &self.gate else { return Ok(output) };
        Ok(output.broadcast_mul(&candle_nn::ops::sigmoid(&gate.forward_f32(x)?)?)?)
    }
}

fn scores(router: &RouterSpec, logits: &[f32]) -> Vec<f32> {
    match router.scoring_func {
        ScoringFunction::Softmax => softmax(logits),
        ScoringFunction::Sigmoid => logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect(),
        ScoringFunction::Sparsemixer { .. } => logits.to_vec(),
    }
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f32> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f32 = exponentials.iter().sum();
    exponentials.iter().map(|value| value / sum).collect()
}

/// Indices by descending score; among equal scores, the lowest first.
fn descending(scores: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    order
}

/// Sets the scores of all but the best groups to minus infinity.
fn exclude_groups(groups: ExpertGroups, scores: &mut [f32]) {
    let width = scores.len() / groups.n_group;
    let of_group = |scores: &[f32]| {
        let best = descending(scores);
        match groups.score {
            GroupScore::Best => scores[best[0]],
            GroupScore::TwoBest => scores[best[0]] + scores[best[1]],
        }
    };
    let by_group: Vec<f32> = scores.chunks_exact(width).map(of_group).collect();
    for group in descending(&by_group).into_iter().skip(groups.topk_group) {
        scores[group * width..(group + 1) * width].fill(f32::NEG_INFINITY);
    }
}

/// The best expert, weighted by a softmax over the logits that are near its own; then the best of the rest likewise.
fn sparsemixer(logits: &[f32], count: usize, jitter: f32) -> Vec<Choice> {
    let mut left = logits.to_vec();
    let mut choices = Vec::with_capacity(count);
    for _ in 0..count {
        let best = descending(&left)[0];
        let largest = left[best];
        // The distance is relative to the logits before any was taken out.
        let near = |(logit, left): (&f32, &f32)| match (largest - logit) / logit.abs().max(largest) {
            distance if distance > 2.0 * jitter => f32::NEG_INFINITY,
            _ => *left,
        };
        let candidates: Vec<f32> = logits.iter().zip(&left).map(near).collect();
        choices.push(Choice { expert: best, weight: softmax(&candidates)[best] });
        left[best] = f32::NEG_INFINITY;
    }
    choices
}
