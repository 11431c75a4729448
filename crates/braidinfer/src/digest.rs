//! Hashing fields of different lengths.

use sha2::{Digest, Sha256};

/// Hashes `bytes` with their length, so that the boundaries of fields are unambiguous.
pub(crate) fn field(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

/// In hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
