//! Matrices as kernels read them.
//!
//! Rows lie side by side in panels of 32, as many as there are threads that read together: of 32 rows, first the first words
//! of all, then the second ones, and so on. Blocks of quantized types keep their bytes; if their size is no multiple of 4, the
//! scale in front of or behind them lies beside those of the other rows of the panel, after the words of the block.

use std::borrow::Cow;
use std::ops::Range;

use braidinfer_model::Dtype;

use crate::device::{Buffer, Gpu};
use crate::{BLOCK, Result};

/// Rows of a panel.
pub(crate) const PANEL: usize = 32;

/// Most ranges that the columns are divided into, each for a thread of its own.
const MOST_RANGES: usize = 8;

/// Words that are uploaded at a time: until they have reached the device, they are in the memory of this process, too.
const UPLOAD_WORDS: usize = 16 << 20;

/// Fewest blocks of 32 columns of a range: less gives threads too little to do.
const LEAST_RANGE: usize = 4;

/// How the weights of a matrix lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// The type of the weights.
    pub dtype: Dtype,
    /// Columns of a block.
    columns: usize,
    /// Words of a row in a block.
    words: usize,
    /// Bytes of a row in a block that fill no word.
    rest: usize,
    /// Whether these are the first ones of the block, not the last ones.
    rest_first: bool,
}

impl Format {
    /// Of weights of this type, if kernels can read it.
    pub fn of(dtype: Dtype) -> Option<Self> {
        let (columns, words, rest, rest_first) = match dtype {
            Dtype::F32 => (BLOCK, 32, 0, false),
            Dtype::F16 | Dtype::BF16 => (BLOCK, 16, 0, false),
            Dtype::Q8_0 => (BLOCK, 8, 2, true),
            Dtype::Q4_0 | Dtype::Iq4Nl => (BLOCK, 4, 2, true),
            Dtype::Mxfp4 => (BLOCK, 4, 1, true),
            Dtype::Q4_1 => (BLOCK, 5, 0, false),
            Dtype::Q5_0 => (BLOCK, 5, 2, true),
            Dtype::Q5_1 => (BLOCK, 6, 0, false),
            Dtype::Q2K => (256, 21, 0, false),
            Dtype::Q3K => (256, 27, 2, false),
            Dtype::Iq4Xs => (256, 34, 0, false),
            Dtype::Q4K => (256, 36, 0, false),
            Dtype::Q5K => (256, 44, 0, false),
            Dtype::Q6K => (256, 52, 2, false),
            _ => return None,
        };
        Some(Self { dtype, columns, words, rest, rest_first })
    }

    /// Of these weights, or of their values in f32 if kernels cannot read their type.
    pub fn or_f32(dtype: Dtype) -> Self {
        Self::of(dtype).unwrap_or(Self { dtype: Dtype::F32, columns: BLOCK, words: 32, rest: 0, rest_first: false })
    }

    /// Name of the template that decodes it.
    pub(crate) fn name(self) -> &'static str {
        self.dtype.name()
    }

    /// Blocks of 32 columns in one of its blocks.
    pub(crate) fn inner_blocks(self) -> usize {
        self.columns / BLOCK
    }

    /// Words of a row in a block, without those that rows share.
    pub(crate) fn row_words(self) -> usize {
        self.words
    }

    /// Words of a block of a panel.
    pub(crate) fn panel_words(self) -> usize {
        self.words * PANEL + self.rest * PANEL / 4
    }

    /// Bytes of a row in a block.
    fn row_bytes(self) -> usize {
        self.words * 4 + self.rest
    }

    /// Bytes of a matrix.
    pub fn matrix_bytes(self, rows: usize, columns: usize) -> usize {
        rows.div_ceil(PANEL) * columns.div_ceil(self.columns) * self.panel_words() * 4
    }

    /// Appends a panel of rows to `out`. A row has the bytes of its blocks; missing ones, and missing columns, are zeros.
    fn pack_panel(self, rows: &[Cow<'_, [u8]>], blocks: usize, out: &mut Vec<u32>) {
        let start = out.len();
        out.resize(start + blocks * self.panel_words(), 0);
        for (lane, row) in rows.iter().enumerate() {
            for (block, out) in out[start..].chunks_exact_mut(self.panel_words()).enumerate() {
                let from = (block * self.row_bytes()).min(row.len());
                let bytes = &row[from..(from + self.row_bytes()).min(row.len())];
                self.pack_row(bytes, lane, out);
            }
        }
    }

    fn pack_row(self, bytes: &[u8], lane: usize, out: &mut [u32]) {
        let (rest, words) = match self.rest_first {
            true => bytes.split_at(self.rest.min(bytes.len())),
            false => {
                let (words, rest) = bytes.split_at((self.words * 4).min(bytes.len()));
                (rest, words)
            }
        };
        for (index, word) in words.chunks(4).enumerate() {
            let mut whole = [0; 4];
            whole[..word.len()].copy_from_slice(word);
            out[index * PANEL + lane] = u32::from_le_bytes(whole);
        }
        for (index, byte) in rest.iter().enumerate() {
            let at = lane * self.rest + index;
            out[self.words * PANEL + at / 4] |= u32::from(*byte) << (at % 4 * 8);
        }
    }
}

/// A matrix in the memory of a device.
#[derive(Debug)]
pub struct Matrix {
    /// How its weights lie.
    pub format: Format,
    /// Number of rows: what a product with it is wide.
    pub rows: usize,
    /// Number of columns: what it is multiplied with is wide.
    pub columns: usize,
    /// Its panels, divided so that each part can be read as a whole.
    pub parts: Vec<MatrixPart>,
    /// Biases of all rows, and zeros up to a whole number of panels.
    pub bias: Option<Buffer>,
}

/// Consecutive panels of a matrix.
#[derive(Debug)]
pub struct MatrixPart {
    /// Its panels.
    pub panels: Range<usize>,
    /// Their words.
    pub words: Buffer,
}

impl Matrix {
    /// Loads a matrix whose rows are what `read` returns, in the bytes of `format`'s type.
    ///
    /// Fails if there is too little memory, or `read` fails.
    pub fn load<E: From<crate::GpuError>>(
        gpu: &mut Gpu,
        what: &str,
        format: Format,
        [rows, columns]: [usize; 2],
        mut read: impl FnMut(Range<usize>) -> Result<Vec<Cow<'static, [u8]>>, E>,
    ) -> Result<Self, E> {
        let (panels, blocks) = (rows.div_ceil(PANEL), columns.div_ceil(format.columns));
        let panel_words = blocks * format.panel_words();
        let most = (gpu.max_binding_bytes() as usize / (panel_words * 4)).max(1);
        let mut parts = Vec::new();
        for first in (0..panels).step_by(most) {
            let panels = first..panels.min(first + most);
            let words = gpu.buffer(what, panels.len() * panel_words * 4)?;
            let mut packed = Vec::with_capacity(panel_words);
            let mut pending = 0;
            for panel in panels.clone() {
                packed.clear();
                let read = read(panel * PANEL..rows.min((panel + 1) * PANEL))?;
                format.pack_panel(&read, blocks, &mut packed);
                gpu.write(&words, (panel - first) * panel_words, &packed);
                pending += packed.len();
                if pending > UPLOAD_WORDS {
                    gpu.flush_writes()?;
                    pending = 0;
                }
            }
            gpu.flush_writes()?;
            parts.push(MatrixPart { panels, words });
        }
        Ok(Self { format, rows, columns, parts, bias: None })
    }

    /// Loads the biases of the rows.
    pub fn set_bias(&mut self, gpu: &mut Gpu, bias: &[f32]) -> Result<()> {
        let buffer = gpu.buffer("biases", self.rows.next_multiple_of(PANEL) * 4)?;
        gpu.write_f32(&buffer, 0, bias);
        self.bias = Some(buffer);
        Ok(())
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.words.bytes() as usize).sum()
    }

    /// How sums over columns are divided.
    pub(crate) fn ranges(&self) -> Ranges {
        Ranges::new(self.columns, self.format.inner_blocks())
    }
}

/// Ranges of columns, whose products are summed one by one, and then their sums, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ranges {
    /// Blocks of 32 columns.
    pub(crate) blocks: usize,
    /// Blocks of a range; the last one may have fewer.
    pub(crate) length: usize,
    /// Number of ranges.
    pub(crate) count: usize,
}

impl Ranges {
    /// Of a row with this many columns, in blocks of which `inner` belong together.
    pub(crate) fn new(columns: usize, inner: usize) -> Self {
        let blocks = columns.div_ceil(BLOCK);
        let length = blocks.div_ceil(MOST_RANGES).max(LEAST_RANGE).next_multiple_of(inner);
        Self { blocks, length, count: blocks.div_ceil(length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows and columns of matrices of models that people use: Llama 3.2 1B, Qwen3 0.6B, Gemma 3 1B, Llama 2 7B, Phi-4 mini.
    const SHAPES: [[usize; 2]; 11] = [
        [2048, 2048],
        [512, 2048],
        [16384, 2048],
        [128_256, 2048],
        [151_936, 1024],
        [262_144, 1152],
        [6912, 1152],
        [4096, 11008],
        [32000, 4096],
        [5120, 3072],
        [200_064, 3072],
    ];

    #[test]
    fn matrices_take_hardly_more_than_their_weights() {
        for dtype in Dtype::ALL {
            let Some(format) = Format::of(dtype) else { continue };
            for [rows, columns] in SHAPES {
                // Rows of quantized types are whole blocks; others are quantized to another type.
                let Some(row) = dtype.bytes(columns) else { continue };
                let ratio = format.matrix_bytes(rows, columns) as f64 / (rows * row) as f64;
                assert!((1.0..=1.05).contains(&ratio), "{dtype} {rows} x {columns}: {ratio}");
            }
        }
    }
}
