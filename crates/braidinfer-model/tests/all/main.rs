//! Tests of descriptions and files of models, in one program, which takes less time to build than one for each file.
//! `hostile_files`, which looks at the memory of its whole process, is a program of its own beside this folder.

mod configs;
mod imatrix;
mod mamba2;
mod models_page;
mod packed;
mod quantization;
mod weighted_quantization;

#[path = "../support/mutations.rs"]
mod mutations;
