//! Where packed weights lie: in memory, in a mapped file, or partly in either.

use std::ops::Range;

use braidinfer_kernels::{Pages, Pool, Ranges};

use super::packed_file::{CHUNK, KeptFile};
use crate::Result;

/// Sizes of the parts of packed weights in bytes, each a multiple of [`CHUNK`].
///
/// What every step reads comes first, in the order of reading. After it come rows of embeddings and experts, of which a step
/// reads few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sections {
    /// Panels of all matrices that are not of experts.
    pub(super) panels: usize,
    /// Rows of embeddings.
    pub(super) rows: usize,
    /// Panels of experts.
    pub(super) experts: usize,
}

impl Sections {
    /// Those that hold this many bytes.
    pub(super) fn holding([panels, rows, experts]: [usize; 3]) -> Self {
        let whole = |bytes: usize| bytes.next_multiple_of(CHUNK);
        Self { panels: whole(panels), rows: whole(rows), experts: whole(experts) }
    }

    /// Size of all of them.
    pub(super) fn bytes(self) -> usize {
        [self.rows, self.experts].into_iter().fold(self.panels, usize::saturating_add)
    }

    /// What every step reads.
    pub(crate) fn dense(self) -> usize {
        self.panels
    }

    pub(super) fn chunks(self) -> usize {
        self.bytes() / CHUNK
    }

    /// Where each of them lies.
    pub(super) fn ranges(self) -> [Range<usize>; 3] {
        let rows = self.panels + self.rows;
        [0..self.panels, self.panels..rows, rows..rows + self.experts]
    }

    /// In which of them an offset lies.
    pub(super) fn of(self, at: usize) -> usize {
        self.ranges().iter().filter(|range| range.end <= at).count()
    }
}

/// Bytes that are copied from the file before a step: some milliseconds of work.
const COPIED_PER_STEP: usize = 32 << 20;

/// The bytes of packed weights.
///
/// A mapped file is there at once, but is read more slowly than memory in huge pages. So where there is memory for everything,
/// what was used is copied to such pages bit by bit, between steps.
#[derive(Debug, Default)]
pub(super) struct WeightMemory {
    /// As far as they are copied, or all of them if there is no file.
    own: Option<Pages>,
    kept: Option<KeptFile>,
    /// A bit for every chunk that is copied.
    copied: Vec<u64>,
    /// Whether the system gives up parts of the file again, because there is too little memory for all of it.
    scarce: bool,
    /// Whether there was a step, so that nobody waits for the first one any more.
    begun: bool,
    /// Where the chunks begin that are copied next.
    starts: Vec<usize>,
}

impl WeightMemory {
    /// All bytes are in memory.
    pub(super) fn own(own: Pages) -> Self {
        Self { own: Some(own), ..Self::default() }
    }

    /// The bytes of a file. Those that were used are copied to `own`, as far as it reaches.
    pub(super) fn mapped(kept: KeptFile, own: Option<Pages>) -> Self {
        let copied = vec![0; kept.chunks().div_ceil(64)];
        Self { own, kept: Some(kept), copied, ..Self::default() }
    }

    /// The bytes of a file of which the first are in `own`. The others are read whenever they are used.
    pub(super) fn scarce(kept: KeptFile, own: Pages) -> Self {
        let mut memory = Self::mapped(kept, None);
        (0..own.len() / CHUNK).for_each(|chunk| memory.copied[chunk / 64] |= 1 << (chunk % 64));
        Self { own: Some(own), scarce: true, ..memory }
    }

    /// The file, and the bytes in memory, if those of the range are there.
    fn place(&self, range: &Range<usize>) -> (Option<&KeptFile>, &[u8]) {
        let own = self.own.as_deref().unwrap_or_default();
        let is_copied = |chunk: usize| self.copied[chunk / 64] & 1 << (chunk % 64) != 0;
        let kept = self.kept.as_ref();
        (kept.filter(|_| !(range.start / CHUNK..range.end.div_ceil(CHUNK)).all(is_copied)), own)
    }

    /// Some of the bytes.
    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        if range.is_empty() {
            return &[];
        }
        match self.place(&range) {
            (Some(kept), _) => kept.bytes(range),
            (None, own) => &own[range],
        }
    }

    /// The bytes from an offset on, as far as they lie side by side, for prefetching.
    pub(super) fn ahead(&self, from: usize) -> &[u8] {
        let end = self.kept.as_ref().map_or(usize::MAX, |kept| kept.chunks() * CHUNK);
        match self.place(&(from..from.saturating_add(1).min(end))) {
            (Some(kept), _) => kept.ahead(from),
            (None, own) => own.get(from..).unwrap_or_default(),
        }
    }

    /// Asks for bytes that will be used soon, if they may have to be read from the disk.
    pub(super) fn read_ahead(&self, range: Range<usize>) {
        if let (Some(kept), _) = self.place(&range) {
            kept.read_ahead(range, self.scarce);
        }
    }

    /// Copies some of what was used before a step, but before the first one.
    pub(super) fn begin_step(&mut self, pool: &mut Pool) {
        if std::mem::replace(&mut self.begun, true) {
            self.copy_some(pool);
        }
    }

    /// Copies some of what was used. Returns whether there was something to copy.
    pub(super) fn copy_some(&mut self, pool: &mut Pool) -> bool {
        let (Some(kept), Some(own), false) = (&self.kept, &mut self.own, self.scarce) else { return false };
        self.starts.clear();
        let used = self.copied.iter().enumerate().flat_map(|(word, copied)| {
            let left = kept.used(word) & !copied;
            (0..64).filter(move |bit| left & 1 << bit != 0).map(move |bit| (word * 64 + bit) * CHUNK)
        });
        self.starts.extend(used.take(COPIED_PER_STEP / CHUNK));
        let starts = &self.starts[..];
        pool.for_each(Ranges::new(own, starts), |index, out, _| {
            out[..CHUNK].copy_from_slice(kept.bytes(starts[index]..starts[index] + CHUNK));
        });
        for start in &self.starts {
            let chunk = start / CHUNK;
            self.copied[chunk / 64] |= 1 << (chunk % 64);
        }
        !self.starts.is_empty()
    }

    /// How much is copied.
    #[cfg(test)]
    pub(super) fn copied_bytes(&self) -> usize {
        self.copied.iter().map(|word| word.count_ones() as usize).sum::<usize>() * CHUNK
    }

    /// Fails if bytes were handed out that are not those that were written.
    pub(super) fn check(&self) -> Result<()> {
        self.kept.as_ref().map_or(Ok(()), KeptFile::check)
    }
}
