//! `braidinfer diff`: two models, or one in two ways.

mod support;

use serde_json::Value;
use support::{braidinfer, fixtures, model, refuse, stderr, stdout, succeed};

fn diff(a: &str, b: &str, more: &[&str]) -> (Option<i32>, Value) {
    let output = braidinfer(["diff", a, b, "--json"].iter().chain(more)).output().expect("the binary starts");
    let report = serde_json::from_str(&stdout(&output)).unwrap_or_else(|error| panic!("{error}: {}", stderr(&output)));
    (output.status.code(), report)
}

fn path(name: &str) -> String {
    model(name).display().to_string()
}

#[test]
fn a_model_does_not_differ_from_itself() {
    let standard = format!("{},kernels=standard", path("qwen3"));
    let (code, report) = diff(&standard, &standard, &[]);
    assert_eq!((code, report["kl_mean"].as_f64()), (Some(0), Some(0.0)));
    assert_eq!(report["prompts"][0]["a"], report["prompts"][0]["b"]);
    // A GGUF file of the same weights, too.
    let file = fixtures().join("gguf/models/llama.gguf").display().to_string();
    let kernels = |model: &str| format!("{model},kernels=standard");
    let (code, report) = diff(&kernels(&path("llama")), &kernels(&file), &["--ids", "1,2,3", "--ids", "7"]);
    assert_eq!((code, report["prompts"].as_array().map(Vec::len)), (Some(0), Some(2)));
    assert!(report["kl_mean"].as_f64().is_some_and(|kl| kl < 1e-9), "{}", report["kl_mean"]);
}

#[test]
fn what_is_rounded_shows() {
    let sides = ["kernels=standard", "kernels=fused,dtype=f32", "kernels=fused"]
        .map(|how| format!("{},{how}", path("qwen3-extreme")));
    let kl =
        |b: usize| diff(&sides[0], &sides[b], &["--ids", "1,2,3,4,5,6"]).1["kl_mean"].as_f64().expect("it is a number");
    let (exact, rounded) = (kl(1), kl(2));
    assert!(exact < 1e-6 && 1000.0 * exact < rounded, "{exact:e} {rounded:e}");
    let quantized = format!("{},quantize=q4_0", path("llama"));
    let (_, report) = diff(&path("llama"), &quantized, &["-n", "4"]);
    assert!(report["kl_mean"].as_f64().is_some_and(|kl| kl > 1e-4), "{}", report["kl_mean"]);
    assert_eq!(
        report["prompts"][0]["divergence"]["positions"], 7,
        "4 tokens of the prompt and 4 of the answer, but the last"
    );
}

#[test]
fn people_see_both_answers() {
    let text = succeed(["diff", &path("qwen3"), &path("qwen3")]);
    for part in ["SAME", "first other token", "Answers"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn sides_that_cannot_be_compared_are_refused() {
    let llama = path("llama");
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/demo-model");
    refuse(["diff", &llama, demo, "--ids", "1,2"], &["vocabulary of the second model: expected that of the first"]);
    refuse(["diff", &llama, &format!("{llama},speed=fast")], &["expected kernels=, dtype= or quantize=", "speed=fast"]);
    refuse(["diff", &llama, &format!("{llama},kernels=best")], &["best"]);
    refuse(["diff", &llama, "/no/such/model"], &["/no/such/model"]);
}
