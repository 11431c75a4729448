//! Causal attention over the paged KV cache.

use std::cell::RefCell;
use std::collections::HashMap;

use braidinfer_model::spec::{AttentionSpec, QkNormExtent};
use candle_core::{DType, Device, IndexOp, Tensor};
use candle_nn::ops::{sigmoid, softmax_last_dim};

use super::layer::Context;
use super::linear::Linear;
use super::norm::Norm;
use super::softcap;
use super::trace::Trace;
use crate::Result;
use crate::executor::SequenceSlice;
use crate::executor::keys::{Keys, OwnKeys};
use crate::executor::latent::Latent;

/// The attention part of a layer.
#[derive(Debug)]
pub(super) struct Attention {
    pub(super) spec: AttentionSpec,
    pub(super) sliding_window: Option<usize>,
    /// Index of the rotary table.
    pub(super) rope: Option<usize>,
    /// With latent attention, to the narrower vector that queries are computed from, if there is one.
    pub(super) q_proj: Linear,
    pub(super) keys: Keys<Linear, Norm>,
    pub(super) latent: Option<Box<Latent<Linear, Norm>>>,
    pub(super) o_proj: Linear,
    pub(super) q_norm: Option<Norm>,
    /// To a gate for each head's output.
    pub(super) head_gate: Option<Linear>,
    /// Scores of a further key without a value, one per query head.
    pub(super) sinks: Option<Tensor>,
}

impl Attention {
    /// `[T, h]` to `[T, h]`; stores the keys and values of every token.
    pub(super) fn forward(&self, x: &Tensor, context: &Context, trace: &mut Trace) -> Result<Tensor> {
        let (q, gate) = self.split_gates(self.queries(x)?)?;
        let (q, new) = self.project(q, x, context, trace)?;
        let mut heads = Vec::with_capacity(context.batch.sequences.len());
        for (range, sequence) in context.batch.ranges() {
            if let Some((k, v)) = &new {
                let (k, v) = (k.i(range.clone())?, v.i(range.clone())?);
                context.kv_cache.write(context.index, sequence, &k, &v)?;
            }
            heads.push(self.attend(&q.i(range)?, sequence, context)?);
        }
        let heads = Tensor::cat(&heads, 0)?.to_dtype(x.dtype())?;
        trace.record("attn.heads", &heads)?;
        let gate = gate.map_or_else(|| self.gates_of_heads(x), |gate| Ok(Some(gate)))?;
        let heads = match gate {
            Some(gate) => {
                let gated = (heads * sigmoid(&gate)?.to_dtype(x.dtype())?)?;
                trace.record("attn.gated", &gated)?;
                gated
            }
            None => heads,
        };
        let out = self.o_proj.forward(&heads)?;
        trace.record("attn.out", &out)?;
        Ok(out)
    }

    /// The query, key, value and output projections, of those that it has.
    pub(super) fn projections(&self) -> Vec<&Linear> {
        let own = self.keys.own().into_iter().flat_map(|own| [&own.k_proj].into_iter().chain(&own.v_proj));
        let expanding = self.latent.iter().flat_map(|latent| latent.projections());
        own.chain(expanding).chain([&self.q_proj, &self.o_proj]).chain(&self.head_gate).collect()
    }

    /// The output of the query projections.
    fn queries(&self, x: &Tensor) -> Result<Tensor> {
        let q = self.q_proj.forward(x)?;
        self.latent.as_ref().map_or(Ok(q.clone()), |latent| latent.expand_queries(q))
    }

    /// Queries and, if there are any, gates, each `[T, H * d]`, from the output of the query projection.
    fn split_gates(&self, q: Tensor) -> Result<(Tensor, Option<Tensor>)> {
        if !self.spec.output_gate {
            return Ok((q, None));
        }
        let (rows, heads, width) = (q.dim(0)?, self.spec.num_attention_heads, self.spec.head_dim);
        let pairs = q.reshape((rows, heads, 2 * width))?;
        let part = |first| pairs.narrow(2, first, width)?.contiguous()?.reshape((rows, heads * width));
        Ok((part(0)?, Some(part(width)?.to_dtype(DType::F32)?)))
    }

    /// The gate of each head for all of its values, `[T, H * value width]`, if heads have gates of their own.
    fn gates_of_heads(&self, x: &Tensor) -> Result<Option<Tensor>> {
        let Some(head_gate) = &self.head_gate else { return Ok(None) };
        let gates = head_gate.forward(x)?.to_dtype(DType::F32)?;
        let (rows, heads) = gates.dims2()?;
        let gates = gates.unsqueeze(2)?.broadcast_as((rows, heads, self.spec.value_head_dim()))?;
        Ok(Some(gates.contiguous()?.flatten_from(1)?))
    }

    /// Queries `[T, H, d]` and, if the layer has its own, keys and values `[T, G, d]`, normed and rotated, in f32.
    fn project(
        &self,
        q: Tensor,
        x: &Tensor,
        context: &Context,
        trace: &mut Trace,
    ) -> Result<(Tensor, Option<KeyValue>)> {
        trace.record("attn.q", &q)?;
        let own = self.keys.own();
        let projected = own.map(|own| self.keys_and_values(own, x, trace)).transpose()?;
        let q = self.before_rope(&q, self.q_norm.as_ref())?;
        trace.record("attn.q_norm", &q)?;
        let normed = own.zip(projected).map(|(own, (k, v))| self.normed(own, &k, &v, trace)).transpose()?;
        let q = self.scale_by_position(self.turned(q, self.q_norm.as_ref(), context)?, context)?;
        trace.record("attn.q_rope", &q)?;
        let Some((own, (k, v))) = own.zip(normed) else { return Ok((q, None)) };
        let k = self.turned(k, own.k_norm.as_ref(), context)?;
        trace.record("attn.k_rope", &k)?;
        Ok((q, Some((k, v))))
    }

    /// The outputs of the projections of keys and values, `[T, G * d]` and `[T, G * value width]`.
    fn keys_and_values(&self, own: &OwnKeys<Linear, Norm>, x: &Tensor, trace: &mut Trace) -> Result<KeyValue> {
        let k = own.k_proj.forward(x)?;
        let (k, v) = match (&self.latent, &own.v_proj) {
            (Some(latent), _) => latent.expand_keys(&self.spec, &k)?,
            (None, Some(v_proj)) => (k, v_proj.forward(x)?),
            (None, None) => (k.clone(), k),
        };
        trace.record("attn.k", &k)?;
        trace.record("attn.v", &v)?;
        Ok((k, v))
    }

    /// Keys and values `[T, G, d]`, normed, unless keys are after RoPE.
    fn normed(&self, own: &OwnKeys<Linear, Norm>, k: &Tensor, v: &Tensor, trace: &mut Trace) -> Result<KeyValue> {
        let k = self.before_rope(k, own.k_norm.as_ref())?;
        trace.record("attn.k_norm", &k)?;
        let v = self.split_values(v)?;
        let Some(norm) = &own.v_norm else { return Ok((k, v)) };
        let v = norm.forward(&v)?;
        trace.record("attn.v_norm", &v)?;
        Ok((k, v))
    }

    /// Heads rotated, and normed if there is a norm after RoPE.
    fn turned(&self, x: Tensor, norm: Option<&Norm>, context: &Context) -> Result<Tensor> {
        let x = match self.rope {
            Some(table) => context.rotations[table].apply(&x, self.spec.first_rotated())?,
            None => x,
        };
        self.normalize(x, norm, true)
    }

    /// `[T, heads * d]` to `[T, heads, d]` in f32.
    fn split_heads(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        let head_dim = self.spec.head_dim;
        Ok(x.to_dtype(DType::F32)?.reshape((tokens, width / head_dim, head_dim))?)
    }

    /// `[T, heads * d]` to `[T, heads, d]` in f32, normed if there is a norm before RoPE.
    fn before_rope(&self, x: &Tensor, norm: Option<&Norm>) -> Result<Tensor> {
        self.normalize(self.split_heads(x)?, norm, false)
    }

    /// `[T, heads, d]` in f32, normed if there is a norm on this side of RoPE.
    fn normalize(&self, x: Tensor, norm: Option<&Norm>, after_rope: bool) -> Result<Tensor> {
        let spec = self.spec.qk_norm.filter(|spec| spec.after_rope == after_rope);
        let (Some(norm), Some(spec)) = (norm, spec) else { return Ok(x) };
        match spec.extent {
            // The weight of a norm of each head is `[heads, d]`.
            QkNormExtent::Head | QkNormExtent::EachHead => norm.forward(&x),
            QkNormExtent::Projection => Ok(norm.forward(&x.flatten_from(1)?)?.reshape(x.shape())?),
        }
    }

    /// `[T, G * value width]` to `[T, G, d]` in f32; narrower values end in zeros.
    fn split_values(&self, v: &Tensor) -> Result<Tensor> {
        let (heads, width) = (self.spec.num_key_value_heads, self.spec.value_head_dim());
        let v = v.to_dtype(DType::F32)?.reshape((v.dim(0)?, heads, width))?;
        Ok(v.pad_with_zeros(2, 0, self.spec.head_dim - width)?)
    }

    fn scale_by_position(&self, q: Tensor, context: &Context) -> Result<Tensor> {
        let Some(scale) = self.spec.query_position_scale else { return Ok(q) };
        let positions = context.batch.sequences.iter().flat_map(SequenceSlice::positions);
        let factors: Vec<f32> = positions.map(|position| scale.factor(position)).collect();
        let factors = Tensor::from_vec(factors, (q.dim(0)?, 1, 1), q.device())?;
        Ok(q.broadcast_mul(&factors)?)
    }

    /// Attention of one sequence: queries `[t, H, d]` to `[t, H * value width]`.
    fn attend(&self, q: &Tensor, sequence: &SequenceSlice, context: &Context) -> Result<Tensor> {
        let (t, len) = (sequence.query_len, sequence.positions().end);
        let (groups, width) = (self.spec.num_key_value_heads, self.spec.head_dim);
        let per_group = self.spec.num_attention_heads / groups;
        let (k, v) = context.kv_cache.read(self.keys.stored_by(context.index), sequence)?;
        // The query heads of a group share keys, so they form the rows of one matrix product: [G, H/G * t, d].
        let q = q.reshape((t, groups, per_group, width))?.permute((1, 2, 0, 3))?;
        let q = q.contiguous()?.reshape((groups, per_group * t, width))?;
        let k = k.permute((1, 2, 0))?.contiguous()?;
        let v = v.transpose(0, 1)?.contiguous()?;
        let mut scores = (q.matmul(&k)? * self.spec.scale)?;
        if let Some(cap) = self.spec.logit_softcapping {
            scores = softcap(&scores, cap)?;
        }
        let mask = context.masks.get(sequence, self.sliding_window, q.device())?;
        // The largest tensors of a step: no more than two at a time.
        let masked = scores.reshape((groups, per_group, t, len))?.broadcast_add(&mask)?;
        drop(scores);
        let probabilities = self.probabilities(masked)?.reshape((groups, per_group * t, len))?;
        let out = probabilities.matmul(&v)?.reshape((groups, per_group, t, width))?;
        let out = out.narrow(3, 0, self.spec.value_head_dim())?;
        Ok(out.permute((2, 0, 1, 3))?.contiguous()?.reshape((t, self.spec.output_width()))?)
    }

    /// Softmax over the keys, `[G, H/G, t, keys]`, beside which a sink takes its part if there are any.
    fn probabilities(&self, scores: Tensor) -> Result<Tensor> {
        let Some(sinks) = &self.sinks else { return Ok(softmax_last_dim(&scores)?) };
        let (groups, per_group, t, len) = scores.dims4()?;
        let sinks = sinks.reshape((groups, per_group, 1, 1))?.expand((groups, per_group, t, 1))?.contiguous()?;
        let with_sinks = Tensor::cat(&[scores, sinks], 3)?;
        Ok(softmax_last_dim(&with_sinks)?.narrow(3, 0, len)?.contiguous()?)
    }
}

/// Keys and values.
pub(super) type KeyValue = (Tensor, Tensor);

/// Attention masks of one batch, shared by its layers.
#[derive(Debug, Default)]
pub(super) struct MaskCache(RefCell<HashMap<MaskShape, Tensor>>);

/// Context length, query length and window, which determine a mask.
type MaskShape = (usize, usize, Option<usize>);

impl MaskCache {
    /// `[query_len, len]`: 0 where a key is visible, minus infinity elsewhere.
    fn get(&self, sequence: &SequenceSlice, window: Option<usize>, device: &Device) -> Result<Tensor> {
        let key = (sequence.context_len, sequence.query_len, window);
        if let Some(mask) = self.0.borrow().get(&key) {
            return Ok(mask.clone());
        }
        let mask = Tensor::from_vec(mask(sequence, window), (sequence.query_len, sequence.positions().end), device)?;
        self.0.borrow_mut().insert(key, mask.clone());
        Ok(mask)
    }
}

/// Key `j` is visible to query `i` if `j <= i`, and with a window `w` also `j > i - w`.
fn mask(sequence: &SequenceSlice, window: Option<usize>) -> Vec<f32> {
    let len = sequence.positions().end;
    let first = |query: usize| window.map_or(0, |window| (query + 1).saturating_sub(window));
    let visible = |query: usize, key: usize| (first(query)..=query).contains(&key);
    let row = |query: usize| (0..len).map(move |key| if visible(query, key) { 0.0 } else { f32::NEG_INFINITY });
    let mut mask = Vec::with_capacity(sequence.query_len * len);
    sequence.positions().for_each(|query| mask.extend(row(query)));
    mask
}
