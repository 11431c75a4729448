//! The keys and values of many prompts in a folder, one file for each block.

use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::SystemTime;

use lru::LruCache;

use super::{BlockShape, FORMAT, PrefixKey, SavedBlock};
use crate::digest::hex;
use crate::engine::BlockHash;
use crate::packed_cache::make_private;

/// The end of the names of files.
const EXTENSION: &str = "kv";
/// Blocks that wait to be written; further ones are not kept.
const MOST_WAITING: usize = 256;

/// A folder with blocks of one model, which another thread writes.
pub(crate) struct PrefixFolder {
    key: PrefixKey,
    shape: BlockShape,
    folder: PathBuf,
    kept: Arc<Mutex<Kept>>,
    to_write: Option<SyncSender<ToWrite>>,
    writer: Option<JoinHandle<()>>,
}

/// Which blocks there are, those that were used last first.
struct Kept {
    blocks: LruCache<BlockHash, ()>,
    most_blocks: usize,
    /// Why nothing is written any more.
    failure: Option<String>,
}

struct ToWrite {
    hash: BlockHash,
    block: SavedBlock,
}

impl PrefixFolder {
    /// A folder below `root` for this key. Other files in it are left alone.
    ///
    /// Fails if the folder cannot be made or listed, or if the thread cannot be created.
    pub(crate) fn open(root: &Path, key: PrefixKey, shape: BlockShape, most_bytes: u64) -> io::Result<Self> {
        make_private(root)?;
        let folder = root.join(format!("{}-{FORMAT}", &hex(&key.0)[..32]));
        make_private(&folder)?;
        let most_blocks = usize::try_from(most_bytes / shape.stored() as u64).unwrap_or(usize::MAX);
        let mut kept = Kept { blocks: LruCache::unbounded(), most_blocks, failure: None };
        for (hash, _) in found_in(&folder)? {
            kept.blocks.push(hash, ());
        }
        kept.remove_oldest(&folder);
        let kept = Arc::new(Mutex::new(kept));
        let (to_write, waiting) = sync_channel(MOST_WAITING);
        let of_writer = (folder.clone(), Arc::clone(&kept));
        let writer = thread::Builder::new().name("prefixes".into()).spawn(move || {
            let (folder, kept) = of_writer;
            write_all(&folder, key, &kept, &waiting);
        })?;
        Ok(Self { key, shape, folder, kept, to_write: Some(to_write), writer: Some(writer) })
    }

    pub(crate) fn has(&self, hash: &BlockHash) -> bool {
        self.kept().blocks.contains(hash)
    }

    /// Writes a block soon, unless too many wait. `hash` stands for its tokens and all before it.
    pub(crate) fn keep(&self, hash: BlockHash, block: SavedBlock) {
        let may_write = {
            let mut kept = self.kept();
            kept.failure.is_none() && kept.most_blocks > 0 && kept.blocks.get(&hash).is_none()
        };
        if let (true, Some(to_write)) = (may_write, &self.to_write) {
            // One that is not kept is computed again.
            let _ = to_write.try_send(ToWrite { hash, block });
        }
    }

    /// Why nothing is written any more, if that was not told yet.
    pub(crate) fn take_failure(&self) -> Option<String> {
        let mut kept = self.kept();
        let failure = kept.failure.as_mut().filter(|failure| !failure.is_empty())?;
        Some(std::mem::take(failure))
    }

    /// The block with these tokens after those that `hash` stands for, too. One that is damaged is removed, and is none.
    pub(crate) fn read(&self, hash: &BlockHash, tokens: &[u32]) -> Option<SavedBlock> {
        self.kept().blocks.get(hash)?;
        let path = path_of(&self.folder, hash);
        let read = open_plain(&path, self.shape).and_then(|mut file| {
            let block = SavedBlock::read(&mut file, self.shape, self.key, hash)?;
            // That it was used is not worth an error.
            let _ = file.get_ref().set_modified(SystemTime::now());
            Ok(block)
        });
        match read {
            Ok(block) if block.tokens == tokens => Some(block),
            _ => {
                // Another process may have removed it; what is damaged is no use.
                let _ = fs::remove_file(&path);
                self.kept().blocks.pop(hash);
                None
            }
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PrefixFolder {
    /// Waits until what was to be kept is written.
    fn drop(&mut self) {
        self.to_write = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Kept {
    fn remove_oldest(&mut self, folder: &Path) {
        while self.blocks.len() > self.most_blocks
            && let Some((hash, ())) = self.blocks.pop_lru()
        {
            // Another process may have done so.
            let _ = fs::remove_file(path_of(folder, &hash));
        }
    }
}

/// Writes blocks until nobody sends any.
fn write_all(folder: &Path, key: PrefixKey, kept: &Mutex<Kept>, waiting: &Receiver<ToWrite>) {
    for ToWrite { hash, block } in waiting {
        let written = write(folder, key, &hash, &block);
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        match written {
            Ok(()) => {
                kept.blocks.push(hash, ());
                kept.remove_oldest(folder);
            }
            Err(error) => {
                kept.failure = Some(format!("{}: {error}", folder.display()));
                return;
            }
        }
    }
}

fn write(folder: &Path, key: PrefixKey, hash: &BlockHash, block: &SavedBlock) -> io::Result<()> {
    let mut file = tempfile::Builder::new().prefix(".making-").tempfile_in(folder)?;
    let mut bytes = Vec::new();
    block.write(&mut bytes, key, hash)?;
    file.write_all(&bytes)?;
    file.persist(path_of(folder, hash))?;
    Ok(())
}

fn path_of(folder: &Path, hash: &BlockHash) -> PathBuf {
    folder.join(format!("{}.{EXTENSION}", hex(hash)))
}

/// A plain file as long as a block; others are never opened, since that may take for ever.
fn open_plain(path: &Path, shape: BlockShape) -> io::Result<BufReader<File>> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_file() || metadata.len() != shape.stored() as u64 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(BufReader::new(File::open(path)?))
}

/// The blocks in a folder, those that were used longest ago first.
fn found_in(folder: &Path) -> io::Result<Vec<(BlockHash, SystemTime)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let hash = name.to_str().and_then(|name| name.strip_suffix(EXTENSION)?.strip_suffix('.')).and_then(hash_in);
        let used = entry.metadata().and_then(|metadata| metadata.modified());
        if let (Some(hash), Ok(used)) = (hash, used) {
            found.push((hash, used));
        }
    }
    found.sort_by_key(|(_, used)| *used);
    Ok(found)
}

/// The hash that a file is named after.
fn hash_in(name: &str) -> Option<BlockHash> {
    let digits = name.as_bytes();
    let mut hash = BlockHash::default();
    if digits.len() != 2 * hash.len() {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}
