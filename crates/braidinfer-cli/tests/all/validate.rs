//! `braidinfer validate`: what is wrong with a model is a finding.

use std::fs;
use std::path::Path;

use crate::support::{Broken, braidinfer, model, refuse, stderr, stdout};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Exit code and report.
fn validate(path: &Path) -> (Option<i32>, Value) {
    let output = braidinfer(["validate", &path.display().to_string(), "--json"]).output().expect("the binary starts");
    let report = serde_json::from_str(&stdout(&output)).unwrap_or_else(|error| panic!("{error}: {}", stderr(&output)));
    (output.status.code(), report)
}

/// What was found about something, and how it turned out.
fn finding<'a>(report: &'a Value, what: &str) -> (&'a str, &'a str) {
    let findings = report["findings"].as_array().expect("there are findings");
    let found = findings.iter().find(|finding| finding["what"] == what);
    let found = found.unwrap_or_else(|| panic!("nothing about {what} in {findings:?}"));
    let text = |field: &str| found[field].as_str().expect("findings are text");
    assert_eq!(found["outcome"] == "PASS", found["fix"].is_null(), "{what}: what does not pass has a fix");
    (text("outcome"), text("found"))
}

/// A copy of the demo model.
fn demo() -> Broken {
    let broken = Broken::copy_of("llama");
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo-model");
    for file in
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    {
        fs::copy(files.join(file), broken.file(file)).expect("the file can be copied");
    }
    broken
}

#[test]
fn a_model_with_everything_is_only_warned_of_its_narrow_training() {
    let (code, report) = validate(demo().path());
    assert_eq!((code, report["outcome"].as_str()), (Some(1), Some("WARN")), "{report}");
    let findings = report["findings"].as_array().expect("there are findings");
    let warned: Vec<&Value> = findings
        .iter()
        .filter(|finding| finding["outcome"] != "PASS" && finding["area"] != "machine" && finding["what"] != "speed")
        .map(|finding| &finding["what"])
        .collect();
    assert_eq!(warned, ["loss on plain text"]);
    assert_eq!(report["samples"].as_array().map(Vec::len), Some(3));
    assert_eq!(report["compat"]["status"], "COMPATIBLE");
    assert!(report["speeds"]["fused"]["decode_tok_s"].as_f64().is_some_and(|rate| rate > 0.0));
}

#[test]
fn weights_that_are_not_finite_fail_with_their_name() {
    let broken = Broken::copy_of("llama-f32").edit("model.safetensors", |bytes| {
        let last = bytes.len() - 4;
        bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let (code, report) = validate(broken.path());
    assert_eq!((code, report["outcome"].as_str()), (Some(2), Some("FAIL")));
    let (outcome, found) = finding(&report, "every weight is finite");
    assert!(outcome == "FAIL" && found.contains("found NaN"), "{found}");
    assert!(report["compat"].is_null(), "nothing is computed with such weights");
}

#[test]
fn a_tensor_that_is_missing_fails_with_its_name() {
    let broken = Broken::copy_of("qwen3").edit_header(|header| {
        let header = header.as_object_mut().expect("the header is an object");
        let info = header.remove("model.layers.1.self_attn.k_norm.weight").expect("the tensor is there");
        header.insert("model.layers.1.self_attn.other.weight".to_owned(), info);
    });
    let (code, report) = validate(broken.path());
    let (outcome, found) = finding(&report, "can be read");
    assert_eq!((code, outcome), (Some(2), "FAIL"));
    assert!(found.contains("k_norm"), "{found}");
}

#[test]
fn biases_that_the_config_does_not_call_for_are_warned_of() {
    let broken = Broken::copy_of("llama-bias").edit_json("config.json", |config| {
        config["attention_bias"] = json!(false);
        config["mlp_bias"] = json!(false);
    });
    let (code, report) = validate(broken.path());
    let (outcome, found) = finding(&report, "every tensor is used");
    assert_eq!((code, outcome), (Some(1), "WARN"));
    assert!(found.contains("bias"), "{found}");
}

#[test]
fn end_tokens_that_do_not_exist_fail() {
    let broken = demo().edit_json("generation_config.json", |config| config["eos_token_id"] = json!(99999));
    let (code, report) = validate(broken.path());
    let (outcome, found) = finding(&report, "tokens that end an answer");
    assert_eq!((code, outcome), (Some(2), "FAIL"), "{found}");
    assert!(found.contains("99999"), "{found}");
}

#[test]
fn a_tokenizer_of_a_larger_model_fails() {
    let broken = demo().edit_json("tokenizer.json", |tokenizer| {
        let added = tokenizer["added_tokens"].as_array_mut().expect("there are added tokens");
        let mut token = added[0].clone();
        (token["id"], token["content"]) = (json!(4000), json!("<|far|>"));
        added.push(token);
    });
    let (code, report) = validate(broken.path());
    let (outcome, found) = finding(&report, "vocabulary");
    assert_eq!((code, outcome), (Some(2), "FAIL"), "{found}");
}

#[test]
fn a_context_beyond_what_the_model_is_meant_for_is_warned_of() {
    let path = model("llama").display().to_string();
    let output = braidinfer(["validate", &path, "--context", "100000", "--json"]).output().expect("the binary starts");
    let report: Value = serde_json::from_str(&stdout(&output)).expect("stdout is JSON");
    assert_eq!(finding(&report, "positions").0, "WARN");
    let findings = report["findings"].as_array().expect("findings are a list");
    let positions = findings.iter().find(|finding| finding["what"] == "positions").expect("it is looked at");
    assert_eq!(
        positions["fix"], "ask for no longer --context than the model is meant for",
        "in flags, in JSON as well"
    );
}

#[test]
fn the_smallest_contexts_are_looked_at() {
    for context in ["1", "2", "8"] {
        let path = model("qwen3").display().to_string();
        let output =
            braidinfer(["validate", &path, "--context", context, "--json"]).output().expect("the binary starts");
        let report: Value = serde_json::from_str(&stdout(&output)).unwrap_or_else(|_| panic!("{}", stderr(&output)));
        assert_eq!(report["compat"]["status"], "COMPATIBLE", "{context}");
    }
}

#[test]
fn what_is_no_model_is_an_error() {
    refuse(["validate", "/no/such/model"], &["/no/such/model: expected a model directory"]);
    refuse(["validate", &model("llama").display().to_string(), "--export", "report.doc"], &["ends in .txt"]);
}

#[test]
fn the_report_is_written_whole() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let file = folder.path().join("report.html");
    let args = ["validate", &model("qwen3").display().to_string(), "--export", &file.display().to_string()];
    let output = braidinfer(args).output().expect("the binary starts");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let page = fs::read_to_string(file).expect("the report is there");
    for part in ["Answers on both kernels", "<svg", "PASS", "fused kernels beside f32", "f32 activations"] {
        assert!(page.contains(part), "{part}");
    }
}
