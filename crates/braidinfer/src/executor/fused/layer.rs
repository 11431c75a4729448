//! One decoder layer.

use braidinfer_kernels::norm::{self, Row, Statistics};
use braidinfer_kernels::{ActivationFunction, Buffer, Chunks, Isa, LANES, Pool, elementwise};
use braidinfer_model::DecoderSpec;

use super::FusedRunner;
use super::delta_net::DeltaInput;
use super::each_row::{each_row, row_sum};
use super::encode::{Encoded, Input, Source};
use super::mixture::MixturePass;
use super::packed::{PackedFeedForward, PackedLinear, PackedMixer, PackedNetwork, PackedNorm};
use super::product::Products;
use super::scratch::{Scratch, panels};
use super::short_conv::ConvInput;
use super::trace::Trace;
use crate::Result;
use crate::executor::{KernelPlan, Step};

/// Rows of one group of heads per task.
const ROWS_PER_TASK: usize = 8;

impl FusedRunner {
    /// Runs one layer on the residual stream.
    pub(super) fn decode_layer(&mut self, index: usize, step: Step<'_>, trace: &mut Trace) -> Result<()> {
        let plan = step.plan;
        let mixers = self.weights.layers[index].mixers.len();
        let parallel = self.spec.block.parallel;
        self.predict_streams(index, plan, trace);
        if mixers > 0 {
            self.normalize_for_mixers(index, plan, trace);
            self.prepare_laurel(index, plan, trace);
        }
        for which in 0..mixers {
            self.mix(index, which, step, trace)?;
        }
        if mixers > 0 {
            self.add_laurel(index);
            trace.panels("attn.residual", &self.scratch.hidden, self.layout.rows, self.spec.hidden_size);
        }
        if !matches!(self.weights.layers[index].feed_forward, PackedFeedForward::None) {
            if !parallel || mixers == 0 {
                self.normalize_for_feed_forward(index, plan, trace);
            }
            self.add_feed_forward(index, plan, trace);
        }
        self.correct_streams(index, plan, trace);
        self.add_per_layer_input(index, plan, trace);
        self.scale_stream(index);
        Ok(())
    }

    /// Runs a mixer on `normed`, and adds the result to the residual stream.
    fn mix(&mut self, index: usize, which: usize, step: Step<'_>, trace: &mut Trace) -> Result<()> {
        let plan = step.plan;
        self.project_inputs(index, which, plan);
        self.expand_latents(index, plan);
        if self.spec.block.parallel && self.spec.block.feed_forward_norm {
            // The residual stream is still the layer's input, and the input of the projections is no longer needed.
            self.normalize_for_feed_forward(index, plan, trace);
        }
        #[cfg(test)]
        self.spoil_projections(index);
        match &self.weights.layers[index].mixers[which] {
            PackedMixer::Attention(_) => self.attend(index, &plan.kv_dtypes, trace),
            PackedMixer::DeltaNet(_) => self.run_delta_net(index, step.batch, trace)?,
            PackedMixer::ShortConv(_) => self.run_short_conv(index, step.batch, trace)?,
            PackedMixer::Mamba2(_) => self.run_mamba2(index, step.batch, trace)?,
        }
        #[cfg(test)]
        self.spoil_heads(index);
        self.gate_heads(index, which, trace);
        self.add_mixed(index, which, plan, trace);
        Ok(())
    }

    /// Multiplies the residual stream, or all of them, by the layer's factor, if it has one.
    fn scale_stream(&mut self, index: usize) {
        let Some(scalar) = self.weights.layers[index].scalar else { return };
        let (isa, panel) = (self.isa, self.layout.rows * LANES);
        let Scratch { hidden, several, .. } = &mut self.scratch;
        let streams = if self.spec.altup.is_some() { &mut several.streams } else { hidden };
        let hidden = Chunks::new(streams, panel);
        self.pool.for_each(hidden, |_, hidden, _| elementwise::scale(isa, hidden, scalar));
    }

    /// Input norm and the input projections of attention or of a delta net, into `qkv`. If attention and feed-forward
    /// network share a norm, its output is encoded for both.
    fn normalize_for_mixers(&mut self, index: usize, plan: &KernelPlan, trace: &mut Trace) {
        let (rows, width) = (self.layout.rows, self.spec.hidden_size);
        let layer = &self.weights.layers[index];
        let Scratch { hidden, normed, rows: scratch, .. } = &mut self.scratch;
        let source = Source::Panels { data: hidden, stride: rows, select: None };
        let input = Input { source, rows, width, norm: layer.input_norm.as_ref() };
        trace.input("input_norm", self.isa, &input);
        let low_rank = layer.laurel.iter().map(|laurel| &laurel.left);
        let projections: Vec<&PackedLinear> =
            layer.mixers.iter().flat_map(PackedMixer::inputs).chain(low_rank).collect();
        let shared = self.spec.block.parallel && !self.spec.block.feed_forward_norm;
        let readers = if shared { layer.feed_forward.readers() } else { [None, None] };
        if shared {
            trace.input("ffn.norm", self.isa, &input);
        }
        let products = Products::new(self.isa, (&self.weights, &self.adapters), plan, &self.pool);
        let levels = products.levels(projections.iter()).chain(products.levels(readers.iter().flatten()));
        normed.fill(self.isa, &mut self.pool, scratch, input, levels);
    }

    /// The input projections of a mixer, into `qkv`.
    fn project_inputs(&mut self, index: usize, which: usize, plan: &KernelPlan) {
        let rows = self.layout.rows;
        let projections = self.weights.layers[index].mixers[which].inputs();
        let Scratch { normed, qkv, .. } = &mut self.scratch;
        let products = Products::new(self.isa, (&self.weights, &self.adapters), plan, &self.pool);
        let width = LANES * projections.iter().map(|linear| linear.panels()).sum::<usize>();
        products.all(&mut self.pool, &projections, normed, rows, panels(qkv, width, rows));
    }

    /// Applies the gates of the heads, and the norm of a delta net or of Mamba-2 beside them, to `heads`.
    fn gate_heads(&mut self, index: usize, which: usize, trace: &mut Trace) {
        let (isa, rows) = (self.isa, self.layout.rows);
        let mixer = &self.weights.layers[index].mixers[which];
        let groups = mixer.groups();
        let [plain, gated, _] = mixer.names();
        let record = |heads: &[f32], name: &str, trace: &mut Trace| {
            let source = mixer.grouped(heads);
            let input = Input { source, rows, width: mixer.output().columns, norm: None };
            trace.input(name, isa, &input);
        };
        record(&self.scratch.heads, plain, trace);
        match mixer {
            PackedMixer::Attention(layer) if !layer.is_gated() => return,
            PackedMixer::Mamba2(layer) => layer.gate_all(isa, &mut self.pool, rows, &mut self.scratch),
            _ => {
                let Scratch { qkv, heads, rows: scratch, .. } = &mut self.scratch;
                let width = mixer.output().columns / groups;
                let chunks = Chunks::new(heads, ROWS_PER_TASK * width);
                self.pool.for_each_with(scratch, chunks, |task, heads, gate: &mut Buffer| {
                    for (row, heads) in heads.chunks_exact_mut(width).enumerate() {
                        let row = task * ROWS_PER_TASK + row;
                        gate_row(isa, mixer, qkv, [rows, row % rows, row / rows], heads, gate);
                    }
                });
            }
        }
        record(&self.scratch.heads, gated, trace);
    }

    /// Applies the output projection to `heads` and adds the result to the residual stream.
    fn add_mixed(&mut self, index: usize, which: usize, plan: &KernelPlan, trace: &mut Trace) {
        let (rows, width) = (self.layout.rows, self.spec.hidden_size);
        let layer = &self.weights.layers[index];
        let (mixer, branches) = (&layer.mixers[which], self.spec.branch_multipliers());
        let own = if let PackedMixer::Mamba2(_) = mixer { branches.mamba2 } else { branches.attention };
        let Scratch { hidden, inner, heads, branch, branch_statistics, rows: scratch, .. } = &mut self.scratch;
        let output = mixer.output();
        let source = mixer.grouped(heads);
        let input = Input { source, rows, width: output.columns, norm: None };
        let products = Products::new(self.isa, (&self.weights, &self.adapters), plan, &self.pool);
        inner.fill(self.isa, &mut self.pool, scratch, input, products.levels([&output].into_iter()));
        let mut residual_add = ResidualAdd {
            isa: self.isa,
            products,
            pool: &mut self.pool,
            factor: (self.spec.residual_multiplier * own) as f32,
            rows,
            statistics: branch_statistics,
        };
        let branch = panels(branch, width, rows);
        residual_add.product(output, inner, [branch, hidden], layer.attention_output_norm.as_ref());
        let [.., out] = mixer.names();
        trace.panels(out, branch, rows, width);
        residual_add.norm(layer.attention_output_norm.as_ref(), width, [branch, hidden]);
    }

    fn normalize_for_feed_forward(&mut self, index: usize, plan: &KernelPlan, trace: &mut Trace) {
        let (rows, width) = (self.layout.rows, self.spec.hidden_size);
        let layer = &self.weights.layers[index];
        let Scratch { hidden, normed, rows: scratch, .. } = &mut self.scratch;
        let source = Source::Panels { data: hidden, stride: rows, select: None };
        let input = Input { source, rows, width, norm: layer.feed_forward_norm.as_ref() };
        trace.input("ffn.norm", self.isa, &input);
        let input = Input { norm: layer.readers_norm(), ..input };
        let products = Products::new(self.isa, (&self.weights, &self.adapters), plan, &self.pool);
        let readers = layer.feed_forward.readers();
        normed.fill(self.isa, &mut self.pool, scratch, input, products.levels(readers.iter().flatten()));
    }

    /// Runs the feed-forward part on `normed` and adds the result to the residual stream.
    fn add_feed_forward(&mut self, index: usize, plan: &KernelPlan, trace: &mut Trace) {
        let weights = &self.weights;
        match &weights.layers[index].feed_forward {
            PackedFeedForward::Dense(_) => self.add_network(index, plan, trace),
            PackedFeedForward::Experts(_) => self.add_mixture(index, plan, trace),
            PackedFeedForward::None => {}
        }
    }

    fn add_network(&mut self, index: usize, plan: &KernelPlan, trace: &mut Trace) {
        let (rows, width) = (self.layout.rows, self.spec.hidden_size);
        let layer = &self.weights.layers[index];
        let PackedFeedForward::Dense(network) = &layer.feed_forward else { return };
        let products = Products::new(self.isa, (&self.weights, &self.adapters), plan, &self.pool);
        expand(self.isa, &products, &mut self.pool, network, &mut self.scratch, rows);
        let Scratch { hidden, inner, up, branch, branch_statistics, rows: scratch, .. } = &mut self.scratch;
        let source = Source::Panels { data: up, stride: rows, select: None };
        let input = Input { source, rows, width: network.up_proj.rows, norm: None };
        inner.fill(self.isa, &mut self.pool, scratch, input, products.levels([&network.down_proj].iter()));
        let factor = feed_forward_factor(&self.spec);
        let statistics = branch_statistics;
        let mut residual_add = ResidualAdd { isa: self.isa, products, pool: &mut self.pool, factor, rows, statistics };
        let branch = panels(branch, width, rows);
        residual_add.product(&network.down_proj, inner, [branch, hidden], layer.feed_forward_output_norm.as_ref());
        residual_add.norm(layer.feed_forward_output_norm.as_ref(), width, [branch, hidden]);
        trace.panels("ffn.out", branch, rows, width);
    }

    /// Runs the mixture of experts of a layer and adds the result to the residual stream.
    fn add_mixture(&mut self, index: usize, plan: &KernelPlan, trace: &mut Trace) {
        let (rows, width) = (self.layout.rows, self.spec.hidden_size);
        let layer = &self.weights.layers[index];
        let PackedFeedForward::Experts(mixture) = &layer.feed_forward else { return };
        let mut pass = MixturePass {
            isa: self.isa,
            products: Products::new(self.isa, (&self.weights, &self.adapters), plan, &self.pool),
            pool: &mut self.pool,
            mixture,
            norm: layer.feed_forward_norm.as_ref(),
            rows,
            width,
            #[cfg(test)]
            planted: self.planted.and_then(|planted| planted.in_layer(index)),
        };
        pass.run(&mut self.scratch, trace);
        let MixturePass { isa, products, pool, .. } = pass;
        let Scratch { hidden, branch, branch_statistics: statistics, .. } = &mut self.scratch;
        let factor = feed_forward_factor(&self.spec);
        let mut residual_add = ResidualAdd { isa, products, pool, factor, rows, statistics };
        residual_add.sum(layer.feed_forward_output_norm.as_ref(), width, [branch, hidden]);
        trace.panels("ffn.out", branch, rows, width);
    }
}

/// Factor of what the feed-forward part adds to the residual stream.
fn feed_forward_factor(spec: &DecoderSpec) -> f32 {
    (spec.residual_multiplier * spec.branch_multipliers().feed_forward) as f32
}

/// Applies the gates, and the norm of a delta net before them, to the heads of one group and token.
fn gate_row(
    isa: Isa,
    mixer: &PackedMixer,
    projected: &[f32],
    [rows, token, group]: [usize; 3],
    heads: &mut [f32],
    gate: &mut Buffer,
) {
    match mixer {
        PackedMixer::Attention(layer) => {
            let per_group = layer.attention.num_attention_heads / layer.attention.num_key_value_heads;
            gate.resize(layer.attention.head_dim);
            for (head, values) in heads.chunks_exact_mut(layer.attention.head_dim).enumerate() {
                layer.read_gate(projected, rows, token, group * per_group + head, gate);
                elementwise::gated_by_logistic(isa, gate, values);
            }
        }
        PackedMixer::DeltaNet(layer) => {
            let PackedNorm { kind, eps, weight, bias } = &layer.norm;
            gate.resize(layer.spec.linear_value_head_dim);
            for (head, values) in heads.chunks_exact_mut(layer.spec.linear_value_head_dim).enumerate() {
                norm::normalize_head(isa, *kind, values, weight, bias.as_deref(), *eps);
                layer.read(DeltaInput::Gate, projected, [rows, token, layer.spec.value_head(group, head)], gate);
                elementwise::gated(isa, ActivationFunction::Silu, gate, values);
            }
        }
        // All of its heads are gated, and normed, at once.
        PackedMixer::Mamba2(_) => {}
        PackedMixer::ShortConv(layer) => {
            gate.resize(layer.width);
            layer.read(ConvInput::After, projected, [rows, token, group], gate);
            elementwise::multiply(isa, heads, gate);
        }
    }
}

/// Computes the inner activations of a network, in `up`.
fn expand(
    isa: Isa,
    products: &Products<'_>,
    pool: &mut Pool,
    network: &PackedNetwork,
    scratch: &mut Scratch,
    rows: usize,
) {
    let Scratch { normed, gate, up, cutoffs, .. } = scratch;
    let (linear, activation) = (&network.up_proj, network.hidden_act);
    let up = panels(up, linear.rows, rows);
    match &network.gate_proj {
        Some(gate_proj) => {
            let gate = panels(gate, linear.rows, rows);
            let Some(deviations) = network.gate_cutoff else {
                return products.gated(pool, [gate_proj, linear], activation, normed, rows, [gate, up]);
            };
            products.all(pool, &[gate_proj], normed, rows, gate);
            products.all(pool, &[linear], normed, rows, up);
            let values = &*gate;
            each_row(pool, cutoffs, rows, 0.0, |row| {
                cutoff(Row { data: values, rows, row, width: linear.rows }, deviations)
            });
            cut_and_gate(isa, pool, activation, cutoffs, [gate, up]);
        }
        None => products.activated(pool, linear, activation, normed, rows, up),
    }
}

/// The mean of a row plus a number of its standard deviations.
fn cutoff(row: Row<'_>, deviations: f32) -> f32 {
    let mean = row_sum(row, |value| value) / row.width as f32;
    let variance = row_sum(row, |value| (value - mean) * (value - mean)) / row.width as f32;
    mean + deviations * variance.sqrt()
}

/// `activation(max(gate - cutoff, 0)) * up` in `up`, with a cutoff for each row.
fn cut_and_gate(
    isa: Isa,
    pool: &mut Pool,
    activation: ActivationFunction,
    cutoffs: &[f32],
    [gate, up]: [&mut [f32]; 2],
) {
    let panel = cutoffs.len() * LANES;
    pool.for_each((Chunks::new(gate, panel), Chunks::new(up, panel)), |_, (gate, up), _| {
        for (values, cutoff) in gate.chunks_exact_mut(LANES).zip(cutoffs) {
            // Unlike `f32::max`, this keeps NaN, so that it is found.
            values.iter_mut().for_each(|value| {
                let above = *value - cutoff;
                *value = if above < 0.0 { 0.0 } else { above };
            });
        }
        elementwise::gated(isa, activation, gate, up);
    });
}

/// Adding the output of attention or of the feed-forward network to the residual stream.
pub(super) struct ResidualAdd<'a> {
    pub(super) isa: Isa,
    pub(super) products: Products<'a>,
    pub(super) pool: &'a mut Pool,
    pub(super) factor: f32,
    pub(super) rows: usize,
    pub(super) statistics: &'a mut Vec<Statistics>,
}

impl ResidualAdd<'_> {
    /// Computes the product in `branch`, and adds it to `hidden` unless a norm is applied first.
    pub(super) fn product(
        &mut self,
        linear: &PackedLinear,
        x: &Encoded,
        [branch, hidden]: [&mut [f32]; 2],
        norm: Option<&PackedNorm>,
    ) {
        match norm {
            None => self.products.add_product(self.pool, linear, x, self.rows, self.factor, [branch, hidden]),
            Some(_) => self.products.all(self.pool, &[linear], x, self.rows, branch),
        }
    }

    /// Adds `branch` to `hidden`, through a norm if there is one.
    fn sum(&mut self, norm: Option<&PackedNorm>, width: usize, [branch, hidden]: [&mut [f32]; 2]) {
        if norm.is_some() {
            return self.norm(norm, width, [branch, hidden]);
        }
        let (isa, factor, branch, panel) = (self.isa, self.factor, &*branch, self.rows * LANES);
        self.pool.for_each(Chunks::new(hidden, panel), |index, hidden, _| {
            elementwise::add_scaled(isa, hidden, &branch[index * panel..(index + 1) * panel], factor);
        });
    }

    /// Norms `branch` and adds it to `hidden`, if there is a norm.
    pub(super) fn norm(&mut self, norm: Option<&PackedNorm>, width: usize, [branch, hidden]: [&mut [f32]; 2]) {
        let Some(norm) = norm else { return };
        let (isa, rows, factor) = (self.isa, self.rows, self.factor);
        let data = &*branch;
        each_row(self.pool, self.statistics, rows, Statistics { mean: 0.0, inverse: 0.0 }, |row| {
            norm::statistics(isa, norm.kind, Row { data, rows, row, width }, norm.eps)
        });
        let statistics = &*self.statistics;
        let panel = rows * LANES;
        self.pool.for_each((Chunks::new(branch, panel), Chunks::new(hidden, panel)), |index, (branch, hidden), _| {
            let lanes = index * LANES..(index + 1) * LANES;
            let bias = norm.bias.as_ref().map(|bias| &bias[lanes.clone()]);
            for (values, statistics) in branch.chunks_exact_mut(LANES).zip(statistics) {
                norm::apply(isa, values, *statistics, &norm.weight[lanes.clone()], bias);
            }
            elementwise::add_scaled(isa, hidden, branch, factor);
        });
    }
}
