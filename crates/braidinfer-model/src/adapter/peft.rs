//! Adapters of peft: a folder with `adapter_config.json` and `adapter_model.safetensors`.

use std::path::Path;
use std::sync::Arc;

use regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::base_copies::BaseCopy;
use super::places::Layout;
use super::{Files, modules_of};
use crate::dtype::TensorView;
use crate::format::safetensors;
use crate::{JsonFile, ModelError, ModelSource, Result};

pub(super) const SETTINGS: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PICKLE: &str = "adapter_model.bin";

/// Most patterns for ranks or factors, and most bytes that a compiled one may take.
const MOST_PATTERNS: usize = 1024;
const LARGEST_PATTERN: usize = 1 << 16;

/// Settings that are read, or that change nothing once an adapter is trained.
const KNOWN: [&str; 22] = [
    "peft_type",
    "peft_version",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "target_parameters",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "init_lora_weights",
    "eva_config",
    "megatron_core",
    "qalora_group_size",
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
    /// Parameters that are adapted as such, by the last parts of their names.
    parameters: Vec<String>,
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
    let base_copies: Vec<BaseCopy> = checkpoint.names().filter_map(BaseCopy::of).collect();
    let matrices = checkpoint.names().filter(|name| BaseCopy::of(name).is_none());
    let modules = modules_of(&source.path_of(WEIGHTS), matrices, split)?;
    let scaling = super::Scaling::Peft(Box::new(Scaling::read(settings)?));
    Ok(Files {
        label,
        layout: Layout::Transformers,
        checkpoint: Arc::new(checkpoint),
        modules,
        base_copies,
        scaling,
        notes: Vec::new(),
    })
}

/// Module of a tensor, and whether it is A or B.
fn split(tensor: &str) -> Option<(String, usize)> {
    let suffixes = [(".lora_A.weight", 0), (".lora_B.weight", 1)];
    suffixes.into_iter().find_map(|(suffix, which)| Some((tensor.strip_suffix(suffix)?.to_owned(), which)))
}

/// A value for a message.
fn shortened(value: &Value) -> String {
    value.to_string().chars().take(80).collect()
}

/// Fails on settings that ask for more than matrices beside linear layers, and on those that are not known.
fn check(settings: &JsonFile) -> Result<()> {
    let kind = settings.text("peft_type")?;
    if kind != Some("LORA") {
        return Err(settings.error(
            "peft_type",
            "\"LORA\"",
            kind.map_or("nothing".into(), |kind| format!("\"{kind}\"")),
        ));
    }
    for field in settings.fields().filter(|field| !KNOWN.contains(field)) {
        let Some(value) = settings.value(field) else { continue };
        let is_off = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(values) => values.is_empty(),
            Value::Object(values) => values.is_empty(),
            Value::String(value) => value == "none",
            Value::Bool(true) | Value::Number(_) => false,
        };
        if !is_off {
            let expected = "no such field, or that it is off: what it asks for is not supported";
            return Err(settings.error(field, expected, shortened(value)));
        }
    }
    if let Some(value) = settings.value("init_lora_weights").filter(|value| !value.is_null()) {
        let found = shortened(value);
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
            parameters: texts(&settings, "target_parameters")?,
            settings,
        })
    }

    /// The factor of a module, or of one of its parameters, whose matrices have this rank.
    pub(super) fn of(&self, module: &str, parameter: Option<&str>, rank: usize, a: &TensorView<'_>) -> Result<f32> {
        let module = module.strip_prefix("base_model.model.").unwrap_or(module);
        let weight = format!("{module}.weight");
        let is_adapted = |target: &String| weight == *target || weight.ends_with(&format!(".{target}"));
        let module = match parameter {
            // Known by the name of its parameter, where that is what was adapted.
            None if self.parameters.iter().any(is_adapted) => weight,
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

/// A list of texts.
fn texts(settings: &JsonFile, field: &str) -> Result<Vec<String>> {
    let texts = settings.list(field)?.unwrap_or_default().iter().map(|value| value.as_str().map(str::to_owned));
    texts.collect::<Option<_>>().ok_or_else(|| settings.error(field, "a list of names", "something else"))
}

/// Names of modules, as regular expressions for their last parts, with a number for each.
fn patterns(settings: &JsonFile, field: &str) -> Result<Vec<(Regex, f64)>> {
    let Some(by_pattern) = settings.object(field)? else { return Ok(Vec::new()) };
    let pattern = |key: &str| {
        let value = by_pattern.value(key).and_then(Value::as_f64).filter(|value| value.is_finite());
        let value = value.ok_or_else(|| by_pattern.error(key, "a number", "something else"))?;
        let pattern = RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{key})$"))
            .size_limit(LARGEST_PATTERN)
            .dfa_size_limit(LARGEST_PATTERN)
            .build();
        let pattern = pattern
            .map_err(|error| by_pattern.error(key, "a regular expression for names of modules", error.to_string()))?;
        Ok((pattern, value))
    };
    if by_pattern.fields().count() > MOST_PATTERNS {
        return Err(settings.error(field, format!("at most {MOST_PATTERNS} patterns"), "more"));
    }
    by_pattern.fields().map(pattern).collect()
}
