//! Tests of the library through what it makes public, in one program, which takes less time to build than one for each file.
//! Tests that look at the memory of their whole process are programs of their own, beside this folder.

mod adapters;
mod architectures;
mod changed_files;
mod compat;
mod faults;
mod fused;
mod generation;
mod gguf;
mod gpu;
mod handle;
mod hybrid;
mod imatrix;
mod mixed;
mod packed_weights;
mod quantize;
mod recurrent;
mod serving;
mod text;
mod tidy;
mod tour;

#[path = "../support/forced.rs"]
mod forced;
#[path = "../support/mod.rs"]
mod support;
