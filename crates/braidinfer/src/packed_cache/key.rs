//! What packed weights are about: which files they were made from, and in which layout, by what.

use std::ffi::OsStr;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use braidinfer_model::{DecoderSpec, FileMark, ModelSource, Weights};
use sha2::{Digest, Sha256};

use crate::Result;
use crate::digest::{field, hex};

/// Longest part of the name of a model's file in that of its packed weights.
const NAME_LEN: usize = 60;

/// Identifies packed weights.
///
/// The key stands for the weight files as they are (size, times of writing and of change, and number of each, all of which the
/// system keeps), the model's settings, every parameter's type and shape, the instruction set and the version of the program.
/// A clock that was set back, or another build of the same version, can give other weights the same key. So some panels are
/// packed anew and compared whenever the file is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WeightsKey {
    /// Of the file. Other weights at the same path have the same name, and take the place of the first.
    pub(crate) name: String,
    pub(crate) digest: [u8; 32],
    marks: Vec<FileMark>,
}

impl WeightsKey {
    /// `None` of weights that are not in files. Fails if a file was written to since it was opened.
    pub(crate) fn of(source: &ModelSource, spec: &DecoderSpec, weights: &Weights, isa: &str) -> Result<Option<Self>> {
        let Some(marks) = weights.file_marks()?.filter(|marks| !marks.is_empty()) else { return Ok(None) };
        let paths: Vec<PathBuf> = marks.iter().map(|mark| whole_path(&mark.path)).collect();
        let mut named = Sha256::new();
        field(&mut named, isa.as_bytes());
        paths.iter().for_each(|path| field(&mut named, path.as_os_str().as_encoded_bytes()));
        let name = format!("{}-{}", readable(marks[0].path.as_ref()), &hex(&named.finalize())[..16]);
        let mut hash = Sha256::new();
        field(&mut hash, env!("CARGO_PKG_VERSION").as_bytes());
        field(&mut hash, isa.as_bytes());
        marks.iter().for_each(|mark| field(&mut hash, mark.mark.as_bytes()));
        // How quantized tensors are put together is said there.
        field(&mut hash, &source.read("config.json")?.unwrap_or_default());
        field(&mut hash, format!("{spec:?}").as_bytes());
        let mut line = String::new();
        for (slot, param, view) in weights.iter() {
            line.clear();
            let _ = write!(line, "{slot:?} {param} {} {:?}", view.dtype, view.shape);
            field(&mut hash, line.as_bytes());
        }
        Ok(Some(Self { name, digest: hash.finalize().into(), marks }))
    }

    /// A key that stands for no files.
    #[cfg(test)]
    pub(crate) fn pretended(number: u8) -> Self {
        Self { name: format!("pretended-{number}"), digest: [number; 32], marks: Vec::new() }
    }

    /// Whether the files are still as they were when the key was made.
    pub(crate) fn still_holds(&self, weights: &Weights) -> Result<bool> {
        Ok(weights.file_marks()?.as_ref() == Some(&self.marks))
    }
}

/// The path with links followed, or as it is.
fn whole_path(path: &str) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.into())
}

/// The name of a model: of its file, or of its folder if the file is called as such files are.
fn readable(path: &Path) -> String {
    let text = |part: Option<&OsStr>| part.map(|part| part.to_string_lossy().into_owned()).unwrap_or_default();
    let stem = text(path.file_stem());
    let name = if stem.starts_with("model") { text(path.parent().and_then(|folder| folder.file_name())) } else { stem };
    let harmless = |letter: char| if letter.is_ascii_alphanumeric() || "._-".contains(letter) { letter } else { '_' };
    let name: String = name.chars().map(harmless).take(NAME_LEN).collect();
    if name.trim_matches('.').is_empty() { "model".into() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_files_or_folders() {
        let name = |path: &str| readable(path.as_ref());
        assert_eq!(name("/m/Qwen3-0.6B-Q8_0.gguf"), "Qwen3-0.6B-Q8_0");
        assert_eq!(name("/m/Qwen3-0.6B/model.safetensors"), "Qwen3-0.6B");
        assert_eq!(name("/m/Qwen3/model-00001-of-00002.safetensors"), "Qwen3");
        assert_eq!(name("/m/größe und\n..gguf"), "gr__e_und_.");
        assert_eq!(name("model.gguf"), "model");
        assert_eq!(name(&format!("/{}.gguf", "x".repeat(500))).len(), NAME_LEN);
    }
}
