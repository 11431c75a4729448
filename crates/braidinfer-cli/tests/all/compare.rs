//! `braidinfer compare`: several models side by side.

use std::fs;

use crate::support::{Broken, braidinfer, model, refuse, stderr, stdout};
use serde_json::Value;
use tempfile::TempDir;

#[test]
fn models_stand_side_by_side() {
    let (first, second) = (model("qwen3").display().to_string(), model("qwen3-extreme").display().to_string());
    let output = braidinfer(["compare", &first, &second, "--json"]).output().expect("the binary starts");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let reports: Value = serde_json::from_str(&stdout(&output)).expect("stdout is JSON");
    let predicted: Vec<&Value> = (0..2).map(|index| &reports[index]["compat"]["predicted"]["status"]).collect();
    let measured: Vec<&Value> = (0..2).map(|index| &reports[index]["compat"]["status"]).collect();
    assert_eq!(predicted, ["COMPATIBLE", "INCOMPATIBLE"]);
    assert_eq!(measured, ["COMPATIBLE", "COMPATIBLE"]);

    let folder = TempDir::new().expect("a temporary folder can be made");
    let file = folder.path().join("report.md");
    let output = braidinfer(["compare", &first, &second, "--export", &file.display().to_string()]).output();
    let text = stdout(&output.expect("the binary starts"));
    let page = fs::read_to_string(file).expect("the report is there");
    for part in ["96.5", "Answering, tokens per second", "qwen3-extreme", "parameters"] {
        assert!(text.contains(part), "{part}: {text}");
        assert!(page.contains(part), "{part}: {page}");
    }
}

#[test]
fn the_worst_model_gives_the_exit_code() {
    let broken = Broken::copy_of("llama").edit_header(|header| {
        let header = header.as_object_mut().expect("the header is an object");
        let norm = header.remove("model.norm.weight").expect("the tensor is there");
        header.insert("model.other.weight".to_owned(), norm);
    });
    let args = ["compare", &model("llama").display().to_string(), &broken.path().display().to_string()];
    let output = braidinfer(args).output().expect("the binary starts");
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stdout(&output).contains("FAIL"));
    refuse(["compare", &model("llama").display().to_string(), "/no/such/model"], &["/no/such/model"]);
}
