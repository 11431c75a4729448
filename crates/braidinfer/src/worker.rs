//! What this program does when it was started as a worker process.

use std::io;

use crate::containment::{Service, WorkKind, message, serve};
use crate::documents::document_service;
use crate::structured::form_service;
use crate::text::template_service;

/// Answers the requests of the process that started this one, on standard input and output, until that closes them. A program
/// whose [`WorkerProgram`](crate::WorkerProgram) starts it must call this, and print nothing.
///
/// Fails if the messages cannot be read or written.
pub fn run_worker() -> io::Result<()> {
    serve(|setup| match message::parts_of_setup(setup) {
        Ok((WorkKind::Template, setup)) => template_service(&setup),
        Ok((WorkKind::Form, setup)) => form_service(&setup),
        Ok((WorkKind::Document, _)) => document_service(),
        // The parent is of another version, or no parent of ours at all.
        Err(error) => (None::<Box<dyn Service>>, error.into_bytes()),
    })
}
