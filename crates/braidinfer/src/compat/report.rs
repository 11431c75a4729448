//! What a check found, as data: for people, for `--json`, and for the cache.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Thoroughness;
use super::precision::Precision;
use super::prescreen::Predicted;
use crate::Advice;
use crate::divergence::{Divergence, null_is_nan, nulls_are_nan};
use crate::executor::ActiveKernels;

/// Loss from which a text was not understood: this share of what knowing nothing gives.
const LOST: f64 = 0.8;

/// Whether fused kernels give the right answers.
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
    /// By a score from 0 to 1; what is not a number is incompatible.
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
    /// Version of the engine.
    pub version: String,
    /// Instruction set of the fused kernels.
    pub isa: String,
    /// How close to f32 the plan had to be; `None` if nothing was measured.
    pub precision: Option<Precision>,
    /// How thorough the measurement was.
    pub thoroughness: Option<Thoroughness>,
    /// Whether it was measured that answers do not change: see `docs/numerics.md` for what that takes.
    pub same_answers: bool,
    /// The verdict; of the weights alone if nothing was measured.
    pub status: Status,
    /// From 0 to 1.
    pub score: f64,
    /// Why, in one sentence.
    pub reason: String,
    /// What the weights let expect.
    pub predicted: Predicted,
    /// What the kernels do; `None` if only weights were looked at.
    pub measured: Option<Measured>,
    /// One for each layer; empty if nothing was measured.
    pub layers: Vec<LayerReport>,
    /// What `auto` runs: one entry for each layer, and a last one for the output head.
    pub plan: Vec<PlanEntry>,
    /// What to do about it. It follows from the rest, so it is not read but made anew.
    #[serde(skip_deserializing)]
    pub recommendations: Vec<Advice>,
}

impl OpError {
    /// The largest of some errors; what is not a number is larger than any.
    pub fn worst(errors: &[Self]) -> Option<&Self> {
        errors.iter().max_by(|a, b| a.error.abs().total_cmp(&b.error.abs()))
    }
}

impl CompatReport {
    /// The run that a name of [`Measured::runs`] stands for.
    pub fn run(&self, kind: RunKind) -> Option<&RunReport> {
        self.measured.as_ref()?.runs.iter().find(|run| run.kind == kind)
    }

    /// Whether plain text was read and not understood.
    pub fn text_is_lost(&self) -> bool {
        self.measured.as_ref().is_some_and(|measured| measured.text && measured.loss > LOST * measured.uniform_loss)
    }

    /// How far what `auto` runs was from the truth, if it was measured and is not the truth itself.
    pub fn measured_divergence(&self) -> Option<&Divergence> {
        self.run(RunKind::Plan).or_else(|| self.run(RunKind::Fastest)).map(|run| &run.divergence)
    }

    /// What `auto` runs.
    pub fn kernels(&self) -> ActiveKernels {
        match self.plan.iter().filter(|entry| entry.is_standard()).count() {
            0 => ActiveKernels::Fused,
            count if count == self.plan.len() => ActiveKernels::Standard,
            _ => ActiveKernels::Mixed,
        }
    }

    /// Layers that `auto` runs on standard kernels.
    pub fn standard_layers(&self) -> BTreeSet<usize> {
        self.plan.iter().filter(|entry| entry.is_standard()).filter_map(|entry| entry.layer).collect()
    }
}

/// Measurements over some tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Positions that the verdict rests on.
    pub tokens: usize,
    /// Whether that is more than it takes where nothing is in doubt.
    pub more_than_usual: bool,
    /// What positions beyond those of the first measurement were compared with.
    pub beyond_first: String,
    /// Whether they are text; otherwise random ids, whose loss says nothing.
    pub text: bool,
    /// Mean negative log-likelihood of the next token in the true run, in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// That of a model that knows nothing: the logarithm of the vocabulary's size.
    pub uniform_loss: f64,
    /// Every run beside the truth.
    pub runs: Vec<RunReport>,
    /// What the plan costs, where it is not the fastest.
    pub speed: Option<Speed>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// Tokens per second: medians of one sequence that decodes, and of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// At the fastest level throughout.
    pub fastest_tok_s: f64,
    /// By the plan.
    pub plan_tok_s: f64,
    /// Of a prompt, at the fastest level throughout.
    pub fastest_prefill_tok_s: f64,
    /// Of a prompt, by the plan.
    pub plan_prefill_tok_s: f64,
}

impl Measured {
    /// The loss beside what knowing nothing gives.
    pub fn loss_in_words(&self) -> String {
        format!("{:.2} nats per token, {:.2} when knowing nothing", self.loss, self.uniform_loss)
    }
}

/// Which run it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunKind {
    /// Standard kernels in the type of the checkpoint: what most people run.
    Checkpoint,
    /// Fused kernels that round nothing but sums.
    Exact,
    /// Fused kernels at the fastest level.
    Fastest,
    /// Fused kernels by the plan that `auto` picks, where it is not the fastest.
    Plan,
}

/// A run, compared with standard kernels in f32.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// Which one.
    pub kind: RunKind,
    /// For people.
    pub name: String,
    /// Distance of its logits.
    pub divergence: Divergence,
    /// Relative error of the residual stream after each layer.
    #[serde(deserialize_with = "nulls_are_nan")]
    pub drift: Vec<f64>,
}

/// One layer on the true residual stream: errors of its own making.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Which one.
    pub layer: usize,
    /// Relative error of each activation with nothing rounded but sums, in the order of computation.
    pub exact: Vec<OpError>,
    /// The same at the fastest level.
    pub fastest: Vec<OpError>,
    /// The first activation whose error rounding does not explain.
    pub fault: Option<String>,
    /// How the layer is computed, if that is not by the fastest plan.
    pub raised: Option<String>,
}

/// Relative error of an activation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpError {
    /// Its name, as probes know it.
    pub op: String,
    /// Relative.
    #[serde(deserialize_with = "null_is_nan")]
    pub error: f64,
}

/// How one layer, or the output head, is computed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanEntry {
    /// Which layer; `None` for the output head.
    pub layer: Option<usize>,
    /// `fused` or `standard`.
    pub kernels: String,
    /// How keys and values are stored: `f16` or `f32`.
    pub kv: Option<String>,
    /// The numeric level of every projection; empty for standard kernels, which have no levels.
    pub levels: BTreeMap<String, String>,
}

impl PlanEntry {
    pub(super) fn is_standard(&self) -> bool {
        self.kernels == ActiveKernels::Standard.as_str()
    }
}
