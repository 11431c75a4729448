//! Adapters in GGUF files of llama.cpp.

use std::path::Path;
use std::sync::Arc;

use super::places::Layout;
use super::{Files, Scaling, modules_of};
use crate::Result;
use crate::format::gguf::Gguf;

const KIND: &str = "adapter.type";
const ALPHA: &str = "adapter.lora.alpha";
const INVOCATION: &str = "adapter.alora.invocation_tokens";

/// Whether a GGUF file says that it is one.
pub(super) fn is_adapter(path: &Path) -> bool {
    let kind = |gguf: Gguf| gguf.metadata().text("general.type").ok().flatten() == Some("adapter");
    Gguf::open(path).is_ok_and(kind)
}

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
    if metadata.get(INVOCATION).is_some() {
        return Err(metadata.error(INVOCATION, "no such key: adapters that begin at a token are not supported", "one"));
    }
    let alpha = metadata.number(ALPHA)?.ok_or_else(|| metadata.error(ALPHA, "a number", "nothing"))?;
    let architecture = metadata.text("general.architecture")?.unwrap_or_default().to_owned();
    let label = metadata.path().to_owned();
    let checkpoint = Arc::clone(gguf.checkpoint());
    let modules = modules_of(&label, &checkpoint, split)?;
    let scaling = Scaling::Gguf { alpha: alpha as f32 };
    Ok(Files { label, layout: Layout::Gguf { architecture }, checkpoint, modules, scaling })
}

/// Module of a tensor, and whether it is A or B.
fn split(tensor: &str) -> Option<(String, usize)> {
    let suffixes = [(".weight.lora_a", 0), (".weight.lora_b", 1)];
    suffixes.into_iter().find_map(|(suffix, which)| Some((tensor.strip_suffix(suffix)?.to_owned(), which)))
}
