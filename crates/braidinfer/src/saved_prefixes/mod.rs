//! Keys and values of prompts that are kept on the disk, so that a prompt with the same beginning need not be computed again.
//!
//! What is kept are whole blocks of the KV cache, each with its tokens. A file holds those of one prompt ([`file`]), a folder those of
//! many, one file for each block ([`folder`]). Both are about one model, plan of kernels, instruction set and build, which a
//! [`PrefixKey`] stands for. A block is used only if its checksum is right: it covers the key, all tokens before the block, its own
//! tokens and its data.

mod file;
mod folder;
#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::digest::field;

pub(crate) use self::file::{PromptFile, write_file};
pub(crate) use self::folder::PrefixFolder;

/// Incremented whenever the form of files changes.
const FORMAT: u32 = 1;
/// Bytes of a checksum.
const CHECKSUM: usize = 32;

/// Where keys and values of prompts are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SavedPrefixes {
    /// In files that the caller names; see [`crate::Llm::restore_prompt`] and [`crate::Llm::save_prompt`].
    Files,
    /// In a folder, as they are computed, and read from there when a prompt begins in the same way.
    Folder {
        /// The folder. It is made when it is needed, for its owner alone.
        folder: PathBuf,
        /// Most bytes of all files in it that are about this model; those that were not used for longest go first.
        most_bytes: u64,
    },
}

/// Stands for everything that the keys and values of a prompt depend on, besides its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PrefixKey(pub(crate) [u8; 32]);

impl PrefixKey {
    /// Stands for something else, too.
    pub(crate) fn with(self, other: &[u8]) -> Self {
        let mut hash = Sha256::new();
        field(&mut hash, &self.0);
        field(&mut hash, other);
        Self(hash.finalize().into())
    }
}

/// A block of the KV cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SavedBlock {
    /// The tokens of the block.
    pub(crate) tokens: Vec<u32>,
    /// Keys and values of all layers.
    pub(crate) data: Vec<u8>,
}

/// Sizes of blocks, which do not differ within a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockShape {
    pub(crate) tokens: usize,
    /// Bytes of keys and values.
    pub(crate) data: usize,
}

impl BlockShape {
    /// Bytes of a block in a file.
    fn stored(self) -> usize {
        self.tokens * size_of::<u32>() + self.data + CHECKSUM
    }
}

impl SavedBlock {
    /// `before` stands for all tokens before the block.
    fn checksum(&self, key: PrefixKey, before: &[u8]) -> [u8; CHECKSUM] {
        let mut hash = Sha256::new();
        field(&mut hash, &key.0);
        field(&mut hash, before);
        self.tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
        field(&mut hash, &self.data);
        hash.finalize().into()
    }

    fn write(&self, to: &mut impl Write, key: PrefixKey, before: &[u8]) -> io::Result<()> {
        for token in &self.tokens {
            to.write_all(&token.to_le_bytes())?;
        }
        to.write_all(&self.data)?;
        to.write_all(&self.checksum(key, before))
    }

    /// The next block of a file. Fails if the file ends before it does, or if its checksum is wrong.
    fn read(from: &mut impl Read, shape: BlockShape, key: PrefixKey, before: &[u8]) -> io::Result<Self> {
        let mut tokens = vec![0; shape.tokens * size_of::<u32>()];
        from.read_exact(&mut tokens)?;
        let (words, _) = tokens.as_chunks::<4>();
        let mut block = Self { tokens: words.iter().map(|word| u32::from_le_bytes(*word)).collect(), data: Vec::new() };
        // Not before there is as much: the shape is that of this process, and the file may be shorter.
        from.take(shape.data as u64).read_to_end(&mut block.data)?;
        let mut checksum = [0; CHECKSUM];
        from.read_exact(&mut checksum)?;
        if block.data.len() != shape.data || block.checksum(key, before) != checksum {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a checksum is wrong"));
        }
        Ok(block)
    }
}
