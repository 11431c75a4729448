//! Writing keys and values to the KV cache, and attention over them.

use std::ops::Range;

use braidinfer_kernels::attention::{
    Attention, AttentionShape, KvElement, KvSlab, PagedHead, Partial, SPAN, add_sinks, attend, finish, hadamard, merge,
};
use braidinfer_kernels::norm::{self, Row, Statistics};
use braidinfer_kernels::{Buffer, Items, LANES, PerThread, Pool, Ranges};
use braidinfer_model::spec::QkNormExtent;

use super::FusedRunner;
use super::batch_layout::{BatchLayout, QueryChunk};
use super::each_row::each_row;
use super::heads::{HeadKind, Heads, Stage, gather};
use super::packed::PackedAttention;
#[cfg(test)]
use super::planted::{Planted, to_bf16};
use super::scratch::{AttentionScratch, Scratch};
use super::trace::Trace;
use crate::executor::KvDtype;

impl FusedRunner {
    /// Stores the keys and values of every token, unless they are those of an earlier layer, and writes the attention
    /// output to `heads`.
    pub(super) fn attend(&mut self, index: usize, kv_dtypes: &[KvDtype], trace: &mut Trace) {
        let Some(layer) = self.weights.layers[index].attention() else { return };
        let kv_layer = layer.keys.stored_by(index);
        let Scratch { qkv, expanded, qk_statistics, heads, head_starts, items, partials, merges, attention, .. } =
            &mut self.scratch;
        let plain = Heads { isa: self.isa, layer, layout: &self.layout, qkv, expanded, statistics: &[] };
        fill_statistics(&plain, &mut self.pool, qk_statistics);
        let source = Heads { statistics: qk_statistics, ..plain };
        record(&source, trace);
        let shape = attention_shape(layer);
        let layout = &self.layout;
        let groups = layer.attention.num_key_value_heads;
        let width = shape.per_group * shape.head_dim;
        heads.resize(groups * layout.rows * width);
        head_starts.clear();
        for group in 0..groups {
            head_starts.extend(layout.chunks.iter().map(|chunk| (group * layout.rows + chunk.tokens.start) * width));
        }
        let mut pass = AttentionPass {
            source,
            shape,
            pool: &mut self.pool,
            scratch: attention,
            items,
            partials,
            merges,
            starts: head_starts,
            sinks: layer.sinks.as_deref(),
            #[cfg(test)]
            keys_in_bf16: self.planted == Some(Planted::KeysInBf16),
        };
        #[cfg(test)]
        if self.planted == Some(Planted::SinksForgotten { layer: index }) {
            pass.sinks = None;
        }
        let slabs = &mut self.kv_cache.layers[kv_layer];
        match kv_dtypes[kv_layer] {
            KvDtype::F32 => pass.run(&mut slabs.f32, heads),
            KvDtype::F16 => pass.run(&mut slabs.f16, heads),
            KvDtype::Q8_0 => pass.run(&mut slabs.q8_0, heads),
            KvDtype::Q4_0 => pass.run(&mut slabs.q4_0, heads),
        }
    }
}

fn attention_shape(layer: &PackedAttention) -> AttentionShape {
    let attention = &layer.attention;
    AttentionShape {
        head_dim: attention.head_dim,
        per_group: attention.num_attention_heads / attention.num_key_value_heads,
        scale: attention.scale as f32,
        softcap: attention.logit_softcapping.map(|cap| cap as f32),
        window: layer.sliding_window,
    }
}

/// Norm statistics of queries and keys, if a norm runs over whole projections.
fn fill_statistics(heads: &Heads<'_>, pool: &mut Pool, statistics: &mut Vec<[Statistics; 2]>) {
    let extent = heads.layer.attention.qk_norm.map(|norm| norm.extent);
    if extent != Some(QkNormExtent::Projection) {
        return;
    }
    let (rows, own) = (heads.layout.rows, heads.layer.keys.own());
    let empty = Statistics { mean: 0.0, inverse: 0.0 };
    let of = |kind: HeadKind, row: usize| {
        let width = own.filter(|_| kind == HeadKind::Key).map_or(heads.layer.q_proj.rows, |own| own.k_proj.rows);
        let row = Row { data: heads.panels(kind), rows, row, width };
        heads.layer.head_norm(kind).map_or(empty, |norm| norm::statistics(heads.isa, norm.kind, row, norm.eps))
    };
    each_row(pool, statistics, rows, [empty; 2], |row| [of(HeadKind::Query, row), of(HeadKind::Key, row)]);
}

fn record(heads: &Heads<'_>, trace: &mut Trace) {
    let rows = heads.layout.rows;
    for (name, kind, stage) in [
        ("attn.q", HeadKind::Query, Stage::Projected),
        ("attn.k", HeadKind::Key, Stage::Projected),
        ("attn.v", HeadKind::Value, Stage::Projected),
        ("attn.q_norm", HeadKind::Query, Stage::Normed),
        ("attn.k_norm", HeadKind::Key, Stage::Normed),
        ("attn.v_norm", HeadKind::Value, Stage::Normed),
        ("attn.q_rope", HeadKind::Query, Stage::Rotated),
        ("attn.k_rope", HeadKind::Key, Stage::Rotated),
    ] {
        let exists = kind == HeadKind::Query || heads.layer.keys.own().is_some();
        // Most architectures have no norm of values.
        let is_step = (kind, stage) != (HeadKind::Value, Stage::Normed) || heads.layer.head_norm(kind).is_some();
        if exists && is_step {
            trace.record(name, rows, || heads.all(kind, stage));
        }
    }
}

impl PackedAttention {
    /// Whether the outputs of heads are gated.
    pub(super) fn is_gated(&self) -> bool {
        self.attention.output_gate || self.head_gate.is_some()
    }

    /// The gates of a head's output for one token, from the output of the input projections: those beside its queries, or
    /// one of its own for all of it.
    pub(super) fn read_gate(&self, projected: &[f32], rows: usize, token: usize, head: usize, out: &mut [f32]) {
        if self.head_gate.is_none() {
            let column = head * self.attention.query_head_rows() + self.attention.head_dim;
            return gather(projected, rows, token, column, out);
        }
        let before = self.keys.own().into_iter().flat_map(|own| [&own.k_proj].into_iter().chain(&own.v_proj));
        let panels: usize = before.chain([&self.q_proj]).map(|linear| linear.panels()).sum();
        let mut gate = [0.0];
        gather(projected, rows, token, panels * LANES + head, &mut gate);
        out.fill(gate[0]);
    }
}

/// Attention of one layer over a batch.
struct AttentionPass<'a> {
    source: Heads<'a>,
    shape: AttentionShape,
    pool: &'a mut Pool,
    scratch: &'a mut PerThread<AttentionScratch>,
    items: &'a mut Vec<usize>,
    partials: &'a mut Partials,
    merges: &'a mut Vec<usize>,
    /// Offset in `heads` of the output of each (group, chunk).
    starts: &'a [usize],
    /// One score per query head.
    sinks: Option<&'a [f32]>,
    #[cfg(test)]
    keys_in_bf16: bool,
}

/// Partial attention results over spans of long contexts.
#[derive(Debug, Default)]
pub(super) struct Partials {
    buffer: Buffer,
    starts: Vec<usize>,
    /// For each partial result, its (group, chunk) index and its span.
    tasks: Vec<(usize, usize)>,
}

impl AttentionPass<'_> {
    /// Number of key/value heads.
    fn groups(&self) -> usize {
        self.source.layer.attention.num_key_value_heads
    }

    fn run<T: KvElement>(&mut self, slabs: &mut [KvSlab<T>], heads: &mut [f32]) {
        if self.source.layer.keys.own().is_some() {
            self.store(slabs);
        }
        let layout = self.source.layout;
        let longest = layout.chunks.iter().map(QueryChunk::context).max().unwrap_or(0);
        // With few sequences, long contexts are also parallelised over spans. The order of sums stays the same.
        let few = self.starts.len() < 2 * self.pool.threads();
        if few && longest > SPAN {
            self.attend_by_span(slabs, heads);
        } else {
            self.attend_whole(slabs, heads);
        }
    }

    /// Stores the keys, normed and rotated, and the values of every token.
    fn store<T: KvElement>(&mut self, slabs: &mut [KvSlab<T>]) {
        let source = self.source;
        let (layout, groups, width) = (source.layout, self.groups(), self.shape.head_dim);
        self.items.clear();
        for (slab, _) in &layout.slabs {
            self.items.extend((0..groups).map(|group| slab * groups + group));
        }
        #[cfg(test)]
        let keys_in_bf16 = self.keys_in_bf16;
        let items = Items::new(slabs, self.items);
        self.pool.for_each_with(self.scratch, items, |item, slab, scratch: &mut AttentionScratch| {
            let group = item % groups;
            scratch.queries.resize(scratch.queries.len().max(2 * width));
            let (key, value) = scratch.queries[..2 * width].split_at_mut(width);
            for write in &layout.writes[layout.slabs[item / groups].1.clone()] {
                source.read(HeadKind::Key, write.token, group, Stage::Rotated, key);
                source.read(HeadKind::Value, write.token, group, Stage::Rotated, value);
                #[cfg(test)]
                if keys_in_bf16 {
                    to_bf16(key);
                }
                if T::QUANTIZED {
                    hadamard(source.isa, key, width);
                    hadamard(source.isa, value, width);
                }
                slab.write(write.tile, write.lane, key, value);
            }
        });
    }

    /// One task per (group, chunk).
    fn attend_whole<T: KvElement>(&mut self, slabs: &[KvSlab<T>], heads: &mut [f32]) {
        let (source, shape, sinks) = (self.source, &self.shape, self.sinks);
        self.pool.for_each_with(self.scratch, Ranges::new(heads, self.starts), |index, out, scratch| {
            let query = Query::of(&source, shape, index);
            query.read::<T>(scratch);
            let AttentionScratch { queries, sums, blocks } = scratch;
            let [all, next] = sums;
            let len = Partial::len(shape, query.rows());
            let mut all = Partial::new(shape, query.rows(), &mut all[..len]);
            for (number, span) in query.spans().enumerate() {
                if number == 0 {
                    attend(source.isa, &query.task(slabs, queries, span), blocks, &mut all);
                } else {
                    let mut next = Partial::new(shape, query.rows(), &mut next[..len]);
                    attend(source.isa, &query.task(slabs, queries, span), blocks, &mut next);
                    merge(source.isa, &mut all, &next);
                }
            }
            query.finish::<T>(&mut all, out, sinks);
        });
    }

    /// One task per (group, chunk, span), followed by merging the spans of each (group, chunk).
    fn attend_by_span<T: KvElement>(&mut self, slabs: &[KvSlab<T>], heads: &mut [f32]) {
        let (source, shape) = (self.source, &self.shape);
        let Partials { buffer, starts, tasks } = &mut *self.partials;
        starts.clear();
        tasks.clear();
        let mut len = 0;
        for index in 0..self.starts.len() {
            let query = Query::of(&source, shape, index);
            for span in 0..query.spans().count() {
                starts.push(len);
                tasks.push((index, span));
                len += Partial::len(shape, query.rows());
            }
        }
        buffer.resize(len);
        self.pool.for_each_with(self.scratch, Ranges::new(buffer, starts), |span_index, buffer, scratch| {
            let (index, span) = tasks[span_index];
            let query = Query::of(&source, shape, index);
            query.read::<T>(scratch);
            let span = query.spans().nth(span).expect("spans were counted");
            let mut out = Partial::new(shape, query.rows(), buffer);
            attend(source.isa, &query.task(slabs, &scratch.queries, span), &mut scratch.blocks, &mut out);
        });
        self.merge_spans::<T>(heads);
    }

    /// Merges the spans of each (group, chunk), in ascending order.
    fn merge_spans<T: KvElement>(&mut self, heads: &mut [f32]) {
        let (source, shape, sinks) = (self.source, &self.shape, self.sinks);
        let Partials { buffer, starts, tasks } = &mut *self.partials;
        let (starts, tasks) = (&*starts, &*tasks);
        // Index in `starts` of the first span of each (group, chunk).
        let first = |index: usize| starts[tasks.partition_point(|(other, _)| *other < index)];
        self.merges.clear();
        self.merges.extend((0..self.starts.len()).map(first));
        let parts = (Ranges::new(heads, self.starts), Ranges::new(buffer, self.merges));
        self.pool.for_each(parts, |index, (out, spans), _| {
            let query = Query::of(&source, shape, index);
            let rows = query.rows();
            let mut spans = spans.chunks_exact_mut(Partial::len(shape, rows));
            let first = spans.next().expect("every query sees a span");
            let mut all = Partial::new(shape, rows, first);
            for next in spans {
                merge(source.isa, &mut all, &Partial::new(shape, rows, next));
            }
            query.finish::<T>(&mut all, out, sinks);
        });
    }
}

/// The queries of one group in one chunk.
struct Query<'a> {
    source: &'a Heads<'a>,
    shape: &'a AttentionShape,
    chunk: &'a QueryChunk,
    group: usize,
}

impl<'a> Query<'a> {
    /// The query of task `index`: tasks are ordered by group, then by chunk.
    fn of(source: &'a Heads<'a>, shape: &'a AttentionShape, index: usize) -> Self {
        let chunks: &[QueryChunk] = &source.layout.chunks;
        Self { source, shape, chunk: &chunks[index % chunks.len()], group: index / chunks.len() }
    }

    fn rows(&self) -> usize {
        self.chunk.tokens.len() * self.shape.per_group
    }

    /// The spans of positions that at least one of the queries attends to.
    fn spans(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let end = self.chunk.context();
        let first = self.shape.window.map_or(0, |window| (self.chunk.position + 1).saturating_sub(window));
        (first / SPAN..end.div_ceil(SPAN)).map(move |span| span * SPAN..end.min((span + 1) * SPAN))
    }

    /// Reads the queries, normed and rotated, into the scratch buffer: `[tokens][per_group][head_dim]`.
    fn read<T: KvElement>(&self, scratch: &mut AttentionScratch) {
        scratch.reserve(self.shape, self.rows());
        let AttentionShape { head_dim, per_group, .. } = *self.shape;
        for (row, out) in scratch.queries[..self.rows() * head_dim].chunks_exact_mut(head_dim).enumerate() {
            let token = self.chunk.tokens.start + row / per_group;
            self.source.read(HeadKind::Query, token, self.group * per_group + row % per_group, Stage::Rotated, out);
            if T::QUANTIZED {
                hadamard(self.source.isa, out, head_dim);
            }
        }
    }

    /// The outputs of all rows, from the result over all keys that they see.
    fn finish<T: KvElement>(&self, all: &mut Partial<'_>, out: &mut [f32], sinks: Option<&[f32]>) {
        let isa = self.source.isa;
        if let Some(sinks) = sinks {
            let AttentionShape { per_group, .. } = *self.shape;
            add_sinks(isa, all, &sinks[self.group * per_group..][..per_group]);
        }
        finish(isa, all, self.shape.head_dim, out);
        if T::QUANTIZED {
            hadamard(isa, out, self.shape.head_dim);
        }
    }

    fn task<T: KvElement>(&self, slabs: &'a [KvSlab<T>], queries: &'a [f32], span: Range<usize>) -> Attention<'a, T> {
        let layout: &BatchLayout = self.source.layout;
        let heads = self.source.layer.attention.num_key_value_heads;
        Attention {
            shape: self.shape,
            queries: &queries[..self.rows() * self.shape.head_dim],
            first_position: self.chunk.position,
            kv: PagedHead { slabs, heads, head: self.group, tiles: layout.tiles(self.chunk) },
            span,
        }
    }
}
