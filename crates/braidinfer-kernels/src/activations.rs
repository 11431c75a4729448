//! Encoding rows of activations for multiplication with weight panels.
//!
//! Rows are grouped in tiles: [`Isa::tiles`]. A tile stores the values of one column for all of its
//! rows next to each other, so that one pointer reaches all of them and each is one broadcast. Columns are grouped in
//! blocks of [`BLOCK`]. Where a matrix unit multiplies tiles ([`tile_unit`]), the rounded values of one row and block lie
//! next to each other instead: those of bf16, and those of integers in tiles of [`tile_unit::ROWS`] rows.

use std::ops::Range;

use crate::format::BLOCK;
use crate::isa::{Isa, dispatched};
use crate::simd::{LANES, Simd, tile_unit};

/// How activations are rounded before the multiplication. All sums are f32, except those within a block of `Int8` and
/// `Int16`, which are exact integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NumericLevel {
    /// No rounding.
    F32,
    /// 16-bit integers, from -32512 to 32512, with an f32 scale per 32 values: a high and a low byte, multiplied
    /// separately.
    Int16,
    /// bf16, rounded to nearest even. Values and sums below 1.2e-38 may be flushed to zero.
    Bf16,
    /// 8-bit integers, from -127 to 127, with an f32 scale per 32 values.
    Int8,
}

impl NumericLevel {
    /// All levels, from exact to coarse.
    pub const ALL: [Self; 4] = [Self::F32, Self::Int16, Self::Bf16, Self::Int8];

    /// The name in reports and flags.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Int16 => "int16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    /// Whether it rounds more than another one.
    pub fn is_coarser(self, other: Self) -> bool {
        self as usize > other as usize
    }

    /// 32-bit words per block of one row.
    pub(crate) const fn block_words(self) -> usize {
        match self {
            Self::F32 => f32_words::LEN,
            Self::Int16 => integer_words::len(2),
            Self::Bf16 => BLOCK / 2,
            Self::Int8 => integer_words::len(1),
        }
    }

    /// Number of words for `rows` rows of `columns` values.
    pub fn words(self, rows: usize, columns: usize) -> usize {
        rows * columns.div_ceil(BLOCK) * self.block_words()
    }
}

/// Layout of a block at level `F32`: offsets of its words; each entry is one word per row of the tile.
pub(crate) mod f32_words {
    /// The sum of the 32 values, in f32.
    pub(crate) const SUM: usize = 32;
    /// The sums of the two halves of the block.
    pub(crate) const HALF_SUMS: usize = 33;
    pub(crate) const LEN: usize = 35;
}

/// Layout of a block at levels `Int8` and `Int16`. First come the rounded values, four bytes per word: the values
/// themselves, or all high bytes and then all low bytes. The offsets below are relative to the end of these.
pub(crate) mod integer_words {
    /// Number of words for 32 bytes.
    pub(crate) const BYTES: usize = 8;
    /// The scale, f32.
    pub(crate) const SCALE: usize = 0;
    /// -128 times the sum of the 32 rounded values, i32: corrects dot products with codes that are 128 too large.
    pub(crate) const OFFSET: usize = 1;
    /// The scale times the sum of the rounded values, f32: to be multiplied by the minimum of the weights.
    pub(crate) const SUM: usize = 2;
    /// Like `OFFSET`, for each half of the block.
    pub(crate) const HALF_OFFSETS: usize = 3;
    /// Like `SUM`, for each half of the block.
    pub(crate) const HALF_SUMS: usize = 5;

    /// Words per block if each value takes `bytes` bytes.
    pub(crate) const fn len(bytes: usize) -> usize {
        bytes * BYTES + 7
    }
}

/// Weight of the high byte of a value at level `Int16`. With an odd base, both digits are balanced around zero, from
/// -127 to 127, which every instruction set multiplies exactly.
pub(crate) const HIGH_BYTE: i32 = 255;

/// The largest value with both digits in range: 127 times 255, plus 127.
const LARGEST_INT16: i32 = 127 * (HIGH_BYTE + 1);

impl Isa {
    /// Splits `rows` rows that are encoded at `level` into tiles: as many of the largest size as fit, then halves of it.
    pub fn tiles(self, level: NumericLevel, rows: usize) -> impl Iterator<Item = Range<usize>> {
        tiles(tile_rows(self, level, rows), rows)
    }
}

dispatched! {
    fn tile_rows(level: NumericLevel, rows: usize) -> usize = largest_tile;
}

/// From this many rows on, integers are multiplied by a matrix unit, if there is one: unpacking weights for it takes longer
/// than it saves with fewer. Both give the same bits. A multiple of the rows of every tile.
pub(crate) const MANY_ROWS: usize = 64;

/// Whether a matrix unit, if there is one, multiplies `rows` rows at a level. They are encoded for it, and must be multiplied
/// by it.
pub(crate) fn for_tile_unit(level: NumericLevel, rows: usize) -> bool {
    match level {
        NumericLevel::F32 => false,
        NumericLevel::Bf16 => true,
        NumericLevel::Int8 | NumericLevel::Int16 => rows >= MANY_ROWS,
    }
}

/// Rows of the largest tile of `rows` rows at a level.
#[inline(always)]
pub(crate) fn largest_tile<S: Simd>(simd: S, level: NumericLevel, rows: usize) -> usize {
    if simd.unit().is_some() && for_tile_unit(level, rows) { tile_unit::ROWS } else { S::TILE }
}

pub(crate) fn tiles(largest: usize, rows: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = rows - start;
        if rest == 0 {
            return None;
        }
        let len = if rest >= largest { largest } else { 1 << rest.ilog2() };
        start += len;
        Some(start - len..start)
    })
}

/// Encoded rows of activations.
#[derive(Debug, Clone, Copy)]
pub struct Activations<'a> {
    /// The level at which they are encoded.
    pub level: NumericLevel,
    /// Number of rows.
    pub rows: usize,
    /// Values per row.
    pub columns: usize,
    /// The encoded values, [`NumericLevel::words`] words.
    pub words: &'a [u32],
}

impl Activations<'_> {
    /// Words of one row.
    pub(crate) fn row_words(&self) -> usize {
        self.level.words(1, self.columns)
    }

    /// Some of the rows, which must be whole tiles.
    pub(crate) fn part(&self, rows: Range<usize>) -> Self {
        let words = &self.words[rows.start * self.row_words()..rows.end * self.row_words()];
        Self { rows: rows.len(), words, ..*self }
    }
}

dispatched! {
    /// Encodes one row of a tile of `tile_rows` rows: `values` is `[columns]`, `words` is the whole tile.
    ///
    /// Missing columns of the last block are encoded as zeros.
    pub fn encode_row(level: NumericLevel, values: &[f32], row: usize, tile_rows: usize, words: &mut [u32]) = encode;
}

#[inline(always)]
fn encode<S: Simd>(simd: S, level: NumericLevel, values: &[f32], row: usize, tile_rows: usize, words: &mut [u32]) {
    assert_eq!(words.len(), level.words(tile_rows, values.len()), "a tile has whole blocks of every row");
    assert!(row < tile_rows, "the row lies in the tile");
    let (blocks, tail) = values.as_chunks::<BLOCK>();
    let mut words = words.chunks_exact_mut(level.block_words() * tile_rows);
    for (block, words) in blocks.iter().zip(&mut words) {
        encode_block(simd, level, block, row, tile_rows, words);
    }
    if let Some(words) = words.next() {
        let mut block = [0.0; BLOCK];
        block[..tail.len()].copy_from_slice(tail);
        encode_block(simd, level, &block, row, tile_rows, words);
    }
}

#[inline(always)]
fn encode_block<S: Simd>(simd: S, level: NumericLevel, x: &[f32; BLOCK], row: usize, rows: usize, words: &mut [u32]) {
    match level {
        NumericLevel::F32 => {
            let words = write_words(words, row, rows, x.map(f32::to_bits));
            let (halves, _) = x.as_chunks::<LANES>();
            let (low, high) = (simd.sum(simd.load(&halves[0])), simd.sum(simd.load(&halves[1])));
            write_words(words, row, rows, [low + high, low, high].map(f32::to_bits));
        }
        NumericLevel::Bf16 => {
            let order = if simd.unit().is_some() { Order::Rows } else { Order::Words };
            order.write(words, row, rows, bf16_pairs(simd, x));
        }
        NumericLevel::Int8 => {
            let block = IntegerBlock::round(simd, x, 127);
            let words = Order::of_bytes(simd, rows).write(words, row, rows, byte_words(simd, block.values));
            block.write_sums(simd, words, row, rows);
        }
        NumericLevel::Int16 => {
            let block = IntegerBlock::round(simd, x, LARGEST_INT16);
            let high = [high_bytes(simd, block.values[0]), high_bytes(simd, block.values[1])];
            let low = [low_bytes(simd, block.values[0], high[0]), low_bytes(simd, block.values[1], high[1])];
            let order = Order::of_bytes(simd, rows);
            let words = order.write(words, row, rows, byte_words(simd, high));
            let words = order.write(words, row, rows, byte_words(simd, low));
            block.write_sums(simd, words, row, rows);
        }
    }
}

/// The order of the rounded values of a block in a tile.
#[derive(Clone, Copy)]
enum Order {
    /// `[words][rows]`.
    Words,
    /// `[rows][words]`.
    Rows,
}

impl Order {
    /// That of bytes.
    #[inline(always)]
    fn of_bytes<S: Simd>(simd: S, rows: usize) -> Self {
        if simd.unit().is_some() && rows == tile_unit::ROWS { Self::Rows } else { Self::Words }
    }

    /// Writes the words of one row; returns what follows those of all rows.
    #[inline(always)]
    fn write<const N: usize>(self, words: &mut [u32], row: usize, rows: usize, values: [u32; N]) -> &mut [u32] {
        match self {
            Self::Words => write_words(words, row, rows, values),
            Self::Rows => {
                let (own, rest) = words.split_at_mut(N * rows);
                own[row * N..(row + 1) * N].copy_from_slice(&values);
                rest
            }
        }
    }
}

/// Writes one word into each group of `rows` words; returns the rest.
#[inline(always)]
fn write_words<const N: usize>(words: &mut [u32], row: usize, rows: usize, values: [u32; N]) -> &mut [u32] {
    let (own, rest) = words.split_at_mut(N * rows);
    for (word, value) in own.chunks_exact_mut(rows).zip(values) {
        word[row] = value;
    }
    rest
}

#[inline(always)]
fn bf16_pairs<S: Simd>(simd: S, x: &[f32; BLOCK]) -> [u32; BLOCK / 2] {
    let (mut low, mut high) = ([0.0; LANES], [0.0; LANES]);
    for pair in 0..LANES {
        (low[pair], high[pair]) = (x[2 * pair], x[2 * pair + 1]);
    }
    let mut bytes = [0; 64];
    simd.store_i32(simd.pair_bf16(simd.load(&low), simd.load(&high)), &mut bytes);
    let (words, _) = bytes.as_chunks::<4>();
    let mut pairs = [0; LANES];
    for (pair, word) in pairs.iter_mut().zip(words) {
        *pair = u32::from_le_bytes(*word);
    }
    pairs
}

/// 32 values as integers with a common scale.
struct IntegerBlock<S: Simd> {
    values: [S::I32; 2],
    scale: f32,
}

impl<S: Simd> IntegerBlock<S> {
    /// Rounds so that the largest magnitude becomes `largest`.
    #[inline(always)]
    fn round(simd: S, x: &[f32; BLOCK], largest: i32) -> Self {
        let (halves, _) = x.as_chunks::<LANES>();
        let (low, high) = (simd.load(&halves[0]), simd.load(&halves[1]));
        // Without the sign bit, float bits are ordered like magnitudes, and NaN is the largest, so it is not lost.
        let bits = simd.splat_i32(i32::MAX);
        let magnitudes = simd.max_i32(simd.and(simd.bits_of(low), bits), simd.and(simd.bits_of(high), bits));
        let magnitude = f32::from_bits(simd.largest_i32(magnitudes) as u32);
        let largest = largest as f32;
        // Blocks of zeros become zeros, and so do values so small that the inverse is infinite.
        let inverse = largest / magnitude;
        let (scale, inverse) = if inverse == f32::INFINITY { (0.0, 0.0) } else { (magnitude / largest, inverse) };
        let inverse = simd.splat(inverse);
        Self { values: [simd.round(simd.mul(low, inverse)), simd.round(simd.mul(high, inverse))], scale }
    }

    /// Writes scale, offsets and sums, which follow the values.
    #[inline(always)]
    fn write_sums(self, simd: S, words: &mut [u32], row: usize, rows: usize) {
        let sums = [simd.sum_i32(self.values[0]), simd.sum_i32(self.values[1])];
        // Non-finite values may make any integer sum; but then the scale is not finite either.
        let sum = sums[0].wrapping_add(sums[1]);
        let mut own = [0; 7];
        own[integer_words::SCALE] = self.scale.to_bits();
        own[integer_words::OFFSET] = sum.wrapping_mul(-128) as u32;
        own[integer_words::SUM] = (self.scale * sum as f32).to_bits();
        for half in 0..2 {
            own[integer_words::HALF_OFFSETS + half] = sums[half].wrapping_mul(-128) as u32;
            own[integer_words::HALF_SUMS + half] = (self.scale * sums[half] as f32).to_bits();
        }
        write_words(words, row, rows, own);
    }
}

/// The high digits, in units of [`HIGH_BYTE`]. The base is odd, so no integer lies halfway between two digits.
#[inline(always)]
fn high_bytes<S: Simd>(simd: S, values: S::I32) -> S::I32 {
    simd.round(simd.mul(simd.to_f32(values), simd.splat(1.0 / HIGH_BYTE as f32)))
}

/// The low digits: what remains of the values without the high digits.
#[inline(always)]
fn low_bytes<S: Simd>(simd: S, values: S::I32, high: S::I32) -> S::I32 {
    simd.sub_i32(values, times_high_byte(simd, high))
}

/// 255 times each lane.
#[inline(always)]
pub(crate) fn times_high_byte<S: Simd>(simd: S, values: S::I32) -> S::I32 {
    simd.sub_i32(simd.shl::<8>(values), values)
}

/// The lowest bytes of 32 values, four to a word.
#[inline(always)]
fn byte_words<S: Simd>(simd: S, values: [S::I32; 2]) -> [u32; integer_words::BYTES] {
    let mut bytes = [0; BLOCK];
    let (halves, _) = bytes.as_chunks_mut::<LANES>();
    simd.store_i8(values[0], &mut halves[0]);
    simd.store_i8(values[1], &mut halves[1]);
    let mut words = [0; integer_words::BYTES];
    let (quads, _) = bytes.as_chunks::<4>();
    for (word, quad) in words.iter_mut().zip(quads) {
        *word = u32::from_le_bytes(*quad);
    }
    words
}
