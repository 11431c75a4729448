//! A file of this program's own that is mapped into memory: bytes that the system reads when they are touched, and that it
//! may give up again without writing them anywhere.

#![allow(unsafe_code, reason = "a map may be read only as long as nobody changes the file")]

use std::fs::{File, TryLockError};
use std::io;
use std::ops::{Deref, Range};

use memmap2::{Mmap, MmapOptions};

/// Part of a file, mapped for reading. The file stays open and locked for as long as the map lives.
///
/// A mapped file that somebody cuts short kills the process that touches what is gone (SIGBUS), and bytes that somebody changes
/// meanwhile change here. So only files are mapped that nobody may write to: neither mode bits nor locks of the system stop the
/// superuser, or the owner who first changes the mode, which is why no file of anybody else, such as a model's, may be mapped.
pub struct MappedFile {
    map: Mmap,
    /// Holds the lock.
    file: File,
}

impl MappedFile {
    /// Maps the bytes of `range` of a file, which the caller made and nobody else has reason to change.
    ///
    /// # Errors
    ///
    /// The file is not a plain one, someone has the right to write to it, a writer has locked it, it ends before `range` does, or
    /// the system refuses.
    pub fn new(file: File, range: Range<u64>) -> io::Result<Self> {
        match file.try_lock_shared() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::ResourceBusy.into()),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let metadata = file.metadata()?;
        if !metadata.is_file() || !metadata.permissions().readonly() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "expected a plain file that nobody may write to"));
        }
        if range.start > range.end || range.end > metadata.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let len = usize::try_from(range.end - range.start).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // SAFETY: the bytes may be read as long as they are in the file and do not change. The range is in the file now. The file
        // may be written to by nobody (checked above), writers of this program wait for the lock, which is held until the map is
        // gone, and by this type's contract nobody else has reason to give himself the right.
        let map = unsafe { MmapOptions::new().offset(range.start).len(len).map(&file)? };
        Ok(Self { map, file })
    }

    /// Asks the system to read a part of the bytes ahead of their use, without waiting for it.
    ///
    /// # Panics
    ///
    /// If the range is out of bounds.
    pub fn read_ahead(&self, part: Range<usize>) {
        assert!(part.start <= part.end && part.end <= self.map.len(), "{part:?} of {} bytes", self.map.len());
        #[cfg(unix)]
        // Advice; where it is not taken, bytes are read when they are touched.
        let _ = self.map.advise_range(memmap2::Advice::WillNeed, part.start, part.len());
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl std::fmt::Debug for MappedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MappedFile").field("len", &self.map.len()).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::path::{Path, PathBuf};

    use super::*;

    /// A file that is removed with the value.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str, bytes: &[u8], readonly: bool) -> Self {
            let path = std::env::temp_dir().join(format!("braidinfer-mapped-{}-{name}", std::process::id()));
            let mut file = File::create(&path).unwrap();
            file.write_all(bytes).unwrap();
            let mut permissions = file.metadata().unwrap().permissions();
            permissions.set_readonly(readonly);
            file.set_permissions(permissions).unwrap();
            Self(path)
        }

        fn open(&self) -> File {
            File::open(&self.0).unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            fs::remove_file(&self.0).unwrap();
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_part() {
        let bytes: Vec<u8> = (0..300_000u32).map(|i| (i.wrapping_mul(i) >> 5) as u8).collect();
        let scratch = Scratch::new("part", &bytes, true);
        for range in [0..bytes.len(), 4096..70_000, 5..6, 65_536..65_536 + 4097, 299_999..300_000] {
            let map = MappedFile::new(scratch.open(), range.start as u64..range.end as u64).unwrap();
            map.read_ahead(0..map.len());
            map.read_ahead(map.len() / 2..map.len());
            assert_eq!(*map, bytes[range]);
        }
    }

    #[test]
    fn what_could_change_is_not_mapped() {
        let written = Scratch::new("writable", &[1; 100], false);
        assert_eq!(MappedFile::new(written.open(), 0..100).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let folder = File::open(Path::new("."));
        if let Ok(folder) = folder {
            MappedFile::new(folder, 0..1).unwrap_err();
        }
        let short = Scratch::new("short", &[1; 100], true);
        assert_eq!(MappedFile::new(short.open(), 0..101).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(MappedFile::new(short.open(), 0..u64::MAX).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn writers_and_maps_exclude_each_other() {
        let scratch = Scratch::new("locked", &[1; 100], true);
        let writer = scratch.open();
        writer.try_lock().unwrap();
        assert_eq!(MappedFile::new(scratch.open(), 0..100).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(writer);
        let maps = [0, 1].map(|_| MappedFile::new(scratch.open(), 0..100).unwrap());
        assert!(matches!(scratch.open().try_lock(), Err(TryLockError::WouldBlock)));
        drop(maps);
        scratch.open().try_lock().unwrap();
    }
}
