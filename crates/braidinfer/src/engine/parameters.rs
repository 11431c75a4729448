//! Descriptions of request parameters, from which the command line makes flags and the server makes request fields.

use std::collections::BTreeMap;

use super::SamplingParams;
use crate::{Error, Result};

/// One parameter of requests.
#[derive(Debug, Clone, Copy)]
pub struct Parameter {
    /// Name in snake_case, the same as its field in [`SamplingParams`].
    pub name: &'static str,
    /// Help text, one line without a full stop.
    pub help: &'static str,
    /// Placeholder for the value in the help, such as `N`.
    pub placeholder: &'static str,
    /// Type of its values, with a function that sets them.
    pub kind: Kind,
    /// Fails if the value that is set is out of range.
    pub(super) check: fn(&SamplingParams) -> Result<(), Refusal>,
}

/// Type of a parameter's values, with the function that sets one. The command line and the server can parse every kind, so
/// a new parameter of an existing kind needs no change there.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A number.
    Number(fn(&mut SamplingParams, f64)),
    /// A whole number.
    Count(fn(&mut SamplingParams, usize)),
    /// A whole number, or no limit. Where numbers can be negative, -1 and 0 mean no limit, as in vLLM.
    CountOrAll(fn(&mut SamplingParams, Option<usize>)),
    /// A 64-bit seed. Where numbers can be negative, a negative number is taken as the same bits.
    Seed(fn(&mut SamplingParams, u64)),
    /// On or off.
    Switch(fn(&mut SamplingParams, bool)),
    /// One text or several.
    Texts(fn(&mut SamplingParams, Vec<String>)),
    /// Numbers by token id.
    Biases(fn(&mut SamplingParams, BTreeMap<u32, f32>)),
    /// A list of token ids.
    TokenIds(fn(&mut SamplingParams, Vec<u32>)),
}

/// Why a value is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    expected: String,
    found: String,
}

impl Parameter {
    /// Whether it has a form as one text.
    pub fn can_be_written(&self) -> bool {
        !matches!(self.kind, Kind::Biases(_))
    }

    /// Sets it to a value that somebody wrote: a number, `true` or `false`, one stop text, or token ids with commas between them; `none`
    /// where there need be none.
    ///
    /// Fails on another text; whether the value is in its range is for [`SamplingParams::validate`] to say.
    pub fn write(&self, params: &mut SamplingParams, text: &str) -> Result<()> {
        let refused = |expected: &str| Error::bad_request(self.name, expected, text);
        match self.kind {
            Kind::Number(set) => set(params, text.parse().map_err(|_| refused("a number"))?),
            Kind::Count(_) if text == "none" && self.name == "max_tokens" => params.max_tokens = None,
            Kind::Count(set) => set(params, text.parse().map_err(|_| refused("a whole number"))?),
            Kind::CountOrAll(set) if text == "none" => set(params, None),
            Kind::CountOrAll(set) => set(params, Some(text.parse().map_err(|_| refused("a whole number, or none"))?)),
            Kind::Seed(_) if text == "none" => params.seed = None,
            Kind::Seed(set) => set(params, text.parse().map_err(|_| refused("a whole number, or none"))?),
            Kind::Switch(set) => set(params, text.parse().map_err(|_| refused("true or false"))?),
            Kind::Texts(set) if text == "none" => set(params, Vec::new()),
            Kind::TokenIds(set) if text == "none" => set(params, Vec::new()),
            Kind::Texts(set) => {
                set(params, Some(text.to_owned()).filter(|text| !text.is_empty()).into_iter().collect())
            }
            Kind::TokenIds(set) => {
                let ids = text.split(',').map(|id| id.trim().parse()).collect::<std::result::Result<_, _>>();
                set(params, ids.map_err(|_| refused("token ids with commas between them"))?);
            }
            Kind::Biases(_) => return Err(refused("nothing: it has no form as a text")),
        }
        Ok(())
    }

    /// Refuses a value that is not in its range.
    pub(super) fn validate(&self, params: &SamplingParams) -> Result<()> {
        let refused = |refusal: Refusal| Error::bad_request(self.name, refusal.expected, refusal.found);
        (self.check)(params).map_err(refused)
    }
}

/// Fails with what was `expected` and `found` unless `is_right`.
pub(super) fn require(is_right: bool, expected: impl FnOnce() -> String, found: impl ToString) -> Result<(), Refusal> {
    if is_right { Ok(()) } else { Err(Refusal { expected: expected(), found: found.to_string() }) }
}

/// Requires a finite number that is `in_range`.
pub(super) fn number(value: f64, in_range: bool, expected: &str) -> Result<(), Refusal> {
    require(in_range && value.is_finite(), || expected.to_owned(), value)
}
