//! The standard executor against `transformers`, for every fixture.

mod support;

use braidinfer::executor::{Batch, Executor, NoProbe};
use support::{Fixture, argmax, distance, feed, kl, slice};

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
        let mut executor = fixture.executor();
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
        let mut executor = fixture.executor();
        let longest = fixture.prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0);
        // Chunks of different sizes, so that sequences meet at every phase of each other.
        let chunk = |prompt: usize| [1, 5, 7, 4][prompt];
        let mut done = [0; 4];
        for _ in 0..longest {
            let mut batch = Batch::default();
            let mut rows = Vec::new();
            for (prompt, expected) in fixture.prompts.iter().enumerate() {
                let start = done[prompt];
                let tokens = &expected.ids[start..expected.ids.len().min(start + chunk(prompt))];
                if tokens.is_empty() {
                    continue;
                }
                done[prompt] += tokens.len();
                batch.push(tokens, slice(prompt, start, tokens.len(), expected.ids.len()), tokens.len());
                rows.extend((start..done[prompt]).map(|position| (prompt, position)));
            }
            if rows.is_empty() {
                break;
            }
            let logits = executor.forward(&batch, &mut NoProbe).expect("the batch runs");
            for (row, (prompt, position)) in rows.into_iter().enumerate() {
                let what = format!("prompt {prompt} position {position} in company");
                check(&fixture, &what, logits.row(row), fixture.expected(prompt, position));
            }
        }
    }
}

#[test]
fn greedy_tokens_equal_transformers() {
    for fixture in Fixture::all() {
        let mut executor = fixture.executor();
        for (prompt, expected) in fixture.prompts.iter().enumerate() {
            let rows = feed(&mut executor, prompt, &expected.ids, 16);
            let mut tokens = vec![argmax(&rows[rows.len() - 1])];
            while tokens.len() < expected.greedy.len() {
                let position = expected.ids.len() + tokens.len() - 1;
                let mut batch = Batch::default();
                batch.push(&tokens[tokens.len() - 1..], slice(prompt, position, 1, position + 1), 1);
                tokens.push(argmax(executor.forward(&batch, &mut NoProbe).expect("the batch runs").row(0)));
            }
            assert_eq!(tokens, expected.greedy, "{} prompt {prompt}", fixture.name);
        }
    }
}
