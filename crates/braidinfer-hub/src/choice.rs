//! Selecting the required files of a repository.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cache::RepoCache;
use crate::error::shown;
use crate::gguf_name::GgufSet;
use crate::{HubError, HubId, Result};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const TOKENIZER: &str = "tokenizer.json";
const SENTENCEPIECE: &str = "tokenizer.model";
/// Small files to download with the weights. Anything else, such as weights in other formats, is not downloaded.
const SMALL_FILES: [&str; 10] = [
    CONFIG,
    "generation_config.json",
    TOKENIZER,
    SENTENCEPIECE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
];
/// Maximum number of names in a message.
const LISTED: usize = 40;

/// The model to use from a repository.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// A directory with safetensors. `weights` is the only weight file, or the index of the shards. Small files are
    /// downloaded first, so that if the weights are in the cache, the rest is there too.
    Directory { small: Vec<&'static str>, weights: &'static str },
    /// A GGUF file, or all parts of a split model in order.
    Gguf(GgufSet),
}

impl Choice {
    /// The files whose names are known without reading the index.
    pub fn named(&self) -> Vec<&str> {
        match self {
            Self::Directory { small, weights } if self.index().is_none() => {
                small.iter().copied().chain([*weights]).collect()
            }
            Self::Directory { small, .. } => small.clone(),
            Self::Gguf(set) => set.files.iter().map(String::as_str).collect(),
        }
    }

    /// The index of the shards, if there is one.
    pub fn index(&self) -> Option<&'static str> {
        match self {
            Self::Directory { weights, .. } if weights.ends_with(".index.json") => Some(weights),
            _ => None,
        }
    }

    pub fn path(&self, cache: &RepoCache, commit: &str) -> PathBuf {
        match self {
            Self::Directory { .. } => cache.snapshot(commit),
            Self::Gguf(set) => cache.snapshot(commit).join(&set.files[0]),
        }
    }

    /// Whether there is a tokenizer; GGUF files contain one.
    pub fn has_tokenizer(&self) -> bool {
        match self {
            Self::Directory { small, .. } => {
                small.iter().any(|file| ["tokenizer.json", "tokenizer.model"].contains(file))
            }
            Self::Gguf(_) => true,
        }
    }

    /// The model that `id` selects in a repository with these `files`, whose names are untrusted.
    pub fn new(id: &HubId, files: &[String]) -> Result<Self> {
        let choice = Self::unchecked(id, files)?;
        if let Self::Gguf(set) = &choice {
            for file in &set.files {
                check_name(id, file)?;
            }
        }
        Ok(choice)
    }

    fn unchecked(id: &HubId, files: &[String]) -> Result<Self> {
        let sets = GgufSet::all(files);
        if let Some(quant) = id.quant() {
            return one_of(id, &sets, quant);
        }
        let has = |name: &str| files.iter().any(|file| file == name);
        let weights = [WEIGHTS, INDEX].into_iter().find(|name| has(name));
        match (weights, &sets[..]) {
            (Some(weights), _) if has(CONFIG) => {
                let wanted = |name: &&str| has(name) && (*name != SENTENCEPIECE || !has(TOKENIZER));
                Ok(Self::Directory { small: SMALL_FILES.into_iter().filter(wanted).collect(), weights })
            }
            (Some(weights), _) => {
                Err(no_model(id, format!("`{CONFIG}` beside `{weights}`"), format!("`{weights}` alone")))
            }
            (None, [only]) => whole(id, only),
            (None, []) => Err(no_model(id, format!("`{WEIGHTS}`, `{INDEX}` or a GGUF file"), summary(files))),
            (None, several) => Err(HubError::Quant {
                repo: id.repo().to_owned(),
                problem: format!("it has {} GGUF models, and none was asked for", several.len()),
                available: available(several),
                advice: format!("Choose one, as in `{}:{}`", id, shown(several[0].handle())),
            }),
        }
    }
}

fn one_of(id: &HubId, sets: &[GgufSet], quant: &str) -> Result<Choice> {
    match GgufSet::matching(sets, quant)[..] {
        [only] => whole(id, only),
        [] if sets.is_empty() => {
            Err(no_model(id, format!("a GGUF file for `:{quant}`"), "no GGUF file; leave `:QUANT` out".into()))
        }
        [] => Err(no_model(id, format!("a GGUF file called {quant}"), format!("only {}", available(sets)))),
        ref several => {
            let names: Vec<String> = several.iter().map(|set| shown(set.stem())).collect();
            Err(HubError::Quant {
                repo: id.repo().to_owned(),
                problem: format!("{} GGUF models are called {quant}", several.len()),
                available: names.join(", "),
                advice: "Write the whole of one of these names behind the `:`".into(),
            })
        }
    }
}

fn whole(id: &HubId, set: &GgufSet) -> Result<Choice> {
    if set.files.len() != set.promised {
        let expected = format!("{} parts of `{}`", set.promised, shown(set.stem()));
        return Err(no_model(id, expected, format!("{} of them", set.files.len())));
    }
    Ok(Choice::Gguf(set.clone()))
}

fn no_model(id: &HubId, expected: String, found: String) -> HubError {
    HubError::NoModel { repo: id.repo().to_owned(), expected, found }
}

fn available(sets: &[GgufSet]) -> String {
    let handles: BTreeSet<&str> = sets.iter().map(GgufSet::handle).collect();
    listed(handles.into_iter())
}

/// What a repository without a supported model contains: weights in other formats, or else any files.
fn summary(files: &[String]) -> String {
    const WEIGHTS_OF_OTHERS: [&str; 9] =
        [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".npz"];
    let is_weights = |file: &&String| WEIGHTS_OF_OTHERS.iter().any(|end| file.ends_with(end));
    let weights: Vec<&str> = files.iter().filter(is_weights).map(String::as_str).collect();
    match (files.is_empty(), weights.is_empty()) {
        (true, _) => "no file at all".into(),
        (false, false) => listed(weights.into_iter()),
        (false, true) => format!("no weights among: {}", listed(files.iter().map(String::as_str))),
    }
}

fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = names.len().saturating_sub(LISTED);
    let mut text = names.take(LISTED).map(shown).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// The shards that the index at `path` lists, sorted.
pub(crate) fn shards(id: &HubId, path: &Path) -> Result<Vec<String>> {
    const LARGEST: u64 = 256 << 20;
    let fail = |expected: &str, found: String| HubError::NoModel {
        repo: id.repo().to_owned(),
        expected: format!("{expected} in {}", path.display()),
        found,
    };
    let size = fs::metadata(path).map_err(HubError::io("read", path))?.len();
    if size > LARGEST {
        return Err(fail(&format!("at most {LARGEST} bytes"), size.to_string()));
    }
    let bytes = fs::read(path).map_err(HubError::io("read", path))?;
    let index: Value = serde_json::from_slice(&bytes).map_err(|error| fail("JSON", error.to_string()))?;
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.filter(|map| !map.is_empty()).ok_or_else(|| fail("a `weight_map` with entries", "none".into()))?;
    let mut shards = BTreeSet::new();
    for (tensor, shard) in map {
        let shard = shard.as_str().ok_or_else(|| fail("a file name for each tensor", shown(tensor)))?;
        check_name(id, shard)?;
        shards.insert(shard.to_owned());
    }
    Ok(shards.into_iter().collect())
}

/// Checks that a file name cannot be a path out of the snapshot's folder, on any operating system.
fn check_name(id: &HubId, name: &str) -> Result<()> {
    const LONGEST: usize = 1000;
    let bad_part = |part: &str| part.is_empty() || part == "." || part == ".." || part.len() > 255;
    let bad_character = |c: char| c.is_control() || matches!(c, '\\' | ':');
    if name.len() > LONGEST || name.contains(bad_character) || name.split('/').any(bad_part) {
        return Err(HubError::FileName { repo: id.repo().to_owned(), name: shown(name) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(id: &str, files: &[&str]) -> Result<Choice> {
        let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
        Choice::new(&id.parse().expect("an id"), &files)
    }

    fn refusal(id: &str, files: &[&str]) -> String {
        choose(id, files).expect_err("refused").to_string()
    }

    #[test]
    fn safetensors_are_preferred_and_only_required_files_are_chosen() {
        let files = [
            "README.md",
            "config.json",
            "model.safetensors",
            "model.safetensors.index.json",
            "m-Q4_0.gguf",
            "onnx/model.onnx",
            "original/consolidated.00.pth",
            "pytorch_model.bin",
            "tokenizer.json",
            "tokenizer.model",
        ];
        let expected = Choice::Directory { small: vec!["config.json", "tokenizer.json"], weights: "model.safetensors" };
        assert_eq!(choose("a/b", &files).expect("chosen"), expected);
        assert!(
            matches!(choose("a/b:q4_0", &files).expect("chosen"), Choice::Gguf(set) if set.files == ["m-Q4_0.gguf"])
        );
    }

    #[test]
    fn sentencepiece_is_the_fallback_tokenizer() {
        let expected = Choice::Directory {
            small: vec!["config.json", "tokenizer.model", "chat_template.jinja"],
            weights: "model.safetensors.index.json",
        };
        let files = ["chat_template.jinja", "config.json", "model.safetensors.index.json", "tokenizer.model"];
        assert_eq!(choose("a/b", &files).expect("chosen"), expected);
    }

    #[test]
    fn a_repository_without_a_model_is_an_error_that_lists_its_files() {
        let error = refusal("a/b", &["config.json", "pytorch_model.bin", "flax_model.msgpack"]);
        assert!(error.contains("GGUF") && error.contains("found pytorch_model.bin, flax_model.msgpack"), "{error}");
        assert!(refusal("a/b", &["README.md"]).contains("no weights among: README.md"));
        assert!(refusal("a/b", &[]).contains("no file at all"));
        assert!(refusal("a/b", &["model.safetensors"]).contains("`config.json` beside"));
        assert!(refusal("a/b:Q4_0", &["config.json", "model.safetensors"]).contains("no GGUF file"));
        let many: Vec<String> = (0..99).map(|n| format!("{n}.bin\u{7}")).collect();
        let error = Choice::new(&"a/b".parse().expect("an id"), &many).expect_err("refused").to_string();
        assert!(error.contains("and 99 more") || error.contains("and 59 more"), "{error}");
        assert!(!error.contains('\u{7}'));
    }

    #[test]
    fn several_gguf_files_require_a_choice() {
        let files = ["m-Q4_0.gguf", "m-Q8_0.gguf", "mmproj-F16.gguf"];
        let error = refusal("a/b", &files);
        assert!(
            error.contains("2 GGUF models") && error.contains("Q4_0, Q8_0") && error.contains("`a/b:Q4_0`"),
            "{error}"
        );
        let error = refusal("a/b:Q5_0", &files);
        assert!(error.contains("called Q5_0, found only Q4_0, Q8_0"), "{error}");
        let error = refusal("a/b:Q4_0", &["x-Q4_0.gguf", "y-Q4_0.gguf"]);
        assert!(error.contains("x-Q4_0, y-Q4_0") && error.contains("whole"), "{error}");
        assert!(refusal("a/b", &["m-00001-of-00003.gguf", "m-00003-of-00003.gguf"]).contains("found 2 of them"));
        assert!(choose("a/b", &files[..1]).is_ok());
    }

    #[test]
    fn file_names_outside_the_snapshot_are_rejected() {
        for name in [
            "../m-Q4_0.gguf",
            "/etc/m-Q4_0.gguf",
            "a/../m-Q4_0.gguf",
            r"..\m-Q4_0.gguf",
            "C:m-Q4_0.gguf",
            "a//m-Q4_0.gguf",
        ] {
            let error = choose("a/b:Q4_0", &[name]).expect_err(name);
            assert!(matches!(error, HubError::FileName { .. }), "{error}");
        }
    }

    #[test]
    fn shards_are_those_the_index_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("index.json");
        let id = "a/b".parse().expect("an id");
        let read = |text: &str| {
            fs::write(&path, text).expect("written");
            shards(&id, &path)
        };
        assert_eq!(read(r#"{"weight_map":{"x":"2.st","y":"1.st","z":"2.st"}}"#).expect("shards"), ["1.st", "2.st"]);
        for bad in
            ["", "[]", "{}", r#"{"weight_map":{}}"#, r#"{"weight_map":{"x":1}}"#, r#"{"weight_map":{"x":"../1"}}"#]
        {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
