//! Converting SentencePiece models from and to the form in GGUF metadata.

use std::collections::HashMap;

use super::normalizer::Normalizer;
use super::proto::{ModelType, NormalizerSpec, PieceType};
use super::spellings::Spellings;
use super::{Piece, Pieces, SPACE, SentencePiece, Special, StripLeadingSpace, Vocabulary};
use crate::text::settings::AddedToken;

/// A SentencePiece model without a model file.
pub(in crate::text) struct SentencePieceParts {
    pub(in crate::text) pieces: Vec<PieceSpec>,
    /// The unknown piece; it may also be an added token.
    pub(in crate::text) unknown: u32,
    /// Unigram segmentation instead of BPE by score.
    pub(in crate::text) unigram: bool,
    /// Compiled character rules; empty if there are none.
    pub(in crate::text) charsmap: Vec<u8>,
    /// Whether a space is added before every segment of text.
    pub(in crate::text) add_dummy_prefix: bool,
    pub(in crate::text) remove_extra_whitespaces: bool,
    /// Token added before every text.
    pub(in crate::text) bos: Option<u32>,
    /// Token added after every text.
    pub(in crate::text) eos: Option<u32>,
}

/// One piece of [`SentencePieceParts`]; its id is its index.
pub(in crate::text) struct PieceSpec {
    pub(in crate::text) text: String,
    pub(in crate::text) score: f32,
    pub(in crate::text) kind: PieceKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::text) enum PieceKind {
    Normal,
    Unknown,
    Unused,
    Byte,
    /// Found in the text before anything else; a special token has no output text. `rstrip`: strips the white space
    /// after it.
    Added {
        special: bool,
        rstrip: bool,
    },
}

impl SentencePiece {
    /// Builds a model. As in llama.cpp, text after an added token gets the dummy prefix space, too.
    pub(in crate::text) fn from_parts(parts: SentencePieceParts) -> Result<Self, String> {
        let settings = NormalizerSpec {
            precompiled_charsmap: Some(parts.charsmap),
            add_dummy_prefix: Some(parts.add_dummy_prefix),
            remove_extra_whitespaces: Some(parts.remove_extra_whitespaces),
            escape_whitespaces: Some(true),
        };
        let mut sorted = PieceGroups::default();
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

    /// Converts the model to at most `most` pieces, including added tokens. Ids without a token become unused pieces.
    pub(in crate::text) fn to_parts(&self, most: usize) -> SentencePieceParts {
        let listed = |id: u32| {
            let added = self.added.get(&id);
            added.map(|added| PieceKind::Added { special: added.special, rstrip: added.rstrip })
        };
        let own = |kind: PieceType| match kind {
            PieceType::Normal => PieceKind::Normal,
            PieceType::Unknown => PieceKind::Unknown,
            PieceType::Unused => PieceKind::Unused,
            PieceType::Byte => PieceKind::Byte,
            PieceType::Control => PieceKind::Added { special: true, rstrip: false },
            PieceType::UserDefined => PieceKind::Added { special: false, rstrip: false },
        };
        let piece = |id: u32| {
            let piece = self.vocabulary.pieces.get(id as usize);
            let kind = listed(id).or(piece.map(|piece| own(piece.kind))).unwrap_or(PieceKind::Unused);
            let mut text = self.id_to_token(id).map_or_else(|| format!("[PAD{id}]"), str::to_owned);
            // In files, added tokens are spelled as in the text, with plain spaces.
            if matches!(kind, PieceKind::Added { special: false, .. }) {
                text = text.replace(SPACE, " ");
            }
            PieceSpec { text, score: piece.map_or(0.0, |piece| piece.score), kind }
        };
        SentencePieceParts {
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

/// Pieces, grouped by how they are handled.
#[derive(Default)]
struct PieceGroups {
    pieces: Vec<Piece>,
    added: HashMap<u32, AddedToken>,
    /// Special tokens that are found in the text.
    specials: HashMap<String, Special>,
    /// User-defined symbols, found after spaces were replaced.
    symbols: Vec<String>,
}

impl PieceGroups {
    fn push(&mut self, piece: PieceSpec, id: u32, unknown: bool) {
        let mut kind = match piece.kind {
            _ if unknown => PieceType::Unknown,
            PieceKind::Normal => PieceType::Normal,
            PieceKind::Unknown => PieceType::Unknown,
            PieceKind::Unused => PieceType::Unused,
            PieceKind::Byte => PieceType::Byte,
            PieceKind::Added { .. } => PieceType::Control,
        };
        let mut text = piece.text;
        let mut special = Special::plain(id);
        if let PieceKind::Added { special: hidden, rstrip } = piece.kind {
            special.rstrip = rstrip;
            let content = text.clone();
            self.added.insert(id, AddedToken { id, content, special: hidden, lstrip: false, rstrip });
            // Runs of spaces are user-defined symbols of the model.
            if !hidden && text.contains(' ') {
                text = text.replace(' ', &SPACE.to_string());
                kind = PieceType::UserDefined;
                self.symbols.push(text.clone());
            }
        }
        let cut = matches!(piece.kind, PieceKind::Added { .. } | PieceKind::Unknown);
        if cut && !text.is_empty() {
            self.specials.insert(text.clone(), special);
        }
        self.pieces.push(Piece { text, score: piece.score, kind });
    }
}
