//! Progress of a download.

/// Receives the progress of [`Hub::fetch`](crate::Hub::fetch). Files are downloaded one after the other, so each call
/// is about the file that was started last. `()` ignores everything.
pub trait Progress {
    /// A download starts: `size` bytes in total, `present` of them already on disk.
    fn started(&mut self, file: &str, size: u64, present: u64) {
        let _ = (file, size, present);
    }

    /// `present` bytes of the file are on disk now. The number decreases if a download has to start again.
    fn advanced(&mut self, present: u64) {
        let _ = present;
    }

    /// The file is in the cache, complete and verified.
    fn finished(&mut self, file: &str) {
        let _ = file;
    }

    /// A message for the user: a retry, a wait, a decision.
    fn note(&mut self, text: &str) {
        let _ = text;
    }
}

impl Progress for () {}
