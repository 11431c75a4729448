//! An importance matrix in either format.

#![no_main]

use braidinfer_model::format::imatrix::ImportanceMatrix;
use libfuzzer_sys::fuzz_target;

const LABEL: &str = "fuzzed.imatrix";

fuzz_target!(|bytes: &[u8]| {
    match ImportanceMatrix::from_bytes(LABEL, bytes.into()) {
        Ok(matrix) => matrix.names().for_each(|name| drop(matrix.of(name, 3, 4))),
        Err(error) => assert!(error.to_string().starts_with(LABEL), "{error}"),
    }
});
