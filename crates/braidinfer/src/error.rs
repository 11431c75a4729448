//! The library's errors, as far as callers need to distinguish them.

use std::io;

use braidinfer_model::ModelError;

use crate::Advice;

/// A failure of the library.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An error in the model's files.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A name that is no path, of a model that cannot be had from the Hub.
    #[cfg(feature = "hub")]
    #[error("{name}: no such file or directory, so taken for a model of the Hub: {source}")]
    Hub {
        /// What the model was called.
        name: String,
        /// Why it cannot be had.
        source: Box<braidinfer_hub::HubError>,
    },
    /// A tokenizer or chat template that cannot be read or used.
    #[error("{path}: {message}")]
    Text {
        /// Path of the file.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// A file that cannot be written.
    #[error("{path}: {source}")]
    File {
        /// Path of the file.
        path: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// A file that would have to be overwritten.
    #[error("{path}: expected no file of this name, found one")]
    AlreadyThere {
        /// Path of the file.
        path: String,
    },
    /// Packed weights that were damaged on the disk while they were in use.
    #[error("{path}: {reason}")]
    DamagedWeights {
        /// Path of their file.
        path: String,
        /// What is wrong, and what helps.
        reason: String,
    },
    /// The caller cancelled the work.
    #[error("cancelled; nothing was written")]
    Cancelled,
    /// A setting or input outside its range. The field has its neutral name, in snake_case: `top_p` is `--top-p` on a
    /// command line.
    #[error("{field}: expected {expected}, found {found}")]
    BadRequest {
        /// Name of the setting or input.
        field: String,
        /// The allowed values.
        expected: String,
        /// The actual value.
        found: String,
    },
    /// The prompt does not fit in the context.
    #[error(
        "the prompt has {prompt} tokens, but the context holds {context}: nothing was cut; shorten it or raise the context"
    )]
    PromptTooLong {
        /// Number of tokens in the prompt.
        prompt: usize,
        /// Context length in tokens.
        context: usize,
    },
    /// The text is shorter than one of the parts in which it is read.
    #[error("{name}: expected at least one {setting} of {least} tokens, found {tokens} token{}", if *tokens == 1 { "" } else { "s" })]
    TextTooShort {
        /// What the text is called.
        name: String,
        /// Number of tokens in the text.
        tokens: usize,
        /// What a part is called, which is also the setting of its length.
        setting: &'static str,
        /// Length of a part in tokens.
        least: usize,
    },
    /// There is less memory than something needs.
    #[error("{what}: expected {needed} of memory, found {found} {limit}")]
    TooLittleMemory {
        /// What needs it.
        what: String,
        /// How much is needed.
        needed: String,
        /// How much there is.
        found: String,
        /// What limits it.
        limit: &'static str,
    },
    /// There is no room for the answers to a request now.
    #[error(
        "{waiting} answers{} are waiting already, and {answers} more would be too many: {limit} may wait; try again later",
        if *of_client { " of this client" } else { "" }
    )]
    QueueFull {
        /// Number of waiting sequences, of all clients or of one.
        waiting: usize,
        /// Number of sequences of the request.
        answers: usize,
        /// How many may wait beside the running ones.
        limit: usize,
        /// Whether that is the limit of one client.
        of_client: bool,
    },
    /// A request asks for more answers than can ever run and wait at once.
    #[error(
        "the request asks for {answers} answers, and at most {most} of one client may run and wait: ask for fewer at once"
    )]
    TooManyAnswers {
        /// Number of sequences of the request.
        answers: usize,
        /// How many there is room for.
        most: usize,
    },
    /// Fused kernels were requested, but a check found their results wrong.
    #[error("{model}: fused kernels are {status} with this model: {reason}")]
    FusedForbidden {
        /// Where the model came from.
        model: String,
        /// The verdict.
        status: &'static str,
        /// The reason for the verdict.
        reason: String,
    },
    /// Keys and values in 8 or 4 bits change answers too often with this model.
    #[error("{model}: keys and values in {kv_dtype} do not serve with this model: {reason}")]
    KvDtypeForbidden {
        /// Where the model came from.
        model: String,
        /// The type that was asked for.
        kv_dtype: String,
        /// The reason for the verdict.
        reason: String,
    },
    /// A stage of a pipeline failed, or cannot be reached. Keys and values of all sequences are lost.
    #[error("{0}; what was being computed is lost")]
    Stage(String),
    /// A GPU or its driver failed, or there is none of the kind that was asked for.
    #[cfg(feature = "gpu")]
    #[error(transparent)]
    Gpu(braidinfer_gpu::GpuError),
    /// Not possible with this model, device or build.
    #[error("{0}")]
    Unsupported(String),
    /// An inconsistency in this library's own state: a bug.
    #[error("internal error, please report it: {0}")]
    Internal(String),
    /// A logit or hidden state value that is not finite.
    #[error("step {step}: what was computed for sequence {sequence} is not finite (row index {index}: {value})")]
    NotFinite {
        /// Number of the engine step.
        step: usize,
        /// Sequence number.
        sequence: usize,
        /// Index of the first such value in its row; for logits, the token id.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// An error of the tensor library.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// The setting that may help, if there is one. It is not part of the message, so that each interface can word it.
    pub fn advice(&self) -> Option<Advice> {
        match self {
            Self::AlreadyThere { .. } => Some(Advice::from("it can be overwritten with ").then_set("force", "true")),
            Self::FusedForbidden { .. } => {
                Some(Advice::from("use ").then_set("kernels", "auto").then(", or ").then_set("force", "true"))
            }
            Self::KvDtypeForbidden { .. } => Some(
                Advice::from("use ")
                    .then_set("kv_dtype", "f16")
                    .then(", or, whatever the answers are, ")
                    .then_set("kernels", "fused")
                    .then(" with ")
                    .then_set("force", "true"),
            ),
            Self::TooLittleMemory { .. } => Some(
                Advice::from("use a smaller quantization of the model (`quantize` makes one without holding it in memory), a shorter ")
                    .then_name("context")
                    .then(", or a higher limit"),
            ),
            Self::TextTooShort { setting, .. } => Some(Advice::from("see ").then_name(setting)),
            _ => None,
        }
    }

    /// Whether every later step of the same model fails, too, so that only a new start helps.
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::DamagedWeights { .. })
    }

    /// Whether a GPU is the reason, or memory, which may be short there alone.
    pub(crate) fn may_be_of_gpu(&self) -> bool {
        #[cfg(feature = "gpu")]
        if let Self::Gpu(_) = self {
            return true;
        }
        matches!(self, Self::TooLittleMemory { .. })
    }

    /// Whether the device that computes can no longer be used, so that a decoder elsewhere has to take its place.
    pub fn ends_device(&self) -> bool {
        #[cfg(feature = "gpu")]
        if let Self::Gpu(error) = self {
            return error.ends_device();
        }
        false
    }

    /// Makes an [`Error::Hub`] about the model that is called `name`.
    #[cfg(feature = "hub")]
    pub(crate) fn hub(name: impl ToString) -> impl FnOnce(braidinfer_hub::HubError) -> Self {
        move |error| Self::Hub { name: name.to_string(), source: Box::new(error) }
    }

    /// A [`Error::BadRequest`].
    pub fn bad_request(field: impl Into<String>, expected: impl Into<String>, found: impl ToString) -> Self {
        Self::BadRequest { field: field.into(), expected: expected.into(), found: found.to_string() }
    }
}
