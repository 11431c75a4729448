//! The standard executor against `transformers`, for every fixture.

use std::fs;

use crate::support::{Fixture, check_greedy, distance, feed, in_company, kl};
use braidinfer::model::{Description, ModelSource, Weights, describe};
use safetensors::SafeTensors;

/// Largest allowed difference of a logit in f32.
const TOLERANCE: f32 = 5e-4;
/// Largest allowed divergence where f32 rounding itself is amplified.
const EXTREME_KL: f64 = 1e-5;

/// Checks one row of logits against what is expected.
fn check(fixture: &Fixture, what: &str, actual: &[f32], expected: &[f32]) {
    if fixture.name == "qwen3-extreme" {
        let divergence = kl(expected, actual);
        assert!(divergence <= EXTREME_KL, "{} {what}: KL {divergence:e}", fixture.name);
    } else {
        let distance = distance(actual, expected);
        assert!(distance <= TOLERANCE, "{} {what}: logits differ by {distance:e}", fixture.name);
    }
}

fn check_chunked(chunk: usize) {
    for fixture in Fixture::all() {
        let mut executor = fixture.standard();
        for (prompt, expected) in fixture.prompts.iter().enumerate() {
            let rows = feed(&mut executor, prompt, &expected.ids, chunk);
            for (position, row, wanted) in fixture.beside_expected(prompt, &rows) {
                check(&fixture, &format!("prompt {prompt} position {position}"), row, wanted);
            }
        }
    }
}

#[test]
fn whole_prompts_equal_transformers() {
    check_chunked(usize::MAX >> 1);
}

#[test]
fn chunks_of_three_equal_transformers() {
    check_chunked(3);
}

#[test]
fn single_tokens_equal_transformers() {
    check_chunked(1);
}

#[test]
fn company_changes_nothing() {
    for fixture in Fixture::all() {
        in_company(&mut fixture.standard(), &fixture, |prompt, position, row| {
            let Some(expected) = fixture.expected(prompt, position) else { return };
            check(&fixture, &format!("prompt {prompt} position {position} in company"), row, expected);
        });
    }
}

#[test]
fn greedy_tokens_equal_transformers() {
    for fixture in Fixture::all() {
        check_greedy(&mut fixture.standard(), &fixture);
    }
}

/// xIELU's slope at zero and the end of its negative values are in files, but no model has others than these.
#[test]
fn other_constants_of_xielu_are_refused() {
    let Fixture { source, .. } = Fixture::open("apertus");
    let ModelSource::Directory(dir) = &source else { panic!("fixtures are directories") };
    let folder = tempfile::tempdir().expect("there is room");
    for (tensor, value) in [("beta", 0.25), ("eps", -1e-3), ("beta", 0.5)] {
        let tensor = format!("model.layers.1.mlp.act_fn.{tensor}");
        let mut bytes = fs::read(dir.join("model.safetensors")).expect("the fixture is whole");
        let (len, header) = SafeTensors::read_metadata(&bytes).expect("the fixture is whole");
        let (start, end) = header.info(&tensor).expect("it has the constant").data_offsets;
        let stored = half::bf16::from_f32(value).to_le_bytes();
        bytes[8 + len + start..8 + len + end].copy_from_slice(&stored);
        fs::copy(dir.join("config.json"), folder.path().join("config.json")).expect("it can be copied");
        fs::write(folder.path().join("model.safetensors"), bytes).expect("the copy can be written");
        let copy = ModelSource::open(folder.path()).expect("the copy is a model");
        let (Description { spec, names }, _) = describe(&copy).expect("the config is whole");
        let found = Weights::open(&copy, &spec, &names);
        if value == 0.5 {
            assert!(found.expect("nothing was changed").notes().is_empty());
            continue;
        }
        let message = found.expect_err("the constant is another").to_string();
        assert!(message.contains(&tensor) && message.contains("built in"), "{message}");
    }
}
