//! `braidinfer bench` as a user meets it. Nothing here depends on how fast anything is.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{braidinfer, model, output, refuse, stderr, stdout, succeed};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A small measurement, with `more` arguments.
fn bench(more: &[&str]) -> Vec<String> {
    let dir = model("llama-f32").display().to_string();
    let small = ["bench", &dir, "--prompt-tokens", "16", "--gen-tokens", "4", "--repetitions", "2"];
    small.iter().chain(more).map(|argument| (*argument).to_owned()).collect()
}

fn report(more: &[&str]) -> Value {
    let more: Vec<&str> = more.iter().copied().chain(["--json"]).collect();
    serde_json::from_str(&succeed(bench(&more))).expect("stdout is JSON")
}

fn positive(value: &Value) -> bool {
    value.as_f64().is_some_and(|value| value > 0.0 && value.is_finite())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

/// A saved report with every rate multiplied.
fn doctored(folder: &Path, report: &Value, name: &str, factor: f64) -> PathBuf {
    let mut report = report.clone();
    for row in report["results"].as_array_mut().expect("results are a list") {
        for field in ["median", "min", "max"] {
            row["tok_s"][field] = json!(row["tok_s"][field].as_f64().expect("a rate") * factor);
        }
    }
    let path = folder.join(name);
    fs::write(&path, report.to_string()).expect("the file can be written");
    path
}

#[test]
fn the_report_has_every_field() {
    let report = report(&["--batch", "1,2", "--depth", "0,20", "--kernels", "standard,fused"]);
    for field in ["cpu", "isa", "threads", "os"] {
        assert!(report["machine"].get(field).is_some(), "machine.{field} is missing in {report}");
    }
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["weights"], "f32");
    assert!(report["model"].as_str().is_some_and(|model| model.ends_with("llama-f32")));
    assert_eq!(report["options"]["batch"], json!([1, 2]));
    assert_eq!(report["options"]["kernels"], json!(["standard", "fused"]));
    for field in ["read_gb_s", "int8_gop_s", "bf16_gflop_s", "f32_gflop_s"] {
        assert!(positive(&report["ceilings"][field]), "ceilings.{field} in {report}");
    }
    let pattern = report["ceilings"]["read_pattern"].as_str().expect("how the ceiling was read");
    assert!(pattern.contains("per thread"), "{pattern}");
    let executors = list(&report["executors"]);
    assert_eq!(executors.len(), 2);
    for (executor, kernels) in executors.iter().zip(["standard", "fused"]) {
        assert_eq!(executor["kernels"], kernels);
        for field in ["load_ms", "time_to_first_token_ms", "weight_bytes"] {
            assert!(positive(&executor[field]), "{field} in {executor}");
        }
        assert_eq!(executor["pack_ms"].is_null(), kernels == "standard");
        assert_eq!(list(&executor["levels"]).is_empty(), kernels == "standard");
        assert!(executor.get("peak_memory_bytes").is_some() && executor["isa"].is_string(), "{executor}");
    }
    check_results(list(&report["results"]));
}

fn check_results(results: &[Value]) {
    let key = |row: &Value| {
        let number = |field: &str| row[field].as_u64().expect("a number");
        (row["phase"].clone(), number("context"), number("batch"), number("tokens"), row["kernels"].clone())
    };
    let keys: Vec<_> = results.iter().map(key).collect();
    let mut expected = Vec::new();
    let cases =
        [("prefill", 0, 1, 16), ("decode", 0, 1, 4), ("decode", 0, 2, 4), ("decode", 20, 1, 4), ("decode", 20, 2, 4)];
    for (phase, context, batch, tokens) in cases {
        expected.extend(["standard", "fused"].map(|kernels| (json!(phase), context, batch, tokens, json!(kernels))));
    }
    assert_eq!(keys, expected);
    for row in results {
        let rate = |field: &str| row["tok_s"][field].as_f64().expect("a rate");
        assert!(0.0 < rate("min") && rate("min") <= rate("median") && rate("median") <= rate("max"), "{row}");
        assert!(
            positive(&row["gb_s"]) && positive(&row["bytes_per_token"]) && positive(&row["share_of_ceiling"]),
            "{row}"
        );
    }
}

/// Decoding beside how fast a GPU copies its memory, and standard kernels beside the ceilings of the CPU, where they run.
#[test]
fn a_gpu_has_a_ceiling_of_its_own() {
    let devices: Value = serde_json::from_str(&succeed(["devices", "--json"])).expect("stdout is JSON");
    if list(&devices).len() == 1 {
        assert!(std::env::var_os("BRAIDINFER_TEST_GPU").is_none(), "a GPU was promised");
        return;
    }
    let report = report(&["--device", "gpu", "--batch", "1", "--kernels", "standard,fused"]);
    assert!(report["ceilings"].is_object(), "{report}");
    for executor in list(&report["executors"]) {
        let on_gpu = executor["kernels"] == "fused";
        let of_gpu = [&executor["copy_gb_s"], &executor["gpu_memory_bytes"]].map(positive);
        assert_eq!((executor["device"].is_string(), of_gpu), (on_gpu, [on_gpu; 2]), "{executor}");
    }
    for row in list(&report["results"]) {
        let ceiling = match (row["kernels"].as_str(), row["phase"].as_str()) {
            (Some("fused"), Some("decode")) => json!("copy"),
            (Some("fused"), _) => Value::Null,
            (_, Some("decode")) => json!("read"),
            _ => json!("multiply"),
        };
        assert_eq!(row["ceiling"], ceiling, "{row}");
    }
}

#[test]
fn a_table_shows_the_ratio_where_both_kernels_ran() {
    let text = succeed(bench(&["--batch", "2"]));
    for part in ["ceilings of the CPU: read ", "prefill", "decode", "fused/standard", "first token", "peak memory"] {
        assert!(text.contains(part), "`{part}` is missing in\n{text}");
    }
    let text = succeed(bench(&["--batch", "2", "--kernels", "fused"]));
    assert!(!text.contains("fused/standard") && !text.contains("candle"), "{text}");
}

#[test]
fn a_record_says_what_was_measured_and_on_what() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let file = folder.path().join("record.md");
    let file_name = file.display().to_string();
    let printed = report(&["--kernels", "fused", "--kv-dtype", "q8_0", "--export", &file_name]);
    assert_eq!(printed["options"]["kv_dtype"], "q8_0");
    let notes = list(&printed["notes"]);
    assert!(notes.iter().any(|note| note.as_str().is_some_and(|note| note.contains("not forced, "))), "{printed}");
    assert!(positive(&printed["memory_bytes"]) || cfg!(not(target_os = "linux")), "{printed}");
    let record = fs::read_to_string(&file).expect("the record was written");
    for part in [
        "| processor |",
        "| memory |",
        "| ceilings | read ",
        "--kernels fused --prompt-tokens 16",
        "--kv-dtype q8_0",
        "| decode |",
        "not forced, ",
    ] {
        assert!(record.contains(part), "`{part}` is missing in\n{record}");
    }
    let both = bench(&["--kernels", "fused", "--save", &file_name, "--export", &file_name]);
    refuse(both, &["--export: expected another file than that of --save"]);
    let beside = report(&["--kernels", "standard,fused", "--kv-dtype", "q8_0"]);
    let types: Vec<&Value> = list(&beside["executors"]).iter().map(|executor| &executor["kv_dtypes"]).collect();
    assert_eq!(types, [&json!(["f32"]), &json!(["q8_0"])]);
    let wrong = output(bench(&["--kernels", "fused", "--export", "record.docx"]));
    assert_eq!(wrong.status.code(), Some(3));
}

#[test]
fn a_saved_report_is_a_baseline() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let file = folder.path().join("bench.json");
    let file_name = file.display().to_string();
    let printed = report(&["--kernels", "standard", "--save", &file_name]);
    let saved: Value = serde_json::from_slice(&fs::read(&file).expect("the file exists")).expect("the file is JSON");
    assert_eq!(saved, printed);

    // Whatever the machine was doing, nothing is a thousand times slower than a thousandth of itself.
    let slow = doctored(folder.path(), &saved, "slow.json", 1e-3).display().to_string();
    let export = folder.path().join("compared.json");
    let export_name = export.display().to_string();
    let compared = report(&["--kernels", "standard", "--baseline", &slow, "--export", &export_name]);
    let exported: Value = serde_json::from_slice(&fs::read(&export).expect("it was written")).expect("it is JSON");
    assert_eq!(exported, compared);
    let rows = list(&compared["baseline"]["rows"]);
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|row| row["verdict"] == "faster" && positive(&row["ratio"])), "{compared}");

    let fast = doctored(folder.path(), &saved, "fast.json", 1e3).display().to_string();
    let export = folder.path().join("compared.md");
    let export_name = export.display().to_string();
    let output =
        output(bench(&["--kernels", "standard", "--baseline", &fast, "--save", &fast, "--export", &export_name]));
    let exported = fs::read_to_string(&export).expect("it was written");
    assert_eq!(exported.matches("| regression |").count(), 3, "{exported}");
    assert!(exported.contains(&format!("Compared with {fast}")), "{exported}");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!(stdout(&output).matches("regression").count(), 3, "{}", stdout(&output));
    let replaced: Value = serde_json::from_slice(&fs::read(&fast).expect("it exists")).expect("it is JSON");
    assert_ne!(replaced, saved, "the baseline is read before it is replaced");
    assert_eq!(fs::read_dir(folder.path()).expect("the folder can be listed").count(), 5, "nothing else stays");
}

#[test]
fn what_makes_a_baseline_unequal_is_said() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let file = folder.path().join("bench.json").display().to_string();
    let mut saved = report(&["--kernels", "standard", "--batch", "1,2"]);
    saved["model"] = json!("another");
    saved["machine"]["threads"] = json!(77);
    fs::write(&file, saved.to_string()).expect("the file can be written");
    let output = output(bench(&["--kernels", "standard", "--batch", "1", "--baseline", &file]));
    let notes = stderr(&output);
    for part in ["note: model: ", "another in ", "note: machine: ", "77 threads", "1 of the 3 results in "] {
        assert!(notes.contains(part), "`{part}` is missing in {notes}");
    }
}

#[test]
fn numbers_outside_their_range() {
    for (flag, value, message) in [
        ("--batch", "0", "batch: expected from 1 to 1024, found 0"),
        ("--batch", "1,8,1", "batch: expected each value once, found 1 twice"),
        ("--prompt-tokens", "0", "prompt-tokens: expected from 1 to 1048576, found 0"),
        ("--gen-tokens", "0", "gen-tokens: expected from 1 to 1048576, found 0"),
        ("--repetitions", "0", "repetitions: expected from 1 to 10000, found 0"),
        ("--depth", "99999999", "depth: expected from 0 to 1048576, found 99999999"),
        ("--kernels", "fused,fused", "kernels: expected each value once, found fused twice"),
        ("--context", "10", "context: expected at least the 16 tokens of --prompt-tokens, found 10"),
        ("--threads", "0", "threads: expected from 1 to 512, found 0"),
        (
            "--device",
            "gpu:x",
            "device: expected cpu, auto, gpu, gpu:N, a GPU's name, several GPUs such as gpu:0+gpu:1, cuda, cuda:N or metal, found `gpu:x`",
        ),
    ] {
        let dir = model("llama-f32").display().to_string();
        let defaults = [("--prompt-tokens", "16"), ("--gen-tokens", "4")];
        let others = defaults.into_iter().filter(|(other, _)| *other != flag).flat_map(|(flag, value)| [flag, value]);
        refuse(["bench", &dir, flag, value].into_iter().chain(others), &[message]);
    }
    let deep = "context: expected at least the 24 tokens of --depth and --gen-tokens, found 20";
    refuse(bench(&["--depth", "20", "--context", "20"]), &[deep]);
    for (flag, value) in [("--kernels", "magic"), ("--batch", "two"), ("--repetitions", "-1")] {
        let output = braidinfer(["bench", flag, value]).output().expect("the binary starts");
        assert_eq!(output.status.code(), Some(3), "{flag} {value}");
        assert!(stderr(&output).starts_with("error: ") && stderr(&output).contains(flag), "{}", stderr(&output));
    }
}

#[test]
fn files_that_cannot_be_compared_with_or_written() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let with = |text: &str| {
        fs::write(path("bad.json"), text).expect("the file can be written");
        bench(&["--baseline", &path("bad.json")])
    };
    let expected = "bad.json: expected a file of `braidinfer bench --save`, found: ";
    refuse(with("no JSON"), &[expected, "line 1"]);
    refuse(with("{}"), &[expected, "missing field `machine`"]);
    refuse(with("[1, 2]"), &[expected]);
    refuse(bench(&["--baseline", &path("none.json")]), &["none.json: No such file"]);
    refuse(bench(&["--baseline", &path("")]), &["expected a file of `braidinfer bench --save`, at most"]);
    refuse(bench(&["--save", &path("no/such/folder.json")]), &["no/such/folder.json: No such file"]);
    refuse(bench(&["--save", &path("")]), &["expected a plain file or nothing there, found something else"]);

    let saved = report(&["--kernels", "standard", "--batch", "1"]);
    let elsewhere =
        with(&saved.to_string()).into_iter().chain(["--prompt-tokens=17", "--gen-tokens=5"].map(str::to_owned));
    let elsewhere: Vec<String> = elsewhere
        .filter(|argument| !["--prompt-tokens", "16", "--gen-tokens", "4"].contains(&argument.as_str()))
        .collect();
    refuse(elsewhere, &["expected a result with the same kernels, batch, depth and tokens as now, found none"]);
    let zero = doctored(folder.path(), &saved, "zero.json", 0.0).display().to_string();
    refuse(bench(&["--baseline", &zero]), &["zero.json: field `results[0].tok_s`: expected 0 < min"]);
}
