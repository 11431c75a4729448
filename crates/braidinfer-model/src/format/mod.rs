//! Container formats of checkpoints.

pub mod safetensors;
