//! How to choose tokens, and when to stop.

use std::collections::BTreeMap;
use std::fmt;

use crate::{Error, Result};

/// Likeliest tokens that may be asked for at each position, as in the OpenAI API.
pub const MOST_LOGPROBS: usize = 20;

/// Biases of one request.
const MOST_BIASES: usize = 1024;

/// Bytes of a text that ends an answer.
const LONGEST_STOP: usize = 1024;

/// Answers to one prompt.
const MOST_ANSWERS: usize = 128;

/// Settings of one request. The default is greedy.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divisor of the logits; 0 takes the likeliest token.
    pub temperature: f64,
    /// Keep this many most likely tokens.
    pub top_k: Option<usize>,
    /// Keep the fewest tokens whose probabilities sum to this.
    pub top_p: f64,
    /// Keep tokens with at least this share of the largest probability.
    pub min_p: f64,
    /// Logits of tokens seen in prompt or answer are divided (if positive) or multiplied by this (Keskar et
    /// al. 2019, arXiv:1909.05858).
    pub repetition_penalty: f64,
    /// Subtracted from the logit of every token of the answer so far.
    pub presence_penalty: f64,
    /// Subtracted once per occurrence in the answer so far.
    pub frequency_penalty: f64,
    /// Seed of the random choices; drawn at random if `None`.
    pub seed: Option<u64>,
    /// Most tokens to generate; up to the context's end if `None`.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Go on past the tokens that end a text.
    pub ignore_eos: bool,
    /// Added to the logits of tokens before anything else.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Tell how likely each token of the answer was, and so many of the likeliest in its place.
    pub logprobs: Option<usize>,
    /// The same of each token of the prompt but the first, which follows nothing. Nothing of such a prompt is taken from
    /// the prefix cache.
    pub prompt_logprobs: Option<usize>,
    /// How many answers to give to each prompt. With a seed, each next one has the next seed.
    pub n: usize,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
            max_tokens: None,
            stop: Vec::new(),
            ignore_eos: false,
            logit_bias: BTreeMap::new(),
            logprobs: None,
            prompt_logprobs: None,
            n: 1,
        }
    }
}

impl SamplingParams {
    /// Whether tokens that were there before are to be less likely, or likelier.
    pub(super) fn has_penalties(&self) -> bool {
        (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)
    }

    /// Whether every setting is in its range.
    pub fn validate(&self) -> Result<()> {
        let within = |field: &str, value: f64, ok: bool, range: &str| {
            if ok && value.is_finite() { Ok(()) } else { Err(Error::bad_request(field, range, value)) }
        };
        within("temperature", self.temperature, self.temperature >= 0.0, "a number of at least 0")?;
        within("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "a number above 0 and at most 1")?;
        within("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "a number from 0 to 1")?;
        let penalty = self.repetition_penalty;
        // Logits are f32: beyond this range they would vanish or overflow.
        within("repetition_penalty", penalty, (1e-3..=1e3).contains(&penalty), "a number from 0.001 to 1000")?;
        for (field, value) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            within(field, value, (-2.0..=2.0).contains(&value), "a number from -2 to 2")?;
        }
        for bias in self.logit_bias.values() {
            let bias = f64::from(*bias);
            within("logit_bias", bias, (-100.0..=100.0).contains(&bias), "numbers from -100 to 100")?;
        }
        for (field, count) in [("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)] {
            if let Some(count) = count.filter(|count| *count > MOST_LOGPROBS) {
                return Err(Error::bad_request(field, format!("at most {MOST_LOGPROBS} tokens"), count));
            }
        }
        if !(1..=MOST_ANSWERS).contains(&self.n) {
            return Err(Error::bad_request("n", format!("from 1 to {MOST_ANSWERS} answers"), self.n));
        }
        at_least_one("top_k", self.top_k)?;
        at_least_one("max_tokens", self.max_tokens)?;
        if self.logit_bias.len() > MOST_BIASES {
            let expected = format!("at most {MOST_BIASES} tokens");
            return Err(Error::bad_request("logit_bias", expected, self.logit_bias.len()));
        }
        // Every token of every answer is searched for them.
        match self.stop.iter().map(String::len).find(|length| !(1..=LONGEST_STOP).contains(length)) {
            Some(0) => Err(Error::bad_request("stop", "a text of at least one character", "an empty text")),
            Some(length) => {
                let expected = format!("texts of at most {LONGEST_STOP} bytes");
                Err(Error::bad_request("stop", expected, format!("one of {length}")))
            }
            None => Ok(()),
        }
    }
}

fn at_least_one(field: &str, value: Option<impl fmt::Display + PartialEq<usize>>) -> Result<()> {
    match value {
        Some(value) if value == 0 => Err(Error::bad_request(field, "a whole number of at least 1", value)),
        _ => Ok(()),
    }
}
