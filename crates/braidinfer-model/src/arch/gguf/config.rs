//! Converting the keys of a GGUF file to an equivalent `config.json`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{
    CONVOLVED_TOKENS, DEEPSEEK, FULL_ATTENTION_INTERVAL, File, GgufForm, GgufMamba2, PARALLEL_RESIDUAL,
    RECURRENT_LAYERS, ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, TEMPERATURE_SCALE, VALUE_HEADS, VALUE_WIDTH, ends_text,
    sigmoid_router,
};
use crate::arch::MAX_LAYERS;
use crate::format::gguf::{Array, Scalar};
use crate::rope::yarn_mscale;
use crate::{JsonFile, Result};

/// Integers: field of `config.json`, key of the file.
const SIZES: [(&str, &str); 4] = [
    ("max_position_embeddings", "context_length"),
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("sliding_window", "attention.sliding_window"),
];
/// Integers for which a file may have one value or one per layer.
const LAYER_SIZES: [(&str, &str); 3] = [
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
];
/// Floating-point numbers.
const NUMBERS: [(&str, &str); 12] = [
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("norm_eps", "attention.layer_norm_rms_epsilon"),
    ("layer_norm_eps", "attention.layer_norm_epsilon"),
    ("rope_theta", "rope.freq_base"),
    ("rope_local_base_freq", "rope.freq_base_swa"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
    ("attention_multiplier", "attention.scale"),
    ("embedding_multiplier", "embedding_scale"),
    ("residual_multiplier", "residual_scale"),
    // A divisor of logits in some architectures, a factor in others.
    ("logits_scaling", "logit_scale"),
    ("logit_scale", "logit_scale"),
];
/// Sizes of mixtures of experts: the names that architectures have for a field, key of the file.
const EXPERT_SIZES: [(&[&str], &str); 5] = [
    (&["num_experts", "num_local_experts", "moe_num_experts", "n_routed_experts"], "expert_count"),
    (&["num_experts_per_tok", "moe_k", "top_k_experts"], "expert_used_count"),
    (&["moe_intermediate_size"], "expert_feed_forward_length"),
    (&["n_group"], "expert_group_count"),
    (&["topk_group"], "expert_group_used_count"),
];
/// Sizes of gated delta nets.
pub(super) const DELTA_NET_SIZES: [(&str, &str); 4] = [
    ("linear_conv_kernel_dim", "ssm.conv_kernel"),
    ("linear_key_head_dim", "ssm.state_size"),
    ("linear_num_key_heads", "ssm.group_count"),
    ("linear_num_value_heads", VALUE_HEADS),
];
/// Widths of query and key heads, and of value heads; in files whose keys and values have a projection each, those of the
/// attention that llama.cpp computes.
const KEY_WIDTH: &str = "attention.key_length";
const VALUE_HEAD_WIDTH: &str = "attention.value_length";
/// The same of the heads themselves.
const HEAD_KEY_WIDTH: &str = "attention.key_length_mla";
const HEAD_VALUE_WIDTH: &str = "attention.value_length_mla";
const ROTATED_WIDTH: &str = "rope.dimension_count";
/// Widths of the vectors that latent attention computes keys and values, and queries, from.
pub(super) const KV_RANK: &str = "attention.kv_lora_rank";
pub(super) const QUERY_RANK: &str = "attention.q_lora_rank";
/// DeepSeek's factor of scores by YaRN, times this.
pub(super) const LOG_MULTIPLIER_KEY: &str = "rope.scaling.yarn_log_multiplier";
pub(super) const LOG_MULTIPLIER: f64 = 0.1;
/// Field for the length before RoPE scaling.
const ORIGINAL_LENGTH: &str = "original_max_position_embeddings";
/// Fields whose value 0 means the architecture's default.
const SCALES: [&str; 5] =
    ["attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale"];
/// llama.cpp's default for files without `rope.freq_base`.
const DEFAULT_THETA: f64 = 10_000.0;
/// Layer counts of the largest Gemma 2 and 3, whose scores are scaled by another width than in smaller ones.
const WIDE_SCALE_LAYERS: [(&str, u64); 2] = [("gemma2", 46), ("gemma3", 62)];

/// The width by whose square root llama.cpp divides scores.
pub(super) fn scaled_width(form: GgufForm, layers: u64, head_dim: f64, width_by_heads: f64) -> f64 {
    if WIDE_SCALE_LAYERS.contains(&(form.architecture, layers)) { width_by_heads } else { head_dim }
}

/// Whether an entry of a list is zero or false.
pub(super) fn is_zero(entry: Scalar) -> bool {
    matches!(entry, Scalar::Bool(false)) || entry.to_json().as_f64() == Some(0.0)
}

/// The config equivalent to a file of `model_type`.
pub(super) fn config(file: &File, model_type: &str) -> Result<JsonFile> {
    let mut config = Config { file, fields: Map::new(), keys: BTreeMap::new() };
    config.set("model_type", "general.architecture", json!(model_type));
    for (field, suffix) in SIZES {
        let key = file.key(suffix);
        if let Some(size) = file.metadata.unsigned(&key)? {
            config.set(field, &key, json!(size));
        }
    }
    for (field, suffix) in LAYER_SIZES {
        // What may differ between layers is read where their kinds are known.
        let by_half = file.form.mamba2 == Some(GgufMamba2::OneHalf) && field == "intermediate_size";
        let by_layer = file.form.streams && field == "intermediate_size";
        if !(file.form.layer_kinds || by_half || by_layer) || field == "num_attention_heads" {
            config.layer_size(field, &file.key(suffix))?;
        }
    }
    for (field, suffix) in NUMBERS {
        let key = file.key(suffix);
        match file.metadata.number(&key)? {
            None => {}
            // Zero means "none": no softcap, and for scales llama.cpp's derived value.
            Some(0.0) if field.ends_with("softcapping") => config.set(field, &key, Value::Null),
            Some(0.0) if SCALES.contains(&field) => {}
            Some(number) if number <= 0.0 => {
                return Err(file.metadata.error(&key, "a number above zero", number.to_string()));
            }
            Some(number) => config.set(field, &key, json!(number)),
        }
    }
    config.next_token_layers()?;
    config.experts()?;
    if file.form.layer_kinds {
        config.kinds_of_layers()?;
    }
    if file.form.streams {
        config.streams()?;
    }
    config.mamba2()?;
    config.require()?;
    config.delta_nets()?;
    config.short_convs()?;
    if !config.fields.contains_key("num_key_value_heads") {
        let heads = config.fields["num_attention_heads"].clone();
        config.set("num_key_value_heads", &file.key("attention.head_count_kv"), heads);
    }
    match (file.form.layer_kinds, file.form.latent) {
        (true, _) => {}
        (false, true) => config.latent()?,
        (false, false) => {
            config.head_dim()?;
            config.windows()?;
        }
    }
    config.vocabulary()?;
    config.rope()?;
    if file.form.layer_kinds {
        config.rope_by_kind()?;
    }
    config.scales();
    config.end_tokens()?;
    config.require_epsilon()?;
    Ok(JsonFile::from_fields(file.metadata.path().to_owned(), config.fields, config.keys))
}

pub(super) struct Config<'a> {
    pub(super) file: &'a File<'a>,
    pub(super) fields: Map<String, Value>,
    /// The GGUF key of each field, for messages.
    keys: BTreeMap<String, String>,
}

impl Config<'_> {
    pub(super) fn set(&mut self, field: &str, key: &str, value: Value) {
        self.fields.insert(field.to_owned(), value);
        self.keys.insert(field.to_owned(), key.to_owned());
    }

    fn number(&self, field: &str) -> Option<f64> {
        self.fields.get(field)?.as_f64()
    }

    /// A number that may be a list with one entry per layer; all entries must be equal.
    fn layer_size(&mut self, field: &str, key: &str) -> Result<()> {
        let metadata = self.file.metadata;
        let Ok(list) = metadata.scalars(key) else {
            let size = metadata.unsigned(key)?;
            self.set(field, key, json!(size));
            return Ok(());
        };
        let Some(list) = list else { return Ok(()) };
        let form = &self.file.form;
        let has_lists = form.short_convs || form.mamba2.is_some_and(GgufMamba2::has_lists);
        let may_be_zero = has_lists && field == "num_key_value_heads";
        let counts = || list.scalars().filter(|size| !(may_be_zero && is_zero(*size)));
        if may_be_zero && counts().next().is_none() {
            return Ok(());
        }
        let size = counts().next().filter(|first| counts().all(|size| size == *first));
        let size = size.ok_or_else(|| {
            let found = format!("{} entries that differ", list.len());
            metadata.error(key, "the same number for every layer", found)
        })?;
        self.set(field, key, size.to_json());
        Ok(())
    }

    /// Layers at the end of the file that predict a token after the next are left out.
    fn next_token_layers(&mut self) -> Result<()> {
        let heads = self.file.metadata.unsigned(&self.file.key("nextn_predict_layers"))?.unwrap_or(0);
        if let Some(layers) = self.fields.get("num_hidden_layers").and_then(Value::as_u64) {
            let key = self.file.key("block_count");
            self.set("num_hidden_layers", &key, json!(layers.saturating_sub(heads)));
        }
        Ok(())
    }

    /// Settings of gated delta nets, and which layers have one.
    fn delta_nets(&mut self) -> Result<()> {
        if self.file.form.delta_nets.is_none() {
            return Ok(());
        }
        let (file, metadata) = (self.file, self.file.metadata);
        let (heads, width) = (file.required_size(VALUE_HEADS)?, file.required_size(VALUE_WIDTH)?);
        if width % heads != 0 {
            let expected = format!("a multiple of {heads} heads");
            return Err(metadata.error(&self.file.key(VALUE_WIDTH), expected, width.to_string()));
        }
        for (field, suffix) in DELTA_NET_SIZES {
            self.set(field, &file.key(suffix), json!(file.required_size(suffix)?));
        }
        self.set("linear_value_head_dim", &self.file.key(VALUE_WIDTH), json!(width / heads));
        let key = self.file.key(FULL_ATTENTION_INTERVAL);
        if let Some(interval) = metadata.unsigned(&key)?.filter(|interval| *interval > 0) {
            self.set("full_attention_interval", &key, json!(interval));
        }
        let key = self.file.key(RECURRENT_LAYERS);
        let Some(list) = metadata.scalars(&key)? else { return Ok(()) };
        self.layer_kinds(&key, list, |entry| if is_zero(entry) { "full_attention" } else { "linear_attention" })
    }

    /// Settings of gated short convolutions, and which layers have one.
    fn short_convs(&mut self) -> Result<()> {
        if !self.file.form.short_convs {
            return Ok(());
        }
        let (file, metadata) = (self.file, self.file.metadata);
        self.set("conv_L_cache", &file.key(CONVOLVED_TOKENS), json!(file.required_size(CONVOLVED_TOKENS)?));
        // Files have the inner width as it is.
        self.set("block_auto_adjust_ff_dim", &self.file.key("feed_forward_length"), json!(false));
        let key = self.file.key("attention.head_count_kv");
        let Ok(Some(list)) = metadata.scalars(&key) else { return Ok(()) };
        self.layer_kinds(&key, list, |entry| if is_zero(entry) { "conv" } else { "full_attention" })
    }

    /// Number of layers, which has to be known, and is checked afterwards.
    pub(super) fn layers(&self) -> usize {
        self.fields["num_hidden_layers"].as_u64().unwrap_or(0).min(MAX_LAYERS as u64) as usize
    }

    /// Sets `layer_types` by a list with one entry for each layer in the file.
    pub(super) fn layer_kinds(&mut self, key: &str, list: &Array, kind: impl Fn(Scalar) -> &'static str) -> Result<()> {
        let layers = self.layers();
        if list.len() < layers {
            let expected = format!("{layers} entries, one per layer");
            return Err(self.file.metadata.error(key, expected, list.len().to_string()));
        }
        let kinds: Vec<&str> = list.scalars().take(layers).map(kind).collect();
        self.set("layer_types", key, json!(kinds));
        Ok(())
    }

    /// Settings of a mixture of experts. Which layers have one is told by their tensors, so that here all have.
    fn experts(&mut self) -> Result<()> {
        let Some(form) = self.file.form.experts else { return Ok(()) };
        let metadata = self.file.metadata;
        for (fields, suffix) in EXPERT_SIZES {
            let key = self.file.key(suffix);
            let size = metadata.unsigned(&key)?.filter(|size| *size > 0);
            let (Some(field), Some(size)) = (fields.first(), size) else { continue };
            self.set(field, &key, json!(size));
            for alias in &fields[1..] {
                self.set(alias, &key, json!(size));
            }
        }
        let key = self.file.key("expert_weights_norm");
        let norm_topk_prob = metadata.flag(&key)?.unwrap_or(form.norm_topk_prob);
        self.set("norm_topk_prob", &key, json!(norm_topk_prob));
        let key = self.file.key("expert_weights_scale");
        if let Some(scale) = metadata.number(&key)?.filter(|scale| *scale != 0.0) {
            self.set("routed_scaling_factor", &key, json!(scale));
        }
        for (field, value) in [("first_k_dense_replace", 0), ("moe_layer_start_index", 0), ("num_dense_layers", 0)] {
            self.set(field, &self.file.key("leading_dense_block_count"), json!(value));
        }
        Ok(())
    }

    /// Requires the main sizes, because GGUF has no class defaults.
    fn require(&self) -> Result<()> {
        let required = SIZES[..3].iter().chain(&LAYER_SIZES[..2]);
        match required.into_iter().find(|(field, _)| !self.fields.contains_key(*field)) {
            Some((_, suffix)) => {
                Err(self.file.metadata.error(&self.file.key(suffix), "a positive whole number", "nothing"))
            }
            None => Ok(()),
        }
    }

    fn require_epsilon(&self) -> Result<()> {
        if ["rms_norm_eps", "layer_norm_eps"].iter().any(|field| self.fields.contains_key(*field)) {
            return Ok(());
        }
        let key = self.file.key("attention.layer_norm_rms_epsilon");
        Err(self.file.metadata.error(&key, "a number above zero", "nothing"))
    }

    /// Widths of latent attention. Where keys and values have a projection each, files give the widths of the attention that
    /// llama.cpp computes, which has one key head, and others for the heads themselves.
    fn latent(&mut self) -> Result<()> {
        let (file, metadata) = (self.file, self.file.metadata);
        let size = |suffix: &str| Ok(metadata.unsigned(&file.key(suffix))?.filter(|size| *size > 0));
        let of_heads = size(HEAD_KEY_WIDTH)?.is_some();
        let [keys, values] = if of_heads { [HEAD_KEY_WIDTH, HEAD_VALUE_WIDTH] } else { [KEY_WIDTH, VALUE_HEAD_WIDTH] };
        let (rotated, width) = (file.required_size(ROTATED_WIDTH)?, file.required_size(keys)?);
        if width <= rotated {
            let expected = format!("more than {rotated}, the part that is rotated");
            return Err(metadata.error(&file.key(keys), expected, width.to_string()));
        }
        self.set("qk_rope_head_dim", &file.key(ROTATED_WIDTH), json!(rotated));
        self.set("qk_nope_head_dim", &file.key(keys), json!(width - rotated));
        self.set("kv_lora_rank", &file.key(KV_RANK), json!(file.required_size(KV_RANK)?));
        // An explicit null means that queries have one projection.
        self.set("q_lora_rank", &file.key(QUERY_RANK), json!(size(QUERY_RANK)?));
        let value_width = if of_heads { Some(file.required_size(values)?) } else { size(values)? };
        self.set("v_head_dim", &file.key(values), json!(value_width));
        let heads = self.fields["num_attention_heads"].clone();
        self.set("num_key_value_heads", &file.key("attention.head_count"), heads);
        // Without their keys there are none, whatever the defaults of the class.
        for field in ["n_group", "topk_group", "routed_scaling_factor"] {
            self.fields.entry(field).or_insert(json!(1));
        }
        let grouped = self.number("n_group") > Some(1.0)
            && file.form.architecture == DEEPSEEK
            && !sigmoid_router(metadata, file.checkpoint)?;
        if grouped {
            self.set("topk_method", &file.key("expert_group_count"), json!("group_limited_greedy"));
        }
        Ok(())
    }

    fn head_dim(&mut self) -> Result<()> {
        let (metadata, key) = (self.file.metadata, self.file.key("attention.key_length"));
        let value_key = self.file.key("attention.value_length");
        let (keys, values) = (metadata.unsigned(&key)?, metadata.unsigned(&value_key)?);
        if let (Some(keys), Some(values)) = (keys, values)
            && keys != values
        {
            return Err(metadata.error(&value_key, format!("{keys}, as `{key}`"), values.to_string()));
        }
        // An explicit null means `hidden_size / num_attention_heads`.
        self.set("head_dim", &key, keys.map_or(Value::Null, |keys| json!(keys)));
        Ok(())
    }

    /// What tensors tell: the vocabulary, and what is there or not.
    fn vocabulary(&mut self) -> Result<()> {
        if let Some(embedding) = self.file.checkpoint.tensor("token_embd.weight")? {
            let rows = embedding.shape.first();
            let rows = rows.ok_or_else(|| embedding.error("a row for each token", "a single number"))?;
            self.set("vocab_size", "token_embd.weight", json!(rows));
        }
        let tied = !self.file.checkpoint.contains("output.weight");
        self.set("tie_word_embeddings", "output.weight", json!(tied));
        let normed = self.file.first_layer_has("attn_q_norm.weight");
        self.set("use_qk_norm", "attn_q_norm.weight", json!(normed));
        Ok(())
    }

    /// Sliding layers: a list of flags, or all layers except every `n`-th; otherwise the architecture's own rule.
    pub(super) fn windows(&mut self) -> Result<()> {
        let window = self.fields.get("sliding_window").and_then(Value::as_u64).unwrap_or(0);
        if window == 0 {
            // Null, unlike an absent key, means no window. Without the key, llama.cpp uses a window only for Gemma 2.
            let absent = !self.fields.contains_key("sliding_window");
            let default = absent && self.file.form.architecture == "gemma2";
            if !default {
                self.set("sliding_window", &self.file.key("attention.sliding_window"), Value::Null);
                return Ok(());
            }
        }
        self.set("use_sliding_window", &self.file.key("attention.sliding_window"), json!(true));
        let (metadata, key) = (self.file.metadata, self.file.key("attention.sliding_window_pattern"));
        let layers = self.layers();
        let sliding: Vec<bool> = match metadata.scalars(&key) {
            Ok(None) => return Ok(()),
            Ok(Some(list)) if list.len() != layers => {
                let expected = format!("{layers} entries, one per layer");
                return Err(metadata.error(&key, expected, list.len().to_string()));
            }
            Ok(Some(list)) => list.scalars().map(|entry| !matches!(entry, Scalar::Bool(false))).collect(),
            Err(_) => {
                let period = metadata.unsigned(&key)?.unwrap_or(0);
                (0..layers as u64).map(|layer| period == 0 || layer % period < period - 1).collect()
            }
        };
        let kind = |sliding: bool| if sliding { "sliding_attention" } else { "full_attention" };
        let kinds: Vec<&str> = sliding.into_iter().map(kind).collect();
        self.set("layer_types", &key, json!(kinds));
        Ok(())
    }

    fn rope(&mut self) -> Result<()> {
        self.rotary_dim()?;
        if self.file.metadata.flag(&self.file.key("rope.scaling.finetuned"))? == Some(false) {
            self.set("position_embedding_type", &self.file.key("rope.scaling.finetuned"), json!("nope"));
        }
        if !self.fields.contains_key("rope_theta") {
            self.set("rope_theta", &self.file.key("rope.freq_base"), json!(DEFAULT_THETA));
        }
        // OLMo 3's layers have one theta there, whatever the default of its class.
        if self.file.form.architecture == "olmo2" && !self.fields.contains_key("rope_local_base_freq") {
            let theta = self.fields["rope_theta"].clone();
            self.set("rope_local_base_freq", &self.file.key("rope.freq_base"), theta);
        }
        let parallel = self.file.key(PARALLEL_RESIDUAL);
        if let Some(flag) = self.file.metadata.flag(&parallel)? {
            self.set("use_parallel_residual", &parallel, json!(flag));
        }
        let original = self.file.key("rope.scaling.original_context_length");
        if let Some(length) = self.file.metadata.unsigned(&original)?.filter(|length| *length > 0) {
            self.set(ORIGINAL_LENGTH, &original, json!(length));
        }
        let beta = self.file.metadata.number(&self.file.key(TEMPERATURE_SCALE))?.filter(|beta| *beta != 0.0);
        let mut scaling = self.rope_scaling()?;
        if let Some(beta) = beta {
            scaling.get_or_insert_with(|| json!({"rope_type": "default"}))["llama_4_scaling_beta"] = json!(beta);
        }
        if let Some(scaling) = scaling {
            self.set("rope_scaling", &self.file.key("rope.scaling.type"), scaling);
            self.keys.insert("rope_scaling.factor".into(), self.file.key("rope.scaling.factor"));
        }
        Ok(())
    }

    /// `rope_scaling` of the config; `None` if there is no scaling.
    fn rope_scaling(&self) -> Result<Option<Value>> {
        let key = self.file.key("rope.scaling.type");
        let error = |expected: String, found: &str| self.file.metadata.error(&key, expected, format!("`{found}`"));
        match (self.file.metadata.text(&key)?, self.scaling_factor()?) {
            _ if self.file.checkpoint.contains(ROPE_FACTORS_LONG) => self.longrope().map(Some),
            (Some("yarn"), factor) => self.yarn(factor.unwrap_or(1.0)).map(Some),
            (None | Some("linear"), Some(factor)) if factor != 1.0 => {
                Ok(Some(json!({"rope_type": "linear", "factor": factor})))
            }
            (Some("longrope"), _) if self.number("max_position_embeddings") > self.number(ORIGINAL_LENGTH) => {
                let expected = format!("none, linear or yarn, since the file has no tensor `{ROPE_FACTORS_LONG}`");
                Err(error(expected, "longrope"))
            }
            (None | Some("none" | "linear" | "longrope"), _) => Ok(None),
            (Some(other), _) => Err(error("none, linear, yarn or longrope".into(), other)),
        }
    }

    /// All dimensions are rotated unless the file has a number.
    fn rotary_dim(&mut self) -> Result<()> {
        let key = self.file.key("rope.dimension_count");
        let factor = match self.file.metadata.unsigned(&key)? {
            // It is the width of all that may be rotated.
            _ if self.file.form.latent => 1.0,
            // Half a dimension is added, because readers of the config round factor times head width down.
            Some(dim) => (dim as f64 + 0.5) / self.width_of_head(),
            None => 1.0,
        };
        self.set("partial_rotary_factor", &key, json!(factor));
        Ok(())
    }

    fn width_of_head(&self) -> f64 {
        self.number("head_dim").unwrap_or_else(|| self.width_by_heads())
    }

    /// `hidden_size / num_attention_heads`.
    fn width_by_heads(&self) -> f64 {
        let heads = self.number("num_attention_heads").unwrap_or(1.0).max(1.0);
        (self.number("hidden_size").unwrap_or(0.0) / heads).floor()
    }

    fn scaling_factor(&self) -> Result<Option<f64>> {
        for suffix in ["rope.scaling.factor", "rope.scale_linear"] {
            let key = self.file.key(suffix);
            match self.file.metadata.number(&key)? {
                Some(factor) if factor < 0.0 => {
                    return Err(self.file.metadata.error(&key, "a number above zero", factor.to_string()));
                }
                Some(factor) if factor > 0.0 => return Ok(Some(factor)),
                _ => {}
            }
        }
        Ok(None)
    }

    /// The factor of cosines and sines is llama.cpp's: the paper's times `attn_factor`. `yarn_attn_factor`, which
    /// converters copy from `config.json`, replaces the whole factor. Before they wrote that key, the one of OLMo 3 had
    /// the whole factor in `attn_factor`, and llama.cpp applied it twice; here it counts once.
    fn yarn(&self, factor: f64) -> Result<Value> {
        let number = |suffix: &str| self.file.metadata.number(&self.file.key(suffix));
        let mscale = |strength: f64| yarn_mscale(factor, strength);
        let all_dims = number(LOG_MULTIPLIER_KEY)?.filter(|multiplier| *multiplier != 0.0);
        let is_whole = |times: &f64| self.file.form.architecture == "olmo2" && (times - mscale(1.0)).abs() < 1e-5;
        let times = number("rope.scaling.attn_factor")?.filter(|times| !is_whole(times)).unwrap_or(1.0);
        // DeepSeek's two factors of YaRN are equal there, which leaves none of cosines and sines.
        let strength = all_dims.filter(|_| self.file.form.latent).map(|multiplier| multiplier / LOG_MULTIPLIER);
        let derived = match strength {
            Some(_) => times,
            None => mscale(1.0) / all_dims.map_or(1.0, mscale) * times,
        };
        let attention_factor = number("rope.scaling.yarn_attn_factor")?.filter(|factor| *factor > 0.0);
        let mut scaling = json!({
            "rope_type": "yarn",
            "factor": factor,
            "attention_factor": attention_factor.unwrap_or(derived),
            "truncate": self.file.form.yarn_truncate,
        });
        for (field, suffix) in
            [("beta_fast", "rope.scaling.yarn_beta_fast"), ("beta_slow", "rope.scaling.yarn_beta_slow")]
        {
            if let Some(beta) = number(suffix)? {
                scaling[field] = json!(beta);
            }
        }
        if let Some(strength) = strength {
            scaling["mscale_all_dim"] = json!(strength);
        }
        Ok(scaling)
    }

    fn longrope(&self) -> Result<Value> {
        let factors = |tensor| self.file.vector(tensor).map(Option::unwrap_or_default);
        let attention_factor = self.file.metadata.number(&self.file.key("rope.scaling.attn_factor"))?.unwrap_or(1.0);
        Ok(json!({
            "rope_type": "longrope",
            "short_factor": factors(ROPE_FACTORS_SHORT)?,
            "long_factor": factors(ROPE_FACTORS_LONG)?,
            "attention_factor": attention_factor,
        }))
    }

    /// Sets scales that llama.cpp derives from the architecture.
    fn scales(&mut self) {
        let layers = self.fields["num_hidden_layers"].as_u64().unwrap_or(0);
        let width = scaled_width(self.file.form, layers, self.width_of_head(), self.width_by_heads());
        self.fields.insert("query_pre_attn_scalar".into(), json!(width));
        if !self.fields.contains_key("attention_multiplier") {
            self.fields.insert("attention_multiplier".into(), json!(width.powf(-0.5)));
        }
    }

    /// Beginning- and end-of-sequence token ids.
    fn end_tokens(&mut self) -> Result<()> {
        let metadata = self.file.metadata;
        if let Some(bos) = metadata.unsigned("tokenizer.ggml.bos_token_id")? {
            self.set("bos_token_id", "tokenizer.ggml.bos_token_id", json!(bos));
        }
        let mut ids = Vec::new();
        for name in ["eos", "eot", "eom"] {
            ids.extend(metadata.unsigned(&format!("tokenizer.ggml.{name}_token_id"))?);
        }
        ids.extend(spelled_ends(self.file)?);
        let mut seen = std::collections::BTreeSet::new();
        ids.retain(|id| seen.insert(*id));
        self.set("eos_token_id", "tokenizer.ggml.eos_token_id", json!(ids));
        Ok(())
    }
}

/// Further end-of-sequence tokens of chat models, recognized by spelling; files name only one.
fn spelled_ends(file: &File) -> Result<Vec<u64>> {
    let tokens = file.metadata.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
    Ok(tokens.iter().enumerate().filter(|(_, token)| ends_text(token)).map(|(id, _)| id as u64).collect())
}
