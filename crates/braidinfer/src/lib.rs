//! Braidinfer, the library: runs decoder models from their published files.
//!
//! [`Llm`] opens a model and generates text; with a [`Handle`] many threads and tasks do so at once. Below them:
//! [`executor`] computes logits with a paged KV cache and does not deal with text; [`engine`] schedules sequences and
//! samples tokens, and does not deal with tensors; [`text`] converts between text and token ids.

mod advice;
mod cache_folders;
pub mod compat;
mod contained;
mod containment;
pub mod conversation;
pub mod difference;
mod digest;
pub mod divergence;
mod documents;
pub mod engine;
mod error;
pub mod executor;
pub mod handle;
mod imatrix;
mod llm;
mod loading;
#[cfg(feature = "hub")]
mod local_models;
mod memory;
#[cfg(feature = "hub")]
mod model_name;
mod packed_cache;
mod partial_file;
pub mod perplexity;
mod quantize;
mod saved_prefixes;
mod structured;
pub mod text;
mod threads;
pub mod validation;
mod worker;

pub use advice::{Advice, Setting};
pub use cache_folders::{
    default_packed_folder, default_prefix_folder, default_server_folder, default_verdict_folder, settings_folder,
};
pub use containment::{CancelFlag, CancelOnDrop, WorkLimits, WorkerProgram, WorkerStats};
pub use documents::{DocumentText, text_of_pdf};
pub use engine::{FinishReason, SamplingParams};
pub use error::Error;
pub use handle::Handle;
pub use imatrix::{Calibration, ImatrixProgress, ImatrixReport, input_sums, write_imatrix};
pub use llm::{
    Completion, ConversationPrompt, Event, GenerateRequest, Llm, ModelText, Outline, Output, Prompt, RequestId,
    ShadowCheck, StreamEvent, Timings, Token, WeightsInfo,
};
pub use loading::{
    AdapterOptions, CheckDepth, DraftOptions, KvCacheRoom, LoadOptions, LoadedAdapter, PipelinePlan, check,
    check_memory,
};
pub use memory::{available as available_memory, size};
pub use packed_cache::{KeptWeights, PackedCache};
pub use saved_prefixes::SavedPrefixes;

#[cfg(feature = "hub")]
pub use local_models::{Aliases, LocalModel, Place, Places, Removal};
#[cfg(feature = "hub")]
pub use model_name::{ModelName, ResolveOptions, hub_settings, resolve};

pub use structured::{AnswerForm, DATA_KEYS, FormLimits, StructuredOutput};
pub use threads::Threads;
pub use worker::run_worker;

pub use quantize::{QuantizeOptions, QuantizeProgress, QuantizeReport, quantize, quantize_weights, quantize_with};

#[cfg(feature = "gpu")]
pub use braidinfer_gpu as gpu;
#[cfg(feature = "hub")]
pub use braidinfer_hub as hub;
pub use braidinfer_kernels as kernels;
pub use braidinfer_model as model;

/// Compiles the README's Rust example as a documentation test.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
