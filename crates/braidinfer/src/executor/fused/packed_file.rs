//! The file of packed weights: how it is laid out, written and looked at.
//!
//! It begins with a head that says what the file is about, then has a checksum (xxHash3, 64 bits) for every chunk of the data,
//! then the data. The head and all sizes are computed from the weights that are to be loaded, and compared: nothing is taken from
//! a length in the file. Checksums find what was damaged; they do not keep out somebody who may write to the folder.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use braidinfer_kernels::{Chunks, MappedFile, Pool};
use twox_hash::XxHash3_64;

use super::weight_memory::Sections;
use crate::packed_cache::{self, WeightsKey};
use crate::{Error, Result};

/// Incremented whenever the layout of panels, or of this file, changes.
const FORMAT: u32 = 1;

const MAGIC: [u8; 16] = *b"BRAIDINFER-PACK\0";

/// Bytes of data that share a checksum: few, so that little besides an expert is read to check it.
pub(super) const CHUNK: usize = 256 << 10;

/// Where the checksums begin; before them are the head and the checksum of the checksums.
const SUMS: u64 = 4096;

/// The data begins at a multiple of this, which is one of every system's page size.
const PAGE: u64 = 64 << 10;

const HEAD_LEN: usize = 80;

/// What a file of certain weights begins with.
fn head(key: &WeightsKey, sections: Sections) -> [u8; HEAD_LEN] {
    let mut head = [0; HEAD_LEN];
    let sizes = [sections.panels, sections.rows, sections.experts].map(|bytes| (bytes as u64).to_le_bytes());
    let chunk = (CHUNK as u32).to_le_bytes();
    let parts: [&[u8]; 7] = [&MAGIC, &FORMAT.to_le_bytes(), &chunk, &sizes[0], &sizes[1], &sizes[2], &key.digest];
    let mut at = 0;
    for part in parts {
        head[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    debug_assert_eq!(at, HEAD_LEN);
    head
}

/// Where the data begins.
fn data_start(sections: Sections) -> u64 {
    (SUMS + 8 * sections.chunks() as u64).next_multiple_of(PAGE)
}

/// Size of the file of weights of this size.
pub(crate) fn file_bytes(sections: Sections) -> u64 {
    data_start(sections) + sections.bytes() as u64
}

fn checksum(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// Writes the data of a file, section by section; each is written from its beginning to its end.
#[derive(Debug)]
pub(super) struct PackedWriter<'a> {
    file: &'a File,
    sections: Sections,
    sums: Vec<u64>,
    /// Of each section, the bytes of the chunk that is not full yet, and how many came before.
    open: [(Vec<u8>, usize); 3],
}

impl<'a> PackedWriter<'a> {
    /// Fails if the disk is too full.
    pub(super) fn new(file: &'a File, sections: Sections) -> io::Result<Self> {
        let bytes = file_bytes(sections);
        reserve(file, bytes)?;
        file.set_len(bytes)?;
        let open = std::array::from_fn(|_| (Vec::with_capacity(CHUNK), 0));
        Ok(Self { file, sections, sums: vec![0; sections.chunks()], open })
    }

    /// Writes bytes at an offset of the data. What lies between the last ones of this section and them is zeros.
    pub(super) fn write(&mut self, at: usize, mut bytes: &[u8]) -> io::Result<()> {
        let index = self.sections.of(at);
        let start = self.sections.ranges()[index].start;
        self.fill(index, at - start)?;
        while !bytes.is_empty() {
            let (chunk, _) = &mut self.open[index];
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - chunk.len()));
            chunk.extend_from_slice(now);
            bytes = later;
            self.flush_full(index)?;
        }
        Ok(())
    }

    /// Adds zeros until a section has this many bytes.
    fn fill(&mut self, index: usize, until: usize) -> io::Result<()> {
        loop {
            let (chunk, before) = &mut self.open[index];
            if *before + chunk.len() >= until {
                return Ok(());
            }
            chunk.resize(CHUNK.min(until - *before), 0);
            self.flush_full(index)?;
        }
    }

    fn flush_full(&mut self, index: usize) -> io::Result<()> {
        let (chunk, before) = &mut self.open[index];
        if chunk.len() < CHUNK {
            return Ok(());
        }
        let at = self.sections.ranges()[index].start + *before;
        self.sums[at / CHUNK] = checksum(chunk);
        write_all_at(self.file, chunk, data_start(self.sections) + at as u64)?;
        *before += CHUNK;
        chunk.clear();
        Ok(())
    }

    /// Writes what is left, the checksums, and last the head.
    pub(super) fn finish(mut self, key: &WeightsKey) -> io::Result<()> {
        for (index, range) in self.sections.ranges().into_iter().enumerate() {
            self.fill(index, range.len())?;
        }
        let sums: Vec<u8> = self.sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        write_all_at(self.file, &sums, SUMS)?;
        let head = [&head(key, self.sections)[..], &checksum(&sums).to_le_bytes()].concat();
        write_all_at(self.file, &head, 0)
    }
}

/// Takes the room on the disk, so that a full one is noticed before anything is computed.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        // Not every file system can.
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
        Err(error) => return Err(error.into()),
    }
    let _ = (file, bytes);
    Ok(())
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[written..];
        offset += written as u64;
    }
    Ok(())
}

/// A whole file about the right weights. Its data is mapped, and every chunk is compared with its checksum when it is first asked
/// for.
#[derive(Debug)]
pub(super) struct KeptFile {
    path: PathBuf,
    /// Everything from the beginning of the file on.
    map: MappedFile,
    data_start: usize,
    sums: Vec<u64>,
    /// A bit for every chunk that was compared, or is by a thread that asked for it first.
    checked: Vec<AtomicU64>,
    /// A chunk that was found damaged, or `usize::MAX`.
    damaged: AtomicUsize,
}

impl KeptFile {
    /// Opens the file at `path`. `None` if there is none; fails, in words, if it is about something else or not whole.
    pub(super) fn open(path: &Path, key: &WeightsKey, sections: Sections) -> Result<Option<Self>, String> {
        let Some(file) = packed_cache::open_used(path).map_err(|error| error.to_string())? else { return Ok(None) };
        let found = file.metadata().map_err(|error| error.to_string())?.len();
        let expected = file_bytes(sections);
        if found != expected {
            return Err(format!("it has {found} bytes, not {expected}"));
        }
        let map = MappedFile::new(file, 0..expected).map_err(|error| error.to_string())?;
        let (expected, (found, rest)) = (head(key, sections), map.split_at(HEAD_LEN));
        if *found != expected {
            return Err("it was made of other weights, or by another version or for another instruction set".into());
        }
        let sums = &map[SUMS as usize..][..8 * sections.chunks()];
        if rest[..8] != checksum(sums).to_le_bytes() {
            return Err("its checksums are damaged".into());
        }
        let sums: Vec<u64> = sums.as_chunks().0.iter().map(|sum| u64::from_le_bytes(*sum)).collect();
        let checked = (0..sums.len().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let data_start = data_start(sections) as usize;
        Ok(Some(Self { path: path.to_owned(), map, data_start, sums, checked, damaged: AtomicUsize::new(usize::MAX) }))
    }

    /// Some of the data. What was never compared with its checksum is now, by this thread or by another that asked for it at the
    /// same time. If it is damaged, [`KeptFile::check`] fails as soon as all these threads are done, and from then on: what was
    /// computed meanwhile may be used only if it does not.
    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        for chunk in range.start / CHUNK..range.end.div_ceil(CHUNK) {
            if self.is_unread(chunk) {
                self.check_chunk(chunk);
            }
        }
        &self.map[self.data_start..][range]
    }

    /// Number of chunks.
    pub(super) fn chunks(&self) -> usize {
        self.sums.len()
    }

    /// A bit for each of 64 chunks that were asked for.
    pub(super) fn used(&self, word: usize) -> u64 {
        self.checked[word].load(Ordering::Relaxed)
    }

    fn is_unread(&self, chunk: usize) -> bool {
        self.used(chunk / 64) & 1 << (chunk % 64) == 0
    }

    #[cold]
    fn check_chunk(&self, chunk: usize) {
        let bit = 1 << (chunk % 64);
        let is_first = self.checked[chunk / 64].fetch_or(bit, Ordering::Relaxed) & bit == 0;
        if is_first && checksum(&self.map[self.data_start..][chunk * CHUNK..][..CHUNK]) != self.sums[chunk] {
            self.damaged.store(chunk, Ordering::Relaxed);
        }
    }

    /// The data from an offset on, not compared, for prefetching.
    pub(super) fn ahead(&self, from: usize) -> &[u8] {
        self.map.get(self.data_start + from..).unwrap_or_default()
    }

    /// Asks the system to read a part of the data, unless it was read before and `again` is false.
    pub(super) fn read_ahead(&self, range: Range<usize>, again: bool) {
        if again || (range.start / CHUNK..range.end.div_ceil(CHUNK)).any(|chunk| self.is_unread(chunk)) {
            self.map.read_ahead(self.data_start + range.start..self.data_start + range.end);
        }
    }

    /// Fails if a damaged chunk was found. The file is then removed, so that the next start makes it anew.
    pub(super) fn check(&self) -> Result<()> {
        let chunk = self.damaged.load(Ordering::Relaxed);
        if chunk == usize::MAX {
            return Ok(());
        }
        let remedy = match packed_cache::remove_damaged(self.map.file(), &self.path) {
            Ok(()) => "the file was removed, and the next start makes it anew".to_owned(),
            Err(error) => {
                format!("remove the file, so that the next start makes it anew; it could not be removed here ({error})")
            }
        };
        let at = self.data_start + chunk * CHUNK;
        let reason = format!("the packed weights at byte {at} are not those that were written: {remedy}");
        Err(Error::DamagedWeights { path: self.path.display().to_string(), reason })
    }

    /// Copies the beginning of the data, whole chunks, comparing every chunk with its checksum. Fails, in words, if one is damaged
    /// or cannot be read.
    pub(super) fn copy(&self, out: &mut [u8], pool: &mut Pool) -> Result<(), String> {
        let failed = AtomicBool::new(false);
        pool.for_each(Chunks::new(out, CHUNK), |chunk, out, _| {
            let read = self.read(chunk * CHUNK, out).is_ok();
            if !read || checksum(out) != self.sums[chunk] {
                failed.store(true, Ordering::Relaxed);
            }
        });
        if failed.into_inner() { Err("some of it is damaged, or cannot be read".into()) } else { Ok(()) }
    }

    #[cfg(unix)]
    fn read(&self, at: usize, out: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self.map.file(), out, (self.data_start + at) as u64)
    }

    #[cfg(not(unix))]
    fn read(&self, at: usize, out: &mut [u8]) -> io::Result<()> {
        out.copy_from_slice(&self.map[self.data_start + at..][..out.len()]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use tempfile::TempDir;

    use super::*;
    use braidinfer_kernels::Pages;

    use super::super::weight_memory::WeightMemory;
    use crate::packed_cache::PackedCache;

    const SIZES: [usize; 3] = [5 * CHUNK + 64, 100, 2 * CHUNK];

    /// Data of every section, with gaps.
    fn parts(sections: Sections) -> Vec<(usize, Vec<u8>)> {
        let mut random = StdRng::seed_from_u64(7);
        let mut parts = Vec::new();
        for (range, len) in sections.ranges().into_iter().zip(SIZES) {
            let mut at = range.start;
            while at < range.start + len {
                let part = random.random_range(1..=CHUNK * 3 / 2).min(range.start + len - at);
                parts.push((at, (0..part).map(|_| random.random()).collect()));
                at += part + random.random_range(0..=128);
            }
        }
        parts
    }

    /// A whole file in a folder, and the data that it should have.
    fn file(key: &WeightsKey) -> (TempDir, PathBuf, Sections, Vec<u8>) {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let (cache, sections) = (PackedCache::new(folder.path()), Sections::holding(SIZES));
        let unfinished = cache.begin(&key.name, false).expect("it can be made").expect("nobody else makes it");
        let mut data = vec![0; sections.bytes()];
        let mut writer = PackedWriter::new(unfinished.file(), sections).expect("there is room");
        for (at, part) in parts(sections) {
            writer.write(at, &part).expect("it can be written");
            data[at..at + part.len()].copy_from_slice(&part);
        }
        writer.finish(key).expect("it can be written");
        unfinished.publish().expect("it can be renamed");
        let path = cache.path(&key.name);
        (folder, path, sections, data)
    }

    fn write(path: &Path, bytes: &[u8]) {
        // As somebody else might, who takes the right first.
        let _ = fs::remove_file(path);
        fs::write(path, bytes).expect("it can be written");
        let mut permissions = fs::metadata(path).expect("it is there").permissions();
        permissions.set_readonly(true);
        fs::set_permissions(path, permissions).expect("it is ours");
    }

    #[test]
    fn what_was_written_is_read() {
        let key = WeightsKey::pretended(1);
        let (_folder, path, sections, data) = file(&key);
        assert_eq!(fs::metadata(&path).expect("it is there").len(), file_bytes(sections));
        let kept = KeptFile::open(&path, &key, sections).expect("it is whole").expect("it is there");
        let mut pool = Pool::new(2).expect("threads can be had");
        let mut copy = vec![0; 4 * CHUNK];
        kept.copy(&mut copy, &mut pool).expect("nothing is damaged");
        assert!(copy == data[..copy.len()]);
        for range in [0..1, CHUNK - 1..CHUNK + 1, 3..data.len() - 5, 0..data.len(), data.len()..data.len()] {
            assert!(kept.bytes(range.clone()) == &data[range.clone()], "{range:?}");
        }
        kept.read_ahead(100..data.len(), true);
        assert!(kept.ahead(70) == &data[70..] && kept.ahead(data.len() + 1).is_empty());
        kept.check().expect("nothing is damaged");
    }

    #[test]
    fn what_was_used_is_copied_between_steps() {
        let key = WeightsKey::pretended(1);
        let (_folder, path, sections, data) = file(&key);
        let open = || KeptFile::open(&path, &key, sections).expect("it is whole").expect("it is there");
        let mut pool = Pool::new(2).expect("threads can be had");
        let whole = || Some(Pages::zeroed(data.len()).expect("there is memory"));
        let ranges = [
            0..1,
            CHUNK - 9..CHUNK + 9,
            2 * CHUNK..5 * CHUNK + 64,
            7 * CHUNK + 5..8 * CHUNK,
            0..0,
            data.len()..data.len(),
        ];
        for own in [whole(), None] {
            let copies = own.is_some();
            let mut memory = WeightMemory::mapped(open(), own);
            for step in 0..4 {
                memory.begin_step(&mut pool);
                // The first step uses one chunk alone, so that others are copied later.
                for range in &ranges[..if step == 0 { 1 } else { ranges.len() }] {
                    assert!(memory.bytes(range.clone()) == &data[range.clone()], "{range:?} in step {step}");
                    memory.read_ahead(range.clone());
                }
                assert!(memory.ahead(CHUNK + 7).starts_with(&data[CHUNK + 7..CHUNK + 70]));
                memory.check().expect("nothing is damaged");
            }
            assert_eq!(memory.copied_bytes(), if copies { 7 * CHUNK } else { 0 });
            // Without a step, too, and no more than was used.
            assert!(memory.bytes(6 * CHUNK..6 * CHUNK + 1) == &data[6 * CHUNK..6 * CHUNK + 1]);
            assert_eq!([0; 2].map(|_| memory.copy_some(&mut pool)), [copies, false]);
            assert_eq!(memory.copied_bytes(), if copies { 8 * CHUNK } else { 0 });
        }
        let mut memory = WeightMemory::scarce(open(), {
            let mut own = Pages::zeroed(2 * CHUNK).expect("there is memory");
            own.copy_from_slice(&data[..2 * CHUNK]);
            own
        });
        for step in 0..3 {
            memory.begin_step(&mut pool);
            for range in [0..1, CHUNK..2 * CHUNK, 2 * CHUNK - 1..2 * CHUNK + 1, 0..data.len(), data.len()..data.len()] {
                assert!(memory.bytes(range.clone()) == &data[range.clone()], "{range:?} in step {step}");
            }
        }
    }

    #[test]
    fn files_about_something_else_are_refused() {
        let key = WeightsKey::pretended(1);
        let (_folder, path, sections, _) = file(&key);
        let others = [
            (WeightsKey::pretended(2), sections),
            (key.clone(), Sections { panels: sections.panels - CHUNK, rows: sections.rows + CHUNK, ..sections }),
            (key.clone(), Sections { experts: sections.experts + CHUNK, ..sections }),
        ];
        for (key, sections) in others {
            KeptFile::open(&path, &key, sections).expect_err("it is about something else");
        }
        let whole = fs::read(&path).expect("it is readable");
        fs::remove_file(&path).expect("it is ours");
        fs::write(&path, whole).expect("it can be written");
        let refused = KeptFile::open(&path, &key, sections).expect_err("somebody could write to it");
        assert!(refused.contains("nobody may write to"), "{refused}");
        fs::remove_file(&path).expect("it is there");
        assert!(KeptFile::open(&path, &key, sections).expect("there is nothing to refuse").is_none());
        fs::create_dir(&path).expect("a folder can be made");
        KeptFile::open(&path, &key, sections).expect_err("it is a folder");
    }

    /// Every byte of the head and of the checksums counts, and every length.
    #[test]
    fn damaged_files_are_refused_or_found_out() {
        let key = WeightsKey::pretended(1);
        let (_folder, path, sections, data) = file(&key);
        let whole = fs::read(&path).expect("it is readable");
        let sums = SUMS as usize..SUMS as usize + 8 * sections.chunks();
        let mut random = StdRng::seed_from_u64(11);
        for at in (0..HEAD_LEN + 8).chain(sums.clone()) {
            let mut changed = whole.clone();
            changed[at] ^= 1 << random.random_range(0..8);
            write(&path, &changed);
            KeptFile::open(&path, &key, sections).expect_err("a bit of the head is flipped");
        }
        for len in [0, 1, HEAD_LEN, SUMS as usize, sums.end, whole.len() - 1, whole.len() / 2] {
            write(&path, &whole[..len]);
            KeptFile::open(&path, &key, sections).expect_err("it is cut short");
        }
        write(&path, &[&whole[..], &[0]].concat());
        KeptFile::open(&path, &key, sections).expect_err("it is too long");
        // Garbage of the right length, with and without the right head.
        for kept in [0, HEAD_LEN, SUMS as usize] {
            let garbage: Vec<u8> =
                whole[..kept].iter().copied().chain((kept..whole.len()).map(|_| random.random())).collect();
            write(&path, &garbage);
            KeptFile::open(&path, &key, sections).expect_err("it is garbage");
        }
        let mut pool = Pool::new(2).expect("threads can be had");
        for _ in 0..50 {
            let at = random.random_range(0..data.len());
            let mut changed = whole.clone();
            changed[data_start(sections) as usize + at] ^= 1 << random.random_range(0..8);
            write(&path, &changed);
            let kept = KeptFile::open(&path, &key, sections).expect("the head is whole").expect("it is there");
            let copied = kept.copy(&mut vec![0; sections.panels], &mut pool);
            assert_eq!(copied.is_err(), at < sections.panels, "byte {at}");
            kept.check().expect("nothing damaged was handed out");
            let chunk = at / CHUNK * CHUNK;
            if chunk > 0 {
                assert!(kept.bytes(0..chunk) == &data[..chunk]);
                kept.check().expect("what was handed out is right");
            }
            let _ = kept.bytes(at..at + 1);
            let error = kept.check().expect_err("it is damaged").to_string();
            assert!(error.contains(&*path.to_string_lossy()) && error.contains("removed"), "{error}");
            assert!(!path.exists());
        }
    }
}
