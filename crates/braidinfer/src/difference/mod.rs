//! The same prompts through two models, or through one in two ways.

mod transcript;

use serde::Serialize;

pub use self::transcript::{
    NamedToken, Parting, PromptTranscripts, SpokenToken, Transcript, TranscriptDifference, spelled,
};

use crate::divergence::Divergence;
use crate::engine::SamplingParams;
use crate::llm::{Llm, Prompt};
use crate::{Error, Result};

/// What one side makes of the prompts.
#[derive(Debug, Clone, PartialEq)]
pub struct Side {
    vocab_size: usize,
    answers: Vec<OneAnswer>,
}

#[derive(Debug, Clone, PartialEq)]
struct OneAnswer {
    /// Text, or token ids.
    prompt: String,
    prompt_ids: Vec<u32>,
    /// The greedy answer.
    ids: Vec<u32>,
    text: String,
    /// `[positions][vocab_size]`, after every token of the prompt and of the answer that was read, but the last.
    logits: Vec<f32>,
}

/// How two sides differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// One for each prompt.
    pub prompts: Vec<PromptDifference>,
    /// Mean divergence over all positions, in nats.
    pub kl_mean: f64,
    /// Share of positions with the same likeliest token.
    pub top1_agreement: f64,
}

/// How two sides differ on one prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PromptDifference {
    /// Its text, or its token ids.
    pub prompt: String,
    /// The greedy answer of the first side.
    pub a: String,
    /// That of the second.
    pub b: String,
    /// The first token of the answers, counted from 0, that differs.
    pub first_difference: Option<usize>,
    /// Distance of the second side's logits from the first's, over the prompt and the first side's answer.
    pub divergence: Divergence,
}

impl Side {
    /// Answers every prompt greedily with at most `max_tokens` tokens, and gives the logits along the prompt and the
    /// answer that `forced` gave, or its own.
    ///
    /// Fails on a prompt that leaves no room for an answer, and on one of which `forced` has other tokens.
    pub fn of(llm: &mut Llm, prompts: &[Prompt], max_tokens: usize, forced: Option<&Self>) -> Result<Self> {
        let vocab_size = llm.spec().vocab_size;
        if let Some(forced) = forced.filter(|forced| forced.vocab_size != vocab_size) {
            let expected = format!("that of the first, {} tokens", forced.vocab_size);
            return Err(Error::bad_request("vocabulary_of_the_second_model", expected, vocab_size));
        }
        let params = SamplingParams { temperature: 0.0, max_tokens: Some(max_tokens), ..SamplingParams::default() };
        let mut answers = Vec::with_capacity(prompts.len());
        for (index, prompt) in prompts.iter().enumerate() {
            let forced = forced.map(|forced| &forced.answers[index]);
            answers.push(OneAnswer::of(llm, prompt, &params, forced)?);
        }
        Ok(Self { vocab_size, answers })
    }

    /// Compares a side with the one whose answers it was forced along.
    pub fn difference(&self, first: &Self) -> Difference {
        let pairs = first.answers.iter().zip(&self.answers);
        let prompts: Vec<PromptDifference> = pairs.map(|(a, b)| PromptDifference::of(a, b, self.vocab_size)).collect();
        let positions: usize = prompts.iter().map(|prompt| prompt.divergence.positions).sum();
        let mean = |of: fn(&Divergence) -> f64| {
            let sum: f64 = prompts.iter().map(|p| of(&p.divergence) * p.divergence.positions as f64).sum();
            sum / positions.max(1) as f64
        };
        let (kl_mean, top1_agreement) = (mean(|d| d.kl_mean), mean(|d| d.top1_agreement));
        Difference { kl_mean, top1_agreement, prompts }
    }
}

impl OneAnswer {
    fn of(llm: &mut Llm, prompt: &Prompt, params: &SamplingParams, forced: Option<&Self>) -> Result<Self> {
        let completion = llm.generate(std::slice::from_ref(prompt), params)?.remove(0);
        let (prompt_ids, ids) = (completion.prompt_ids, completion.ids);
        if let Some(forced) = forced.filter(|forced| forced.prompt_ids != prompt_ids) {
            let expected = format!("the token ids of the first side, {:?}", forced.prompt_ids);
            return Err(Error::bad_request("tokenizer_of_the_second_model", expected, format!("{prompt_ids:?}")));
        }
        let mut read = prompt_ids.clone();
        read.extend_from_slice(forced.map_or(&ids, |forced| &forced.ids));
        // Nothing follows the last token.
        read.pop();
        let logits = llm.logits(&read, true)?.concat();
        Ok(Self { prompt: spelled(prompt), prompt_ids, ids, text: completion.text, logits })
    }

    /// The answer as text, or as token ids where there is no tokenizer.
    fn spelled(&self) -> String {
        if self.text.is_empty() { format!("{:?}", self.ids) } else { self.text.clone() }
    }
}

impl PromptDifference {
    fn of(a: &OneAnswer, b: &OneAnswer, vocab_size: usize) -> Self {
        let tokens = a.prompt_ids.iter().chain(&a.ids);
        let next: Vec<Option<u32>> = tokens.skip(1).copied().map(Some).collect();
        let longer = a.ids.len().max(b.ids.len());
        Self {
            prompt: a.prompt.clone(),
            a: a.spelled(),
            b: b.spelled(),
            first_difference: (0..longer).find(|index| a.ids.get(*index) != b.ids.get(*index)),
            divergence: Divergence::of(&a.logits, &b.logits, vocab_size, &next),
        }
    }
}
