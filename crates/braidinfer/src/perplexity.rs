//! Perplexity of a model on a text, and the divergence of its predictions from another model's.
//!
//! The procedure is that of llama.cpp's tool, so that results are comparable. The text is tokenized once, with the BOS
//! token if the model has one. It is split into chunks of one context length without overlap; a shorter last chunk is
//! dropped. Each chunk is evaluated separately, with its first token replaced by BOS. Only the second half of a chunk
//! counts, in which every token has at least half a context before it.

use serde::Serialize;

use crate::compat::plain_text;
use crate::divergence::{Divergence, Rate, Tally};
use crate::executor::Logits;
use crate::llm::{Llm, Prompt};
use crate::{Error, Result};

/// Tokens per step: few, because all their logits are in memory, and enough for efficient matrix multiplication.
const STEP: usize = 64;

/// Shortest chunk in which any token counts.
pub const SHORTEST: usize = 4;

/// The text to evaluate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The text or its token ids.
    pub prompt: Prompt,
    /// Tokens per chunk.
    pub context: usize,
}

/// The result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Perplexity {
    /// Exponential of the mean negative log-likelihood.
    pub perplexity: f64,
    /// Standard error of the perplexity, to first order, assuming independent positions; NaN if there is only one
    /// position.
    pub standard_error: f64,
    /// Mean negative log-likelihood per token, in nats.
    pub loss: f64,
    /// Number of tokens in the text.
    pub tokens: usize,
    /// Tokens per chunk.
    pub context: usize,
    /// Number of chunks evaluated so far.
    pub chunks: usize,
    /// Number of chunks in the text.
    pub all_chunks: usize,
    /// Number of predicted tokens that were counted.
    pub positions: usize,
    /// Comparison with another model, if there is one.
    pub against: Option<Against>,
}

/// Comparison with another model, which is taken as the truth.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Against {
    /// Perplexity of the other model.
    pub perplexity: f64,
    /// Standard error of that perplexity.
    pub standard_error: f64,
    /// Mean KL divergence from the other model's predictions, in nats.
    pub kl_mean: f64,
    /// Standard error of that mean, assuming independent positions.
    pub kl_standard_error: f64,
    /// Median divergence.
    pub kl_median: f64,
    /// 99th percentile of the divergences.
    pub kl_p99: f64,
    /// Largest divergence.
    pub kl_max: f64,
    /// Fraction of positions with the same most likely token.
    pub top1_agreement: f64,
    /// Fraction of positions with a clearly different most likely token, among those that could show it.
    pub changed: Rate,
}

impl Against {
    fn new(truth: &Divergence, own: &Divergence) -> Self {
        let (perplexity, standard_error) = of_loss(truth);
        Self {
            perplexity,
            standard_error,
            kl_mean: own.kl_mean,
            kl_standard_error: nan_if_single(own.kl_standard_error, own),
            kl_median: own.kl_median,
            kl_p99: own.kl_p99,
            kl_max: own.kl_max,
            top1_agreement: own.top1_agreement,
            changed: own.changed(),
        }
    }
}

impl Reading {
    /// The built-in text: prose, code, numbers and several scripts, about 2,500 tokens.
    pub fn built_in(context: usize) -> Self {
        Self { prompt: Prompt::Text(plain_text()), context }
    }
}

/// Evaluates `llm` on a text, and compares it with `against`, if given. `keep_going` receives the intermediate result
/// after each chunk; if it returns false, there is no result.
///
/// Fails on a text shorter than a chunk, on a chunk longer than the context that a model was opened with, and on models
/// with different vocabularies or different tokens for the text.
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
        return Err(Error::TextTooShort { name: "text".into(), tokens: ids.len(), setting: "context", least: context });
    }
    let first = llm.tokenizer().and_then(|tokenizer| tokenizer.first_token());
    let mut found = Totals {
        tokens: ids.len(),
        context,
        chunks: 0,
        own: Tally::on(llm.threads()),
        truth: Tally::on(llm.threads()),
    };
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
    // A model without a tokenizer uses the token ids of the first.
    if against.tokenizer().is_some() && against.encode(&reading.prompt)? != ids {
        return Err(Error::bad_request("tokenizer_of_the_other_model", "the same tokens for the text", "others"));
    }
    Ok(())
}

/// Results so far.
struct Totals {
    tokens: usize,
    context: usize,
    chunks: usize,
    /// The model against the truth, or against itself if there is none.
    own: Tally,
    /// The truth against itself.
    truth: Tally,
}

impl Totals {
    fn read(&mut self, llm: &mut Llm, mut against: Option<&mut Llm>, chunk: &[u32]) -> Result<()> {
        // The last token is only predicted, not run.
        let read = &chunk[..chunk.len() - 1];
        let counted = chunk.len() / 2;
        let own_sequence = llm.engine_mut().begin_raw(read.len(), None)?;
        let other = against.as_mut().map(|against| against.engine_mut().begin_raw(read.len(), None)).transpose()?;
        for start in (0..read.len()).step_by(STEP) {
            let step = start..read.len().min(start + STEP);
            let wanted = step.end - step.start.max(counted).min(step.end);
            let own = llm.engine_mut().read_raw(&own_sequence, read, step.clone(), wanted)?;
            let next: Vec<Option<u32>> = chunk[step.end - wanted + 1..step.end + 1].iter().copied().map(Some).collect();
            match against.as_mut().zip(other.as_ref()) {
                None => add(&mut self.own, &own, &own, &next),
                Some((against, other)) => {
                    let truth = against.engine_mut().read_raw(other, read, step, wanted)?;
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

/// Perplexity and its standard error, from the loss.
fn of_loss(divergence: &Divergence) -> (f64, f64) {
    let perplexity = divergence.loss.exp();
    (perplexity, perplexity * nan_if_single(divergence.loss_standard_error, divergence))
}

/// A standard error, or NaN if there is only one position.
fn nan_if_single(standard_error: f64, divergence: &Divergence) -> f64 {
    if divergence.positions < 2 { f64::NAN } else { standard_error }
}
