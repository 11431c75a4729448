//! The same prompts on standard and fused kernels.

use braidinfer_model::ModelSource;
use serde::Serialize;

use super::machine::available;
use super::{Finding, Outcome};
use crate::compat::CompatReport;
use crate::engine::SamplingParams;
use crate::executor::Kernels;
use crate::executor::fused::FusedExecutor;
use crate::executor::standard::{ComputeDtype, LoadProgress};
use crate::llm::{Completion, Llm, Prompt};
use crate::loading::{LoadOptions, Loaded, ModelParts};
use crate::{Error, Result};

const PROMPTS: [&str; 3] =
    ["Once upon a time", "The capital of France is", "To make a cup of tea, first boil the water. Then"];
/// For models without a tokenizer.
const IDS: [[u32; 4]; 3] = [[1, 2, 3, 4], [4, 3, 2, 1], [2, 4, 2, 4]];
/// Tokens of an answer.
const TOKENS: usize = 24;

/// One prompt, answered greedily.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// Text, or token ids.
    pub prompt: String,
    /// The answer of standard kernels.
    pub standard: String,
    /// The answer of the kernels that `auto` picks.
    pub fused: String,
    /// The first token, counted from 0, that differs.
    pub first_difference: Option<usize>,
}

/// Tokens per second over the samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Speeds {
    /// Decoding on standard kernels.
    pub standard_decode_tok_s: f64,
    /// Decoding on fused ones, by the plan.
    pub fused_decode_tok_s: f64,
}

pub(super) struct Answers {
    pub(super) samples: Vec<Sample>,
    pub(super) speeds: Speeds,
    pub(super) findings: Vec<Finding>,
}

/// Answers the prompts on `fused`, which is then let go, and on standard kernels.
pub(super) fn answer(
    source: &ModelSource,
    options: &LoadOptions,
    parts: ModelParts,
    fused: FusedExecutor,
    compat: &CompatReport,
    progress: LoadProgress,
) -> Result<Answers> {
    let prompts: Vec<Prompt> = match parts.tokenizer {
        Some(_) => PROMPTS.iter().map(|text| Prompt::Text((*text).to_owned())).collect(),
        None => {
            let vocab = parts.spec.vocab_size as u32;
            IDS.iter().map(|ids| Prompt::Ids(ids.iter().map(|id| id % vocab).collect())).collect()
        }
    };
    let loaded = Loaded { executor: Box::new(fused), kernels: Kernels::Fused, compat: None };
    let (fused, fused_speed) = generate(Llm::assemble(parts, loaded, options)?, &prompts)?;
    let mut findings = Vec::new();
    let (standard, standard_speed) = generate(standard(source, options, progress, &mut findings)?, &prompts)?;
    let samples: Vec<Sample> =
        prompts.iter().zip(standard.iter().zip(&fused)).map(|(prompt, (a, b))| Sample::of(prompt, a, b)).collect();
    findings.push(agreement(&samples, compat));
    findings.push(speed(standard_speed, fused_speed));
    let speeds = Speeds { standard_decode_tok_s: standard_speed, fused_decode_tok_s: fused_speed };
    Ok(Answers { samples, speeds, findings })
}

/// In f32, or in the checkpoint's own type where f32 does not fit.
fn standard(
    source: &ModelSource,
    options: &LoadOptions,
    progress: LoadProgress,
    findings: &mut Vec<Finding>,
) -> Result<Llm> {
    let parts = ModelParts::open(source, options, progress)?;
    let need: usize = parts
        .weights
        .sizes()
        .iter()
        .map(|(dtype, bytes)| if dtype.is_quantized() { *bytes } else { bytes * 4 / dtype.block_size() })
        .sum();
    let mut options = LoadOptions { kernels: Kernels::Standard, dtype: None, ..options.clone() };
    if need > available() {
        let dtype = ComputeDtype::from(parts.weights.dtype());
        options.dtype = Some(dtype);
        let found = format!("{dtype} on standard kernels: f32 would take {:.1} GB", need as f64 / 1e9);
        findings.push(Finding::warn("answers", "reference", found, "compare on a machine with more memory"));
    }
    let mut parts = parts;
    let loaded = parts.load(&options, progress)?;
    Llm::assemble(parts, loaded, &options)
}

fn generate(mut llm: Llm, prompts: &[Prompt]) -> Result<(Vec<Completion>, f64)> {
    let room = llm.context().saturating_sub(1);
    let params =
        SamplingParams { max_tokens: Some(TOKENS.min(room).max(1)), ignore_eos: true, ..SamplingParams::default() };
    let (mut completions, mut tokens, mut seconds) = (Vec::new(), 0, 0.0);
    for prompt in prompts {
        let prompt = std::slice::from_ref(prompt);
        let (answers, timings) = llm.stream(prompt, &params, &mut |_| std::ops::ControlFlow::Continue(()))?;
        completions.extend(answers);
        tokens += timings.decode_tokens;
        seconds += timings.decode.as_secs_f64();
    }
    if completions.len() != prompts.len() {
        return Err(Error::Internal("a prompt without an answer".into()));
    }
    Ok((completions, tokens as f64 / seconds.max(1e-9)))
}

impl Sample {
    fn of(prompt: &Prompt, standard: &Completion, fused: &Completion) -> Self {
        let spelled = |completion: &Completion| match prompt {
            Prompt::Text(_) | Prompt::Chat(_) => completion.text.clone(),
            Prompt::Ids(_) => format!("{:?}", completion.ids),
        };
        Self {
            prompt: match prompt {
                Prompt::Text(text) => text.clone(),
                Prompt::Ids(_) | Prompt::Chat(_) => format!("{:?}", standard.prompt_ids),
            },
            standard: spelled(standard),
            fused: spelled(fused),
            first_difference: standard.ids.iter().zip(&fused.ids).position(|(a, b)| a != b),
        }
    }
}

fn agreement(samples: &[Sample], compat: &CompatReport) -> Finding {
    const WHAT: &str = "greedy answers";
    let differ: Vec<usize> = samples.iter().filter_map(|sample| sample.first_difference).collect();
    let found = match differ.iter().min() {
        None => format!("the same on both kernels, {} prompts of {TOKENS} tokens", samples.len()),
        Some(first) => format!("{} of {} differ, the earliest from token {first} on", differ.len(), samples.len()),
    };
    let outcome = match (differ.is_empty(), compat.falls_back()) {
        (true, _) | (false, false) => Outcome::Pass,
        (false, true) => Outcome::Fail,
    };
    let fix = "--kernels standard, which auto takes".to_owned();
    Finding { area: "answers", what: WHAT, outcome, found, fix: (outcome != Outcome::Pass).then_some(fix) }
}

fn speed(standard: f64, fused: f64) -> Finding {
    let found = format!("decoding {fused:.1} tok/s on fused kernels, {standard:.1} on standard ones");
    if fused < standard {
        return Finding::warn(
            "answers",
            "speed",
            found,
            "--kernels standard; please report a model on which fused kernels are slower",
        );
    }
    Finding::pass("answers", "speed", found)
}
