//! Finding any of many spellings in a text, in a single pass.

use aho_corasick::{AhoCorasick, Anchored, Input, MatchKind, StartKind};

/// A set of spellings, identified by index; if several match at one position, the longest wins.
#[derive(Debug)]
pub(super) struct Spellings(Option<AhoCorasick>);

impl Spellings {
    pub(super) fn new(spellings: &[String]) -> Result<Self, String> {
        if spellings.is_empty() {
            return Ok(Self(None));
        }
        let builder =
            AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).start_kind(StartKind::Both).build(spellings);
        builder.map(|automaton| Self(Some(automaton))).map_err(|error| format!("too many special spellings: {error}"))
    }

    /// Index and length of the longest spelling at the beginning of `text`.
    pub(super) fn prefix(&self, text: &str) -> Option<(usize, usize)> {
        let found = self.0.as_ref()?.find(Input::new(text).anchored(Anchored::Yes))?;
        Some((found.pattern().as_usize(), found.len()))
    }

    /// Index, start and length of the first spelling in `text`.
    pub(super) fn first(&self, text: &str) -> Option<(usize, usize, usize)> {
        let found = self.0.as_ref()?.find(text)?;
        Some((found.pattern().as_usize(), found.start(), found.len()))
    }
}
