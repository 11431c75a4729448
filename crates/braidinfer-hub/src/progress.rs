//! What happens while a model is fetched, for whoever shows it.

/// Told what [`Hub::fetch`](crate::Hub::fetch) does. Files come one after the other, so a call is about the file that
/// was last started. `()` ignores everything.
pub trait Progress {
    /// A file is next: `size` bytes in all, `present` of them on disk already.
    fn started(&mut self, file: &str, size: u64, present: u64) {
        let _ = (file, size, present);
    }

    /// So many bytes of the file are on disk now. The number falls if a download has to begin again.
    fn advanced(&mut self, present: u64) {
        let _ = present;
    }

    /// The file is in the cache, whole and checked.
    fn finished(&mut self, file: &str) {
        let _ = file;
    }

    /// Something that the user should know: a retry, a wait, a decision.
    fn note(&mut self, text: &str) {
        let _ = text;
    }
}

impl Progress for () {}
