//! Constrained decoding (structured outputs).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::Result;

/// Which tokens of the vocabulary may come next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMask(Vec<u32>);

impl TokenMask {
    /// A mask from bits: token `id` is bit `id % 32` of word `id / 32`. Tokens beyond the last word are not allowed.
    pub fn from_bits(words: Vec<u32>) -> Self {
        Self(words)
    }

    /// The words of the bits, each in little-endian order.
    pub(crate) fn to_le_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Whether a token may come next.
    pub fn allows(&self, id: u32) -> bool {
        self.0.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// Allows one more token.
    pub(crate) fn allow(&mut self, id: u32) {
        if let Some(word) = self.0.get_mut(id as usize / 32) {
            *word |= 1 << (id % 32);
        }
    }

    /// Sets the logits of tokens that are not allowed to negative infinity. Returns whether any is allowed.
    pub fn apply(&self, logits: &mut [f32]) -> bool {
        let mut any = false;
        for (id, logit) in (0..).zip(logits) {
            match self.allows(id) {
                true => any = true,
                false => *logit = f32::NEG_INFINITY,
            }
        }
        any
    }
}

/// Restricts which tokens may come next in one answer, for example to follow a grammar.
///
/// What a constraint computes may take long, so the engine asks for it and looks for the result later: while masks are computed,
/// so is the forward pass, and an answer whose masks are late does not delay the others. After [`Constraint::ask_masks`]
/// come [`Constraint::masks`] until they are there, then for each token that is chosen [`Constraint::take`] and
/// [`Constraint::is_complete`] until that is known.
pub trait Constraint: Send {
    /// Begins to compute which tokens may come next, and after each token of `draft` if the ones before it are taken.
    fn ask_masks(&mut self, draft: &[u32]);

    /// The masks: one for the next token, then one after each token of the draft, up to the first that is not allowed.
    /// `None` if they are not there after `patience`.
    fn masks(&mut self, patience: Duration) -> Option<Result<Vec<TokenMask>>>;

    /// Begins to advance the constraint by the token that was chosen.
    fn take(&mut self, token: u32);

    /// Whether no token is allowed after those taken so far; `None` if that is not known after `patience`.
    fn is_complete(&mut self, patience: Duration) -> Option<Result<bool>>;
}

/// Creates a new constraint for each answer.
#[derive(Clone)]
pub struct ConstraintFactory(Arc<dyn Fn() -> Result<Box<dyn Constraint>> + Send + Sync>);

impl ConstraintFactory {
    /// Wraps a function that creates a constraint in its initial state.
    pub fn new(begin: impl Fn() -> Result<Box<dyn Constraint>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(begin))
    }

    pub(crate) fn begin(&self) -> Result<Box<dyn Constraint>> {
        (self.0)()
    }
}

impl fmt::Debug for ConstraintFactory {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("ConstraintFactory")
    }
}
