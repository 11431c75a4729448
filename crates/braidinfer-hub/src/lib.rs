//! Fetches models from the Hugging Face Hub into the standard Hugging Face cache, which Python tools share.
//!
//! [`HubId`] says what is wanted, [`Settings`] where from and where to, and [`Hub::fetch`] brings it. A model that the
//! cache holds whole runs with no network.
//!
//! # What is `hf-hub`'s and what is ours
//!
//! The `hf-hub` crate gives the names of the cache's folders, the paths of the Hub's API and the form of its answers.
//! Its downloader (version 0.5) is not used: it appends to a partial file without looking whether the server honoured
//! the range, checks neither size nor checksum, tries again without regard to `Retry-After`, keeps its partial files
//! under names that no other tool looks for, and reads `HF_HOME` but not `HF_HUB_CACHE`, `HF_TOKEN` or
//! `HF_HUB_OFFLINE`. Version 1.0 needs an async runtime and the Xet stack. So requests, resuming, checking, locking
//! and the environment are here, on the `ureq` that `hf-hub` brings along.
//!
//! Files come over plain HTTP, one after the other. The Hub offers that for files up to 50 GB.
//!
//! Everything a server says is hostile: names of files, entity tags, commit hashes and redirects are checked before
//! they touch the disk or the token, and what is downloaded gets its final name only after its checksum is right.

mod cache;
mod checksum;
mod choice;
mod download;
mod error;
mod gguf_name;
mod http;
mod hub;
mod id;
mod progress;
mod settings;

pub use error::HubError;
pub use hub::Hub;
pub use id::HubId;
pub use progress::Progress;
pub use settings::{Retry, Settings, Timeouts, Token};

/// Result of this crate.
pub type Result<T, E = HubError> = std::result::Result<T, E>;
