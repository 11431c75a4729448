//! Errors in model files.

use std::io;

/// An error in a model's files. Each variant names the place, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// An operating system error.
    #[error("{path}: {source}")]
    Io {
        /// Path of the file or directory.
        path: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// A required file or directory is missing or of the wrong kind.
    #[error("{path}: expected {expected}, found {found}")]
    Missing {
        /// Path of the file or directory.
        path: String,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A file that violates its format.
    #[error("{path}: expected {expected}, found {found}")]
    Malformed {
        /// Path of the file.
        path: String,
        /// What the format requires.
        expected: String,
        /// What the file contains.
        found: String,
    },
    /// A JSON field with a wrong, missing or contradictory value.
    #[error("{path}: field `{field}`: expected {expected}, found {found}")]
    Field {
        /// Path of the file.
        path: String,
        /// Name of the field, as a dotted path if nested.
        field: String,
        /// The allowed values.
        expected: String,
        /// The actual value.
        found: String,
    },
    /// A tensor that is missing or has the wrong shape, type or values.
    #[error("{path}: tensor `{tensor}`: expected {expected}, found {found}")]
    Tensor {
        /// Path of the file, or of the directory if the tensor is in no file.
        path: String,
        /// Tensor name in the checkpoint.
        tensor: String,
        /// The allowed values.
        expected: String,
        /// The actual value.
        found: String,
    },
    /// An unknown quantization type.
    #[error(
        "expected a quantization type ({known}), found `{found}`{}",
        if *readable { ", which can be read but not written" } else { "" }
    )]
    UnknownFileType {
        /// The requested type.
        found: String,
        /// The names of the known types.
        known: String,
        /// Whether tensors of a file can have this type.
        readable: bool,
    },
    /// An architecture that this engine does not support.
    #[error("{path}: model_type `{model_type}` {reason}; supported: {supported}")]
    UnsupportedArchitecture {
        /// Path of the configuration file.
        path: String,
        /// The architecture's name.
        model_type: String,
        /// Why it is not supported.
        reason: String,
        /// The names of the supported architectures.
        supported: String,
    },
}
