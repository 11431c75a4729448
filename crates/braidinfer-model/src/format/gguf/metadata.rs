//! Key-value pairs of a GGUF file.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::{ModelError, Result};

/// The value of a key. Strings are stored as bytes and decoded on access: files contain keys that are never read, and
/// those need not be UTF-8.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A number or boolean.
    Scalar(Scalar),
    /// A string.
    Text(Vec<u8>),
    /// A list of values of one type.
    Array(Array),
}

/// A number or boolean.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub enum Scalar {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// A list of values of one type. GGUF allows nested lists, but no model has them, and they are rejected.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Strings, not necessarily UTF-8.
    Texts(Vec<Vec<u8>>),
    /// Numbers of the type of `kind`, little-endian.
    Numbers {
        /// A value of the same type; only its type matters.
        kind: Scalar,
        /// The numbers' bytes.
        bytes: Vec<u8>,
    },
}

impl Scalar {
    /// Size of a value of this type in bytes.
    pub(super) fn size(self) -> usize {
        match self {
            Self::U8(_) | Self::I8(_) | Self::Bool(_) => 1,
            Self::U16(_) | Self::I16(_) => 2,
            Self::U32(_) | Self::I32(_) | Self::F32(_) => 4,
            Self::U64(_) | Self::I64(_) | Self::F64(_) => 8,
        }
    }

    /// Decodes `bytes`, which must have the right length, as a value of the same type as `self`.
    pub(super) fn decode(self, bytes: &[u8]) -> Self {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let word = u64::from_le_bytes(wide);
        match self {
            Self::U8(_) => Self::U8(word as u8),
            Self::I8(_) => Self::I8(word as i8),
            Self::U16(_) => Self::U16(word as u16),
            Self::I16(_) => Self::I16(word as i16),
            Self::U32(_) => Self::U32(word as u32),
            Self::I32(_) => Self::I32(word as i32),
            Self::F32(_) => Self::F32(f32::from_bits(word as u32)),
            Self::Bool(_) => Self::Bool(word != 0),
            Self::U64(_) => Self::U64(word),
            Self::I64(_) => Self::I64(word as i64),
            Self::F64(_) => Self::F64(f64::from_bits(word)),
        }
    }

    /// The value's little-endian bytes.
    pub(super) fn encode(self) -> Vec<u8> {
        match self {
            Self::U8(value) => vec![value],
            Self::I8(value) => value.to_le_bytes().to_vec(),
            Self::U16(value) => value.to_le_bytes().to_vec(),
            Self::I16(value) => value.to_le_bytes().to_vec(),
            Self::U32(value) => value.to_le_bytes().to_vec(),
            Self::I32(value) => value.to_le_bytes().to_vec(),
            Self::F32(value) => value.to_le_bytes().to_vec(),
            Self::Bool(value) => vec![u8::from(value)],
            Self::U64(value) => value.to_le_bytes().to_vec(),
            Self::I64(value) => value.to_le_bytes().to_vec(),
            Self::F64(value) => value.to_le_bytes().to_vec(),
        }
    }

    /// The value of an f32 or f64; `None` for other types.
    pub fn as_float(self) -> Option<f64> {
        match self {
            Self::F32(value) => Some(f64::from(value)),
            Self::F64(value) => Some(value),
            _ => None,
        }
    }

    /// The value as JSON. An f32 becomes the shortest decimal that rounds to it, which is probably what the config had
    /// before conversion; a non-finite float becomes null.
    pub fn to_json(self) -> Json {
        match self {
            Self::U8(value) => value.into(),
            Self::I8(value) => value.into(),
            Self::U16(value) => value.into(),
            Self::I16(value) => value.into(),
            Self::U32(value) => value.into(),
            Self::I32(value) => value.into(),
            Self::F32(value) => value.to_string().parse::<f64>().unwrap_or(f64::from(value)).into(),
            Self::Bool(value) => value.into(),
            Self::U64(value) => value.into(),
            Self::I64(value) => value.into(),
            Self::F64(value) => value.into(),
        }
    }
}

impl Array {
    /// Number of entries.
    pub fn len(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.len(),
            Self::Numbers { kind, bytes } => bytes.len() / kind.size(),
        }
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number at `index`; `None` if out of bounds or in a list of strings.
    pub fn scalar(&self, index: usize) -> Option<Scalar> {
        let Self::Numbers { kind, bytes } = self else { return None };
        let start = index.checked_mul(kind.size())?;
        Some(kind.decode(bytes.get(start..)?.get(..kind.size())?))
    }

    /// The numbers; empty for a list of strings.
    pub fn scalars(&self) -> impl Iterator<Item = Scalar> {
        let (kind, bytes): (_, &[u8]) = match self {
            Self::Texts(_) => (Scalar::U8(0), &[]),
            Self::Numbers { kind, bytes } => (*kind, bytes),
        };
        bytes.chunks_exact(kind.size()).map(move |bytes| kind.decode(bytes))
    }
}

impl From<Scalar> for Value {
    fn from(value: Scalar) -> Self {
        Self::Scalar(value)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Scalar(Scalar::U32(value))
    }
}

impl From<f32> for Value {
    fn from(value: f32) -> Self {
        Self::Scalar(Scalar::F32(value))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Scalar(Scalar::Bool(value))
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.as_bytes().to_vec())
    }
}

impl<T: AsRef<str>> FromIterator<T> for Value {
    fn from_iter<I: IntoIterator<Item = T>>(texts: I) -> Self {
        Self::Array(Array::Texts(texts.into_iter().map(|text| text.as_ref().as_bytes().to_vec()).collect()))
    }
}

impl From<&[f32]> for Value {
    fn from(values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::Array(Array::Numbers { kind: Scalar::F32(0.0), bytes })
    }
}

impl From<&[u8]> for Value {
    fn from(values: &[u8]) -> Self {
        Self::Array(Array::Numbers { kind: Scalar::U8(0), bytes: values.to_vec() })
    }
}

impl From<&[i32]> for Value {
    fn from(values: &[i32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::Array(Array::Numbers { kind: Scalar::I32(0), bytes })
    }
}

impl From<&[bool]> for Value {
    fn from(values: &[bool]) -> Self {
        let bytes = values.iter().map(|value| u8::from(*value)).collect();
        Self::Array(Array::Numbers { kind: Scalar::Bool(false), bytes })
    }
}

/// Typed access to the key-value pairs of a file, with errors that name the file and the key.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    path: String,
    entries: BTreeMap<String, Value>,
}

impl Metadata {
    /// Empty metadata; `path` is for messages.
    pub fn new(path: String) -> Self {
        Self { path, entries: BTreeMap::new() }
    }

    /// The file's path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The raw value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)
    }

    /// Every pair, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Sets `key`; returns the previous value.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<Value>) -> Option<Value> {
        self.entries.insert(key.into(), value.into())
    }

    /// Removes the keys for which `keep` is false.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.entries.retain(|key, _| keep(key));
    }

    /// An error about `key`.
    pub fn error(&self, key: &str, expected: impl Into<String>, found: impl Into<String>) -> ModelError {
        ModelError::Field {
            path: self.path.clone(),
            field: key.to_owned(),
            expected: expected.into(),
            found: found.into(),
        }
    }

    /// A non-negative integer; `None` if absent.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = match value {
            Value::Scalar(scalar) => scalar.to_json().as_u64(),
            _ => None,
        };
        number.map(Some).ok_or_else(|| self.error(key, "a whole number, not negative", describe(value)))
    }

    /// A finite number; `None` if absent.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = match value {
            Value::Scalar(scalar) => scalar.to_json().as_f64(),
            _ => None,
        };
        number.map(Some).ok_or_else(|| self.error(key, "a finite number", describe(value)))
    }

    /// True or false; `None` if absent.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Scalar(Scalar::Bool(flag))) => Ok(Some(*flag)),
            Some(other) => Err(self.error(key, "true or false", describe(other))),
        }
    }

    /// A string; `None` if absent.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(bytes)) => self.utf8(key, bytes).map(Some),
            Some(other) => Err(self.error(key, "a text", describe(other))),
        }
    }

    /// A list of strings; `None` if absent.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::Texts(texts))) => {
                texts.iter().map(|bytes| self.utf8(key, bytes)).collect::<Result<_>>().map(Some)
            }
            Some(other) => Err(self.error(key, "a list of texts", describe(other))),
        }
    }

    /// A list of numbers or booleans; `None` if absent. Returned encoded, because decoded it takes several times the
    /// memory.
    pub fn scalars(&self, key: &str) -> Result<Option<&Array>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array @ Array::Numbers { .. })) => Ok(Some(array)),
            Some(other) => Err(self.error(key, "a list of numbers", describe(other))),
        }
    }

    fn utf8<'a>(&self, key: &str, bytes: &'a [u8]) -> Result<&'a str> {
        std::str::from_utf8(bytes).map_err(|error| {
            self.error(key, "UTF-8 text", format!("an invalid byte at offset {}", error.valid_up_to()))
        })
    }
}

/// A short description of a value.
fn describe(value: &Value) -> String {
    match value {
        Value::Scalar(Scalar::F32(number)) => number.to_string(),
        Value::Scalar(Scalar::F64(number)) => number.to_string(),
        Value::Scalar(scalar) => scalar.to_json().to_string(),
        Value::Text(_) => "a text".into(),
        Value::Array(Array::Texts(_)) => "a list of texts".into(),
        Value::Array(Array::Numbers { .. }) => "a list of numbers".into(),
    }
}
