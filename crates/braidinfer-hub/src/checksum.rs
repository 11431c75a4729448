//! Checksums of files, given by the Hub's entity tags.

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

/// How the bytes of a file are checked. The Hub's entity tag is the SHA-256 of a file in LFS or Xet, and the git hash
/// of any other file; other servers may send a tag that is neither.
#[derive(Clone)]
pub(crate) enum Checksum {
    Sha256(Context),
    GitBlob(Context),
    Unknown,
}

impl Checksum {
    /// The checksum for a file of `size` bytes with this entity tag.
    pub fn new(etag: &str, size: u64) -> Self {
        let hex = etag.bytes().all(|b| b.is_ascii_hexdigit());
        match etag.len() {
            64 if hex => Self::Sha256(Context::new(&SHA256)),
            40 if hex => {
                let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                context.update(format!("blob {size}\0").as_bytes());
                Self::GitBlob(context)
            }
            _ => Self::Unknown,
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(context) | Self::GitBlob(context) => context.update(bytes),
            Self::Unknown => {}
        }
    }

    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "sha256",
            Self::GitBlob(_) => "git hash",
            Self::Unknown => "checksum",
        }
    }

    /// The checksum of all bytes so far, in hexadecimal; `None` if the entity tag is no checksum.
    pub fn finish(self) -> Option<String> {
        match self {
            Self::Sha256(context) | Self::GitBlob(context) => Some(hexadecimal(context.finish().as_ref())),
            Self::Unknown => None,
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finish(etag: &str, content: &[u8]) -> Option<String> {
        let mut checksum = Checksum::new(etag, content.len() as u64);
        checksum.update(content);
        checksum.finish()
    }

    #[test]
    fn values_of_git_and_sha256sum() {
        // `echo hello | git hash-object --stdin` and `echo hello | sha256sum`
        assert_eq!(finish(&"0".repeat(40), b"hello\n").as_deref(), Some("ce013625030ba8dba906f756967f9e9ca394464a"));
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert_eq!(finish(&"0".repeat(64), b"hello\n").as_deref(), Some(sha256));
        assert_eq!(finish("some-version-3", b"hello\n"), None);
        assert_eq!(finish(&"x".repeat(64), b"hello\n"), None);
    }
}
