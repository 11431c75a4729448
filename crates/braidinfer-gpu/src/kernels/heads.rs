//! Heads of queries, keys and values: norms, rotary positions, and keys and values into their slots.

use braidinfer_model::spec::{NormKind, NormSpec, RopePairing};
use serde::Serialize;

use super::template::{literal, render};
use crate::{Buffer, Gpu, Kernel, Result};

/// The values that the statistics of a head's norm are over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadNormExtent {
    /// The head; all have one weight.
    Head,
    /// The head; each has its own weight.
    EachHead,
    /// All heads of the projection; each has its own weight.
    Projection,
}

/// The norm of queries and keys. Their weights lie in one buffer: of queries, their bias if there is one, then of keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadNorm {
    /// The norm.
    pub norm: NormSpec,
    /// What its statistics are over.
    pub extent: HeadNormExtent,
    /// Whether it comes after the rotation.
    pub after_rope: bool,
}

/// The shapes of the heads of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadsShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Distance of the queries of two heads in the output of the projections.
    pub query_rows: usize,
    /// Where the keys begin in it; `None` if the layer has none of its own.
    pub key_column: Option<usize>,
    /// Where the values begin in it.
    pub value_column: usize,
    /// The norm of queries and keys.
    pub norm: Option<HeadNorm>,
    /// What is added to the mean square of a value head that is normed, without a weight.
    pub value_norm_eps: Option<f32>,
    /// Pairs of a head that are rotated, and which dimensions form one.
    pub rotation: Option<(usize, RopePairing)>,
    /// Whether queries have a factor by their position.
    pub scales_queries: bool,
    /// Whether keys and values are kept in f16, not f32.
    pub half_kv: bool,
}

impl HeadsShape {
    /// Words of a head of keys or values of one token.
    pub fn head_words(&self) -> usize {
        if self.half_kv { self.head_dim / 2 } else { self.head_dim }
    }

    /// Words of the keys, or the values, of a block of 16 tokens.
    pub fn block_words(&self) -> usize {
        16 * self.kv_heads * self.head_words()
    }
}

/// The kernel.
#[derive(Debug, Clone)]
pub struct HeadsKernel {
    kernel: Kernel,
    groups: u32,
}

/// The buffers of one run.
#[derive(Debug, Clone, Copy)]
pub struct HeadsStep<'a> {
    /// The output of the projections `[tokens, stride]`.
    pub input: &'a Buffer,
    /// Its stride.
    pub input_stride: usize,
    /// What is uploaded for a step.
    pub step: &'a Buffer,
    /// Weights of the norms.
    pub norms: &'a Buffer,
    /// Queries `[tokens, stride]`, which are written.
    pub queries: &'a Buffer,
    /// Their stride.
    pub query_stride: usize,
    /// Keys by blocks of 16 tokens: `[block, head, word, token]`.
    pub keys: &'a Buffer,
    /// Values by blocks of 16 tokens: `[block, head, token, word]`.
    pub values: &'a Buffer,
    /// Where, in the step, the slots of the tokens are.
    pub slots_at: usize,
    /// Where the cosines are, and the sines.
    pub rotation_at: [usize; 2],
    /// Where the factors of queries are.
    pub scales_at: usize,
    /// Number of tokens.
    pub tokens: usize,
}

#[derive(Serialize)]
struct Values {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    head_words: usize,
    query_rows: usize,
    has_keys: bool,
    key_column: usize,
    value_column: usize,
    norm: &'static str,
    extent: &'static str,
    bias: bool,
    eps: String,
    after_rope: bool,
    query_weight: usize,
    query_bias: usize,
    key_weight: usize,
    key_bias: usize,
    query_count: usize,
    key_count: usize,
    value_norm: bool,
    value_eps: String,
    pairs: usize,
    interleaved: bool,
    scales_queries: bool,
    half_kv: bool,
}

impl HeadsKernel {
    /// Compiles it.
    ///
    /// Fails if the driver refuses it.
    pub fn new(gpu: &mut Gpu, shape: &HeadsShape) -> Result<Self> {
        let norm = shape.norm;
        let extent = norm.map_or(HeadNormExtent::Head, |norm| norm.extent);
        let has_bias = norm.is_some_and(|norm| norm.norm.bias);
        let each = |heads: usize| if extent == HeadNormExtent::Head { shape.head_dim } else { heads * shape.head_dim };
        let count = |heads: usize| {
            if extent == HeadNormExtent::Projection { heads * shape.head_dim } else { shape.head_dim }
        };
        let (query, key) = (each(shape.heads), each(shape.kv_heads));
        let key_weight = query * (1 + usize::from(has_bias));
        let values = Values {
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            head_words: shape.head_words(),
            query_rows: shape.query_rows,
            has_keys: shape.key_column.is_some(),
            key_column: shape.key_column.unwrap_or(0),
            value_column: shape.value_column,
            norm: match norm.map(|norm| norm.norm.kind) {
                None => "none",
                Some(NormKind::Rms) => "rms",
                Some(NormKind::Layer) => "layer",
            },
            extent: match extent {
                HeadNormExtent::Head => "head",
                HeadNormExtent::EachHead => "each_head",
                HeadNormExtent::Projection => "projection",
            },
            bias: has_bias,
            eps: literal(norm.map_or(0.0, |norm| norm.norm.eps as f32)),
            after_rope: norm.is_some_and(|norm| norm.after_rope),
            query_weight: 0,
            query_bias: query,
            key_weight,
            key_bias: key_weight + key,
            query_count: count(shape.heads),
            key_count: count(shape.kv_heads),
            value_norm: shape.value_norm_eps.is_some(),
            value_eps: literal(shape.value_norm_eps.unwrap_or(0.0)),
            pairs: shape.rotation.map_or(0, |(pairs, _)| pairs),
            interleaved: shape.rotation.is_some_and(|(_, pairing)| pairing == RopePairing::Interleaved),
            scales_queries: shape.scales_queries,
            half_kv: shape.half_kv,
        };
        let own = if shape.key_column.is_some() { 2 * shape.kv_heads } else { 0 };
        let kernel = gpu.kernel("heads", render("heads", values), 6, 0b11_1000)?;
        Ok(Self { kernel, groups: (shape.heads + own) as u32 })
    }

    /// Records it.
    pub fn record(&self, gpu: &mut Gpu, step: HeadsStep<'_>) {
        let parameters = [
            step.input_stride as u32,
            step.query_stride as u32,
            step.slots_at as u32,
            step.rotation_at[0] as u32,
            step.rotation_at[1] as u32,
            step.scales_at as u32,
        ];
        let buffers = [step.input, step.step, step.norms, step.queries, step.keys, step.values];
        gpu.dispatch(&self.kernel, &buffers, &parameters, [self.groups, step.tokens as u32, 1]);
    }
}
