//! Mixtures of experts: the tokens of a batch are grouped by expert, and each group is multiplied by its expert's
//! matrices, which are read once per step. The outputs of a token are summed in the order of the experts, whatever other
//! tokens are in the batch.

use braidinfer_kernels::elementwise::logistic;
use braidinfer_kernels::norm::{self, Statistics};
use braidinfer_kernels::router::{Choice, Routing, route};
use braidinfer_kernels::{Buffer, Chunks, Isa, LANES, Pool};

use super::each_row::each_row;
use super::encode::{Encoded, Input, Source};
use super::packed::{PackedMixture, PackedNetwork, PackedNorm};
#[cfg(test)]
use super::planted::Planted;
use super::product::{GroupTasks, NetworkGroup, Products};
use super::scratch::{Scratch, panels};
use super::trace::Trace;
use crate::executor::branch_norms::BranchNorms;

/// Rows per routing task.
const ROWS_PER_TASK: usize = 8;

/// Buffers of a mixture of experts.
#[derive(Debug, Default)]
pub(super) struct MixtureScratch {
    /// Logits of the router, then of the shared expert's gate, each `[panels][T][16]`.
    router: Buffer,
    /// The chosen experts, `[T][chosen]`.
    choices: Vec<Choice>,
    groups: Vec<Group>,
    /// The tokens of all groups, one group after the other.
    tokens: Vec<usize>,
    /// Where the outputs for each token lie, `[T][networks per token]`.
    places: Vec<Place>,
    /// For each expert, its number of tokens, then the place of the next one in `tokens`.
    counts: Vec<usize>,
    encoded: Encoded,
    inner: Encoded,
    expand_tasks: GroupTasks,
    down_tasks: GroupTasks,
    /// Outputs of the networks, `[panels][rows][16]` for each group.
    outputs: Buffer,
}

/// The tokens that a network runs on.
#[derive(Debug, Clone, Copy)]
struct Group {
    /// Index in [`PackedMixture::networks`].
    network: usize,
    /// First of its rows in [`MixtureScratch::tokens`].
    first: usize,
    rows: usize,
}

/// The output of a network for a token: its first panel, the distance to the next, and its factor.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    start: usize,
    stride: usize,
    weight: f32,
}

/// The mixture of experts of one layer over a batch.
pub(super) struct MixturePass<'a> {
    pub(super) isa: Isa,
    pub(super) products: Products<'a>,
    pub(super) pool: &'a mut Pool,
    pub(super) mixture: &'a PackedMixture,
    pub(super) norm: Option<&'a PackedNorm>,
    pub(super) rows: usize,
    pub(super) width: usize,
    #[cfg(test)]
    pub(super) planted: Option<Planted>,
}

impl MixturePass<'_> {
    /// Computes the mixture of the normed residual stream, in `branch`.
    pub(super) fn run(&mut self, scratch: &mut Scratch, trace: &mut Trace) {
        self.route(scratch, trace);
        self.group(&mut scratch.mixture);
        self.compute(scratch);
        self.place(&mut scratch.mixture);
        match &self.mixture.branch_norms {
            Some(norms) => self.combine_normed(norms, scratch),
            None => self.combine(scratch),
        }
    }

    /// Chooses the experts of every token.
    fn route(&mut self, scratch: &mut Scratch, trace: &mut Trace) {
        let (rows, mixture) = (self.rows, self.mixture);
        let Scratch { normed, rows: row_scratch, mixture: own, .. } = scratch;
        let gate = mixture.shared_gate.as_ref();
        let linears = [&mixture.router, gate.unwrap_or(&mixture.router)];
        let linears = &linears[..1 + usize::from(gate.is_some())];
        let width = LANES * linears.iter().map(|linear| linear.panels()).sum::<usize>();
        self.products.all(self.pool, linears, normed, rows, panels(&mut own.router, width, rows));
        #[cfg(test)]
        self.spoil_router(&mut own.router);
        trace.panels("ffn.router", &own.router, rows, mixture.experts);
        own.choices.resize(rows * mixture.chosen, Choice::default());
        let (logits, chosen) = (&own.router[..], mixture.chosen);
        let choices = Chunks::new(&mut own.choices, ROWS_PER_TASK * chosen);
        self.pool.for_each_with(row_scratch, choices, |task, choices, buffer: &mut Buffer| {
            let mut buffers = Row::new(buffer, mixture.experts);
            for (row, choices) in choices.chunks_exact_mut(chosen).enumerate() {
                buffers.read(logits, rows, task * ROWS_PER_TASK + row);
                buffers.route(&mixture.routing, mixture, choices);
                if let Some(scale) = &mixture.per_expert_scale {
                    choices.iter_mut().for_each(|choice| choice.weight *= scale[choice.expert]);
                }
            }
        });
        #[cfg(test)]
        self.spoil_choices(&mut own.choices);
        self.record(own, trace);
    }

    /// Passes scores and weights to the probe.
    fn record(&self, own: &MixtureScratch, trace: &mut Trace) {
        let (rows, mixture) = (self.rows, self.mixture);
        trace.record("ffn.choice_scores", rows, || {
            let (mut buffer, mut choices) = (Buffer::new(), vec![Choice::default(); mixture.chosen]);
            // Scores of groups that cannot be chosen from are wanted, too.
            let routing = Routing { groups: None, ..mixture.routing };
            let scores = (0..rows).flat_map(|index| {
                let mut row = Row::new(&mut buffer, mixture.experts);
                row.read(&own.router, rows, index);
                row.route(&routing, mixture, &mut choices);
                row.by.to_vec()
            });
            scores.collect()
        });
        trace.record("ffn.routing", rows, || {
            let mut weights = vec![0.0; rows * mixture.experts];
            for (row, choices) in own.choices.chunks_exact(mixture.chosen).enumerate() {
                choices.iter().for_each(|choice| weights[row * mixture.experts + choice.expert] = choice.weight);
            }
            weights
        });
    }

    /// Groups the tokens by expert; the group of the shared expert has all of them, and comes last.
    fn group(&self, own: &mut MixtureScratch) {
        let MixtureScratch { choices, groups, tokens, counts, .. } = own;
        counts.clear();
        counts.resize(self.mixture.experts, 0);
        choices.iter().for_each(|choice| counts[choice.expert] += 1);
        groups.clear();
        let mut first = 0;
        for (network, count) in counts.iter_mut().enumerate() {
            if *count > 0 {
                groups.push(Group { network, first, rows: *count });
            }
            first += std::mem::replace(count, first);
        }
        tokens.clear();
        tokens.resize(first, 0);
        for (index, choice) in choices.iter().enumerate() {
            tokens[counts[choice.expert]] = index / self.mixture.chosen;
            counts[choice.expert] += 1;
        }
        if self.mixture.networks.len() > self.mixture.experts {
            groups.push(Group { network: self.mixture.experts, first, rows: self.rows });
            tokens.extend(0..self.rows);
        }
    }

    /// Runs every network on its group.
    fn compute(&mut self, scratch: &mut Scratch) {
        let Scratch { hidden, gate, up, rows: row_scratch, mixture: own, .. } = scratch;
        let MixtureScratch { groups, tokens, encoded, inner, expand_tasks, down_tasks, outputs, .. } = own;
        let (isa, stride, width, norm) = (self.isa, self.rows, self.width, self.norm);
        let mixture = self.mixture;
        let networks = &mixture.networks;
        self.products.read_ahead(groups.iter().map(|group| &networks[group.network]));
        let network = |group: usize| -> &PackedNetwork { &networks[groups[group].network] };
        let group_of = |index: usize| {
            let Group { first, rows, .. } = groups[index];
            NetworkGroup { index, network: network(index), tokens: &tokens[first..first + rows] }
        };
        let input = |group: usize| {
            let Group { first, rows, .. } = groups[group];
            let source = Source::Panels { data: hidden, stride, select: Some(&tokens[first..first + rows]) };
            let norm = match &mixture.branch_norms {
                Some(norms) if groups[group].network < mixture.experts => Some(&norms.experts),
                _ => norm,
            };
            Input { source, rows, width, norm }
        };
        // All experts have the levels of the first one.
        let ends = [networks.first(), networks.last()].map(Option::into_iter);
        let inputs = ends.clone().into_iter().flatten().flat_map(|network| network.inputs());
        let used = || groups.iter().map(|group| &networks[group.network]);
        let of_adapters = self.products.adapter_level(used().flat_map(|network| network.inputs()));
        let levels = inputs.map(|linear| self.products.level(linear)).chain(of_adapters);
        encoded.fill_groups(isa, self.pool, row_scratch, (groups.len(), &input), levels);
        let sizes = |group: &Group| (networks[group.network].up_proj.panels(), group.rows);
        let len = expand_tasks.fill(groups.iter().map(sizes));
        gate.resize(len);
        up.resize(len);
        self.products.gated_groups(self.pool, expand_tasks, &group_of, encoded, [gate, up]);
        let up = &**up;
        let expanded = |group: usize| {
            let Group { rows, .. } = groups[group];
            let source = Source::Panels { data: &up[expand_tasks.start(group)..], stride: rows, select: None };
            Input { source, rows, width: network(group).up_proj.rows, norm: None }
        };
        let of_adapters = self.products.adapter_level(used().map(|network| &network.down_proj));
        let levels =
            ends.into_iter().flatten().map(|network| self.products.level(&network.down_proj)).chain(of_adapters);
        inner.fill_groups(isa, self.pool, row_scratch, (groups.len(), &expanded), levels);
        let sizes = |group: &Group| (networks[group.network].down_proj.panels(), group.rows);
        outputs.resize(down_tasks.fill(groups.iter().map(sizes)));
        self.products.down_groups(self.pool, down_tasks, &group_of, inner, outputs);
    }

    /// Notes where the outputs for each token lie, in the order of the networks.
    fn place(&self, own: &mut MixtureScratch) {
        let MixtureScratch { router, choices, groups, tokens, places, counts, down_tasks, .. } = own;
        let mixture = self.mixture;
        let shared = mixture.networks.len() > mixture.experts;
        let per_token = mixture.chosen + usize::from(shared);
        places.clear();
        places.resize(self.rows * per_token, Place::default());
        // Number of places of each token that are filled.
        counts.clear();
        counts.resize(self.rows, 0);
        for (index, group) in groups.iter().enumerate() {
            for (row, token) in tokens[group.first..group.first + group.rows].iter().enumerate() {
                let choice = choices[token * mixture.chosen..].get(counts[*token]);
                let weight = match choice {
                    Some(choice) if group.network < mixture.experts => choice.weight,
                    _ => self.shared_weight(router, *token),
                };
                places[token * per_token + counts[*token]] =
                    Place { start: down_tasks.start(index) + row * LANES, stride: group.rows * LANES, weight };
                counts[*token] += 1;
            }
        }
    }

    /// Factor of the output of the shared expert for a token.
    fn shared_weight(&self, router: &[f32], token: usize) -> f32 {
        if self.mixture.shared_gate.is_none() {
            return 1.0;
        }
        logistic(router[(self.mixture.router.panels() * self.rows + token) * LANES])
    }

    /// Sums the outputs for every token, in `branch`.
    fn combine(&mut self, scratch: &mut Scratch) {
        let Scratch { branch, mixture: own, .. } = scratch;
        let (places, outputs) = (&own.places[..], &own.outputs[..]);
        let per_token = places.len() / self.rows;
        let branch = panels(branch, self.width, self.rows);
        self.pool.for_each(Chunks::new(branch, self.rows * LANES), |panel, out, _| {
            for (out, places) in out.chunks_exact_mut(LANES).zip(places.chunks_exact(per_token)) {
                out.copy_from_slice(&sum_of(places, outputs, panel));
            }
        });
    }

    /// Sums the outputs of the routed experts for every token, norms the sum and the output of the shared expert, and adds
    /// them, in `branch`.
    fn combine_normed(&mut self, norms: &BranchNorms<PackedNorm>, scratch: &mut Scratch) {
        let Scratch { branch, up, qk_statistics: statistics, mixture: own, .. } = scratch;
        let (places, outputs) = (&own.places[..], &own.outputs[..]);
        let (isa, rows, width, chosen) = (self.isa, self.rows, self.width, self.mixture.chosen);
        let per_token = places.len() / rows;
        let (branch, shared) = (panels(branch, width, rows), panels(up, width, rows));
        let panel = rows * LANES;
        self.pool.for_each((Chunks::new(branch, panel), Chunks::new(shared, panel)), |panel, (branch, shared), _| {
            let out = branch.chunks_exact_mut(LANES).zip(shared.chunks_exact_mut(LANES));
            for ((branch, shared), places) in out.zip(places.chunks_exact(per_token)) {
                // The shared expert's output lies last.
                branch.copy_from_slice(&sum_of(&places[..chosen], outputs, panel));
                shared.copy_from_slice(&sum_of(&places[chosen..], outputs, panel));
            }
        });
        let (data, shared) = (&*branch, &*shared);
        let of = |norm: &PackedNorm, data, row| {
            norm::statistics(isa, norm.kind, norm::Row { data, rows, row, width }, norm.eps)
        };
        each_row(self.pool, statistics, rows, [Statistics { mean: 0.0, inverse: 0.0 }; 2], |row| {
            [of(&norms.experts_output, data, row), of(&norms.shared_output, shared, row)]
        });
        let statistics = &*statistics;
        self.pool.for_each(Chunks::new(branch, panel), |index, branch, _| {
            let apply = |norm: &PackedNorm, values: &mut [f32], of| {
                let bias = norm.bias.as_ref().map(|bias| &bias[index * LANES..][..LANES]);
                norm::apply(isa, values, of, &norm.weight[index * LANES..][..LANES], bias);
            };
            let shared = shared[index * panel..][..panel].chunks_exact(LANES);
            for ((branch, shared), statistics) in branch.chunks_exact_mut(LANES).zip(shared).zip(statistics) {
                let mut other = [0.0; LANES];
                other.copy_from_slice(shared);
                apply(&norms.experts_output, branch, statistics[0]);
                apply(&norms.shared_output, &mut other, statistics[1]);
                branch.iter_mut().zip(other).for_each(|(sum, value)| *sum += value);
            }
        });
    }
}

/// The weighted sum of outputs for one token, in one panel.
fn sum_of(places: &[Place], outputs: &[f32], panel: usize) -> [f32; LANES] {
    let mut sum = [0.0f32; LANES];
    for Place { start, stride, weight } in places {
        let values = &outputs[start + panel * stride..][..LANES];
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value);
    }
    sum
}

/// Buffers for routing one token, each `[E]`.
struct Row<'a> {
    logits: &'a mut [f32],
    by: &'a mut [f32],
}

impl<'a> Row<'a> {
    fn new(buffer: &'a mut Buffer, experts: usize) -> Self {
        buffer.resize(2 * experts);
        let (logits, by) = buffer.split_at_mut(experts);
        Self { logits, by }
    }

    /// Reads the logits of a token from `[panels][T][16]`.
    fn read(&mut self, panels: &[f32], rows: usize, row: usize) {
        for (panel, logits) in self.logits.chunks_mut(LANES).enumerate() {
            logits.copy_from_slice(&panels[(panel * rows + row) * LANES..][..logits.len()]);
        }
    }

    fn route(&mut self, routing: &Routing, mixture: &PackedMixture, choices: &mut [Choice]) {
        route(routing, self.logits, mixture.correction.as_deref(), self.by, choices);
    }
}
