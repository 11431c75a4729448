//! Tests of descriptions and files of models, in one program, which takes less time to build than one for each file.
//! `hostile_files` and `imatrix`, which look at the memory of their whole process, are programs of their own beside this folder.

mod configs;
mod mamba2;
mod models_page;
mod packed;
mod quantization;
mod weighted_quantization;
