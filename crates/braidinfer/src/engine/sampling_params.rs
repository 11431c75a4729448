//! Parameters for sampling tokens and for ending answers.
//!
//! A request parameter is a field of [`SamplingParams`] with its default, and a row of [`PARAMETERS`], from which the command
//! line and the server take its name, help, type and range. Its effect is implemented where the field is used.

use std::borrow::Cow;
use std::collections::BTreeMap;

use braidinfer_model::GenerationConfig;

use super::parameters::{Kind, Parameter, Refusal, number, require};
use crate::{Error, Result};

/// Most top log-probabilities per position, as in the OpenAI API.
pub const MOST_LOGPROBS: usize = 20;

/// Most token biases in one request.
const MOST_BIASES: usize = 1024;

/// Longest stop text, in bytes.
const LONGEST_STOP: usize = 1024;
/// Most stop texts: each is searched for in the text of every new token.
const MOST_STOPS: usize = 16;

/// Most stop token ids in one request.
const MOST_STOP_TOKENS: usize = 64;

/// Most answers to one prompt.
const MOST_ANSWERS: usize = 128;

/// Sampling parameters of one request. The default is greedy sampling.
///
/// Set only the fields you need: `SamplingParams { temperature: 0.8, ..SamplingParams::default() }`. Such code still compiles
/// when a field is added. The type is not `#[non_exhaustive]`, because that would forbid this syntax. [`PARAMETERS`] has a row
/// for each field that a request can set.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divisor of the logits; 0 takes the likeliest token.
    pub temperature: f64,
    /// Keep only this many of the likeliest tokens.
    pub top_k: Option<usize>,
    /// Keep the fewest likeliest tokens whose probabilities sum to at least this.
    pub top_p: f64,
    /// Keep tokens whose probability is at least this share of the largest probability.
    pub min_p: f64,
    /// Logits of tokens seen in prompt or answer are divided (if positive) or multiplied by this (Keskar et
    /// al. 2019, arXiv:1909.05858).
    pub repetition_penalty: f64,
    /// Subtracted from the logit of every token of the answer so far.
    pub presence_penalty: f64,
    /// Subtracted from the logit of a token once for each of its occurrences in the answer so far.
    pub frequency_penalty: f64,
    /// Seed of the random choices; drawn at random if `None`.
    pub seed: Option<u64>,
    /// Most tokens to generate; if `None`, up to the end of the context.
    pub max_tokens: Option<usize>,
    /// Fewest tokens before one of the model's end tokens or `stop_token_ids` may come.
    pub min_tokens: usize,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end the answer in addition to the model's end tokens, even with `ignore_eos`; they are not part of its text.
    pub stop_token_ids: Vec<u32>,
    /// Continue after the model's end tokens.
    pub ignore_eos: bool,
    /// Added to the logits of these tokens, before penalties and temperature.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Return the log-probability of each token of the answer, and this many of the likeliest tokens at its position.
    pub logprobs: Option<usize>,
    /// The same for each token of the prompt but the first, which has no preceding token. Such a prompt does not use the
    /// prefix cache.
    pub prompt_logprobs: Option<usize>,
    /// Number of answers to each prompt. If `seed` is set, answer `i` uses `seed + i`.
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
            min_tokens: 0,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            logit_bias: BTreeMap::new(),
            logprobs: None,
            prompt_logprobs: None,
            n: 1,
        }
    }
}

/// Most tokens that an answer may be asked to have at least.
const MOST_MIN_TOKENS: usize = 1 << 31;

/// Every request parameter, in the order of the help.
pub const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "max_tokens",
        help: "Most tokens to generate; without it an answer ends with its end token or with the context",
        placeholder: "N",
        kind: Kind::Count(|params, count| params.max_tokens = Some(count)),
        check: |params| at_least_one(params.max_tokens),
    },
    Parameter {
        name: "min_tokens",
        help: "Fewest tokens before an end token may come",
        placeholder: "N",
        kind: Kind::Count(|params, count| params.min_tokens = count),
        check: |params| {
            let most = params.max_tokens.unwrap_or(MOST_MIN_TOKENS);
            require(params.min_tokens <= most, || format!("at most max_tokens, or {most}"), params.min_tokens)
        },
    },
    Parameter {
        name: "temperature",
        help: "0 always takes the likeliest token",
        placeholder: "T",
        kind: Kind::Number(|params, value| params.temperature = value),
        check: |params| number(params.temperature, params.temperature >= 0.0, "a number of at least 0"),
    },
    Parameter {
        name: "top_k",
        help: "Choose among the K likeliest tokens",
        placeholder: "K",
        kind: Kind::CountOrAll(|params, count| params.top_k = count),
        check: |params| at_least_one(params.top_k),
    },
    Parameter {
        name: "top_p",
        help: "Choose among the likeliest tokens that together have probability P",
        placeholder: "P",
        kind: Kind::Number(|params, value| params.top_p = value),
        check: |params| {
            let is_share = params.top_p > 0.0 && params.top_p <= 1.0;
            number(params.top_p, is_share, "a number above 0 and at most 1")
        },
    },
    Parameter {
        name: "min_p",
        help: "Choose among tokens at least P times as likely as the likeliest",
        placeholder: "P",
        kind: Kind::Number(|params, value| params.min_p = value),
        check: |params| number(params.min_p, (0.0..=1.0).contains(&params.min_p), "a number from 0 to 1"),
    },
    Parameter {
        name: "repetition_penalty",
        help: "Make tokens seen before less likely; 1 changes nothing",
        placeholder: "R",
        kind: Kind::Number(|params, value| params.repetition_penalty = value),
        check: |params| {
            let penalty = params.repetition_penalty;
            // Logits are f32, which could underflow or overflow with a penalty outside of this range.
            number(penalty, (1e-3..=1e3).contains(&penalty), "a number from 0.001 to 1000")
        },
    },
    Parameter {
        name: "presence_penalty",
        help: "Subtract from the logits of tokens already in the answer",
        placeholder: "R",
        kind: Kind::Number(|params, value| params.presence_penalty = value),
        check: |params| penalty_in_range(params.presence_penalty),
    },
    Parameter {
        name: "frequency_penalty",
        help: "Subtract from the logits of tokens for each time they are in the answer",
        placeholder: "R",
        kind: Kind::Number(|params, value| params.frequency_penalty = value),
        check: |params| penalty_in_range(params.frequency_penalty),
    },
    Parameter {
        name: "seed",
        help: "Repeat the same choices",
        placeholder: "N",
        kind: Kind::Seed(|params, seed| params.seed = Some(seed)),
        check: |_| Ok(()),
    },
    Parameter {
        name: "stop",
        help: "End the answer before this text",
        placeholder: "TEXT",
        kind: Kind::Texts(|params, texts| params.stop = texts),
        check: |params| {
            let count = params.stop.len();
            require(count <= MOST_STOPS, || format!("at most {MOST_STOPS} texts"), count)?;
            params.stop.iter().try_for_each(|text| stop_text(text))
        },
    },
    Parameter {
        name: "stop_token_ids",
        help: "End the answer at any of these tokens",
        placeholder: "ID,..",
        kind: Kind::TokenIds(|params, ids| params.stop_token_ids = ids),
        check: |params| {
            let count = params.stop_token_ids.len();
            require(count <= MOST_STOP_TOKENS, || format!("at most {MOST_STOP_TOKENS} tokens"), count)
        },
    },
    Parameter {
        name: "ignore_eos",
        help: "Go on past the tokens that end a text",
        placeholder: "",
        kind: Kind::Switch(|params, wanted| params.ignore_eos = wanted),
        check: |_| Ok(()),
    },
    Parameter {
        name: "logit_bias",
        help: "Add to the logits of tokens before anything else",
        placeholder: "ID:R",
        kind: Kind::Biases(|params, biases| params.logit_bias = biases),
        check: |params| biases(&params.logit_bias),
    },
    Parameter {
        name: "n",
        help: "How many answers to give; with a seed, each next one has the next seed",
        placeholder: "N",
        kind: Kind::Count(|params, count| params.n = count),
        check: |params| {
            let expected = || format!("from 1 to {MOST_ANSWERS} answers");
            require((1..=MOST_ANSWERS).contains(&params.n), expected, params.n)
        },
    },
];

impl SamplingParams {
    /// Those of a model's own generation settings; greedy unless these enable sampling, as in `transformers`.
    pub fn of_model(own: &GenerationConfig) -> Self {
        let defaults = Self::default();
        Self {
            temperature: if own.do_sample { own.temperature.unwrap_or(1.0) } else { 0.0 },
            top_k: own.top_k,
            top_p: own.top_p.unwrap_or(defaults.top_p),
            min_p: own.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: own.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            max_tokens: own.max_new_tokens,
            ..defaults
        }
    }

    /// Whether any penalty changes the logits of earlier tokens.
    pub(super) fn has_penalties(&self) -> bool {
        (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)
    }

    /// Token ids in the fields, by the name of the field; they must be in the vocabulary.
    pub(super) fn tokens_by_field(&self) -> impl Iterator<Item = (&'static str, Cow<'_, [u32]>)> {
        let biased = self.logit_bias.keys().copied().collect();
        [("logit_bias", biased), ("stop_token_ids", Cow::Borrowed(&*self.stop_token_ids))].into_iter()
    }

    /// Fails if a parameter is out of range.
    pub fn validate(&self) -> Result<()> {
        PARAMETERS.iter().try_for_each(|parameter| parameter.validate(self))?;
        for (field, count) in [("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)] {
            if let Some(count) = count.filter(|count| *count > MOST_LOGPROBS) {
                return Err(Error::bad_request(field, format!("at most {MOST_LOGPROBS} tokens"), count));
            }
        }
        Ok(())
    }
}

/// Range of presence and frequency penalties, as in the OpenAI API.
fn penalty_in_range(value: f64) -> Result<(), Refusal> {
    number(value, (-2.0..=2.0).contains(&value), "a number from -2 to 2")
}

fn at_least_one(count: Option<usize>) -> Result<(), Refusal> {
    require(count != Some(0), || "a whole number of at least 1".into(), 0)
}

/// Stop texts are limited in length, because the text of every new token is searched for them.
fn stop_text(text: &str) -> Result<(), Refusal> {
    require(!text.is_empty(), || "a text of at least one character".into(), "an empty text")?;
    let found = format!("one of {}", text.len());
    require(text.len() <= LONGEST_STOP, || format!("texts of at most {LONGEST_STOP} bytes"), found)
}

fn biases(biases: &BTreeMap<u32, f32>) -> Result<(), Refusal> {
    for bias in biases.values().copied().map(f64::from) {
        number(bias, (-100.0..=100.0).contains(&bias), "numbers from -100 to 100")?;
    }
    require(biases.len() <= MOST_BIASES, || format!("at most {MOST_BIASES} tokens"), biases.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sets a parameter to an invalid value; `false` if every value of its kind is valid.
    fn set_invalid(kind: Kind, params: &mut SamplingParams) -> bool {
        match kind {
            Kind::Number(set) => set(params, f64::NAN),
            Kind::Count(set) => {
                set(params, 0);
                if params.validate().is_ok() {
                    set(params, usize::MAX);
                }
            }
            Kind::CountOrAll(set) => set(params, Some(0)),
            Kind::Texts(set) => set(params, vec!["fine".into(), String::new()]),
            Kind::Biases(set) => set(params, BTreeMap::from([(1, 1e3)])),
            Kind::TokenIds(set) => set(params, vec![1; 1000]),
            Kind::Seed(_) | Kind::Switch(_) => return false,
        }
        true
    }

    #[test]
    fn each_row_sets_and_checks_its_own_field() {
        SamplingParams::default().validate().expect("the default is right");
        for parameter in PARAMETERS {
            let mut params = SamplingParams::default();
            if set_invalid(parameter.kind, &mut params) {
                let error = params.validate().expect_err(parameter.name).to_string();
                assert!(error.starts_with(&format!("{}: expected ", parameter.name)), "{error}");
                let field = format!("{}: ", parameter.name);
                assert!(format!("{params:?}").contains(&field), "{field} is no field");
            }
            assert!(!parameter.help.ends_with('.') && parameter.name.is_ascii(), "{}", parameter.name);
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = PARAMETERS.iter().map(|parameter| parameter.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), PARAMETERS.len());
    }
}
