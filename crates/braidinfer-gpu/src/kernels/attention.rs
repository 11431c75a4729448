//! Attention over paged keys and values: spans of keys side by side, then their results in order.

use serde::Serialize;

use super::template::render;
use crate::{Buffer, Gpu, Kernel, Result, stride};

/// Keys that one workgroup reads.
pub const SPAN: usize = 256;

/// Threads of a workgroup.
const THREADS: usize = 128;

/// Most query heads of a workgroup.
const MOST_TOGETHER: usize = 8;

/// Most values of queries of a workgroup.
const MOST_QUERY_VALUES: usize = 2048;

/// Memory for the results of spans, in values. Tokens whose results do not fit together are computed one after the other.
const MOST_PARTIALS: usize = 4 << 20;

/// What the outputs of heads are multiplied by the logistic function of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Nothing.
    None,
    /// A vector for each head, beside its query in the output of the projections.
    Queries,
    /// A number for each head, which begin at this column in the output of the projections.
    Heads(usize),
}

/// The shapes of attention in a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor of scores.
    pub scale: f32,
    /// Softcap of scores.
    pub cap: Option<f32>,
    /// Number of keys that a query sees.
    pub window: Option<usize>,
    /// Whether each head has a score that takes part in the softmax without a value.
    pub sinks: bool,
    /// The gate.
    pub gate: Gate,
    /// Whether keys and values are kept in f16, not f32.
    pub half_kv: bool,
}

/// The kernels.
#[derive(Debug, Clone)]
pub struct AttentionKernels {
    shape: AttentionShape,
    together: usize,
    attend: Kernel,
    merge: Kernel,
}

/// The buffers of one run.
#[derive(Debug, Clone, Copy)]
pub struct AttentionStep<'a> {
    /// Queries `[tokens, stride]`.
    pub queries: &'a Buffer,
    /// What is uploaded for a step.
    pub step: &'a Buffer,
    /// Keys by blocks of 16 tokens: `[block, head, word, token]`.
    pub keys: &'a Buffer,
    /// Values by blocks of 16 tokens: `[block, head, token, word]`.
    pub values: &'a Buffer,
    /// Memory for [`AttentionKernels::partials`] values.
    pub partials: &'a Buffer,
    /// The output of the projections `[tokens, stride]`, if there is a gate in it; any buffer but the others if not.
    pub input: &'a Buffer,
    /// Its stride.
    pub input_stride: usize,
    /// Scores without a value; any buffer but those that are written if there are none.
    pub sinks: &'a Buffer,
    /// The outputs of all heads `[tokens, stride]`.
    pub output: &'a Buffer,
    /// Where, in the step, the positions of tokens are, and where their block tables begin.
    pub positions_at: usize,
    /// Where the beginnings of their block tables are.
    pub tables_at: usize,
    /// The positions of the tokens.
    pub positions: &'a [u32],
}

#[derive(Serialize)]
struct Values {
    heads: usize,
    kv_heads: usize,
    per_group: usize,
    head_dim: usize,
    head_words: usize,
    together: usize,
    split: usize,
    half_kv: bool,
    has_softcap: bool,
    has_sinks: bool,
    gate: &'static str,
}

impl AttentionKernels {
    /// Compiles them.
    ///
    /// Fails if the driver refuses one.
    pub fn new(gpu: &mut Gpu, shape: &AttentionShape) -> Result<Self> {
        let per_group = shape.heads / shape.kv_heads;
        let most = MOST_TOGETHER.min((MOST_QUERY_VALUES / shape.head_dim).max(1));
        let together = (1..=per_group.min(most)).rev().find(|count| per_group.is_multiple_of(*count)).unwrap_or(1);
        let head_words = if shape.half_kv { shape.head_dim / 2 } else { shape.head_dim };
        // Where there are fewer words than threads, each is summed by several, over some of the keys.
        let split = (THREADS / (together * head_words)).clamp(1, 8);
        let split = if split.is_power_of_two() { split } else { split.next_power_of_two() / 2 };
        let values = Values {
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            per_group,
            head_dim: shape.head_dim,
            head_words,
            together,
            split,
            half_kv: shape.half_kv,
            has_softcap: shape.cap.is_some(),
            has_sinks: shape.sinks,
            gate: match shape.gate {
                Gate::None => "none",
                Gate::Queries => "queries",
                Gate::Heads(_) => "heads",
            },
        };
        let attend = gpu.kernel("attention", render("attention", &values), 5, 1 << 4)?;
        let merge = gpu.kernel("merge", render("merge", &values), 5, 1 << 4)?;
        Ok(Self { shape: *shape, together, attend, merge })
    }

    /// Memory that results of spans take, in values, for the sequences of these positions.
    pub fn partials(shape: &AttentionShape, positions: &[u32]) -> usize {
        let (_, spans) = Self::spans(shape.window, positions);
        Self::chunk(shape, spans, positions.len()) * spans * shape.heads * (shape.head_dim + 2)
    }

    /// The first span that any of these positions sees, and how many there are up to the last one.
    fn spans(window: Option<usize>, positions: &[u32]) -> (usize, usize) {
        let first_key = |position: u32| window.map_or(0, |window| (position as usize + 1).saturating_sub(window));
        let first = positions.iter().map(|position| first_key(*position) / SPAN).min().unwrap_or(0);
        let last = positions.iter().map(|position| *position as usize / SPAN).max().unwrap_or(0);
        (first, last + 1 - first)
    }

    /// Number of tokens whose results are kept together.
    fn chunk(shape: &AttentionShape, spans: usize, tokens: usize) -> usize {
        let token = spans * shape.heads * (shape.head_dim + 2);
        (MOST_PARTIALS / token).max(1).min(tokens)
    }

    /// Bytes of keys and values that are read for these positions.
    fn read_bytes(&self, positions: &[u32]) -> u64 {
        let shape = &self.shape;
        let keys = |position: u32| (position as usize + 1).min(shape.window.unwrap_or(usize::MAX));
        let seen: usize = positions.iter().map(|position| keys(*position)).sum();
        let value_bytes = if shape.half_kv { 2 } else { 4 };
        // Each workgroup has heads that share their keys.
        (seen * 2 * shape.head_dim * value_bytes * (shape.heads / self.together)) as u64
    }

    /// Records them.
    pub fn record(&self, gpu: &mut Gpu, step: AttentionStep<'_>) {
        let shape = &self.shape;
        let tokens = step.positions.len();
        let chunk = Self::chunk(shape, Self::spans(shape.window, step.positions).1, tokens);
        let window = shape.window.unwrap_or(0) as u32;
        for first in (0..tokens).step_by(chunk) {
            let count = chunk.min(tokens - first);
            let (first_span, spans) = Self::spans(shape.window, &step.positions[first..first + count]);
            let parameters = [
                stride(shape.heads * shape.head_dim) as u32,
                step.positions_at as u32,
                step.tables_at as u32,
                first as u32,
                first_span as u32,
                spans as u32,
                window,
                shape.scale.to_bits(),
                shape.cap.unwrap_or(0.0).to_bits(),
            ];
            let buffers = [step.queries, step.step, step.keys, step.values, step.partials];
            let groups = [spans as u32, (shape.heads / self.together) as u32, count as u32];
            gpu.dispatch(&self.attend, &buffers, &parameters, groups);
            gpu.count_model_bytes(self.read_bytes(&step.positions[first..first + count]));
            let parameters = [
                step.positions_at as u32,
                first as u32,
                first_span as u32,
                spans as u32,
                window,
                stride(shape.heads * shape.head_dim) as u32,
                step.input_stride as u32,
                if let Gate::Heads(column) = shape.gate { column as u32 } else { 0 },
            ];
            let buffers = [step.partials, step.step, step.input, step.sinks, step.output];
            gpu.dispatch(&self.merge, &buffers, &parameters, [shape.heads as u32, count as u32, 1]);
        }
    }
}
