//! Downloads models from the Hugging Face Hub to the standard Hugging Face cache, which is shared with Python tools.
//!
//! [`HubId`] names a model, [`Settings`] has the server and the cache, and [`Hub::fetch`] downloads. A model that is
//! complete in the cache needs no network.
//!
//! # What is from `hf-hub`
//!
//! The `hf-hub` crate provides the names of cache folders, the paths of the Hub's API and the format of its responses.
//! Its downloader (version 0.5) is not used: it appends to a partial file without checking that the server honoured the
//! range, checks neither size nor checksum, ignores `Retry-After` when retrying, uses names for partial files that no
//! other tool knows, and reads `HF_HOME` but not `HF_HUB_CACHE`, `HF_TOKEN` or `HF_HUB_OFFLINE`. Version 1.0 needs an
//! async runtime and the Xet stack. So requests, resuming, checksums, locking and environment variables are implemented
//! here, on the `ureq` crate, which `hf-hub` depends on.
//!
//! Files are downloaded over plain HTTP, one after the other. The Hub supports that for files up to 50 GB.
//!
//! Everything from a server is untrusted: file names, entity tags, commit hashes and redirects are checked before they
//! are used for paths or requests with the token, and a download gets its final name only after its checksum was
//! verified.

mod cache;
mod cached;
mod checksum;
mod choice;
mod default_quant;
mod download;
mod error;
mod gguf_name;
mod http;
mod hub;
mod id;
mod progress;
mod settings;

pub use cached::{CachedModel, cached_models};
pub use error::HubError;
pub use hub::Hub;
pub use id::HubId;
pub use progress::Progress;
pub use settings::{Retry, Settings, Timeouts, Token};

/// Result of this crate.
pub type Result<T, E = HubError> = std::result::Result<T, E>;
