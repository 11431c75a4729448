//! The standard executor against `transformers`, for every fixture.

mod support;

use support::{Fixture, check_greedy, distance, feed, in_company, kl};

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
            for (position, row) in rows.iter().enumerate() {
                check(
                    &fixture,
                    &format!("prompt {prompt} position {position}"),
                    row,
                    fixture.expected(prompt, position),
                );
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
            let what = format!("prompt {prompt} position {position} in company");
            check(&fixture, &what, row, fixture.expected(prompt, position));
        });
    }
}

#[test]
fn greedy_tokens_equal_transformers() {
    for fixture in Fixture::all() {
        check_greedy(&mut fixture.standard(), &fixture);
    }
}
