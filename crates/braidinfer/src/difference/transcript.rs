//! Outputs token by token with log-probabilities, as engines behind an HTTP endpoint report them.

use serde::Serialize;

use crate::divergence::log_softmax;
use crate::engine::{FinishReason, SamplingParams};
use crate::llm::{Llm, Prompt};
use crate::text::Tokenizer;
use crate::{Error, Result};

/// Number of alternatives recorded per position of our own transcripts, most likely first; endpoints return at most 5.
const TOP: usize = 20;

/// One greedy output.
#[derive(Debug, Clone, PartialEq)]
pub struct Transcript {
    /// The prompt's text, or its token ids.
    pub prompt: String,
    /// Number of prompt tokens, if known.
    pub prompt_tokens: Option<usize>,
    /// The output text.
    pub text: String,
    /// The output tokens, without a final end-of-sequence token.
    pub tokens: Vec<SpokenToken>,
}

/// One output token.
#[derive(Debug, Clone, PartialEq)]
pub struct SpokenToken {
    /// The token.
    pub token: NamedToken,
    /// Its natural log-probability.
    pub logprob: f64,
    /// The most likely tokens at its position, with their log-probabilities.
    pub top: Vec<(NamedToken, f64)>,
}

/// A token, identified by text and, if known, by id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedToken {
    /// The text that it adds, with U+FFFD for incomplete characters.
    pub text: String,
    /// Its token id, if known.
    pub id: Option<u32>,
}

impl NamedToken {
    /// Whether both mean the same token: by text, or by id if the text is ambiguous.
    fn is(&self, other: &Self) -> bool {
        let tells = |text: &str| !text.is_empty() && !text.contains('\u{FFFD}');
        match (self.id, other.id) {
            (Some(a), Some(b)) if !tells(&self.text) || !tells(&other.text) => a == b,
            _ => self.text == other.text,
        }
    }
}

impl SpokenToken {
    /// Log-probability of the chosen token minus that of `other`, in nats, if the latter was reported.
    fn margin(&self, other: &NamedToken) -> Option<f64> {
        let told = self.top.iter().find(|(token, _)| token.is(other));
        told.map(|(_, logprob)| self.logprob - logprob)
    }
}

impl Transcript {
    /// Generates a greedy output of at most `max_tokens` tokens for `prompt`.
    ///
    /// Fails without a tokenizer, and on a prompt that leaves no room for an output.
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

/// The prompt as text for printing.
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

/// The text that a token adds after `before`. Decoding both together keeps a leading space.
fn added_text(tokenizer: &Tokenizer, before: &[u32], token: u32) -> Result<String> {
    let anchor = &before[before.len().saturating_sub(1)..];
    let both = tokenizer.decode(&[anchor, &[token]].concat(), false)?;
    match both.strip_prefix(&tokenizer.decode(anchor, false)?) {
        Some(added) => Ok(added.to_owned()),
        None => tokenizer.decode(&[token], false),
    }
}

/// The difference between two sides' outputs. Log-probabilities are compared up to the first different token, because
/// they depend on all tokens before.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TranscriptDifference {
    /// One entry per prompt.
    pub prompts: Vec<PromptTranscripts>,
    /// Number of tokens whose log-probabilities were compared.
    pub tokens: usize,
    /// Mean absolute difference of their log-probabilities, in nats.
    pub logprob_difference_mean: f64,
    /// Largest absolute difference.
    pub logprob_difference_max: f64,
}

/// The two outputs for one prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PromptTranscripts {
    /// The prompt's text, or its token ids.
    pub prompt: String,
    /// Number of prompt tokens on each side, if reported; a difference means different tokenizers.
    pub prompt_tokens: [Option<usize>; 2],
    /// Output of the first side.
    pub a: String,
    /// Output of the second side.
    pub b: String,
    /// Index of the first output token that differs.
    pub first_difference: Option<usize>,
    /// The two tokens there; `None` if one output had ended.
    pub parting: Option<Parting>,
    /// Absolute difference of the log-probabilities of each token before it, in nats.
    pub logprob_differences: Vec<f64>,
}

/// The two tokens at the first difference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Parting {
    /// Text of the first side's token.
    pub a: String,
    /// Text of the second side's token.
    pub b: String,
    /// On the first side, log-probability of its token minus that of the other side's token, in nats, if reported.
    pub a_margin: Option<f64>,
    /// The same on the second side.
    pub b_margin: Option<f64>,
}

impl TranscriptDifference {
    /// Compares outputs for the same prompts.
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
