//! Byte-pair encoding by score: the best-scored pair of neighbours merges first, the leftmost of equals.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::Vocabulary;
use super::normalizer::Normalizer;
use super::proto::PieceType;

/// A stretch of text that may still grow. Neighbours are linked by index; a merged-away symbol is empty.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    previous: Option<usize>,
    next: Option<usize>,
    /// User-defined symbols never merge.
    frozen: bool,
}

/// A possible merge of two neighbours.
#[derive(Debug)]
struct Merge {
    score: f32,
    left: usize,
    right: usize,
    /// Length of both when this was noted; if it has changed, the merge is void.
    len: usize,
}

impl Ord for Merge {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Merge {}

/// Pieces of `text` with their ids; a character without a piece has the unknown id.
pub(super) fn encode<'a>(text: &'a str, vocabulary: &Vocabulary, normalizer: &Normalizer) -> Vec<(&'a str, u32)> {
    let mut merger = Merger {
        text,
        vocabulary,
        symbols: symbols(text, normalizer),
        agenda: BinaryHeap::new(),
        unused: HashMap::new(),
    };
    for right in 1..merger.symbols.len() {
        merger.note(right - 1, right);
    }
    while let Some(merge) = merger.agenda.pop() {
        merger.apply(&merge);
    }
    let mut pieces = Vec::new();
    for symbol in merger.symbols.iter().filter(|symbol| symbol.len > 0) {
        merger.resegment(&text[symbol.start..symbol.start + symbol.len], &mut pieces);
    }
    pieces
}

fn symbols(text: &str, normalizer: &Normalizer) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = Vec::new();
    let mut start = 0;
    while let Some(first) = text[start..].chars().next() {
        let user_defined = normalizer.symbol(&text[start..]);
        let len = user_defined.map_or(first.len_utf8(), str::len);
        let index = symbols.len();
        let end = start + len == text.len();
        symbols.push(Symbol {
            start,
            len,
            previous: index.checked_sub(1),
            next: (!end).then_some(index + 1),
            frozen: user_defined.is_some(),
        });
        start += len;
    }
    symbols
}

struct Merger<'a, 'v> {
    text: &'a str,
    vocabulary: &'v Vocabulary,
    symbols: Vec<Symbol>,
    agenda: BinaryHeap<Merge>,
    /// Where a merge gave an unused piece: the length of its left part. Such pieces are taken apart again.
    unused: HashMap<&'a str, usize>,
}

impl<'a> Merger<'a, '_> {
    /// Notes the merge of two neighbours if the vocabulary has it.
    fn note(&mut self, left: usize, right: usize) {
        let (a, b) = (self.symbols[left], self.symbols[right]);
        if a.frozen || b.frozen {
            return;
        }
        let len = a.len + b.len;
        let piece = &self.text[a.start..a.start + len];
        let Some(id) = self.vocabulary.ids.get(piece) else { return };
        let found = self.vocabulary.piece(*id);
        if found.kind == PieceType::Unused {
            self.unused.insert(piece, a.len);
        }
        self.agenda.push(Merge { score: found.score, left, right, len });
    }

    fn apply(&mut self, merge: &Merge) {
        let (left, right) = (self.symbols[merge.left], self.symbols[merge.right]);
        if left.len == 0 || right.len == 0 || left.len + right.len != merge.len {
            return;
        }
        self.symbols[merge.left].len = merge.len;
        self.symbols[merge.left].next = right.next;
        self.symbols[merge.right].len = 0;
        if let Some(next) = right.next {
            self.symbols[next].previous = Some(merge.left);
            self.note(merge.left, next);
        }
        if let Some(previous) = left.previous {
            self.note(previous, merge.left);
        }
    }

    /// Takes unused pieces apart as they were merged. Not by recursion: a vocabulary can nest them without end.
    fn resegment(&self, piece: &'a str, pieces: &mut Vec<(&'a str, u32)>) {
        let mut rest = vec![piece];
        while let Some(piece) = rest.pop() {
            let id = self.vocabulary.ids.get(piece).copied();
            let unused = id.is_some_and(|id| self.vocabulary.piece(id).kind == PieceType::Unused);
            match self.unused.get(piece) {
                Some(left) if unused => rest.extend([&piece[*left..], &piece[..*left]]),
                _ => pieces.push((piece, id.unwrap_or(self.vocabulary.unknown))),
            }
        }
    }
}
