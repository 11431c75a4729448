//! Splitting slices into disjoint parts for tasks, and per-thread values.

#![allow(unsafe_code, reason = "the home of `unsafe`: disjoint parts of one slice on several threads")]

use std::marker::PhantomData;

use super::Pool;

/// Something that can be split into disjoint parts by index, for [`Pool::for_each`]: [`Chunks`], [`Ranges`],
/// [`Items`], and tuples of two or three of them with equally many parts.
pub trait Parts: Sync + Split {}

impl<P: Sync + Split> Parts for P {}

use sealed::Split;

mod sealed {
    /// The part of the `Parts` interface that only this crate may call and implement.
    pub trait Split {
        /// What a task receives.
        type Part;

        /// The number of parts; always the same.
        fn count(&self) -> usize;

        /// The part with this index.
        ///
        /// # Safety
        ///
        /// `index` must be less than `count()`, and each index may be requested only once in the lifetime of the value.
        unsafe fn part(&self, index: usize) -> Self::Part;
    }
}

/// A mutable slice from which threads take disjoint parts.
struct SharedSlice<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: sharing the value lets other threads take disjoint `&mut T`, which is what `T: Send` allows.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    fn new(data: &'a mut [T]) -> Self {
        Self { start: data.as_mut_ptr(), len: data.len(), borrow: PhantomData }
    }

    /// The elements `begin..end`.
    ///
    /// # Safety
    ///
    /// `begin <= end <= len`, and no element may be borrowed again while its first borrow is in use.
    unsafe fn range(&self, begin: usize, end: usize) -> &'a mut [T] {
        debug_assert!(begin <= end && end <= self.len);
        // SAFETY: the range lies in the slice, which is borrowed for `'a`, and the caller hands out no element twice.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(begin), end - begin) }
    }
}

/// The chunks of a slice: all of the same length, except that the last one may be shorter.
pub struct Chunks<'a, T> {
    data: SharedSlice<'a, T>,
    chunk: usize,
}

impl<'a, T> Chunks<'a, T> {
    /// Chunk `i` begins at `i * chunk`.
    ///
    /// # Panics
    ///
    /// `chunk` is zero.
    pub fn new(data: &'a mut [T], chunk: usize) -> Self {
        assert!(chunk > 0, "a chunk has at least one element");
        Self { data: SharedSlice::new(data), chunk }
    }
}

impl<'a, T> Split for Chunks<'a, T> {
    type Part = &'a mut [T];

    fn count(&self) -> usize {
        self.data.len.div_ceil(self.chunk)
    }

    unsafe fn part(&self, index: usize) -> &'a mut [T] {
        debug_assert!(index < self.count());
        let begin = index * self.chunk;
        let end = begin + self.chunk.min(self.data.len - begin);
        // SAFETY: `index < count()`, so that `begin` is in the slice, and chunks of different indices are disjoint.
        unsafe { self.data.range(begin, end) }
    }
}

/// The ranges of a slice between given offsets.
pub struct Ranges<'a, T> {
    data: SharedSlice<'a, T>,
    starts: &'a [usize],
}

impl<'a, T> Ranges<'a, T> {
    /// Range `i` is `starts[i]..starts[i + 1]`; the last one extends to the end. Elements before the first start are in
    /// none.
    ///
    /// # Panics
    ///
    /// `starts` is not strictly increasing, or leaves the slice.
    pub fn new(data: &'a mut [T], starts: &'a [usize]) -> Self {
        assert_increasing("the starts of ranges", starts, data.len());
        Self { data: SharedSlice::new(data), starts }
    }
}

impl<'a, T> Split for Ranges<'a, T> {
    type Part = &'a mut [T];

    fn count(&self) -> usize {
        self.starts.len()
    }

    unsafe fn part(&self, index: usize) -> &'a mut [T] {
        debug_assert!(index < self.count());
        let end = self.starts.get(index + 1).copied().unwrap_or(self.data.len);
        // SAFETY: `new` checked that the starts increase and lie in the slice, so that the ranges are disjoint.
        unsafe { self.data.range(self.starts[index], end) }
    }
}

/// Selected elements of a slice.
pub struct Items<'a, T> {
    data: SharedSlice<'a, T>,
    indices: &'a [usize],
}

impl<'a, T> Items<'a, T> {
    /// Part `i` is the element `indices[i]`.
    ///
    /// # Panics
    ///
    /// `indices` is not strictly increasing, or leaves the slice.
    pub fn new(data: &'a mut [T], indices: &'a [usize]) -> Self {
        assert_increasing("the indices of items", indices, data.len());
        Self { data: SharedSlice::new(data), indices }
    }
}

impl<'a, T> Split for Items<'a, T> {
    type Part = &'a mut T;

    fn count(&self) -> usize {
        self.indices.len()
    }

    unsafe fn part(&self, index: usize) -> &'a mut T {
        debug_assert!(index < self.count());
        let at = self.indices[index];
        // SAFETY: `new` checked that the indices increase and lie in the slice, so that no element is in two parts.
        unsafe { &mut self.data.range(at, at + 1)[0] }
    }
}

fn assert_increasing(what: &str, offsets: &[usize], len: usize) {
    if let Some(pair) = offsets.windows(2).find(|pair| pair[0] >= pair[1]) {
        panic!("{what} must increase strictly, but {} comes after {}", pair[1], pair[0]);
    }
    if let Some(&last) = offsets.last() {
        assert!(last < len, "{what} must be less than the length {len}, but the last one is {last}");
    }
}

impl<A: Split, B: Split> Split for (A, B) {
    type Part = (A::Part, B::Part);

    fn count(&self) -> usize {
        equal_counts(self.0.count(), self.1.count())
    }

    unsafe fn part(&self, index: usize) -> Self::Part {
        debug_assert!(index < self.count());
        // SAFETY: both have the same count, and each is asked only for the indices that this is asked for.
        unsafe { (self.0.part(index), self.1.part(index)) }
    }
}

impl<A: Split, B: Split, C: Split> Split for (A, B, C) {
    type Part = (A::Part, B::Part, C::Part);

    fn count(&self) -> usize {
        equal_counts(equal_counts(self.0.count(), self.1.count()), self.2.count())
    }

    unsafe fn part(&self, index: usize) -> Self::Part {
        debug_assert!(index < self.count());
        // SAFETY: all have the same count, and each is asked only for the indices that this is asked for.
        unsafe { (self.0.part(index), self.1.part(index), self.2.part(index)) }
    }
}

fn equal_counts(first: usize, other: usize) -> usize {
    assert_eq!(first, other, "slices that are split together have equally many parts");
    first
}

/// A value for each thread of a pool, each on cache lines of its own.
pub struct PerThread<T> {
    slots: Box<[Slot<T>]>,
}

/// Aligned to two cache lines, because processors prefetch them in pairs.
#[repr(align(128))]
struct Slot<T>(T);

impl<T> PerThread<T> {
    /// A value from `init` for each of `threads` threads.
    pub fn new(threads: usize, mut init: impl FnMut() -> T) -> Self {
        Self { slots: (0..threads).map(|_| Slot(init())).collect() }
    }

    /// The values, by thread index.
    pub fn iter_mut(&mut self) -> impl ExactSizeIterator<Item = &mut T> {
        self.slots.iter_mut().map(|slot| &mut slot.0)
    }
}

impl Pool {
    /// Runs `task(index, part, thread)` once for every part, each on some thread.
    ///
    /// The assignment to threads differs from call to call; see [`Pool::run`] for panics.
    ///
    /// # Panics
    ///
    /// The slices of a tuple have different numbers of parts.
    pub fn for_each<P: Parts>(&mut self, parts: P, task: impl Fn(usize, P::Part, usize) + Sync) {
        self.run(parts.count(), &|index, thread| {
            // SAFETY: `run` passes every index below the count exactly once, and `parts` is not used again.
            let part = unsafe { parts.part(index) };
            task(index, part, thread);
        });
    }

    /// Like [`Pool::for_each`], but every task also receives the value of the thread that runs it.
    ///
    /// # Panics
    ///
    /// `per_thread` has fewer values than the pool has threads.
    pub fn for_each_with<T: Send, P: Parts>(
        &mut self,
        per_thread: &mut PerThread<T>,
        parts: P,
        task: impl Fn(usize, P::Part, &mut T) + Sync,
    ) {
        let (values, threads) = (per_thread.slots.len(), self.threads());
        assert!(values >= threads, "{values} values for {threads} threads");
        let slots = SharedSlice::new(&mut per_thread.slots);
        self.for_each(parts, |index, part, thread| {
            debug_assert!(thread < threads);
            // SAFETY: thread indices are less than `threads()`, and the pool runs one task at a time with each of them,
            // so that the borrow of the previous task has ended.
            let slot = unsafe { &mut slots.range(thread, thread + 1)[0] };
            task(index, part, &mut slot.0);
        });
    }
}
