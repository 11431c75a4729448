//! Running an engine, and what its sequences say to the bit.

use std::collections::BTreeMap;
use std::ops::Range;

use braidinfer::engine::{Engine, EngineStats, Request, SamplingParams, SequenceId, SequenceOutput};
use rand::RngExt;
use rand::rngs::SmallRng;

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

/// Random requests to an engine: their number, beginnings of prompts, and how many tokens are asked for.
pub struct RandomRequests<F> {
    pub count: usize,
    pub beginning: F,
    pub max_tokens: Range<usize>,
}

impl<F: FnMut(&mut SmallRng) -> Vec<u32>> RandomRequests<F> {
    /// Makes them, ends some early, and checks that every other one is answered as `alone`; nothing is left behind then.
    pub fn check(
        mut self,
        mut engine: Engine,
        rng: &mut SmallRng,
        what: &str,
        alone: impl Fn(Request) -> Answer,
    ) -> EngineStats {
        let (mut answers, mut asked) = (BTreeMap::new(), Vec::new());
        for _ in 0..self.count {
            let mut prompt = (self.beginning)(rng);
            prompt.extend(rng.random_bool(0.5).then(|| rng.random_range(1..60)));
            let max_tokens = rng.random_range(self.max_tokens.clone());
            let id = engine.add(request(&prompt, max_tokens)).expect("it is sound");
            asked.push((id, prompt, max_tokens));
            run(&mut engine, rng.random_range(0..12), &mut answers);
            if rng.random_bool(0.2) {
                let (cancelled, ..) = asked.swap_remove(rng.random_range(0..asked.len()));
                engine.abort(cancelled);
            }
        }
        run(&mut engine, usize::MAX, &mut answers);
        for (id, prompt, max_tokens) in asked {
            assert_eq!(answers[&id], alone(request(&prompt, max_tokens)), "{what}: {prompt:?}");
        }
        let stats = engine.stats();
        assert_eq!((stats.running, stats.waiting, stats.kv_cache_usage), (0, 0, 0.0), "{what}");
        stats
    }
}
