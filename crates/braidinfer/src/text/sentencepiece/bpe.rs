//! Byte-pair encoding by score: the adjacent pair with the best score is merged first, and among equals the leftmost.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::Vocabulary;
use super::normalizer::Normalizer;
use super::proto::PieceType;

/// A segment of the text during merging. Neighbours are linked by index; a symbol that was merged into another is
/// empty.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    previous: Option<usize>,
    next: Option<usize>,
    /// User-defined symbols never merge.
    frozen: bool,
}

/// A candidate merge of two neighbours.
#[derive(Debug)]
struct Merge {
    score: f32,
    left: usize,
    right: usize,
    /// Length of both when the candidate was created; if it has changed, the candidate is obsolete.
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
        candidates: BinaryHeap::new(),
        unused: HashMap::new(),
    };
    for right in 1..merger.symbols.len() {
        merger.add_candidate(right - 1, right);
    }
    while let Some(merge) = merger.candidates.pop() {
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
    candidates: BinaryHeap<Merge>,
    /// Unused pieces that resulted from merges, with the length of their left part. They are split again at the end.
    unused: HashMap<&'a str, usize>,
}

impl<'a> Merger<'a, '_> {
    /// Adds a candidate merge of two neighbours if the vocabulary has the result.
    fn add_candidate(&mut self, left: usize, right: usize) {
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
        self.candidates.push(Merge { score: found.score, left, right, len });
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
            self.add_candidate(merge.left, next);
        }
        if let Some(previous) = left.previous {
            self.add_candidate(previous, merge.left);
        }
    }

    /// Splits unused pieces the way they were merged. Not recursive, because a vocabulary can nest them to any depth.
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
