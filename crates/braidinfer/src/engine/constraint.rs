//! Constrained decoding (structured outputs).

use std::fmt;
use std::sync::Arc;

use crate::Result;

/// Restricts which tokens may come next in one answer, for example to follow a grammar.
pub trait Constraint: Send {
    /// Sets the logits of tokens that are not allowed next to negative infinity. At least one token is always allowed.
    fn restrict(&mut self, logits: &mut [f32]) -> Result<()>;

    /// Advances the constraint by the token that was chosen.
    fn take(&mut self, token: u32) -> Result<()>;

    /// Whether no token is allowed after those taken so far.
    fn is_complete(&self) -> bool;
}

/// Creates a new constraint for each answer.
#[derive(Clone)]
pub struct ConstraintFactory(Arc<dyn Fn() -> Result<Box<dyn Constraint>> + Send + Sync>);

impl ConstraintFactory {
    /// Wraps a function that creates a constraint in its initial state.
    pub fn new(begin: impl Fn() -> Result<Box<dyn Constraint>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(begin))
    }

    pub(super) fn begin(&self) -> Result<Box<dyn Constraint>> {
        (self.0)()
    }
}

impl fmt::Debug for ConstraintFactory {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("ConstraintFactory")
    }
}
