//! Storage of keys and values of past positions.

use std::io;

use super::block::attend_span;
use super::kv_types::{BLOCK_DIMS, Q4_0, Q8_0, Stored};
use super::{Attention, Partial};
use crate::buffer::{Zeroed, zeros};
use crate::isa::{Isa, dispatched};
use crate::simd::LANES;

/// Tiles per slab.
pub const SLAB_TILES: usize = 64;

/// The data type of stored keys and values: `f32`, `u16` for the bits of f16, [`Q8_0`] or [`Q4_0`].
#[expect(private_bounds, reason = "how elements are loaded is this crate's own")]
pub trait KvElement: Stored {
    /// Whether dimensions share scales, so that heads should be stored transformed by [`super::hadamard`].
    const QUANTIZED: bool = Self::SCALED;

    /// [`super::attend`], compiled for this element.
    fn attend(isa: Isa, task: &Attention<'_, Self>, scratch: &mut [f32], out: &mut Partial<'_>);

    /// Bytes of the key and the value of one position in a head `head_dim` wide.
    fn position_bytes(head_dim: usize) -> usize {
        let codes = Self::codes(head_dim) + Self::codes(head_dim.next_multiple_of(LANES));
        codes * size_of::<Self::Code>() + 2 * Self::scales(head_dim) * size_of::<u16>()
    }
}

/// Implements [`KvElement`] by a function compiled for every instruction set.
macro_rules! elements {
    ($($name:ident: $type:ty;)*) => {
        $(
            impl KvElement for $type {
                fn attend(isa: Isa, task: &Attention<'_, Self>, scratch: &mut [f32], out: &mut Partial<'_>) {
                    $name(isa, task, scratch, out);
                }
            }

            dispatched! {
                fn $name(task: &Attention<'_, $type>, scratch: &mut [f32], out: &mut Partial<'_>) = attend_span;
            }
        )*
    };
}

elements! {
    attend_f32: f32;
    attend_f16: u16;
    attend_q8_0: Q8_0;
    attend_q4_0: Q4_0;
}

/// Keys and values of one head for [`SLAB_TILES`] tiles, each of sixteen positions.
#[derive(Debug)]
#[expect(private_bounds, reason = "how elements are loaded is this crate's own")]
pub struct KvSlab<T: Stored> {
    head_dim: usize,
    /// `[SLAB_TILES][codes of a key][16 positions]`.
    keys: Vec<T::Code>,
    /// `[SLAB_TILES][16 positions][codes of a value]`, where the head is padded to a multiple of 16.
    values: Vec<T::Code>,
    /// `[SLAB_TILES][blocks][16 positions]`, in f16.
    key_scales: Vec<u16>,
    value_scales: Vec<u16>,
}

/// The keys or the values of one tile.
#[derive(Debug)]
pub(super) struct Tile<'a, T: Stored> {
    /// Keys: `[codes of a key][16 positions]`; values: `[16 positions][codes of a value]`.
    pub(super) codes: &'a [T::Code],
    /// `[blocks][16 positions]`, in f16.
    pub(super) scales: &'a [u16],
}

impl<T: Stored> Clone for Tile<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Stored> Copy for Tile<'_, T> {}

impl<T: KvElement> KvSlab<T> {
    /// A slab of zeros, whose memory the system commits when it is first written.
    ///
    /// # Errors
    ///
    /// The system is out of memory.
    pub fn new(head_dim: usize) -> io::Result<Self> {
        let positions = SLAB_TILES * LANES;
        let scales = || zeros(positions * T::scales(head_dim));
        let values = zeros(positions * T::codes(head_dim.next_multiple_of(LANES)))?;
        let keys = zeros(positions * T::codes(head_dim))?;
        Ok(Self { head_dim, keys, values, key_scales: scales()?, value_scales: scales()? })
    }

    /// Writes the key and the value, each `[head_dim]`, of the position in `lane` of `tile`.
    pub fn write(&mut self, tile: usize, lane: usize, key: &[f32], value: &[f32]) {
        let head_dim = self.head_dim;
        assert!(tile < SLAB_TILES && lane < LANES, "no lane {lane} of tile {tile}");
        assert_eq!((key.len(), value.len()), (head_dim, head_dim));
        let (keys, _) = self.keys[tile * T::codes(head_dim) * LANES..].as_chunks_mut::<LANES>();
        let start = (tile * LANES + lane) * T::codes(head_dim.next_multiple_of(LANES));
        let values = &mut self.values[start..];
        let scales = tile * T::scales(head_dim) * LANES + lane;
        let mut codes = [T::Code::default(); BLOCK_DIMS];
        let per_block = T::codes(BLOCK_DIMS);
        for (block, (key, value)) in key.chunks(BLOCK_DIMS).zip(value.chunks(BLOCK_DIMS)).enumerate() {
            let (first, count) = (block * per_block, T::codes(key.len()));
            let scale = T::encode(key, &mut codes);
            for (to, code) in keys[first..].iter_mut().zip(&codes[..count]) {
                to[lane] = *code;
            }
            if T::SCALED {
                self.key_scales[scales + block * LANES] = scale;
            }
            let scale = T::encode(value, &mut codes);
            values[first..][..count].copy_from_slice(&codes[..count]);
            if T::SCALED {
                self.value_scales[scales + block * LANES] = scale;
            }
        }
    }

    /// Bytes of a tile of heads that are `head_dim` wide, as [`KvSlab::save_tile`] writes them.
    pub fn tile_bytes(head_dim: usize) -> usize {
        LANES * T::position_bytes(head_dim)
    }

    /// Appends the codes of keys and values of a tile and their scales, as they are stored, each with its lowest byte first.
    pub fn save_tile(&self, tile: usize, out: &mut Vec<u8>) {
        part(&self.keys, tile).iter().for_each(|code| code.save(out));
        part(&self.values, tile).iter().for_each(|code| code.save(out));
        part(&self.key_scales, tile).iter().for_each(|scale| scale.save(out));
        part(&self.value_scales, tile).iter().for_each(|scale| scale.save(out));
    }

    /// Sets a tile to what [`KvSlab::save_tile`] wrote of one that is as wide.
    ///
    /// # Panics
    ///
    /// If there are not [`KvSlab::tile_bytes`] bytes, or no such tile.
    pub fn restore_tile(&mut self, tile: usize, bytes: &[u8]) {
        assert_eq!(bytes.len(), Self::tile_bytes(self.head_dim), "bytes of a tile");
        let bytes = restore(part_mut(&mut self.keys, tile), bytes);
        let bytes = restore(part_mut(&mut self.values, tile), bytes);
        let bytes = restore(part_mut(&mut self.key_scales, tile), bytes);
        restore(part_mut(&mut self.value_scales, tile), bytes);
    }

    fn keys(&self, tile: usize) -> Tile<'_, T> {
        Tile { codes: part(&self.keys, tile), scales: part(&self.key_scales, tile) }
    }

    fn values(&self, tile: usize) -> Tile<'_, T> {
        Tile { codes: part(&self.values, tile), scales: part(&self.value_scales, tile) }
    }
}

fn part<T>(tiles: &[T], tile: usize) -> &[T] {
    let len = tiles.len() / SLAB_TILES;
    &tiles[tile * len..][..len]
}

fn part_mut<T>(tiles: &mut [T], tile: usize) -> &mut [T] {
    let len = tiles.len() / SLAB_TILES;
    &mut tiles[tile * len..][..len]
}

/// Sets values to those with the first of these bytes, and returns the others.
fn restore<'a, T: Zeroed>(values: &mut [T], bytes: &'a [u8]) -> &'a [u8] {
    let (own, others) = bytes.split_at(size_of_val(values));
    for (value, bytes) in values.iter_mut().zip(own.chunks_exact(size_of::<T>())) {
        *value = T::restored(bytes);
    }
    others
}

/// The cached keys and values of one sequence for one key/value head.
#[derive(Debug)]
#[expect(private_bounds, reason = "how elements are loaded is this crate's own")]
pub struct PagedHead<'a, T: Stored> {
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

impl<T: Stored> Clone for PagedHead<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Stored> Copy for PagedHead<'_, T> {}

impl<'a, T: KvElement> PagedHead<'a, T> {
    /// Keys of the `i`-th tile of the sequence.
    pub(super) fn keys(&self, i: usize) -> Tile<'a, T> {
        let (slab, tile) = self.find(i);
        slab.keys(tile)
    }

    /// Values of the `i`-th tile of the sequence.
    pub(super) fn values(&self, i: usize) -> Tile<'a, T> {
        let (slab, tile) = self.find(i);
        slab.values(tile)
    }

    fn find(&self, i: usize) -> (&'a KvSlab<T>, usize) {
        let tile = self.tiles[i] as usize;
        (&self.slabs[tile / SLAB_TILES * self.heads + self.head], tile % SLAB_TILES)
    }
}
