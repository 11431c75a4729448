//! Sums of squares of what goes into linear layers, for importance matrices.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use braidinfer_model::Slot;
use candle_core::{DType, Tensor};

use crate::Result;

/// Sums of squares of the inputs of one linear layer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Squares {
    /// For each column of the input, the sum over all rows.
    pub sums: Vec<f64>,
    /// How many rows there were: tokens, or those that were routed to an expert.
    pub rows: u64,
}

/// Sums of squares of the inputs of linear layers, by module: a decoder that was loaded with it adds to it whatever its
/// linear layers are given. The parts of an expert are given the tokens that are routed to it.
#[derive(Debug, Default)]
pub struct InputSquares(Mutex<BTreeMap<Slot, Squares>>);

impl InputSquares {
    /// What was added so far.
    pub fn by_slot(&self) -> BTreeMap<Slot, Squares> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds the rows of `x`, `[T, in]`.
    fn add(&self, slot: Slot, x: &Tensor) -> Result<()> {
        let columns = x.dim(1)?;
        let values: Vec<f32> = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let mut by_slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Squares { sums, rows } = by_slot.entry(slot).or_default();
        sums.resize(columns, 0.0);
        for row in values.chunks_exact(columns) {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value).powi(2));
            *rows += 1;
        }
        Ok(())
    }
}

/// Adds the inputs of one linear layer.
#[derive(Debug, Clone)]
pub(super) struct InputObserver {
    pub(super) slot: Slot,
    pub(super) squares: Arc<InputSquares>,
}

impl InputObserver {
    pub(super) fn add(&self, x: &Tensor) -> Result<()> {
        self.squares.add(self.slot, x)
    }
}
