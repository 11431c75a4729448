//! Converting a description to the contents of a GGUF file.

use std::ops::Range;

use serde_json::Value as Json;

use super::config::{DELTA_NET_SIZES, KV_RANK, LOG_MULTIPLIER, LOG_MULTIPLIER_KEY, QUERY_RANK, scaled_width};
use super::mamba2::{self, Mamba2Values};
use super::streams;
use super::{
    CONVOLVED_TOKENS, DEEPSEEK, FULL_ATTENTION_INTERVAL, GgufForm, GgufMamba2, PARALLEL_RESIDUAL, RECURRENT_LAYERS,
    ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS, TEMPERATURE_SCALE, VALUE_WIDTH, gating_func, is_rotated, mixers,
    names_without_file,
};
use crate::arch::find;
use crate::format::gguf::{Gguf, Metadata, TensorHeader};
use crate::layout::{LayerSlot, Param, Slot, Stack, TensorNames, stacks};
use crate::rope::yarn_mscale;
use crate::spec::{
    AttentionSpec, DecayRates, DecoderSpec, DeltaNetSpec, ExpertsSpec, FeedForward, LayerSpec, NormKind,
    PerLayerInputSpec, RopePairing, RopeScaling, RopeSpec, ScoringFunction, ValueHeadOrder,
};
use crate::{Dtype, ModelError, Result};

/// How published models divide rotated dimensions between time, height, width and nothing; in text, all are equal.
const ROPE_SECTIONS: [i32; 4] = [11, 11, 10, 0];

/// Contents of a decoder's GGUF file, except the tokenizer and the values of parameters.
#[derive(Debug)]
pub struct GgufModel {
    /// Keys of the architecture.
    pub metadata: Metadata,
    /// Tensors with parameters, in the order of the file.
    pub tensors: Vec<Stack>,
    /// Small tensors with RoPE settings.
    pub settings: Vec<(&'static str, Vec<f32>)>,
    /// Remarks on what llama.cpp computes differently, one line each.
    pub notes: Vec<String>,
    /// Number of leading rows of each head to permute, and the head width.
    rotated: Option<(usize, usize)>,
    norm_offset: f32,
    /// The gated delta net of the checkpoint, and whether the file has its value heads tiled and another form of its
    /// rates.
    delta_net: Option<(DeltaNetSpec, [bool; 2])>,
    mamba2: Option<Mamba2Values>,
    /// Rows of the checkpoint's embedding for each layer; those of further tokens repeat the first.
    per_layer_rows: Option<usize>,
}

/// The contents of a GGUF file for `spec`. If `head_is_embedding`, the output head is not stored.
///
/// Fails if GGUF does not support the architecture, or if reading the file back would give another decoder: a file that
/// does not round-trip is never written.
pub fn gguf_model(label: &str, spec: &DecoderSpec, head_is_embedding: bool) -> Result<GgufModel> {
    let refused = |found: String| ModelError::Malformed {
        path: label.to_owned(),
        expected: "a decoder that a GGUF file can describe".into(),
        found,
    };
    let form = find(&spec.model_type).and_then(|architecture| architecture.gguf);
    let form = form.ok_or_else(|| refused(format!("a {} model, for which GGUF has no form here", spec.model_type)))?;
    let form = form.of((0..spec.layers.len()).any(|layer| spec.experts(layer).is_some()));
    let per_layer_rows = spec.per_layer_inputs.map(|inputs| inputs.vocab_size_per_layer_input);
    let spec = &DecoderSpec {
        tie_word_embeddings: head_is_embedding,
        // llama.cpp wants a row for every token.
        per_layer_inputs: spec.per_layer_inputs.map(|inputs| PerLayerInputSpec {
            vocab_size_per_layer_input: inputs.vocab_size_per_layer_input.max(spec.vocab_size),
            ..inputs
        }),
        ..spec.clone()
    };
    let writer = Writer { spec, form, per_layer_rows };
    let model = writer.model(label)?;
    if head_is_embedding && model.mamba2.is_some_and(|values| values.parts_head()) {
        return Err(refused("an embedding and an output head that are one, with factors of their own".into()));
    }
    let written = model.read_back()?;
    match first_difference(&writer.expected(), &written) {
        None => Ok(model),
        Some((field, expected, found)) => {
            Err(refused(format!("`{field}` {expected}, which a {} file would read back as {found}", form.architecture)))
        }
    }
}

impl GgufModel {
    /// Converts the values of some rows of a parameter from the checkpoint's form to the file's. `columns` is the width of
    /// a row.
    pub fn transform(&self, slot: Slot, param: Param, rows: Range<usize>, columns: usize, values: &mut [f32]) {
        if let Some(mamba2) = &self.mamba2 {
            mamba2.transform(slot, rows, columns, values);
        }
        if let Some((rotary_dim, head_dim)) = self.rotated
            && is_rotated(slot)
        {
            values.chunks_exact_mut(head_dim * columns).for_each(|head| interleave(head, rotary_dim, columns));
        }
        let Slot::Layer(_, LayerSlot::DeltaNorm | LayerSlot::ALog | LayerSlot::OutProj) = slot else {
            if self.norm_offset != 0.0 && param == Param::Weight && slot.is_norm() {
                values.iter_mut().for_each(|value| *value += self.norm_offset);
            }
            return;
        };
        let Some((net, [tiled, rates])) = self.delta_net else { return };
        match slot {
            Slot::Layer(_, LayerSlot::ALog) if rates => {
                values.iter_mut().for_each(|value| *value = net.decay_rates.negative(*value));
            }
            Slot::Layer(_, LayerSlot::OutProj) if tiled => {
                values.chunks_exact_mut(columns).for_each(|row| tile(row, &net));
            }
            _ => {}
        }
    }

    /// Converts a number for each column of a matrix from the checkpoint's order to the file's.
    pub fn transform_columns(&self, slot: Slot, columns: &mut [f32]) {
        if let (Slot::Layer(_, LayerSlot::OutProj), Some((net, [true, _]))) = (slot, &self.delta_net) {
            tile(columns, net);
        }
    }

    /// Which rows of a parameter in the checkpoint are these rows in the file, before [`GgufModel::transform`].
    pub fn source_rows(&self, slot: Slot, rows: Range<usize>) -> Vec<Range<usize>> {
        if let (Slot::EmbedTokensPerLayer, Some(stored)) = (slot, self.per_layer_rows) {
            return padded(rows, stored);
        }
        let Slot::Layer(_, slot) = slot else { return vec![rows] };
        let Some((net, [true, _])) = self.delta_net else { return vec![rows] };
        let (first, width) = match slot {
            LayerSlot::InProjQkv | LayerSlot::Conv1d => (2 * net.key_width(), net.linear_value_head_dim),
            LayerSlot::InProjZ => (0, net.linear_value_head_dim),
            LayerSlot::InProjB | LayerSlot::InProjA | LayerSlot::DtBias | LayerSlot::ALog => (0, 1),
            _ => return vec![rows],
        };
        let mut parts = Vec::new();
        let mut row = rows.start;
        while row < rows.end {
            let (source, len) = match row.checked_sub(first) {
                None => (row, first - row),
                Some(row) => {
                    let source = of_tile(&net, row / width) * width + row % width;
                    (first + source, width - row % width)
                }
            };
            let len = len.min(rows.end - row);
            parts.push(source..source + len);
            row += len;
        }
        parts
    }

    /// What a file says of a tensor.
    pub fn header(&self, stack: &Stack, dtype: Dtype) -> TensorHeader {
        let mut shape = stack.shape();
        // llama.cpp has convolutions over channels as matrices.
        if let (Slot::Layer(_, LayerSlot::Conv1d), [channels, 1, kernel]) = (stack.parameters[0].slot, &shape[..]) {
            shape = vec![*channels, *kernel];
        }
        if let (Slot::Layer(_, slot), Some(mamba2)) = (stack.parameters[0].slot, &self.mamba2) {
            shape = mamba2.stored_shape(slot).unwrap_or(shape);
        }
        TensorHeader { name: stack.tensor.clone(), shape, dtype }
    }

    /// The description that a reader of the file would get.
    fn read_back(&self) -> Result<DecoderSpec> {
        let headers: Vec<TensorHeader> = self.tensors.iter().map(|stack| self.header(stack, Dtype::F32)).collect();
        let sketch = Gguf::sketch(&self.metadata, &headers, &self.settings)?;
        super::describe(&sketch).map(|(description, _)| description.spec)
    }
}

/// Rows of a matrix of which only the first are stored; the others are the first one.
fn padded(rows: Range<usize>, stored: usize) -> Vec<Range<usize>> {
    let own = rows.start.min(stored)..rows.end.min(stored);
    let further = rows.len() - own.len();
    let own = (further == 0 || !own.is_empty()).then_some(own);
    own.into_iter().chain(std::iter::repeat_n(0..1, further)).collect()
}

/// Permutes the rows of a head so that row `j` is next to row `j + rotary_dim / 2`.
fn interleave(head: &mut [f32], rotary_dim: usize, columns: usize) {
    let (half, original) = (rotary_dim / 2, head[..rotary_dim * columns].to_vec());
    let row = |index: usize| &original[index * columns..(index + 1) * columns];
    for (index, target) in head[..rotary_dim * columns].chunks_exact_mut(columns).enumerate() {
        target.copy_from_slice(row(index / 2 + index % 2 * half));
    }
}

/// The value head of a checkpoint, which has those of a key head side by side, that is at `place` if they are tiled.
fn of_tile(net: &DeltaNetSpec, place: usize) -> usize {
    let (key_head, index) = (place % net.linear_num_key_heads, place / net.linear_num_key_heads);
    key_head * net.values_per_key() + index
}

/// Permutes the values of a row that belong to value heads so that the heads are tiled.
fn tile(row: &mut [f32], net: &DeltaNetSpec) {
    let (width, original) = (net.linear_value_head_dim, row.to_vec());
    for (place, target) in row.chunks_exact_mut(width).enumerate() {
        target.copy_from_slice(&original[of_tile(net, place) * width..][..width]);
    }
}

struct Writer<'a> {
    spec: &'a DecoderSpec,
    form: GgufForm,
    /// Rows of the checkpoint's embedding for each layer.
    per_layer_rows: Option<usize>,
}

impl Writer<'_> {
    fn model(&self, label: &str) -> Result<GgufModel> {
        let mut model = GgufModel {
            metadata: Metadata::new(label.to_owned()),
            tensors: self.tensors(),
            settings: Vec::new(),
            notes: Vec::new(),
            rotated: self.rotates().then(|| (self.spec.rope[0].rotary_dim, self.attention().head_dim)),
            norm_offset: if self.form.offset_included { self.spec.norm.weight_offset } else { 0.0 },
            delta_net: self.spec.delta_nets.first().map(|net| (*net, self.changes(net))),
            mamba2: Mamba2Values::new(self.spec, self.form),
            per_layer_rows: self.per_layer_rows,
        };
        model.metadata.insert("general.architecture", self.form.architecture);
        self.sizes(&mut model);
        if self.form.layer_kinds || self.form.streams {
            self.layer_kinds(&mut model);
        }
        streams::write(self.spec, self.form, &mut model);
        self.numbers(&mut model);
        self.mixture(&mut model);
        self.delta_nets(&mut model);
        self.short_convs(&mut model);
        self.latent(&mut model);
        mamba2::write(self.spec, self.form, &mut model.metadata, &mut model.notes);
        self.windows(&mut model);
        self.biases(&mut model);
        if let Some(table) = self.spec.rope.first() {
            self.rope(table, &mut model);
        }
        Ok(model)
    }

    /// Whether value heads must be tiled, and rates of decay brought into another form.
    fn changes(&self, net: &DeltaNetSpec) -> [bool; 2] {
        let tiled = self.form.delta_nets.is_some_and(|form| form.tiled) && net.values_per_key() > 1;
        let rates = net.decay_rates == DecayRates::Logarithm;
        [tiled && net.value_heads == ValueHeadOrder::ByKeyHead, rates]
    }

    /// Keys of gated delta nets; those of a second kind do not round-trip.
    fn delta_nets(&self, model: &mut GgufModel) {
        let (Some(net), Some(form)) = (self.spec.delta_nets.first(), self.form.delta_nets) else { return };
        let sizes =
            [net.linear_conv_kernel_dim, net.linear_key_head_dim, net.linear_num_key_heads, net.linear_num_value_heads];
        for ((_, suffix), size) in DELTA_NET_SIZES.into_iter().zip(sizes) {
            model.metadata.insert(self.key(suffix), size as u32);
        }
        model.metadata.insert(self.key(VALUE_WIDTH), net.value_width() as u32);
        let recurrent: Vec<bool> =
            (0..self.spec.layers.len()).map(|layer| self.spec.delta_net(layer).is_some()).collect();
        model.metadata.insert(self.key(RECURRENT_LAYERS), &recurrent[..]);
        // For readers that do not know the list.
        if let Some(first) = recurrent.iter().position(|recurrent| !recurrent)
            && recurrent.iter().enumerate().all(|(layer, recurrent)| *recurrent != ((layer + 1) % (first + 1) == 0))
        {
            model.metadata.insert(self.key(FULL_ATTENTION_INTERVAL), first as u32 + 1);
        }
        if form.rope_sections {
            model.metadata.insert(self.key("rope.dimension_sections"), &ROPE_SECTIONS[..]);
        }
        if net.linear_key_head_dim != net.linear_value_head_dim {
            let architecture = self.form.architecture;
            model.notes.push(format!(
                "llama.cpp does not load a {architecture} model whose recurrent layers have keys of another width than \
                 values"
            ));
        }
    }

    /// The only kind of attention, because keys can describe only one; a decoder with several does not round-trip.
    fn attention(&self) -> &AttentionSpec {
        &self.spec.attentions[0]
    }

    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.form.architecture)
    }

    /// The first mixture of experts; layers with others do not round-trip.
    fn experts(&self) -> Option<&ExpertsSpec> {
        (0..self.spec.layers.len()).find_map(|layer| self.spec.experts(layer))
    }

    /// Keys of a mixture of experts.
    fn mixture(&self, model: &mut GgufModel) {
        let (Some(experts), Some(form)) = (self.experts(), self.form.experts) else { return };
        let router = &experts.router;
        let mut size = |suffix: &str, size: usize| model.metadata.insert(self.key(suffix), size as u32);
        size("expert_count", experts.num_experts);
        size("expert_used_count", experts.num_experts_per_tok);
        size("expert_feed_forward_length", experts.intermediate_size);
        if let Some(shared) = experts.shared_expert.filter(|_| !form.beside_dense) {
            size("expert_shared_feed_forward_length", shared.intermediate_size);
            size("expert_shared_count", (shared.intermediate_size / experts.intermediate_size).max(1));
        }
        if let Some(groups) = router.groups {
            size("expert_group_count", groups.n_group);
            size("expert_group_used_count", groups.topk_group);
        }
        let is_sparse = |layer: usize| self.spec.experts(layer).is_some();
        let dense = (0..self.spec.layers.len()).take_while(|layer| !is_sparse(*layer)).count();
        size("leading_dense_block_count", dense);
        // Other layers have experts all or none; this is read for ERNIE 4.5.
        size("interleave_moe_layer_step", 1);
        size("expert_gating_func", gating_func(router.scoring_func).0 as usize);
        model.metadata.insert(self.key("expert_weights_norm"), router.norm_topk_prob);
        model.metadata.insert(self.key("expert_weights_scale"), router.routed_scaling_factor as f32);
        let architecture = self.form.architecture;
        let first = if form.leading_dense { dense } else { 0 };
        let may_lack = self.form.mamba2 == Some(GgufMamba2::OneHalf);
        if !may_lack && !(first..self.spec.layers.len()).all(is_sparse) {
            model.notes.push(format!("llama.cpp expects experts in all layers of a {architecture} model"));
        }
        if self.form.short_convs && router.routed_scaling_factor != 1.0 {
            model.notes.push(format!(
                "llama.cpp takes 1 for the factor of experts' weights in {architecture} models, not {}",
                router.routed_scaling_factor
            ));
        }
        if matches!(router.scoring_func, ScoringFunction::Sparsemixer { .. }) {
            model.notes.push("llama.cpp weights the chosen experts by a softmax, not one after the other".into());
        } else if router.norm_topk_prob != form.norm_topk_prob {
            model.notes.push(format!("llama.cpp may normalise the weights of experts of {architecture} as usual"));
        }
    }

    /// Whether query and key rows must be permuted.
    fn rotates(&self) -> bool {
        self.form.neighbours && self.spec.rope.iter().all(|table| table.pairing == RopePairing::HalfSplit)
    }

    fn names(&self) -> TensorNames {
        names_without_file(self.form)
    }

    fn tensors(&self) -> Vec<Stack> {
        let (spec, names) = (self.spec, self.names());
        let mut tensors = stacks(spec, spec.tie_word_embeddings, |slot, param| names.tensor(slot, param, "", ""));
        tensors.extend(streams::repeated(spec, self.form, &names, &tensors));
        tensors.sort_by_key(|stack| (stack.parameters[0].slot, stack.parameters[0].param));
        tensors
    }

    fn sizes(&self, model: &mut GgufModel) {
        let (spec, attention) = (self.spec, self.attention());
        // A file without dense layers has the width of its experts there.
        let experts = self.experts().map_or(0, |experts| experts.intermediate_size);
        let intermediate_size = spec.layers.iter().find_map(|layer| self.dense_width(layer)).unwrap_or(experts);
        for (suffix, size) in [
            ("vocab_size", spec.vocab_size),
            ("context_length", spec.max_position_embeddings),
            ("embedding_length", spec.hidden_size),
            ("block_count", spec.layers.len()),
            ("feed_forward_length", intermediate_size),
            ("attention.head_count", attention.num_attention_heads),
            ("attention.key_length", attention.head_dim),
            ("attention.value_length", attention.value_head_dim()),
        ] {
            // Sizes in configs are below 2^31, so the cast is lossless.
            model.metadata.insert(self.key(suffix), size as u32);
        }
        let (key, heads) = (self.key("attention.head_count_kv"), attention.num_key_value_heads);
        if self.form.short_convs {
            let heads = |layer| if spec.attention(layer).is_some() { heads as i32 } else { 0 };
            let heads: Vec<i32> = (0..spec.layers.len()).map(heads).collect();
            model.metadata.insert(key, &heads[..]);
        } else {
            model.metadata.insert(key, heads as u32);
        }
    }

    /// Keys of latent attention. Keys and values have one projection in the file, as in files of early 2025, so that its rows
    /// can be quantized as they are.
    fn latent(&self, model: &mut GgufModel) {
        let Some(latent) = self.attention().latent else { return };
        model.metadata.insert(self.key(KV_RANK), latent.kv_lora_rank as u32);
        if let Some(rank) = latent.q_lora_rank {
            model.metadata.insert(self.key(QUERY_RANK), rank as u32);
        }
        let architecture = self.form.architecture;
        let (layers, vocab) = (self.spec.layers.len(), self.spec.vocab_size);
        let known = [26, 27].contains(&layers) || (layers, vocab) == (48, 128_256);
        if architecture == DEEPSEEK && latent.q_lora_rank.is_none() != known {
            model.notes.push(format!(
                "llama.cpp takes a {architecture} model of {layers} layers to have queries {}, and does not load this one",
                if known { "without a projection before theirs" } else { "with a projection before theirs" }
            ));
        }
    }

    /// DeepSeek's factor of scores by YaRN as the strength of its logarithm; `None` if there is no such factor.
    fn score_strength(&self) -> Option<f64> {
        let RopeScaling::Yarn { factor, .. } = self.spec.rope.first()?.scaling else { return None };
        let attention = self.attention();
        let times = attention.scale * (attention.head_dim as f64).sqrt();
        let strength = (times.sqrt() - 1.0) / (yarn_mscale(factor, 1.0) - 1.0);
        (attention.latent.is_some() && strength.is_finite() && strength > 1e-6).then_some(strength)
    }

    /// Keys of gated short convolutions; those of a second kind do not round-trip.
    fn short_convs(&self, model: &mut GgufModel) {
        let Some(conv) = self.spec.short_convs.first() else { return };
        model.metadata.insert(self.key(CONVOLVED_TOKENS), conv.conv_l_cache as u32);
        if conv.conv_bias {
            let architecture = self.form.architecture;
            model.notes.push(format!("llama.cpp does not load a {architecture} model whose convolutions have biases"));
        }
    }

    /// Width of a layer's dense network, or of what has its names beside experts.
    fn dense_width(&self, layer: &LayerSpec) -> Option<usize> {
        match layer.feed_forward {
            FeedForward::Dense { intermediate_size, .. } => Some(intermediate_size),
            FeedForward::None => None,
            FeedForward::Experts(experts) => {
                let beside = self.form.experts.is_some_and(|form| form.beside_dense);
                experts.shared_expert.filter(|_| beside).map(|shared| shared.intermediate_size)
            }
        }
    }

    /// Keys of what differs between full and sliding layers, and between layers that share keys and values and others.
    fn layer_kinds(&self, model: &mut GgufModel) {
        let spec = self.spec;
        let layers = || 0..spec.layers.len();
        let shared = layers().filter(|layer| spec.kv_shared_with(*layer).is_some()).count();
        let width = spec.per_layer_inputs.map_or(0, |inputs| inputs.hidden_size_per_layer_input);
        let mut sizes = vec![("attention.shared_kv_layers", shared), ("embedding_length_per_layer_input", width)];
        if let Some(sliding) = spec.attentions.get(1) {
            sizes.push(("attention.key_length_swa", sliding.head_dim));
            sizes.push(("attention.value_length_swa", sliding.head_dim));
        }
        if let Some(sliding) = spec.rope.get(1).filter(|_| self.form.layer_kinds) {
            sizes.push(("rope.dimension_count_swa", sliding.rotary_dim));
        }
        for (suffix, size) in sizes {
            model.metadata.insert(self.key(suffix), size as u32);
        }
        let widths = layers().map(|layer| self.dense_width(&spec.layers[layer]).unwrap_or(0));
        let heads = layers().map(|layer| spec.attention(layer).map_or(0, |attention| attention.num_key_value_heads));
        for (suffix, sizes) in
            [("feed_forward_length", widths.collect::<Vec<_>>()), ("attention.head_count_kv", heads.collect())]
        {
            if sizes.iter().any(|size| *size != sizes[0]) {
                let sizes: Vec<i32> = sizes.into_iter().map(|size| size as i32).collect();
                model.metadata.insert(self.key(suffix), &sizes[..]);
            }
        }
    }

    fn numbers(&self, model: &mut GgufModel) {
        let (spec, attention) = (self.spec, self.attention());
        let eps = match spec.norm.kind {
            NormKind::Rms => "attention.layer_norm_rms_epsilon",
            NormKind::Layer => "attention.layer_norm_epsilon",
        };
        if self.form.parallel_residual {
            model.metadata.insert(self.key(PARALLEL_RESIDUAL), spec.block.parallel);
        }
        let mut number = |suffix: &str, value: f64| model.metadata.insert(self.key(suffix), value as f32);
        number(eps, spec.norm.eps);
        if let Some(cap) = attention.logit_softcapping {
            number("attn_logit_softcapping", cap);
        }
        if let Some(cap) = spec.final_logit_softcapping {
            number("final_logit_softcapping", cap);
        }
        if let Some(scale) = attention.query_position_scale {
            number(TEMPERATURE_SCALE, scale.beta);
        }
        let by_heads = (spec.hidden_size / attention.num_attention_heads) as f64;
        let width = scaled_width(self.form, spec.layers.len() as u64, attention.head_dim as f64, by_heads);
        let derived = if self.form.layer_kinds || self.form.streams { 1.0 } else { width.powf(-0.5) };
        if self.form.logit_scale {
            number("logit_scale", 1.0 / spec.logits_scaling);
        }
        if self.form.multipliers {
            number("embedding_scale", spec.embedding_multiplier);
            number("residual_scale", spec.residual_multiplier);
            number("logit_scale", spec.logits_scaling);
            number("attention.scale", attention.scale);
        } else if (attention.scale / derived - 1.0).abs() > 1e-6
            && self.form.mamba2 != Some(GgufMamba2::BesideAttention)
            && self.score_strength().is_none()
        {
            number("attention.scale", attention.scale);
            model.notes.push(format!("llama.cpp derives its own attention scale, not {}", attention.scale));
        }
    }

    fn windows(&self, model: &mut GgufModel) {
        let Some(window) = mixers(self.spec).find_map(|(window, _)| window) else { return };
        model.metadata.insert(self.key("attention.sliding_window"), window as u32);
        let sliding: Vec<bool> = mixers(self.spec).map(|(window, _)| window.is_some()).collect();
        if sliding.contains(&false) {
            model.metadata.insert(self.key("attention.sliding_window_pattern"), &sliding[..]);
        }
        if !self.form.llama_cpp.windows && window < self.spec.max_position_embeddings {
            model
                .notes
                .push(format!("llama.cpp lets a {} model attend beyond its sliding window", self.form.architecture));
        }
    }

    /// Biases are stored as tensors. llama.cpp does not load files with biases that it does not support.
    fn biases(&self, model: &mut GgufModel) {
        let (spec, supports) = (self.spec, self.form.llama_cpp);
        let biased = |layer: &LayerSpec| matches!(layer.feed_forward, FeedForward::Dense { bias: true, .. });
        let mlp = spec.layers.iter().any(biased);
        if (self.attention().output_bias && !supports.output_bias) || (mlp && !supports.mlp_bias) {
            let architecture = self.form.architecture;
            model.notes.push(format!("llama.cpp does not load a {architecture} model with these biases"));
        }
    }

    fn rope(&self, table: &RopeSpec, model: &mut GgufModel) {
        let metadata = &mut model.metadata;
        metadata.insert(self.key("rope.dimension_count"), table.rotary_dim as u32);
        metadata.insert(self.key("rope.freq_base"), table.rope_theta as f32);
        if mixers(self.spec).all(|(_, rope)| rope.is_none()) {
            metadata.insert(self.key("rope.scaling.finetuned"), false);
        }
        if let Some(sliding) = self.spec.rope.get(1) {
            metadata.insert(self.key("rope.freq_base_swa"), sliding.rope_theta as f32);
        }
        let kind = self.key("rope.scaling.type");
        match &table.scaling {
            // Dynamic scaling has no GGUF form; reading back detects that.
            RopeScaling::Default | RopeScaling::Dynamic { .. } => {}
            RopeScaling::Linear { factor } => {
                metadata.insert(kind, "linear");
                metadata.insert(self.key("rope.scaling.factor"), *factor as f32);
            }
            RopeScaling::Yarn { .. } => self.yarn(&table.scaling, model),
            RopeScaling::Llama3 { .. } | RopeScaling::Proportional { .. } => self.rope_freqs(divisors(table), model),
            RopeScaling::FrequencyFactors { factors } => self.rope_freqs(narrow(factors), model),
            RopeScaling::Longrope {
                short_factor,
                long_factor,
                original_max_position_embeddings,
                attention_factor,
                ..
            } => {
                metadata.insert(kind, "longrope");
                let original = *original_max_position_embeddings as u32;
                metadata.insert(self.key("rope.scaling.original_context_length"), original);
                metadata.insert(self.key("rope.scaling.attn_factor"), *attention_factor as f32);
                let note =
                    "llama.cpp chooses longrope's factors by the size of its context, not by the length of a text";
                model.notes.push(note.to_owned());
                model.settings.push((ROPE_FACTORS_LONG, narrow(long_factor)));
                model.settings.push((ROPE_FACTORS_SHORT, narrow(short_factor)));
            }
        }
    }

    fn rope_freqs(&self, factors: Vec<f32>, model: &mut GgufModel) {
        if !self.form.llama_cpp.rope_freqs {
            let architecture = self.form.architecture;
            model
                .notes
                .push(format!("llama.cpp does not load a {architecture} model with RoPE scaled as in Llama 3.1"));
        }
        model.settings.push((ROPE_FREQS, factors));
    }

    fn yarn(&self, scaling: &RopeScaling, model: &mut GgufModel) {
        let RopeScaling::Yarn {
            factor, original_max_position_embeddings, beta_fast, beta_slow, attention_factor, ..
        } = scaling
        else {
            return;
        };
        let strength = self.score_strength();
        let derived = if strength.is_some() { 1.0 } else { yarn_mscale(*factor, 1.0) };
        model.metadata.insert(self.key("rope.scaling.type"), "yarn");
        let original = *original_max_position_embeddings as u32;
        model.metadata.insert(self.key("rope.scaling.original_context_length"), original);
        let mut number = |suffix: &str, value: f64| model.metadata.insert(self.key(suffix), value as f32);
        number("rope.scaling.factor", *factor);
        if let Some(strength) = strength {
            number(LOG_MULTIPLIER_KEY, strength * LOG_MULTIPLIER);
        }
        let further = (attention_factor / derived - 1.0).abs() > 1e-6;
        if further {
            number("rope.scaling.attn_factor", attention_factor / derived);
        }
        if (*beta_fast, *beta_slow) != (32.0, 1.0) {
            number("rope.scaling.yarn_beta_fast", *beta_fast);
            number("rope.scaling.yarn_beta_slow", *beta_slow);
            if !self.form.llama_cpp.yarn_ramp {
                model.notes.push(format!("llama.cpp takes 32 and 1 for YaRN's ramp, not {beta_fast} and {beta_slow}"));
            }
        }
        if further && strength.is_some() {
            model.notes.push("llama.cpp takes DeepSeek's two factors of YaRN as equal".into());
        }
    }

    /// The description that a reader must get.
    fn expected(&self) -> DecoderSpec {
        let mut spec = self.spec.clone();
        for table in &mut spec.rope {
            if matches!(table.scaling, RopeScaling::Llama3 { .. } | RopeScaling::Proportional { .. }) {
                let factors = divisors(table).into_iter().map(f64::from).collect();
                table.scaling = RopeScaling::FrequencyFactors { factors };
            }
        }
        self.form.adjust(&mut spec);
        spec
    }
}

/// Divisor of the frequency of a pair that does not turn, as llama.cpp writes it: the quotient is no angle in f32.
const NO_ROTATION: f32 = 1e30;

/// The scaling's divisor of each frequency.
fn divisors(table: &RopeSpec) -> Vec<f32> {
    let plain = RopeSpec { scaling: RopeScaling::Default, ..table.clone() };
    let divisor = |(plain, scaled): (&f32, f32)| if scaled == 0.0 { NO_ROTATION } else { plain / scaled };
    plain.inv_freq(0).iter().zip(table.inv_freq(0)).map(divisor).collect()
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|value| *value as f32).collect()
}

/// The first field in which two descriptions differ by more than f32 rounding, with both values.
fn first_difference(expected: &DecoderSpec, found: &DecoderSpec) -> Option<(String, String, String)> {
    let json = |spec: &DecoderSpec| serde_json::to_value(spec).unwrap_or_default();
    let (mut expected, mut found) = (json(expected), json(found));
    // Several names describe the same decoder, so names are not compared.
    for spec in [&mut expected, &mut found] {
        spec["model_type"] = Json::Null;
    }
    difference("", &expected, &found)
}

fn difference(at: &str, expected: &Json, found: &Json) -> Option<(String, String, String)> {
    match (expected, found) {
        (Json::Object(a), Json::Object(b)) if a.len() == b.len() => a.iter().find_map(|(field, value)| {
            let path = if at.is_empty() { field.clone() } else { format!("{at}.{field}") };
            difference(&path, value, b.get(field).unwrap_or(&Json::Null))
        }),
        (Json::Array(a), Json::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(index, (a, b))| difference(&format!("{at}[{index}]"), a, b))
        }
        (Json::Number(a), Json::Number(b)) => {
            let (a, b) = (a.as_f64()?, b.as_f64()?);
            let differs = (a - b).abs() > 1e-6 * a.abs().max(b.abs());
            differs.then(|| (at.to_owned(), a.to_string(), b.to_string()))
        }
        (a, b) => (a != b).then(|| (at.to_owned(), a.to_string(), b.to_string())),
    }
}
