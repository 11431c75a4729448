//! Reading the committed fixtures.

#![allow(dead_code, reason = "each test binary uses a part")]

pub mod answers;
pub mod planted;
pub mod recurrent;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use braidinfer::executor::fused::{self, FusedOptions};
use braidinfer::executor::standard::{self, ComputeDtype, QuantizedWeights, StandardOptions};
use braidinfer::executor::{Batch, Decoder, DeviceChoice, KvCacheConfig, KvDtype, NoProbe, SequenceSlice};
use braidinfer::kernels::{Isa, NumericLevel};
use braidinfer::model::quantization::FileType;
use braidinfer::model::{DecoderSpec, Description, ModelSource, TensorNames, Weights, describe};
use braidinfer::text::{Tokenizer, TokenizerSettings};
use braidinfer::{Threads, quantize_weights};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// `tests/fixtures` of the repository.
pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

pub fn read_json<T: DeserializeOwned>(path: impl Into<PathBuf>) -> T {
    let path = path.into();
    let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A tiny model with what `transformers` computed for it.
pub struct Fixture {
    pub name: String,
    pub source: ModelSource,
    pub prompts: Vec<ExpectedPrompt>,
    /// Of each prompt, the expected logits of every position, or of the last of every few.
    pub logits: Vec<Vec<Vec<f32>>>,
}

#[derive(Deserialize)]
pub struct ExpectedPrompt {
    pub ids: Vec<u32>,
    pub greedy: Vec<u32>,
}

#[derive(Deserialize)]
struct Expected {
    prompts: Vec<ExpectedPrompt>,
}

impl Fixture {
    pub fn open(name: &str) -> Self {
        let dir = fixtures().join("models").join(name);
        let (prompts, logits) = (dir.join("expected.json"), dir.join("expected.safetensors"));
        Self::with_expected(name, ModelSource::Directory(dir), &prompts, &logits)
    }

    /// A model from anywhere, with what is expected of it.
    pub fn with_expected(name: &str, source: ModelSource, prompts: &Path, logits: &Path) -> Self {
        let Expected { prompts } = read_json(prompts);
        let bytes = fs::read(logits).expect("the fixture has expected logits");
        let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("expected logits are safetensors");
        let logits = (0..prompts.len()).map(|prompt| {
            let tensor = tensors.tensor(&format!("logits.{prompt}")).expect("every prompt has logits");
            let values = tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            values.collect::<Vec<_>>().chunks(tensor.shape()[1]).map(<[f32]>::to_vec).collect()
        });
        Self { name: name.to_owned(), logits: logits.collect(), prompts, source }
    }

    /// Every fixture, by name.
    pub fn all() -> Vec<Self> {
        let entries = fs::read_dir(fixtures().join("models")).expect("the fixtures are in the repository");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("the folder can be listed").file_name().into_string().expect("names are UTF-8"))
            .collect();
        names.sort();
        assert!(names.len() >= 40, "expected at least 40 fixtures, found {}", names.len());
        names.iter().map(|name| Self::open(name)).collect()
    }

    pub fn spec(&self) -> DecoderSpec {
        self.description().spec
    }

    /// Expected logits of `position` of a prompt, if they are stored.
    pub fn expected(&self, prompt: usize, position: usize) -> Option<&[f32]> {
        let rows = &self.logits[prompt];
        let stride = self.prompts[prompt].ids.len() / rows.len();
        (position + 1).is_multiple_of(stride).then(|| &*rows[position / stride])
    }

    /// Rows of logits of a whole prompt beside what is expected: position, row, expected row.
    pub fn beside_expected<'a>(&'a self, prompt: usize, rows: &'a [Vec<f32>]) -> Vec<(usize, &'a [f32], &'a [f32])> {
        assert_eq!(rows.len(), self.prompts[prompt].ids.len(), "rows of a whole prompt");
        let pairs = rows
            .iter()
            .enumerate()
            .filter_map(|(position, row)| self.expected(prompt, position).map(|expected| (position, &**row, expected)));
        let pairs: Vec<_> = pairs.collect();
        assert_eq!(pairs.len(), self.logits[prompt].len(), "{}: each stored row is compared", self.name);
        pairs
    }

    /// Standard kernels in f32 with room for 16 sequences of 128 tokens.
    pub fn standard(&self) -> Decoder<'static> {
        self.standard_with(ComputeDtype::F32, |_| {})
    }

    pub fn description(&self) -> Description {
        describe(&self.source).unwrap_or_else(|error| panic!("{}: {error}", self.name)).0
    }

    /// An executor over a changed spec.
    pub fn standard_with(&self, dtype: ComputeDtype, change: impl Fn(&mut DecoderSpec)) -> Decoder<'static> {
        self.standard_from(&self.description().names, dtype, change)
    }

    /// An executor over a changed spec, with the weights that it finds under `names`.
    pub fn standard_from(
        &self,
        names: &TensorNames,
        dtype: ComputeDtype,
        change: impl Fn(&mut DecoderSpec),
    ) -> Decoder<'static> {
        let mut spec = self.spec();
        change(&mut spec);
        let weights = Weights::open(&self.source, &spec, names);
        self.standard_over(spec, &weights.unwrap_or_else(|error| panic!("{}: {error}", self.name)), dtype)
    }

    /// An executor over given weights.
    pub fn standard_over(&self, spec: DecoderSpec, weights: &Weights, dtype: ComputeDtype) -> Decoder<'static> {
        let kv_dtype = if dtype == ComputeDtype::F32 { KvDtype::F32 } else { KvDtype::F16 };
        let kv_cache = KvCacheConfig { block_size: BLOCK_SIZE, num_blocks: 16 * BLOCKS_PER_SEQUENCE, dtype: kv_dtype };
        let quantized_weights = QuantizedWeights::Keep;
        let threads = Threads::new(Some(2)).expect("threads can be had");
        let options = StandardOptions { dtype, quantized_weights, device: DeviceChoice::Cpu, kv_cache, threads };
        let executor = standard::load(spec, weights, options, &|_, _| {});
        executor.unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }
}

/// How a fused executor is opened in tests.
#[derive(Debug, Clone, Copy)]
pub struct Fused {
    pub coarsest: NumericLevel,
    pub kv_dtype: KvDtype,
    pub threads: usize,
    pub isa: Isa,
}

impl Fused {
    /// Nothing rounded but the sums themselves.
    pub fn exact() -> Self {
        let isa = Isa::detect().expect("the best instruction set can be used");
        Self { coarsest: NumericLevel::F32, kv_dtype: KvDtype::F32, threads: 2, isa }
    }
}

impl Fixture {
    /// A fused executor with room for 16 sequences of 128 tokens, over weights that `change` may replace.
    pub fn fused_with(&self, fused: Fused, change: impl Fn(&DecoderSpec, &mut Weights)) -> Decoder<'static> {
        let Description { spec, names } = self.description();
        let weights = Weights::open(&self.source, &spec, &names);
        let mut weights = weights.unwrap_or_else(|error| panic!("{}: {error}", self.name));
        change(&spec, &mut weights);
        self.fused_over(fused, spec, &weights)
    }

    /// A fused executor over given weights.
    pub fn fused_over(&self, fused: Fused, spec: DecoderSpec, weights: &Weights) -> Decoder<'static> {
        let Fused { coarsest, threads, isa, kv_dtype } = fused;
        let kv_cache =
            KvCacheConfig { block_size: FUSED_BLOCK_SIZE, num_blocks: 16 * BLOCKS_PER_SEQUENCE, dtype: kv_dtype };
        let options = FusedOptions { coarsest, kv_cache, threads, isa };
        let executor = fused::load(spec, weights, options, &|_, _| {});
        executor.unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    pub fn fused(&self, fused: Fused) -> Decoder<'static> {
        self.fused_with(fused, |_, _| {})
    }
}

/// Set where tests must not be left out for want of a GPU, or of a program that behaves like one.
#[cfg(feature = "gpu")]
const REQUIRED: &str = "BRAIDINFER_TEST_GPU";

/// The GPU that tests run on; `None` if there is none, and none is asked for.
#[cfg(feature = "gpu")]
#[allow(clippy::print_stderr, reason = "who runs tests should see what they leave out")]
pub fn adapter() -> Option<usize> {
    match braidinfer::gpu::Adapters::find().first() {
        Ok(adapter) => Some(adapter.index),
        Err(error) if std::env::var_os(REQUIRED).is_some() => panic!("{error}"),
        Err(error) => {
            eprintln!("left out: {error}");
            None
        }
    }
}

/// Fused kernels take blocks of whole tiles.
pub const FUSED_BLOCK_SIZE: usize = 16;
pub const BLOCK_SIZE: usize = 8;
pub const BLOCKS_PER_SEQUENCE: usize = 16;

/// The block table of sequence `index`: blocks spread over the storage, so that none lie side by side.
pub fn block_table(index: usize) -> Vec<u32> {
    (0..BLOCKS_PER_SEQUENCE).map(|block| (block * 16 + index) as u32).collect()
}

/// Feeds `ids` of sequence `index` in chunks and returns the logits of every position.
pub fn feed(executor: &mut Decoder<'_>, index: usize, ids: &[u32], chunk: usize) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    for start in (0..ids.len()).step_by(chunk) {
        let tokens = &ids[start..ids.len().min(start + chunk)];
        let mut batch = Batch::default();
        batch.push(tokens, slice(index, start, tokens.len(), ids.len()), tokens.len());
        let logits = executor.forward(&batch, &mut NoProbe).expect("the batch runs").logits;
        rows.extend((0..logits.rows()).map(|row| logits.row(row).to_vec()));
    }
    rows
}

pub fn slice(index: usize, context_len: usize, query_len: usize, rope_len: usize) -> SequenceSlice {
    SequenceSlice {
        rope_len,
        state_slot: index as u32,
        ..SequenceSlice::new(context_len, query_len, block_table(index))
    }
}

/// Quantizes weights, if to a type.
pub fn quantized(file_type: Option<FileType>) -> impl Fn(&DecoderSpec, &mut Weights) {
    move |spec, weights| {
        if let Some(file_type) = file_type {
            let threads = Threads::new(Some(2)).expect("threads can be had");
            quantize_weights(spec, weights, file_type, &threads, &|_, _| {}).expect("the weights can be quantized");
        }
    }
}

/// Of logits.
pub fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rows.iter().map(|row| row.iter().map(|logit| logit.to_bits()).collect()).collect()
}

/// Logits of the last of `ids` and of some tokens after it, in blocks spread over the storage.
pub fn long_context(decoder: &mut Decoder<'_>, ids: &[u32], chunk: usize) -> Vec<Vec<f32>> {
    let block_table: Vec<u32> = (0..ids.len().div_ceil(FUSED_BLOCK_SIZE) as u32).map(|block| block * 5 % 256).collect();
    let (prompt, answer) = ids.split_at(ids.len() - 4);
    let mut context_len = 0;
    let mut rows = Vec::new();
    for tokens in prompt.chunks(chunk).chain(answer.chunks(1)) {
        let slice =
            SequenceSlice { rope_len: ids.len(), ..SequenceSlice::new(context_len, tokens.len(), block_table.clone()) };
        context_len += tokens.len();
        let mut batch = Batch::default();
        batch.push(tokens, slice, 1);
        let logits = decoder.forward(&batch, &mut NoProbe).expect("the batch runs").logits;
        rows.extend((context_len >= prompt.len()).then(|| logits.row(0).to_vec()));
    }
    rows
}

/// The tokenizer of a model that has one.
pub fn tokenizer(source: &ModelSource) -> Tokenizer {
    let settings = TokenizerSettings::read(source).unwrap_or_else(|error| panic!("{error}"));
    let tokenizer = Tokenizer::read(source, &settings).unwrap_or_else(|error| panic!("{error}"));
    tokenizer.expect("the model has a tokenizer")
}

/// Largest absolute difference.
pub fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Kullback-Leibler divergence of the softmax of `b` from that of `a`, in nats.
pub fn kl(a: &[f32], b: &[f32]) -> f64 {
    let log_softmax = |logits: &[f32]| -> Vec<f64> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
        logits.iter().map(|logit| f64::from(logit - max) - sum.ln()).collect()
    };
    log_softmax(a).iter().zip(log_softmax(b)).map(|(a, b)| a.exp() * (a - b)).sum()
}

/// Index of the largest logit.
pub fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.expect("logits are not empty").0 as u32
}

/// JSON objects by file name in a folder of fixtures.
pub fn json_files<T: DeserializeOwned>(folder: &str) -> BTreeMap<String, T> {
    let entries = fs::read_dir(fixtures().join(folder)).expect("the fixtures are in the repository");
    let files = entries.map(|entry| entry.expect("the folder can be listed").path());
    files
        .map(|path| (path.file_stem().expect("files have names").to_string_lossy().into_owned(), read_json(path)))
        .collect()
}

/// Feeds all prompts of a fixture at once, in chunks of different sizes, so that sequences meet at every phase of each
/// other; `check` is told each position's logits as (prompt, position, row).
pub fn in_company(executor: &mut Decoder<'_>, fixture: &Fixture, mut check: impl FnMut(usize, usize, &[f32])) {
    let chunk = |prompt: usize| [1, 5, 7, 4][prompt];
    let mut done = [0; 4];
    loop {
        let mut batch = Batch::default();
        let mut rows = Vec::new();
        for (prompt, expected) in fixture.prompts.iter().enumerate() {
            let start = done[prompt];
            let tokens = &expected.ids[start..expected.ids.len().min(start + chunk(prompt))];
            if tokens.is_empty() {
                continue;
            }
            done[prompt] += tokens.len();
            batch.push(tokens, slice(prompt, start, tokens.len(), expected.ids.len()), tokens.len());
            rows.extend((start..done[prompt]).map(|position| (prompt, position)));
        }
        if rows.is_empty() {
            break;
        }
        let logits = executor.forward(&batch, &mut NoProbe).expect("the batch runs").logits;
        for (row, (prompt, position)) in rows.into_iter().enumerate() {
            check(prompt, position, logits.row(row));
        }
    }
}

/// Whether greedy tokens of every prompt are those that `transformers` found.
pub fn check_greedy(executor: &mut Decoder<'_>, fixture: &Fixture) {
    for (prompt, expected) in fixture.prompts.iter().enumerate() {
        let rows = feed(executor, prompt, &expected.ids, 16);
        let mut tokens = vec![argmax(&rows[rows.len() - 1])];
        while tokens.len() < expected.greedy.len() {
            let position = expected.ids.len() + tokens.len() - 1;
            let mut batch = Batch::default();
            batch.push(&tokens[tokens.len() - 1..], slice(prompt, position, 1, position + 1), 1);
            tokens.push(argmax(executor.forward(&batch, &mut NoProbe).expect("the batch runs").logits.row(0)));
        }
        assert_eq!(tokens, expected.greedy, "{} prompt {prompt}", fixture.name);
    }
}
