//! Errors of downloads and the cache.

use std::io;
use std::path::Path;

/// Why a model could not be fetched. Each message names the repository, file, URL or setting, what was expected and
/// what was found, and what the user can do.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// A malformed Hub id.
    #[error("`{text}`: expected a Hub id like org/name, org/name@revision or org/name:QUANT; {found}")]
    Id {
        /// The text.
        text: String,
        /// What is wrong with it.
        found: String,
    },
    /// An invalid setting, usually an environment variable.
    #[error("{name}: expected {expected}, found {found}")]
    Setting {
        /// Name of the variable or the file.
        name: String,
        /// The allowed values.
        expected: String,
        /// The actual value.
        found: String,
    },
    /// Offline, and the model is not complete in the cache.
    #[error("{id} is not whole in the cache: {missing}. {advice}")]
    NotCached {
        /// The model.
        id: String,
        /// Path of the first missing file.
        missing: String,
        /// How to get it.
        advice: String,
    },
    /// No response: no route, unknown host, connection refused, interrupted or timed out.
    #[error("{url}: no connection ({reason}); check the network, a proxy, or HF_ENDPOINT")]
    Unreachable {
        /// The requested URL.
        url: String,
        /// The error of the operating system or the HTTP client.
        reason: String,
    },
    /// Access denied: status 401 or 403.
    #[error("{what}: the Hub answered {status}{message}. {advice}")]
    Denied {
        /// The repository, or a file in it.
        what: String,
        /// HTTP status.
        status: u16,
        /// The server's message.
        message: String,
        /// Possible causes and remedies.
        advice: String,
    },
    /// Status 404.
    #[error("{what}: the Hub answered 404{message}. {advice}")]
    NotFound {
        /// The repository, revision or file.
        what: String,
        /// The server's message.
        message: String,
        /// What to check.
        advice: String,
    },
    /// Status 429, repeatedly or with a long delay.
    #[error("{url}: the server says there were too many requests (429){message}; {advice}")]
    RateLimited {
        /// The requested URL.
        url: String,
        /// The server's message.
        message: String,
        /// What to do.
        advice: String,
    },
    /// Any other unsuccessful status.
    #[error("{url}: expected a success, found status {status}{message}")]
    Status {
        /// The requested URL.
        url: String,
        /// HTTP status.
        status: u16,
        /// The server's message.
        message: String,
    },
    /// A response that a Hub would not send.
    #[error("{url}: {field}: expected {expected}, found {found}. If HF_ENDPOINT is set, check that it is a Hub")]
    InvalidResponse {
        /// The requested URL.
        url: String,
        /// The header, field or part of the response.
        field: String,
        /// The allowed values.
        expected: String,
        /// The actual value.
        found: String,
    },
    /// A file name that could be a path out of the cache.
    #[error("{repo}: file name `{name}`: expected a relative path of plain parts; nothing was fetched")]
    FileName {
        /// The repository.
        repo: String,
        /// The name.
        name: String,
    },
    /// A repository without a supported model.
    #[error("{repo}: expected {expected}, found {found}")]
    NoModel {
        /// The repository.
        repo: String,
        /// What was expected.
        expected: String,
        /// What the repository contains.
        found: String,
    },
    /// The id does not select exactly one GGUF model.
    #[error("{repo}: {problem}. It has: {available}. {advice}")]
    Quant {
        /// The repository.
        repo: String,
        /// What is wrong with the selection.
        problem: String,
        /// The available models.
        available: String,
        /// How to select one.
        advice: String,
    },
    /// A download with the wrong length.
    #[error("{file}: expected {expected} bytes, found {found}; try again later")]
    Size {
        /// The file.
        file: String,
        /// Length according to the Hub.
        expected: u64,
        /// Actual length.
        found: String,
    },
    /// A download with the wrong checksum.
    #[error(
        "{file}: expected {algorithm} {expected}, found {found}. The download was deleted; try again, and if that \
         does not help, something between here and the Hub changes the bytes"
    )]
    Checksum {
        /// The file.
        file: String,
        /// The checksum algorithm.
        algorithm: &'static str,
        /// Checksum according to the Hub.
        expected: String,
        /// Actual checksum.
        found: String,
    },
    /// A download that was interrupted too often.
    #[error("{file}: the download broke off after {got} of {size} bytes ({reason}). {advice}")]
    BrokenOff {
        /// The file.
        file: String,
        /// Number of bytes on disk.
        got: u64,
        /// Size of the file in bytes.
        size: u64,
        /// The last error.
        reason: String,
        /// How to continue.
        advice: String,
    },
    /// The disk is full.
    #[error(
        "{path}: the disk is full ({source}); {missing} bytes of {file} are missing. Make room, or set HF_HOME to \
         another disk; the next run goes on where this one stopped"
    )]
    DiskFull {
        /// Path of the file on disk.
        path: String,
        /// Name of the model's file.
        file: String,
        /// Number of missing bytes.
        missing: u64,
        /// The operating system's error.
        source: io::Error,
    },
    /// An operating system error.
    #[error("cannot {action} {path}: {source}. The cache is set by HF_HOME or HF_HUB_CACHE")]
    Io {
        /// The failed operation.
        action: &'static str,
        /// Path of the file or directory.
        path: String,
        /// The operating system's error.
        source: io::Error,
    },
}

impl HubError {
    /// Converts an operating system error: `.map_err(HubError::io("create", &path))`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Io { action, path, source }
    }
}

/// Untrusted text, made suitable for a message: shortened, without control characters.
pub(crate) fn shown(text: &str) -> String {
    const LONGEST: usize = 200;
    let mut shown: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}
