//! Heads of queries, keys and values, read from the projections' outputs.

use braidinfer_kernels::norm::{self, Statistics};
use braidinfer_kernels::rope::{Pairing, rotate};
use braidinfer_kernels::{Isa, LANES, elementwise};
use braidinfer_model::spec::{AttentionSpec, QkNormExtent, RopePairing};

use super::batch_layout::BatchLayout;
use super::packed::{PackedAttention, PackedNorm};

/// Query, key and value projections of one layer, and the norms and rotations applied before attention.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a> {
    pub(super) isa: Isa,
    pub(super) layer: &'a PackedAttention,
    pub(super) layout: &'a BatchLayout,
    /// Outputs of the projections of the residual stream, each `[panels][T][16]`.
    pub(super) qkv: &'a [f32],
    /// Of latent attention, outputs of the projections of narrower vectors, each `[panels][T][16]`.
    pub(super) expanded: &'a [f32],
    /// Norm statistics of queries and keys `[T]`, if a norm runs over whole projections.
    pub(super) statistics: &'a [[Statistics; 2]],
}

/// The stage of processing of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Projected,
    Normed,
    Rotated,
}

/// Query, key or value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadKind {
    Query,
    Key,
    Value,
}

/// Reads some columns of one token from `[panels][rows][16]`.
pub(super) fn gather(panels: &[f32], rows: usize, token: usize, column: usize, out: &mut [f32]) {
    let (panels, _) = panels.as_chunks::<LANES>();
    let line = |column: usize| &panels[(column / LANES) * rows + token];
    // If the head width is no multiple of 16, a head may begin within a panel.
    let (first, rest) = out.split_at_mut(out.len().min(column.next_multiple_of(LANES) - column));
    if !first.is_empty() {
        first.copy_from_slice(&line(column)[column % LANES..][..first.len()]);
    }
    let column = column + first.len();
    let (whole, last) = rest.as_chunks_mut::<LANES>();
    for (index, out) in whole.iter_mut().enumerate() {
        *out = *line(column + index * LANES);
    }
    if !last.is_empty() {
        last.copy_from_slice(&line(column + whole.len() * LANES)[..last.len()]);
    }
}

impl PackedAttention {
    /// The norm of queries, keys or values.
    pub(super) fn head_norm(&self, kind: HeadKind) -> Option<&PackedNorm> {
        match kind {
            HeadKind::Query => self.q_norm.as_ref(),
            HeadKind::Key => self.keys.own()?.k_norm.as_ref(),
            HeadKind::Value => self.keys.own()?.v_norm.as_ref(),
        }
    }
}

impl Heads<'_> {
    /// Reads one head `[head_dim]` of one token; a narrower value ends in zeros.
    pub(super) fn read(&self, kind: HeadKind, token: usize, head: usize, stage: Stage, out: &mut [f32]) {
        self.read_projected(kind, token, head, out);
        let after_rope = self.layer.attention.qk_norm.is_some_and(|norm| norm.after_rope) && kind != HeadKind::Value;
        if stage >= Stage::Normed && !after_rope {
            self.normalize(kind, token, head, out);
        }
        if stage >= Stage::Rotated && kind != HeadKind::Value {
            self.rotate(token, out);
            if after_rope {
                self.normalize(kind, token, head, out);
            }
            self.scale_by_position(kind, token, out);
        }
    }

    fn read_projected(&self, kind: HeadKind, token: usize, head: usize, out: &mut [f32]) {
        if let Some(latent) = &self.layer.latent {
            return latent.read(self, kind, token, head, out);
        }
        let stride = match kind {
            HeadKind::Query => self.layer.attention.query_head_rows(),
            HeadKind::Key | HeadKind::Value => self.layer.attention.head_dim,
        };
        gather(self.panels(kind), self.layout.rows, token, head * stride, out);
    }

    /// All heads `[T, heads * width]` at a stage.
    pub(super) fn all(&self, kind: HeadKind, stage: Stage) -> Vec<f32> {
        let AttentionSpec { num_attention_heads, num_key_value_heads, .. } = self.layer.attention;
        let heads = if kind == HeadKind::Query { num_attention_heads } else { num_key_value_heads };
        let head_dim = self.layer.attention.head_dim;
        let width = if kind == HeadKind::Value { self.layer.attention.value_head_dim() } else { head_dim };
        let mut head = vec![0.0; head_dim];
        let mut values = Vec::with_capacity(self.layout.rows * heads * width);
        for index in 0..self.layout.rows * heads {
            self.read(kind, index / heads, index % heads, stage, &mut head);
            values.extend_from_slice(&head[..width]);
        }
        values
    }

    /// The output of a projection of the residual stream that the layer has, `[panels][T][16]`.
    pub(super) fn panels(&self, kind: HeadKind) -> &[f32] {
        let rows = self.layout.rows * LANES;
        let query = self.layer.q_proj.panels() * rows;
        let Some(own) = self.layer.keys.own().filter(|_| kind != HeadKind::Query) else { return &self.qkv[..query] };
        let key = own.k_proj.panels() * rows;
        match kind {
            // Without a projection of their own, values are keys before norm and rotation.
            HeadKind::Value if own.v_proj.is_some() => &self.qkv[query + key..],
            _ => &self.qkv[query..query + key],
        }
    }

    fn normalize(&self, kind: HeadKind, token: usize, head: usize, out: &mut [f32]) {
        let Some(PackedNorm { kind: norm_kind, eps, weight, bias }) = self.layer.head_norm(kind) else { return };
        match self.layer.attention.qk_norm.map(|norm| norm.extent).filter(|_| kind != HeadKind::Value) {
            None | Some(QkNormExtent::Head) => {
                norm::normalize_head(self.isa, *norm_kind, out, weight, bias.as_deref(), *eps);
            }
            Some(QkNormExtent::EachHead) => {
                let from = head * self.layer.attention.head_dim;
                let bias = bias.as_ref().map(|bias| &bias[from..]);
                norm::normalize_head(self.isa, *norm_kind, out, &weight[from..], bias, *eps);
            }
            Some(QkNormExtent::Projection) => {
                let which = usize::from(kind == HeadKind::Key);
                let from = head * self.layer.attention.head_dim;
                let bias = bias.as_ref().map(|bias| &bias[from..]);
                norm::apply(self.isa, out, self.statistics[token][which], &weight[from..], bias);
            }
        }
    }

    fn rotate(&self, token: usize, out: &mut [f32]) {
        if let Some(table) = self.layer.rope {
            let rotation = &self.layout.rotations[table];
            let pairing = match rotation.pairing {
                RopePairing::HalfSplit => Pairing::HalfSplit,
                RopePairing::Interleaved => Pairing::Interleaved,
            };
            let (cos, sin) = rotation.of(token);
            rotate(self.isa, &mut out[self.layer.attention.first_rotated()..], cos, sin, pairing);
        }
    }

    fn scale_by_position(&self, kind: HeadKind, token: usize, out: &mut [f32]) {
        if let (HeadKind::Query, Some(scale)) = (kind, self.layout.query_scales[self.layer.attention_index].get(token))
        {
            elementwise::scale(self.isa, out, *scale);
        }
    }
}
