//! A device for tests, and what several of them compare.

use std::ops::Range;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use braidinfer_gpu::{Adapters, Buffer, Gpu, stride};
use braidinfer_model::spec::{NormKind, NormSpec};
use rand::RngExt;
use rand::rngs::StdRng;

/// Set where tests must not be left out for want of an adapter.
const REQUIRED: &str = "BRAIDINFER_TEST_GPU";

#[allow(clippy::print_stderr, reason = "a test that is left out says so")]
static GPU: LazyLock<Option<Mutex<Gpu>>> = LazyLock::new(|| {
    let adapters = Adapters::find();
    let opened = adapters.first().and_then(|adapter| Gpu::open(&adapters, adapter.index));
    match opened {
        Ok(gpu) => Some(Mutex::new(gpu)),
        Err(error) if std::env::var_os(REQUIRED).is_some() => panic!("{error}"),
        Err(error) => {
            eprintln!("left out: {error}");
            None
        }
    }
});

/// The device that all tests share; `None` if there is none, and none is asked for.
pub fn gpu() -> Option<MutexGuard<'static, Gpu>> {
    GPU.as_ref().map(|gpu| gpu.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A device of its own, for tests after which it cannot be used.
pub fn own_gpu() -> Option<Gpu> {
    let index = gpu()?.adapter().index;
    Some(Gpu::open(&Adapters::find(), index).unwrap())
}

/// Random values.
pub fn random(rng: &mut StdRng, count: usize, range: Range<f32>) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(range.clone())).collect()
}

/// The bits of values, which are equal also where values are not numbers.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// A buffer with these rows of `width`, with zeros up to the stride.
pub fn upload(gpu: &mut Gpu, values: &[f32], width: usize) -> Buffer {
    let rows = values.len() / width;
    let buffer = gpu.buffer("rows", rows * stride(width) * 4).unwrap();
    for (row, values) in values.chunks_exact(width).enumerate() {
        gpu.write_f32(&buffer, row * stride(width), values);
    }
    buffer
}

/// A buffer with these rows of `width`, with `pad` up to the stride: for what kernels must not read, or must write.
pub fn upload_padded(gpu: &mut Gpu, values: &[f32], width: usize, pad: f32) -> Buffer {
    let mut padded = Vec::new();
    for row in values.chunks_exact(width) {
        padded.extend(row);
        padded.resize(padded.len().next_multiple_of(stride(width)), pad);
    }
    self::values(gpu, &padded)
}

/// The rows of a buffer, without what is beyond their width.
pub fn download(gpu: &mut Gpu, buffer: &Buffer, rows: usize, width: usize) -> Vec<f32> {
    let values = gpu.read_f32(&[(buffer, 0..rows * stride(width))]).unwrap();
    values.chunks_exact(stride(width)).flat_map(|row| row[..width].to_vec()).collect()
}

/// What is beyond the width of the rows of a buffer.
pub fn download_pad(gpu: &mut Gpu, buffer: &Buffer, rows: usize, width: usize) -> Vec<f32> {
    let values = gpu.read_f32(&[(buffer, 0..rows * stride(width))]).unwrap();
    values.chunks_exact(stride(width)).flat_map(|row| row[width..].to_vec()).collect()
}

/// All words of a buffer.
pub fn words_of(gpu: &mut Gpu, buffer: &Buffer) -> Vec<u32> {
    gpu.read(&[(buffer, 0..buffer.bytes() as usize / 4)]).unwrap()
}

/// A buffer with some words.
pub fn words(gpu: &mut Gpu, words: &[u32]) -> Buffer {
    let buffer = gpu.buffer("words", words.len() * 4).unwrap();
    gpu.write(&buffer, 0, words);
    buffer
}

/// A buffer with some values.
pub fn values(gpu: &mut Gpu, values: &[f32]) -> Buffer {
    let buffer = gpu.buffer("values", values.len().max(1) * 4).unwrap();
    gpu.write_f32(&buffer, 0, values);
    buffer
}

/// Fails unless all values are within a share of the largest one, or of what they consist of.
pub fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let near = (found - expected).abs() <= tolerance * (1.0 + expected.abs());
        assert!(
            near || found == expected || found.is_nan() && expected.is_nan(),
            "{what}: value {index} is {found}, not {expected}"
        );
    }
}

/// Fails unless all values are zero.
pub fn assert_zero(found: &[f32], what: &str) {
    assert!(found.iter().all(|value| *value == 0.0), "{what}: {found:?}");
}

/// Mean and inverse deviation of some values, as a norm takes them.
pub fn statistics(values: &[f64], spec: NormSpec) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = if spec.kind == NormKind::Layer { values.iter().sum::<f64>() / count } else { 0.0 };
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    // Kernels have it in f32.
    (mean, 1.0 / (squares + f64::from(spec.eps as f32)).sqrt())
}

/// Where a word of a key or value is: the layout of [`braidinfer_gpu::kernels::HeadsStep`].
#[derive(Debug, Clone, Copy)]
pub struct Paged {
    /// Key and value heads.
    pub kv_heads: usize,
    /// Words of a head.
    pub head_words: usize,
}

impl Paged {
    /// Words of a block of 16 tokens.
    pub fn block_words(self) -> usize {
        16 * self.kv_heads * self.head_words
    }

    /// The place of a word of a key.
    pub fn key(self, slot: usize, head: usize, word: usize) -> usize {
        (slot / 16 * self.kv_heads + head) * 16 * self.head_words + word * 16 + slot % 16
    }

    /// The place of a word of a value.
    pub fn value(self, slot: usize, head: usize, word: usize) -> usize {
        (slot / 16 * self.kv_heads + head) * 16 * self.head_words + slot % 16 * self.head_words + word
    }
}
