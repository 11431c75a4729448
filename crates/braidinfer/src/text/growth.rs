//! How much longer a `tokenizer.json` can make a text.
//!
//! A normalizer or a decoder can be a sequence of replacements, and each of them can make a text longer: forty of them that
//! double a letter turn a letter into a terabyte, and a process that cannot have that much memory ends.

use serde::Deserialize;
use serde_json::Value;

/// Most bytes that replacements may make of a byte. Published tokenizers stay below 20.
const MOST: usize = 1024;

/// The parts of a `tokenizer.json` that replace texts.
#[derive(Deserialize)]
struct Replacing {
    normalizer: Option<Value>,
    decoder: Option<Value>,
}

/// Fails if the replacements of a `tokenizer.json` can make a text more than [`MOST`] times as long. What is wrong in other
/// ways is left to its reader.
pub(super) fn check(json: &str) -> Result<(), String> {
    let Ok(Replacing { normalizer, decoder }) = serde_json::from_str(json) else { return Ok(()) };
    for (field, part) in [("normalizer", normalizer), ("decoder", decoder)] {
        let most = part.as_ref().map_or(1, growth);
        if most > MOST {
            return Err(format!(
                "field `{field}`: expected replacements that make a text at most {MOST} times as long, found {most} times"
            ));
        }
    }
    Ok(())
}

/// Most bytes that a normalizer or a decoder makes of a byte, by its replacements.
fn growth(part: &Value) -> usize {
    let inner = ["normalizers", "decoders"].iter().filter_map(|list| part[list].as_array()).flatten();
    let inner = inner.map(growth).fold(1, usize::saturating_mul);
    match part["type"].as_str() {
        Some("Replace") => inner.saturating_mul(replacement(part)),
        _ => inner,
    }
}

fn replacement(part: &Value) -> usize {
    let content = part["content"].as_str().map_or(0, str::len);
    match part["pattern"]["String"].as_str() {
        Some(pattern) if !pattern.is_empty() => content.div_ceil(pattern.len()).max(1),
        // A regular expression may match one byte, or nothing, beside every byte.
        _ => content.saturating_add(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(replacements: usize, pattern: &str) -> String {
        let one = format!(r#"{{"type":"Replace","pattern":{pattern},"content":"aa"}}"#);
        let all = vec![one; replacements].join(",");
        format!(r#"{{"normalizer":null,"decoder":{{"type":"Sequence","decoders":[{all}]}}}}"#)
    }

    #[test]
    fn replacements_multiply() {
        assert_eq!(check(&json(10, r#"{"String":"a"}"#)), Ok(()));
        assert_eq!(check(&json(60, r#"{"String":"aa"}"#)), Ok(()), "these change nothing");
        let error = check(&json(40, r#"{"String":"a"}"#)).expect_err("that is a terabyte");
        assert!(error.starts_with("field `decoder`: ") && error.ends_with("found 1099511627776 times"), "{error}");
        check(&json(7, r#"{"Regex":"a|"}"#)).expect_err("an empty match is replaced, too");
        check(&json(100, r#"{"String":"a"}"#)).expect_err("more than there are numbers");
    }
}
