//! The plan of the measurements, checked before anything is loaded.

use std::fmt::Debug;

use anyhow::bail;
use serde::{Deserialize, Serialize};

use crate::args::{BenchArgs, BenchKernels, check_count};

/// Shortest context: a prompt of one token, and one generated token before the timed part.
const LEAST_CONTEXT: usize = 2;
/// Most tokens of a prompt, an answer or a context.
const MOST_TOKENS: usize = 1 << 20;
/// Most sequences at once.
const MOST_SEQUENCES: usize = 1024;
/// Most repetitions.
const MOST_REPETITIONS: usize = 10_000;

/// Kinds of runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// A prompt is computed.
    Prefill,
    /// Tokens are generated one by one.
    Decode,
}

impl Phase {
    /// The name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// One case to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    pub phase: Phase,
    /// Number of sequences that run at once.
    pub batch: usize,
    /// Number of tokens of each sequence before the timed ones.
    pub context: usize,
    /// Number of timed tokens of each sequence.
    pub tokens: usize,
}

impl Case {
    /// Length of each sequence after every step of a run, if a step takes at most `most` prompt tokens.
    pub fn steps(self, most: usize) -> impl Iterator<Item = usize> {
        let size = if self.phase == Phase::Prefill { most } else { 1 };
        (0..self.tokens).step_by(size).map(move |start| self.context + (start + size).min(self.tokens))
    }
}

/// All cases to measure.
#[derive(Debug)]
pub struct Plan {
    pub kernels: Vec<BenchKernels>,
    /// Cases, each of which is timed on all kinds of kernels in turn.
    pub cases: Vec<Case>,
    pub repetitions: usize,
    /// Number of tokens of the prompt.
    pub prompt_tokens: usize,
    /// Length of the longest sequence, in tokens.
    pub context: usize,
}

impl Plan {
    /// Fails if a number is out of range; the error names the flag.
    pub fn new(args: &BenchArgs) -> anyhow::Result<Self> {
        check_count("prompt-tokens", args.prompt_tokens, 1..=MOST_TOKENS)?;
        check_count("gen-tokens", args.gen_tokens, 1..=MOST_TOKENS)?;
        check_count("repetitions", args.repetitions, 1..=MOST_REPETITIONS)?;
        args.batch.iter().try_for_each(|batch| check_count("batch", *batch, 1..=MOST_SEQUENCES))?;
        args.depth.iter().try_for_each(|depth| check_count("depth", *depth, 0..=MOST_TOKENS))?;
        check_distinct("batch", &args.batch)?;
        check_distinct("depth", &args.depth)?;
        check_distinct("kernels", &args.kernels)?;
        Ok(Self {
            kernels: args.kernels.clone(),
            cases: cases(args),
            repetitions: args.repetitions,
            prompt_tokens: args.prompt_tokens,
            context: context(args)?,
        })
    }

    /// The largest batch.
    pub fn max_batch(&self) -> usize {
        self.cases.iter().map(|case| case.batch).max().unwrap_or(1)
    }

    /// The largest depth.
    pub fn max_depth(&self) -> usize {
        self.cases.iter().map(|case| case.context).max().unwrap_or(0)
    }
}

fn cases(args: &BenchArgs) -> Vec<Case> {
    let prefill = Case { phase: Phase::Prefill, batch: 1, context: 0, tokens: args.prompt_tokens };
    let decode = |batch, context| Case { phase: Phase::Decode, batch, context, tokens: args.gen_tokens };
    let decodes = args.depth.iter().flat_map(|depth| args.batch.iter().map(move |batch| decode(*batch, *depth)));
    [prefill].into_iter().chain(decodes).collect()
}

/// The length of the longest sequence, or the requested context if that is longer.
fn context(args: &BenchArgs) -> anyhow::Result<usize> {
    let deepest = args.depth.iter().max().copied().unwrap_or(0);
    let needed = args.prompt_tokens.max(deepest.max(LEAST_CONTEXT) + args.gen_tokens);
    match args.computing.context {
        Some(asked) if asked < needed => {
            let reason = if needed == args.prompt_tokens { "--prompt-tokens" } else { "--depth and --gen-tokens" };
            bail!("--context: expected at least the {needed} tokens of {reason}, found {asked}")
        }
        asked => Ok(asked.unwrap_or(needed)),
    }
}

fn check_distinct<T: PartialEq + Debug>(flag: &str, values: &[T]) -> anyhow::Result<()> {
    let twice = values.iter().enumerate().find(|(index, value)| values[..*index].contains(value));
    match twice {
        Some((_, value)) => {
            bail!("--{flag}: expected each value once, found {} twice", format!("{value:?}").to_lowercase())
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(case: Case) -> Vec<usize> {
        case.steps(512).collect()
    }

    #[test]
    fn prompts_run_in_chunks_and_decoding_token_by_token() {
        let prefill = Case { phase: Phase::Prefill, batch: 1, context: 0, tokens: 1025 };
        assert_eq!(ends(prefill), [512, 1024, 1025]);
        let decode = Case { phase: Phase::Decode, batch: 2, context: 100, tokens: 3 };
        assert_eq!(ends(decode), [101, 102, 103]);
    }
}
