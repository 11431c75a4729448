//! Tests that run the program, in one program, which takes less time to build than one for each file.

mod adapters;
mod bad_input;
mod bench;
mod chat;
mod check;
mod commands;
mod compare;
mod containment;
mod diff;
mod faults;
mod hub;
mod imatrix;
mod memory;
mod names;
mod packed_cache;
mod perplexity;
mod serve;
mod terminal;
mod validate;

#[path = "../../../braidinfer-hub/tests/support/mod.rs"]
mod fake_hub;
#[path = "../support/mod.rs"]
mod support;
