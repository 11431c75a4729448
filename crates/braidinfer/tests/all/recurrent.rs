//! Layers that keep a state of fixed size for each sequence go through everything that others go through.

use std::collections::BTreeMap;

use crate::support::answers::{Answer, RandomRequests, request, run};
use crate::support::{Fixture, recurrent};
use braidinfer::compat::{Checked, Precision, Status, Subject, Thoroughness};
use braidinfer::engine::{Engine, EngineConfig, Pooling, Request};
use braidinfer::executor::{KvCacheConfig, KvDtype};
use braidinfer::model::{DecoderSpec, Description, Weights};
use braidinfer::{Result, Threads};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const BLOCK_SIZE: usize = 4;

const CONFIG: EngineConfig = EngineConfig {
    context: 128,
    max_batched_tokens: 32,
    max_sequences: 4,
    max_waiting: 64,
    max_waiting_per_client: 64,
    prefix_cache: true,
    prompt_lookup: true,
    prompts_first: false,
    shadow_share: 0.0,
};

fn model() -> (DecoderSpec, Weights) {
    let fixture = Fixture::open("llama");
    let Description { spec, names } = fixture.description();
    let weights = Weights::open(&fixture.source, &spec, &names).expect("the fixture is whole");
    (spec, weights)
}

fn storage(num_blocks: usize) -> KvCacheConfig {
    KvCacheConfig { block_size: BLOCK_SIZE, num_blocks, dtype: KvDtype::F32 }
}

/// Where there are many blocks, they are given back as soon as they are full; otherwise the decoder says that it needs them.
fn engine(config: EngineConfig, num_blocks: usize) -> Engine {
    let (spec, weights) = model();
    let window = if num_blocks < 64 { None } else { Some(0) };
    Engine::new(recurrent::decoder(&spec, &weights, storage(num_blocks), None, window), config)
        .expect("the context fits")
}

/// What a request says alone, one token of a prompt at a time, with nothing shared or guessed.
fn alone(request: Request) -> Answer {
    let config = EngineConfig { max_batched_tokens: 1, prefix_cache: false, prompt_lookup: false, ..CONFIG };
    let mut engine = engine(config, 64);
    let (id, mut answers) = (engine.add(request).expect("it is sound"), BTreeMap::new());
    run(&mut engine, usize::MAX, &mut answers);
    answers.remove(&id).expect("it was answered")
}

/// Prompts of several lengths; some begin alike.
fn prompts() -> Vec<Vec<u32>> {
    let long: Vec<u32> = (0..50).map(|index| index * 7 % 60 + 1).collect();
    let of = |len: usize, last: u32| -> Vec<u32> { long[..len].iter().copied().chain([last]).collect() };
    vec![of(37, 3), of(37, 4), of(12, 5), of(50, 6), of(37, 3), vec![9; 20], of(16, 2)]
}

#[test]
fn bits_are_those_of_a_sequence_alone() {
    let mut preemptions = 0;
    for (max_batched_tokens, num_blocks) in [(32, 128), (7, 128), (32, 32), (5, 33)] {
        let mut engine = engine(EngineConfig { max_batched_tokens, ..CONFIG }, num_blocks);
        let (mut answers, mut asked) = (BTreeMap::new(), Vec::new());
        for (index, prompt) in prompts().into_iter().enumerate() {
            asked.push((engine.add(request(&prompt, 30)).expect("it is sound"), prompt));
            // Some come while others are written, some after.
            run(&mut engine, [0, 3, 20][index % 3], &mut answers);
        }
        run(&mut engine, usize::MAX, &mut answers);
        for (id, prompt) in asked {
            let what = format!("{} tokens, chunks of {max_batched_tokens}, {num_blocks} blocks", prompt.len());
            assert_eq!(answers[&id], alone(request(&prompt, 30)), "{what}");
        }
        let stats = engine.stats();
        assert!(stats.draft_tokens > 0 && stats.accepted_tokens > 0, "{stats:?}");
        assert!(stats.prefix_hits > 0, "{stats:?}");
        match num_blocks {
            128 => assert_eq!(stats.preemptions, 0),
            _ => preemptions += stats.preemptions,
        }
    }
    assert!(preemptions > 0, "nothing was computed again");
}

#[test]
fn random_requests_have_the_bits_of_each_alone() {
    for seed in 0..12 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let num_blocks = rng.random_range(33..100);
        let (max_batched_tokens, max_sequences) = (rng.random_range(1..40), rng.random_range(1..6));
        let engine = engine(EngineConfig { max_batched_tokens, max_sequences, ..CONFIG }, num_blocks);
        let bases: [u32; 3] = [(); 3].map(|()| rng.random_range(1..60));
        let beginning = |rng: &mut SmallRng| {
            let base = bases[rng.random_range(0..3)];
            (0..rng.random_range(1..70)).map(|index| index * base % 61 + 1).collect()
        };
        let requests = RandomRequests { count: 14, beginning, max_tokens: 1..40 };
        requests.check(engine, &mut rng, &format!("seed {seed}"), alone);
    }
}

#[test]
fn a_conversation_goes_on_where_it_ended() {
    let mut engine = engine(CONFIG, 128);
    let (mut prompt, mut answers) = (prompts().remove(0), BTreeMap::new());
    for turn in 0..4 {
        let hits = engine.stats().prefix_hits;
        let id = engine.add(request(&prompt, 9)).expect("it is sound");
        run(&mut engine, usize::MAX, &mut answers);
        assert_eq!(answers[&id], alone(request(&prompt, 9)), "turn {turn}");
        if turn > 0 {
            // All but what came after the last whole block, and what was guessed across it.
            let found = engine.stats().prefix_hits - hits;
            assert!(found + 4 * BLOCK_SIZE > prompt.len(), "turn {turn}: {found} of {}", prompt.len());
        }
        prompt.extend(answers[&id].iter().map(|(token, _)| *token).chain([turn, 8]));
    }
}

#[test]
fn vectors_are_those_of_a_prompt_alone() {
    let mut engine = engine(EngineConfig { max_batched_tokens: 6, ..CONFIG }, 64);
    let embedding = |pooling| Request { prompt: prompts().remove(3), pooling: Some(pooling), ..Request::default() };
    let mut answers = BTreeMap::new();
    engine.add(request(&prompts()[0], 20)).expect("it is sound");
    let ids =
        [Pooling::Last, Pooling::Mean].map(|pooling| (pooling, engine.add(embedding(pooling)).expect("it is sound")));
    run(&mut engine, usize::MAX, &mut answers);
    for (pooling, id) in ids {
        assert_eq!(answers[&id], alone(embedding(pooling)), "{pooling:?}");
    }
}

/// The verdict on recurrent layers, one of which may be wrong.
fn check(wrong: Option<usize>) -> Checked {
    let (spec, weights) = model();
    let reference = |_, storage| -> Result<_> { Ok(recurrent::decoder(&spec, &weights, storage, None, Some(0))) };
    let threads = Threads::new(Some(1)).expect("a thread can be had");
    let subject = Subject {
        label: "recurrent".into(),
        spec: &spec,
        weights: &weights,
        tokenizer: None,
        chat_template: None,
        threads: &threads,
        adapters: &[],
        adapter: None,
        reference: Some(&reference),
    };
    let mut checked = recurrent::decoder(&spec, &weights, storage(4096), wrong, Some(0));
    subject.check(&mut checked, Thoroughness::Normal, Precision::Exact).expect("the check runs")
}

#[test]
fn a_check_finds_the_layer_that_is_wrong() {
    let healthy = check(None).report;
    assert_eq!(healthy.status, Status::Compatible, "{}", healthy.reason);
    let report = check(Some(1)).report;
    let faults: Vec<(usize, Option<&str>)> =
        report.layers.iter().map(|layer| (layer.layer, layer.fault.as_deref())).filter(|(_, f)| f.is_some()).collect();
    assert_eq!((report.status, faults), (Status::Incompatible, vec![(1, Some("output"))]), "{}", report.reason);
}
