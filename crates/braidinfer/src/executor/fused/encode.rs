//! Rows of activations into the forms that projections multiply.

use braidinfer_kernels::norm::{self, Row};
use braidinfer_kernels::{Activations, Buffer, Isa, LANES, NumericLevel, PerThread, Pool, Ranges, encode_row};

use super::packed::{PackedLinear, PackedNorm};

/// Rows encoded at every level that someone reads them at.
#[derive(Debug, Default)]
pub(super) struct Encoded {
    rows: usize,
    columns: usize,
    /// Words at `F32`, `Bf16` and `Int8`.
    words: [Vec<u32>; 3],
    /// Where tiles begin.
    starts: Vec<usize>,
}

/// Where rows come from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    /// `[panels][stride][16]`; the rows are those that `select` names, or all.
    Panels { data: &'a [f32], stride: usize, select: Option<&'a [usize]> },
    /// `[groups][rows][width / groups]`.
    Groups { data: &'a [f32], groups: usize },
}

/// What is encoded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) source: Source<'a>,
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) norm: Option<&'a PackedNorm>,
}

impl Input<'_> {
    /// One row, normed, `[width]` and padding.
    pub(super) fn read(&self, isa: Isa, row: usize, out: &mut [f32]) {
        match self.source {
            Source::Panels { data, stride, select } => {
                let row = select.map_or(row, |rows| rows[row]);
                let row = Row { data, rows: stride, row, width: self.width };
                match self.norm {
                    Some(norm) => {
                        norm::normalize(isa, norm.kind, row, &norm.weight, norm.bias.as_deref(), norm.eps, out)
                    }
                    None => row.copy_to(out),
                }
            }
            Source::Groups { data, groups } => {
                let width = self.width / groups;
                for (group, out) in out[..self.width].chunks_exact_mut(width).enumerate() {
                    out.copy_from_slice(&data[(group * self.rows + row) * width..][..width]);
                }
            }
        }
    }
}

impl Encoded {
    /// Encodes `input` at the level of every projection in `readers`.
    pub(super) fn fill(
        &mut self,
        isa: Isa,
        pool: &mut Pool,
        scratch: &mut PerThread<Buffer>,
        input: Input<'_>,
        readers: &[&PackedLinear],
    ) {
        (self.rows, self.columns) = (input.rows, input.width);
        for level in [NumericLevel::F32, NumericLevel::Bf16, NumericLevel::Int8] {
            if readers.iter().any(|linear| linear.level == level) {
                self.fill_level(isa, pool, scratch, input, level);
            }
        }
    }

    fn fill_level(
        &mut self,
        isa: Isa,
        pool: &mut Pool,
        scratch: &mut PerThread<Buffer>,
        input: Input<'_>,
        level: NumericLevel,
    ) {
        let row_words = level.words(1, input.width);
        let words = &mut self.words[level as usize];
        words.resize(input.rows * row_words, 0);
        self.starts.clear();
        self.starts.extend(isa.tiles(input.rows).map(|tile| tile.start * row_words));
        let starts = &self.starts;
        let padded = input.width.next_multiple_of(LANES);
        pool.for_each_with(scratch, Ranges::new(words, starts), |tile, words, values: &mut Buffer| {
            let (first, rows) = (starts[tile] / row_words, words.len() / row_words);
            values.resize(padded);
            for row in 0..rows {
                input.read(isa, first + row, &mut values[..padded]);
                encode_row(isa, level, &values[..input.width], row, rows, words);
            }
        });
    }

    /// The rows at a level they were encoded at.
    pub(super) fn at(&self, level: NumericLevel) -> Activations<'_> {
        let words = &self.words[level as usize];
        Activations { level, rows: self.rows, columns: self.columns, words }
    }
}
