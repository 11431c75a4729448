//! Reading model files: configuration to [`DecoderSpec`], and checkpoint files to named, typed tensors. Also writing
//! GGUF.
//!
//! Every file is treated as untrusted input: sizes, offsets, names and shapes are checked before use, and every error
//! is a [`ModelError`] that names the file and the field or tensor. This crate does not depend on tensor libraries,
//! kernels or tokenizers.

mod adapter;
pub mod arch;
pub mod dtype;
mod error;
mod features;
mod file;
pub mod format;
mod generation_config;
mod json;
mod layout;
mod look;
mod normal_quantile;
mod python_numbers;
pub mod quantization;
mod rearranged;
pub mod rope;
mod source;
pub mod spec;
mod tensor_data;
mod weights;

pub use adapter::{Adapter, LowRank};
pub use arch::{Architecture, Description, describe};
pub use dtype::{Dtype, Element, TensorView};
pub use error::ModelError;
pub use features::features;
pub use format::FileMark;
pub use generation_config::GenerationConfig;
pub use json::JsonFile;
pub use layout::{
    ExpertNames, ExpertSlot, LayerSlot, Param, Parameter, Slot, Stack, TensorNames, ValueOrder, parameters, stacks,
};
pub use source::ModelSource;
pub use spec::DecoderSpec;
pub use tensor_data::TensorData;
pub use weights::{WeightBytes, Weights};

/// Result of this crate.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;
