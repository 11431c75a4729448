//! What fuzz targets reach: the bodies of requests, read as handlers read them before they look at the model.

use braidinfer::SamplingParams;
use serde::de::DeserializeOwned;

use super::anthropic::MessageFields;
use super::ollama;
use super::openai::{
    ChatFields, CompletionFields, EmbeddingFields, ParameterFields, RerankFields, ScoreFields, SharedFields,
};
use super::responses::ResponseFields;
use crate::http::{ApiError, NoFields, Strict, parse_body};

/// Reads a body of chat completions (kind 0), completions (1), embeddings (2), of the Anthropic API (3), of Ollama's chats (4), of
/// its completions (5), of the Responses API (6), of scores (7) or of rankings (8), and returns the message of a refusal.
pub fn parse_request(kind: u8, body: &[u8]) -> Result<(), String> {
    let read = match kind % 9 {
        0 => generation::<ChatFields>(body),
        1 => generation::<CompletionFields>(body),
        2 => parse_body::<EmbeddingFields, NoFields, NoFields>(body, false).map(|_| ()),
        3 => parse_body::<MessageFields, NoFields, NoFields>(body, false)
            .and_then(|Strict { first, .. }| first.into_chat(&SamplingParams::default()).map(|_| ())),
        4 => of_ollama::<ollama::ChatFields>(body),
        5 => of_ollama::<ollama::GenerateFields>(body),
        7 => parse_body::<ScoreFields, NoFields, NoFields>(body, false).map(|_| ()),
        8 => parse_body::<RerankFields, NoFields, NoFields>(body, false).map(|_| ()),
        _ => parse_body::<ResponseFields, NoFields, NoFields>(body, false)
            .and_then(|Strict { first, .. }| first.into_chat(SamplingParams::default(), Vec::new()).map(|_| ())),
    };
    read.map_err(|error| format!("{error:?}"))
}

fn of_ollama<T: DeserializeOwned>(body: &[u8]) -> Result<(), ApiError> {
    let Strict { first, .. }: Strict<ollama::SharedFields, T> = parse_body(body, false)?;
    first.params(&SamplingParams::default())?;
    first.form()?;
    first.think()?;
    Ok(())
}

fn generation<T: DeserializeOwned>(body: &[u8]) -> Result<(), ApiError> {
    let Strict { first, second, .. }: Strict<ParameterFields, SharedFields, T> = parse_body(body, false)?;
    second.delivery()?;
    second.sampling_params(&first, &SamplingParams::default(), None)?;
    Ok(())
}
