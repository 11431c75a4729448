//! The result of a check as data: for printing, for `--json`, and for the cache.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Thoroughness;
use super::precision::Precision;
use super::prescreen::Predicted;
use crate::Advice;
use crate::divergence::{Divergence, null_is_nan, nulls_are_nan};
use crate::executor::ActiveKernels;

/// A loss above this fraction of the uniform distribution's loss means that the model did not understand the text.
const LOST: f64 = 0.8;

/// Whether the fused kernels give the right answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// A score above 0.8.
    Compatible,
    /// A score from 0.5 to 0.8.
    Warning,
    /// A score below 0.5, or a value that is not finite.
    Incompatible,
}

impl Status {
    /// The status for a score from 0 to 1; NaN is incompatible.
    pub fn of(score: f64) -> Self {
        match score {
            score if score > 0.8 => Self::Compatible,
            score if score >= 0.5 => Self::Warning,
            _ => Self::Incompatible,
        }
    }

    /// The name in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Compatible => "COMPATIBLE",
            Self::Warning => "WARNING",
            Self::Incompatible => "INCOMPATIBLE",
        }
    }
}

/// The answer to "does the fast path change the answers?" for one model on one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompatReport {
    /// Where the model came from.
    pub model: String,
    /// Where the adapter came from that it was checked with, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// Version of the engine.
    pub version: String,
    /// Instruction set of the fused kernels.
    pub isa: String,
    /// How close to f32 the plan had to be; `None` if nothing was measured.
    pub precision: Option<Precision>,
    /// The quantized type of keys and values that was asked for.
    #[serde(default)]
    pub kv_dtype: Option<String>,
    /// How thorough the measurement was.
    pub thoroughness: Option<Thoroughness>,
    /// Whether the measurement shows that answers do not change; `docs/numerics.md` has the criteria.
    pub same_answers: bool,
    /// The verdict; predicted from the weights alone if nothing was measured.
    pub status: Status,
    /// Score from 0 to 1.
    pub score: f64,
    /// Reason for the verdict, in one sentence.
    pub reason: String,
    /// The prediction from the weights.
    pub predicted: Predicted,
    /// The measurements; `None` if only the weights were inspected.
    pub measured: Option<Measured>,
    /// One entry per layer; empty if nothing was measured.
    pub layers: Vec<LayerReport>,
    /// The kernels that `auto` runs: one entry per layer, and a last one for the output head.
    pub plan: Vec<PlanEntry>,
    /// Recommendations. They follow from the other fields, so they are computed anew and not deserialized.
    #[serde(skip_deserializing)]
    pub recommendations: Vec<Advice>,
}

impl OpError {
    /// The largest error; NaN counts as larger than any number.
    pub fn worst(errors: &[Self]) -> Option<&Self> {
        errors.iter().max_by(|a, b| a.error.abs().total_cmp(&b.error.abs()))
    }
}

impl CompatReport {
    /// The run of a kind, if it was made.
    pub fn run(&self, kind: RunKind) -> Option<&RunReport> {
        self.measured.as_ref()?.runs.iter().find(|run| run.kind == kind)
    }

    /// Whether text was read that the model did not understand.
    pub fn text_is_lost(&self) -> bool {
        self.measured.as_ref().is_some_and(|measured| measured.text && measured.loss > LOST * measured.uniform_loss)
    }

    /// Divergence from the truth of what `auto` runs, if it was measured and is not the truth itself.
    pub fn measured_divergence(&self) -> Option<&Divergence> {
        self.run(RunKind::Plan).or_else(|| self.run(RunKind::Fastest)).map(|run| &run.divergence)
    }

    /// The kernels that `auto` runs.
    pub fn kernels(&self) -> ActiveKernels {
        match self.plan.iter().filter(|entry| entry.is_standard()).count() {
            0 => ActiveKernels::Fused,
            count if count == self.plan.len() => ActiveKernels::Standard,
            _ => ActiveKernels::Mixed,
        }
    }

    /// The quantized type of keys and values that was asked for, if fused kernels keep some but none in that type.
    pub fn useless_kv_dtype(&self) -> Option<&str> {
        let asked = self.kv_dtype.as_deref()?;
        let fused = self.plan.iter().filter(|entry| !entry.is_standard());
        let mut kept = fused.filter_map(|entry| entry.kv.as_deref()).peekable();
        (kept.peek().is_some() && !kept.any(|kv| kv == asked)).then_some(asked)
    }

    /// The layers that `auto` runs on standard kernels.
    pub fn standard_layers(&self) -> BTreeSet<usize> {
        self.plan.iter().filter(|entry| entry.is_standard()).filter_map(|entry| entry.layer).collect()
    }
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Number of positions that the verdict is based on.
    pub tokens: usize,
    /// Whether more positions were read than usual, because a result was uncertain.
    pub more_than_usual: bool,
    /// The reference for positions after the first measurement.
    pub beyond_first: String,
    /// Whether the tokens were text; otherwise they were random ids, whose loss is meaningless.
    pub text: bool,
    /// Mean negative log-likelihood of the next token under the truth, in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Loss of a uniform distribution: the logarithm of the vocabulary size.
    pub uniform_loss: f64,
    /// All runs, each compared with the truth.
    pub runs: Vec<RunReport>,
    /// Speed of the plan, if it is not the fastest one.
    pub speed: Option<Speed>,
    /// Duration of the check, in seconds.
    pub seconds: f64,
}

/// Tokens per second: medians for decoding one sequence and for prefill.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Decoding, fastest plan.
    pub fastest_tok_s: f64,
    /// Decoding, chosen plan.
    pub plan_tok_s: f64,
    /// Prefill, fastest plan.
    pub fastest_prefill_tok_s: f64,
    /// Prefill, chosen plan.
    pub plan_prefill_tok_s: f64,
}

impl Measured {
    /// The loss, with that of a uniform distribution for comparison.
    pub fn loss_in_words(&self) -> String {
        format!("{:.2} nats per token, {:.2} when knowing nothing", self.loss, self.uniform_loss)
    }
}

/// Kinds of runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunKind {
    /// Standard kernels in the checkpoint's data type: what most people run.
    Checkpoint,
    /// Fused kernels with f32 activations, keys and values.
    Exact,
    /// Fused kernels at the fastest level.
    Fastest,
    /// Fused kernels with the plan that `auto` chose, if it is not the fastest.
    Plan,
}

/// A run, compared with standard kernels in f32.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// Kind of the run.
    pub kind: RunKind,
    /// Name for printing.
    pub name: String,
    /// Divergence of its logits.
    pub divergence: Divergence,
    /// Relative error of the residual stream after each layer.
    #[serde(deserialize_with = "nulls_are_nan")]
    pub drift: Vec<f64>,
}

/// Errors that one layer itself makes, measured on the true residual stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Index of the layer.
    pub layer: usize,
    /// Relative error of each activation under the exact plan, in the order of computation.
    pub exact: Vec<OpError>,
    /// The same under the fastest plan.
    pub fastest: Vec<OpError>,
    /// The first activation with an error that rounding does not explain.
    pub fault: Option<String>,
    /// Description of the layer's plan, if it is not the fastest one.
    pub raised: Option<String>,
}

/// Relative error of an activation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpError {
    /// Name of the activation, as in [`crate::executor::Probe`].
    pub op: String,
    /// Relative error.
    #[serde(deserialize_with = "null_is_nan")]
    pub error: f64,
}

/// The kernels and numeric levels of one layer or of the output head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanEntry {
    /// Index of the layer; `None` for the output head.
    pub layer: Option<usize>,
    /// `fused` or `standard`.
    pub kernels: String,
    /// KV data type: `f16` or `f32`.
    pub kv: Option<String>,
    /// The numeric level of every projection; empty for standard kernels, which have no levels.
    pub levels: BTreeMap<String, String>,
}

impl PlanEntry {
    pub(super) fn is_standard(&self) -> bool {
        self.kernels == ActiveKernels::Standard.as_str()
    }
}
