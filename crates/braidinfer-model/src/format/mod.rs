//! Container formats of checkpoints.

mod checkpoint;
pub mod gguf;
pub(crate) mod quantized;
pub mod safetensors;

pub use checkpoint::Checkpoint;
