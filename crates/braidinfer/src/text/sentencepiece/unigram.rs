//! Unigram segmentation: the most probable segmentation into pieces (Kudo 2018, arXiv:1804.10959), by Viterbi search.

use super::Vocabulary;
use super::proto::PieceType;

/// Difference between the score of an unknown character and the lowest score of a piece.
const UNKNOWN_PENALTY: f32 = 10.0;

/// The best segmentation of a prefix of the text.
#[derive(Debug, Clone, Copy)]
struct Best {
    score: f32,
    start: usize,
    id: u32,
}

/// Pieces of `text` with their ids; a character without a piece has the unknown id. As in the reference, sums are in
/// f32, and among equal segmentations the first wins.
pub(super) fn encode<'a>(text: &'a str, vocabulary: &Vocabulary) -> Vec<(&'a str, u32)> {
    let scores = Scores::new(vocabulary);
    let mut best: Vec<Option<Best>> = vec![None; text.len() + 1];
    best[0] = Some(Best { score: 0.0, start: 0, id: vocabulary.unknown });
    for (start, first) in text.char_indices() {
        let Some(here) = best[start] else { continue };
        let mut improve = |end: usize, score: f32, id: u32| {
            let score = score + here.score;
            if best[end].is_none_or(|known| score > known.score) {
                best[end] = Some(Best { score, start, id });
            }
        };
        let character_end = start + first.len_utf8();
        let mut character_has_piece = false;
        for (len, id) in vocabulary.prefixes(&text[start..]) {
            let Some(score) = scores.of(id, len) else { continue };
            improve(start + len, score, id);
            character_has_piece |= start + len == character_end;
        }
        if !character_has_piece {
            improve(character_end, scores.unknown, vocabulary.unknown);
        }
    }
    trace(text, &best)
}

/// Follows the best segmentation back from the end of the text.
fn trace<'a>(text: &'a str, best: &[Option<Best>]) -> Vec<(&'a str, u32)> {
    let mut pieces = Vec::new();
    let mut end = text.len();
    while let Some(Best { start, id, .. }) = best[end].filter(|_| end > 0) {
        pieces.push((&text[start..end], id));
        end = start;
    }
    pieces.reverse();
    pieces
}

struct Scores<'v> {
    vocabulary: &'v Vocabulary,
    largest: f32,
    unknown: f32,
}

impl<'v> Scores<'v> {
    fn new(vocabulary: &'v Vocabulary) -> Self {
        let normal = || vocabulary.of_kind(PieceType::Normal).map(|(_, piece)| piece.score);
        let smallest = normal().fold(f32::INFINITY, f32::min);
        Self { vocabulary, largest: normal().fold(f32::NEG_INFINITY, f32::max), unknown: smallest - UNKNOWN_PENALTY }
    }

    /// The score of a piece of `len` bytes, or `None` if it is unused.
    fn of(&self, id: u32, len: usize) -> Option<f32> {
        let piece = self.vocabulary.piece(id);
        match piece.kind {
            PieceType::Unused => None,
            // High enough that a user-defined symbol is never split.
            PieceType::UserDefined => Some((f64::from(len as f32 * self.largest) - 0.1) as f32),
            _ => Some(piece.score),
        }
    }
}
