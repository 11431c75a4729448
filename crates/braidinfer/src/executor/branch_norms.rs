//! Norms of the parts of a mixture of experts.

use braidinfer_model::{LayerSlot, Slot};

use crate::Result;

/// Norms `N` of the routed experts and of the one that serves every token, besides the one before the feed-forward network.
#[derive(Debug)]
pub(super) struct BranchNorms<N> {
    /// Of the residual stream, for the routed experts.
    pub(super) experts: N,
    pub(super) experts_output: N,
    pub(super) shared_output: N,
}

impl<N> BranchNorms<N> {
    /// Those of a layer; `norm` loads one.
    pub(super) fn load(index: usize, norm: impl Fn(Slot) -> Result<N>) -> Result<Self> {
        let norm = |slot| norm(Slot::Layer(index, slot));
        Ok(Self {
            experts: norm(LayerSlot::ExpertsNorm)?,
            experts_output: norm(LayerSlot::ExpertsOutputNorm)?,
            shared_output: norm(LayerSlot::SharedExpertOutputNorm)?,
        })
    }
}
