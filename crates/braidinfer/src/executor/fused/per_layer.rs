//! Inputs of every layer besides the residual stream.

use braidinfer_kernels::norm;
use braidinfer_kernels::{Buffer, Chunks, LANES, elementwise};

use super::FusedRunner;
use super::encode::{Input, Source};
use super::heads::gather;
use super::layer::ResidualAdd;
use super::packed::{PackedNorm, PackedPerLayerInputs};
use super::product::Products;
use super::scratch::{Scratch, panels};
use super::trace::{Trace, from_panels};
use crate::Result;
use crate::executor::KernelPlan;

/// The further inputs of all layers for the tokens of a batch.
#[derive(Debug, Default)]
pub(super) struct LayerInputs {
    /// `[layers][panels][T][16]`.
    values: Buffer,
    /// The tokens that they are for, and the adapter of each, if there are adapters.
    tokens: Vec<u32>,
    adapters: Vec<Option<u32>>,
}

impl LayerInputs {
    /// Those of one layer, `[panels][T][16]`, of `width` values for each token.
    fn of_layer(&self, index: usize, width: usize) -> &[f32] {
        let len = width.div_ceil(LANES) * self.tokens.len() * LANES;
        &self.values[index * len..(index + 1) * len]
    }
}

impl FusedRunner {
    /// Computes the further inputs of all layers, if the architecture has any. They depend on the tokens and
    /// their adapters alone, so that layers that are run one at a time share them. Overwrites the residual stream.
    pub(super) fn prepare_layer_inputs(&mut self, token_ids: &[u32], plan: &KernelPlan) -> Result<()> {
        let known = &self.scratch.layer_inputs;
        let are_known = known.tokens == token_ids && known.adapters == self.adapters.of_rows();
        if self.weights.per_layer_inputs.is_none() || are_known {
            return Ok(());
        }
        self.embed_tokens(token_ids)?;
        let Some(inputs) = &self.weights.per_layer_inputs else { return Ok(()) };
        let (rows, width) = (token_ids.len(), inputs.projection.rows);
        let Scratch { hidden, normed, gate, up, layer_inputs, rows: scratch, .. } = &mut self.scratch;
        let source = Source::Panels { data: hidden, stride: rows, select: None };
        let input = Input { source, rows, width: self.spec.hidden_size, norm: None };
        let products = Products::new(self.isa, (&self.weights, &self.adapters), plan, &self.pool);
        normed.fill(self.isa, &mut self.pool, scratch, input, products.levels([&inputs.projection].iter()));
        let projected = panels(up, width, rows);
        products.all(&mut self.pool, &[&inputs.projection], normed, rows, projected);
        gate.resize(rows * width);
        let weights = &self.weights;
        self.pool.for_each(Chunks::new(gate, width), |row, embedding, _| {
            weights.read_stored(&inputs.embedding, inputs.spec.row(token_ids[row]) as usize, embedding);
        });
        let LayerInputs { values, tokens, adapters } = layer_inputs;
        tokens.clear();
        tokens.extend_from_slice(token_ids);
        adapters.clear();
        adapters.extend_from_slice(self.adapters.of_rows());
        let own = inputs.spec.hidden_size_per_layer_input;
        let len = own.div_ceil(LANES) * rows * LANES;
        values.resize(len * self.weights.layers.len());
        let (isa, projected, embeddings) = (self.isa, &*projected, &gate[..]);
        self.pool.for_each_with(scratch, Chunks::new(values, len), |layer, out, values: &mut Buffer| {
            values.resize(own.next_multiple_of(LANES));
            values.fill(0.0);
            for row in 0..rows {
                let first = layer * own;
                gather(projected, rows, row, first, &mut values[..own]);
                inputs.add_up(isa, &mut values[..own], &embeddings[row * width + first..][..own]);
                for (panel, values) in values.chunks_exact(LANES).enumerate() {
                    out[(panel * rows + row) * LANES..][..LANES].copy_from_slice(values);
                }
            }
        });
        Ok(())
    }

    /// Adds what a layer makes of its further input, gated by `hidden`, to the residual stream, or to all streams but the
    /// first, if it has one.
    pub(super) fn add_per_layer_input(&mut self, index: usize, plan: &KernelPlan, trace: &mut Trace) {
        let Some(part) = &self.weights.layers[index].per_layer_input else { return };
        let (rows, width, own) = (self.layout.rows, self.spec.hidden_size, part.gate.rows);
        let Scratch { hidden, normed, inner, up, branch, branch_statistics, layer_inputs, rows: scratch, .. } =
            &mut self.scratch;
        let further = layer_inputs.of_layer(index, own);
        trace.record("per_layer.input", rows, || from_panels(further, rows, own));
        let products = Products::new(self.isa, (&self.weights, &self.adapters), plan, &self.pool);
        let source = Source::Panels { data: hidden, stride: rows, select: None };
        let input = Input { source, rows, width, norm: None };
        normed.fill(self.isa, &mut self.pool, scratch, input, products.levels([&part.gate].iter()));
        let gated = panels(up, own, rows);
        products.activated(&mut self.pool, &part.gate, part.hidden_act, normed, rows, gated);
        elementwise::multiply(self.isa, gated, further);
        let input = Input { source: Source::Panels { data: gated, stride: rows, select: None }, width: own, ..input };
        inner.fill(self.isa, &mut self.pool, scratch, input, products.levels([&part.projection].iter()));
        let statistics = branch_statistics;
        let (isa, pool) = (self.isa, &mut self.pool);
        let mut residual_add = ResidualAdd { isa, products, pool, factor: 1.0, rows, statistics };
        let branch = panels(branch, width, rows);
        residual_add.product(&part.projection, inner, [branch, hidden], Some(&part.norm));
        residual_add.norm(Some(&part.norm), width, [branch, hidden]);
        trace.panels("per_layer.out", branch, rows, width);
        if self.spec.altup.is_some() {
            self.add_branch_to_streams();
        }
    }
}

impl PackedPerLayerInputs {
    /// From the projection of a token's embedding for a layer, and the token's further embedding, the layer's input, in
    /// place of the projection.
    fn add_up(&self, isa: braidinfer_kernels::Isa, values: &mut [f32], embedding: &[f32]) {
        let PackedNorm { kind, eps, weight, bias } = &self.norm;
        let [projection, own, sum] =
            [self.spec.projection_multiplier, self.spec.embedding_multiplier, self.spec.input_multiplier]
                .map(|factor| factor as f32);
        elementwise::scale(isa, values, projection);
        norm::normalize_head(isa, *kind, values, weight, bias.as_deref(), *eps);
        values.iter_mut().zip(embedding).for_each(|(value, embedding)| *value = (*value + own * embedding) * sum);
    }
}
