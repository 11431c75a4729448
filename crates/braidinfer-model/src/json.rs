//! Typed access to JSON objects, with errors that name the file and the field.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::{ModelError, ModelSource, Result, python_numbers};

/// The JSON object of a model file, or an object nested in it.
#[derive(Debug, Clone)]
pub struct JsonFile {
    path: String,
    /// Dotted path of this object within the file; empty for the root object.
    at: String,
    map: Map<String, Value>,
    /// For fields whose name in the file is not their dotted path, the name in the file, by dotted path.
    names: Arc<BTreeMap<String, String>>,
}

impl JsonFile {
    /// Reads `file` of the model, or `None` if the model has no such file.
    pub fn read(source: &ModelSource, file: &str) -> Result<Option<Self>> {
        let path = source.path_of(file);
        source.read(file)?.map(|bytes| Self::parse(path, &bytes)).transpose()
    }

    /// Parses `bytes`, the content of the file `path`, as a JSON object.
    pub fn parse(path: String, bytes: &[u8]) -> Result<Self> {
        let malformed =
            |found: String| ModelError::Malformed { path: path.clone(), expected: "a JSON object".into(), found };
        let value = serde_json::from_slice(bytes).or_else(|error| {
            let python = python_numbers::as_objects(bytes).and_then(|json| serde_json::from_slice(&json).ok());
            python.ok_or(error)
        });
        let value = value.map_err(|error| malformed(format!("invalid JSON: {error}")))?;
        match value {
            Value::Object(map) => Ok(Self { path, at: String::new(), map, names: Arc::default() }),
            other => Err(malformed(kind(&other))),
        }
    }

    /// An object converted from a file of another format; `names` are the field names in that file.
    pub(crate) fn from_fields(path: String, map: Map<String, Value>, names: BTreeMap<String, String>) -> Self {
        Self { path, at: String::new(), map, names: Arc::new(names) }
    }

    /// The file's path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether `field` is present, even as an explicit null.
    pub fn has(&self, field: &str) -> bool {
        self.map.contains_key(field)
    }

    /// The raw value of `field`; `None` if absent or null.
    pub fn value(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// The field names of this object.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    /// An error about `field`.
    pub fn error(&self, field: &str, expected: impl Into<String>, found: impl Into<String>) -> ModelError {
        ModelError::Field {
            path: self.path.clone(),
            field: self.name_of(field),
            expected: expected.into(),
            found: python_numbers::as_written(&found.into()),
        }
    }

    /// The nested object in `field`; `None` if absent or null.
    pub fn object(&self, field: &str) -> Result<Option<Self>> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self {
                path: self.path.clone(),
                at: self.dotted(field),
                map: map.clone(),
                names: Arc::clone(&self.names),
            })),
            Some(other) => Err(self.error(field, "an object", kind(other))),
        }
    }

    /// A positive integer; `None` if absent or null.
    pub fn size(&self, field: &str) -> Result<Option<usize>> {
        let Some(value) = self.value(field) else { return Ok(None) };
        // No checkpoint has larger sizes, and sums of a few products of two such sizes do not overflow.
        const LIMIT: u64 = 1 << 31;
        match value.as_u64() {
            Some(number) if (1..LIMIT).contains(&number) => Ok(Some(number as usize)),
            _ => Err(self.error(field, "a positive whole number below 2^31", value.to_string())),
        }
    }

    /// A positive integer, or `absent` if the field is missing; an explicit null is an error.
    pub fn size_or(&self, field: &str, absent: usize) -> Result<usize> {
        if self.has(field) { self.required_size(field) } else { Ok(absent) }
    }

    /// This object, with missing ones of `fields` copied from `other`.
    pub fn or_fields_of(mut self, other: &Self, fields: &[&str]) -> Self {
        for field in fields {
            if let Some(value) = other.value(field).filter(|_| self.value(field).is_none()) {
                self.map.insert((*field).to_owned(), value.clone());
            }
        }
        self
    }

    /// This object, overwritten with the fields of `other`.
    pub fn overlaid(mut self, other: &Self) -> Self {
        self.map.extend(other.map.iter().map(|(field, value)| (field.clone(), value.clone())));
        self
    }

    /// Whether the object has no fields.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// A required positive integer.
    pub fn required_size(&self, field: &str) -> Result<usize> {
        self.size(field)?.ok_or_else(|| self.error(field, "a positive whole number", self.absence(field)))
    }

    /// A finite number; `None` if absent or null.
    pub fn number(&self, field: &str) -> Result<Option<f64>> {
        let Some(value) = self.value(field) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if number.is_finite() => Ok(Some(number)),
            _ => Err(self.error(field, "a finite number", value.to_string())),
        }
    }

    /// A number of things of which there may be none, or `absent` if the field is missing or null. Negative numbers mean
    /// none, and fractions are cut.
    pub fn count_or(&self, field: &str, absent: usize) -> Result<usize> {
        Ok(self.number(field)?.map_or(absent, |count| count.max(0.0) as usize))
    }

    /// A finite number above zero; `None` if absent or null.
    pub fn positive(&self, field: &str) -> Result<Option<f64>> {
        match self.number(field)? {
            Some(number) if number <= 0.0 => Err(self.error(field, "a number above zero", number.to_string())),
            number => Ok(number),
        }
    }

    /// A required finite number above zero.
    pub fn required_positive(&self, field: &str) -> Result<f64> {
        self.positive(field)?.ok_or_else(|| self.error(field, "a number above zero", self.absence(field)))
    }

    /// True or false; `None` if absent or null.
    pub fn flag(&self, field: &str) -> Result<Option<bool>> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.error(field, "true or false", other.to_string())),
        }
    }

    /// A string; `None` if absent or null.
    pub fn text(&self, field: &str) -> Result<Option<&str>> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.error(field, "a text", kind(other))),
        }
    }

    /// A list; `None` if absent or null.
    pub fn list(&self, field: &str) -> Result<Option<&[Value]>> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(self.error(field, "a list", kind(other))),
        }
    }

    /// A required list of `len` finite numbers.
    pub fn required_numbers(&self, field: &str, len: usize) -> Result<Vec<f64>> {
        let expected = || format!("a list of {len} numbers above zero");
        let values = self.list(field)?.ok_or_else(|| self.error(field, expected(), self.absence(field)))?;
        let numbers: Vec<f64> = values.iter().filter_map(Value::as_f64).filter(|n| n.is_finite() && *n > 0.0).collect();
        if values.len() != len || numbers.len() != len {
            let found = format!("a list of {} entries, {} of them numbers above zero", values.len(), numbers.len());
            return Err(self.error(field, expected(), found));
        }
        Ok(numbers)
    }

    /// Token ids as one number or a list of numbers; empty if absent or null. Negative numbers, which some converters
    /// write for "none", are skipped.
    pub fn token_ids(&self, field: &str) -> Result<Vec<u32>> {
        let one = |value: &Value| match value.as_i64() {
            Some(id) if id < 0 => Ok(None),
            Some(id) if u32::try_from(id).is_ok() => Ok(Some(id as u32)),
            _ => Err(self.error(field, "a token id or a list of token ids", value.to_string())),
        };
        match self.value(field) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => values.iter().filter_map(|value| one(value).transpose()).collect(),
            Some(value) => Ok(one(value)?.into_iter().collect()),
        }
    }

    fn absence(&self, field: &str) -> &'static str {
        if self.has(field) { "null" } else { "nothing" }
    }

    /// The name of `field` in the file.
    fn name_of(&self, field: &str) -> String {
        let dotted = self.dotted(field);
        self.names.get(&dotted).cloned().unwrap_or(dotted)
    }

    fn dotted(&self, field: &str) -> String {
        if self.at.is_empty() { field.to_owned() } else { format!("{}.{field}", self.at) }
    }
}

/// The type of a JSON value, in words.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a true/false value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
    .to_owned()
}
