//! The body of a request: the first byte says of which kind, as the server reads it before anything is computed.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, body)) = bytes.split_first() else { return };
    // A refusal has a message.
    if let Err(message) = braidinfer_server::parse_request(*kind, body) {
        assert!(!message.is_empty());
    }
});
