//! Fused kernels with standard ones in some layers.

use std::collections::BTreeSet;

use crate::support::{self, Fixture, Fused, check_greedy, distance, feed};
use braidinfer::Threads;
use braidinfer::engine::{Engine, EngineConfig, Pooling, Request, SequenceOutput};
use braidinfer::executor::{ActiveKernels, Batch, Decoder, Recorder, standard};
use braidinfer::model::{Description, Weights};

/// Largest allowed difference of a logit from `transformers`.
const TOLERANCE: f32 = 1e-3;

const WHOLE: usize = usize::MAX >> 1;

/// A fixture with standard kernels in every other layer, the first or the second one first.
fn mixed(fixture: &Fixture, first: usize) -> Decoder<'static> {
    let Description { spec, names } = fixture.description();
    let weights = Weights::open(&fixture.source, &spec, &names).expect("the weights are there");
    let layers: BTreeSet<usize> = (first..spec.layers.len()).step_by(2).collect();
    let fused = fixture.fused_over(Fused::exact(), spec, &weights);
    let threads = Threads::new(Some(2)).expect("threads can be had");
    let standard = standard::load_layers(fused.spec(), &weights, &layers, fused.kv_cache(), &threads);
    fused.with_layers(&layers, standard.expect("standard kernels load")).expect("the layers are there")
}

/// The fixtures whose layers share nothing but the residual stream.
fn separable() -> Vec<Fixture> {
    Fixture::all().into_iter().filter(|fixture| fixture.spec().has_separate_layers()).collect()
}

#[test]
fn layers_that_share_keys_or_inputs_stay_with_one_runner() {
    let fixture = Fixture::open("gemma4");
    let Description { spec, names } = fixture.description();
    let weights = Weights::open(&fixture.source, &spec, &names).expect("the weights are there");
    let fused = fixture.fused_over(Fused::exact(), spec, &weights);
    let (layers, threads) = (BTreeSet::from([1]), Threads::new(Some(2)).expect("threads can be had"));
    let standard = standard::load_layers(fused.spec(), &weights, &layers, fused.kv_cache(), &threads);
    let refused = fused.with_layers(&layers, standard.expect("standard kernels load"));
    let message = refused.err().expect("they cannot be apart").to_string();
    assert!(message.contains("gemma4_text"), "{message}");
}

#[test]
fn any_layer_may_be_standard() {
    for fixture in separable().iter().filter(|fixture| fixture.name != "qwen3-extreme") {
        for first in [0, 1] {
            let mut executor = mixed(fixture, first);
            assert_eq!(executor.report().kernels, ActiveKernels::Mixed);
            for chunk in [WHOLE, 3, 1] {
                for (prompt, expected) in fixture.prompts.iter().enumerate() {
                    let rows = feed(&mut executor, prompt, &expected.ids, chunk);
                    for (position, row, expected) in fixture.beside_expected(prompt, &rows) {
                        let distance = distance(expected, row);
                        let what = format!("{} prompt {prompt} position {position} chunks of {chunk}", fixture.name);
                        assert!(distance <= TOLERANCE, "{what}: logits differ by {distance:e}");
                    }
                }
            }
        }
    }
}

#[test]
fn greedy_tokens_equal_transformers() {
    for fixture in separable() {
        check_greedy(&mut mixed(&fixture, 1), &fixture);
    }
}

/// The vector of a prompt, at the engine.
fn embedding(executor: Decoder<'static>, prompt: &[u32], pooling: Pooling) -> Vec<f32> {
    let config = EngineConfig {
        context: 256,
        max_batched_tokens: 8,
        max_sequences: 2,
        max_waiting: 2,
        max_waiting_per_client: 2,
        prefix_cache: true,
        prompt_lookup: true,
        prompts_first: false,
        shadow_share: 0.0,
    };
    let mut engine = Engine::new(executor, config).expect("the context fits");
    let request = Request { prompt: prompt.to_vec(), pooling: Some(pooling), ..Request::default() };
    engine.add(request).expect("the request is sound");
    while engine.has_unfinished() {
        if let Some(output) = engine.step().expect("the step runs").into_iter().next() {
            match output.output.expect("it is computed") {
                SequenceOutput::Embedding(embedding) => return embedding.values,
                SequenceOutput::Token(_) => panic!("nothing is written"),
            }
        }
    }
    panic!("no vector came");
}

#[test]
fn vectors_come_from_mixed_kernels_too() {
    let fixture = Fixture::open("qwen3");
    let prompt: Vec<u32> = (1..60).collect();
    for pooling in [Pooling::Last, Pooling::Mean] {
        let expected = embedding(fixture.fused(Fused::exact()), &prompt, pooling);
        let executors = [mixed(&fixture, 1), fixture.standard()];
        for found in executors.map(|executor| embedding(executor, &prompt, pooling)) {
            assert_eq!(found.len(), expected.len());
            for (value, expected) in found.iter().zip(&expected) {
                assert!((value - expected).abs() < 1e-5, "{pooling:?}: {value} {expected}");
            }
        }
    }
}

#[test]
fn every_activation_can_be_looked_at() {
    let fixture = Fixture::open("qwen3");
    let names = |executor: &mut Decoder<'_>| {
        let mut batch = Batch::default();
        batch.push(&[1, 2, 3], support::slice(0, 0, 3, 3), 1);
        let mut recorder = Recorder::new(|_: &str| true);
        executor.forward(&batch, &mut recorder).expect("the batch runs");
        recorder.activations.into_iter().map(|activation| activation.name).collect::<Vec<String>>()
    };
    assert_eq!(names(&mut mixed(&fixture, 1)), names(&mut fixture.fused(Fused::exact())));
}
