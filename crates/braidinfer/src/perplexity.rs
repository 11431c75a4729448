//! How well a model predicts a text, and how far its predictions are from those of another one.
//!
//! Reading choices are those of llama.cpp's tool, so that figures compare: the text becomes tokens once, with the model's
//! first token if it has one; it is cut into chunks of one context length that do not overlap, of which the last one is left
//! out if it is shorter; each chunk is read by itself, its first token replaced by the model's first one; and only the
//! second half of a chunk counts, where every token has at least half a context before it.

use serde::Serialize;

use crate::compat::plain_text;
use crate::divergence::{Divergence, Rate, Tally};
use crate::executor::Logits;
use crate::llm::{Llm, Prompt};
use crate::{Error, Result};

/// Tokens of a step: few, since all of their logits are in memory, and enough for products of many rows.
const STEP: usize = 64;

/// Shortest chunk of which anything counts.
pub const SHORTEST: usize = 4;

/// What to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Text or token ids.
    pub prompt: Prompt,
    /// Tokens of a chunk.
    pub context: usize,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Perplexity {
    /// Exponential of the mean negative log-likelihood.
    pub perplexity: f64,
    /// Its standard error, to first order, if positions were independent of each other; not a number where there is one
    /// position.
    pub standard_error: f64,
    /// Mean negative log-likelihood of a token, in nats.
    pub loss: f64,
    /// Tokens of the text.
    pub tokens: usize,
    /// Tokens of a chunk.
    pub context: usize,
    /// Chunks read so far.
    pub chunks: usize,
    /// Chunks of the text.
    pub all_chunks: usize,
    /// Tokens that were predicted and counted.
    pub positions: usize,
    /// How far it is from the model that it is compared with, if there is one.
    pub against: Option<Against>,
}

/// A model beside the one it is compared with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Against {
    /// Perplexity of the other one, the truth here.
    pub perplexity: f64,
    /// Its standard error.
    pub standard_error: f64,
    /// Mean divergence from the other one's predictions, in nats.
    pub kl_mean: f64,
    /// Its standard error, if positions were independent of each other.
    pub kl_standard_error: f64,
    /// Median.
    pub kl_median: f64,
    /// 99th percentile.
    pub kl_p99: f64,
    /// Largest.
    pub kl_max: f64,
    /// Share of positions with the same likeliest token.
    pub top1_agreement: f64,
    /// How often another one is likeliest beyond near ties, of the positions at which that shows.
    pub changed: Rate,
}

impl Against {
    fn new(truth: &Divergence, own: &Divergence) -> Self {
        let (perplexity, standard_error) = of_loss(truth);
        Self {
            perplexity,
            standard_error,
            kl_mean: own.kl_mean,
            kl_standard_error: known(own.kl_standard_error, own),
            kl_median: own.kl_median,
            kl_p99: own.kl_p99,
            kl_max: own.kl_max,
            top1_agreement: own.top1_agreement,
            changed: own.changed(),
        }
    }
}

impl Reading {
    /// The built-in text: prose, code, numbers and several scripts, some 2,500 tokens.
    pub fn built_in(context: usize) -> Self {
        Self { prompt: Prompt::Text(plain_text()), context }
    }
}

/// Reads a text with `llm`, and with `against` beside it, which is then taken for the truth. `keep_going` is told what is known
/// after each chunk; if it says no, there is no result.
///
/// Fails on a text shorter than a chunk, a chunk longer than the context that a model was opened with, and on models with
/// different vocabularies or different tokens for the text.
pub fn perplexity(
    llm: &mut Llm,
    mut against: Option<&mut Llm>,
    reading: &Reading,
    keep_going: &mut dyn FnMut(&Perplexity) -> bool,
) -> Result<Option<Perplexity>> {
    let ids = llm.encode(&reading.prompt)?;
    let vocab_size = llm.spec().vocab_size;
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocab_size) {
        return Err(Error::bad_request("token_id", format!("below the vocabulary size {vocab_size}"), id));
    }
    let context = reading.context;
    check_context(llm, context)?;
    if let Some(against) = &against {
        check_context(against, context)?;
        check_vocabulary(llm, against, reading, &ids)?;
    }
    if ids.len() < context {
        return Err(Error::TextTooShort { tokens: ids.len(), context });
    }
    let first = llm.tokenizer().and_then(|tokenizer| tokenizer.first_token());
    let mut found =
        Found { tokens: ids.len(), context, chunks: 0, own: Tally::on(llm.threads()), truth: Tally::on(llm.threads()) };
    for chunk in ids.chunks_exact(context) {
        let mut chunk = chunk.to_vec();
        chunk[0] = first.unwrap_or(chunk[0]);
        found.read(llm, against.as_deref_mut(), &chunk)?;
        if !keep_going(&found.so_far(against.is_some())) {
            return Ok(None);
        }
    }
    Ok(Some(found.so_far(against.is_some())))
}

fn check_context(llm: &Llm, context: usize) -> Result<()> {
    if !(SHORTEST..=llm.context()).contains(&context) {
        return Err(Error::bad_request("context", format!("from {SHORTEST} to {} tokens", llm.context()), context));
    }
    Ok(())
}

fn check_vocabulary(llm: &Llm, against: &Llm, reading: &Reading, ids: &[u32]) -> Result<()> {
    let (own, other) = (llm.spec().vocab_size, against.spec().vocab_size);
    if own != other {
        let expected = format!("that of the first, {own} tokens");
        return Err(Error::bad_request("vocabulary_of_the_other_model", expected, other));
    }
    // A model without a tokenizer takes the tokens of the first.
    if against.tokenizer().is_some() && against.encode(&reading.prompt)? != ids {
        return Err(Error::bad_request("tokenizer_of_the_other_model", "the same tokens for the text", "others"));
    }
    Ok(())
}

/// Positions read so far.
struct Found {
    tokens: usize,
    context: usize,
    chunks: usize,
    /// Beside the truth, or beside itself where there is none.
    own: Tally,
    /// Of the truth itself.
    truth: Tally,
}

impl Found {
    fn read(&mut self, llm: &mut Llm, mut against: Option<&mut Llm>, chunk: &[u32]) -> Result<()> {
        // The last token is read by nobody.
        let read = &chunk[..chunk.len() - 1];
        let counted = chunk.len() / 2;
        let reading = llm.begin_reading(read.len())?;
        let other = against.as_ref().map(|against| against.begin_reading(read.len())).transpose()?;
        for start in (0..read.len()).step_by(STEP) {
            let step = start..read.len().min(start + STEP);
            let wanted = step.end - step.start.max(counted).min(step.end);
            let own = llm.read(&reading, read, step.clone(), wanted)?;
            let next: Vec<Option<u32>> = chunk[step.end - wanted + 1..step.end + 1].iter().copied().map(Some).collect();
            match against.as_mut().zip(other.as_ref()) {
                None => add(&mut self.own, &own, &own, &next),
                Some((against, other)) => {
                    let truth = against.read(other, read, step, wanted)?;
                    add(&mut self.own, &truth, &own, &next);
                    add(&mut self.truth, &truth, &truth, &next);
                }
            }
        }
        self.chunks += 1;
        Ok(())
    }

    fn so_far(&self, against: bool) -> Perplexity {
        let own = self.own.divergence();
        let (perplexity, standard_error) = of_loss(&own);
        Perplexity {
            perplexity,
            standard_error,
            loss: own.loss,
            tokens: self.tokens,
            context: self.context,
            chunks: self.chunks,
            all_chunks: self.tokens / self.context,
            positions: own.positions,
            against: against.then(|| Against::new(&self.truth.divergence(), &own)),
        }
    }
}

fn add(tally: &mut Tally, truth: &Logits, own: &Logits, next: &[Option<u32>]) {
    tally.add(truth.values(), own.values(), own.vocab_size(), next);
}

/// Perplexity and its standard error.
fn of_loss(divergence: &Divergence) -> (f64, f64) {
    let perplexity = divergence.loss.exp();
    (perplexity, perplexity * known(divergence.loss_standard_error, divergence))
}

/// A standard error, which nobody knows of a single prediction.
fn known(standard_error: f64, divergence: &Divergence) -> f64 {
    if divergence.positions < 2 { f64::NAN } else { standard_error }
}
