//! The bytes of tensors, read when they are asked for.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::Result;
use crate::file::FileBytes;

/// About how many bytes are read at a time.
pub(crate) const READ: usize = 1 << 18;

/// The bytes of a tensor: in memory, or in files, which are read when they are asked for.
#[derive(Debug, Clone)]
pub struct TensorData<'a>(Place<'a>);

#[derive(Debug, Clone)]
enum Place<'a> {
    Memory(&'a [u8]),
    File(&'a FileBytes, Range<usize>),
    Computed(Arc<dyn Computed + 'a>, Range<usize>),
}

/// Rows that are put together from other bytes when they are read, because a checkpoint stores them in another way.
pub(crate) trait Computed: fmt::Debug + Send + Sync {
    /// Number of rows.
    fn rows(&self) -> usize;
    /// Bytes of a row; not zero.
    fn row_bytes(&self) -> usize;
    /// The bytes of some rows, which exist.
    fn read_rows(&self, rows: Range<usize>) -> Result<Vec<u8>>;
}

/// Part of the bytes of all rows.
fn read_computed(computed: &dyn Computed, range: &Range<usize>) -> Result<Vec<u8>> {
    if range.is_empty() {
        return Ok(Vec::new());
    }
    let row_bytes = computed.row_bytes();
    let rows = range.start / row_bytes..range.end.div_ceil(row_bytes);
    let first = rows.start * row_bytes;
    let mut bytes = computed.read_rows(rows)?;
    bytes.truncate(range.end - first);
    bytes.drain(..range.start - first);
    Ok(bytes)
}

impl<'a> TensorData<'a> {
    /// The bytes of `range`, which must lie in the file.
    pub(crate) fn in_file(file: &'a FileBytes, range: Range<usize>) -> Self {
        Self(Place::File(file, range))
    }

    /// The bytes that `computed` puts together.
    pub(crate) fn computed(computed: impl Computed + 'a) -> Self {
        let range = 0..computed.rows() * computed.row_bytes();
        Self(Place::Computed(Arc::new(computed), range))
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        match &self.0 {
            Place::Memory(bytes) => bytes.len(),
            Place::File(_, range) | Place::Computed(_, range) => range.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A part of them, not read yet; `None` if it is out of bounds.
    pub fn part(&self, part: Range<usize>) -> Option<Self> {
        if part.start > part.end || part.end > self.len() {
            return None;
        }
        let within = |whole: &Range<usize>| whole.start + part.start..whole.start + part.end;
        Some(Self(match &self.0 {
            Place::Memory(bytes) => Place::Memory(&bytes[part]),
            Place::File(file, range) => Place::File(file, within(range)),
            Place::Computed(computed, range) => Place::Computed(Arc::clone(computed), within(range)),
        }))
    }

    /// The bytes. Fails, naming the file, if it was written to since it was opened.
    pub fn read(&self) -> Result<Cow<'a, [u8]>> {
        match &self.0 {
            Place::Memory(bytes) => Ok(Cow::Borrowed(bytes)),
            Place::File(file, range) => file.read(range.clone()),
            Place::Computed(computed, range) => read_computed(&**computed, range).map(Cow::Owned),
        }
    }

    /// Some of the bytes, like [`TensorData::read`].
    ///
    /// # Panics
    ///
    /// If the range is out of bounds.
    pub fn read_part(&self, part: Range<usize>) -> Result<Cow<'a, [u8]>> {
        let len = self.len();
        self.part(part.clone()).unwrap_or_else(|| panic!("{part:?} of {len} bytes")).read()
    }

    /// All bytes in memory that clones share.
    pub fn to_shared(&self) -> Result<Arc<[u8]>> {
        let Place::File(file, range) = &self.0 else { return Ok((*self.read()?).into()) };
        // Made in place: a copy of a large matrix would need its memory twice.
        let mut shared: Arc<[u8]> = std::iter::repeat_n(0, range.len()).collect();
        if let Some(bytes) = Arc::get_mut(&mut shared) {
            file.read_into(range.start, bytes)?;
        }
        Ok(shared)
    }

    /// Whether both are the same bytes.
    pub fn same(&self, other: &TensorData<'_>) -> Result<bool> {
        if self.len() != other.len() {
            return Ok(false);
        }
        for start in (0..self.len()).step_by(READ) {
            let part = start..self.len().min(start + READ);
            if self.read_part(part.clone())? != other.read_part(part)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl<'a> From<&'a [u8]> for TensorData<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self(Place::Memory(bytes))
    }
}
