//! One file (or folder) per command.

pub mod alias;
pub mod bench;
pub mod cache;
pub mod chat;
pub mod check;
pub mod compare;
pub mod completions;
pub mod devices;
pub mod diff;
pub mod health;
pub mod imatrix;
pub mod inspect;
pub mod list;
pub mod logits;
pub mod man;
pub mod models;
pub mod perplexity;
mod printer;
pub mod ps;
pub mod pull;
pub mod quantize;
pub mod remove;
pub mod run;
pub mod serve;
pub mod show;
pub mod tokenize;
pub mod validate;
