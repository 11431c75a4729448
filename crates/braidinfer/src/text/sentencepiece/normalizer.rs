//! Normalization of text before segmentation: character rules, then spaces.

use super::SPACE;
use super::proto::NormalizerSpec;
use super::spellings::Spellings;

#[derive(Debug)]
pub(super) struct Normalizer {
    charsmap: Option<Charsmap>,
    /// The rules as stored in the model.
    charsmap_bytes: Vec<u8>,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    space: char,
    whitespace_as_suffix: bool,
    /// User-defined symbols; no rule applies inside them.
    symbols: Spellings,
}

impl Normalizer {
    pub(super) fn new(spec: &NormalizerSpec, whitespace_as_suffix: bool, symbols: &[String]) -> Result<Self, String> {
        let charsmap = spec.precompiled_charsmap().to_vec();
        Ok(Self {
            charsmap: if charsmap.is_empty() { None } else { Some(Charsmap::parse(&charsmap)?) },
            charsmap_bytes: charsmap,
            add_dummy_prefix: spec.add_dummy_prefix(),
            remove_extra_whitespaces: spec.remove_extra_whitespaces(),
            space: if spec.escape_whitespaces() { SPACE } else { ' ' },
            whitespace_as_suffix,
            symbols: Spellings::new(symbols)?,
        })
    }

    /// Compiled character rules; empty if there are none.
    pub(super) fn charsmap_bytes(&self) -> &[u8] {
        &self.charsmap_bytes
    }

    /// Whether a space is added before a text.
    pub(super) fn add_dummy_prefix(&self) -> bool {
        self.add_dummy_prefix
    }

    pub(super) fn remove_extra_whitespaces(&self) -> bool {
        self.remove_extra_whitespaces
    }

    /// The longest user-defined symbol that `text` begins with.
    pub(super) fn symbol<'a>(&self, text: &'a str) -> Option<&'a str> {
        self.symbols.prefix(text).map(|(_, len)| &text[..len])
    }

    /// The normalized text. `at_start` is false for text after a special token.
    pub(super) fn normalize(&self, text: &str, at_start: bool) -> String {
        let mut rest = text;
        if self.remove_extra_whitespaces {
            while let (" ", used) = self.prefix(rest)
                && used > 0
            {
                rest = &rest[used..];
            }
        }
        if rest.is_empty() {
            return String::new();
        }
        let mut normalized = String::with_capacity(text.len() + 3);
        let dummy = self.add_dummy_prefix && at_start;
        if dummy && !self.whitespace_as_suffix {
            normalized.push(self.space);
        }
        self.append(rest, &mut normalized);
        if self.remove_extra_whitespaces {
            normalized.truncate(normalized.trim_end_matches(self.space).len());
        }
        if dummy && self.whitespace_as_suffix {
            normalized.push(self.space);
        }
        normalized
    }

    fn append(&self, mut rest: &str, normalized: &mut String) {
        let mut after_space = self.remove_extra_whitespaces;
        while !rest.is_empty() {
            let (mut replaced, used) = self.prefix(rest);
            if after_space {
                replaced = replaced.trim_start_matches(' ');
            }
            if !replaced.is_empty() {
                normalized.extend(replaced.chars().map(|c| if c == ' ' { self.space } else { c }));
                after_space = self.remove_extra_whitespaces && replaced.ends_with(' ');
            }
            rest = &rest[used..];
        }
    }

    /// The normalized form of the beginning of `text`, and the number of bytes that it replaces.
    fn prefix<'a>(&'a self, text: &'a str) -> (&'a str, usize) {
        if let Some(symbol) = self.symbol(text) {
            return (symbol, symbol.len());
        }
        if let Some(replaced) = self.charsmap.as_ref().and_then(|map| map.longest(text)) {
            return replaced;
        }
        let len = text.chars().next().map_or(0, char::len_utf8);
        (&text[..len], len)
    }
}

/// Compiled character rules: a double-array trie (Aoe 1989, in the layout of darts-clone) from byte strings
/// to offsets of NUL-terminated replacements.
#[derive(Debug)]
struct Charsmap {
    units: Vec<u32>,
    replacements: String,
}

impl Charsmap {
    /// Parses the little-endian format: the trie's size in bytes, the trie, the replacements.
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let cut = || "expected whole character rules, found a shorter map".to_owned();
        let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(cut)?;
        let (trie, replacements) = rest.split_at_checked(u32::from_le_bytes(*size) as usize).ok_or_else(cut)?;
        let (units, odd) = trie.as_chunks::<4>();
        if units.is_empty() || !odd.is_empty() {
            return Err(cut());
        }
        let units = units.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        let replacements = std::str::from_utf8(replacements)
            .map_err(|error| format!("expected character rules in UTF-8, found {error}"))?;
        Ok(Self { units, replacements: replacements.to_owned() })
    }

    /// The replacement of the longest rule that matches at the beginning of `text`, and the length of the match.
    fn longest(&self, text: &str) -> Option<(&str, usize)> {
        let mut found = None;
        let mut position = offset(self.units[0]);
        for (index, byte) in text.bytes().enumerate() {
            position ^= usize::from(byte);
            let unit = *self.units.get(position)?;
            if label(unit) != u32::from(byte) {
                break;
            }
            position ^= offset(unit);
            if has_leaf(unit) && text.is_char_boundary(index + 1) {
                found = self.units.get(position).map(|leaf| (value(*leaf), index + 1));
            }
        }
        let (start, len) = found?;
        let replacement = self.replacements.get(start..)?;
        Some((replacement.split('\0').next().unwrap_or_default(), len))
    }
}

fn has_leaf(unit: u32) -> bool {
    unit >> 8 & 1 == 1
}

fn value(unit: u32) -> usize {
    (unit & 0x7fff_ffff) as usize
}

fn label(unit: u32) -> u32 {
    unit & 0x8000_00ff
}

fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & 0x200) >> 6)) as usize
}
