//! Changes to model files, for tests that give them to readers: a reader may refuse what it gets, and must say why.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::cell::Cell;
use std::fmt::{Debug, Display};
use std::ops::Range;

use braidinfer_model::Dtype;
use braidinfer_model::format::gguf::{self, Array, Gguf, GgufWriter, Metadata, TensorHeader};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{RngSeed, TestRunner};
use serde_json::{Value, json};

/// A file whose header is to be changed.
pub struct File {
    /// What to call it in messages.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Where the header ends.
    header: usize,
    /// Where the header has its counts, lengths, extents, offsets and kinds; in a text, its digits.
    numbers: Vec<Range<usize>>,
    is_text: bool,
    /// Parts of one kind that could change places, such as the descriptions of tensors.
    parts: Vec<Range<usize>>,
}

impl Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl File {
    /// A valid GGUF file.
    pub fn gguf(name: &str, bytes: Vec<u8>) -> Self {
        let mut walker = Walker { bytes: &bytes, at: 4, numbers: Vec::new() };
        walker.number(4);
        let (tensors, pairs) = (walker.number(8), walker.number(8));
        let mut parts: Vec<Range<usize>> = (0..pairs).map(|_| walker.part(Walker::pair)).collect();
        parts.extend((0..tensors).map(|_| walker.part(Walker::tensor)));
        let (header, numbers) = (walker.at, walker.numbers);
        Self { name: name.to_owned(), bytes, header, numbers, is_text: false, parts }
    }

    /// A valid safetensors file.
    pub fn safetensors(name: &str, bytes: Vec<u8>) -> Self {
        let mut walker = Walker { bytes: &bytes, at: 0, numbers: Vec::new() };
        let header = walker.number(8) as usize + walker.at;
        let mut numbers = walker.numbers;
        numbers.extend(digits(&bytes, 8..header));
        Self { name: name.to_owned(), parts: between_commas(&bytes, 8..header), bytes, header, numbers, is_text: true }
    }

    /// Another file, all of it a header, with numbers in these places.
    pub fn binary(name: &str, bytes: Vec<u8>, numbers: Vec<Range<usize>>) -> Self {
        let (name, header, parts) = (name.to_owned(), bytes.len(), Vec::new());
        Self { name, bytes, header, numbers, is_text: false, parts }
    }

    /// A JSON file.
    pub fn json(name: &str, bytes: Vec<u8>) -> Self {
        let header = bytes.len();
        let (parts, numbers) = (between_commas(&bytes, 0..header), digits(&bytes, 0..header).collect());
        Self { name: name.to_owned(), parts, bytes, header, numbers, is_text: true }
    }

    /// The file with some changes, one after the other; where an earlier one moved things, later ones miss the places
    /// they aim at.
    pub fn changed(&self, changes: &[Change]) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        for change in changes {
            self.apply(change, &mut bytes);
        }
        bytes
    }

    fn apply(&self, change: &Change, bytes: &mut Vec<u8>) {
        let header = self.header.min(bytes.len());
        let place = |at: &Index| at.index(header + 1);
        let len = bytes.len();
        let part = |which: &Index| match self.parts.len() {
            0 => 0..0,
            count => self.parts[which.index(count)].clone(),
        };
        match change {
            Change::Byte { at, value } => overwrite(bytes, place(at), &[*value]),
            Change::Bit { at, bit } => {
                if let Some(byte) = bytes.get_mut(place(at)) {
                    *byte ^= 1 << bit;
                }
            }
            Change::Number { which, value } => {
                let number = self.numbers[which.index(self.numbers.len())].clone();
                let value = value.of(self.bytes.len(), bytes.get(number.clone()));
                match self.is_text && number.len() == 1 {
                    true => overwrite(bytes, number.start, &[b'0' + (value % 10) as u8]),
                    false => overwrite(bytes, number.start, &value.to_le_bytes()[..number.len()]),
                }
            }
            Change::Anywhere { at, size, value } => {
                overwrite(bytes, place(at), &value.of(len, None).to_le_bytes()[..*size]);
            }
            Change::Swap { a, b } => swap(bytes, part(a), part(b)),
            Change::Again { which } => {
                let part = part(which);
                let copy = bytes.get(part.clone()).unwrap_or_default().to_vec();
                bytes.splice(part.end.min(bytes.len())..part.end.min(bytes.len()), copy);
            }
            Change::Remove { at, len } => {
                let start = place(at);
                bytes.drain(start..(start + len).min(bytes.len()));
            }
            Change::Copy { from, len, to } => {
                let start = place(from);
                let copy = bytes[start..(start + len).min(bytes.len())].to_vec();
                let to = place(to);
                bytes.splice(to..to, copy);
            }
            Change::Cut { at } => bytes.truncate(place(at)),
            Change::CutData { at } => bytes.truncate(at.index(bytes.len() + 1)),
        }
    }
}

/// One change to the bytes of a file; places are in its header unless they say otherwise.
#[derive(Debug, Clone)]
pub enum Change {
    Byte { at: Index, value: u8 },
    Bit { at: Index, bit: u8 },
    Number { which: Index, value: Number },
    Anywhere { at: Index, size: usize, value: Number },
    Swap { a: Index, b: Index },
    Again { which: Index },
    Remove { at: Index, len: usize },
    Copy { from: Index, len: usize, to: Index },
    Cut { at: Index },
    CutData { at: Index },
}

/// A number that readers may trip over.
#[derive(Debug, Clone)]
pub enum Number {
    Fixed(u64),
    /// As far from the length of the file.
    Length(i64),
    /// As far from what stands there.
    Beside(i64),
    /// As many times what stands there.
    Times(u64),
}

impl Number {
    fn of(&self, len: usize, there: Option<&[u8]>) -> u64 {
        let there = there.unwrap_or_default().iter().rev().fold(0, |word: u64, byte| word << 8 | u64::from(*byte));
        match self {
            Self::Fixed(number) => *number,
            Self::Length(distance) => (len as u64).wrapping_add_signed(*distance),
            Self::Beside(distance) => there.wrapping_add_signed(*distance),
            Self::Times(factor) => there.wrapping_mul(*factor),
        }
    }
}

/// One to three changes.
pub fn changes() -> impl Strategy<Value = Vec<Change>> {
    let index = any::<Index>;
    let length = || prop_oneof![1..16usize, 16..512usize];
    let change = prop_oneof![
        8 => (index(), number()).prop_map(|(which, value)| Change::Number { which, value }),
        3 => (index(), select(vec![1usize, 4, 8]), number()).prop_map(|(at, size, value)| Change::Anywhere { at, size, value }),
        3 => (index(), any::<u8>()).prop_map(|(at, value)| Change::Byte { at, value }),
        2 => (index(), 0..8u8).prop_map(|(at, bit)| Change::Bit { at, bit }),
        2 => (index(), index()).prop_map(|(a, b)| Change::Swap { a, b }),
        1 => index().prop_map(|which| Change::Again { which }),
        1 => (index(), length()).prop_map(|(at, len)| Change::Remove { at, len }),
        1 => (index(), length(), index()).prop_map(|(from, len, to)| Change::Copy { from, len, to }),
        1 => index().prop_map(|at| Change::Cut { at }),
        1 => index().prop_map(|at| Change::CutData { at }),
    ];
    prop::collection::vec(change, 1..4)
}

fn number() -> impl Strategy<Value = Number> {
    let mut edges: Vec<u64> = vec![0, 1, 7, 31, 32, 33, 255, 256, 4096, 4097, u64::MAX];
    edges.extend(
        [16, 31, 32, 48, 61, 62, 63].into_iter().flat_map(|bits| [(1 << bits) - 1, 1 << bits, (1 << bits) + 1]),
    );
    edges.extend([f32::NAN, f32::INFINITY, -1.0, 0.5].map(|number| u64::from(number.to_bits())));
    prop_oneof![
        4 => select(edges).prop_map(Number::Fixed),
        // Kinds of values and types of tensors are such numbers.
        4 => (0..48u64).prop_map(Number::Fixed),
        1 => any::<u64>().prop_map(Number::Fixed),
        1 => (-40..40i64).prop_map(Number::Length),
        3 => (-33..34i64).prop_map(Number::Beside),
        1 => (2..17u64).prop_map(Number::Times),
    ]
}

/// One change to the pairs and tensors of a GGUF file, which is then written anew, with counts and lengths that are right.
#[derive(Debug, Clone)]
pub enum GgufChange {
    Set {
        key: Index,
        value: gguf::Value,
    },
    Drop {
        key: Index,
    },
    /// The value of another key.
    Put {
        key: Index,
        other: Index,
    },
    /// An entry of a list, if there is one.
    Entry {
        key: Index,
        at: Index,
        value: Entry,
    },
    Shape {
        tensor: Index,
        shape: Vec<usize>,
    },
    Dtype {
        tensor: Index,
        dtype: Dtype,
    },
    /// The name of another tensor.
    Rename {
        tensor: Index,
        other: Index,
    },
    Forget {
        tensor: Index,
    },
}

/// What becomes of an entry of a list.
#[derive(Debug, Clone)]
pub enum Entry {
    Text(Vec<u8>),
    Number(u64),
    /// What stands in another place.
    Like(Index),
    Gone,
}

/// One to three changes to a GGUF file.
pub fn gguf_changes() -> impl Strategy<Value = Vec<GgufChange>> {
    let index = any::<Index>;
    let shapes: [&[usize]; 12] = [
        &[],
        &[1],
        &[12],
        &[48],
        &[256],
        &[1, 48],
        &[48, 1],
        &[48, 48],
        &[96, 48],
        &[48, 256],
        &[2, 3, 48],
        &[1, 1, 1, 1],
    ];
    let shape = select(shapes.map(<[usize]>::to_vec).to_vec());
    let change = prop_oneof![
        6 => (index(), gguf_value()).prop_map(|(key, value)| GgufChange::Set { key, value }),
        1 => index().prop_map(|key| GgufChange::Drop { key }),
        2 => (index(), index()).prop_map(|(key, other)| GgufChange::Put { key, other }),
        6 => (index(), index(), entry()).prop_map(|(key, at, value)| GgufChange::Entry { key, at, value }),
        2 => (index(), shape).prop_map(|(tensor, shape)| GgufChange::Shape { tensor, shape }),
        1 => (index(), select(Dtype::ALL.to_vec())).prop_map(|(tensor, dtype)| GgufChange::Dtype { tensor, dtype }),
        1 => (index(), index()).prop_map(|(tensor, other)| GgufChange::Rename { tensor, other }),
        1 => index().prop_map(|tensor| GgufChange::Forget { tensor }),
    ];
    prop::collection::vec(change, 1..4)
}

/// Texts that tokens, merges and settings trip over.
fn text() -> impl Strategy<Value = Vec<u8>> {
    let texts = [
        "", " ", "a", "a b", "<0x41>", "<0xZZ>", "\u{2581}", "<s>", "$A", "$B", "$1:2", "a:b", "\u{0}", "yarn",
        "linear", "longrope",
    ];
    let long = ["ab".repeat(5000), "\u{1f600}".repeat(600)];
    let texts: Vec<Vec<u8>> = texts.map(str::to_owned).into_iter().chain(long).map(String::into_bytes).collect();
    prop_oneof![8 => select(texts), 1 => Just(vec![0xff, b'a'])]
}

fn entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        3 => text().prop_map(Entry::Text),
        3 => prop_oneof![0..8u64, any::<u64>()].prop_map(Entry::Number),
        3 => any::<Index>().prop_map(Entry::Like),
        1 => Just(Entry::Gone),
    ]
}

fn gguf_value() -> impl Strategy<Value = gguf::Value> {
    use gguf::Scalar::{Bool, F32, F64, I8, I32, I64, U8, U16, U32, U64};
    let mut scalars = vec![Bool(false), Bool(true), U8(0), U8(1), I8(-1), U16(3), I32(-1), I32(7), I64(i64::MIN)];
    scalars.extend([0, 1, 2, 3, 5, 47, 4096, 4097, (1 << 31) - 1, 1 << 31, u32::MAX].map(U32));
    scalars.extend([1 << 32, 1 << 62, u64::MAX].map(U64));
    scalars.extend([f32::NAN, f32::INFINITY, -1.0, -0.0, 0.0, 1e-45, 0.5, 1.0, 8.0, f32::MAX].map(F32));
    scalars.extend([f64::MAX, f64::MIN_POSITIVE].map(F64));
    prop_oneof![
        6 => select(scalars).prop_map(gguf::Value::Scalar),
        2 => text().prop_map(gguf::Value::Text),
        1 => prop::collection::vec(any::<bool>(), 0..5).prop_map(|list| gguf::Value::from(&list[..])),
        1 => prop::collection::vec(0..4i32, 0..5).prop_map(|list| gguf::Value::from(&list[..])),
        1 => prop::collection::vec(text(), 0..5).prop_map(|list| gguf::Value::Array(Array::Texts(list))),
    ]
}

/// What a GGUF file holds, but for its data.
pub struct GgufParts {
    metadata: Metadata,
    tensors: Vec<TensorHeader>,
}

impl GgufParts {
    /// The parts of a valid file.
    pub fn of(file: &File) -> Self {
        let gguf = Gguf::from_bytes(&file.name, file.bytes.as_slice().into()).expect("the file is valid");
        let header = |name: &str| {
            let view = gguf.checkpoint().tensor(name).expect("the type is known").expect("the name is the file's own");
            TensorHeader { name: name.to_owned(), shape: view.shape, dtype: view.dtype }
        };
        Self { metadata: gguf.metadata().clone(), tensors: gguf.checkpoint().names().map(header).collect() }
    }

    /// A file with some changes, one after the other; all data is zero.
    pub fn changed(&self, changes: &[GgufChange]) -> Vec<u8> {
        let (mut metadata, mut tensors) = (self.metadata.clone(), self.tensors.clone());
        for change in changes {
            change_pairs(change, &mut metadata);
            change_tensors(change, &mut tensors);
        }
        // Rows that are not whole blocks have no size that could be written.
        tensors.retain(|tensor| tensor.shape.last().unwrap_or(&1).is_multiple_of(tensor.dtype.block_len()));
        let mut writer = GgufWriter::begin(Vec::new(), &metadata, &tensors).expect("memory can be written to");
        for tensor in &tensors {
            let data = vec![0; tensor.size() as usize];
            writer.tensor(std::iter::once(Ok::<_, std::io::Error>(data))).expect("the data is as long as it must be");
        }
        writer.finish().expect("all tensors are there")
    }
}

fn change_pairs(change: &GgufChange, metadata: &mut Metadata) {
    let keys: Vec<String> = metadata.iter().map(|(key, _)| key.to_owned()).collect();
    let name = |key: &Index| keys.get(key.index(keys.len().max(1))).cloned().unwrap_or_default();
    match change {
        GgufChange::Set { key, value } => drop(metadata.insert(name(key), value.clone())),
        GgufChange::Drop { key } => metadata.retain(|found| found != name(key)),
        GgufChange::Put { key, other } => {
            if let Some(value) = metadata.get(&name(other)).cloned() {
                metadata.insert(name(key), value);
            }
        }
        GgufChange::Entry { key, at, value } => {
            let lists: Vec<&String> = keys.iter().filter(|key| is_list(metadata.get(key))).collect();
            let Some(key) = lists.get(key.index(lists.len().max(1))) else { return };
            if let Some(gguf::Value::Array(list)) = metadata.get(key).cloned() {
                metadata.insert(key.as_str(), gguf::Value::Array(with_entry(list, at, value)));
            }
        }
        _ => {}
    }
}

fn is_list(value: Option<&gguf::Value>) -> bool {
    matches!(value, Some(gguf::Value::Array(list)) if !list.is_empty())
}

/// The list, which is not empty, with one entry changed.
fn with_entry(list: Array, at: &Index, value: &Entry) -> Array {
    let at = at.index(list.len());
    let other = |index: &Index| index.index(list.len());
    match list.clone() {
        Array::Texts(mut texts) => {
            match value {
                Entry::Text(text) => texts[at].clone_from(text),
                Entry::Number(number) => texts[at] = number.to_string().into_bytes(),
                Entry::Like(index) => texts[at] = texts[other(index)].clone(),
                Entry::Gone => drop(texts.remove(at)),
            }
            Array::Texts(texts)
        }
        Array::Numbers { kind, mut bytes } => {
            let size = bytes.len() / list.len();
            let place = at * size..(at + 1) * size;
            match value {
                Entry::Text(_) => bytes[place].fill(0xff),
                Entry::Number(number) => bytes[place].copy_from_slice(&number.to_le_bytes()[..size]),
                Entry::Like(index) => bytes.copy_within(other(index) * size..(other(index) + 1) * size, place.start),
                Entry::Gone => drop(bytes.drain(place)),
            }
            Array::Numbers { kind, bytes }
        }
    }
}

fn change_tensors(change: &GgufChange, tensors: &mut Vec<TensorHeader>) {
    if tensors.is_empty() {
        return;
    }
    let place = |tensor: &Index| tensor.index(tensors.len());
    match change {
        GgufChange::Shape { tensor, shape } => {
            let at = place(tensor);
            tensors[at].shape.clone_from(shape);
        }
        GgufChange::Dtype { tensor, dtype } => {
            let at = place(tensor);
            tensors[at].dtype = *dtype;
        }
        GgufChange::Rename { tensor, other } => {
            let (at, name) = (place(tensor), tensors[place(other)].name.clone());
            tensors[at].name = name;
        }
        GgufChange::Forget { tensor } => {
            let at = place(tensor);
            tensors.remove(at);
        }
        _ => {}
    }
}

/// One change to a JSON document; nodes are counted from its root.
#[derive(Debug, Clone)]
pub enum JsonChange {
    Replace {
        node: Index,
        value: Value,
    },
    Remove {
        node: Index,
    },
    /// Another node in the place of this one.
    Put {
        node: Index,
        other: Index,
    },
    Swap {
        a: Index,
        b: Index,
    },
    /// The last entry of a list, this many times more.
    Lengthen {
        node: Index,
        times: usize,
    },
}

/// One to three changes to a JSON document.
pub fn json_changes() -> impl Strategy<Value = Vec<JsonChange>> {
    let index = any::<Index>;
    let change = prop_oneof![
        6 => (index(), json_value()).prop_map(|(node, value)| JsonChange::Replace { node, value }),
        1 => index().prop_map(|node| JsonChange::Remove { node }),
        2 => (index(), index()).prop_map(|(node, other)| JsonChange::Put { node, other }),
        1 => (index(), index()).prop_map(|(a, b)| JsonChange::Swap { a, b }),
        1 => (index(), 1..5000usize).prop_map(|(node, times)| JsonChange::Lengthen { node, times }),
    ];
    prop::collection::vec(change, 1..4)
}

fn json_value() -> impl Strategy<Value = Value> {
    let texts = [
        "",
        "x",
        "gelu",
        "yarn",
        "llama3",
        "dynamic",
        "linear",
        "longrope",
        "default",
        "full_attention",
        "F64",
        "F4",
        "\u{0}",
    ];
    let others =
        [json!(null), json!(true), json!(false), json!([]), json!({}), json!([null]), json!([[[]]]), json!({"": []})];
    let whole = [0, 1, 2, 3, 4097, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 62, i64::MAX as u64, 1 << 63, u64::MAX];
    let floats = [0.0, -0.0, 0.3, 0.5, 1.5, 1e-320, 1e-45, 1e19, 1e39, f64::MAX, -1e300];
    prop_oneof![
        3 => select(whole.to_vec()).prop_map(|number| json!(number)),
        2 => (-2..300i64).prop_map(|number| json!(number)),
        2 => select(floats.to_vec()).prop_map(|number| json!(number)),
        2 => select(texts.to_vec()).prop_map(|text| json!(text)),
        2 => select(others.to_vec()),
    ]
}

/// The document with some changes, one after the other.
pub fn changed_json(document: &Value, changes: &[JsonChange]) -> Value {
    let mut document = document.clone();
    for change in changes {
        let mut nodes = Vec::new();
        list_nodes(&document, String::new(), &mut nodes);
        let pointer = |index: &Index| nodes[index.index(nodes.len())].as_str();
        let get = |document: &Value, index: &Index| document.pointer(pointer(index)).cloned().unwrap_or_default();
        let set = |document: &mut Value, index: &Index, value: Value| {
            if let Some(node) = document.pointer_mut(pointer(index)) {
                *node = value;
            }
        };
        match change {
            JsonChange::Replace { node, value } => set(&mut document, node, value.clone()),
            JsonChange::Remove { node } => remove(&mut document, pointer(node)),
            JsonChange::Put { node, other } => {
                let value = get(&document, other);
                set(&mut document, node, value);
            }
            JsonChange::Swap { a, b } => {
                let (first, second) = (get(&document, a), get(&document, b));
                set(&mut document, a, second);
                set(&mut document, b, first);
            }
            JsonChange::Lengthen { node, times } => {
                if let Some(Value::Array(entries)) = document.pointer_mut(pointer(node)) {
                    let last = entries.last().cloned().unwrap_or_default();
                    entries.extend(std::iter::repeat_n(last, *times));
                }
            }
        }
    }
    document
}

/// JSON pointers of a node and of all below it.
fn list_nodes(node: &Value, at: String, nodes: &mut Vec<String>) {
    match node {
        Value::Object(fields) => {
            let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
            fields.iter().for_each(|(key, value)| list_nodes(value, format!("{at}/{}", escaped(key)), nodes));
        }
        Value::Array(entries) => {
            entries.iter().enumerate().for_each(|(index, value)| list_nodes(value, format!("{at}/{index}"), nodes));
        }
        _ => {}
    }
    nodes.push(at);
}

fn remove(document: &mut Value, pointer: &str) {
    let Some((parent, last)) = pointer.rsplit_once('/') else { return };
    match document.pointer_mut(parent) {
        Some(Value::Object(fields)) => {
            fields.remove(last);
        }
        Some(Value::Array(entries)) => {
            if let Ok(index) = last.parse() {
                entries.remove(index);
            }
        }
        _ => {}
    }
}

/// One of `0..len`, with something.
pub fn with_index<S: Strategy>(len: usize, strategy: S) -> impl Strategy<Value = (usize, S::Value)> {
    (select((0..len).collect::<Vec<_>>()), strategy)
}

/// The same cases in every run, so that a fault comes again; `PROPTEST_RNG_SEED` chooses others.
fn config(cases: u32) -> ProptestConfig {
    let default = ProptestConfig::with_cases(cases);
    let rng_seed = if default.rng_seed == RngSeed::Random { RngSeed::Fixed(0) } else { default.rng_seed };
    ProptestConfig { rng_seed, failure_persistence: None, ..default }
}

/// Name of the variable that asks for this many cases in the place of the usual ones, for long runs.
const CASES: &str = "BRAIDINFER_MUTATIONS";

/// The number of cases: that of the variable, or the usual one.
fn cases_or(usual: u32) -> u32 {
    let asked = std::env::var(CASES).ok();
    asked.map_or(usual, |count| count.parse().unwrap_or_else(|_| panic!("{CASES}: expected a number, found `{count}`")))
}

/// Passes `cases` changed things to `read`, and fails if it panics or says what is wrong with what it made of one.
pub fn check_all<S: Strategy>(cases: u32, strategy: S, read: impl Fn(&S::Value) -> Result<(), String>)
where
    S::Value: Debug,
{
    let result = TestRunner::new(config(cases_or(cases))).run(&strategy, |value| {
        let read = read(&value);
        prop_assert!(read.is_ok(), "{read:?}");
        Ok(())
    });
    if let Err(fault) = result {
        panic!("{fault}");
    }
}

/// Opens `cases` changed files, and fails if one panics, or is refused for a reason that does not begin with `label`
/// or does not say what was found. Some must open and some must not: else the changes are too rough or too gentle to
/// test anything.
pub fn check_changed<S: Strategy, E: Display>(
    label: &str,
    cases: u32,
    strategy: S,
    open: impl Fn(&S::Value) -> Result<(), E>,
) where
    S::Value: Debug,
{
    let cases = cases_or(cases);
    let (opened, refused) = (Cell::new(0), Cell::new(0));
    let result = TestRunner::new(config(cases)).run(&strategy, |value| {
        let Err(error) = open(&value).map_err(|error| error.to_string()) else {
            opened.set(opened.get() + 1);
            return Ok(());
        };
        refused.set(refused.get() + 1);
        let says_what = ["found", "supported:", "not a"].iter().any(|word| error.contains(word));
        prop_assert!(error.starts_with(label) && says_what, "an error that does not say what is wrong: {error}");
        Ok(())
    });
    if let Err(fault) = result {
        panic!("{fault}");
    }
    // What a file asks for must stand in it, so small files need little memory; the rest is the test's own.
    assert!(peak_memory().is_none_or(|kib| kib < 512 << 10), "{:?} KiB at the peak", peak_memory());
    let few = cases / 200;
    assert!(opened.get() > few && refused.get() > few, "{} opened, {} refused", opened.get(), refused.get());
}

/// The most memory that this process has had, in KiB, where the system says so.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Where a text has digits.
fn digits(bytes: &[u8], within: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    within.filter(|at| bytes[*at].is_ascii_digit()).map(|at| at..at + 1)
}

/// Stretches of JSON from one comma to the next.
fn between_commas(bytes: &[u8], within: Range<usize>) -> Vec<Range<usize>> {
    let commas: Vec<usize> = within.filter(|at| bytes[*at] == b',').collect();
    commas.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    let len = bytes.len();
    let target = &mut bytes[at.min(len)..(at + with.len()).min(len)];
    target.copy_from_slice(&with[..target.len()]);
}

/// Exchanges two stretches, which need not be as long as each other; does nothing if they overlap.
fn swap(bytes: &mut Vec<u8>, a: Range<usize>, b: Range<usize>) {
    let (first, second) = if a.start <= b.start { (a, b) } else { (b, a) };
    if first.end > second.start || second.end > bytes.len() {
        return;
    }
    let (one, other) = (bytes[first.clone()].to_vec(), bytes[second.clone()].to_vec());
    bytes.splice(second, one);
    bytes.splice(first, other);
}

/// Walks over the header of a valid file.
struct Walker<'a> {
    bytes: &'a [u8],
    at: usize,
    numbers: Vec<Range<usize>>,
}

impl Walker<'_> {
    fn number(&mut self, size: usize) -> u64 {
        let range = self.at..self.at + size;
        self.at = range.end;
        self.numbers.push(range.clone());
        self.bytes[range].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
    }

    fn text(&mut self) {
        self.at += self.number(8) as usize;
    }

    fn part(&mut self, read: impl Fn(&mut Self)) -> Range<usize> {
        let start = self.at;
        read(self);
        start..self.at
    }

    fn pair(&mut self) {
        self.text();
        let kind = self.number(4);
        if kind != 9 {
            return self.value(kind);
        }
        let (kind, count) = (self.number(4), self.number(8));
        (0..count).for_each(|_| self.value(kind));
    }

    fn value(&mut self, kind: u64) {
        match kind {
            8 => self.text(),
            _ => {
                self.number(match kind {
                    0 | 1 | 7 => 1,
                    2 | 3 => 2,
                    4..=6 => 4,
                    _ => 8,
                });
            }
        }
    }

    fn tensor(&mut self) {
        self.text();
        let dimensions = self.number(4);
        for _ in 0..dimensions {
            self.number(8);
        }
        self.number(4);
        self.number(8);
    }
}
