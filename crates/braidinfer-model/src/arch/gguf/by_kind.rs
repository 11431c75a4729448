//! Keys of files whose full and sliding layers differ in their sizes.

use serde_json::{Map, Value, json};

use super::config::Config;
use crate::Result;
use crate::arch::MAX_LAYERS;
use crate::format::gguf::Scalar;

impl Config<'_> {
    /// Reads what differs between full and sliding layers, and between layers that share keys and values and others.
    pub(super) fn kinds_of_layers(&mut self) -> Result<()> {
        if !self.fields.contains_key("num_hidden_layers") {
            // What is required is looked for afterwards.
            return Ok(());
        }
        self.windows()?;
        let metadata = self.file.metadata;
        let key = self.file.key("attention.sliding_window_pattern");
        let kinds = self.fields.get("layer_types").and_then(Value::as_array).cloned();
        let kinds = kinds.ok_or_else(|| metadata.error(&key, "which layers are sliding, and a window", "nothing"))?;
        let sliding: Vec<bool> = kinds.iter().map(|kind| kind == "sliding_attention").collect();
        let shared = self.shared_and_further_inputs()?.min(sliding.len());
        self.heads_by_kind(&sliding)?;
        self.networks_by_kind(sliding.len(), shared)?;
        self.values_by_kind(&sliding, shared)?;
        let experts = self.fields.get("num_experts").and_then(Value::as_u64).unwrap_or(0);
        self.set("enable_moe_block", &self.file.key("expert_count"), json!(experts > 0));
        Ok(())
    }

    /// Reads how many layers share keys and values, which is returned, and sizes of inputs for each layer.
    pub(super) fn shared_and_further_inputs(&mut self) -> Result<usize> {
        let shared = self.count("num_kv_shared_layers", "attention.shared_kv_layers")?;
        let width = self.count("hidden_size_per_layer_input", "embedding_length_per_layer_input")?;
        if let Some(embedding) = self.file.checkpoint.tensor("per_layer_token_embd.weight")?.filter(|_| width > 0) {
            let rows = embedding.shape.first().copied().unwrap_or(0);
            self.set("vocab_size_per_layer_input", "per_layer_token_embd.weight", json!(rows));
        }
        Ok(shared)
    }

    /// A count that is zero if the file has no key for it.
    fn count(&mut self, field: &str, suffix: &str) -> Result<usize> {
        let key = self.file.key(suffix);
        let count = self.file.metadata.unsigned(&key)?.unwrap_or(0);
        self.set(field, &key, json!(count));
        Ok(usize::try_from(count).unwrap_or(usize::MAX))
    }

    /// A width of heads, which keys and values have in common.
    fn width(&self, suffix: &str) -> Result<u64> {
        let metadata = self.file.metadata;
        let [of_keys, of_values] = ["key", "value"].map(|of| format!("attention.{of}_length{suffix}"));
        let width = self.file.required_size(&of_keys)?;
        let key = self.file.key(&of_values);
        match metadata.unsigned(&key)? {
            Some(other) if other != width => {
                Err(metadata.error(&key, format!("{width}, as `{}`", self.file.key(&of_keys)), other.to_string()))
            }
            _ => Ok(width),
        }
    }

    /// A number for every layer, from a list or from one number for all.
    pub(super) fn of_layers(&self, suffix: &str, layers: usize) -> Result<Vec<u64>> {
        let (metadata, key) = (self.file.metadata, self.file.key(suffix));
        let error = |found: &str| metadata.error(&key, format!("a positive number, or {layers} of them"), found);
        match metadata.scalars(&key) {
            Ok(Some(list)) if list.len() == layers => {
                let number = |entry: Scalar| entry.to_json().as_u64().filter(|number| *number > 0);
                list.scalars().map(|entry| number(entry).ok_or_else(|| error("an entry that is none"))).collect()
            }
            Ok(Some(list)) => Err(error(&format!("{} numbers", list.len()))),
            Ok(None) | Err(_) => {
                let size = metadata.unsigned(&key)?.filter(|size| *size > 0).ok_or_else(|| error("nothing"))?;
                Ok(vec![size; layers.min(MAX_LAYERS)])
            }
        }
    }

    /// Widths of heads, and how many have keys.
    fn heads_by_kind(&mut self, sliding: &[bool]) -> Result<()> {
        let (full, windowed) = (self.width("")?, self.width("_swa")?);
        self.set("head_dim", &self.file.key("attention.key_length_swa"), json!(windowed));
        let counts = self.of_layers("attention.head_count_kv", sliding.len())?;
        let mut overrides = Map::new();
        for (layer, (sliding, count)) in sliding.iter().zip(&counts).enumerate() {
            let head_dim = if *sliding { windowed } else { full };
            overrides.insert(layer.to_string(), json!({"head_dim": head_dim, "num_key_value_heads": count}));
        }
        let key = self.file.key("attention.head_count_kv");
        self.set("num_key_value_heads", &key, json!(counts.first()));
        self.set("per_layer_config", &key, Value::Object(overrides));
        Ok(())
    }

    /// Widths of networks: those of layers that share keys and values may be twice as wide.
    fn networks_by_kind(&mut self, layers: usize, shared: usize) -> Result<()> {
        let widths = self.of_layers("feed_forward_length", layers)?;
        let (key, first) = (self.file.key("feed_forward_length"), widths.first().copied().unwrap_or(0));
        let wide = widths.last().is_some_and(|last| *last != first);
        let expected = |layer: usize| if wide && layer >= layers - shared { first.saturating_mul(2) } else { first };
        if let Some(layer) = (0..layers).find(|layer| widths[*layer] != expected(*layer)) {
            let wanted = format!("{} for layer {layer}", expected(layer));
            return Err(self.file.metadata.error(&key, wanted, widths[layer].to_string()));
        }
        self.set("intermediate_size", &key, json!(first));
        self.set("use_double_wide_mlp", &key, json!(wide));
        Ok(())
    }

    /// Whether full layers have no projection for values, which their tensors tell.
    fn values_by_kind(&mut self, sliding: &[bool], shared: usize) -> Result<()> {
        let has = |layer: usize, name: &str| self.file.checkpoint.contains(&format!("blk.{layer}.{name}.weight"));
        let full: Vec<usize> = (0..sliding.len() - shared).filter(|layer| !sliding[*layer]).collect();
        let lacks = |layer: &usize| has(*layer, "attn_k") && !has(*layer, "attn_v");
        let without = full.iter().filter(|layer| lacks(layer)).count();
        if without > 0 && without < full.len() {
            let name = self.file.key("attention.shared_kv_layers");
            let found = format!("{without} of {} without", full.len());
            return Err(self.file.metadata.error(&name, "projections of values in all full layers or in none", found));
        }
        self.set("attention_k_eq_v", "attn_v.weight", json!(without > 0));
        Ok(())
    }

    /// RoPE of full and of sliding layers. Their frequencies may be scaled by a tensor of factors only.
    pub(super) fn rope_by_kind(&mut self) -> Result<()> {
        let metadata = self.file.metadata;
        if self.fields.contains_key("rope_scaling") {
            let found = "another scaling".to_owned();
            return Err(metadata.error(&self.file.key("rope.scaling.type"), "none", found));
        }
        for suffix in ["", "_swa"] {
            let key = self.file.key(&format!("rope.dimension_count{suffix}"));
            let width = self.width(suffix)?;
            if let Some(other) = metadata.unsigned(&key)?.filter(|dims| *dims != width) {
                return Err(metadata.error(&key, format!("{width}, the width of a head"), other.to_string()));
            }
        }
        let theta = |field: &str| self.fields.get(field).cloned().unwrap_or(Value::Null);
        let table = |theta: Value| json!({"rope_type": "default", "rope_theta": theta});
        let tables = json!({
            "full_attention": table(theta("rope_theta")),
            "sliding_attention": table(theta("rope_local_base_freq")),
        });
        self.set("rope_parameters", &self.file.key("rope.freq_base"), tables);
        Ok(())
    }
}
