//! What the prompts and answers of a request will hold in memory, estimated before it is queued.

use braidinfer::SamplingParams;
use braidinfer::engine::ClientId;

use super::answers::Delivery;
use crate::app::App;
use crate::budget::{Claim, Held};
use crate::http::ApiError;
use crate::models::Served;

/// Most bytes of a stream that its client has not read; with more of them it is ended.
const MOST_UNREAD: usize = 8 << 20;
/// For an answer, besides its tokens.
const ANSWER_BYTES: usize = 1024;
/// For the text of a token, in memory and as JSON.
const TEXT_BYTES: usize = 32;
/// For a token in a stream that waits to be sent, besides its text and log-probabilities.
const UNREAD_BYTES: usize = 256;
/// For one token with its log-probability, in memory and as JSON.
const LOGPROB_BYTES: usize = 160;

/// The memory that is reserved for a request.
#[derive(Debug)]
pub struct Reservation {
    _prompts: Claim,
    pub answers: Claim,
    /// Most bytes that the answers may take.
    pub most: usize,
}

impl Reservation {
    /// Makes sure that the answers may take `bytes`.
    pub fn require(&mut self, bytes: usize) -> Result<(), ApiError> {
        if bytes > self.most {
            return Err(ApiError::answer_too_large(self.most));
        }
        let more = bytes.saturating_sub(self.answers.bytes());
        if more > 0 { Ok(self.answers.grow(more)?) } else { Ok(()) }
    }
}

/// Most unread bytes of a stream of this server.
pub fn most_unread(app: &App) -> usize {
    MOST_UNREAD.min(app.config.max_answer_bytes / 2)
}

/// Reserves memory for the answers to prompts. Refuses a request whose answers could take more than
/// [`crate::ServerConfig::max_answer_bytes`].
pub fn reserve(
    app: &App,
    served: &Served,
    client: ClientId,
    prompts: &[Vec<u32>],
    params: &SamplingParams,
    delivery: Delivery,
) -> Result<Reservation, ApiError> {
    // A parameter out of range is refused as such, and not for what it would take.
    params.validate()?;
    let tokens: usize = prompts.iter().map(Vec::len).sum();
    let lengths = prompts.iter().map(Vec::len);
    let written =
        |prompt: usize| params.max_tokens.unwrap_or(usize::MAX).min(served.context.saturating_sub(prompt).max(1));
    let of_tokens = lengths.fold(0_usize, |sum, prompt| {
        sum.saturating_add(written(prompt).saturating_mul(bytes_per_token(params.logprobs, delivery)))
    });
    let of_prompts = params.prompt_logprobs.map_or(0, |top| tokens.saturating_mul(bytes_of_logprobs(top)));
    let mut of_answers = of_tokens.saturating_add(prompts.len().saturating_mul(ANSWER_BYTES)).saturating_mul(params.n);
    if delivery != Delivery::Whole {
        of_answers = of_answers.min(most_unread(app));
    }
    let estimate = of_answers.saturating_add(of_prompts.saturating_mul(params.n));
    let most = app.config.max_answer_bytes;
    if estimate > most {
        let answers = prompts.len().saturating_mul(params.n);
        return Err(too_large(params, answers, estimate, most));
    }
    // The engine keeps the tokens of a prompt for each answer.
    let of_prompts = tokens.saturating_mul(size_of::<u32>()).saturating_mul(params.n.saturating_add(2));
    Ok(Reservation {
        _prompts: app.budget.claim(client, Held::Prompt, of_prompts)?,
        answers: app.budget.claim(client, Held::Answer, estimate)?,
        most,
    })
}

/// Reserves memory for embeddings.
pub fn reserve_embeddings(
    app: &App,
    served: &Served,
    client: ClientId,
    prompts: &[Vec<u32>],
) -> Result<Reservation, ApiError> {
    /// For one value, in memory and as JSON.
    const VALUE_BYTES: usize = 24;
    let estimate = served.about.hidden_size.saturating_mul(VALUE_BYTES).saturating_mul(prompts.len());
    let most = app.config.max_answer_bytes;
    if estimate > most {
        let message = format!(
            "input: expected embeddings of at most {most} bytes together, found {} prompts whose embeddings take about {estimate}",
            prompts.len()
        );
        return Err(ApiError::field("input", message));
    }
    let tokens: usize = prompts.iter().map(Vec::len).sum();
    Ok(Reservation {
        _prompts: app.budget.claim(client, Held::Prompt, tokens.saturating_mul(3 * size_of::<u32>()))?,
        answers: app.budget.claim(client, Held::Answer, estimate)?,
        most,
    })
}

fn bytes_per_token(logprobs: Option<usize>, delivery: Delivery) -> usize {
    let text = if delivery == Delivery::Whole { TEXT_BYTES } else { UNREAD_BYTES };
    logprobs.map_or(0, bytes_of_logprobs).saturating_add(text)
}

/// For a token with its log-probability and those of `top` others.
fn bytes_of_logprobs(top: usize) -> usize {
    top.saturating_add(1).saturating_mul(LOGPROB_BYTES)
}

fn too_large(params: &SamplingParams, answers: usize, estimate: usize, most: usize) -> ApiError {
    let field = if answers > 1 { "n" } else { "max_tokens" };
    let tokens =
        params.max_tokens.map_or("as many tokens as the context holds".into(), |most| format!("{most} tokens"));
    let logprobs = match params.logprobs.or(params.prompt_logprobs) {
        Some(top) => format!(" with {top} likeliest tokens at each"),
        None => String::new(),
    };
    let message = format!(
        "{field}: expected answers that take at most {most} bytes together, found {answers} of up to {tokens}{logprobs}, \
         which could take {estimate}"
    );
    ApiError::field(field, message)
}
