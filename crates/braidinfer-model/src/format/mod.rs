//! Container formats of checkpoints.

mod assembled;
mod checkpoint;
pub mod gguf;
pub mod imatrix;
pub(crate) mod quantized;
pub mod safetensors;
mod split_heads;

pub use checkpoint::{Checkpoint, FileMark};
