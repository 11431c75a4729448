//! Large zeroed buffers: weights, caches and activations.

#![allow(unsafe_code, reason = "the home of `unsafe`: memory from the operating system")]

use std::alloc::Layout;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// The size of a huge page, and the alignment of buffers of at least this length.
const HUGE: usize = 2 << 20;

/// The alignment of shorter buffers: a cache line, which is also the widest vector.
const LINE: usize = 64;

/// A zeroed buffer of a fixed length.
///
/// It begins at a multiple of 2 MiB if it is at least that long, and at a multiple of 64 otherwise. On Linux, untouched
/// parts of a long buffer take no memory, and touched parts are backed by huge pages if the system has them.
pub struct Pages {
    start: NonNull<u8>,
    len: usize,
    reserved: Reserved,
}

/// What to free when the buffer is dropped.
enum Reserved {
    #[cfg(all(target_os = "linux", not(miri)))]
    Mapping {
        base: NonNull<u8>,
        size: usize,
    },
    Heap(Layout),
}

// SAFETY: the memory has this one owner, like that of a `Vec<u8>`.
unsafe impl Send for Pages {}

// SAFETY: a shared reference gives only shared access to the bytes.
unsafe impl Sync for Pages {}

impl Pages {
    /// A buffer of `len` zeros.
    ///
    /// # Errors
    ///
    /// The system is out of memory.
    pub fn zeroed(len: usize) -> io::Result<Self> {
        let align = if len >= HUGE { HUGE } else { LINE };
        // Zero-sized allocations are not allowed, so an empty buffer takes one line.
        let layout = Layout::from_size_align(len.max(LINE), align).map_err(|_| out_of_memory())?;
        #[cfg(all(target_os = "linux", not(miri)))]
        if len >= HUGE {
            return Self::mapped(layout);
        }
        Self::on_heap(layout, len)
    }

    fn on_heap(layout: Layout, len: usize) -> io::Result<Self> {
        // SAFETY: the size of the layout is not zero.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        let start = NonNull::new(start).ok_or_else(out_of_memory)?;
        Ok(Self { start, len, reserved: Reserved::Heap(layout) })
    }

    /// A mapping that is longer by up to two huge pages, so that even the last bytes can be in a huge page.
    #[cfg(all(target_os = "linux", not(miri)))]
    fn mapped(layout: Layout) -> io::Result<Self> {
        let len = layout.size();
        let whole = len.checked_next_multiple_of(HUGE).ok_or_else(out_of_memory)?;
        let size = whole.checked_add(HUGE).ok_or_else(out_of_memory)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new private mapping at an address that the system chooses touches no existing memory.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), size, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(out_of_memory)?;
        let offset = base.align_offset(HUGE);
        debug_assert!(offset <= size - whole);
        // SAFETY: the offset is less than one huge page, and the mapping is longer than that.
        let start = unsafe { base.add(offset) };
        // SAFETY: the range lies in the mapping, and the advice changes no contents. If it is refused, the buffer has
        // small pages, which is harmless.
        unsafe { libc::madvise(start.as_ptr().cast(), whole, libc::MADV_HUGEPAGE) };
        Ok(Self { start, len, reserved: Reserved::Mapping { base, size } })
    }

    /// The bytes from `start` to the end of what is reserved, of which the buffer takes the first `len`.
    fn room(&self) -> usize {
        match self.reserved {
            #[cfg(all(target_os = "linux", not(miri)))]
            Reserved::Mapping { base, size } => base.addr().get() + size - self.start.addr().get(),
            Reserved::Heap(layout) => layout.size(),
        }
    }
}

/// Gives memory that was freed back to the system, as far as the allocator kept it for later.
pub fn return_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu", not(miri)))]
    // SAFETY: it frees only memory that nothing owns, and other threads may allocate meanwhile.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn out_of_memory() -> io::Error {
    io::ErrorKind::OutOfMemory.into()
}

impl Drop for Pages {
    fn drop(&mut self) {
        match self.reserved {
            #[cfg(all(target_os = "linux", not(miri)))]
            // SAFETY: this is the whole mapping that `mapped` made, and nobody borrows from it any more.
            Reserved::Mapping { base, size } => unsafe {
                libc::munmap(base.as_ptr().cast(), size);
            },
            // SAFETY: `on_heap` allocated it with this layout, and nobody borrows from it any more.
            Reserved::Heap(layout) => unsafe { std::alloc::dealloc(self.start.as_ptr(), layout) },
        }
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        debug_assert!(self.len <= self.room());
        // SAFETY: `len` initialised bytes begin at `start`, owned by `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        debug_assert!(self.len <= self.room());
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pages").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zeroed_aligned_and_writable_to_the_last_byte() {
        let lengths = [0, 1, 63, 64, 65, 4096, HUGE - 1, HUGE, HUGE + 1, 3 * HUGE - 1, 5 * HUGE];
        // Miri interprets every access.
        for len in lengths.into_iter().take(if cfg!(miri) { 6 } else { lengths.len() }) {
            let mut pages = Pages::zeroed(len).unwrap();
            assert_eq!(pages.len(), len);
            assert_eq!(pages.as_ptr() as usize % if len >= HUGE { HUGE } else { LINE }, 0, "{len} bytes");
            assert!(pages.iter().all(|&byte| byte == 0), "{len} bytes");
            pages.fill(0xA5);
            assert!(pages.iter().all(|&byte| byte == 0xA5), "{len} bytes");
        }
    }

    #[test]
    fn a_buffer_that_does_not_fit_is_an_error() {
        for len in [usize::MAX, isize::MAX as usize, isize::MAX as usize - 4 * HUGE] {
            let error = Pages::zeroed(len).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::OutOfMemory, "{len} bytes: {error}");
        }
    }

    #[cfg(all(target_os = "linux", not(miri)))]
    #[test]
    fn untouched_parts_take_no_memory() {
        let mut pages = Pages::zeroed(64 * HUGE).unwrap();
        pages[33 * HUGE] = 1;
        let mut resident = vec![0u8; pages.len() / 4096];
        // SAFETY: the range is mapped, and the vector has a byte for each of its pages of 4096 bytes or more.
        let outcome = unsafe { libc::mincore(pages.as_mut_ptr().cast(), pages.len(), resident.as_mut_ptr()) };
        assert_eq!(outcome, 0);
        let touched = resident.iter().filter(|&&page| page & 1 == 1).count();
        assert!((1..=HUGE / 4096).contains(&touched), "{touched} small pages");
    }

    #[test]
    fn buffers_cross_threads() {
        let half = if cfg!(miri) { 100 } else { HUGE };
        let mut pages = Pages::zeroed(2 * half).unwrap();
        std::thread::scope(|scope| {
            let (front, back) = pages.split_at_mut(half);
            scope.spawn(|| front.fill(1));
            scope.spawn(|| back.fill(2));
        });
        let pages = std::thread::spawn(move || pages).join().unwrap();
        assert_eq!((pages[0], pages[half]), (1, 2));
    }
}
