//! Comparing two models, or one model with two settings, on the same prompts.

mod transcript;

use serde::Serialize;

pub use self::transcript::{
    NamedToken, Parting, PromptTranscripts, SpokenToken, Transcript, TranscriptDifference, spelled,
};

use crate::divergence::Divergence;
use crate::engine::SamplingParams;
use crate::llm::{Llm, Prompt};
use crate::{Error, Result};

/// The outputs of one of the two models for all prompts.
#[derive(Debug, Clone, PartialEq)]
pub struct Side {
    vocab_size: usize,
    answers: Vec<PromptOutput>,
}

#[derive(Debug, Clone, PartialEq)]
struct PromptOutput {
    /// The prompt's text, or its token ids.
    prompt: String,
    prompt_ids: Vec<u32>,
    /// The greedy output.
    ids: Vec<u32>,
    text: String,
    /// `[positions][vocab_size]`: logits after every token of the prompt and of the output, except the last.
    logits: Vec<f32>,
}

/// The difference between two models.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// One entry per prompt.
    pub prompts: Vec<PromptDifference>,
    /// Mean KL divergence over all positions, in nats.
    pub kl_mean: f64,
    /// Fraction of positions with the same most likely token.
    pub top1_agreement: f64,
}

/// The difference between two models on one prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PromptDifference {
    /// The prompt's text, or its token ids.
    pub prompt: String,
    /// The greedy output of the first model.
    pub a: String,
    /// The greedy output of the second model.
    pub b: String,
    /// Index of the first output token that differs.
    pub first_difference: Option<usize>,
    /// Divergence of the second model's logits from the first's, over the prompt and the first model's output.
    pub divergence: Divergence,
}

impl Side {
    /// Generates a greedy output of at most `max_tokens` tokens for every prompt, and computes the logits along the
    /// prompt and the output in `forced`, if given, or its own output (teacher forcing).
    ///
    /// Fails on a prompt that leaves no room for an output, and if a prompt has other tokens than in `forced`.
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
            answers.push(PromptOutput::of(llm, prompt, &params, forced)?);
        }
        Ok(Self { vocab_size, answers })
    }

    /// Compares this side with the one whose outputs it was forced along.
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

impl PromptOutput {
    fn of(llm: &mut Llm, prompt: &Prompt, params: &SamplingParams, forced: Option<&Self>) -> Result<Self> {
        let completion = llm.generate(std::slice::from_ref(prompt), params)?.remove(0);
        let (prompt_ids, ids) = (completion.prompt_ids, completion.ids);
        if let Some(forced) = forced.filter(|forced| forced.prompt_ids != prompt_ids) {
            let expected = format!("the token ids of the first side, {:?}", forced.prompt_ids);
            return Err(Error::bad_request("tokenizer_of_the_second_model", expected, format!("{prompt_ids:?}")));
        }
        let mut read = prompt_ids.clone();
        read.extend_from_slice(forced.map_or(&ids, |forced| &forced.ids));
        // The logits after the last token predict nothing.
        read.pop();
        let logits = llm.logits(&read, true)?.concat();
        Ok(Self { prompt: spelled(prompt), prompt_ids, ids, text: completion.text, logits })
    }

    /// The output as text, or as token ids if there is no tokenizer.
    fn spelled(&self) -> String {
        if self.text.is_empty() { format!("{:?}", self.ids) } else { self.text.clone() }
    }
}

impl PromptDifference {
    fn of(a: &PromptOutput, b: &PromptOutput, vocab_size: usize) -> Self {
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
