//! What can be wrong with model files.

use std::io;

/// A fault in a model's files. Each variant names the place, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// File or directory.
        path: String,
        /// The system's own reason.
        source: io::Error,
    },
    /// A file or directory that must exist does not, or is of the wrong kind.
    #[error("{path}: expected {expected}, found {found}")]
    Missing {
        /// File or directory.
        path: String,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A file whose bytes do not follow its format.
    #[error("{path}: expected {expected}, found {found}")]
    Malformed {
        /// File.
        path: String,
        /// What the format asks for.
        expected: String,
        /// What the bytes say.
        found: String,
    },
    /// A field of a JSON file with a wrong, missing or contradictory value.
    #[error("{path}: field `{field}`: expected {expected}, found {found}")]
    Field {
        /// File.
        path: String,
        /// Field, dotted where nested.
        field: String,
        /// What would be right.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A tensor that is missing or has the wrong shape, type or values.
    #[error("{path}: tensor `{tensor}`: expected {expected}, found {found}")]
    Tensor {
        /// File (or directory, when the tensor is in no file).
        path: String,
        /// Tensor name in the checkpoint.
        tensor: String,
        /// What would be right.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A quantization that is not known.
    #[error("expected a quantization type ({known}), found `{found}`")]
    UnknownFileType {
        /// What was asked for.
        found: String,
        /// The names that work.
        known: String,
    },
    /// An architecture this engine does not run.
    #[error("{path}: model_type `{model_type}` {reason}; supported: {supported}")]
    UnsupportedArchitecture {
        /// Configuration file.
        path: String,
        /// The name found there.
        model_type: String,
        /// Why it is refused.
        reason: String,
        /// The names that work.
        supported: String,
    },
}
