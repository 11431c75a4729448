//! Projections: the panels of a matrix are distributed over threads in small tasks.

use std::ops::Range;

use braidinfer_kernels::{ActivationFunction, Chunks, Isa, LANES, NumericLevel, Pool, Ranges, elementwise, matmul};

use super::adapters::{Adapters, Low};
use super::encode::Encoded;
use super::packed::{PackedDecoder, PackedLinear, PackedNetwork};
use crate::executor::KernelPlan;

/// Panels per task: few, so that no thread waits long for a slow core, and enough that claiming a task costs little.
const PANELS_PER_TASK: usize = 4;

/// Tasks over the panels of the outputs of several networks, each on its own group of rows. The outputs of a group are
/// `[panels][rows][16]`, and follow those of the group before.
#[derive(Debug, Default)]
pub(super) struct GroupTasks {
    /// Group and panels of each task.
    tasks: Vec<(usize, Range<usize>)>,
    /// Where the output of each begins.
    starts: Vec<usize>,
    /// Where the output of each group begins.
    groups: Vec<usize>,
}

impl GroupTasks {
    /// Makes the tasks of groups with these numbers of panels and rows. Returns the length of all outputs.
    pub(super) fn fill(&mut self, groups: impl Iterator<Item = (usize, usize)>) -> usize {
        self.tasks.clear();
        self.starts.clear();
        self.groups.clear();
        let mut start = 0;
        for (group, (panels, rows)) in groups.enumerate() {
            self.groups.push(start);
            for first in (0..panels).step_by(PANELS_PER_TASK) {
                let panels = first..panels.min(first + PANELS_PER_TASK);
                self.starts.push(start);
                start += panels.len() * rows * LANES;
                self.tasks.push((group, panels));
            }
        }
        start
    }

    /// Where the output of a group begins.
    pub(super) fn start(&self, group: usize) -> usize {
        self.groups[group]
    }

    fn at(&self, task: usize) -> (usize, Range<usize>) {
        self.tasks[task].clone()
    }

    /// The task that the thread will probably claim next.
    fn after(&self, task: usize, threads: usize) -> Option<(usize, Range<usize>)> {
        self.tasks.get(task + threads).cloned()
    }
}

/// A network of a mixture of experts with the tokens that it runs on.
#[derive(Debug, Clone, Copy)]
pub(super) struct NetworkGroup<'a> {
    /// Index of the group.
    pub(super) index: usize,
    pub(super) network: &'a PackedNetwork,
    /// The row of the batch of each of its rows.
    pub(super) tokens: &'a [usize],
}

/// What all products of a pass need.
pub(super) struct Products<'a> {
    isa: Isa,
    weights: &'a PackedDecoder,
    plan: &'a KernelPlan,
    adapters: &'a Adapters,
    /// The rows of the batch that are multiplied, unless these are all.
    selected: Option<&'a [usize]>,
    threads: usize,
}

impl<'a> Products<'a> {
    pub(super) fn new(
        isa: Isa,
        (weights, adapters): (&'a PackedDecoder, &'a Adapters),
        plan: &'a KernelPlan,
        pool: &Pool,
    ) -> Self {
        Self { isa, weights, plan, adapters, selected: None, threads: pool.threads() }
    }

    /// The same with some rows of the batch.
    pub(super) fn of_rows(self, rows: &'a [usize]) -> Self {
        Self { selected: Some(rows), ..self }
    }
}

impl Products<'_> {
    /// Asks for the matrices of networks that will be used, if they may have to be read from the disk.
    pub(super) fn read_ahead<'b>(&self, networks: impl Iterator<Item = &'b PackedNetwork>) {
        networks.for_each(|network| self.weights.read_ahead_network(network));
    }

    /// The numeric levels of some projections, and of adapters that change them.
    pub(super) fn levels<'b>(
        &'b self,
        linears: impl Iterator<Item = &'b &'b PackedLinear> + Clone,
    ) -> impl Iterator<Item = NumericLevel> + Clone {
        let of_adapters = self.adapter_level(linears.clone().copied());
        linears.map(|linear| self.level(linear)).chain(of_adapters)
    }

    /// The level of adapters that change some projections, if there are any.
    pub(super) fn adapter_level<'b>(&self, linears: impl Iterator<Item = &'b PackedLinear>) -> Option<NumericLevel> {
        self.adapters.level(linears)
    }

    /// What adapters add to some projections of the rows `x`.
    fn low<'b>(&'b self, pool: &mut Pool, linears: &[&'b PackedLinear], x: &Encoded) -> Low<'b> {
        self.adapters.low(self.isa, pool, x, linears.iter().map(|linear| (*linear, 0, self.selected)))
    }

    pub(super) fn level(&self, linear: &PackedLinear) -> NumericLevel {
        self.plan.projections[linear.planned].level
    }

    /// Multiplies several projections by the same rows, writing their outputs one after the other: `[all
    /// panels][rows][16]`.
    pub(super) fn all(&self, pool: &mut Pool, linears: &[&PackedLinear], x: &Encoded, rows: usize, out: &mut [f32]) {
        let (width, low) = (rows * LANES, self.low(pool, linears, x));
        pool.for_each(Chunks::new(out, PANELS_PER_TASK * width), |task, out, _| {
            let (start, end) = (task * PANELS_PER_TASK, task * PANELS_PER_TASK + out.len() / width);
            let mut first = 0;
            for linear in linears {
                let (from, to) = (start.max(first), end.min(first + linear.panels()));
                if from < to {
                    let out = &mut out[(from - start) * width..(to - start) * width];
                    let panels = from - first..to - first;
                    self.panels(linear, panels.clone(), (linear, self.next(&panels)), (x, 0), &low, out);
                }
                first += linear.panels();
            }
        });
    }

    /// `activation(gate x) * (up x)` in `up`; `gate` is overwritten.
    pub(super) fn gated(
        &self,
        pool: &mut Pool,
        linears: [&PackedLinear; 2],
        activation: ActivationFunction,
        x: &Encoded,
        rows: usize,
        [gate, up]: [&mut [f32]; 2],
    ) {
        let (chunk, low) = (PANELS_PER_TASK * rows * LANES, self.low(pool, &linears, x));
        pool.for_each((Chunks::new(gate, chunk), Chunks::new(up, chunk)), |task, (gate, up), _| {
            let panels = task * PANELS_PER_TASK..task * PANELS_PER_TASK + up.len() / (rows * LANES);
            let next = self.next(&panels);
            // Both matrices have the same number of panels; the bytes to read after them follow the second one.
            let following = if next < linears[0].panels() { linears[0] } else { linears[1] };
            self.panels(linears[0], panels.clone(), (linears[1], panels.start), (x, 0), &low, gate);
            self.panels(linears[1], panels, (following, next), (x, 0), &low, up);
            elementwise::gated(self.isa, activation, gate, up);
        });
    }

    /// `activation(up x)`.
    pub(super) fn activated(
        &self,
        pool: &mut Pool,
        linear: &PackedLinear,
        activation: ActivationFunction,
        x: &Encoded,
        rows: usize,
        up: &mut [f32],
    ) {
        let low = self.low(pool, &[linear], x);
        pool.for_each(Chunks::new(up, PANELS_PER_TASK * rows * LANES), |task, up, _| {
            let panels = task * PANELS_PER_TASK..task * PANELS_PER_TASK + up.len() / (rows * LANES);
            self.panels(linear, panels.clone(), (linear, self.next(&panels)), (x, 0), &low, up);
            elementwise::activate(self.isa, activation, up);
        });
    }

    /// Adds `factor * (W x + b)` to `sum`; `out` keeps the product.
    pub(super) fn add_product(
        &self,
        pool: &mut Pool,
        linear: &PackedLinear,
        x: &Encoded,
        rows: usize,
        factor: f32,
        [out, sum]: [&mut [f32]; 2],
    ) {
        let (chunk, low) = (PANELS_PER_TASK * rows * LANES, self.low(pool, &[linear], x));
        pool.for_each((Chunks::new(out, chunk), Chunks::new(sum, chunk)), |task, (out, sum), _| {
            let panels = task * PANELS_PER_TASK..task * PANELS_PER_TASK + out.len() / (rows * LANES);
            self.panels(linear, panels.clone(), (linear, self.next(&panels)), (x, 0), &low, out);
            elementwise::add_scaled(self.isa, sum, out, factor);
        });
    }

    /// `activation(gate x) * (up x)` of the networks of a mixture, or `activation(up x)` of those without a gate, each on its
    /// own group of rows; `gate` is overwritten.
    pub(super) fn gated_groups<'b>(
        &self,
        pool: &mut Pool,
        tasks: &GroupTasks,
        groups: &(dyn Fn(usize) -> NetworkGroup<'b> + Sync),
        x: &Encoded,
        [gate, up]: [&mut [f32]; 2],
    ) {
        let network = |group| groups(group).network;
        let inputs = (0..tasks.groups.len()).map(groups).flat_map(|NetworkGroup { index, network, tokens }| {
            let readers = network.gate_proj.iter().chain([&network.up_proj]);
            readers.map(move |linear| (linear, index, Some(tokens)))
        });
        let low = self.adapters.low(self.isa, pool, x, inputs);
        let parts = (Ranges::new(gate, &tasks.starts), Ranges::new(up, &tasks.starts));
        pool.for_each(parts, |task, (gate, up), _| {
            let (group, panels) = tasks.at(task);
            let PackedNetwork { hidden_act, .. } = network(group);
            let PackedNetwork { gate_proj, up_proj, .. } = network(group);
            let next =
                tasks.after(task, self.threads).map(|(group, panels)| (network(group).inputs()[0], panels.start));
            if let Some(gate_proj) = gate_proj {
                self.panels(gate_proj, panels.clone(), (up_proj, panels.start), (x, group), &low, gate);
            }
            let following = next.unwrap_or((up_proj, panels.end));
            self.panels(up_proj, panels, following, (x, group), &low, up);
            match gate_proj {
                Some(_) => elementwise::gated(self.isa, *hidden_act, gate, up),
                None => elementwise::activate(self.isa, *hidden_act, up),
            }
        });
    }

    /// The down projections of the networks of a mixture, each of its own group of rows.
    pub(super) fn down_groups<'b>(
        &self,
        pool: &mut Pool,
        tasks: &GroupTasks,
        groups: &(dyn Fn(usize) -> NetworkGroup<'b> + Sync),
        x: &Encoded,
        out: &mut [f32],
    ) {
        let network = |group| groups(group).network;
        let inputs = (0..tasks.groups.len()).map(groups);
        let inputs = inputs.map(|NetworkGroup { index, network, tokens }| (&network.down_proj, index, Some(tokens)));
        let low = self.adapters.low(self.isa, pool, x, inputs);
        pool.for_each(Ranges::new(out, &tasks.starts), |task, out, _| {
            let (group, panels) = tasks.at(task);
            let linear = &network(group).down_proj;
            let next = tasks.after(task, self.threads).map(|(group, panels)| (&network(group).down_proj, panels.start));
            let following = next.unwrap_or((linear, panels.end));
            self.panels(linear, panels, following, (x, group), &low, out);
        });
    }

    /// First panel of the task that the thread will probably claim after `panels`.
    fn next(&self, panels: &Range<usize>) -> usize {
        panels.end + (self.threads - 1) * PANELS_PER_TASK
    }

    /// Multiplies some panels of one projection, and adds what adapters add, and its bias. `following` is what the thread will probably read
    /// next.
    fn panels(
        &self,
        linear: &PackedLinear,
        panels: Range<usize>,
        following: (&PackedLinear, usize),
        (x, group): (&Encoded, usize),
        low: &Low<'_>,
        out: &mut [f32],
    ) {
        let first = panels.start;
        let x = x.group(group, self.level(linear));
        matmul(self.isa, self.weights.panels(linear, panels, following), &x, out);
        low.add(self.isa, linear, group, first, out, x.rows);
        let Some(bias) = &linear.bias else { return };
        for (panel, out) in out.chunks_exact_mut(x.rows * LANES).enumerate() {
            let bias = &bias[(first + panel) * LANES..][..LANES];
            for out in out.chunks_exact_mut(LANES) {
                out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
            }
        }
    }
}
