//! What there is to say of a parameter of requests, so that every face can offer it: the command line as a flag, the server as
//! a field.

use std::collections::BTreeMap;

use super::SamplingParams;
use crate::{Error, Result};

/// One parameter of requests.
#[derive(Debug, Clone, Copy)]
pub struct Parameter {
    /// Its name in snake_case, which is that of its field in [`SamplingParams`].
    pub name: &'static str,
    /// What it is for, in one line without a full stop.
    pub help: &'static str,
    /// What stands for its value in the help, such as `N`.
    pub placeholder: &'static str,
    /// Which values it takes, and how to set them.
    pub kind: Kind,
    /// Whether the value that is set is in its range.
    pub(super) check: fn(&SamplingParams) -> Result<(), Refusal>,
}

/// What a parameter takes, with what sets it. Faces know how to read each kind, so that a new parameter of a known kind needs
/// nothing of them.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A number.
    Number(fn(&mut SamplingParams, f64)),
    /// A whole number.
    Count(fn(&mut SamplingParams, usize)),
    /// A whole number, or all there are. Where numbers can be negative, -1 and 0 are all, as in vLLM.
    CountOrAll(fn(&mut SamplingParams, Option<usize>)),
    /// 64 bits. Where numbers can be negative, a negative one stands for the same bits.
    Seed(fn(&mut SamplingParams, u64)),
    /// On or off.
    Switch(fn(&mut SamplingParams, bool)),
    /// One text or several.
    Texts(fn(&mut SamplingParams, Vec<String>)),
    /// A number for each of some token ids.
    Biases(fn(&mut SamplingParams, BTreeMap<u32, f32>)),
    /// Some token ids.
    TokenIds(fn(&mut SamplingParams, Vec<u32>)),
}

/// Why a value is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    expected: String,
    found: String,
}

impl Parameter {
    /// Refuses a value that is not in its range.
    pub(super) fn validate(&self, params: &SamplingParams) -> Result<()> {
        let refused = |refusal: Refusal| Error::bad_request(self.name, refusal.expected, refusal.found);
        (self.check)(params).map_err(refused)
    }
}

/// Refuses what was `found` unless it `is_right`.
pub(super) fn require(is_right: bool, expected: impl FnOnce() -> String, found: impl ToString) -> Result<(), Refusal> {
    if is_right { Ok(()) } else { Err(Refusal { expected: expected(), found: found.to_string() }) }
}

/// A number that is finite and `in_range`.
pub(super) fn number(value: f64, in_range: bool, expected: &str) -> Result<(), Refusal> {
    require(in_range && value.is_finite(), || expected.to_owned(), value)
}
