//! Encoding activations for matrix multiplication.

use std::ops::Range;

use braidinfer_kernels::norm::{self, Row};
use braidinfer_kernels::{Activations, BLOCK, Buffer, Isa, LANES, NumericLevel, PerThread, Pool, Ranges, encode_row};

use super::packed::PackedNorm;

/// Rows encoded at every numeric level that some projection needs.
#[derive(Debug, Default)]
pub(super) struct Encoded {
    rows: usize,
    columns: usize,
    /// The encoded rows for each level.
    words: [Vec<u32>; NumericLevel::ALL.len()],
    /// The encoding tasks, and where the output of each begins.
    starts: Vec<usize>,
    tasks: Vec<EncodeTask>,
}

/// A task: some columns of a row tile.
#[derive(Debug, Clone)]
struct EncodeTask {
    rows: Range<usize>,
    columns: Range<usize>,
}

/// Where the rows to encode are read from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    /// `[panels][stride][16]`; either the rows in `select` or all rows.
    Panels { data: &'a [f32], stride: usize, select: Option<&'a [usize]> },
    /// `[groups][rows][width / groups]`.
    Groups { data: &'a [f32], groups: usize },
}

/// The rows to encode.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) source: Source<'a>,
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) norm: Option<&'a PackedNorm>,
}

impl Input<'_> {
    /// Reads some columns of some rows, normed, each padded to a multiple of 16: `[rows][columns]`. The first column
    /// must be a multiple of 16.
    pub(super) fn read(&self, isa: Isa, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
        let padded = columns.len().next_multiple_of(LANES);
        match self.source {
            Source::Panels { data, stride, select } => {
                let at = |row: usize| select.map_or(row, |rows| rows[row]);
                // Panel by panel: the parts of one row lie at a stride that maps them to few cache sets.
                for (panel, first) in columns.clone().step_by(LANES).enumerate() {
                    let lines = &data[first * stride..];
                    for (row, out) in rows.clone().zip(out.chunks_exact_mut(padded)) {
                        out[panel * LANES..][..LANES].copy_from_slice(&lines[at(row) * LANES..][..LANES]);
                    }
                }
                let Some(norm) = self.norm else { return };
                for (row, out) in rows.zip(out.chunks_exact_mut(padded)) {
                    let whole = match columns.len() == self.width {
                        true => Row { data: out, rows: 1, row: 0, width: self.width },
                        false => Row { data, rows: stride, row: at(row), width: self.width },
                    };
                    let statistics = norm::statistics(isa, norm.kind, whole, norm.eps);
                    let bias = norm.bias.as_ref().map(|bias| &bias[columns.start..]);
                    norm::apply(isa, &mut out[..columns.len()], statistics, &norm.weight[columns.start..], bias);
                }
            }
            Source::Groups { data, groups } => {
                let width = self.width / groups;
                for (row, out) in rows.zip(out.chunks_exact_mut(padded)) {
                    let (mut column, mut out) = (columns.start, &mut out[..columns.len()]);
                    while !out.is_empty() {
                        let (group, from) = (column / width, column % width);
                        let (now, rest) = out.split_at_mut((width - from).min(out.len()));
                        now.copy_from_slice(&data[(group * self.rows + row) * width + from..][..now.len()]);
                        (column, out) = (column + now.len(), rest);
                    }
                }
            }
        }
    }
}

impl Encoded {
    /// Encodes `input` at each of `levels`, which may contain duplicates.
    pub(super) fn fill(
        &mut self,
        isa: Isa,
        pool: &mut Pool,
        scratch: &mut PerThread<Buffer>,
        input: Input<'_>,
        levels: impl Iterator<Item = NumericLevel> + Clone,
    ) {
        (self.rows, self.columns) = (input.rows, input.width);
        for level in NumericLevel::ALL {
            if levels.clone().any(|wanted| wanted == level) {
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
        let words = &mut self.words[level as usize];
        words.resize(level.words(input.rows, input.width), 0);
        self.starts.clear();
        self.tasks.clear();
        let tiles = isa.tiles(input.rows).count();
        // Whole quantization blocks, whose words are contiguous in a tile.
        let columns = input.width.div_ceil(pool.threads().div_ceil(tiles)).next_multiple_of(BLOCK);
        let mut start = 0;
        for rows in isa.tiles(input.rows) {
            for first in (0..input.width).step_by(columns) {
                let columns = first..input.width.min(first + columns);
                self.starts.push(start);
                start += level.words(rows.len(), columns.len());
                self.tasks.push(EncodeTask { rows: rows.clone(), columns });
            }
        }
        let tasks = &self.tasks;
        pool.for_each_with(scratch, Ranges::new(words, &self.starts), |task, words, values: &mut Buffer| {
            let EncodeTask { rows, columns } = &tasks[task];
            let padded = columns.len().next_multiple_of(LANES);
            values.resize(rows.len() * padded);
            input.read(isa, rows.clone(), columns.clone(), values);
            for (row, values) in values.chunks_exact(padded).enumerate() {
                encode_row(isa, level, &values[..columns.len()], row, rows.len(), words);
            }
        });
    }

    /// The rows encoded at a level.
    pub(super) fn at(&self, level: NumericLevel) -> Activations<'_> {
        let words = &self.words[level as usize];
        Activations { level, rows: self.rows, columns: self.columns, words }
    }
}
