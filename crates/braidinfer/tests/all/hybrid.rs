//! Models with gated delta nets, short convolutions or Mamba-2, and attention, in the engine and under it: states survive everything that happens to
//! sequences.

use std::collections::BTreeMap;

use crate::support::answers::{Answer, RandomRequests, request, run};
use crate::support::{FUSED_BLOCK_SIZE, Fixture, Fused, argmax, block_table, distance, feed, slice};
use braidinfer::Threads;
use braidinfer::engine::{Engine, EngineConfig, EngineStats, Request};
use braidinfer::executor::fused::{self, FusedOptions};
use braidinfer::executor::standard::{self, ComputeDtype, QuantizedWeights, StandardOptions};
use braidinfer::executor::{Batch, Decoder, DeviceChoice, KvCacheConfig, KvDtype, NoProbe, SequenceSlice};
use braidinfer::kernels::{Isa, NumericLevel};
use braidinfer::model::{Description, Weights};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const FIXTURES: [&str; 8] =
    ["qwen3_5", "qwen3_next-dense", "lfm2", "lfm2-bias", "lfm3", "granitemoehybrid", "falcon_h1-norm", "nemotron_h"];

const CONFIG: EngineConfig = EngineConfig {
    context: 128,
    max_batched_tokens: 40,
    max_sequences: 4,
    max_waiting: 64,
    max_waiting_per_client: 64,
    prefix_cache: true,
    prompt_lookup: true,
    prompts_first: false,
    shadow_share: 0.0,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runner {
    Standard,
    Fused,
}

fn decoder(fixture: &Fixture, runner: Runner, num_blocks: usize) -> Decoder<'static> {
    let Description { spec, names } = fixture.description();
    let weights = Weights::open(&fixture.source, &spec, &names).expect("the fixture is whole");
    let kv_cache = KvCacheConfig { block_size: FUSED_BLOCK_SIZE, num_blocks, dtype: KvDtype::F32 };
    match runner {
        Runner::Standard => {
            let (dtype, quantized_weights) = (ComputeDtype::F32, QuantizedWeights::Keep);
            let threads = Threads::new(Some(2)).expect("threads can be had");
            let options = StandardOptions { dtype, quantized_weights, device: DeviceChoice::Cpu, kv_cache, threads };
            standard::load(spec, &weights, options, &|_, _| {})
        }
        Runner::Fused => {
            let isa = Isa::detect().expect("there is an instruction set");
            let options = FusedOptions { coarsest: NumericLevel::F32, kv_cache, threads: 2, isa };
            fused::load(spec, &weights, options, &|_, _| {})
        }
    }
    .unwrap_or_else(|error| panic!("{}: {error}", fixture.name))
}

fn engine(fixture: &Fixture, runner: Runner, config: EngineConfig, num_blocks: usize) -> Engine {
    Engine::new(decoder(fixture, runner, num_blocks), config).expect("the context fits")
}

/// What a request says alone, one token of a prompt at a time, with nothing shared or guessed.
fn alone(fixture: &Fixture, request: Request) -> Answer {
    let config = EngineConfig { max_batched_tokens: 1, prefix_cache: false, prompt_lookup: false, ..CONFIG };
    let mut engine = engine(fixture, Runner::Fused, config, 64);
    let (id, mut answers) = (engine.add(request).expect("it is sound"), BTreeMap::new());
    run(&mut engine, usize::MAX, &mut answers);
    answers.remove(&id).expect("it was answered")
}

/// Some requests that begin alike, some of which are ended early; returns what happened to the engine.
fn random_requests(fixture: &Fixture, seed: u64) -> EngineStats {
    let mut rng = SmallRng::seed_from_u64(seed);
    let num_blocks = rng.random_range(8..30);
    let (max_batched_tokens, max_sequences) = (rng.random_range(1..50), rng.random_range(1..6));
    let config = EngineConfig { max_batched_tokens, max_sequences, ..CONFIG };
    let engine = engine(fixture, Runner::Fused, config, num_blocks);
    let base: u32 = rng.random_range(1..60);
    let beginning = |rng: &mut SmallRng| (0..rng.random_range(1..90)).map(|index| index * base % 23 + 1).collect();
    let requests = RandomRequests { count: 10, beginning, max_tokens: 1..36 };
    let what = format!("{} seed {seed}", fixture.name);
    requests.check(engine, &mut rng, &what, |request| alone(fixture, request))
}

/// Whether sequences were computed again, prefixes found, and drafts accepted and rejected.
fn saw_everything(all: &[EngineStats]) -> bool {
    let sum = |count: fn(&EngineStats) -> usize| all.iter().map(count).sum::<usize>();
    let (drafts, accepted) = (sum(|stats| stats.draft_tokens), sum(|stats| stats.accepted_tokens));
    sum(|stats| stats.preemptions) > 0 && sum(|stats| stats.prefix_hits) > 0 && accepted > 0 && drafts > accepted
}

#[test]
fn random_requests_have_the_bits_of_each_alone() {
    for name in FIXTURES {
        let fixture = Fixture::open(name);
        let mut all = Vec::new();
        // How often sequences make room for others depends on how long steps take.
        for seed in 0..50 {
            all.push(random_requests(&fixture, seed));
            if all.len() >= 10 && saw_everything(&all) {
                break;
            }
        }
        assert!(saw_everything(&all), "{name}: {all:?}");
    }
}

#[test]
fn greedy_tokens_equal_transformers_cold_and_from_the_prefix_cache() {
    for (name, runner) in FIXTURES.into_iter().flat_map(|name| [(name, Runner::Standard), (name, Runner::Fused)]) {
        let fixture = Fixture::open(name);
        // Too few blocks for all of them at the same time.
        let mut engine = engine(&fixture, runner, CONFIG, 12);
        for round in 0..3 {
            let hits = engine.stats().prefix_hits;
            let mut answers = BTreeMap::new();
            let ids: Vec<_> = fixture
                .prompts
                .iter()
                .map(|prompt| engine.add(request(&prompt.ids, prompt.greedy.len())).expect("it is sound"))
                .collect();
            run(&mut engine, usize::MAX, &mut answers);
            for (id, prompt) in ids.iter().zip(&fixture.prompts) {
                let tokens: Vec<u32> = answers[id].iter().map(|(token, _)| *token).collect();
                let what = format!("{name} {runner:?} round {round}, {} tokens", prompt.ids.len());
                assert_eq!(tokens, prompt.greedy, "{what}");
            }
            assert_eq!(engine.stats().prefix_hits > hits, round > 0, "{name} {runner:?} round {round}");
        }
    }
}

/// Feeds `ids` in steps of random sizes, with drafts that are wrong from some token on, and returns the logits of every
/// token.
fn feed_with_drafts(decoder: &mut Decoder<'_>, ids: &[u32], rng: &mut SmallRng) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    while rows.len() < ids.len() {
        let context_len = rows.len();
        let most = (ids.len() - context_len).min(24);
        let certain = rng.random_range(1..=most);
        // Some drafts are what follows, the rest is not.
        let accepted = rng.random_range(0..=most - certain);
        let wrong = rng.random_range(0..4_usize).min(128 - (context_len + certain + accepted));
        let mut tokens = ids[context_len..context_len + certain + accepted].to_vec();
        tokens.extend((0..wrong).map(|_| rng.random_range(0..decoder.spec().vocab_size as u32)));
        let mut batch = Batch::default();
        let of = slice(0, context_len, tokens.len(), 128);
        batch.push(&tokens, SequenceSlice { draft_len: accepted + wrong, ..of }, tokens.len());
        let logits = decoder.forward(&batch, &mut NoProbe).expect("the batch runs").logits;
        rows.extend((0..certain + accepted).map(|row| logits.row(row).to_vec()));
    }
    rows
}

#[test]
fn drafts_that_are_taken_back_change_nothing() {
    for (name, runner) in FIXTURES.into_iter().flat_map(|name| [(name, Runner::Standard), (name, Runner::Fused)]) {
        let fixture = Fixture::open(name);
        let mut decoder = decoder(&fixture, runner, 256);
        let ids = &fixture.prompts[3].ids;
        let whole = feed(&mut decoder, 0, ids, usize::MAX >> 1);
        for seed in 0..20 {
            let rows = feed_with_drafts(&mut decoder, ids, &mut SmallRng::seed_from_u64(seed));
            for (position, (row, expected)) in rows.iter().zip(&whole).enumerate() {
                let (what, distance) =
                    (format!("{name} {runner:?} seed {seed} position {position}"), distance(row, expected));
                match runner {
                    Runner::Standard => assert!(distance <= 1e-4, "{what}: {distance:e}"),
                    Runner::Fused => assert!(row == expected, "{what}: {distance:e}"),
                }
            }
        }
    }
}

#[test]
fn copied_states_go_on_in_another_slot() {
    for (name, runner) in FIXTURES.into_iter().flat_map(|name| [(name, Runner::Standard), (name, Runner::Fused)]) {
        let fixture = Fixture::open(name);
        let mut decoder = decoder(&fixture, runner, 256);
        assert!(decoder.state().bytes_per_sequence > 0 && decoder.capabilities().shares_prefixes);
        let ids = &fixture.prompts[3].ids;
        let whole = feed(&mut decoder, 0, ids, usize::MAX >> 1);
        // The slot that is copied to was used by another sequence.
        feed(&mut decoder, 5, &fixture.prompts[2].ids, 7);
        let go_on = |decoder: &mut Decoder<'_>, slot: u32, from: usize| {
            let mut batch = Batch::default();
            let rest = &ids[from..];
            let of = SequenceSlice { state_slot: slot, ..SequenceSlice::new(from, rest.len(), block_table(0)) };
            batch.push(rest, of, 1);
            decoder.forward(&batch, &mut NoProbe).map(|outputs| outputs.logits.row(0).to_vec())
        };
        // A state can be continued from every token since the last block boundary.
        feed(&mut decoder, 0, &ids[..45], 45);
        for from in [32, 37, 45] {
            decoder.copy_state(0, 5).expect("it can be copied");
            let row = go_on(&mut decoder, 5, from).expect("the state is there");
            let (what, distance) = (format!("{name} {runner:?} from {from}"), distance(&row, &whole[ids.len() - 1]));
            match runner {
                Runner::Standard => assert!(distance <= 1e-4, "{what}: {distance:e}"),
                Runner::Fused => assert!(row == whole[ids.len() - 1], "{what}: {distance:e}"),
            }
            assert_eq!(argmax(&row), argmax(&whole[ids.len() - 1]));
        }
        // From none before it, or after its end.
        for from in [31, 46] {
            decoder.copy_state(0, 5).expect("it can be copied");
            let message = go_on(&mut decoder, 5, from).expect_err("that state is gone").to_string();
            assert!(message.contains("state slot 5"), "{message}");
        }
    }
}

#[test]
fn hybrids_on_both_kernels_at_once_say_the_same() {
    for (name, layers) in [
        ("qwen3_5", [vec![1], vec![3], vec![0, 2, 3]]),
        ("granitemoehybrid", [vec![0], vec![1], vec![1, 2]]),
        ("falcon_h1", [vec![0], vec![1], vec![0, 1]]),
        ("nemotron_h", [vec![0], vec![1, 2], vec![3, 4]]),
    ] {
        both_kernels(&Fixture::open(name), layers);
    }
}

/// Runs some layers on standard kernels, and the others on fused ones.
fn both_kernels(fixture: &Fixture, layers: [Vec<usize>; 3]) {
    let Description { spec, names } = fixture.description();
    let weights = Weights::open(&fixture.source, &spec, &names).expect("the fixture is whole");
    let threads = Threads::new(Some(2)).expect("threads can be had");
    for layers in layers {
        let layers = layers.into_iter().collect();
        let fused = fixture.fused(Fused::exact());
        let runner = standard::load_layers(&spec, &weights, &layers, fused.kv_cache(), &threads).expect("it loads");
        let mut mixed = fused.with_layers(&layers, runner).expect("the layers are there");
        for (prompt, expected) in fixture.prompts.iter().enumerate() {
            let rows = feed(&mut mixed, prompt, &expected.ids, 9);
            for (position, row, expected) in fixture.beside_expected(prompt, &rows) {
                let distance = distance(row, expected);
                assert!(
                    distance <= 1e-3,
                    "{} {layers:?} prompt {prompt} position {position}: {distance:e}",
                    fixture.name
                );
            }
        }
    }
}
