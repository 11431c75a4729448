//! Keys and tensors of Mamba-2, and which layers have it.

use std::ops::Range;

use serde_json::json;

use super::config::{Config, is_zero};
use super::{File, GgufForm, ROUTER, VALUE_HEADS, VALUE_WIDTH};
use crate::Result;
use crate::format::gguf::Metadata;
use crate::layout::{LayerSlot, Slot};
use crate::spec::{
    ActivationFunction, BranchMultipliers, DecayRates, DecoderSpec, FeedForward, LayerSpec, Mamba2Multipliers,
    Mamba2Spec, Mixer,
};

/// Where llama.cpp's files of an architecture have Mamba-2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufMamba2 {
    /// In layers without key/value heads.
    InSomeLayers,
    /// In every layer, beside attention. All factors are part of the weights.
    BesideAttention,
    /// In layers without key/value heads and without a feed-forward network. Other layers have one or the other.
    OneHalf,
}

/// Integers: fields of `config.json`, key of the file.
const SIZES: [(&[&str], &str); 4] = [
    (&["mamba_n_heads", "mamba_num_heads"], VALUE_HEADS),
    (&["mamba_n_groups", "n_groups"], "ssm.group_count"),
    (&["mamba_d_state", "ssm_state_size"], "ssm.state_size"),
    (&["mamba_d_conv", "conv_kernel"], "ssm.conv_kernel"),
];
/// Biases: tensor, fields of `config.json`.
const BIASES: [(&str, &[&str]); 3] = [
    ("ssm_conv1d.bias", &["mamba_conv_bias", "use_conv_bias"]),
    ("ssm_in.bias", &["mamba_proj_bias", "use_bias"]),
    ("ssm_out.bias", &["projectors_bias"]),
];
const HEADS: &str = "attention.head_count_kv";
const INNER: &str = "feed_forward_length";

impl GgufMamba2 {
    /// Whether layers have zero for sizes of what they lack.
    pub(super) fn has_lists(self) -> bool {
        self != Self::BesideAttention
    }

    /// Adapts a description of a checkpoint to how files store it.
    pub(super) fn adjust(self, spec: &mut DecoderSpec) {
        spec.mamba2s.iter_mut().for_each(|mamba2| mamba2.decay_rates = DecayRates::Negative);
        if self != Self::BesideAttention {
            return;
        }
        spec.mamba2s.iter_mut().for_each(|mamba2| mamba2.multipliers = None);
        (spec.branch_multipliers, spec.embedding_multiplier, spec.logits_scaling) = (None, 1.0, 1.0);
        spec.attentions[0].scale = plain_scale(spec);
        for layer in &mut spec.layers {
            if let FeedForward::Dense { hidden_act: hidden_act @ ActivationFunction::ScaledSilu { .. }, .. } =
                &mut layer.feed_forward
            {
                *hidden_act = ActivationFunction::Silu;
            }
        }
    }
}

/// The usual scale of scores.
fn plain_scale(spec: &DecoderSpec) -> f64 {
    (spec.attentions[0].head_dim as f64).powf(-0.5)
}

impl Config<'_> {
    /// Settings of Mamba-2, and which layers have it.
    pub(super) fn mamba2(&mut self) -> Result<()> {
        let Some(form) = self.file.form.mamba2 else { return Ok(()) };
        if !self.fields.contains_key("num_hidden_layers") {
            // What is required is looked for afterwards.
            return Ok(());
        }
        let (file, metadata) = (self.file, self.file.metadata);
        for (fields, suffix) in SIZES {
            let size = file.required_size(suffix)?;
            fields.iter().for_each(|field| self.set(field, &file.key(suffix), json!(size)));
        }
        let (heads, width) = (file.required_size(VALUE_HEADS)?, file.required_size(VALUE_WIDTH)?);
        if width % heads != 0 {
            let expected = format!("a multiple of {heads} heads");
            return Err(metadata.error(&file.key(VALUE_WIDTH), expected, width.to_string()));
        }
        for field in ["mamba_d_head", "mamba_head_dim"] {
            self.set(field, &file.key(VALUE_WIDTH), json!(width / heads));
        }
        self.set("mamba_d_ssm", &file.key(VALUE_WIDTH), json!(width));
        let layers = self.layers();
        let has = |tensor: &str| (0..layers).any(|layer| file.layer_has(layer, tensor));
        for (tensor, fields) in BIASES {
            fields.iter().for_each(|field| self.set(field, tensor, json!(has(tensor))));
        }
        self.set("mamba_rms_norm", "ssm_norm.weight", json!(has("ssm_norm.weight")));
        // llama.cpp norms what was multiplied by the gate.
        self.set("mamba_norm_before_gate", "ssm_norm.weight", json!(false));
        match form {
            GgufMamba2::BesideAttention => Ok(()),
            GgufMamba2::InSomeLayers => self.some_layers(),
            GgufMamba2::OneHalf => self.halves(layers),
        }
    }

    /// Attention or Mamba-2 in every layer, and a network, or experts, as wide as the file says.
    fn some_layers(&mut self) -> Result<()> {
        let (file, metadata) = (self.file, self.file.metadata);
        let key = file.key("rope.scaling.finetuned");
        // llama.cpp's switch for RoPE.
        if metadata.flag(&key)? != Some(false) {
            self.set("position_embedding_type", &key, json!("rope"));
        }
        if metadata.unsigned(&file.key("expert_count"))?.unwrap_or(0) == 0 {
            let width = file.required_size(INNER)?;
            self.set("shared_intermediate_size", &file.key(INNER), json!(width));
            self.set("num_local_experts", &file.key("expert_count"), json!(0));
        }
        let key = file.key(HEADS);
        match metadata.scalars(&key) {
            Ok(Some(list)) => self.layer_kinds(&key, list, |entry| if is_zero(entry) { "mamba" } else { "attention" }),
            _ => {
                let kinds = vec!["attention"; self.layers()];
                self.set("layer_types", &key, json!(kinds));
                Ok(())
            }
        }
    }

    /// What every layer is, and the widths of networks.
    fn halves(&mut self, layers: usize) -> Result<()> {
        let file = self.file;
        let (heads, widths) = (self.of_each_layer(HEADS, layers)?, self.of_each_layer(INNER, layers)?);
        let is_sparse = |layer: usize| file.layer_has(layer, &format!("{ROUTER}.weight"));
        let kind = |layer: usize| match (heads[layer], widths[layer]) {
            (0, 0) => "mamba",
            (0, _) if is_sparse(layer) => "moe",
            (0, _) => "mlp",
            _ => "attention",
        };
        let kinds: Vec<&str> = (0..layers).map(kind).collect();
        let mut dense = (0..layers).filter(|layer| kinds[*layer] == "mlp").map(|layer| widths[layer]);
        // No layer asks for the width if none has such a network.
        let width = dense.next().unwrap_or(1);
        if let Some(other) = dense.find(|other| *other != width) {
            let expected = format!("{width} in every layer without experts");
            return Err(file.metadata.error(&file.key(INNER), expected, other.to_string()));
        }
        self.set("layers_block_type", &file.key(HEADS), json!(kinds));
        self.set("intermediate_size", &file.key(INNER), json!(width));
        // llama.cpp's converter writes the key of another kind of norm.
        let eps = self.fields.get("rms_norm_eps").or_else(|| self.fields.get("layer_norm_eps")).cloned();
        if let Some(eps) = eps {
            self.set("layer_norm_epsilon", &file.key(OTHER_EPS), eps);
        }
        // Experts on a projection of the residual stream are refused where the config is read.
        for (field, suffix) in [("moe_shared_expert_intermediate_size", SHARED), ("moe_latent_size", "moe_latent_size")]
        {
            let key = file.key(suffix);
            if let Some(width) = file.metadata.unsigned(&key)?.filter(|width| *width > 0) {
                self.set(field, &key, json!(width));
            }
        }
        Ok(())
    }

    /// A list of numbers, one for each layer.
    fn of_each_layer(&self, suffix: &str, layers: usize) -> Result<Vec<u64>> {
        let (metadata, key) = (self.file.metadata, self.file.key(suffix));
        let error = |found: String| metadata.error(&key, format!("{layers} numbers, one per layer"), found);
        match metadata.scalars(&key) {
            Ok(Some(list)) if list.len() >= layers => {
                let numbers: Vec<u64> =
                    list.scalars().take(layers).filter_map(|entry| entry.to_json().as_u64()).collect();
                if numbers.len() == layers { Ok(numbers) } else { Err(error("others that are no counts".into())) }
            }
            Ok(Some(list)) => Err(error(list.len().to_string())),
            Ok(None) => Err(error("nothing".into())),
            Err(_) => Err(error("a single number".into())),
        }
    }
}

/// The key that llama.cpp requires for the eps of RMS norms where layers have one half.
const OTHER_EPS: &str = "attention.layer_norm_epsilon";
const SHARED: &str = "expert_shared_feed_forward_length";

impl File<'_> {
    /// Adds the biases of networks in layers that have nothing else.
    pub(super) fn adjust_halves(&self, spec: &mut DecoderSpec) {
        if self.form.mamba2 != Some(GgufMamba2::OneHalf) {
            return;
        }
        for (index, layer) in spec.layers.iter_mut().enumerate() {
            match &mut layer.feed_forward {
                FeedForward::Dense { bias, .. } => *bias = self.layer_has(index, "ffn_down.bias"),
                FeedForward::Experts(_) | FeedForward::None => {}
            }
        }
    }
}

/// Keys of Mamba-2; those of a second kind do not round-trip.
pub(super) fn write(spec: &DecoderSpec, form: GgufForm, metadata: &mut Metadata, notes: &mut Vec<String>) {
    let (Some(place), Some(mamba2)) = (form.mamba2, spec.mamba2s.first()) else { return };
    let key = |suffix: &str| format!("{}.{suffix}", form.architecture);
    let sizes = [mamba2.mamba_n_heads, mamba2.mamba_n_groups, mamba2.mamba_d_state, mamba2.mamba_d_conv];
    for ((_, suffix), size) in SIZES.into_iter().zip(sizes) {
        metadata.insert(key(suffix), size as u32);
    }
    metadata.insert(key(VALUE_WIDTH), mamba2.inner_width() as u32);
    let architecture = form.architecture;
    let mut note = |is: bool, what: &str| {
        notes.extend(is.then(|| format!("llama.cpp does not load a {architecture} model {what}")));
    };
    note(mamba2.input_bias || mamba2.output_bias, "whose Mamba-2 projections have biases");
    note(!mamba2.conv_bias, "whose convolutions have no biases");
    if place == GgufMamba2::InSomeLayers {
        note(mamba2.inner_width() != 2 * spec.hidden_size, "whose Mamba-2 is not twice as wide as the residual stream");
    }
    if mamba2.least_step > 0.0 || mamba2.largest_step.is_some() {
        notes.push("llama.cpp does not limit the steps of Mamba-2".into());
    }
    let has_attention = |layer: &LayerSpec| matches!(layer.mixer, Mixer::Attention { .. });
    let heads =
        |layer: &LayerSpec| if has_attention(layer) { spec.attentions[0].num_key_value_heads as i32 } else { 0 };
    let width = |layer: &LayerSpec| match layer.feed_forward {
        FeedForward::Dense { intermediate_size, .. } => intermediate_size as i32,
        FeedForward::Experts(experts) => experts.intermediate_size as i32,
        FeedForward::None => 0,
    };
    if place.has_lists() {
        let heads: Vec<i32> = spec.layers.iter().map(heads).collect();
        metadata.insert(key(HEADS), &heads[..]);
    }
    if place == GgufMamba2::OneHalf {
        let widths: Vec<i32> = spec.layers.iter().map(width).collect();
        metadata.insert(key(INNER), &widths[..]);
        metadata.insert(key(OTHER_EPS), spec.norm.eps as f32);
    }
}

/// How the values of a checkpoint change in a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mamba2Values {
    spec: Mamba2Spec,
    /// Factors that are part of the weights in the file, if they are.
    factors: Option<Factors>,
}

/// Factors of modules.
#[derive(Debug, Clone, Copy)]
struct Factors {
    embedding: f64,
    head: f64,
    keys: f64,
    gate: f64,
    branches: BranchMultipliers,
    inputs: Mamba2Multipliers,
}

impl Mamba2Values {
    pub(super) fn new(spec: &DecoderSpec, form: GgufForm) -> Option<Self> {
        let (place, mamba2) = (form.mamba2?, *spec.mamba2s.first()?);
        let gate = |layer: &LayerSpec| match layer.feed_forward {
            FeedForward::Dense { hidden_act: ActivationFunction::ScaledSilu { gate_multiplier }, .. } => {
                gate_multiplier
            }
            _ => 1.0,
        };
        let factors = Factors {
            embedding: spec.embedding_multiplier,
            head: 1.0 / spec.logits_scaling,
            keys: spec.attentions[0].scale / plain_scale(spec),
            gate: spec.layers.first().map_or(1.0, gate),
            branches: spec.branch_multipliers(),
            inputs: mamba2.multipliers(),
        };
        Some(Self { spec: mamba2, factors: (place == GgufMamba2::BesideAttention).then_some(factors) })
    }

    /// Whether the head has another factor than the embedding, so that they cannot be one tensor in the file.
    pub(super) fn parts_head(&self) -> bool {
        self.factors.is_some_and(|factors| factors.embedding != factors.head)
    }

    /// The shape of a tensor in the file, where it is another one: matrices with a row for each head or group.
    pub(super) fn stored_shape(&self, slot: LayerSlot) -> Option<Vec<usize>> {
        let (heads, groups) = (self.spec.mamba_n_heads, self.spec.mamba_n_groups);
        match slot {
            LayerSlot::ALog | LayerSlot::SkipD => Some(vec![heads, 1]),
            LayerSlot::MambaNorm => Some(vec![groups, self.spec.inner_width() / groups]),
            _ => None,
        }
    }

    /// Changes `values` of a parameter, rows of `columns` values.
    pub(super) fn transform(&self, slot: Slot, rows: Range<usize>, columns: usize, values: &mut [f32]) {
        if let Slot::Layer(_, LayerSlot::ALog) = slot {
            values.iter_mut().for_each(|value| *value = self.spec.decay_rates.negative(*value));
        }
        let Some(factors) = self.factors else { return };
        let all = match slot {
            Slot::EmbedTokens => factors.embedding,
            Slot::LmHead => factors.head,
            Slot::Layer(_, LayerSlot::KProj) => factors.keys,
            Slot::Layer(_, LayerSlot::OProj) => factors.branches.attention,
            Slot::Layer(_, LayerSlot::OutProj) => factors.branches.mamba2,
            Slot::Layer(_, LayerSlot::GateProj) => factors.gate,
            Slot::Layer(_, LayerSlot::DownProj) => factors.branches.feed_forward,
            Slot::Layer(_, LayerSlot::InProjZxbcdt) => {
                for (row, values) in rows.zip(values.chunks_exact_mut(columns)) {
                    let factor = self.of_input(row, &factors.inputs) as f32;
                    values.iter_mut().for_each(|value| *value *= factor);
                }
                return;
            }
            _ => return,
        };
        if all != 1.0 {
            values.iter_mut().for_each(|value| *value *= all as f32);
        }
    }

    /// The factor of a row of the input projection.
    fn of_input(&self, row: usize, inputs: &Mamba2Multipliers) -> f64 {
        let (inner, state) = (self.spec.inner_width(), self.spec.state_width());
        let parts = [(inner, inputs.z), (inner, inputs.x), (state, inputs.b), (state, inputs.c)];
        let mut end = 0;
        for (width, factor) in parts {
            end += width;
            if row < end {
                return factor;
            }
        }
        inputs.dt
    }
}
