//! Running an engine, and what its sequences say to the bit.

use std::collections::BTreeMap;

use braidinfer::engine::{Engine, Request, SamplingParams, SequenceId, SequenceOutput};

/// A request for tokens with their log-probabilities.
pub fn request(prompt: &[u32], max_tokens: usize) -> Request {
    let params = SamplingParams { max_tokens: Some(max_tokens), logprobs: Some(3), ..SamplingParams::default() };
    Request { prompt: prompt.to_vec(), params, ..Request::default() }
}

/// What a sequence says: tokens with the bits of their log-probabilities, or a vector.
pub type Answer = Vec<(u32, Vec<u32>)>;

/// Runs steps until nothing is left, or so many times.
pub fn run(engine: &mut Engine, steps: usize, answers: &mut BTreeMap<SequenceId, Answer>) {
    for _ in 0..steps {
        if !engine.has_unfinished() {
            return;
        }
        for output in engine.step().expect("the step runs") {
            let answer = answers.entry(output.sequence).or_default();
            match output.output.expect("it is computed") {
                SequenceOutput::Token(token) => {
                    let top = token.logprobs.expect("they are asked for").top;
                    answer.push((token.id, top.iter().map(|(_, logprob)| logprob.to_bits()).collect()));
                }
                SequenceOutput::Embedding(embedding) => {
                    answer.push((0, embedding.values.iter().map(|value| value.to_bits()).collect()));
                }
            }
        }
    }
}
