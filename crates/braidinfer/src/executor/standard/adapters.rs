//! Low-rank adapters: what they add to the outputs of linear layers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use braidinfer_model::{Adapter, LowRank, Slot};
use candle_core::{DType, Device, Tensor};

use crate::Result;

/// The adapter that linear layers compute with at the moment, if any: the tokens of a step are computed adapter by adapter. Clones
/// are the same one.
#[derive(Debug, Clone, Default)]
pub(super) struct ActiveAdapter(Arc<Mutex<Option<Arc<AdapterTensors>>>>);

/// The matrices of an adapter as tensors in f32, by linear layer.
#[derive(Debug)]
pub(super) struct AdapterTensors(HashMap<Slot, LowRankTensors>);

#[derive(Debug)]
struct LowRankTensors {
    /// `[rank, in]`.
    a: Tensor,
    /// `[out, rank]`.
    b: Tensor,
    scale: f64,
}

impl AdapterTensors {
    pub(super) fn new(adapter: &Adapter, device: &Device) -> Result<Self> {
        let tensors = |(slot, LowRank { rank, scale, a, b }): (&Slot, &LowRank)| {
            let a = Tensor::from_slice(a, (*rank, a.len() / rank), device)?;
            let b = Tensor::from_slice(b, (b.len() / rank, *rank), device)?;
            Ok((*slot, LowRankTensors { a, b, scale: f64::from(*scale) }))
        };
        adapter.modules().iter().map(tensors).collect::<Result<_>>().map(Self)
    }
}

impl ActiveAdapter {
    /// Computes with this adapter, or with none, from now on.
    pub(super) fn set(&self, adapter: Option<Arc<AdapterTensors>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = adapter;
    }

    /// The output `y` of a linear layer, in f32, with what the adapter adds for the inputs `x`.
    pub(super) fn added_to(&self, y: Tensor, slot: Slot, x: &Tensor) -> Result<Tensor> {
        let active = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(LowRankTensors { a, b, scale }) = active.as_ref().and_then(|active| active.0.get(&slot)) else {
            return Ok(y);
        };
        let low = (x.to_dtype(DType::F32)?.matmul(&a.t()?)? * *scale)?;
        Ok((y + low.matmul(&b.t()?)?)?)
    }
}
