//! Fused kernels with standard ones in some layers.

mod support;

use std::collections::BTreeSet;

use braidinfer::executor::{ActiveKernels, Executor, MixedExecutor};
use braidinfer::model::{Description, Weights};
use support::{Fixture, Fused, check_greedy, distance, feed};

/// Largest allowed difference of a logit from `transformers`.
const TOLERANCE: f32 = 1e-3;

const WHOLE: usize = usize::MAX >> 1;

/// A fixture with standard kernels in every other layer, the first or the second one first.
fn mixed(fixture: &Fixture, first: usize) -> MixedExecutor {
    let Description { spec, names } = fixture.description();
    let weights = Weights::open(&fixture.source, &spec, &names).expect("the weights are there");
    let layers: BTreeSet<usize> = (first..spec.layers.len()).step_by(2).collect();
    let fused = fixture.fused_over(Fused::exact(), spec, &weights);
    MixedExecutor::load(fused, &weights, layers).expect("both kinds of kernels load")
}

#[test]
fn any_layer_may_be_standard() {
    for fixture in Fixture::all().iter().filter(|fixture| fixture.name != "qwen3-extreme") {
        for first in [0, 1] {
            let mut executor = mixed(fixture, first);
            assert_eq!(executor.report().kernels, ActiveKernels::Mixed);
            for chunk in [WHOLE, 3, 1] {
                for (prompt, expected) in fixture.prompts.iter().enumerate() {
                    let rows = feed(&mut executor, prompt, &expected.ids, chunk);
                    for (position, row) in rows.iter().enumerate() {
                        let distance = distance(fixture.expected(prompt, position), row);
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
    for fixture in Fixture::all() {
        check_greedy(&mut mixed(&fixture, 1), &fixture);
    }
}
