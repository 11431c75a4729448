//! Parsing the header of a GGUF file.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use super::metadata::{Array, Metadata, Scalar, Value};
use crate::file::FileBytes;
use crate::{ModelError, Result};

const MAGIC: [u8; 4] = *b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 20;
const MAX_DIMENSIONS: u32 = 4;
/// Minimum size of a key-value pair: an empty key, a type and one byte.
const SMALLEST_PAIR: usize = 8 + 4 + 1;
/// Minimum size of a tensor description: an empty name, no dimensions, a type and an offset.
const SMALLEST_TENSOR: usize = 8 + 4 + 4 + 8;
/// Bytes read at a time.
const WINDOW: usize = 1 << 20;
/// Largest header. That of a model with a large vocabulary and a `tokenizer.json` has some tens of megabytes; a file that is
/// mostly holes could claim more than fits in memory.
const MOST_HEADER: usize = 256 << 20;

/// Everything before the tensor data.
pub(super) struct Header {
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<TensorInfo>,
    /// Base of the tensor offsets.
    pub(super) data_start: usize,
}

/// The description of a tensor.
pub(super) struct TensorInfo {
    pub(super) name: String,
    /// Outermost dimension first; reversed with respect to the file.
    pub(super) shape: Vec<usize>,
    pub(super) type_id: u32,
    /// Relative to the start of the data.
    pub(super) offset: u64,
}

/// Reads the header of a file.
pub(super) fn read(path: &str, file: &FileBytes) -> Result<Header> {
    let mut reader = Reader { path, file, window: Cow::Borrowed(&[]), start: 0, at: 0 };
    reader.magic_and_version()?;
    let tensor_count = reader.count("tensors", SMALLEST_TENSOR)?;
    let pair_count = reader.count("key-value pairs", SMALLEST_PAIR)?;
    let mut metadata = Metadata::new(path.to_owned());
    for _ in 0..pair_count {
        reader.pair(&mut metadata)?;
    }
    let alignment = alignment(&metadata)?;
    let mut names = BTreeSet::new();
    let mut tensors = Vec::new();
    for _ in 0..tensor_count {
        let tensor = reader.tensor(alignment)?;
        if !names.insert(tensor.name.clone()) {
            let (expected, found) = ("one tensor of this name".into(), "a second one in the same file".into());
            return Err(ModelError::Tensor { path: path.to_owned(), tensor: tensor.name, expected, found });
        }
        tensors.push(tensor);
    }
    let data_start = reader.at.next_multiple_of(alignment as usize);
    Ok(Header { metadata, tensors, data_start })
}

fn alignment(metadata: &Metadata) -> Result<u64> {
    const KEY: &str = "general.alignment";
    match metadata.unsigned(KEY)? {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(alignment) if alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT => Ok(alignment),
        Some(other) => {
            Err(metadata.error(KEY, format!("a power of two of at most {MAX_ALIGNMENT}"), other.to_string()))
        }
    }
}

/// Displays "the value of `key`" in messages.
#[derive(Clone, Copy)]
struct ValueOf<'a>(&'a str);

impl fmt::Display for ValueOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the value of `{}`", self.0)
    }
}

/// A position in the bytes of a file.
///
/// The name of what is being read is passed unformatted: it is only needed in messages, and formatting would copy a
/// long key for every entry of a long list.
struct Reader<'a> {
    path: &'a str,
    file: &'a FileBytes,
    /// Some bytes of the file, and the offset of the first.
    window: Cow<'a, [u8]>,
    start: usize,
    at: usize,
}

impl<'a> Reader<'a> {
    fn error(&self, expected: impl Into<String>, found: impl Into<String>) -> ModelError {
        ModelError::Malformed { path: self.path.to_owned(), expected: expected.into(), found: found.into() }
    }

    fn remaining(&self) -> usize {
        self.file.len() - self.at
    }

    /// The next `len` bytes; `what` names them in the error if the file ends before.
    fn take(&mut self, len: u64, what: impl fmt::Display) -> Result<&[u8]> {
        let within = usize::try_from(len).ok().filter(|len| *len <= self.remaining());
        let Some(len) = within else {
            let found = format!("{} bytes from byte {} to the end of the file", self.remaining(), self.at);
            return Err(self.error(format!("{len} bytes of {what}"), found));
        };
        let taken = self.at..self.at + len;
        if taken.end > MOST_HEADER {
            let expected = format!("a header of at most {} MiB", MOST_HEADER >> 20);
            return Err(self.error(expected, format!("{len} bytes of {what} from byte {} on", self.at)));
        }
        self.load(taken.clone())?;
        self.at = taken.end;
        Ok(&self.window[taken.start - self.start..taken.end - self.start])
    }

    /// Moves the window so that it holds these bytes, which lie in the file.
    fn load(&mut self, bytes: Range<usize>) -> Result<()> {
        if bytes.start < self.start || bytes.end > self.start + self.window.len() {
            let end = bytes.end.max(bytes.start + WINDOW).min(self.file.len());
            self.window = self.file.read(bytes.start..end)?;
            self.start = bytes.start;
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self, what: impl fmt::Display) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: impl fmt::Display) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: impl fmt::Display) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn magic_and_version(&mut self) -> Result<()> {
        let magic: [u8; 4] = self.array("a GGUF header")?;
        if magic != MAGIC {
            return Err(self.error("a GGUF file, which begins with `GGUF`", format!("{magic:02x?}")));
        }
        let version = self.u32("a GGUF version")?;
        match version {
            2 | 3 => Ok(()),
            _ if matches!(version.swap_bytes(), 2 | 3) => {
                Err(self.error("a little-endian GGUF file", "a big-endian one"))
            }
            _ => Err(self.error("GGUF version 2 or 3", format!("version {version}"))),
        }
    }

    /// A count of items that take at least `smallest` bytes each.
    fn count(&mut self, what: impl fmt::Display, smallest: usize) -> Result<u64> {
        let count = self.u64(&what)?;
        let most = (self.remaining() / smallest) as u64;
        if count > most {
            let expected = format!("at most {most} {what}, which is what the file has room for");
            return Err(self.error(expected, count.to_string()));
        }
        Ok(count)
    }

    fn text(&mut self, what: impl fmt::Display) -> Result<&[u8]> {
        let len = self.u64(format_args!("the length of {what}"))?;
        self.take(len, what)
    }

    /// A key or a tensor's name.
    fn name(&mut self, what: &str) -> Result<String> {
        let at = self.at;
        let bytes = self.text(what)?.to_vec();
        String::from_utf8(bytes)
            .map_err(|_| self.error(format!("{what} in UTF-8"), format!("other bytes at byte {at}")))
    }

    fn pair(&mut self, metadata: &mut Metadata) -> Result<()> {
        let key = self.name("a key")?;
        let kind = self.u32(format_args!("the kind of `{key}`"))?;
        let value = self.value(&key, kind)?;
        if metadata.get(&key).is_some() {
            return Err(metadata.error(&key, "one value", "a second one"));
        }
        metadata.insert(key, value);
        Ok(())
    }

    fn value(&mut self, key: &str, kind: u32) -> Result<Value> {
        const TEXT: u32 = 8;
        const ARRAY: u32 = 9;
        let what = ValueOf(key);
        match kind {
            TEXT => Ok(Value::Text(self.text(what)?.to_vec())),
            ARRAY => {
                let entry_kind = self.u32(what)?;
                if entry_kind == TEXT {
                    return self.texts(what).map(Value::Array);
                }
                let kind = self.scalar_kind(key, entry_kind)?;
                let count = self.count(format_args!("entries in `{key}`"), kind.size())?;
                // The count is limited by the file's size, so the product does not overflow.
                let bytes = self.take(count * kind.size() as u64, what)?.to_vec();
                Ok(Value::Array(Array::Numbers { kind, bytes }))
            }
            _ => {
                let kind = self.scalar_kind(key, kind)?;
                Ok(Value::Scalar(kind.decode(self.take(kind.size() as u64, what)?)))
            }
        }
    }

    fn texts(&mut self, what: ValueOf) -> Result<Array> {
        let count = self.count(what, size_of::<u64>())?;
        let mut texts = Vec::new();
        for _ in 0..count {
            texts.push(self.text(what)?.to_vec());
        }
        Ok(Array::Texts(texts))
    }

    fn scalar_kind(&self, key: &str, kind: u32) -> Result<Scalar> {
        Ok(match kind {
            0 => Scalar::U8(0),
            1 => Scalar::I8(0),
            2 => Scalar::U16(0),
            3 => Scalar::I16(0),
            4 => Scalar::U32(0),
            5 => Scalar::I32(0),
            6 => Scalar::F32(0.0),
            7 => Scalar::Bool(false),
            10 => Scalar::U64(0),
            11 => Scalar::I64(0),
            12 => Scalar::F64(0.0),
            _ => {
                return Err(ModelError::Field {
                    path: self.path.to_owned(),
                    field: key.to_owned(),
                    expected: "a number, a truth value, a text, or a list of one of these".into(),
                    found: if kind == 9 { "a list of lists".into() } else { format!("a value of kind {kind}") },
                });
            }
        })
    }

    fn tensor(&mut self, alignment: u64) -> Result<TensorInfo> {
        let name = self.name("a tensor name")?;
        let path = self.path;
        let error = |expected: String, found: String| ModelError::Tensor {
            path: path.to_owned(),
            tensor: name.clone(),
            expected,
            found,
        };
        let what = format!("the description of tensor `{name}`");
        let dimensions = self.u32(&what)?;
        if dimensions > MAX_DIMENSIONS {
            return Err(error(format!("at most {MAX_DIMENSIONS} dimensions"), dimensions.to_string()));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let extent = self.u64(&what)?;
            let extent = usize::try_from(extent).ok().filter(|extent| *extent > 0);
            shape.push(extent.ok_or_else(|| error("extents above zero".into(), "another one".into()))?);
        }
        shape.reverse();
        let (type_id, offset) = (self.u32(&what)?, self.u64(&what)?);
        if offset % alignment != 0 {
            return Err(error(format!("an offset that is a multiple of {alignment}"), offset.to_string()));
        }
        Ok(TensorInfo { name, shape, type_id, offset })
    }
}
