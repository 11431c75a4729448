//! Answers token by token, with how likely each token was: what an engine behind an endpoint tells of itself.

use serde::Serialize;

use crate::divergence::log_softmax;
use crate::engine::{FinishReason, SamplingParams};
use crate::llm::{Llm, Prompt};
use crate::text::Tokenizer;
use crate::{Error, Result};

/// Tokens named at each position of a transcript of our own, likeliest first; endpoints give 5 at most.
const TOP: usize = 20;

/// One greedy answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Transcript {
    /// Its text, or its token ids.
    pub prompt: String,
    /// Tokens that were read, if known.
    pub prompt_tokens: Option<usize>,
    /// The answer.
    pub text: String,
    /// The answer, token by token, without one that only ends it.
    pub tokens: Vec<SpokenToken>,
}

/// One token of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct SpokenToken {
    /// Which one.
    pub token: NamedToken,
    /// Natural logarithm of its probability.
    pub logprob: f64,
    /// Likely tokens in its place, with theirs.
    pub top: Vec<(NamedToken, f64)>,
}

/// A token as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedToken {
    /// The text that it adds, with U+FFFD where that is no whole character.
    pub text: String,
    /// Its id.
    pub id: Option<u32>,
}

impl NamedToken {
    /// Whether two sides mean one token: by text, or by id where the text does not tell.
    fn is(&self, other: &Self) -> bool {
        let tells = |text: &str| !text.is_empty() && !text.contains('\u{FFFD}');
        match (self.id, other.id) {
            (Some(a), Some(b)) if !tells(&self.text) || !tells(&other.text) => a == b,
            _ => self.text == other.text,
        }
    }
}

impl SpokenToken {
    /// How much likelier this side found its own token than `other`, in nats, if it told.
    fn margin(&self, other: &NamedToken) -> Option<f64> {
        let told = self.top.iter().find(|(token, _)| token.is(other));
        told.map(|(_, logprob)| self.logprob - logprob)
    }
}

impl Transcript {
    /// Answers `prompt` greedily with at most `max_tokens` tokens.
    ///
    /// Fails without a tokenizer, and on a prompt that leaves no room for an answer.
    pub fn of(llm: &mut Llm, prompt: &Prompt, max_tokens: usize) -> Result<Self> {
        let params = SamplingParams { temperature: 0.0, max_tokens: Some(max_tokens), ..SamplingParams::default() };
        let completion = llm.generate(std::slice::from_ref(prompt), &params)?.remove(0);
        let (prompt_ids, mut ids) = (completion.prompt_ids, completion.ids);
        if completion.finish_reason == FinishReason::Stop {
            ids.pop();
        }
        let mut all = prompt_ids.clone();
        all.extend_from_slice(&ids);
        let rows = llm.logits(&all, true)?;
        let missing = || Error::Unsupported("a model without a tokenizer cannot be compared with an endpoint".into());
        let tokenizer = llm.tokenizer().ok_or_else(missing)?;
        let spoken = |index: usize| spoken_token(tokenizer, &all[..index], all[index], &rows[index - 1]);
        Ok(Self {
            prompt: spelled(prompt),
            prompt_tokens: Some(prompt_ids.len()),
            text: completion.text,
            tokens: (prompt_ids.len()..all.len()).map(spoken).collect::<Result<_>>()?,
        })
    }
}

/// A prompt for people.
pub fn spelled(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Ids(ids) => format!("{ids:?}"),
        Prompt::Chat(messages) => format!("{messages:?}"),
    }
}

fn spoken_token(tokenizer: &Tokenizer, before: &[u32], token: u32, logits: &[f32]) -> Result<SpokenToken> {
    let logprobs = log_softmax(logits);
    let mut likeliest: Vec<u32> = (0..logprobs.len() as u32).collect();
    let likelier_first = |a: &u32, b: &u32| logprobs[*b as usize].total_cmp(&logprobs[*a as usize]);
    likeliest.sort_unstable_by(likelier_first);
    likeliest.truncate(TOP);
    let named = |id: u32| Ok::<_, Error>(NamedToken { text: added_text(tokenizer, before, id)?, id: Some(id) });
    let top = likeliest.into_iter().map(|id| Ok((named(id)?, logprobs[id as usize])));
    Ok(SpokenToken { token: named(token)?, logprob: logprobs[token as usize], top: top.collect::<Result<_>>()? })
}

/// What a token adds to the text before it, so that a leading space is not lost.
fn added_text(tokenizer: &Tokenizer, before: &[u32], token: u32) -> Result<String> {
    let anchor = &before[before.len().saturating_sub(1)..];
    let both = tokenizer.decode(&[anchor, &[token]].concat(), false)?;
    match both.strip_prefix(&tokenizer.decode(anchor, false)?) {
        Some(added) => Ok(added.to_owned()),
        None => tokenizer.decode(&[token], false),
    }
}

/// How the answers of two sides differ. Probabilities are compared as long as both said the same tokens, since they
/// depend on all that was said before.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TranscriptDifference {
    /// One for each prompt.
    pub prompts: Vec<PromptTranscripts>,
    /// Tokens whose probabilities could be compared.
    pub tokens: usize,
    /// Mean absolute difference of the logarithms of their probabilities, in nats.
    pub logprob_difference_mean: f64,
    /// The largest one.
    pub logprob_difference_max: f64,
}

/// How two sides answered one prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PromptTranscripts {
    /// Its text, or its token ids.
    pub prompt: String,
    /// Tokens that each side read, where it says so; if they differ, so do the tokenizers.
    pub prompt_tokens: [Option<usize>; 2],
    /// The answer of the first side.
    pub a: String,
    /// That of the second.
    pub b: String,
    /// The first token of the answers, counted from 0, that differs.
    pub first_difference: Option<usize>,
    /// What each side says there; `None` if one side had ended.
    pub parting: Option<Parting>,
    /// Absolute difference of the logarithms of the probabilities of each token before it, in nats.
    pub logprob_differences: Vec<f64>,
}

/// Two tokens in one place.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Parting {
    /// Text of the first side's token.
    pub a: String,
    /// Text of the second side's.
    pub b: String,
    /// How much likelier the first side finds its own token than the other, in nats, if it told.
    pub a_margin: Option<f64>,
    /// The same of the second side.
    pub b_margin: Option<f64>,
}

impl TranscriptDifference {
    /// Of the answers to the same prompts.
    pub fn of(first: &[Transcript], second: &[Transcript]) -> Self {
        let prompts: Vec<PromptTranscripts> =
            first.iter().zip(second).map(|(a, b)| PromptTranscripts::of(a, b)).collect();
        let all = || prompts.iter().flat_map(|prompt| prompt.logprob_differences.iter().copied());
        let tokens = all().count();
        Self {
            tokens,
            logprob_difference_mean: all().sum::<f64>() / tokens.max(1) as f64,
            logprob_difference_max: all().fold(0.0, f64::max),
            prompts,
        }
    }
}

impl PromptTranscripts {
    fn of(a: &Transcript, b: &Transcript) -> Self {
        let pairs = || a.tokens.iter().zip(&b.tokens);
        let common = pairs().take_while(|(a, b)| a.token.is(&b.token)).count();
        let parting = pairs().nth(common).map(|(a, b)| Parting {
            a: a.token.text.clone(),
            b: b.token.text.clone(),
            a_margin: a.margin(&b.token),
            b_margin: b.margin(&a.token),
        });
        Self {
            prompt: a.prompt.clone(),
            prompt_tokens: [a.prompt_tokens, b.prompt_tokens],
            a: a.text.clone(),
            b: b.text.clone(),
            first_difference: (common < a.tokens.len().max(b.tokens.len())).then_some(common),
            parting,
            logprob_differences: pairs().take(common).map(|(a, b)| (a.logprob - b.logprob).abs()).collect(),
        }
    }
}
