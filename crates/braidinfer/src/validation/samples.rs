//! The same prompts on standard and fused kernels.

use std::ops::ControlFlow;
use std::time::Instant;

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
/// Tokens of the prompt whose reading is timed.
const PREFILL_TOKENS: usize = 256;

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

/// How fast both kernels were.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Speeds {
    /// On standard kernels.
    pub standard: Speed,
    /// On fused ones, by the plan.
    pub fused: Speed,
}

/// Tokens per second of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Speed {
    /// Reading a prompt of some hundred tokens.
    pub prefill_tok_s: f64,
    /// Answering the samples.
    pub decode_tok_s: f64,
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
    let speeds = Speeds { standard: standard_speed, fused: fused_speed };
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

fn generate(mut llm: Llm, prompts: &[Prompt]) -> Result<(Vec<Completion>, Speed)> {
    let room = llm.context().saturating_sub(1);
    let params =
        SamplingParams { max_tokens: Some(TOKENS.min(room).max(1)), ignore_eos: true, ..SamplingParams::default() };
    let (mut completions, mut tokens, mut seconds) = (Vec::new(), 0, 0.0);
    for prompt in prompts {
        let prompt = std::slice::from_ref(prompt);
        let (answers, timings) = llm.stream(prompt, &params, &mut |_| ControlFlow::Continue(()))?;
        completions.extend(answers);
        tokens += timings.decode_tokens;
        seconds += timings.decode.as_secs_f64();
    }
    if completions.len() != prompts.len() {
        return Err(Error::Internal("a prompt without an answer".into()));
    }
    let decode_tok_s = tokens as f64 / seconds.max(1e-9);
    Ok((completions, Speed { prefill_tok_s: prefill_speed(&mut llm)?, decode_tok_s }))
}

/// Tokens per second of a prompt that is as long as the context allows.
fn prefill_speed(llm: &mut Llm) -> Result<f64> {
    let count = PREFILL_TOKENS.min(llm.context().saturating_sub(1)).max(1);
    let vocab = llm.spec().vocab_size;
    let ids: Vec<u32> = (0..count).map(|index| (index * 31 % vocab) as u32).collect();
    let started = Instant::now();
    llm.logits(&ids, false)?;
    Ok(count as f64 / started.elapsed().as_secs_f64().max(1e-9))
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

fn speed(standard: Speed, fused: Speed) -> Finding {
    let found = format!(
        "prefill {:.1} tok/s on fused kernels, {:.1} on standard ones; decoding {:.1} and {:.1}",
        fused.prefill_tok_s, standard.prefill_tok_s, fused.decode_tok_s, standard.decode_tok_s
    );
    if fused.decode_tok_s < standard.decode_tok_s || fused.prefill_tok_s < standard.prefill_tok_s {
        return Finding::warn(
            "answers",
            "speed",
            found,
            "--kernels standard; please report a model on which fused kernels are slower",
        );
    }
    Finding::pass("answers", "speed", found)
}
