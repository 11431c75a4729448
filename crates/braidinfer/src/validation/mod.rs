//! Checks before a model is deployed: files, text, machine, kernels and answers, each with an outcome and advice.

mod files;
mod machine;
mod samples;
mod text;

use braidinfer_model::ModelSource;
use serde::Serialize;

pub use self::samples::{IDS, PROMPTS, Sample, Speed, Speeds};

use crate::compat::{CompatReport, Status, Thoroughness};
use crate::executor::DeviceChoice;
use crate::executor::standard::LoadProgress;
use crate::loading::{LoadOptions, ModelParts};
use crate::{Advice, Error, Result};

/// Advice for those whose answers must equal those of f32.
fn to_be_exact() -> Advice {
    Advice::set("precision", "exact")
        .then(" or ")
        .then_set("kernels", "standard")
        .then(" where answers must be those of f32")
}

/// The outcome of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Outcome {
    /// Good.
    Pass,
    /// Works, but deserves attention.
    Warn,
    /// Should not be deployed.
    Fail,
}

impl Outcome {
    /// The name in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
        }
    }
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `files`, `text`, `machine`, `kernels` or `answers`.
    pub area: &'static str,
    /// What was checked.
    pub what: &'static str,
    /// The outcome.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// Advice, unless it passed.
    pub fix: Option<Advice>,
}

impl Finding {
    fn pass(area: &'static str, what: &'static str, found: impl Into<String>) -> Self {
        Self { area, what, outcome: Outcome::Pass, found: found.into(), fix: None }
    }

    fn warn(area: &'static str, what: &'static str, found: impl Into<String>, fix: impl Into<Advice>) -> Self {
        Self { area, what, outcome: Outcome::Warn, found: found.into(), fix: Some(fix.into()) }
    }

    fn fail(area: &'static str, what: &'static str, found: impl Into<String>, fix: impl Into<Advice>) -> Self {
        Self { area, what, outcome: Outcome::Fail, found: found.into(), fix: Some(fix.into()) }
    }
}

/// The results of all checks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ValidationReport {
    /// Where the model came from.
    pub model: String,
    /// The worst outcome of all findings.
    pub outcome: Outcome,
    /// In the order of the checks. If the model cannot be read at all, the later checks are missing.
    pub findings: Vec<Finding>,
    /// Outputs of standard and fused kernels for the same prompts.
    pub samples: Vec<Sample>,
    /// Speed of both.
    pub speeds: Option<Speeds>,
    /// The verdict on the fused kernels.
    pub compat: Option<CompatReport>,
    /// Size of the model.
    pub size: Option<Size>,
}

/// Size of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Size {
    /// Number of parameters.
    pub parameters: usize,
    /// Size of the weights in bytes.
    pub weight_bytes: usize,
    /// KV cache bytes per token, in f16.
    pub kv_bytes_per_token: usize,
}

/// Runs all checks. A problem of the model is a finding, not an error.
pub fn validate(
    source: &ModelSource,
    options: &LoadOptions,
    thoroughness: Thoroughness,
    progress: LoadProgress,
) -> Result<ValidationReport> {
    let mut report = ValidationReport {
        model: source.label(),
        outcome: Outcome::Pass,
        findings: Vec::new(),
        samples: Vec::new(),
        speeds: None,
        compat: None,
        size: None,
    };
    report.examine(source, options, thoroughness, progress)?;
    report.outcome = report.findings.iter().map(|finding| finding.outcome).max().unwrap_or(Outcome::Pass);
    Ok(report)
}

impl ValidationReport {
    fn examine(
        &mut self,
        source: &ModelSource,
        options: &LoadOptions,
        thoroughness: Thoroughness,
        progress: LoadProgress,
    ) -> Result<()> {
        let mut parts = match ModelParts::open(source, options, progress) {
            Ok(parts) => parts,
            // An invalid option is not a finding about the model.
            Err(error @ Error::BadRequest { .. }) => return Err(error),
            Err(error) => {
                let on_gpu = matches!(options.device, DeviceChoice::Gpu(_));
                let fix = match error {
                    Error::Unsupported(_) if on_gpu => Advice::set("device", "cpu"),
                    _ => Advice::from("fetch the files again, or correct what the message names"),
                };
                self.findings.push(Finding::fail("files", "can be read", error.to_string(), fix));
                return Ok(());
            }
        };
        self.size = Some(machine::size_of(&parts, options));
        self.findings.extend(files::findings(&parts));
        self.findings.extend(text::findings(&parts));
        self.findings.extend(machine::findings(&parts, options));
        // No kernels can run non-finite weights.
        if self.findings.iter().any(|finding| finding.outcome == Outcome::Fail && finding.area == "files") {
            return Ok(());
        }
        let mut fused = match parts.fused(options, progress) {
            Ok(fused) => fused,
            Err(error @ Error::TooLittleMemory { .. }) => {
                let fix = error.advice().unwrap_or_else(|| "add memory".into());
                self.findings.push(Finding::fail("machine", "the model can be loaded", error.to_string(), fix));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let checked = parts.subject(None).check(&mut fused, thoroughness, options.precision)?;
        let (compat, fused) = (checked.report, fused.with_plan(checked.plan)?);
        self.findings.extend(kernels(&compat));
        let answers = samples::answer(source, options, parts, fused, &compat, progress)?;
        self.findings.extend(answers.findings);
        (self.samples, self.speeds, self.compat) = (answers.samples, Some(answers.speeds), Some(compat));
        Ok(())
    }
}

/// Findings about the verdict and the loss.
fn kernels(compat: &CompatReport) -> Vec<Finding> {
    const AREA: &str = "kernels";
    const LOSS: &str = "loss on plain text";
    const WHAT: &str = "fused kernels beside f32";
    let found = format!("{}: {}", compat.status.as_str(), compat.reason);
    let mut findings = vec![match compat.status {
        Status::Compatible => Finding::pass(AREA, WHAT, found),
        Status::Warning => Finding::warn(AREA, WHAT, found, to_be_exact()),
        Status::Incompatible => Finding::fail(
            AREA,
            WHAT,
            found,
            Advice::from("keep ")
                .then_set("kernels", "auto")
                .then(", which leaves what is wrong to standard ones; please report it"),
        ),
    }];
    let Some(measured) = compat.measured.as_ref() else { return findings };
    findings.push(if !measured.text {
        Finding::warn(AREA, LOSS, "not measured without a tokenizer", "add the tokenizer")
    } else if compat.text_is_lost() {
        let fix = "if the model is trained on plain text, its architecture, RoPE or tokenizer is misread: compare with transformers";
        Finding::warn(AREA, LOSS, measured.loss_in_words(), fix)
    } else {
        Finding::pass(AREA, LOSS, measured.loss_in_words())
    });
    findings
}
