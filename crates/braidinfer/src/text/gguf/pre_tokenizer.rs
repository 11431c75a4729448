//! Pre-tokenizers of byte-level BPE, by their names in `tokenizer.ggml.pre`.
//!
//! The expressions are those of the models' published `tokenizer.json` files.

use serde_json::Value as Json;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::punctuation::Punctuation;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::{Error, Result};

/// A pre-tokenizer: how a text is split before merging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PreTokenizer {
    /// Its names; the first is used for writing.
    pub(super) names: &'static [&'static str],
    /// What is done to the text, one after the other; in the end its bytes become characters.
    steps: &'static [Step],
    /// Whether the text is first normalized to NFC.
    pub(super) nfc: bool,
    /// Whether a part that is a token is used directly, without merging.
    pub(super) ignore_merges: bool,
    /// Whether a BOS token is added if the file does not say.
    pub(super) add_bos: bool,
}

/// How the parts of a text are split further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Digits, one by one.
    Digits,
    /// Runs of digits.
    Numbers,
    /// Runs of punctuation.
    Punctuation,
    /// What matches a regular expression.
    Split(&'static str),
    /// GPT-2's expression; bytes become characters.
    Gpt2,
}

const GPT2: PreTokenizer = PreTokenizer {
    names: &[
        "gpt-2",
        "phi-2",
        "mpt",
        "olmo",
        "jais",
        "trillion",
        "granite-docling",
        "exaone4",
        "a.x-4.0",
        "mellum",
        "gigachat",
    ],
    steps: &[Step::Gpt2],
    nfc: false,
    ignore_merges: false,
    add_bos: false,
};

/// Letters, numbers of up to three digits, and punctuation (OpenAI's cl100k).
const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Like `CL100K`, with single digits.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Also splits words at changes from lower to upper case (OpenAI's o200k).
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Like `O200K`, with single digits and without contractions (Mistral's Tekken).
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Like `QWEN2`, with marks as parts of words.
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Like `QWEN2`, with other line breaks.
const SEED: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
/// BLOOM's and Poro's.
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
/// Chinese characters, and those of other scripts that are written without spaces.
const DEEPSEEK_CJK: &str = "[一-龥ࠀ-一가-\u{d7ff}]+";
const DEEPSEEK_V3_CJK: &str = "[一-龥\u{3040}-ゟ゠-ヿ]+";
/// Words, with punctuation before them, as DeepSeek-V3 cuts them.
const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
/// The letters of DeepSeek-LLM, which has a list of them.
const DEEPSEEK_LLM_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\x{1f7d}ᾀ-ᾴᾶ-ᾼ\x{1fbe}ῂ-ῄῆ-ῌῐ-\x{1fd3}ῖ-\x{1fdb}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212a}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const DEEPSEEK_LLM_SIGNS: &str = r"\s?[!-/:-~！-／：-～‘-‟\x{3000}-。]+";
/// Kimi K2's: `O200K` with Chinese characters by themselves.
const KIMI: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

pub(super) const KNOWN: &[PreTokenizer] = &[
    GPT2,
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        steps: &[Step::Digits, Step::Gpt2],
        ..GPT2
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        steps: &[Step::Split(CL100K)],
        ignore_merges: true,
        add_bos: true,
        ..GPT2
    },
    PreTokenizer { names: &["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], steps: &[Step::Split(CL100K)], ..GPT2 },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen", "megrez", "kormo"],
        steps: &[Step::Split(QWEN2)],
        nfc: true,
        ..GPT2
    },
    PreTokenizer { names: &["stablelm2", "hunyuan", "solar-open", "grok-2"], steps: &[Step::Split(QWEN2)], ..GPT2 },
    PreTokenizer { names: &["qwen35"], steps: &[Step::Split(QWEN35)], nfc: true, ..GPT2 },
    PreTokenizer { names: &["gpt-4o", "llama4", "minimax-m2"], steps: &[Step::Split(O200K)], ..GPT2 },
    PreTokenizer { names: &["tekken"], steps: &[Step::Split(TEKKEN)], ignore_merges: true, add_bos: true, ..GPT2 },
    PreTokenizer { names: &["seed-coder"], steps: &[Step::Split(SEED)], ..GPT2 },
    PreTokenizer { names: &["bailingmoe", "bailingmoe2", "llada-moe"], steps: &[Step::Split(BAILING)], ..GPT2 },
    PreTokenizer { names: &["kimi-k2"], steps: &[Step::Split(KIMI)], ..GPT2 },
    PreTokenizer { names: &["bloom", "poro-chat", "gpt3-finnish"], steps: &[Step::Split(BLOOM)], ..GPT2 },
    PreTokenizer { names: &["viking"], steps: &[Step::Split(BLOOM), Step::Digits], ..GPT2 },
    PreTokenizer {
        names: &["falcon"],
        steps: &[Step::Punctuation, Step::Gpt2, Step::Numbers, Step::Split("[0-9][0-9][0-9]")],
        ..GPT2
    },
    PreTokenizer {
        names: &["deepseek-llm"],
        steps: &[
            Step::Split(r"[\r\n]"),
            Step::Split(DEEPSEEK_LLM_LETTERS),
            Step::Split(DEEPSEEK_LLM_SIGNS),
            Step::Split(r"\s+$"),
            Step::Split(DEEPSEEK_CJK),
            Step::Digits,
        ],
        ..GPT2
    },
    PreTokenizer {
        names: &["deepseek-coder"],
        steps: &[
            Step::Split(r"[\r\n]"),
            Step::Split(r"\s?\p{L}+"),
            Step::Split(r"\s?\p{P}+"),
            Step::Split(DEEPSEEK_CJK),
            Step::Digits,
        ],
        ..GPT2
    },
    PreTokenizer {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm"],
        steps: &[Step::Split(r"\p{N}{1,3}"), Step::Split(DEEPSEEK_V3_CJK), Step::Split(DEEPSEEK_V3)],
        ..GPT2
    },
];

/// The pre-tokenizer with this name.
pub(super) fn named(name: &str) -> Option<PreTokenizer> {
    KNOWN.iter().find(|known| known.names.contains(&name)).copied()
}

/// The pre-tokenizer with the same steps as `pre_tokenizer` in a `tokenizer.json`, regardless of their nesting.
pub(super) fn of_json(json: &Json, nfc: bool, ignore_merges: bool) -> Option<PreTokenizer> {
    let steps: Vec<&Json> = steps(json).into_iter().filter(|step| !is_byte_level_alone(step)).collect();
    let is_known = |known: &&PreTokenizer| {
        known.steps.len() == steps.len() && known.steps.iter().zip(&steps).all(|(known, step)| known.is(step))
    };
    // Another `ignore_merges` only matters for tokens that no merge produces, and another normalization only for texts that it
    // changes; whether they do is checked by reading back.
    let same = |known: &&PreTokenizer| (known.ignore_merges, known.nfc) == (ignore_merges, nfc);
    let candidates = || KNOWN.iter().filter(is_known);
    let same_merges = |known: &&PreTokenizer| known.ignore_merges == ignore_merges;
    let found = candidates().find(same).or_else(|| candidates().find(same_merges)).or_else(|| candidates().next());
    found.copied()
}

/// Whether a step only makes bytes characters.
fn is_byte_level_alone(step: &Json) -> bool {
    step["type"] == "ByteLevel" && step["add_prefix_space"] != true && step["use_regex"] == false
}

impl Step {
    /// Whether this is a step of a `tokenizer.json`.
    fn is(self, step: &Json) -> bool {
        match (self, step["type"].as_str()) {
            (Self::Digits, Some("Digits")) => step["individual_digits"] == true,
            (Self::Numbers, Some("Digits")) => step["individual_digits"] != true,
            (Self::Punctuation, Some("Punctuation")) => step["behavior"] == "Contiguous",
            (Self::Split(pattern), Some("Split")) => step["pattern"]["Regex"] == pattern,
            (Self::Gpt2, Some("ByteLevel")) => step["add_prefix_space"] != true && step["use_regex"] != false,
            _ => false,
        }
    }

    fn build(self) -> Result<PreTokenizerWrapper> {
        Ok(match self {
            Self::Digits => Digits::new(true).into(),
            Self::Numbers => Digits::new(false).into(),
            Self::Punctuation => Punctuation::new(SplitDelimiterBehavior::Contiguous).into(),
            Self::Gpt2 => ByteLevel::new(false, true, true).into(),
            Self::Split(pattern) => {
                let split =
                    Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false);
                split.map_err(|error| Error::Internal(format!("a pre-tokenizer's expression: {error}")))?.into()
            }
        })
    }
}

fn steps(json: &Json) -> Vec<&Json> {
    match json["pretokenizers"].as_array() {
        Some(inner) => inner.iter().flat_map(steps).collect(),
        None => vec![json],
    }
}

impl PreTokenizer {
    /// The equivalent pre-tokenizer of the `tokenizers` crate.
    pub(super) fn build(self) -> Result<PreTokenizerWrapper> {
        let mut steps = self.steps.iter().map(|step| step.build()).collect::<Result<Vec<_>>>()?;
        if !self.steps.contains(&Step::Gpt2) {
            steps.push(ByteLevel::new(false, true, false).into());
        }
        Ok(Sequence::new(steps).into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    use super::*;

    fn parts(pre_tokenizer: &PreTokenizerWrapper, text: &str) -> Vec<String> {
        let mut cut = PreTokenizedString::from(text);
        pre_tokenizer.pre_tokenize(&mut cut).expect("the text can be cut");
        let splits = cut.get_splits(OffsetReferential::Normalized, OffsetType::Char);
        splits.into_iter().map(|(part, _, _)| part.to_owned()).collect()
    }

    const TEXTS: [&str; 7] = [
        "Hello, world's 1234567 tests!! \r\n\r\n  x=3.14; \t",
        " 12 345 ½٣ 3..3 $5+6<7>8^9~|`",
        "你好，世界！今天是2026年8月13日 ひらがなカタカナ 한국어 ㄱ",
        "e\u{301}te\u{301} नमस्ते สวัสดี ქართული ﬁ ǅ Ω",
        "fn main() {\n    let a_b = \"c\";\n}\n\n\n  ",
        "🚀🚀 ¡Hola! don't DON'T it's I'LL",
        "  \n \u{3000}。‘quoted’ ",
    ];

    #[test]
    fn all_expressions_can_be_used_and_lose_nothing() {
        let bytes = |text: &str| parts(&ByteLevel::new(false, true, false).into(), text).concat();
        for known in KNOWN {
            let built = known.build().unwrap_or_else(|error| panic!("{:?}: {error}", known.names));
            for text in TEXTS {
                assert_eq!(parts(&built, text).concat(), bytes(text), "{:?}: {text}", known.names);
            }
        }
    }

    #[test]
    fn texts_are_cut_as_the_families_do() {
        let cut =
            |name: &str, text: &str| parts(&named(name).expect("it is known").build().expect("it can be built"), text);
        for (name, text, expected) in [
            ("falcon", "a 1234567!! b", vec!["a", "Ġ", "123", "456", "7", "!!", "Ġb"]),
            ("mpt", "a 1234!! b", vec!["a", "Ġ1234", "!!", "Ġb"]),
            ("deepseek-coder", "ab 123\n\nc!", vec!["ab", "Ġ", "1", "2", "3", "Ċ", "Ċ", "c", "!"]),
            ("deepseek-llm", "ab 12 !?  ", vec!["ab", "Ġ", "1", "2", "Ġ!?", "ĠĠ"]),
            ("deepseek-v3", "x.y 1234 !!\nz", vec!["x", ".y", "Ġ", "123", "4", "Ġ!!Ċ", "z"]),
            ("qwen35", "e\u{301}a 12", vec!["eÌģa", "Ġ", "1", "2"]),
            ("qwen2", "e\u{301}a 12", vec!["e", "Ìģa", "Ġ", "1", "2"]),
            ("glm4", "a 1234", vec!["a", "Ġ", "123", "4"]),
            ("viking", "ab 12, c", vec!["ab", "Ġ", "1", "2", ",", "Ġc"]),
            ("kimi-k2", "a中文b", vec!["a", "ä¸ŃæĸĩĠ".trim_end_matches('Ġ'), "b"]),
        ] {
            assert_eq!(cut(name, text), expected, "{name}: {text:?}");
        }
    }

    #[test]
    fn steps_of_tokenizer_files_are_recognized() {
        let plain = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false});
        let falcon = json!({"type": "Sequence", "pretokenizers": [{"type": "Punctuation", "behavior": "Contiguous"},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}, {"type": "Digits", "individual_digits": false},
            {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": false}]});
        assert_eq!(of_json(&falcon, false, false), named("falcon"));
        let split = |pattern: &str| json!({"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": pattern}}, plain]});
        assert_eq!(of_json(&split(QWEN35), true, false), named("qwen35"));
        assert_eq!(of_json(&split(QWEN2), true, false), named("qwen2"));
        assert_eq!(of_json(&split(QWEN2), false, false), named("hunyuan"));
        assert_eq!(of_json(&split(CL100K), false, true), named("llama-bpe"));
        assert_eq!(of_json(&split("x"), false, false), None);
    }
}
