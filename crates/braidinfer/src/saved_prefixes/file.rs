//! The keys and values of one prompt in a file.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use super::{BlockShape, FORMAT, PrefixKey, SavedBlock};
use crate::engine::{BlockHash, block_hash};
use crate::{Error, Result};

/// The first bytes of every such file.
const MAGIC: &[u8; 8] = b"BIPROMPT";
/// Magic, format, key, tokens of a block, bytes of its data, number of blocks.
const HEADER: usize = MAGIC.len() + 4 + 32 + 4 + 8 + 8;

/// A file that is being read.
pub(crate) struct PromptFile {
    path: String,
    file: BufReader<File>,
    key: PrefixKey,
    shape: BlockShape,
    /// Blocks that were not read yet.
    left: u64,
    before: Option<BlockHash>,
}

impl PromptFile {
    /// Opens a file; `None` if there is none.
    ///
    /// Fails if it is something else, or about another model, kernels or build, or if its length is wrong.
    pub(crate) fn open(path: &Path, key: PrefixKey, shape: BlockShape) -> Result<Option<Self>> {
        let shown = path.display().to_string();
        let failed = |source| Error::File { path: shown.clone(), source };
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let refused = |expected: &str, found: String| Err(Error::bad_request("prompt_cache", expected, found));
        if !metadata.is_file() {
            return refused("a plain file, or nothing there yet", format!("{shown}, which is something else"));
        }
        let mut file = BufReader::new(File::open(path).map_err(failed)?);
        let mut header = [0; HEADER];
        if let Err(error) = file.read_exact(&mut header) {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof => refused("a saved prompt", format!("{shown}, which is another file")),
                _ => Err(failed(error)),
            };
        }
        let mut at = 0;
        let mut next = |count: usize| {
            at += count;
            &header[at - count..at]
        };
        if next(MAGIC.len()) != MAGIC {
            return refused("a saved prompt", format!("{shown}, which is another file"));
        }
        let same = next(4) == FORMAT.to_le_bytes()
            && next(32) == key.0
            && next(4) == (shape.tokens as u32).to_le_bytes()
            && next(8) == (shape.data as u64).to_le_bytes();
        if !same {
            let expected = "a prompt that was saved with this model, these kernels and this build";
            let found = format!(
                "{shown}, which is another one's, or of the same model before its files were written, copied or moved; remove it to \
                 make a new one"
            );
            return refused(expected, found);
        }
        let left = u64::from_le_bytes(header[HEADER - 8..].try_into().unwrap_or_default());
        let expected = left.checked_mul(shape.stored() as u64).and_then(|bytes| bytes.checked_add(HEADER as u64));
        if expected != Some(metadata.len()) {
            let found = format!("{shown}, which was cut or changed; remove it to make a new one");
            return refused("a saved prompt as long as it says", found);
        }
        Ok(Some(Self { path: shown, file, key, shape, left, before: None }))
    }

    /// Number of blocks that were not read yet.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// The next block; `None` after the last.
    ///
    /// Fails on a block that was changed.
    pub(crate) fn next(&mut self) -> Result<Option<SavedBlock>> {
        if self.left == 0 {
            return Ok(None);
        }
        let before = self.before;
        let read = SavedBlock::read(&mut self.file, self.shape, self.key, before.as_ref().map_or(&[], |hash| hash));
        let block = read.map_err(|error| {
            let found = format!("{}: {error}; remove it to make a new one", self.path);
            Error::bad_request("prompt_cache", "a saved prompt as it was written", found)
        })?;
        self.left -= 1;
        self.before = Some(block_hash(before.as_ref(), &block.tokens));
        Ok(Some(block))
    }
}

/// Writes the blocks of a prompt, in their order, in place of an older file.
pub(crate) fn write_file(path: &Path, key: PrefixKey, shape: BlockShape, blocks: &[SavedBlock]) -> Result<()> {
    let failed = |source| Error::File { path: path.display().to_string(), source };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".braidinfer-").suffix(".partial");
    // For its owner alone: prompts can be told from keys and values.
    let made = builder.tempfile_in(folder).map_err(failed)?;
    let mut file = BufWriter::new(made.as_file());
    let header: [&[u8]; 6] = [
        MAGIC,
        &FORMAT.to_le_bytes(),
        &key.0,
        &(shape.tokens as u32).to_le_bytes(),
        &(shape.data as u64).to_le_bytes(),
        &(blocks.len() as u64).to_le_bytes(),
    ];
    header.into_iter().try_for_each(|part| file.write_all(part)).map_err(failed)?;
    let mut before: Option<BlockHash> = None;
    for block in blocks {
        block.write(&mut file, key, before.as_ref().map_or(&[], |hash| hash)).map_err(failed)?;
        before = Some(block_hash(before.as_ref(), &block.tokens));
    }
    file.flush().map_err(failed)?;
    drop(file);
    made.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}
