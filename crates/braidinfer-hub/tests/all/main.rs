//! Tests against a server that behaves like the Hub, in one program, which takes less time to build than one for each file.

mod hub;
mod python;

#[path = "../support/mod.rs"]
mod support;
