//! Latent attention: queries, keys and values from narrower vectors.

use braidinfer_kernels::LANES;
use braidinfer_model::spec::LatentSpec;

use super::FusedRunner;
use super::encode::{Input, Source};
use super::heads::{HeadKind, Heads, gather};
use super::packed::{PackedLinear, PackedNorm};
use super::product::Products;
use super::scratch::{Scratch, panels};
use crate::executor::KernelPlan;
use crate::executor::latent::Latent;

impl FusedRunner {
    /// Norms the narrower vectors in `qkv`, and multiplies them to queries, keys and values in `expanded`.
    pub(super) fn expand_latents(&mut self, index: usize, plan: &KernelPlan) {
        let Some(layer) = self.weights.layers[index].attention() else { return };
        let Some(latent) = &layer.latent else { return };
        let rows = self.layout.rows;
        let Scratch { qkv, expanded, inner, rows: scratch, .. } = &mut self.scratch;
        let products = Products::new(self.isa, (&self.weights, &self.adapters), plan, &self.pool);
        let width = LANES * (latent.query_panels() + latent.kv_b_proj.panels());
        let (queries, keys_and_values) =
            panels(expanded, width, rows).split_at_mut(latent.query_panels() * rows * LANES);
        let query = latent.queries.as_ref().map(|(norm, q_b_proj)| (&qkv[..], norm, q_b_proj, queries));
        let compressed = &qkv[layer.q_proj.panels() * rows * LANES..];
        let others = (compressed, &latent.kv_a_norm, &latent.kv_b_proj, keys_and_values);
        for (data, norm, linear, out) in query.into_iter().chain([others]) {
            let source = Source::Panels { data, stride: rows, select: None };
            let input = Input { source, rows, width: linear.columns, norm: Some(norm) };
            inner.fill(self.isa, &mut self.pool, scratch, input, products.levels([&linear].into_iter()));
            products.all(&mut self.pool, &[linear], inner, rows, out);
        }
    }
}

impl Latent<PackedLinear, PackedNorm> {
    /// Number of panels of the queries in the output of the projections of narrower vectors.
    fn query_panels(&self) -> usize {
        self.queries.as_ref().map_or(0, |(_, q_b_proj)| q_b_proj.panels())
    }

    /// Reads a query or key before RoPE, or a value and zeros after it, each `[head_dim]`.
    pub(super) fn read(&self, heads: &Heads<'_>, kind: HeadKind, token: usize, head: usize, out: &mut [f32]) {
        let LatentSpec { kv_lora_rank, qk_nope_head_dim, v_head_dim, .. } = self.spec;
        let rows = heads.layout.rows;
        let keys_and_values = &heads.expanded[self.query_panels() * rows * LANES..];
        let column = head * self.spec.expanded_head_rows();
        match kind {
            HeadKind::Query => {
                let queries = if self.queries.is_some() { heads.expanded } else { heads.qkv };
                gather(queries, rows, token, head * heads.layer.attention.head_dim, out);
            }
            HeadKind::Key => {
                let (own, shared) = out.split_at_mut(qk_nope_head_dim);
                gather(keys_and_values, rows, token, column, own);
                gather(heads.panels(HeadKind::Key), rows, token, kv_lora_rank, shared);
            }
            HeadKind::Value => {
                let (value, rest) = out.split_at_mut(v_head_dim);
                gather(keys_and_values, rows, token, column + qk_nope_head_dim, value);
                rest.fill(0.0);
            }
        }
    }
}
