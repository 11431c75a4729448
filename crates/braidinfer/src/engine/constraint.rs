//! Answers that must have a form.

use std::fmt;
use std::sync::Arc;

use crate::Result;

/// Says which tokens may come next in one answer.
pub trait Constraint: Send {
    /// Sets the logits of tokens that may not come next to negative infinity. At least one may.
    fn restrict(&mut self, logits: &mut [f32]) -> Result<()>;

    /// Takes the token that came.
    fn take(&mut self, token: u32) -> Result<()>;

    /// Whether nothing can come after what was taken.
    fn is_complete(&self) -> bool;
}

/// Begins a constraint for each answer.
#[derive(Clone)]
pub struct ConstraintFactory(Arc<dyn Fn() -> Result<Box<dyn Constraint>> + Send + Sync>);

impl ConstraintFactory {
    /// From a function that begins one.
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
