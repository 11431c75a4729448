//! Adapters in GGUF files of llama.cpp.

use std::path::Path;
use std::sync::Arc;

use super::places::Layout;
use super::{Files, Scaling, modules_of};
use crate::Result;
use crate::format::gguf::Gguf;

const KIND: &str = "adapter.type";
const ALPHA: &str = "adapter.lora.alpha";
const PREFIX: &str = "adapter.lora.prompt_prefix";
/// Keys that are read, or change nothing.
const KNOWN: [&str; 4] = [KIND, ALPHA, PREFIX, "adapter.lora.task_name"];

pub(super) fn open(path: &Path) -> Result<Files> {
    let gguf = Gguf::open(path)?;
    let metadata = gguf.metadata();
    for (key, expected) in [("general.type", "adapter"), (KIND, "lora")] {
        let found = metadata.text(key)?;
        if found != Some(expected) {
            let found = found.map_or("nothing".into(), |found| format!("`{found}`"));
            return Err(metadata.error(key, format!("`{expected}`"), found));
        }
    }
    let is_unknown = |key: &&str| key.starts_with("adapter.") && !KNOWN.contains(key);
    if let Some((key, _)) = metadata.iter().find(|(key, _)| is_unknown(key)) {
        return Err(metadata.error(key, "no such key: what it asks for is not supported", "one"));
    }
    let prefix =
        metadata.get(PREFIX).map(|_| format!("{}: it names a prefix of prompts, which is not added", metadata.path()));
    let alpha = metadata.number(ALPHA)?.ok_or_else(|| metadata.error(ALPHA, "a number", "nothing"))?;
    let architecture = metadata.text("general.architecture")?.unwrap_or_default().to_owned();
    let label = metadata.path().to_owned();
    let checkpoint = Arc::clone(gguf.checkpoint());
    let modules = modules_of(&label, checkpoint.names(), split)?;
    let scaling = Scaling::Gguf { alpha: alpha as f32 };
    Ok(Files {
        label,
        layout: Layout::Gguf { architecture },
        checkpoint,
        modules,
        base_copies: Vec::new(),
        scaling,
        notes: prefix.into_iter().collect(),
    })
}

/// Module of a tensor, and whether it is A or B.
fn split(tensor: &str) -> Option<(String, usize)> {
    let suffixes = [(".weight.lora_a", 0), (".weight.lora_b", 1)];
    suffixes.into_iter().find_map(|(suffix, which)| Some((tensor.strip_suffix(suffix)?.to_owned(), which)))
}
