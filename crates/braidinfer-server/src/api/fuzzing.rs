//! What fuzz targets reach: the bodies of requests, read as handlers read them before they look at the model.

use braidinfer::SamplingParams;
use serde::de::DeserializeOwned;

use super::chat::ChatFields;
use super::completions::CompletionFields;
use super::embeddings::EmbeddingFields;
use super::sampling::{ParameterFields, SharedFields};
use crate::http::{ApiError, NoFields, Strict, parse_body};

/// Reads a body of chat completions (kind 0), completions (1) or embeddings (2), and returns the message of a refusal.
pub fn parse_request(kind: u8, body: &[u8]) -> Result<(), String> {
    let read = match kind % 3 {
        0 => generation::<ChatFields>(body),
        1 => generation::<CompletionFields>(body),
        _ => parse_body::<EmbeddingFields, NoFields, NoFields>(body, false).map(|_| ()),
    };
    read.map_err(|error| format!("{error:?}"))
}

fn generation<T: DeserializeOwned>(body: &[u8]) -> Result<(), ApiError> {
    let Strict { first, second, .. }: Strict<ParameterFields, SharedFields, T> = parse_body(body, false)?;
    second.delivery()?;
    second.sampling_params(&first, &SamplingParams::default(), None)?;
    Ok(())
}
