//! Container formats of checkpoints.

mod checkpoint;
pub mod gguf;
pub mod safetensors;

pub use checkpoint::Checkpoint;
