//! Encoding activations for matrix multiplication.

use std::ops::Range;

use braidinfer_kernels::norm::{self, Row};
use braidinfer_kernels::{Activations, BLOCK, Buffer, Isa, LANES, NumericLevel, PerThread, Pool, Ranges, encode_row};

use super::packed::PackedNorm;

/// Rows encoded at every numeric level that some projection needs, in groups: the rows of a group are multiplied together.
#[derive(Debug, Default)]
pub(super) struct Encoded {
    groups: Vec<EncodedGroup>,
    /// The encoded rows for each level.
    words: [Buffer<u32>; NumericLevel::ALL.len()],
    /// The encoding tasks, and where the output of each begins.
    starts: Vec<usize>,
    tasks: Vec<EncodeTask>,
}

/// Rows that are multiplied together.
#[derive(Debug, Default, Clone, Copy)]
struct EncodedGroup {
    rows: usize,
    columns: usize,
    /// Where their words begin, for each level.
    starts: [usize; NumericLevel::ALL.len()],
}

/// A task: some columns of a row tile of a group.
#[derive(Debug, Clone)]
struct EncodeTask {
    group: usize,
    rows: Range<usize>,
    columns: Range<usize>,
}

/// Where the rows to encode are read from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    /// `[panels][stride][16]`; either the rows in `select` or all rows.
    Panels { data: &'a [f32], stride: usize, select: Option<&'a [usize]> },
    /// `[groups][rows][stride]`, of which the first `width / groups` values count. The columns of a row are the first of
    /// `tiles` equal parts of every group, then their second parts, and so on.
    Groups { data: &'a [f32], groups: usize, tiles: usize, stride: usize },
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
            Source::Groups { data, groups, tiles, stride } => {
                let width = self.width / groups / tiles;
                for (row, out) in rows.zip(out.chunks_exact_mut(padded)) {
                    let (mut column, mut out) = (columns.start, &mut out[..columns.len()]);
                    while !out.is_empty() {
                        let (part, from) = (column / width, column % width);
                        let (group, tile) = (part % groups, part / groups);
                        let (now, rest) = out.split_at_mut((width - from).min(out.len()));
                        let first = (group * self.rows + row) * stride + tile * width + from;
                        now.copy_from_slice(&data[first..][..now.len()]);
                        (column, out) = (column + now.len(), rest);
                    }
                }
            }
        }
    }
}

impl Encoded {
    /// Encodes `input` as the only group, at each of `levels`, which may contain duplicates.
    pub(super) fn fill(
        &mut self,
        isa: Isa,
        pool: &mut Pool,
        scratch: &mut PerThread<Buffer>,
        input: Input<'_>,
        levels: impl Iterator<Item = NumericLevel> + Clone,
    ) {
        self.fill_groups(isa, pool, scratch, (1, &|_| input), levels);
    }

    /// Encodes a number of groups, each with rows, at each of `levels`.
    pub(super) fn fill_groups<'a>(
        &mut self,
        isa: Isa,
        pool: &mut Pool,
        scratch: &mut PerThread<Buffer>,
        (groups, input): (usize, &(dyn Fn(usize) -> Input<'a> + Sync)),
        levels: impl Iterator<Item = NumericLevel> + Clone,
    ) {
        self.groups.clear();
        self.groups.extend((0..groups).map(input).map(|input| EncodedGroup {
            rows: input.rows,
            columns: input.width,
            starts: [0; NumericLevel::ALL.len()],
        }));
        for level in NumericLevel::ALL {
            if levels.clone().any(|wanted| wanted == level) {
                self.fill_level(isa, pool, scratch, input, level);
            }
        }
    }

    fn fill_level<'a>(
        &mut self,
        isa: Isa,
        pool: &mut Pool,
        scratch: &mut PerThread<Buffer>,
        input: &(dyn Fn(usize) -> Input<'a> + Sync),
        level: NumericLevel,
    ) {
        let len = self.lay_out(isa, pool.threads(), level);
        let words = &mut self.words[level as usize];
        words.resize(len);
        let tasks = &self.tasks;
        pool.for_each_with(scratch, Ranges::new(words, &self.starts), |task, words, values: &mut Buffer| {
            let EncodeTask { group, rows, columns } = &tasks[task];
            let padded = columns.len().next_multiple_of(LANES);
            values.resize(rows.len() * padded);
            input(*group).read(isa, rows.clone(), columns.clone(), values);
            for (row, values) in values.chunks_exact(padded).enumerate() {
                encode_row(isa, level, &values[..columns.len()], row, rows.len(), words);
            }
        });
    }

    /// Decides where the words of all groups lie, and which tasks encode them. Returns the number of words.
    fn lay_out(&mut self, isa: Isa, threads: usize, level: NumericLevel) -> usize {
        self.starts.clear();
        self.tasks.clear();
        let tiles: usize = self.groups.iter().map(|group| isa.tiles(level, group.rows).count()).sum();
        let mut start = 0;
        for (index, group) in self.groups.iter_mut().enumerate() {
            group.starts[level as usize] = start;
            // Whole quantization blocks, whose words are contiguous in a tile.
            let columns = group.columns.div_ceil(threads.div_ceil(tiles)).next_multiple_of(BLOCK);
            for rows in isa.tiles(level, group.rows) {
                for first in (0..group.columns).step_by(columns) {
                    let columns = first..group.columns.min(first + columns);
                    self.starts.push(start);
                    start += level.words(rows.len(), columns.len());
                    self.tasks.push(EncodeTask { group: index, rows: rows.clone(), columns });
                }
            }
        }
        start
    }

    /// The rows of a group encoded at a level.
    pub(super) fn group(&self, index: usize, level: NumericLevel) -> Activations<'_> {
        let EncodedGroup { rows, columns, starts } = self.groups[index];
        let start = starts[level as usize];
        let words = &self.words[level as usize][start..start + level.words(rows, columns)];
        Activations { level, rows, columns, words }
    }
}
