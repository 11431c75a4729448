//! Low-rank adapters: what they add to the outputs of projections, for the rows of some sequences.
//!
//! Nothing of it is rounded but sums, at any numeric level: the input of a projection with an adapter is encoded at level f32, too. What
//! is added to a row depends on this row alone.

use std::collections::HashMap;
use std::sync::Arc;

use braidinfer_kernels::{
    Chunks, Isa, LANES, NumericLevel, PanelFormat, Panels, Pool, WeightType, add_low_rank, elementwise, matmul,
    pack_panel, panel_bytes,
};
use braidinfer_model::{Adapter, LowRank, Slot};

use super::encode::Encoded;
use super::packed::PackedLinear;
use crate::executor::Batch;

/// The format of `A`.
const FORMAT: WeightType = WeightType::F32;

/// All adapters, and the rows of the current step that use them.
#[derive(Debug, Default)]
pub(super) struct Adapters {
    packed: Vec<PackedAdapter>,
    /// For each row of the batch, its adapter.
    of_rows: Vec<Option<u32>>,
    /// Those that any row uses.
    present: Vec<u32>,
}

/// What the adapter adds to each projection that it changes.
#[derive(Debug)]
struct PackedAdapter(HashMap<Slot, PackedLowRank>);

#[derive(Debug)]
struct PackedLowRank {
    rank: usize,
    columns: usize,
    scale: f32,
    /// `A` in panels.
    a: Vec<u8>,
    /// `B`, `[panels][rank][16]`, padded with zeros.
    b: Vec<f32>,
}

impl PackedLowRank {
    fn new(LowRank { rank, scale, a, b }: &LowRank) -> Self {
        let (columns, outputs) = (a.len() / rank, b.len() / rank);
        let bytes: Vec<u8> = a.iter().flat_map(|value| value.to_le_bytes()).collect();
        let panel = panel_bytes(PanelFormat::of(FORMAT), columns);
        let mut packed = vec![0; rank.div_ceil(LANES) * panel];
        for (rows, panel) in bytes.chunks(LANES * columns * size_of::<f32>()).zip(packed.chunks_exact_mut(panel)) {
            // Values are finite: they were read as such.
            pack_panel(FORMAT, rows, columns, panel);
        }
        let mut by_panel = vec![0.0; outputs.div_ceil(LANES) * rank * LANES];
        for (output, row) in b.chunks_exact(*rank).enumerate() {
            for (column, value) in row.iter().enumerate() {
                by_panel[((output / LANES) * rank + column) * LANES + output % LANES] = *value;
            }
        }
        Self { rank: *rank, columns, scale: *scale, a: packed, b: by_panel }
    }
}

impl Adapters {
    /// Packs adapters for the kernels.
    pub(super) fn pack(adapters: &[Arc<Adapter>]) -> Self {
        let pack = |adapter: &Arc<Adapter>| {
            let packed = adapter.modules().iter().map(|(slot, low_rank)| (*slot, PackedLowRank::new(low_rank)));
            PackedAdapter(packed.collect())
        };
        Self { packed: adapters.iter().map(pack).collect(), ..Self::default() }
    }

    /// Notes which rows of a step use which adapter.
    pub(super) fn begin(&mut self, batch: &Batch) {
        self.of_rows.clear();
        self.present.clear();
        if self.packed.is_empty() {
            return;
        }
        for (range, sequence) in batch.ranges() {
            self.of_rows.resize(range.end, sequence.adapter);
            self.present.extend(sequence.adapter.filter(|adapter| !self.present.contains(adapter)));
        }
    }

    /// The adapter of each row; empty if there are no adapters.
    pub(super) fn of_rows(&self) -> &[Option<u32>] {
        &self.of_rows
    }

    fn of(&self, adapter: u32, linear: &PackedLinear) -> Option<&PackedLowRank> {
        self.packed[adapter as usize].0.get(&linear.slot)
    }

    /// The level that the input of some projections must be encoded at besides their own, if any row's adapter changes one of them.
    pub(super) fn level<'b>(&self, mut linears: impl Iterator<Item = &'b PackedLinear>) -> Option<NumericLevel> {
        if self.present.is_empty() {
            return None;
        }
        let changes = |linear: &PackedLinear| self.present.iter().any(|adapter| self.of(*adapter, linear).is_some());
        linears.any(changes).then_some(NumericLevel::F32)
    }

    /// `scale A x` for every adapter that changes one of the projections. `inputs` are projections with the group of `x` that they
    /// multiply and, unless these are all rows of the batch, its rows.
    pub(super) fn low<'a>(
        &'a self,
        isa: Isa,
        pool: &mut Pool,
        x: &Encoded,
        inputs: impl Iterator<Item = (&'a PackedLinear, usize, Option<&'a [usize]>)>,
    ) -> Low<'a> {
        if self.present.is_empty() {
            return Low::default();
        }
        let mut parts: Vec<Part<'a>> = Vec::new();
        for (linear, group, selected) in inputs {
            for adapter in &self.present {
                let Some(low_rank) = self.of(*adapter, linear) else { continue };
                let rows = self.rows_of(*adapter, selected);
                if !rows.is_empty() {
                    parts.push(Part { slot: linear.slot, group, low_rank, rows, values: Vec::new() });
                }
            }
        }
        // One panel each, unless a rank is large.
        pool.for_each(Chunks::new(&mut parts, 1), |_, parts, _| parts.iter_mut().for_each(|part| part.compute(isa, x)));
        Low { parts }
    }

    /// The rows of a product that belong to sequences with an adapter.
    fn rows_of(&self, adapter: u32, selected: Option<&[usize]>) -> Vec<u32> {
        let is_own = |row: usize| self.of_rows[row] == Some(adapter);
        match selected {
            None => (0..self.of_rows.len()).filter(|row| is_own(*row)).map(|row| row as u32).collect(),
            Some(selected) => {
                let own = selected.iter().enumerate().filter(|(_, row)| is_own(**row));
                own.map(|(index, _)| index as u32).collect()
            }
        }
    }
}

/// `scale A x` for the products of a step.
#[derive(Debug, Default)]
pub(super) struct Low<'a> {
    parts: Vec<Part<'a>>,
}

/// The same for one projection, group and adapter.
#[derive(Debug)]
struct Part<'a> {
    slot: Slot,
    group: usize,
    low_rank: &'a PackedLowRank,
    /// The rows that use the adapter.
    rows: Vec<u32>,
    /// `[panels of rank][all rows][16]`; of the other rows, too, which nobody reads.
    values: Vec<f32>,
}

impl Part<'_> {
    fn compute(&mut self, isa: Isa, x: &Encoded) {
        let PackedLowRank { rank, columns, scale, a, .. } = self.low_rank;
        let x = x.group(self.group, NumericLevel::F32);
        self.values = vec![0.0; rank.div_ceil(LANES) * x.rows * LANES];
        let panels = Panels { format: PanelFormat::of(FORMAT), columns: *columns, data: a, ahead: &[] };
        matmul(isa, panels, &x, &mut self.values);
        elementwise::scale(isa, &mut self.values, *scale);
    }
}

impl Low<'_> {
    /// Adds what adapters add to some panels of a projection's output, from panel `first` on, `[panels][rows][16]`.
    pub(super) fn add(
        &self,
        isa: Isa,
        linear: &PackedLinear,
        group: usize,
        first: usize,
        out: &mut [f32],
        rows: usize,
    ) {
        let of_linear = self.parts.iter().filter(|part| (part.slot, part.group) == (linear.slot, group));
        for part in of_linear {
            let b = &part.low_rank.b[first * part.low_rank.rank * LANES..];
            for (out, b) in out.chunks_exact_mut(rows * LANES).zip(b.chunks_exact(part.low_rank.rank * LANES)) {
                add_low_rank(isa, b, &part.values, &part.rows, out);
            }
        }
    }
}
