//! Prompts of models that fill in the middle of a text: the text before it and the text after it, between tokens for that.

use super::Tokenizer;

/// How a model family writes what it shall fill in.
struct InfillFormat {
    /// Tokens before the text before, before the text after, and at the end.
    prefix: &'static str,
    suffix: &'static str,
    middle: Option<&'static str>,
    /// Whether the text after comes first.
    is_suffix_first: bool,
    /// Tokens that such models write after what they filled in, besides their end tokens.
    ends: &'static [&'static str],
}

const fn prefix_first(prefix: &'static str, suffix: &'static str, middle: &'static str) -> InfillFormat {
    InfillFormat { prefix, suffix, middle: Some(middle), is_suffix_first: false, ends: &[] }
}

/// The known formats. A tokenizer has the one whose tokens it has.
const FORMATS: &[InfillFormat] = &[
    // Qwen2.5-Coder, CodeGemma.
    InfillFormat {
        ends: &["<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>"],
        ..prefix_first("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
    },
    // StarCoder, Granite Code, SmolLM-based coders; SantaCoder.
    InfillFormat {
        ends: &["<fim_pad>", "<file_sep>", "<repo_name>"],
        ..prefix_first("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
    },
    prefix_first("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    // DeepSeek-Coder.
    prefix_first("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    // GLM-4 Code.
    prefix_first("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
    // CodeLlama.
    InfillFormat { ends: &["▁<EOT>"], ..prefix_first("▁<PRE>", "▁<SUF>", "▁<MID>") },
    // Codestral.
    InfillFormat { prefix: "[PREFIX]", suffix: "[SUFFIX]", middle: None, is_suffix_first: true, ends: &[] },
];

/// How a tokenizer writes what is to be filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InfillTokens {
    prefix: u32,
    suffix: u32,
    middle: Option<u32>,
    is_suffix_first: bool,
    /// Tokens that end what was filled in, besides the model's end tokens.
    pub ends: Vec<u32>,
}

impl InfillTokens {
    /// Those of a tokenizer; `None` if it has none.
    pub fn of(tokenizer: &Tokenizer) -> Option<Self> {
        FORMATS.iter().find_map(|format| {
            Some(Self {
                prefix: tokenizer.token_to_id(format.prefix)?,
                suffix: tokenizer.token_to_id(format.suffix)?,
                middle: match format.middle {
                    Some(middle) => Some(tokenizer.token_to_id(middle)?),
                    None => None,
                },
                is_suffix_first: format.is_suffix_first,
                ends: format.ends.iter().filter_map(|end| tokenizer.token_to_id(end)).collect(),
            })
        })
    }

    /// The prompt for what stands between two texts, given as token ids without special tokens; `leading` are those that the
    /// tokenizer adds to every text.
    pub fn prompt(&self, leading: Vec<u32>, before: &[u32], after: &[u32]) -> Vec<u32> {
        let mut ids = leading;
        let parts = [(self.prefix, before), (self.suffix, after)];
        let mut add = |(token, text): (u32, &[u32])| {
            ids.push(token);
            ids.extend(text);
        };
        if self.is_suffix_first {
            parts.into_iter().rev().for_each(&mut add)
        } else {
            parts.into_iter().for_each(&mut add)
        }
        ids.extend(self.middle);
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_stand_in_the_order_of_the_family() {
        let prefix_first =
            InfillTokens { prefix: 1, suffix: 2, middle: Some(3), is_suffix_first: false, ends: Vec::new() };
        assert_eq!(prefix_first.prompt(vec![0], &[10, 11], &[12]), [0, 1, 10, 11, 2, 12, 3]);
        let codestral = InfillTokens { middle: None, is_suffix_first: true, ..prefix_first };
        assert_eq!(codestral.prompt(vec![0], &[10, 11], &[12]), [0, 2, 12, 1, 10, 11]);
    }
}
