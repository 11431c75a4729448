//! Cache-line aligned buffers for activations.

#![allow(unsafe_code, reason = "the home of `unsafe`: lines of 16 values as one slice of values")]

use std::alloc::Layout;
use std::io;
use std::ops::{Deref, DerefMut};

use crate::simd::LANES;

/// Values that begin at a cache line. A vector that crosses a cache line costs two loads, and a sum kept there also
/// two stores.
#[derive(Debug, Clone, Default)]
pub struct Buffer<T = f32> {
    lines: Vec<Line<T>>,
    len: usize,
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line<T>([T; LANES]);

impl<T> Line<T> {
    /// What slices of values take as given.
    const fn check() {
        assert!(size_of::<Self>() == LANES * size_of::<T>(), "lines have no padding");
    }
}

impl<T> Buffer<T> {
    /// No values.
    pub const fn new() -> Self {
        Self { lines: Vec::new(), len: 0 }
    }
}

impl<T: Copy + Default> Buffer<T> {
    /// Sets the number of values. Existing values up to `len` stay; further values are defaults or earlier ones.
    pub fn resize(&mut self, len: usize) {
        let lines = len.div_ceil(LANES);
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([T::default(); LANES]));
        }
        self.len = len;
    }
}

impl<T> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        const { Line::<T>::check() };
        debug_assert!(self.len <= self.lines.len() * LANES);
        // SAFETY: lines are contiguous without padding and hold at least `len` values.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl<T> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        const { Line::<T>::check() };
        debug_assert!(self.len <= self.lines.len() * LANES);
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// Values whose zero has all bits zero.
pub(crate) trait Zeroed: Copy + Default + std::fmt::Debug {
    /// Appends its bytes, the lowest first.
    fn save(self, out: &mut Vec<u8>);
    /// The value with these bytes, of which there are as many as it has.
    fn restored(bytes: &[u8]) -> Self;
}

macro_rules! zeroed {
    ($($type:ty)*) => {
        $(
            impl Zeroed for $type {
                fn save(self, out: &mut Vec<u8>) {
                    out.extend_from_slice(&self.to_le_bytes());
                }
                fn restored(bytes: &[u8]) -> Self {
                    let mut own = [0; size_of::<Self>()];
                    own.copy_from_slice(bytes);
                    Self::from_le_bytes(own)
                }
            }
        )*
    };
}

zeroed! { f32 u16 u8 }

/// `len` zeros, whose memory the system commits when it is first written.
///
/// # Errors
///
/// The system is out of memory.
pub(crate) fn zeros<T: Zeroed>(len: usize) -> io::Result<Vec<T>> {
    let out_of_memory = || io::Error::from(io::ErrorKind::OutOfMemory);
    let layout = Layout::array::<T>(len).map_err(|_| out_of_memory())?;
    if layout.size() == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the size of the layout is not zero.
    let start = unsafe { std::alloc::alloc_zeroed(layout) }.cast::<T>();
    if start.is_null() {
        return Err(out_of_memory());
    }
    debug_assert!(start.is_aligned());
    // SAFETY: the global allocator gave memory for `len` values with the layout of an array, as a vector has it, and all of
    // them are initialised: their zero has all bits zero.
    Ok(unsafe { Vec::from_raw_parts(start, len, len) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_that_do_not_fit_are_an_error() {
        assert_eq!(zeros::<u16>(3).expect("there is memory"), [0; 3]);
        assert_eq!(zeros::<f32>(0).expect("nothing is needed"), [0.0; 0]);
        for len in [usize::MAX, usize::MAX / 8, isize::MAX as usize / 4] {
            assert_eq!(zeros::<f32>(len).expect_err("nobody has that much").kind(), io::ErrorKind::OutOfMemory);
        }
    }

    #[test]
    fn values_begin_at_a_cache_line_and_survive_resizing() {
        let mut buffer = Buffer::<f32>::new();
        assert!(buffer.is_empty());
        buffer.resize(17);
        buffer[16] = 1.0;
        buffer.resize(100);
        assert_eq!((buffer.len(), buffer[16], buffer[99]), (100, 1.0, 0.0));
        assert_eq!(buffer.as_ptr().addr() % 64, 0);
    }
}
