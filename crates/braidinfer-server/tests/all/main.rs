//! Tests of the server over HTTP, in one program, which takes less time to build than one for each file. `soak`, which looks at
//! the memory of its whole process, is a program of its own beside this folder.

mod adapters;
mod anthropic;
mod api;
mod apis;
mod conversations;
mod editors;
mod fairness;
mod hostile;
mod models;
mod ollama;
mod responses;
mod scripted;

#[path = "../support/mod.rs"]
mod support;
