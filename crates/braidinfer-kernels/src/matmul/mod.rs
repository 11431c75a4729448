//! Matrix multiplication: weight panels times rows of activations.
//!
//! Each lane is one row of the weights, so no sum crosses lanes; the columns of a row are summed in order. Several
//! panels and several rows of activations are computed together, which does not change the order of any sum.

/// Defines functions of type [`Kernel`] from generic ones, visible in the parent module. `$dispatched` is
/// [`crate::isa::dispatched`] or one of those beside it.
macro_rules! kernels {
    ($dispatched:ident: $($name:ident = $generic:path;)*) => {
        $($crate::isa::$dispatched! {
            pub(super) fn $name(
                panels: $crate::matmul::Panels<'_>,
                x: &$crate::activations::Activations<'_>,
                out: &mut [f32],
            ) = $generic;
        })*
    };
}

mod float;
mod float_kernels;
mod integer;
mod integer_kernels;
#[cfg(test)]
mod tests;
mod tile_kernels;
mod tiles;

use std::ops::Range;

use crate::activations::{self, Activations, MANY_ROWS, NumericLevel, for_tile_unit};
use crate::format::{CHUNK, PanelFormat, panel_bytes};
use crate::isa::Isa;
use crate::simd::{LANES, Part, ROW_PANELS, Simd, tile_unit};

/// Prefetch distance of weights in bytes, over all panels that are computed together: more does not help, and less is
/// too late if a chunk is small.
const LOOKAHEAD: usize = 9 << 10;

/// Consecutive panels of one matrix.
#[derive(Debug, Clone, Copy)]
pub struct Panels<'a> {
    /// Their storage format.
    pub format: PanelFormat,
    /// Columns of the matrix.
    pub columns: usize,
    /// Whole panels, one after the other.
    pub data: &'a [u8],
    /// The panels that this thread will probably read next, for prefetching; may be empty.
    pub ahead: &'a [u8],
}

impl<'a> Panels<'a> {
    /// The bytes to prefetch while a chunk of `len` bytes that ends at `end` of panel `panel` is multiplied: the chunk
    /// that is [`LOOKAHEAD`] away, in the same panel or in the one `group` panels later.
    fn next_lines(&self, panel: usize, end: usize, len: usize, group: usize) -> &'a [[u8; 64]] {
        let panel_bytes = panel_bytes(self.format, self.columns);
        let chunks = (LOOKAHEAD / group + len / 2) / len;
        let (mut panel, mut start) = (panel, end + chunks.saturating_sub(1) * len);
        while start >= panel_bytes {
            (panel, start) = (panel + group, start - panel_bytes);
        }
        let (start, limit) = (panel * panel_bytes + start, (panel + 1) * panel_bytes);
        let bytes = match start.checked_sub(self.data.len()) {
            None => &self.data[start..self.data.len().min(limit)],
            Some(start) => self.ahead.get(start..).unwrap_or_default(),
        };
        bytes[..bytes.len().min(len)].as_chunks().0
    }

    /// [`Panels::next_lines`] of each of `P` panels from `first` on, which are multiplied together.
    #[inline(always)]
    fn lines_ahead<const P: usize>(&self, first: usize, end: usize, len: usize) -> [&'a [[u8; 64]]; P] {
        let mut ahead = [&[][..]; P];
        for (panel, ahead) in ahead.iter_mut().enumerate() {
            *ahead = self.next_lines(first + panel, end, len, P);
        }
        ahead
    }
}

/// A kernel for one kind of weights at one level. Each is a function of its own, because compile time grows
/// superlinearly with the size of a function.
type Kernel = fn(Isa, Panels<'_>, &Activations<'_>, &mut [f32]);

/// Multiplies every panel by every row of `x`: `[panels][rows][16]`.
///
/// # Panics
///
/// If the format cannot be multiplied at the level, or the sizes do not match.
pub fn matmul(isa: Isa, panels: Panels<'_>, x: &Activations<'_>, out: &mut [f32]) {
    assert_eq!(panels.columns, x.columns, "as many columns in the weights as in the activations");
    assert_eq!(x.words.len(), x.level.words(x.rows, x.columns), "every row is encoded");
    let kernel = match (panels.format, x.level) {
        (PanelFormat::Int(format), NumericLevel::Int8 | NumericLevel::Int16)
            if isa.has_tile_unit() && for_tile_unit(x.level, x.rows) =>
        {
            Some(tile_kernels::kernel(format, x.level))
        }
        (PanelFormat::Int(format), _) => integer_kernels::kernel(format, integer::bits(isa, format, x), x.level),
        (PanelFormat::Bf16, NumericLevel::Bf16) => Some(float_kernels::bf16_dot as Kernel),
        (PanelFormat::Bf16, NumericLevel::F32) => Some(float_kernels::bf16 as Kernel),
        (PanelFormat::F16, NumericLevel::F32) => Some(float_kernels::f16 as Kernel),
        (PanelFormat::F32, NumericLevel::F32) => Some(float_kernels::f32 as Kernel),
        _ => None,
    };
    let Some(kernel) = kernel else { panic!("{:?} cannot be multiplied at level {}", panels.format, x.level.name()) };
    kernel(isa, panels, x, out);
}

/// Multiplies a group of panels by all rows, or by one.
trait GroupKernel<S: Simd> {
    /// Whether [`ROW_PANELS`] panels at once are compiled, for a single row.
    const MULTIPLIES_ROWS: bool = true;

    /// Adds the products of `P` panels to `out`, `[rows][16]` for each panel. `first` is the index of the first panel.
    fn multiply<const P: usize>(
        &mut self,
        simd: S,
        first: usize,
        data: [&[u8]; P],
        x: &Activations<'_>,
        out: [&mut [[f32; LANES]]; P],
    );
}

/// Runs a kernel over all panels and rows, with as many panels at once as the instruction set has registers for.
#[inline(always)]
fn for_each_group<S: Simd, K: GroupKernel<S>>(
    simd: S,
    mut kernel: K,
    panels: Panels<'_>,
    x: &Activations<'_>,
    out: &mut [f32],
) {
    let panel_bytes = panel_bytes(panels.format, panels.columns);
    let (out, _) = out.as_chunks_mut::<LANES>();
    assert_eq!(out.len() * panel_bytes, x.rows * panels.data.len(), "one output per panel and row");
    out.fill([0.0; LANES]);
    // With one row the product is memory-bound: as many panels as there are streams to read.
    let together = if x.rows == 1 { simd.panels_of_row() } else { S::PANELS };
    let part_rows = if simd.unit().is_some() { part_rows(x) } else { x.rows };
    let mut start = 0;
    while start < x.rows {
        let rows = if x.rows - start < 2 * part_rows { start..x.rows } else { start..start + part_rows };
        start = rows.end;
        let part = x.part(rows.clone());
        let count = panels.data.len() / panel_bytes;
        let mut first = 0;
        while first < count {
            let data = &panels.data[first * panel_bytes..];
            let out = &mut out[first * x.rows..];
            first += match together.min(count - first) {
                ROW_PANELS if const { S::PANELS == 2 && K::MULTIPLIES_ROWS } => {
                    let (data, out) = split::<ROW_PANELS>(data, panel_bytes, out, x.rows, &rows);
                    kernel.multiply(simd, first, data, &part, out);
                    ROW_PANELS
                }
                2.. if const { S::PANELS == 2 } => {
                    let (data, out) = split::<2>(data, panel_bytes, out, x.rows, &rows);
                    kernel.multiply(simd, first, data, &part, out);
                    2
                }
                _ => {
                    let (data, out) = split::<1>(data, panel_bytes, out, x.rows, &rows);
                    kernel.multiply(simd, first, data, &part, out);
                    1
                }
            };
        }
    }
}

/// The first `P` panels, and `rows` of what they give for all rows.
fn split<'a, 'b, const P: usize>(
    data: &'a [u8],
    panel_bytes: usize,
    out: &'b mut [[f32; LANES]],
    all_rows: usize,
    rows: &Range<usize>,
) -> ([&'a [u8]; P], [&'b mut [[f32; LANES]]; P]) {
    let mut parts = out.chunks_exact_mut(all_rows);
    let data = std::array::from_fn(|panel| &data[panel * panel_bytes..(panel + 1) * panel_bytes]);
    let out = std::array::from_fn(|_| &mut parts.next().expect("an output for each panel")[rows.clone()]);
    (data, out)
}

/// Bytes of activations that stay in the second-level cache while several panels are multiplied by them. Vector
/// instructions are too slow for that to matter.
const PART_BYTES: usize = if cfg!(test) { 1 } else { 1 << 20 };

/// How many rows to multiply by all panels before the next ones. The last part is larger, so that the tiles of a part are
/// those of all rows.
fn part_rows(x: &Activations<'_>) -> usize {
    let rows = PART_BYTES / (size_of::<u32>() * x.row_words());
    (rows - rows % MANY_ROWS).max(MANY_ROWS)
}

/// Multiplies one chunk of columns of `P` panels by one tile of `N` rows.
trait ChunkKernel<S: Simd, const P: usize> {
    /// Whether tiles have up to 16 rows.
    const LARGE_TILES: bool = false;

    /// The kernel for tiles of fewer rows than 16.
    type Small: ChunkKernel<S, P>;

    fn small(&self) -> &Self::Small;

    /// Adds the products to `sums`. `x` has the words of the tile's chunk; `ahead` prefetches meanwhile.
    fn accumulate<const N: usize>(
        &self,
        simd: S,
        x: &[u32],
        ahead: &mut impl Ahead<S>,
        sums: [&mut [[f32; LANES]; N]; P],
    );
}

/// Runs a kernel over every tile of rows. `chunk` counts from the left; `out` has `[rows][16]` for each panel. The
/// first tile prefetches the lines of `ahead`; further tiles of full size are compiled without prefetching, but for panels
/// that are left over, and for tiles of 16 rows, which take less time than so many lines at once: each prefetches
/// [some](lines_per_block).
#[inline(always)]
fn for_each_tile<S: Simd, K: ChunkKernel<S, P>, const P: usize>(
    simd: S,
    kernel: &K,
    x: &Activations<'_>,
    chunk: usize,
    ahead: [&[[u8; 64]]; P],
    out: &mut [&mut [[f32; LANES]]; P],
) {
    let block_words = x.level.block_words();
    let row_words = x.row_words();
    let first = chunk * (CHUNK / 32) * block_words;
    let last = (first + CHUNK / 32 * block_words).min(row_words);
    let small = kernel.small();
    let mut lines = PrefetchLines(ahead.map(<[_]>::iter));
    for tile in activations::tiles(activations::largest_tile(simd, x.level, x.rows), x.rows) {
        let rows = tile.len();
        let words = &x.words[tile.start * row_words + first * rows..tile.start * row_words + last * rows];
        let sums_from = tile.start;
        match rows {
            1 => simd.call(Tile::<K::Small, _, P, 1> {
                kernel: small,
                words,
                ahead: &mut lines,
                sums: sums(out, sums_from),
            }),
            2 if const { P < ROW_PANELS } => simd.call(Tile::<K::Small, _, P, 2> {
                kernel: small,
                words,
                ahead: &mut lines,
                sums: sums(out, sums_from),
            }),
            4 if const { P == S::PANELS && S::TILE == 4 } && sums_from > 0 => simd.call(Tile::<K::Small, _, P, 4> {
                kernel: small,
                words,
                ahead: &mut NoPrefetch,
                sums: sums(out, sums_from),
            }),
            4 if const { P < ROW_PANELS && S::TILE >= 4 } => simd.call(Tile::<K::Small, _, P, 4> {
                kernel: small,
                words,
                ahead: &mut lines,
                sums: sums(out, sums_from),
            }),
            8 if const { P == S::PANELS && S::TILE == 8 } && sums_from > 0 => simd.call(Tile::<K::Small, _, P, 8> {
                kernel: small,
                words,
                ahead: &mut NoPrefetch,
                sums: sums(out, sums_from),
            }),
            8 if const { P < ROW_PANELS && S::TILE == 8 } => simd.call(Tile::<K::Small, _, P, 8> {
                kernel: small,
                words,
                ahead: &mut lines,
                sums: sums(out, sums_from),
            }),
            16 if const { P < ROW_PANELS && K::LARGE_TILES } => {
                simd.call(Tile::<K, _, P, 16> { kernel, words, ahead: &mut lines, sums: sums(out, sums_from) })
            }
            _ => unreachable!("a tile of {rows} rows"),
        }
    }
}

/// The arguments of [`ChunkKernel::accumulate`].
struct Tile<'a, K, A, const P: usize, const N: usize> {
    kernel: &'a K,
    words: &'a [u32],
    ahead: &'a mut A,
    sums: [&'a mut [[f32; LANES]; N]; P],
}

impl<S: Simd, K: ChunkKernel<S, P>, A: Ahead<S>, const P: usize, const N: usize> Part<S> for Tile<'_, K, A, P, N> {
    #[inline(always)]
    fn run(self, simd: S) {
        self.kernel.accumulate::<N>(simd, self.words, self.ahead, self.sums);
    }
}

/// Of `lines` of a panel, how many to prefetch in each of `blocks` blocks of a tile of 16 rows, so that all are asked for
/// where there are `rows` rows.
fn lines_per_block(lines: usize, blocks: usize, rows: usize) -> usize {
    lines.div_ceil(blocks * (rows / tile_unit::ROWS).max(1))
}

/// Prefetching while a tile is multiplied.
trait Ahead<S: Simd> {
    /// Prefetches one line of each panel. Called between multiplications: many prefetches at once would delay the
    /// weights that are needed now.
    fn next(&mut self, simd: S);
}

/// Cache lines of each panel to prefetch.
struct PrefetchLines<'a, const P: usize>([std::slice::Iter<'a, [u8; 64]>; P]);

impl<S: Simd, const P: usize> Ahead<S> for PrefetchLines<'_, P> {
    #[inline(always)]
    fn next(&mut self, simd: S) {
        for lines in &mut self.0 {
            if let Some(line) = lines.next() {
                simd.prefetch(line);
            }
        }
    }
}

struct NoPrefetch;

impl<S: Simd> Ahead<S> for NoPrefetch {
    #[inline(always)]
    fn next(&mut self, _: S) {}
}

/// `values.map(to)`, which takes the compiler much less time: kernels are many.
#[inline(always)]
fn each<T: Copy, U: Copy, const P: usize>(values: [T; P], to: impl Fn(T) -> U) -> [U; P] {
    let mut mapped = [to(values[0]); P];
    for i in 1..P {
        mapped[i] = to(values[i]);
    }
    mapped
}

/// Loads the sums of `N` rows in each panel.
#[inline(always)]
fn load_sums<S: Simd, const P: usize, const N: usize>(simd: S, sums: &[&mut [[f32; LANES]; N]; P]) -> [[S::F32; N]; P] {
    let mut totals = [[simd.splat(0.0); N]; P];
    for panel in 0..P {
        for row in 0..N {
            totals[panel][row] = simd.load(&sums[panel][row]);
        }
    }
    totals
}

/// Stores the sums of `N` rows in each panel.
#[inline(always)]
fn store_sums<S: Simd, const P: usize, const N: usize>(
    simd: S,
    totals: [[S::F32; N]; P],
    sums: [&mut [[f32; LANES]; N]; P],
) {
    for panel in 0..P {
        for row in 0..N {
            simd.store(totals[panel][row], &mut sums[panel][row]);
        }
    }
}

/// The sums of `N` rows in each panel.
#[inline(always)]
fn sums<'a, const P: usize, const N: usize>(
    out: &'a mut [&mut [[f32; LANES]]; P],
    row: usize,
) -> [&'a mut [[f32; LANES]; N]; P] {
    out.each_mut().map(|panel| panel[row..].first_chunk_mut().expect("a tile lies within the rows"))
}
