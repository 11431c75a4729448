//! Parsing names of GGUF files: quantization, and position in a split model.

use std::collections::BTreeMap;

/// A GGUF model: one file, or the parts of a split model in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GgufSet {
    /// Paths in the repository.
    pub files: Vec<String>,
    /// The number of parts according to the file names.
    pub promised: usize,
    /// File name without folder, `.gguf` and part number.
    stem: String,
    folder: String,
}

impl GgufSet {
    /// The models in `files`: parts of split models are grouped; projectors and importance matrices are skipped.
    pub fn all(files: &[String]) -> Vec<Self> {
        let mut sets: BTreeMap<(String, String, usize), Vec<(usize, String)>> = BTreeMap::new();
        for file in files {
            let Some((folder, stem)) = folder_and_stem(file) else { continue };
            if is_companion(stem) {
                continue;
            }
            let (stem, part, promised) = split_part(stem).unwrap_or((stem, 1, 1));
            let key = (folder.to_owned(), stem.to_owned(), promised);
            sets.entry(key).or_default().push((part, file.clone()));
        }
        let set = |((folder, stem, promised), mut parts): ((String, String, usize), Vec<(usize, String)>)| {
            parts.sort();
            Self { files: parts.into_iter().map(|(_, file)| file).collect(), promised, stem, folder }
        };
        sets.into_iter().map(set).collect()
    }

    /// The quantization in the file's name, or else in its folder's name.
    pub fn label(&self) -> Option<&str> {
        let folder = self.folder.rsplit('/').next().unwrap_or_default();
        label_in(&self.stem).or_else(|| label_in(folder))
    }

    /// What a user can write to select this model.
    pub fn handle(&self) -> &str {
        self.label().unwrap_or(&self.stem)
    }

    /// File name without folder, `.gguf` and part number.
    pub fn stem(&self) -> &str {
        &self.stem
    }

    /// Those of `sets` that `quant` selects, in this order of precedence: the exact quantization, a quantization
    /// without the prefix of dynamic ones, a whole file name, a part of a name without a known quantization.
    pub fn matching<'a>(sets: &'a [Self], quant: &str) -> Vec<&'a Self> {
        let same = |text: &str| text.eq_ignore_ascii_case(quant);
        let by_label = |set: &Self| set.label().is_some_and(same);
        let by_plain_label = |set: &Self| set.label().is_some_and(|label| same(without_dynamic(label)));
        let by_stem = |set: &Self| same(&set.stem);
        let by_tag = |set: &Self| set.label().is_none() && has_tag(&set.stem, quant);
        let tiers: [&dyn Fn(&Self) -> bool; 4] = [&by_label, &by_plain_label, &by_stem, &by_tag];
        let pick = |tier: &&dyn Fn(&Self) -> bool| sets.iter().filter(|set| tier(set)).collect::<Vec<_>>();
        tiers.iter().map(pick).find(|found| !found.is_empty()).unwrap_or_default()
    }
}

fn folder_and_stem(path: &str) -> Option<(&str, &str)> {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let (stem, extension) = name.rsplit_once('.')?;
    extension.eq_ignore_ascii_case("gguf").then_some((folder, stem))
}

/// Whether this is a projector of a multimodal model or an importance matrix, which are GGUF files but no models.
fn is_companion(stem: &str) -> bool {
    let stem = stem.to_ascii_lowercase();
    has_tag(&stem, "mmproj") || stem.starts_with("imatrix") || stem.ends_with("imatrix")
}

/// Parses `name-00002-of-00005`, llama.cpp's naming of split files, as (`name`, 2, 5).
fn split_part(stem: &str) -> Option<(&str, usize, usize)> {
    const DIGITS: usize = 5;
    let number = |text: &str| (text.len() == DIGITS).then(|| text.parse::<usize>().ok()).flatten();
    let (rest, promised) = stem.rsplit_once("-of-")?;
    let (name, part) = rest.rsplit_once('-')?;
    let (part, promised) = (number(part)?, number(promised)?);
    (1..=promised).contains(&part).then_some((name, part, promised))
}

/// The last part of `name` that looks like a quantization: `Q4_K_M`, `IQ2_XXS`, `BF16`, `UD-Q4_K_XL`.
fn label_in(name: &str) -> Option<&str> {
    let starts = name.char_indices().filter(|&(at, _)| at == 0 || name[..at].ends_with(['-', '.', '_']));
    let (start, end) = starts.filter_map(|(at, _)| Some((at, at + label_length(&name[at..])?))).next_back()?;
    // Dynamic quantizations with the same name are different files.
    let dynamic = name[..start].len().checked_sub(3).filter(|&at| {
        name.get(at..start).is_some_and(|prefix| prefix.eq_ignore_ascii_case("UD-"))
            && (at == 0 || name[..at].ends_with(['-', '.', '_']))
    });
    Some(&name[dynamic.unwrap_or(start)..end])
}

fn without_dynamic(label: &str) -> &str {
    label.get(..3).filter(|prefix| prefix.eq_ignore_ascii_case("UD-")).map_or(label, |_| &label[3..])
}

/// Length of the quantization (a ggml type) at the beginning of `text`, including everything joined to it by `_`.
fn label_length(text: &str) -> Option<usize> {
    let end = text.find(['-', '.']).unwrap_or(text.len());
    let label = &text[..end];
    let kind = label.split('_').next().unwrap_or_default().to_ascii_uppercase();
    let counted = |prefix: &str| {
        kind.strip_prefix(prefix).is_some_and(|n| n.len() == 1 && n.bytes().all(|b| (b'1'..=b'8').contains(&b)))
    };
    let known = ["F16", "BF16", "F32", "F64", "FP16", "FP32", "MXFP4", "NVFP4"].contains(&kind.as_str());
    (known || counted("Q") || counted("IQ") || counted("TQ")).then_some(end)
}

/// Whether `name` contains `tag` between delimiters. An underscore after it is no delimiter, because `Q4_0` is not
/// `Q4_0_4_4`.
fn has_tag(name: &str, tag: &str) -> bool {
    let (name, tag) = (name.to_ascii_lowercase(), tag.to_ascii_lowercase());
    name.match_indices(&tag).any(|(at, _)| {
        let (before, after) = (&name[..at], &name[at + tag.len()..]);
        (before.is_empty() || before.ends_with(['-', '.', '_'])) && (after.is_empty() || after.starts_with(['-', '.']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(files: &[&str]) -> Vec<GgufSet> {
        GgufSet::all(&files.iter().map(|file| (*file).to_owned()).collect::<Vec<_>>())
    }

    fn chosen(files: &[&str], quant: &str) -> Vec<String> {
        GgufSet::matching(&sets(files), quant).into_iter().map(|set| set.files[0].clone()).collect()
    }

    #[test]
    fn labels() {
        for (name, label) in [
            ("Qwen3-0.6B-Q8_0", Some("Q8_0")),
            ("llama-2-7b.Q4_K_M", Some("Q4_K_M")),
            ("gemma-3-1b-it-q4_0", Some("q4_0")),
            ("model_q4_k_m", Some("q4_k_m")),
            ("ggml-model-Q4_0_4_4", Some("Q4_0_4_4")),
            ("X-IQ2_XXS", Some("IQ2_XXS")),
            ("X-UD-Q4_K_XL", Some("UD-Q4_K_XL")),
            ("X-CLOUD-Q4_0", Some("Q4_0")),
            ("X-TQ1_0", Some("TQ1_0")),
            ("X.BF16", Some("BF16")),
            ("gpt-oss-20b-MXFP4", Some("MXFP4")),
            ("Q4_K_M", Some("Q4_K_M")),
            ("Qwen3-8B", None),
            ("phi-2", None),
            ("Q-model", None),
            ("ü-Q4_0", Some("Q4_0")),
            ("", None),
        ] {
            assert_eq!(label_in(name), label, "{name}");
        }
    }

    #[test]
    fn a_quantization_does_not_match_similar_names() {
        let files = ["m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-Q4_0.gguf", "m-Q4_0_4_4.gguf", "m-F16.gguf", "m-BF16.gguf"];
        assert_eq!(chosen(&files, "q4_k_m"), ["m-Q4_K_M.gguf"]);
        assert_eq!(chosen(&files, "Q4_0"), ["m-Q4_0.gguf"]);
        assert_eq!(chosen(&files, "F16"), ["m-F16.gguf"]);
        assert_eq!(chosen(&files, "M-f16"), ["m-F16.gguf"]);
        for nothing in ["Q4_K", "Q4", "K_M", "M", "0", "16"] {
            assert!(chosen(&files, nothing).is_empty(), "{nothing}");
        }
    }

    #[test]
    fn dynamic_quantizations_differ_from_plain_ones() {
        let files = ["m-Q4_K_M.gguf", "m-UD-Q4_K_M.gguf", "m-UD-Q4_K_XL.gguf"];
        assert_eq!(chosen(&files, "Q4_K_M"), ["m-Q4_K_M.gguf"]);
        assert_eq!(chosen(&files, "UD-Q4_K_M"), ["m-UD-Q4_K_M.gguf"]);
        assert_eq!(chosen(&files, "Q4_K_XL"), ["m-UD-Q4_K_XL.gguf"]);
    }

    #[test]
    fn names_without_a_known_quantization_are_matched_by_a_part() {
        assert_eq!(chosen(&["m-turbo.gguf", "m-best.gguf"], "Turbo"), ["m-turbo.gguf"]);
        assert_eq!(chosen(&["a-Q4_0.gguf", "b-Q4_0.gguf"], "Q4_0").len(), 2);
        assert_eq!(chosen(&["a-Q4_0.gguf", "b-Q4_0.gguf"], "b-q4_0"), ["b-Q4_0.gguf"]);
    }

    #[test]
    fn split_files_are_one_model_and_the_folder_may_name_the_quantization() {
        let files = ["Q8_0/m-00002-of-00002.gguf", "Q8_0/m-00001-of-00002.gguf", "m-Q4_0.gguf", "README.md"];
        let all = sets(&files);
        assert_eq!(all.len(), 2);
        assert_eq!(chosen(&files, "q8_0"), ["Q8_0/m-00001-of-00002.gguf"]);
        let split = all.iter().find(|set| set.promised == 2).expect("the split one");
        assert_eq!(split.files, ["Q8_0/m-00001-of-00002.gguf", "Q8_0/m-00002-of-00002.gguf"]);
        for name in ["m-00000-of-00002", "m-00003-of-00002", "m-1-of-2", "m-of-00002", "-of-"] {
            assert_eq!(split_part(name), None, "{name}");
        }
    }

    #[test]
    fn projectors_and_importance_matrices_are_skipped() {
        let files = ["mmproj-F16.gguf", "m-mmproj-f16.gguf", "imatrix_x.gguf", "m-F16.gguf", "m-imatrix-Q4_0.gguf"];
        assert_eq!(chosen(&files, "F16"), ["m-F16.gguf"]);
        assert_eq!(chosen(&files, "Q4_0"), ["m-imatrix-Q4_0.gguf"]);
    }
}
