//! Units that multiply whole tiles of activations, which some processors have beside their vector instructions.
//!
//! A tile is 16 rows of activations. Units give the same integers as [`super::Simd::dot_u8_i8`]. Sums of floats have
//! an order of their own: [`BfloatTiles`].

use super::LANES;

/// Rows of activations in a tile.
pub(crate) const ROWS: usize = 16;

/// Products in a round of [`TileUnit::multiply_peak`].
pub(crate) const PEAK_PRODUCTS: usize = 4;

/// 32 bytes of activations of every row of a tile.
pub(crate) type ByteRows = [[u32; 8]; ROWS];
/// The codes of a block of a panel, `[columns / 4][16 rows][4]`.
pub(crate) type BlockCodes = [[u8; 64]; 8];
/// 32 bf16 of every row of a tile.
pub(crate) type BfloatRows = [[u32; LANES]; ROWS];
/// 32 columns of a panel of bf16, `[columns / 2][16 rows][2]`.
pub(crate) type BfloatBlock = [[u8; 64]; 16];

/// Dot products of a tile with the rows of a panel: `[rows of activations][16 rows of the panel]`, each an i32.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct TileDots(pub [[u8; 64]; ROWS]);

impl TileDots {
    /// Zeros, to be overwritten.
    pub(crate) const ZERO: Self = Self([[0; 64]; ROWS]);
}

/// Proof that the processor has the unit, and that this process may use it.
pub(crate) trait TileUnit: Copy {
    /// Whether there can be a value.
    const EXISTS: bool;
    /// The unit of the calling thread, ready for groups of bytes.
    type Bytes: ByteTiles;
    /// The unit of the calling thread, ready for bf16.
    type Bfloats: BfloatTiles;

    /// Prepares the unit for groups of `columns` bytes, 16 or 32.
    fn bytes(self, columns: usize) -> Self::Bytes;
    /// Prepares the unit for bf16.
    fn bfloats(self) -> Self::Bfloats;
    /// Multiplies its largest tiles of bytes, or of bf16, [`PEAK_PRODUCTS`] times in each round, as fast as it can.
    fn multiply_peak(self, bfloats: bool, rounds: usize);
    /// Operations of one product of [`TileUnit::multiply_peak`], where a multiply-add counts as two.
    fn peak_operations(bfloats: bool) -> usize;
    /// `codes - zero` in every byte, wrapping.
    fn subtract(self, codes: &[[u8; 64]], zero: u8, to: &mut [[u8; 64]]);
}

/// Multiplies signed bytes. `P`, the number of panels, is 1 or 2.
pub(crate) trait ByteTiles {
    /// The exact dot products of group `group` of a block.
    fn dot<const P: usize>(&self, group: usize, x: &ByteRows, codes: [&BlockCodes; P], dots: &mut [TileDots; P]);
}

/// Multiplies bf16 by bf16. For every block of 32 columns the products of even columns are added in order, and so are
/// those of odd ones, each with one rounding; then the two sums to each other, and the result to the sum so far.
/// Denormals count as zeros. `P`, the number of panels, is 1 or 2.
pub(crate) trait BfloatTiles {
    /// Begins with these sums.
    fn begin<const P: usize>(&self, sums: [&[[f32; LANES]; ROWS]; P]);
    /// Adds the products of one block.
    fn add<const P: usize>(&self, x: &BfloatRows, weights: [&BfloatBlock; P]);
    /// The sums after all blocks.
    fn end<const P: usize>(&self, sums: [&mut [[f32; LANES]; ROWS]; P]);
}

/// The unit of instruction sets that have none.
#[derive(Debug, Clone, Copy)]
pub(crate) enum NoUnit {}

impl TileUnit for NoUnit {
    const EXISTS: bool = false;
    type Bytes = Self;
    type Bfloats = Self;

    fn bytes(self, _: usize) -> Self {
        match self {}
    }
    fn bfloats(self) -> Self {
        match self {}
    }
    fn multiply_peak(self, _: bool, _: usize) {
        match self {}
    }
    fn peak_operations(_: bool) -> usize {
        0
    }
    fn subtract(self, _: &[[u8; 64]], _: u8, _: &mut [[u8; 64]]) {
        match self {}
    }
}

impl ByteTiles for NoUnit {
    fn dot<const P: usize>(&self, _: usize, _: &ByteRows, _: [&BlockCodes; P], _: &mut [TileDots; P]) {
        match *self {}
    }
}

impl BfloatTiles for NoUnit {
    fn begin<const P: usize>(&self, _: [&[[f32; LANES]; ROWS]; P]) {
        match *self {}
    }
    fn add<const P: usize>(&self, _: &BfloatRows, _: [&BfloatBlock; P]) {
        match *self {}
    }
    fn end<const P: usize>(&self, _: [&mut [[f32; LANES]; ROWS]; P]) {
        match *self {}
    }
}
