//! Panels of codes with scales.

use super::{ChunkKernel, Panels, for_each_tile, prefetch_share};
use crate::activations::{Activations, f32_words, int8_words};
use crate::format::{
    BLOCK, CHUNK_BLOCKS, CodeBits, IntFormat, PanelFormat, chunk_blocks, chunk_bytes, chunks, panel_bytes,
};
use crate::prepare::{Prepared, chunk_codes, prepare};
use crate::simd::{LANES, Simd};

/// Vectors of codes in a block: four columns in each lane.
const VECTORS: usize = BLOCK / 4;

/// `[panels][rows][16]`.
///
/// `INT8`: activations are rounded to 8 bits. `MIN`: weights have minima, and no zero point. `HALVES`: a group of
/// weights is half a block.
#[inline(always)]
pub(super) fn multiply<S: Simd, const INT8: bool, const MIN: bool, const HALVES: bool>(
    simd: S,
    panels: Panels<'_>,
    x: &Activations<'_>,
    out: &mut [f32],
) {
    let PanelFormat::Int(format) = panels.format else { panic!("{:?} has no codes", panels.format) };
    let panel_bytes = panel_bytes(panels.format, panels.columns);
    let (out, _) = out.as_chunks_mut::<LANES>();
    assert_eq!(out.len() * panel_bytes, x.rows * panels.data.len(), "one output per panel and row");
    let mut prepared = [Prepared::ZERO, Prepared::ZERO];
    let groups = panels.data.chunks(S::PANELS * panel_bytes);
    for (group, (data, out)) in groups.zip(out.chunks_mut(S::PANELS * x.rows)).enumerate() {
        let first = group * S::PANELS;
        if S::PANELS == 2 && data.len() == 2 * panel_bytes {
            let (data_first, data_second) = data.split_at(panel_bytes);
            let (out_first, out_second) = out.split_at_mut(x.rows);
            let group =
                PanelGroup::<'_, 2, INT8, MIN, HALVES> { panels, format, first, data: [data_first, data_second] };
            group.multiply(simd, x, &mut prepared, [out_first, out_second]);
        } else {
            let [prepared, _] = &mut prepared;
            let group = PanelGroup::<'_, 1, INT8, MIN, HALVES> { panels, format, first, data: [data] };
            group.multiply(simd, x, std::array::from_mut(prepared), [out]);
        }
    }
}

/// Panels that are multiplied together.
struct PanelGroup<'a, const P: usize, const INT8: bool, const MIN: bool, const HALVES: bool> {
    panels: Panels<'a>,
    format: IntFormat,
    /// Number of the first.
    first: usize,
    data: [&'a [u8]; P],
}

impl<const P: usize, const INT8: bool, const MIN: bool, const HALVES: bool> PanelGroup<'_, P, INT8, MIN, HALVES> {
    #[inline(always)]
    fn multiply<S: Simd>(
        &self,
        simd: S,
        x: &Activations<'_>,
        prepared: &mut [Prepared; P],
        mut out: [&mut [[f32; LANES]]; P],
    ) {
        for sums in &mut out {
            sums.fill([0.0; LANES]);
        }
        let format = self.format;
        let zero = format.zero;
        let full = chunk_bytes(PanelFormat::Int(format), CHUNK_BLOCKS);
        let mut start = 0;
        for chunk in 0..chunks(x.columns) {
            let blocks = chunk_blocks(x.columns, chunk);
            let end = start + chunk_bytes(PanelFormat::Int(format), blocks);
            let bytes = self.data.map(|panel| &panel[start..end]);
            start = end;
            for (bytes, prepared) in bytes.iter().zip(prepared.iter_mut()) {
                prepare(simd, format, bytes, blocks, prepared);
            }
            let mut panels = [PanelChunk::of(format, bytes[0], blocks, &prepared[0]); P];
            for panel in 1..P {
                panels[panel] = PanelChunk::of(format, bytes[panel], blocks, &prepared[panel]);
            }
            let mut ahead = [&[][..]; P];
            for (panel, ahead) in ahead.iter_mut().enumerate() {
                *ahead = self.panels.next_lines(self.first + panel, end, full, S::PANELS);
            }
            for_each_tile(simd, &Codes::<P, INT8, MIN, HALVES> { panels, zero }, x, chunk, ahead, &mut out);
        }
    }
}

/// A chunk of one panel: a byte per code, and f32 scales and minima for each group.
#[derive(Clone, Copy)]
struct PanelChunk<'a> {
    codes: &'a [[u8; 64]],
    scales: &'a [[f32; LANES]; 16],
    mins: &'a [[f32; LANES]; 16],
}

impl<'a> PanelChunk<'a> {
    #[inline(always)]
    fn of(format: IntFormat, bytes: &'a [u8], blocks: usize, prepared: &'a Prepared) -> Self {
        let codes = match format.bits {
            CodeBits::Eight => chunk_codes(format, bytes, blocks),
            CodeBits::Four | CodeBits::Six => &prepared.codes[..blocks * VECTORS],
        };
        Self { codes, scales: &prepared.scales, mins: &prepared.mins }
    }
}

/// One chunk of some panels.
struct Codes<'a, const P: usize, const INT8: bool, const MIN: bool, const HALVES: bool> {
    panels: [PanelChunk<'a>; P],
    zero: u8,
}

impl<S: Simd, const P: usize, const INT8: bool, const MIN: bool, const HALVES: bool> ChunkKernel<S, P>
    for Codes<'_, P, INT8, MIN, HALVES>
{
    #[inline(always)]
    fn accumulate<const N: usize>(
        &self,
        simd: S,
        x: &[u32],
        ahead: [&[[u8; 64]]; P],
        mut sums: [&mut [[f32; LANES]; N]; P],
    ) {
        let words = if INT8 { int8_words::LEN } else { f32_words::LEN };
        let mut codes = self.panels.map(|panel| panel.codes.as_chunks::<VECTORS>().0.iter());
        for (block, x) in x.chunks_exact(words * N).enumerate() {
            prefetch_share(simd, ahead, block);
            let mut vectors = [&[[0; 64]; VECTORS]; P];
            for (vectors, codes) in vectors.iter_mut().zip(&mut codes) {
                *vectors = codes.next().expect("as many blocks of codes as of activations");
            }
            if HALVES {
                let (low, high) = (vectors.map(|v| &v[..VECTORS / 2]), vectors.map(|v| &v[VECTORS / 2..]));
                self.group(simd, low, 2 * block, x, &mut sums);
                self.group(simd, high, 2 * block + 1, x, &mut sums);
            } else {
                self.group(simd, vectors.map(|v| &v[..]), block, x, &mut sums);
            }
        }
    }
}

impl<const P: usize, const INT8: bool, const MIN: bool, const HALVES: bool> Codes<'_, P, INT8, MIN, HALVES> {
    /// Vectors of codes in a group.
    const LEN: usize = if HALVES { VECTORS / 2 } else { VECTORS };

    /// Adds the products of one group. `x` holds the words of the whole block.
    #[inline(always)]
    fn group<S: Simd, const N: usize>(
        &self,
        simd: S,
        codes: [&[[u8; 64]]; P],
        group: usize,
        x: &[u32],
        sums: &mut [&mut [[f32; LANES]; N]; P],
    ) {
        if INT8 {
            self.int8_group(simd, codes, group, x, sums);
        } else {
            self.f32_group(simd, codes, group, x, sums);
        }
    }

    /// Products of codes and rounded activations are summed exactly, then scaled.
    #[inline(always)]
    fn int8_group<S: Simd, const N: usize>(
        &self,
        simd: S,
        codes: [&[[u8; 64]]; P],
        group: usize,
        x: &[u32],
        sums: &mut [&mut [[f32; LANES]; N]; P],
    ) {
        let half = if HALVES { group % 2 } else { 0 };
        let mut dots = [[simd.splat_i32(0); N]; P];
        if !MIN {
            // Codes are `zero` too large; the activations know what 128 too much would add.
            let by = 7 - self.zero.trailing_zeros();
            let offsets = if HALVES { int8_words::HALF_OFFSETS + half } else { int8_words::OFFSET };
            for row in 0..N {
                let offset = simd.sar(simd.splat_i32(x[offsets * N + row] as i32), by);
                for dots in &mut dots {
                    dots[row] = offset;
                }
            }
        }
        let (quads, _) = x[half * Self::LEN * N..].as_chunks::<N>();
        for (vector, quads) in quads[..Self::LEN].iter().enumerate() {
            simd.dot_tile(&mut dots, codes.map(|codes| &codes[vector]), quads);
        }
        for panel in 0..P {
            let scale = simd.load(&self.panels[panel].scales[group]);
            for row in 0..N {
                let scale = simd.mul(scale, simd.splat(f32::from_bits(x[int8_words::SCALE * N + row])));
                let mut sum = simd.load(&sums[panel][row]);
                sum = simd.fma(simd.to_f32(dots[panel][row]), scale, sum);
                if MIN {
                    let min = simd.load(&self.panels[panel].mins[group]);
                    let sums_at = if HALVES { int8_words::HALF_SUMS + half } else { int8_words::SUM };
                    sum = simd.fma(min, simd.splat(f32::from_bits(x[sums_at * N + row])), sum);
                }
                simd.store(sum, &mut sums[panel][row]);
            }
        }
    }

    /// Codes less the zero point are multiplied as they are; the sum of a group is scaled once.
    #[inline(always)]
    fn f32_group<S: Simd, const N: usize>(
        &self,
        simd: S,
        codes: [&[[u8; 64]]; P],
        group: usize,
        x: &[u32],
        sums: &mut [&mut [[f32; LANES]; N]; P],
    ) {
        let half = if HALVES { group % 2 } else { 0 };
        let mut dots = [[simd.splat(0.0); N]; P];
        let (byte, zero) = (simd.splat_i32(255), simd.splat_i32(-i32::from(self.zero)));
        for vector in 0..Self::LEN {
            let mut words = [simd.splat_i32(0); P];
            for (words, codes) in words.iter_mut().zip(codes) {
                *words = simd.load_i32(&codes[vector]);
            }
            for place in 0..4 {
                let column = (half * Self::LEN + vector) * 4 + place;
                let mut weights = [simd.splat(0.0); P];
                for (weights, words) in weights.iter_mut().zip(&mut words) {
                    *weights = simd.to_f32(simd.add_i32(simd.and(*words, byte), zero));
                    *words = simd.shr::<8>(*words);
                }
                for row in 0..N {
                    let x = simd.splat(f32::from_bits(x[column * N + row]));
                    for panel in 0..P {
                        dots[panel][row] = simd.fma(weights[panel], x, dots[panel][row]);
                    }
                }
            }
        }
        for panel in 0..P {
            let scale = simd.load(&self.panels[panel].scales[group]);
            for row in 0..N {
                let mut sum = simd.fma(dots[panel][row], scale, simd.load(&sums[panel][row]));
                if MIN {
                    let min = simd.load(&self.panels[panel].mins[group]);
                    let sums_at = if HALVES { f32_words::HALF_SUMS + half } else { f32_words::SUM };
                    sum = simd.fma(min, simd.splat(f32::from_bits(x[sums_at * N + row])), sum);
                }
                simd.store(sum, &mut sums[panel][row]);
            }
        }
    }
}
