//! Hashing fields of different lengths.

use braidinfer_model::Adapter;
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

/// Stands for all that an adapter computes.
pub(crate) fn of_adapter(adapter: &Adapter) -> [u8; 32] {
    let mut hash = Sha256::new();
    for (slot, module) in adapter.modules() {
        field(&mut hash, format!("{slot:?} {} {}", module.rank, module.scale.to_bits()).as_bytes());
        for values in [&module.a, &module.b] {
            hash.update((values.len() as u64).to_le_bytes());
            values.iter().for_each(|value| hash.update(value.to_le_bytes()));
        }
    }
    hash.finalize().into()
}
