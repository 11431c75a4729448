//! Sequences for which there is no memory, and states of prefixes that get lost.

use std::path::PathBuf;

use braidinfer_model::ModelSource;

use super::{Engine, EngineConfig, Request, SequenceOutput};
use crate::executor::Kernels;
use crate::executor::fused::planted::{self, Planted};
use crate::loading::ModelParts;
use crate::memory::tests::pretend;
use crate::{Error, Event, KvCacheRoom, Llm, LoadOptions, Output, SamplingParams};

fn open(kernels: Kernels) -> Llm {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/llama");
    let options = LoadOptions {
        kernels,
        force: kernels == Kernels::Fused,
        threads: Some(1),
        context: Some(4096),
        kv_cache: KvCacheRoom::Tokens(8192),
        ..LoadOptions::default()
    };
    Llm::open(&ModelSource::Directory(folder), &options, &|_, _| {}).expect("the fixture opens")
}

fn prompt(tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|token| token * 7 % 250).collect()
}

/// Tokens of each request, and the errors.
fn answers(llm: &mut Llm, requests: usize) -> (Vec<usize>, Vec<(usize, Error)>) {
    let (mut tokens, mut errors) = (vec![0; requests], Vec::new());
    while llm.has_unfinished() {
        for Event { request, output, .. } in llm.step().expect("a step of the others goes on") {
            match output {
                Ok(Output::Token(_)) => tokens[request] += 1,
                Ok(Output::Embedding(_)) => panic!("no vector was asked for"),
                Err(error) => errors.push((request, error)),
            }
        }
    }
    (tokens, errors)
}

#[test]
fn a_sequence_without_memory_ends_alone_and_later_ones_have_room_again() {
    for kernels in [Kernels::Fused, Kernels::Standard] {
        let mut llm = open(kernels);
        let params = SamplingParams { max_tokens: Some(8), ignore_eos: true, ..SamplingParams::default() };
        // Its storage is there before memory runs out.
        llm.add(prompt(500), &params).expect("it is valid");
        assert_eq!(answers(&mut llm, 1).0, [8]);
        pretend(Some(1 << 20));
        let (short, long) = (prompt(400), prompt(3000));
        llm.add(short.clone(), &params).expect("it is valid");
        llm.add(long.clone(), &params).expect("it is valid");
        let (tokens, errors) = answers(&mut llm, 3);
        assert_eq!((tokens[1], tokens[2], errors.len()), (8, 0, 1), "{kernels:?}: {errors:?}");
        assert!(matches!(&errors[0], (2, Error::TooLittleMemory { .. })), "{errors:?}");
        pretend(None);
        llm.add(long, &params).expect("it is valid");
        let (tokens, errors) = answers(&mut llm, 4);
        assert_eq!((tokens[3], errors.len()), (8, 0), "{kernels:?}: {errors:?}");
    }
}

/// A sequence that begins like an earlier one, with what the log-probabilities are to the bit.
fn second_answer(name: &str, planted: Option<Planted>, prefix_cache: bool) -> (Vec<(u32, u32)>, usize) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(name);
    let options = LoadOptions { threads: Some(2), ..LoadOptions::default() };
    let parts = ModelParts::open(&ModelSource::Directory(folder), &options, &|_, _| {}).expect("the fixture opens");
    let fused = parts.fused_options(&options).expect("there are fused kernels");
    let decoder = planted::load(parts.spec.clone(), &parts.weights, fused, planted).expect("the weights can be packed");
    let config = EngineConfig {
        context: 128,
        max_batched_tokens: 64,
        max_sequences: 2,
        max_waiting: 8,
        max_waiting_per_client: 8,
        prefix_cache,
        prompt_lookup: false,
        prompts_first: false,
        shadow_share: 0.0,
    };
    let mut engine = Engine::new(decoder, config).expect("the context fits");
    let mut answer = Vec::new();
    for last in [3, 4] {
        let params = SamplingParams { max_tokens: Some(12), logprobs: Some(1), ..SamplingParams::default() };
        let prompt = prompt(50).into_iter().map(|token| token % 60).chain([last]).collect();
        engine.add(Request { prompt, params, ..Request::default() }).expect("it is sound");
        answer.clear();
        while engine.has_unfinished() {
            for output in engine.step().expect("the step runs") {
                let SequenceOutput::Token(token) = output.output.expect("it is computed") else { continue };
                answer.push((token.id, token.logprobs.expect("they are asked for").top[0].1.to_bits()));
            }
        }
    }
    (answer, engine.stats().prefix_hits)
}

#[test]
fn states_of_prefixes_are_needed_and_restored() {
    for name in ["qwen3_5", "granitemoehybrid-dense", "falcon_h1-norm", "nemotron_h-moe"] {
        let (cold, _) = second_answer(name, None, false);
        let (warm, hits) = second_answer(name, None, true);
        assert_eq!((&warm, hits), (&cold, 48), "{name}");
        // A state that is not the prefix's is noticed by what is said.
        let (wrong, hits) = second_answer(name, Some(Planted::StatesCopiedWrong), true);
        assert!(wrong != cold && hits == 48, "{name}");
    }
}
