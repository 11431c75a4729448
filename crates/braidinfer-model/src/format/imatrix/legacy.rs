//! The binary format that llama.cpp had before GGUF: a number of tensors; for each the length of its name, the name, a
//! number of calls, a number of values and that many f32, which are mean squares times the calls; then, if the file goes
//! on, the number of chunks, and the length and the name of the text that was read. All numbers are 32-bit integers,
//! little-endian.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{ImportanceMatrix, Means, NUMBERS, wrong_number};
use crate::file::FileBytes;
use crate::{ModelError, Result};

/// Longest name of a tensor or a text; names are read whole.
const LONGEST_NAME: usize = 1 << 16;

pub(super) fn read(path: String, file: &FileBytes) -> Result<ImportanceMatrix> {
    let mut reader = Reader { path: &path, file, at: 0 };
    let count = reader.number("the number of tensors")?;
    let mut tensors = BTreeMap::new();
    for _ in 0..count {
        let (name, means) = reader.entry()?;
        if tensors.insert(name.clone(), means).is_some() {
            return Err(reader.tensor_error(&name, "one entry of this name", "a second one"));
        }
    }
    let (mut chunks, mut datasets) = (0, Vec::new());
    if reader.remaining() > 0 {
        chunks = reader.number("the number of chunks")? as u64;
    }
    if reader.remaining() > 0 {
        datasets.extend(Some(reader.name("the name of the text")?).filter(|name| !name.is_empty()));
    }
    if reader.remaining() > 0 {
        return Err(reader.error("the end of the file", format!("{} more bytes", reader.remaining())));
    }
    ImportanceMatrix { path, tensors, datasets, chunks }.checked()
}

/// A position in a file.
struct Reader<'a> {
    path: &'a str,
    file: &'a FileBytes,
    at: usize,
}

impl Reader<'_> {
    fn error(&self, expected: impl Into<String>, found: impl Into<String>) -> ModelError {
        ModelError::Malformed { path: self.path.to_owned(), expected: expected.into(), found: found.into() }
    }

    fn tensor_error(&self, tensor: &str, expected: &str, found: impl Into<String>) -> ModelError {
        let (path, tensor) = (self.path.to_owned(), tensor.to_owned());
        ModelError::Tensor { path, tensor, expected: expected.to_owned(), found: found.into() }
    }

    fn remaining(&self) -> usize {
        self.file.len() - self.at
    }

    /// The range of the next `len` bytes.
    fn take(&mut self, len: usize, what: &str) -> Result<Range<usize>> {
        if len > self.remaining() {
            let found = format!("{} bytes from byte {} to the end of the file", self.remaining(), self.at);
            return Err(self.error(format!("an importance matrix, with {len} bytes of {what}"), found));
        }
        let start = self.at;
        self.at += len;
        Ok(start..self.at)
    }

    /// A number that is not negative.
    fn number(&mut self, what: &str) -> Result<usize> {
        let bytes = self.file.read(self.take(4, what)?)?;
        let number = bytes.iter().rev().fold(0u32, |number, byte| number << 8 | u32::from(*byte)).cast_signed();
        usize::try_from(number).map_err(|_| {
            self.error(format!("an importance matrix, with {what} at byte {}", self.at - 4), number.to_string())
        })
    }

    fn name(&mut self, what: &str) -> Result<String> {
        let len = self.number(what)?;
        if len > LONGEST_NAME {
            let expected = format!("an importance matrix, with {what} in at most {LONGEST_NAME} bytes");
            return Err(self.error(expected, format!("{len} bytes")));
        }
        let at = self.at;
        let bytes = self.file.read(self.take(len, what)?)?.into_owned();
        String::from_utf8(bytes)
            .map_err(|_| self.error(format!("{what} in UTF-8"), format!("other bytes at byte {at}")))
    }

    fn entry(&mut self) -> Result<(String, Means)> {
        let name = self.name("the name of a tensor")?;
        let calls = self.number("a number of calls")?;
        let count = self.number("a number of values")?;
        let bytes = self.take(count.saturating_mul(4), &format!("values of `{name}`"))?;
        if count == 0 {
            return Err(self.tensor_error(&name, "at least one number", "none"));
        }
        let bytes = self.file.read(bytes)?;
        let mut values: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        if let Some((index, value)) = wrong_number(&values) {
            return Err(self.tensor_error(&name, NUMBERS, format!("{value} at index {index}")));
        }
        values.iter_mut().for_each(|value| *value /= calls.max(1) as f32);
        Ok((name, Means { values, counted: vec![true] }))
    }
}
