//! SentencePiece models without their file: to and from what GGUF keeps of one.

use std::collections::HashMap;

use super::normalizer::Normalizer;
use super::proto::{ModelType, NormalizerSpec, PieceType};
use super::spellings::Spellings;
use super::{Piece, Pieces, SPACE, SentencePiece, Special, StripLeadingSpace, Vocabulary};
use crate::text::settings::AddedToken;

/// A model that did not come in a file of its own.
pub(in crate::text) struct Parts {
    pub(in crate::text) pieces: Vec<PartPiece>,
    /// The piece for text that has none; it may be an added one at the same time.
    pub(in crate::text) unknown: u32,
    /// The most probable cut instead of BPE by score.
    pub(in crate::text) unigram: bool,
    /// Compiled character rules; empty if there are none.
    pub(in crate::text) charsmap: Vec<u8>,
    /// Whether every stretch of text gets a space before it.
    pub(in crate::text) add_dummy_prefix: bool,
    pub(in crate::text) remove_extra_whitespaces: bool,
    /// Put before every text.
    pub(in crate::text) bos: Option<u32>,
    /// Put after every text.
    pub(in crate::text) eos: Option<u32>,
}

/// One piece of [`Parts`]; its id is its place.
pub(in crate::text) struct PartPiece {
    pub(in crate::text) text: String,
    pub(in crate::text) score: f32,
    pub(in crate::text) kind: PartKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::text) enum PartKind {
    Normal,
    Unknown,
    Unused,
    Byte,
    /// Cut out of a text before anything else; a special one has no text in an answer.
    /// `rstrip`: with the white space behind it.
    Added {
        special: bool,
        rstrip: bool,
    },
}

impl SentencePiece {
    /// A model from its parts. Text after an added token gets the space that begins a text, as in llama.cpp.
    pub(in crate::text) fn from_parts(parts: Parts) -> Result<Self, String> {
        let settings = NormalizerSpec {
            precompiled_charsmap: Some(parts.charsmap),
            add_dummy_prefix: Some(parts.add_dummy_prefix),
            remove_extra_whitespaces: Some(parts.remove_extra_whitespaces),
            escape_whitespaces: Some(true),
        };
        let mut sorted = Sorted::default();
        for (piece, id) in parts.pieces.into_iter().zip(0..) {
            sorted.push(piece, id, id == parts.unknown);
        }
        let (spellings, specials): (Vec<String>, Vec<Special>) = sorted.specials.into_iter().unzip();
        let vocabulary = Vocabulary::new(sorted.pieces, Pieces::Any)?;
        Ok(Self {
            normalizer: Normalizer::new(&settings, false, &sorted.symbols)?,
            algorithm: if parts.unigram { ModelType::Unigram } else { ModelType::Bpe },
            byte_fallback: vocabulary.bytes.iter().any(Option::is_some),
            strip_leading_space: StripLeadingSpace::of(&settings),
            vocabulary,
            special_spellings: Spellings::new(&spellings)?,
            specials,
            added: sorted.added,
            bos: parts.bos,
            eos: parts.eos,
            add_bos: true,
            add_eos: true,
            legacy: true,
        })
    }

    /// The model in at most so many parts, added tokens in their places. Ids that nothing has are unused pieces.
    pub(in crate::text) fn to_parts(&self, most: usize) -> Parts {
        let listed = |id: u32| {
            let added = self.added.get(&id);
            added.map(|added| PartKind::Added { special: added.special, rstrip: added.rstrip })
        };
        let own = |kind: PieceType| match kind {
            PieceType::Normal => PartKind::Normal,
            PieceType::Unknown => PartKind::Unknown,
            PieceType::Unused => PartKind::Unused,
            PieceType::Byte => PartKind::Byte,
            PieceType::Control => PartKind::Added { special: true, rstrip: false },
            PieceType::UserDefined => PartKind::Added { special: false, rstrip: false },
        };
        let piece = |id: u32| {
            let piece = self.vocabulary.pieces.get(id as usize);
            let kind = listed(id).or(piece.map(|piece| own(piece.kind))).unwrap_or(PartKind::Unused);
            let mut text = self.id_to_token(id).map_or_else(|| format!("[PAD{id}]"), str::to_owned);
            // Files spell what is cut out of a text as the text does.
            if matches!(kind, PartKind::Added { special: false, .. }) {
                text = text.replace(SPACE, " ");
            }
            PartPiece { text, score: piece.map_or(0.0, |piece| piece.score), kind }
        };
        Parts {
            pieces: (0..self.vocab_size().min(most) as u32).map(piece).collect(),
            unknown: self.vocabulary.unknown,
            unigram: self.algorithm == ModelType::Unigram,
            charsmap: self.normalizer.charsmap_bytes().to_vec(),
            add_dummy_prefix: self.normalizer.add_dummy_prefix(),
            remove_extra_whitespaces: self.normalizer.remove_extra_whitespaces(),
            bos: self.bos.filter(|_| self.add_bos),
            eos: self.eos.filter(|_| self.add_eos),
        }
    }
}

/// Pieces by what they are for.
#[derive(Default)]
struct Sorted {
    pieces: Vec<Piece>,
    added: HashMap<u32, AddedToken>,
    /// Cut out of a text.
    specials: HashMap<String, Special>,
    /// Found in a text after spaces have become what pieces have for them.
    symbols: Vec<String>,
}

impl Sorted {
    fn push(&mut self, piece: PartPiece, id: u32, unknown: bool) {
        let mut kind = match piece.kind {
            _ if unknown => PieceType::Unknown,
            PartKind::Normal => PieceType::Normal,
            PartKind::Unknown => PieceType::Unknown,
            PartKind::Unused => PieceType::Unused,
            PartKind::Byte => PieceType::Byte,
            PartKind::Added { .. } => PieceType::Control,
        };
        let mut text = piece.text;
        let mut special = Special::plain(id);
        if let PartKind::Added { special: hidden, rstrip } = piece.kind {
            special.rstrip = rstrip;
            let content = text.clone();
            self.added.insert(id, AddedToken { id, content, special: hidden, lstrip: false, rstrip });
            // Runs of spaces are symbols of the model.
            if !hidden && text.contains(' ') {
                text = text.replace(' ', &SPACE.to_string());
                kind = PieceType::UserDefined;
                self.symbols.push(text.clone());
            }
        }
        let cut = matches!(piece.kind, PartKind::Added { .. } | PartKind::Unknown);
        if cut && !text.is_empty() {
            self.specials.insert(text.clone(), special);
        }
        self.pieces.push(Piece { text, score: piece.score, kind });
    }
}
