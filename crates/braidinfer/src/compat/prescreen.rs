//! Prediction from the weights alone: the score that the project inherited, reported beside the measurement.
//!
//! Large key norm weights amplify every rounding before the softmax. The score was once the whole verdict, and called
//! models incompatible that run well on kernels with accurate keys; so it is only a prediction.

use braidinfer_model::spec::NormSpec;
use braidinfer_model::{DecoderSpec, LayerSlot, Param, Slot, Weights};
use serde::{Deserialize, Serialize};

use super::Status;
use crate::Result;

/// Ratio of the largest to the median weight above which a layer counts as extreme.
const EXTREME_RATIO: f64 = 10.0;
/// A ratio or largest weight up to the first value is harmless; the risk rises linearly up to the second.
const RAMP: [f64; 2] = [15.0, 20.0];

/// The prediction from the norm weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Predicted {
    /// Status for the score.
    pub status: Status,
    /// 0.4 for ratios, 0.3 for extreme layers, 0.3 for the largest weight; 1 without key norms.
    pub score: f64,
    /// Largest magnitude of a key norm weight; `None` without key norms.
    pub max_weight: Option<f64>,
    /// Largest ratio, within a key norm, of the largest to the median magnitude.
    pub max_ratio: Option<f64>,
    /// Number of layers whose key norm has a ratio above 10.
    pub extreme_layers: usize,
    /// Bound for the error of an attention score, in nats, per unit of relative rounding error in the keys.
    pub amplification: Option<f64>,
    /// Statistics of every norm.
    pub norms: Vec<NormStatistics>,
}

/// Statistics of the effective weights of one norm, with offsets added.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NormStatistics {
    /// Index of the layer; `None` for the final norm.
    pub layer: Option<usize>,
    /// `input_norm`, `q_norm` and so on.
    pub norm: String,
    /// Largest magnitude.
    pub max: f64,
    /// 95th percentile of the magnitudes.
    pub high: f64,
    /// Median magnitude.
    pub median: f64,
    /// 5th percentile of the magnitudes.
    pub low: f64,
    /// Ratio of the largest to the median magnitude.
    pub ratio: f64,
}

impl Predicted {
    /// Computes the prediction from the weights of all norms.
    pub fn of(spec: &DecoderSpec, weights: &Weights) -> Result<Self> {
        let mut norms = Vec::new();
        let mut amplification = None;
        for layer in 0..spec.layers.len() {
            for (slot, name) in LAYER_NORMS {
                let norm = if is_query_or_key(slot) {
                    spec.attention(layer).and_then(|attention| attention.qk_norm).map(|qk| qk.norm)
                } else {
                    Some(spec.norm)
                };
                let values = norm.map_or(Ok(None), |norm| values(weights, Slot::Layer(layer, slot), norm))?;
                norms.extend(values.map(|values| NormStatistics::of(Some(layer), name, &values)));
            }
            let here = amplification_of(spec, weights, layer)?;
            amplification = amplification.into_iter().chain(here).reduce(f64::max);
        }
        let last = values(weights, Slot::FinalNorm, spec.norm)?;
        norms.extend(last.map(|values| NormStatistics::of(None, "final_norm", &values)));
        Ok(Self::from_norms(norms, amplification, spec.layers.len()))
    }

    fn from_norms(norms: Vec<NormStatistics>, amplification: Option<f64>, layers: usize) -> Self {
        let of_keys = || norms.iter().filter(|norm| norm.norm == "k_norm");
        let max_weight = of_keys().map(|norm| norm.max).reduce(f64::max);
        let max_ratio = of_keys().map(|norm| norm.ratio).reduce(f64::max);
        let extreme = |layer: &usize| of_keys().any(|n| n.layer == Some(*layer) && n.ratio > EXTREME_RATIO);
        let extreme_layers = (0..layers).filter(extreme).count();
        let ramp = |value: Option<f64>| value.map_or(1.0, |v| ((RAMP[1] - v) / (RAMP[1] - RAMP[0])).clamp(0.0, 1.0));
        let unharmed = 1.0 - extreme_layers as f64 / layers.max(1) as f64;
        let score = 0.4 * ramp(max_ratio) + 0.3 * unharmed + 0.3 * ramp(max_weight);
        Self { status: Status::of(score), score, max_weight, max_ratio, extreme_layers, amplification, norms }
    }
}

const LAYER_NORMS: [(LayerSlot, &str); 12] = [
    (LayerSlot::InputNorm, "input_norm"),
    (LayerSlot::QNorm, "q_norm"),
    (LayerSlot::KNorm, "k_norm"),
    (LayerSlot::AttentionOutputNorm, "attention_output_norm"),
    (LayerSlot::FeedForwardNorm, "feed_forward_norm"),
    (LayerSlot::FeedForwardOutputNorm, "feed_forward_output_norm"),
    (LayerSlot::ExpertsNorm, "experts_norm"),
    (LayerSlot::ExpertsOutputNorm, "experts_output_norm"),
    (LayerSlot::SharedExpertOutputNorm, "shared_expert_output_norm"),
    (LayerSlot::PostPerLayerInputNorm, "post_per_layer_input_norm"),
    (LayerSlot::StreamRouterNorm, "stream_router_norm"),
    (LayerSlot::LaurelNorm, "laurel_norm"),
];

fn is_query_or_key(slot: LayerSlot) -> bool {
    matches!(slot, LayerSlot::QNorm | LayerSlot::KNorm)
}

/// The effective weights of a norm, or `None` if the architecture has none there.
fn values(weights: &Weights, slot: Slot, norm: NormSpec) -> Result<Option<Vec<f64>>> {
    let Some(view) = weights.get(slot, Param::Weight) else { return Ok(None) };
    let values = view.read::<f32>()?;
    Ok(Some(values.into_iter().map(|weight| f64::from(weight + norm.weight_offset)).collect()))
}

/// A score is a sum over the head of `q̂ k̂ w_q w_k`, where `q̂` and `k̂` have root mean square 1. Independent relative
/// errors of size 1 in the keys therefore add up to the Euclidean norm of `w_q w_k`, times the scale.
fn amplification_of(spec: &DecoderSpec, weights: &Weights, layer: usize) -> Result<Option<f64>> {
    let Some(attention) = spec.attention(layer) else { return Ok(None) };
    let Some(qk_norm) = attention.qk_norm else { return Ok(None) };
    let read = |layer, slot| values(weights, Slot::Layer(layer, slot), qk_norm.norm);
    let with_keys = spec.kv_shared_with(layer).unwrap_or(layer);
    let (Some(q), Some(k)) = (read(layer, LayerSlot::QNorm)?, read(with_keys, LayerSlot::KNorm)?) else {
        return Ok(None);
    };
    let per_group = attention.num_attention_heads / attention.num_key_value_heads;
    let length = |(head, k): (usize, &[f64])| {
        // A per-head norm has one weight vector for all heads; a norm of the whole projection has a section for each
        // head.
        let queries = (0..per_group).filter_map(|i| q.chunks_exact(attention.head_dim).nth(head * per_group + i));
        let all = queries.map(|q| q.iter().zip(k).map(|(q, k)| (q * k).powi(2)).sum::<f64>().sqrt());
        all.fold(0.0, f64::max)
    };
    let largest = k.chunks_exact(attention.head_dim).enumerate().map(length).fold(0.0, f64::max);
    Ok(Some(attention.scale * largest))
}

impl NormStatistics {
    fn of(layer: Option<usize>, norm: &str, values: &[f64]) -> Self {
        let mut magnitudes: Vec<f64> = values.iter().map(|value| value.abs()).collect();
        magnitudes.sort_by(f64::total_cmp);
        let max = magnitudes.last().copied().unwrap_or(0.0);
        let at = |index: usize| magnitudes.get(index).copied().unwrap_or(0.0);
        let median = (at(magnitudes.len().saturating_sub(1) / 2) + at(magnitudes.len() / 2)) / 2.0;
        let quantile = |share: f64| at(((share * magnitudes.len() as f64).ceil() as usize).saturating_sub(1));
        let ratio = if max == 0.0 { 1.0 } else { max / median.max(f64::from(f32::MIN_POSITIVE)) };
        Self { layer, norm: norm.to_owned(), max, high: quantile(0.95), median, low: quantile(0.05), ratio }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn norms(weights: &[&[f64]]) -> Vec<NormStatistics> {
        weights.iter().enumerate().map(|(layer, values)| NormStatistics::of(Some(layer), "k_norm", values)).collect()
    }

    #[test]
    fn medians_of_odd_and_even_counts() {
        let norm = NormStatistics::of(None, "final_norm", &[-4.0, 1.0, 2.0, 3.0]);
        assert_eq!((norm.max, norm.median, norm.ratio), (4.0, 2.5, 1.6));
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        let norm = NormStatistics::of(None, "final_norm", &hundred);
        assert_eq!((norm.low, norm.high), (5.0, 95.0));
        assert_eq!(NormStatistics::of(None, "final_norm", &[0.0, 0.0]).ratio, 1.0);
    }

    #[test]
    fn the_score_is_the_sum_of_its_three_parts() {
        let of = |weights: &[&[f64]]| Predicted::from_norms(norms(weights), None, weights.len());
        assert_eq!((of(&[]).score, of(&[]).status), (1.0, Status::Compatible));
        assert_eq!(of(&[&[1.0, 1.0, 2.0]]).score, 1.0);
        // A ratio of 12 makes one of the two layers extreme, and is below the ramp.
        assert!((of(&[&[1.0, 1.0, 12.0], &[1.0, 1.0, 1.0]]).score - 0.85).abs() < 1e-12);
        // In the middle of both ramps, in every layer.
        assert!((of(&[&[1.0, 1.0, 17.5]]).score - 0.35).abs() < 1e-12);
        let worst = of(&[&[2.3, 2.3, 96.5]]);
        assert_eq!((worst.score, worst.status, worst.extreme_layers), (0.0, Status::Incompatible, 1));
    }
}
