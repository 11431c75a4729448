//! Storage of keys and values of past positions.

use std::io;

use half::f16;

use super::block::attend_span;
use super::{Attention, Partial};
use crate::buffer::{Zeroed, zeros};
use crate::isa::{Isa, dispatched};
use crate::simd::{LANES, Simd};

/// Tiles per slab.
pub const SLAB_TILES: usize = 64;

/// The data type of stored keys and values: `f32`, or `u16` for the bits of f16.
#[expect(private_bounds, reason = "how elements are loaded is this crate's own")]
pub trait KvElement: Lanes {
    /// [`super::attend`], compiled for this element.
    fn attend(isa: Isa, task: &Attention<'_, Self>, scratch: &mut [f32], out: &mut Partial<'_>);
}

impl KvElement for f32 {
    fn attend(isa: Isa, task: &Attention<'_, Self>, scratch: &mut [f32], out: &mut Partial<'_>) {
        attend_f32(isa, task, scratch, out);
    }
}

impl KvElement for u16 {
    fn attend(isa: Isa, task: &Attention<'_, Self>, scratch: &mut [f32], out: &mut Partial<'_>) {
        attend_f16(isa, task, scratch, out);
    }
}

dispatched! {
    fn attend_f32(task: &Attention<'_, f32>, scratch: &mut [f32], out: &mut Partial<'_>) = attend_span;
}
dispatched! {
    fn attend_f16(task: &Attention<'_, u16>, scratch: &mut [f32], out: &mut Partial<'_>) = attend_span;
}

/// Conversion to and from f32.
pub(crate) trait Lanes: Zeroed + Send + Sync + 'static {
    /// Whether loading needs a conversion.
    const NARROW: bool;

    /// Rounds to nearest even; infinite beyond the range.
    fn from_f32(value: f32) -> Self;
    /// Loads sixteen elements as f32.
    fn load<S: Simd>(simd: S, values: &[Self; LANES]) -> S::F32;
}

impl Lanes for f32 {
    const NARROW: bool = false;

    fn from_f32(value: f32) -> Self {
        value
    }
    #[inline(always)]
    fn load<S: Simd>(simd: S, values: &[Self; LANES]) -> S::F32 {
        simd.load(values)
    }
}

impl Lanes for u16 {
    const NARROW: bool = true;

    fn from_f32(value: f32) -> Self {
        f16::from_f32(value).to_bits()
    }
    #[inline(always)]
    fn load<S: Simd>(simd: S, values: &[Self; LANES]) -> S::F32 {
        simd.load_f16(values)
    }
}

/// Keys and values of one head for [`SLAB_TILES`] tiles, each of sixteen positions.
#[derive(Debug)]
pub struct KvSlab<T> {
    head_dim: usize,
    /// `[SLAB_TILES][head_dim][16 positions]`.
    keys: Vec<T>,
    /// `[SLAB_TILES][16 positions][padded_dim]`, where the head is padded to a multiple of 16.
    values: Vec<T>,
}

impl<T: KvElement> KvSlab<T> {
    /// A slab of zeros, whose memory the system commits when it is first written.
    ///
    /// # Errors
    ///
    /// The system is out of memory.
    pub fn new(head_dim: usize) -> io::Result<Self> {
        let positions = SLAB_TILES * LANES;
        let values = zeros(positions * head_dim.next_multiple_of(LANES))?;
        Ok(Self { head_dim, keys: zeros(positions * head_dim)?, values })
    }

    /// Writes the key and the value, each `[head_dim]`, of the position in `lane` of `tile`.
    pub fn write(&mut self, tile: usize, lane: usize, key: &[f32], value: &[f32]) {
        let head_dim = self.head_dim;
        assert!(tile < SLAB_TILES && lane < LANES, "no lane {lane} of tile {tile}");
        assert_eq!((key.len(), value.len()), (head_dim, head_dim));
        let (keys, _) = self.keys[tile * head_dim * LANES..].as_chunks_mut::<LANES>();
        for (to, from) in keys.iter_mut().zip(key) {
            to[lane] = T::from_f32(*from);
        }
        let start = (tile * LANES + lane) * head_dim.next_multiple_of(LANES);
        for (to, from) in self.values[start..].iter_mut().zip(value) {
            *to = T::from_f32(*from);
        }
    }

    /// `[head_dim][16 positions]`.
    fn keys(&self, tile: usize) -> &[T] {
        part(&self.keys, tile)
    }

    /// `[16 positions][padded_dim]`.
    fn values(&self, tile: usize) -> &[T] {
        part(&self.values, tile)
    }
}

fn part<T>(tiles: &[T], tile: usize) -> &[T] {
    let len = tiles.len() / SLAB_TILES;
    &tiles[tile * len..][..len]
}

/// The cached keys and values of one sequence for one key/value head.
#[derive(Debug)]
pub struct PagedHead<'a, T> {
    /// `[slabs][heads]`.
    pub slabs: &'a [KvSlab<T>],
    /// Number of key/value heads.
    pub heads: usize,
    /// Index of this head.
    pub head: usize,
    /// Position `p` of the sequence is in lane `p % 16` of tile `tiles[p / 16]`, and tile `t` is in slab
    /// `t / SLAB_TILES`.
    pub tiles: &'a [u32],
}

impl<T> Clone for PagedHead<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for PagedHead<'_, T> {}

impl<'a, T: KvElement> PagedHead<'a, T> {
    /// Keys `[head_dim][16 positions]` of the `i`-th tile of the sequence.
    pub fn keys(&self, i: usize) -> &'a [T] {
        let (slab, tile) = self.find(i);
        slab.keys(tile)
    }

    /// Values `[16 positions][padded_dim]` of the `i`-th tile of the sequence.
    pub fn values(&self, i: usize) -> &'a [T] {
        let (slab, tile) = self.find(i);
        slab.values(tile)
    }

    fn find(&self, i: usize) -> (&'a KvSlab<T>, usize) {
        let tile = self.tiles[i] as usize;
        (&self.slabs[tile / SLAB_TILES * self.heads + self.head], tile % SLAB_TILES)
    }
}
