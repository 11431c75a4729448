//! Comparing standard and fused kernels on the same prompts.

use std::ops::ControlFlow;
use std::time::Instant;

use braidinfer_model::ModelSource;
use serde::Serialize;

use super::{Finding, to_be_exact};
use crate::compat::{CompatReport, Status};
use crate::engine::SamplingParams;
use crate::executor::standard::{ComputeDtype, LoadProgress};
use crate::executor::{Decoder, Kernels};
use crate::llm::{Completion, Llm, Prompt};
use crate::loading::{LoadOptions, Loaded, ModelParts};
use crate::memory::available;
use crate::{Advice, Error, Result};

/// Default prompts.
pub const PROMPTS: [&str; 3] =
    ["Once upon a time", "The capital of France is", "To make a cup of tea, first boil the water. Then"];
/// Default prompts for models without a tokenizer, as token ids.
pub const IDS: [[u32; 4]; 3] = [[1, 2, 3, 4], [4, 3, 2, 1], [2, 4, 2, 4]];
/// Number of output tokens.
const TOKENS: usize = 24;
/// Number of prompt tokens for timing prefill.
const PREFILL_TOKENS: usize = 256;

/// One prompt with its greedy outputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// The prompt's text, or its token ids.
    pub prompt: String,
    /// Output of the standard kernels.
    pub standard: String,
    /// Output of the fused kernels, with the plan that the check chose.
    pub fused: String,
    /// Index of the first output token that differs.
    pub first_difference: Option<usize>,
}

/// Speed of both kinds of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Speeds {
    /// Standard kernels.
    pub standard: Speed,
    /// Fused kernels, with the plan that the check chose.
    pub fused: Speed,
}

/// Speed of a single sequence, in tokens per second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Speed {
    /// Prefill of a prompt of some hundred tokens.
    pub prefill_tok_s: f64,
    /// Decoding of the samples.
    pub decode_tok_s: f64,
}

pub(super) struct Answers {
    pub(super) samples: Vec<Sample>,
    pub(super) speeds: Speeds,
    pub(super) findings: Vec<Finding>,
}

/// Runs the prompts on `fused`, which is then dropped, and on standard kernels.
pub(super) fn answer(
    source: &ModelSource,
    options: &LoadOptions,
    parts: ModelParts,
    fused: Decoder<'static>,
    compat: &CompatReport,
    progress: LoadProgress,
) -> Result<Answers> {
    let loaded = Loaded { decoder: fused, compat: None, adapters: Vec::new() };
    let llm = Llm::assemble(parts, loaded, options)?;
    let prompts = prompts(&llm)?;
    let (fused, fused_speed) = generate(llm, &prompts)?;
    let mut findings = Vec::new();
    let (standard, standard_speed) = generate(standard(source, options, progress, &mut findings)?, &prompts)?;
    let samples: Vec<Sample> =
        standard.iter().zip(&fused).map(|(standard, fused)| Sample::of(standard, fused)).collect();
    findings.push(agreement(&samples, compat));
    findings.push(speed(standard_speed, fused_speed));
    let speeds = Speeds { standard: standard_speed, fused: fused_speed };
    Ok(Answers { samples, speeds, findings })
}

/// Token ids of the prompts, truncated to leave room for an output.
fn prompts(llm: &Llm) -> Result<Vec<Prompt>> {
    let room = llm.context().saturating_sub(1);
    let vocab = llm.spec().vocab_size as u32;
    let ids = match llm.tokenizer() {
        Some(_) => {
            PROMPTS.iter().map(|text| llm.encode(&Prompt::Text((*text).to_owned()))).collect::<Result<Vec<_>>>()?
        }
        None => IDS.iter().map(|ids| ids.iter().map(|id| id % vocab).collect()).collect(),
    };
    let fitting = ids.into_iter().map(|ids| ids[..ids.len().min(room)].to_vec());
    Ok(fitting.filter(|ids| !ids.is_empty()).map(Prompt::Ids).collect())
}

/// Standard kernels in f32, or in the checkpoint's data type if f32 does not fit in memory.
fn standard(
    source: &ModelSource,
    options: &LoadOptions,
    progress: LoadProgress,
    findings: &mut Vec<Finding>,
) -> Result<Llm> {
    let mut parts = ModelParts::open(source, options, progress)?;
    let need: usize = parts
        .weights
        .sizes()
        .iter()
        .map(|(dtype, bytes)| if dtype.is_quantized() { *bytes } else { bytes * 4 / dtype.block_size() })
        .sum();
    let mut options = LoadOptions { kernels: Kernels::Standard, dtype: None, kv_dtype: None, ..options.clone() };
    if need > available() {
        let dtype = ComputeDtype::from(parts.weights.dtype());
        options.dtype = Some(dtype);
        let found = format!("{dtype} on standard kernels: f32 would take {}", crate::memory::size(need));
        findings.push(Finding::warn("answers", "reference", found, "compare on a machine with more memory"));
    }
    let loaded = parts.load(&options, progress)?;
    Llm::assemble(parts, loaded, &options)
}

/// Greedy outputs with their prompts, as text if there is a tokenizer, and the decoding speed.
fn generate(mut llm: Llm, prompts: &[Prompt]) -> Result<(Vec<(String, Completion)>, Speed)> {
    let params = SamplingParams { max_tokens: Some(TOKENS), ignore_eos: true, ..SamplingParams::default() };
    let (mut completions, mut tokens, mut seconds) = (Vec::new(), 0, 0.0);
    for prompt in prompts {
        let prompt = std::slice::from_ref(prompt);
        let (answers, timings) = llm.stream(prompt, &params, &mut |_| ControlFlow::Continue(()))?;
        for answer in answers {
            let prompt = match llm.tokenizer() {
                Some(tokenizer) => tokenizer.decode(&answer.prompt_ids, true)?,
                None => format!("{:?}", answer.prompt_ids),
            };
            completions.push((prompt, answer));
        }
        tokens += timings.decode_tokens;
        seconds += timings.decode.as_secs_f64();
    }
    if completions.len() != prompts.len() {
        return Err(Error::Internal("a prompt without an answer".into()));
    }
    let decode_tok_s = tokens as f64 / seconds.max(1e-9);
    Ok((completions, Speed { prefill_tok_s: prefill_speed(&mut llm)?, decode_tok_s }))
}

/// Prefill speed in tokens per second, with a prompt as long as the context allows.
fn prefill_speed(llm: &mut Llm) -> Result<f64> {
    let count = PREFILL_TOKENS.min(llm.context().saturating_sub(1)).max(1);
    let vocab = llm.spec().vocab_size;
    let ids: Vec<u32> = (0..count).map(|index| (index * 31 % vocab) as u32).collect();
    let started = Instant::now();
    llm.logits(&ids, false)?;
    Ok(count as f64 / started.elapsed().as_secs_f64().max(1e-9))
}

impl Sample {
    fn of((prompt, standard): &(String, Completion), (_, fused): &(String, Completion)) -> Self {
        // Without a tokenizer, outputs have no text.
        let spelled = |completion: &Completion| match &completion.text {
            text if text.is_empty() => format!("{:?}", completion.ids),
            text => text.clone(),
        };
        Self {
            prompt: prompt.clone(),
            standard: spelled(standard),
            fused: spelled(fused),
            first_difference: standard.ids.iter().zip(&fused.ids).position(|(a, b)| a != b),
        }
    }
}

fn agreement(samples: &[Sample], compat: &CompatReport) -> Finding {
    const AREA: &str = "answers";
    const WHAT: &str = "greedy answers";
    let differ: Vec<usize> = samples.iter().filter_map(|sample| sample.first_difference).collect();
    let found = match differ.iter().min() {
        None => format!("the same on both kernels for {} prompts", samples.len()),
        Some(first) => format!("{} of {} differ, the earliest from token {first} on", differ.len(), samples.len()),
    };
    match compat.status {
        // Where two tokens are almost equally likely, a tiny difference selects the other one.
        _ if differ.is_empty() => Finding::pass(AREA, WHAT, found),
        Status::Compatible => Finding::pass(AREA, WHAT, found),
        Status::Warning => Finding::warn(AREA, WHAT, found, to_be_exact()),
        Status::Incompatible => {
            Finding::fail(AREA, WHAT, found, Advice::set("kernels", "standard").then(", which auto takes"))
        }
    }
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
            Advice::set("kernels", "standard").then("; please report a model on which fused kernels are slower"),
        );
    }
    Finding::pass("answers", "speed", found)
}
