//! What can go wrong between the Hub and the cache.

use std::io;
use std::path::Path;

/// A failure to fetch a model. Each message names the repository, file, URL or setting, what was expected and what was
/// found, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// A text that is no Hub id.
    #[error("`{text}`: expected a Hub id like org/name, org/name@revision or org/name:QUANT; {found}")]
    Id {
        /// The text.
        text: String,
        /// What is wrong with it.
        found: String,
    },
    /// A setting, mostly an environment variable, that cannot be used.
    #[error("{name}: expected {expected}, found {found}")]
    Setting {
        /// Name of the variable or the file.
        name: String,
        /// What would be right.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Without a network, and the cache does not hold the model whole.
    #[error("{id} is not whole in the cache: {missing}. {advice}")]
    NotCached {
        /// The model.
        id: String,
        /// The first thing that is missing, with its place.
        missing: String,
        /// How to get it.
        advice: String,
    },
    /// No answer: no route, no such host, refused, cut off or silent.
    #[error("{url}: no connection ({reason}); check the network, a proxy, or HF_ENDPOINT")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// The reason of the operating system or the HTTP client.
        reason: String,
    },
    /// The server will not give this to us: status 401 or 403.
    #[error("{what}: the Hub answered {status}{message}. {advice}")]
    Denied {
        /// Repository, or file of it.
        what: String,
        /// HTTP status.
        status: u16,
        /// The server's own words.
        message: String,
        /// What may be the cause, and what to do.
        advice: String,
    },
    /// Status 404.
    #[error("{what}: the Hub answered 404{message}. {advice}")]
    NotFound {
        /// Repository, revision or file.
        what: String,
        /// The server's own words.
        message: String,
        /// What to check.
        advice: String,
    },
    /// Status 429, again and again or with a long wait.
    #[error("{url}: the server says there were too many requests (429){message}; {advice}")]
    RateLimited {
        /// What was asked for.
        url: String,
        /// The server's own words.
        message: String,
        /// What to do.
        advice: String,
    },
    /// Any other status that is no success.
    #[error("{url}: expected a success, found status {status}{message}")]
    Status {
        /// What was asked for.
        url: String,
        /// HTTP status.
        status: u16,
        /// The server's own words.
        message: String,
    },
    /// An answer that a Hub would not give.
    #[error("{url}: {field}: expected {expected}, found {found}. If HF_ENDPOINT is set, check that it is a Hub")]
    Answer {
        /// What was asked for.
        url: String,
        /// Header, field or part of the answer.
        field: String,
        /// What would be right.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A file name that could lead out of the cache.
    #[error("{repo}: file name `{name}`: expected a relative path of plain parts; nothing was fetched")]
    FileName {
        /// The repository.
        repo: String,
        /// The name.
        name: String,
    },
    /// A repository without a model that can be run.
    #[error("{repo}: expected {expected}, found {found}")]
    NoModel {
        /// The repository.
        repo: String,
        /// What would be right.
        expected: String,
        /// What the repository holds.
        found: String,
    },
    /// Several GGUF models answer to what was asked for.
    #[error("{repo}: {problem}. It has: {available}. {advice}")]
    Quant {
        /// The repository.
        repo: String,
        /// What is wrong with the choice.
        problem: String,
        /// What could be chosen.
        available: String,
        /// How to choose.
        advice: String,
    },
    /// A download of the wrong length.
    #[error("{file}: expected {expected} bytes, found {found}; try again later")]
    Size {
        /// The file.
        file: String,
        /// What the Hub promised.
        expected: u64,
        /// What came.
        found: String,
    },
    /// A download whose bytes are not those the Hub promised.
    #[error(
        "{file}: expected {algorithm} {expected}, found {found}. The download was deleted; try again, and if that \
         does not help, something between here and the Hub changes the bytes"
    )]
    Checksum {
        /// The file.
        file: String,
        /// Kind of checksum.
        algorithm: &'static str,
        /// What the Hub promised.
        expected: String,
        /// What came.
        found: String,
    },
    /// A download that kept breaking off.
    #[error("{file}: the download broke off after {got} of {size} bytes ({reason}). {advice}")]
    BrokenOff {
        /// The file.
        file: String,
        /// Bytes on disk.
        got: u64,
        /// Bytes in all.
        size: u64,
        /// What the last try ended with.
        reason: String,
        /// How to go on.
        advice: String,
    },
    /// No space left.
    #[error(
        "{path}: the disk is full ({source}); {missing} bytes of {file} are missing. Make room, or set HF_HOME to \
         another disk; the next run goes on where this one stopped"
    )]
    DiskFull {
        /// The file that was written.
        path: String,
        /// The model's file.
        file: String,
        /// Bytes still to come.
        missing: u64,
        /// The system's own reason.
        source: io::Error,
    },
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}. The cache is set by HF_HOME or HF_HUB_CACHE")]
    Io {
        /// What was tried.
        action: &'static str,
        /// File or directory.
        path: String,
        /// The system's own reason.
        source: io::Error,
    },
}

impl HubError {
    /// Wraps an error of the operating system: `.map_err(HubError::io("create", &path))`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Io { action, path, source }
    }
}

/// Text of a server, fit for a message: without control characters, and not long.
pub(crate) fn shown(text: &str) -> String {
    const LONGEST: usize = 200;
    let mut shown: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}
