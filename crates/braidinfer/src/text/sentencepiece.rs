//! SentencePiece models (`tokenizer.model`): the algorithm of Kudo and Richardson 2018, arXiv:1808.06226.
//!
//! Implemented here, because ids must equal those of the `sentencepiece` package: conversions to other tokenizers
//! change the order of equal merges, the normalization around user-defined symbols, and leading spaces.

mod bpe;
mod normalizer;
pub(super) mod parts;
mod proto;
mod spellings;
mod unigram;

use std::collections::HashMap;

use prost::Message;

use self::normalizer::Normalizer;
use self::proto::{ModelProto, ModelType, PieceType};
use self::spellings::Spellings;
use super::settings::{AddedToken, TokenizerSettings};
use crate::{Error, Result};

/// The character for a space in pieces.
const SPACE: char = '\u{2581}';
/// The reference's text for an unknown piece when decoding.
const UNKNOWN_SURFACE: &str = " \u{2047} ";

/// A SentencePiece tokenizer with the special tokens of its `tokenizer_config.json`.
#[derive(Debug)]
pub struct SentencePiece {
    vocabulary: Vocabulary,
    normalizer: Normalizer,
    algorithm: ModelType,
    byte_fallback: bool,
    strip_leading_space: StripLeadingSpace,
    /// The spellings of special tokens, for finding them in text.
    special_spellings: Spellings,
    /// The special tokens, in the order of `special_spellings`.
    specials: Vec<Special>,
    /// Added tokens, by id.
    added: HashMap<u32, AddedToken>,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    /// Whether text after a special token also gets the dummy prefix space.
    legacy: bool,
}

/// A special token that is recognized in text.
#[derive(Debug, Clone, Copy)]
struct Special {
    id: u32,
    lstrip: bool,
    rstrip: bool,
}

impl Special {
    fn plain(id: u32) -> Self {
        Self { id, lstrip: false, rstrip: false }
    }
}

/// What decoding removes at the beginning of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StripLeadingSpace {
    No,
    One,
    All,
}

impl StripLeadingSpace {
    fn of(settings: &proto::NormalizerSpec) -> Self {
        match (settings.remove_extra_whitespaces(), settings.add_dummy_prefix()) {
            (true, _) => Self::All,
            (false, true) => Self::One,
            (false, false) => Self::No,
        }
    }
}

/// The pieces of a model.
#[derive(Debug)]
struct Vocabulary {
    pieces: Vec<Piece>,
    /// Pieces that text may be encoded to.
    ids: HashMap<String, u32>,
    /// Every spelling, including control and byte pieces.
    spellings: HashMap<String, u32>,
    bytes: Vec<Option<u32>>,
    unknown: u32,
    /// Ids of the pieces that text may be encoded to, sorted by their bytes.
    sorted: Vec<u32>,
}

/// Requirements on the pieces of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pieces {
    /// No duplicates and no empty pieces.
    Distinct,
    /// No requirements; of duplicates, the last one counts.
    Any,
}

#[derive(Debug)]
struct Piece {
    text: String,
    score: f32,
    kind: PieceType,
}

impl From<proto::SentencePiece> for Piece {
    fn from(piece: proto::SentencePiece) -> Self {
        Self { score: piece.score(), kind: piece.r#type(), text: piece.piece.unwrap_or_default() }
    }
}

impl SentencePiece {
    /// Parses a `tokenizer.model`; `path` is for messages.
    pub fn parse(path: &str, bytes: &[u8]) -> Result<Self> {
        let error = |message: String| Error::Text { path: path.to_owned(), message };
        let model = ModelProto::decode(bytes).map_err(|fault| error(format!("not a SentencePiece model: {fault}")))?;
        let trainer = model.trainer_spec.unwrap_or_default();
        let algorithm = match trainer.model_type() {
            kind @ (ModelType::Unigram | ModelType::Bpe) => kind,
            other => return Err(error(format!("expected a unigram or BPE model, found {other:?}"))),
        };
        let pieces = model.pieces.into_iter().map(Piece::from).collect();
        let vocabulary = Vocabulary::new(pieces, Pieces::Distinct).map_err(&error)?;
        let settings = model.normalizer_spec.unwrap_or_default();
        let strip_leading_space = StripLeadingSpace::of(&settings);
        let symbols = vocabulary.of_kind(PieceType::UserDefined).map(|(_, piece)| piece.text.clone());
        let symbols: Vec<String> = symbols.collect();
        let normalizer = Normalizer::new(&settings, trainer.treat_whitespace_as_suffix(), &symbols).map_err(&error)?;
        let id = |id: i32| u32::try_from(id).ok().filter(|id| (*id as usize) < vocabulary.pieces.len());
        let (bos, eos) = (id(trainer.bos_id()), id(trainer.eos_id()));
        let byte_fallback = trainer.byte_fallback();
        let special_spellings = Spellings::new(&[]).map_err(&error)?;
        Ok(Self {
            vocabulary,
            normalizer,
            algorithm,
            byte_fallback,
            strip_leading_space,
            special_spellings,
            specials: Vec::new(),
            added: HashMap::new(),
            bos,
            eos,
            add_bos: false,
            add_eos: false,
            legacy: false,
        })
    }

    /// Applies the settings from the files next to the model: special tokens in text, and those added to every text. By
    /// default, BOS is added to every text, as in Llama's own code.
    pub fn configured(mut self, settings: &TokenizerSettings) -> Result<Self> {
        self.add_bos = settings.flag("add_bos_token")?.unwrap_or(true);
        self.add_eos = settings.flag("add_eos_token")?.unwrap_or(false);
        self.legacy = settings.flag("legacy")?.unwrap_or(false);
        self.added = settings.added_tokens()?.into_iter().map(|token| (token.id, token)).collect();
        let ids: HashMap<&str, u32> = self.added.iter().map(|(id, added)| (added.content.as_str(), *id)).collect();
        let id_of = |token: &str| ids.get(token).or_else(|| self.vocabulary.spellings.get(token)).copied();
        let named = |field: &str| settings.special_token(field);
        let (bos, eos) = (named("bos_token")?, named("eos_token")?);
        let resolved = |token: Option<&String>, own| token.and_then(|token| id_of(token)).or(own);
        let (bos, eos) = (resolved(bos.as_ref(), self.bos), resolved(eos.as_ref(), self.eos));

        let special = |token: &AddedToken| Special { id: token.id, lstrip: token.lstrip, rstrip: token.rstrip };
        let added = self.added.values().map(|token| (token.content.clone(), special(token)));
        let mut specials: HashMap<String, Special> = added.collect();
        for token in settings.special_tokens()? {
            if let Some(id) = id_of(&token) {
                specials.entry(token).or_insert(Special::plain(id));
            }
        }
        // If a config lists special tokens, the list is complete; other control pieces are then plain text.
        let listed = settings.lists_special_tokens();
        for (id, piece) in self.vocabulary.of_kind(PieceType::Control) {
            if !listed || [bos, eos].contains(&Some(id)) {
                specials.entry(piece.text.clone()).or_insert(Special::plain(id));
            }
        }
        let unknown = self.vocabulary.unknown;
        specials.entry(self.vocabulary.piece(unknown).text.clone()).or_insert(Special::plain(unknown));
        let (spellings, specials): (Vec<String>, Vec<Special>) = specials.into_iter().unzip();
        (self.bos, self.eos) = (bos, eos);
        self.special_spellings = Spellings::new(&spellings).map_err(|message| settings.error(message))?;
        self.specials = specials;
        Ok(self)
    }

    /// Size of the vocabulary, including added tokens.
    pub fn vocab_size(&self) -> usize {
        let beyond = self.added.keys().map(|id| *id as usize + 1).max().unwrap_or(0);
        self.vocabulary.pieces.len().max(beyond)
    }

    /// The id of a token by its spelling.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        let added = self.added.iter().find(|(_, added)| added.content == token).map(|(id, _)| *id);
        added.or_else(|| self.vocabulary.spellings.get(token).copied())
    }

    /// The spelling of an id.
    pub fn id_to_token(&self, id: u32) -> Option<&str> {
        let added = self.added.get(&id).map(|added| added.content.as_str());
        added.or_else(|| self.vocabulary.pieces.get(id as usize).map(|piece| piece.text.as_str()))
    }

    /// Whether a token is special, that is, has no text.
    pub fn is_special(&self, id: u32) -> bool {
        let of_model = self.vocabulary.pieces.get(id as usize).map(|piece| piece.kind);
        match self.added.get(&id) {
            Some(added) => added.special,
            None => matches!(of_model, Some(PieceType::Control | PieceType::Unknown)),
        }
    }

    /// Token ids of `text`, in which special tokens are recognized; `add_special` adds BOS and EOS as configured.
    pub fn encode(&self, text: &str, add_special: bool) -> Vec<u32> {
        let mut ids = Vec::new();
        if add_special && self.add_bos {
            ids.extend(self.bos);
        }
        let mut rest = text;
        let mut at_start = true;
        while !rest.is_empty() {
            let Some((index, start, len)) = self.special_spellings.first(rest) else {
                self.encode_plain(rest, at_start, &mut ids);
                break;
            };
            let Special { id, lstrip, rstrip } = self.specials[index];
            let (before, after) = (&rest[..start], &rest[start + len..]);
            // Only the first segment gets the dummy prefix space; text after a special token continues without it.
            self.encode_plain(if lstrip { before.trim_end() } else { before }, at_start, &mut ids);
            at_start = self.legacy;
            ids.push(id);
            rest = if rstrip { after.trim_start() } else { after };
        }
        if add_special && self.add_eos {
            ids.extend(self.eos);
        }
        ids
    }

    fn encode_plain(&self, text: &str, at_start: bool, ids: &mut Vec<u32>) {
        let normalized = self.normalizer.normalize(text, at_start);
        let pieces = match self.algorithm {
            ModelType::Bpe => bpe::encode(&normalized, &self.vocabulary, &self.normalizer),
            _ => unigram::encode(&normalized, &self.vocabulary),
        };
        let mut after_unknown = false;
        for (piece, id) in pieces {
            let unknown = id == self.vocabulary.unknown;
            if unknown && self.byte_fallback {
                ids.extend(piece.bytes().map(|byte| self.vocabulary.byte(byte)));
            } else if !(unknown && after_unknown) {
                ids.push(id);
            }
            after_unknown = unknown;
        }
    }

    /// Text of `ids`; each invalid byte becomes U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut text = String::new();
        let mut bytes = Vec::new();
        let mut strip = self.strip_leading_space;
        for id in ids {
            if let Some(byte) = self.vocabulary.byte_of(*id) {
                bytes.push(byte);
                continue;
            }
            flush(&mut bytes, &mut text);
            strip = self.decode_piece(
                *id,
                skip_special,
                if text.is_empty() { strip } else { StripLeadingSpace::No },
                &mut text,
            );
        }
        flush(&mut bytes, &mut text);
        text
    }

    /// Appends the text of one token, and returns what is still to be removed from the beginning of the text.
    fn decode_piece(
        &self,
        id: u32,
        skip_special: bool,
        strip: StripLeadingSpace,
        text: &mut String,
    ) -> StripLeadingSpace {
        if let Some(added) = self.added.get(&id) {
            // A user-defined symbol of the model has the model's character for spaces, even if a config lists it, too.
            let own = self.vocabulary.pieces.get(id as usize).is_some_and(|piece| piece.kind == PieceType::UserDefined);
            if own {
                text.push_str(&added.content.replace(SPACE, " "));
            } else if !(skip_special && added.special) {
                text.push_str(&added.content);
            }
            return strip;
        }
        let Some(piece) = self.vocabulary.pieces.get(id as usize) else { return strip };
        match piece.kind {
            PieceType::Control if skip_special => return strip,
            PieceType::Control => text.push_str(&piece.text),
            PieceType::Unknown => text.push_str(UNKNOWN_SURFACE),
            _ => {
                let stripped = match strip {
                    StripLeadingSpace::No => &piece.text,
                    StripLeadingSpace::One => piece.text.strip_prefix(SPACE).unwrap_or(&piece.text),
                    StripLeadingSpace::All => piece.text.trim_start_matches(SPACE),
                };
                text.extend(stripped.chars().map(|c| if c == SPACE { ' ' } else { c }));
                if strip == StripLeadingSpace::One && stripped.len() < piece.text.len() {
                    return StripLeadingSpace::No;
                }
            }
        }
        strip
    }
}

/// Appends the collected bytes to the text.
fn flush(bytes: &mut Vec<u8>, text: &mut String) {
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    bytes.clear();
}

impl Vocabulary {
    fn new(pieces: Vec<Piece>, expected: Pieces) -> Result<Self, String> {
        let mut vocabulary = Self {
            ids: HashMap::new(),
            spellings: HashMap::with_capacity(pieces.len()),
            bytes: vec![None; 256],
            unknown: 0,
            sorted: Vec::new(),
            pieces,
        };
        let mut unknown = None;
        for (index, piece) in vocabulary.pieces.iter().enumerate() {
            let id = index as u32;
            let same = vocabulary.spellings.get(&piece.text).map(|id| vocabulary.pieces[*id as usize].kind);
            if piece.text.is_empty() || same.is_some() {
                if expected == Pieces::Distinct {
                    let text = &piece.text;
                    return Err(format!("expected distinct pieces that are not empty, found `{text}` as piece {id}"));
                }
                // An empty piece never occurs in a text, and a user-defined piece takes precedence over others.
                if piece.text.is_empty() || same == Some(PieceType::UserDefined) {
                    continue;
                }
            }
            vocabulary.spellings.insert(piece.text.clone(), id);
            match piece.kind {
                PieceType::Unknown => unknown = Some(id),
                PieceType::Byte => match byte_value(&piece.text) {
                    Some(byte) => vocabulary.bytes[usize::from(byte)] = Some(id),
                    None => return Err(format!("expected byte pieces such as `<0x41>`, found `{}`", piece.text)),
                },
                PieceType::Control => {}
                PieceType::Normal | PieceType::UserDefined | PieceType::Unused => {
                    vocabulary.ids.insert(piece.text.clone(), id);
                }
            }
        }
        let mut sorted: Vec<u32> = vocabulary.ids.values().copied().collect();
        sorted.sort_by(|a, b| vocabulary.piece(*a).text.cmp(&vocabulary.piece(*b).text));
        vocabulary.sorted = sorted;
        vocabulary.unknown = unknown.ok_or("expected a piece for unknown text, found none")?;
        Ok(vocabulary)
    }

    fn of_kind(&self, kind: PieceType) -> impl Iterator<Item = (u32, &Piece)> {
        self.pieces
            .iter()
            .enumerate()
            .filter(move |(_, piece)| piece.kind == kind)
            .map(|(id, piece)| (id as u32, piece))
    }

    /// Length and id of every piece that `text` begins with, shortest first.
    fn prefixes<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (usize, u32)> + 'a {
        let mut candidates = &self.sorted[..];
        let ends = text.char_indices().map(|(start, c)| start + c.len_utf8());
        let narrowed = ends.map_while(move |end| {
            let prefix = &text[..end];
            let first = candidates.partition_point(|id| self.piece(*id).text.as_str() < prefix);
            let count = candidates[first..].partition_point(|id| self.piece(*id).text.starts_with(prefix));
            candidates = &candidates[first..first + count];
            // The shortest piece with this prefix is sorted first.
            candidates.first().map(|id| (end, *id))
        });
        narrowed.filter(|(end, id)| self.piece(*id).text.len() == *end)
    }

    fn piece(&self, id: u32) -> &Piece {
        &self.pieces[id as usize]
    }

    /// The piece for a byte; the unknown one if the model has none.
    fn byte(&self, byte: u8) -> u32 {
        self.bytes[usize::from(byte)].unwrap_or(self.unknown)
    }

    fn byte_of(&self, id: u32) -> Option<u8> {
        let piece = self.pieces.get(id as usize).filter(|piece| piece.kind == PieceType::Byte)?;
        byte_value(&piece.text)
    }
}

fn byte_value(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2)
}
