//! Adapters of peft: a folder with `adapter_config.json` and `adapter_model.safetensors`.

use std::path::Path;
use std::sync::Arc;

use regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::places::Layout;
use super::{Files, modules_of};
use crate::dtype::TensorView;
use crate::format::safetensors;
use crate::{JsonFile, ModelError, ModelSource, Result};

pub(super) const SETTINGS: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PICKLE: &str = "adapter_model.bin";

/// Most patterns for ranks or factors, and most bytes that a compiled one may take.
const MOST_PATTERNS: usize = 4096;
const LARGEST_PATTERN: usize = 1 << 20;

/// Settings that change what an adapter computes, in a way that is not supported, unless they have one of these values.
const NEUTRAL: [(&str, &[&str]); 20] = [
    ("bias", &["\"none\""]),
    ("fan_in_fan_out", &["false"]),
    ("use_dora", &["false"]),
    ("use_qalora", &["false"]),
    ("use_bdlora", &["false"]),
    ("lora_bias", &["false"]),
    ("modules_to_save", &["[]"]),
    ("layer_replication", &["[]"]),
    ("trainable_token_indices", &["[]", "{}"]),
    ("alora_invocation_tokens", &["[]"]),
    ("arrow_config", &[]),
    ("corda_config", &[]),
    ("eva_config", &[]),
    ("kasa_config", &[]),
    ("loftq_config", &["{}"]),
    ("lora_ga_config", &[]),
    ("megatron_config", &[]),
    ("monteclora_config", &[]),
    ("velora_config", &[]),
    ("ensure_weight_tying", &["false"]),
];

/// Ways of beginning with an adapter that leave the weights of the base as they are.
const PLAIN_BEGINNINGS: [&str; 5] = ["true", "false", "\"gaussian\"", "\"orthogonal\"", "\"eva\""];

/// How factors follow from ranks.
pub(super) struct Scaling {
    settings: JsonFile,
    rank: f64,
    alpha: f64,
    is_rank_stabilized: bool,
    ranks: Vec<(Regex, f64)>,
    alphas: Vec<(Regex, f64)>,
}

pub(super) fn open(path: &Path) -> Result<Files> {
    let source = ModelSource::Directory(path.to_owned());
    let label = path.display().to_string();
    let missing = |expected: &str, found: &str| {
        Err(ModelError::Missing { path: label.clone(), expected: expected.to_owned(), found: found.to_owned() })
    };
    let Some(settings) = JsonFile::read(&source, SETTINGS)? else {
        return missing("an adapter: a folder with `adapter_config.json`, or a GGUF file", "neither");
    };
    let Some(checkpoint) = safetensors::open_plain(&source, WEIGHTS)? else {
        return match source.open_file(PICKLE)?.is_some() {
            true => missing(
                "`adapter_model.safetensors`",
                "a Python pickle (adapter_model.bin): save the adapter again with `save_pretrained`",
            ),
            false => missing("`adapter_model.safetensors`", "no such file"),
        };
    };
    check(&settings)?;
    let modules = modules_of(&source.path_of(WEIGHTS), &checkpoint, split)?;
    let scaling = super::Scaling::Peft(Scaling::read(settings)?);
    Ok(Files { label, layout: Layout::Transformers, checkpoint: Arc::new(checkpoint), modules, scaling })
}

/// Module of a tensor, and whether it is A or B.
fn split(tensor: &str) -> Option<(String, usize)> {
    let suffixes = [(".lora_A.weight", 0), (".lora_B.weight", 1)];
    suffixes.into_iter().find_map(|(suffix, which)| Some((tensor.strip_suffix(suffix)?.to_owned(), which)))
}

/// Fails on settings that ask for more than matrices beside linear layers.
fn check(settings: &JsonFile) -> Result<()> {
    let kind = settings.text("peft_type")?;
    if kind != Some("LORA") {
        return Err(settings.error(
            "peft_type",
            "\"LORA\"",
            kind.map_or("nothing".into(), |kind| format!("\"{kind}\"")),
        ));
    }
    for (field, neutral) in NEUTRAL {
        let Some(value) = settings.value(field).filter(|value| !value.is_null()) else { continue };
        let found = value.to_string();
        if !neutral.contains(&found.as_str()) {
            let expected = match neutral.first() {
                Some(neutral) => format!("{neutral}: nothing else is supported"),
                None => "null: nothing else is supported".to_owned(),
            };
            return Err(settings.error(field, expected, found));
        }
    }
    if let Some(value) = settings.value("init_lora_weights").filter(|value| !value.is_null()) {
        let found = value.to_string();
        if !PLAIN_BEGINNINGS.contains(&found.as_str()) {
            let expected =
                "a way that does not change the weights of the base (save the adapter converted to plain LoRA)";
            return Err(settings.error("init_lora_weights", expected, found));
        }
    }
    Ok(())
}

impl Scaling {
    fn read(settings: JsonFile) -> Result<Self> {
        Ok(Self {
            // The defaults of peft.
            rank: settings.positive("r")?.unwrap_or(8.0),
            alpha: settings.number("lora_alpha")?.unwrap_or(8.0),
            is_rank_stabilized: settings.flag("use_rslora")?.unwrap_or(false),
            ranks: patterns(&settings, "rank_pattern")?,
            alphas: patterns(&settings, "alpha_pattern")?,
            settings,
        })
    }

    /// The factor of a module, or of one of its parameters, whose matrices have this rank.
    pub(super) fn of(&self, module: &str, parameter: Option<&str>, rank: usize, a: &TensorView<'_>) -> Result<f32> {
        let module = module.strip_prefix("base_model.model.").unwrap_or(module);
        let module = match parameter {
            None => module.to_owned(),
            Some(parameter) => format!("{}.{parameter}", module.trim_end_matches(".base_layer")),
        };
        let of = |patterns: &[(Regex, f64)], other: f64| {
            patterns.iter().find(|(pattern, _)| pattern.is_match(&module)).map_or(other, |(_, value)| *value)
        };
        let configured = of(&self.ranks, self.rank);
        if configured != rank as f64 {
            let expected = format!("the rank {configured} that {} says for `{module}`", self.settings.path());
            return Err(a.error(expected, rank.to_string()));
        }
        let divisor = if self.is_rank_stabilized { configured.sqrt() } else { configured };
        Ok((of(&self.alphas, self.alpha) / divisor) as f32)
    }
}

/// Names of modules, as regular expressions for their last parts, with a number for each.
fn patterns(settings: &JsonFile, field: &str) -> Result<Vec<(Regex, f64)>> {
    let Some(by_pattern) = settings.object(field)? else { return Ok(Vec::new()) };
    let pattern = |key: &str| {
        let value = by_pattern.value(key).and_then(Value::as_f64).filter(|value| value.is_finite());
        let value = value.ok_or_else(|| by_pattern.error(key, "a number", "something else"))?;
        let pattern = RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{key})$")).size_limit(LARGEST_PATTERN).build();
        let pattern = pattern
            .map_err(|error| by_pattern.error(key, "a regular expression for names of modules", error.to_string()))?;
        Ok((pattern, value))
    };
    if by_pattern.fields().count() > MOST_PATTERNS {
        return Err(settings.error(field, format!("at most {MOST_PATTERNS} patterns"), "more"));
    }
    by_pattern.fields().map(pattern).collect()
}
