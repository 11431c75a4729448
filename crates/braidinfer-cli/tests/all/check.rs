//! `braidinfer check`, and what loading does with its verdicts.

use std::fs;
use std::path::Path;
use std::process::Output;

use crate::support::{braidinfer, model, refuse, stderr, stdout};
use serde_json::Value;
use tempfile::TempDir;

/// A run that keeps its verdicts in a folder of its own.
fn with_cache(cache: &Path, args: &[&str]) -> Output {
    braidinfer(args).env("BRAIDINFER_CACHE", cache).output().expect("the binary starts")
}

fn path(name: &str) -> String {
    model(name).display().to_string()
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&stdout(output)).expect("stdout is JSON")
}

fn temporary() -> TempDir {
    TempDir::new().expect("a temporary folder can be made")
}

#[test]
fn the_verdict_is_json_and_an_exit_code() {
    let cache = temporary();
    let healthy = with_cache(cache.path(), &["check", &path("llama"), "--json"]);
    let report = json(&healthy);
    assert_eq!((healthy.status.code(), report["status"].as_str()), (Some(0), Some("COMPATIBLE")));
    for field in ["score", "reason", "predicted", "measured", "layers", "plan", "recommendations"] {
        assert!(!report[field].is_null(), "{field}");
    }
    let weights_only = with_cache(cache.path(), &["check", &path("qwen3-extreme"), "--static", "--json"]);
    let report = json(&weights_only);
    assert_eq!((weights_only.status.code(), report["status"].as_str()), (Some(2), Some("INCOMPATIBLE")));
    assert!(report["measured"].is_null() && report["plan"].as_array().is_some_and(Vec::is_empty));
}

#[test]
fn reports_are_written_in_every_format() {
    let folder = temporary();
    for (extension, part) in [("txt", "COMPATIBLE"), ("md", "|---|"), ("html", "<svg"), ("json", "\"score\"")] {
        let file = folder.path().join(format!("report.{extension}"));
        let name = file.display().to_string();
        let output = with_cache(folder.path(), &["check", &path("qwen3"), "--full", "--export", &name]);
        assert!(output.status.success(), "{}", stderr(&output));
        let text = fs::read_to_string(&file).expect("the report is there");
        assert!(text.contains(part), "{extension}: {text}");
        assert!(text.contains("qwen3"), "{extension} names the model");
    }
    let page = fs::read_to_string(folder.path().join("report.html")).expect("the report is there");
    for outside in ["http://", "https://", "<script", "@import"] {
        // The one address is the name of the SVG format.
        assert!(!page.replace("http://www.w3.org/2000/svg", "").contains(outside), "{outside}");
    }
}

#[test]
fn exports_that_cannot_be_written_fail_before_anything_is_measured() {
    let folder = temporary();
    let cases = [
        ("report.pdf", "ends in .txt, .md, .html or .json"),
        ("report", "ends in .txt, .md, .html or .json"),
        ("missing/report.md", "missing/report.md"),
    ];
    for (name, part) in cases {
        let name = folder.path().join(name).display().to_string();
        let output = with_cache(folder.path(), &["check", &path("llama"), "--export", &name]);
        assert_eq!(output.status.code(), Some(3), "{name}");
        let error = stderr(&output);
        assert!(error.lines().count() == 1 && error.contains(part), "{name}: {error}");
        assert!(stdout(&output).is_empty(), "{name}");
    }
    let dir = folder.path().join("folder.md");
    fs::create_dir(&dir).expect("a folder can be made");
    let output = with_cache(folder.path(), &["check", &path("llama"), "--export", &dir.display().to_string()]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("expected a file"), "{}", stderr(&output));
}

fn run(cache: &Path, name: &str, more: &[&str]) -> Output {
    let model = path(name);
    let args = ["run", &model, "--ids", "1,2,3", "-n", "4", "--temperature", "0", "--json"];
    with_cache(cache, &args.iter().chain(more).copied().collect::<Vec<_>>())
}

#[test]
fn auto_measures_once_and_says_what_it_decided() {
    let cache = temporary();
    let first = run(cache.path(), "qwen3", &[]);
    assert!(stderr(&first).contains("fused kernels: COMPATIBLE (measured now at "), "{}", stderr(&first));
    assert_eq!(json(&first)["kernels"], "fused");
    let second = run(cache.path(), "qwen3", &[]);
    assert!(stderr(&second).contains("(measured earlier)"), "{}", stderr(&second));
    assert_eq!(json(&first)["ids"], json(&second)["ids"]);
    // Another model, or another level, is another verdict.
    assert!(stderr(&run(cache.path(), "qwen3-bias", &[])).contains("(measured now at "));
    assert!(stderr(&run(cache.path(), "qwen3", &["--dtype", "f32"])).contains("(measured now at "));
    assert!(stderr(&run(cache.path(), "qwen3", &["--precision", "exact"])).contains("(measured now at "));
}

#[test]
fn a_verdict_that_is_not_whole_is_measured_again() {
    let cache = temporary();
    run(cache.path(), "qwen3-extreme", &[]);
    let verdicts = cache.path().join("verdicts");
    let file =
        fs::read_dir(&verdicts).expect("verdicts are kept").next().expect("one is").expect("it is listed").path();
    let whole = fs::read_to_string(&file).expect("it can be read");
    let cases = [
        ("cut short", whole[..whole.len() / 2].to_owned()),
        ("empty", String::new()),
        ("of another format", whole.replacen("\"format\":", "\"format\":9", 1)),
        ("altered", whole.replacen("f32", "f16", 1)),
    ];
    for (what, text) in cases {
        assert_ne!(text, whole, "{what}");
        fs::write(&file, text).expect("it can be written");
        let again = run(cache.path(), "qwen3-extreme", &[]);
        assert!(stderr(&again).contains("(measured now at "), "{what}: {}", stderr(&again));
        let mended = run(cache.path(), "qwen3-extreme", &[]);
        assert!(stderr(&mended).contains("(measured earlier)"), "{what}: {}", stderr(&mended));
    }
}

#[test]
fn without_room_for_verdicts_it_still_runs_and_says_so() {
    let folder = temporary();
    let file = folder.path().join("file");
    fs::write(&file, "").expect("a file can be made");
    let output = run(&file, "qwen3", &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("the verdict could not be kept"), "{}", stderr(&output));
}

#[test]
fn force_belongs_to_fused_kernels() {
    let cache = temporary();
    let forced = run(cache.path(), "qwen3-extreme", &["--kernels", "fused", "--force"]);
    assert!(forced.status.success() && stderr(&forced).contains("as forced: no check was made"), "{}", stderr(&forced));
    assert!(stderr(&forced).contains("no verdict of one is kept"), "{}", stderr(&forced));
    assert!(!cache.path().join("verdicts").exists(), "nothing was measured");
    assert!(run(cache.path(), "qwen3-extreme", &[]).status.success());
    let again = run(cache.path(), "qwen3-extreme", &["--kernels", "fused", "--force"]);
    let kept = "not forced, fused kernels: COMPATIBLE (measured earlier)";
    assert!(stderr(&again).contains(kept), "{}", stderr(&again));
    let alone = run(cache.path(), "qwen3-extreme", &["--force"]);
    assert_eq!(alone.status.code(), Some(3));
    assert!(stderr(&alone).contains("--force: expected --kernels fused"), "{}", stderr(&alone));
}

/// What cannot be run is not called fine.
#[test]
fn check_run_and_force_agree_about_types_of_keys_and_values() {
    let (cache, name) = (temporary(), path("llama"));
    let asked = |command: &str, more: &[&str]| {
        let mut args = vec![command, &name, "--kv-dtype", "q4_0"];
        args.extend(more);
        with_cache(cache.path(), &args)
    };
    let refused = asked("run", &["--ids", "1,2", "-n", "1"]);
    assert_eq!(refused.status.code(), Some(3), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("keys and values in q4_0 do not serve"), "{}", stderr(&refused));
    let forced = asked("run", &["--ids", "1,2", "-n", "1", "--kernels", "fused", "--force"]);
    assert!(stderr(&forced).contains("not forced, keys and values in q4_0 would be refused"), "{}", stderr(&forced));
    let checked = stdout(&asked("check", &[]));
    assert!(checked.contains("--kv-dtype f16") && !checked.contains("Nothing"), "{checked}");
    let predicted = asked("check", &["--static"]);
    assert!(stderr(&predicted).contains("says nothing about keys and values in q4_0"), "{}", stderr(&predicted));
    let validated = asked("validate", &[]);
    assert!(!stderr(&validated).contains("standard kernels of this"), "{}", stderr(&validated));
}

#[test]
fn precision_is_for_fused_kernels_that_are_checked() {
    let model = model("qwen3").display().to_string();
    let asked = |more: &[&str]| {
        let mut args = vec!["run", &model, "--ids", "1,2", "-n", "1"];
        args.extend(more);
        args.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    refuse(asked(&["--precision", "fast", "--kernels", "standard"]), &["--precision", "standard"]);
    refuse(asked(&["--precision", "exact", "--kernels", "fused", "--force"]), &["--force", "exact"]);
    let misspelt = braidinfer(asked(&["--precision", "exakt"])).output().expect("the binary starts");
    assert_eq!(misspelt.status.code(), Some(3));
    assert!(stderr(&misspelt).contains("auto, exact, fast"), "{}", stderr(&misspelt));
}

#[test]
fn the_fastest_level_says_what_it_changes() {
    let model = model("qwen3-extreme").display().to_string();
    let output = braidinfer(["check", &model, "--precision", "fast", "--json"]).output().expect("the binary starts");
    let report: Value = serde_json::from_str(&stdout(&output)).expect("the report is JSON");
    let reason = report["reason"].as_str().expect("there is a reason");
    for part in ["bf16 activations", "the likeliest token changes at", "asks for f32's answers"] {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    assert_ne!((output.status.code(), report["status"].as_str()), (Some(0), Some("COMPATIBLE")));
    assert!(!reason.contains("the same"), "{reason}");
}
