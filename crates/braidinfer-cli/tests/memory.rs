//! Models, contexts and prompts that are larger than the memory: an error with both figures, and never a killed process.
#![cfg(target_os = "linux")]

mod support;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::{Value, json};
use support::{Broken, stderr, stdout};

/// The binary with `args` in a process that may have this many megabytes of addresses.
fn within(megabytes: usize, args: &[&str]) -> Output {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("ulimit -v {}; exec \"$0\" \"$@\"", megabytes * 1024));
    command.arg(env!("CARGO_BIN_EXE_braidinfer")).args(args).env("HF_HUB_OFFLINE", "1").env("RAYON_NUM_THREADS", "2");
    command.env("BRAIDINFER_CACHE", env!("CARGO_TARGET_TMPDIR")).output().expect("a shell starts")
}

/// `model` with an embedding of this many rows, which are a hole at the end of the file.
fn with_vocabulary(model: &str, rows: usize) -> Broken {
    let copy = Broken::copy_of(model).edit_json("config.json", |config| config["vocab_size"] = json!(rows));
    let path = copy.file("model.safetensors");
    let bytes = fs::read(&path).expect("the file can be read");
    let end = 8 + u64::from_le_bytes(*bytes.first_chunk().expect("the file has a header")) as usize;
    let header: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..end]).expect("the header is JSON");
    let (mut tensors, mut data, mut hole) = (serde_json::Map::new(), Vec::new(), None);
    for (name, mut tensor) in header {
        let offset = |index: usize| tensor["data_offsets"][index].as_u64().map(|offset| end + offset as usize);
        let Some((start, stop)) = offset(0).zip(offset(1)) else { continue };
        if name.ends_with("embed_tokens.weight") {
            hole = Some((name, tensor));
            continue;
        }
        tensor["data_offsets"] = json!([data.len(), data.len() + stop - start]);
        data.extend_from_slice(&bytes[start..stop]);
        tensors.insert(name, tensor);
    }
    let (name, mut embedding) = hole.expect("the model has an embedding");
    let width = embedding["shape"][1].as_u64().expect("it is a matrix") as usize;
    (embedding["dtype"], embedding["shape"]) = (json!("F32"), json!([rows, width]));
    embedding["data_offsets"] = json!([data.len(), data.len() + rows * width * 4]);
    tensors.insert(name, embedding);
    let header = Value::Object(tensors).to_string();
    let start = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    fs::write(&path, &start).expect("the file can be written");
    let file = File::options().write(true).open(&path).expect("the file can be opened");
    file.set_len((start.len() + rows * width * 4) as u64).expect("a hole takes no room");
    copy
}

fn check_refused(output: &Output, parts: &[&str]) {
    let said = format!("{}{}", stderr(output), stdout(output));
    assert!(matches!(output.status.code(), Some(1..=3)), "{:?}: {said}", output.status);
    for part in parts {
        assert!(said.contains(part), "`{part}` is missing in: {said}");
    }
    assert!(!said.contains("memory allocation") && !said.contains("panicked"), "{said}");
}

#[test]
fn a_model_larger_than_the_memory_is_refused_by_every_command() {
    let copy = with_vocabulary("llama-tied", 4 << 20);
    let model = copy.path().display().to_string();
    let text = ["--ids", "1,2,3"];
    let commands: [Vec<&str>; 10] = [
        [&["run", &model], &text[..]].concat(),
        vec!["serve", &model, "--port", "0"],
        vec!["bench", &model],
        vec!["validate", &model],
        vec!["compare", &model, &model],
        vec!["check", &model],
        [&["perplexity", &model, "--context", "64"], &text[..]].concat(),
        [&["run", &model, "--kernels", "standard"], &text[..]].concat(),
        [&["diff", &model, &model], &text[..]].concat(),
        [&["logits", &model], &text[..]].concat(),
    ];
    for command in &commands {
        let output = within(500, command);
        check_refused(&output, &[": weights ", "of memory, found ", "ulimit -v", "quantiz"]);
    }
}

#[test]
fn quantizing_into_a_file_needs_no_memory_for_the_whole_model() {
    let copy = with_vocabulary("llama-tied", 2 << 20);
    let (model, to) = (copy.path().display().to_string(), copy.file("small.gguf"));
    let to = to.to_str().expect("it is UTF-8").to_owned();
    let args = ["quantize", &model, &to, "--type", "q8_0", "--threads", "1"];
    let output = within(260, &args);
    assert!(output.status.success(), "{}", stderr(&output));
    fs::remove_file(&to).expect("the file was written");
    check_refused(&within(80, &args), &["quantizing into a file", "of memory, found ", "ulimit -v"]);
    assert!(!PathBuf::from(&to).exists());
}

#[test]
fn the_models_own_context_is_limited_to_the_memory_and_an_explicit_one_is_refused() {
    let copy = Broken::copy_of("llama-tied").edit_json("config.json", |config| {
        config["max_position_embeddings"] = json!(20_000_000);
    });
    let model = copy.path().display().to_string();
    let run = ["run", &model, "--ids", "1,2,3", "--max-tokens", "2"];
    let output = within(500, &run);
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    for part in [
        "the context is limited to ",
        "keys and values of all 20000000 tokens",
        "11.5 GB",
        "there is memory for ",
        " MB of",
    ] {
        assert!(said.contains(part), "`{part}` is missing in: {said}");
    }
    let asked = [&run[..], &["--context", "20000000"]].concat();
    check_refused(
        &within(500, &asked),
        &["5.8 GB for a sequence of 20000000 tokens", "of memory, found ", "--context"],
    );
}

#[test]
fn a_long_prompt_for_which_there_is_no_memory_is_an_error() {
    let copy = Broken::copy_of("llama-tied").edit_json("config.json", |config| {
        config["max_position_embeddings"] = json!(1 << 17);
    });
    let model = copy.path().display().to_string();
    let ids: Vec<String> = (0..6000).map(|id| (id % 250).to_string()).collect();
    let ids = ids.join(",");
    for kernels in ["auto", "standard"] {
        for megabytes in (90..400).step_by(30) {
            let args = ["run", &model, "--ids", &ids, "--max-tokens", "1", "--kernels", kernels, "--threads", "1"];
            let output = within(megabytes, &args);
            // It may load with a context that the prompt does not fit into.
            let too_long = stderr(&output).contains("the prompt has 6000 tokens");
            match output.status.success() {
                true => {}
                false if too_long => check_refused(&output, &["the context is limited to ", "there is memory for "]),
                false => check_refused(&output, &["of memory, found "]),
            }
        }
    }
}

/// Control groups can be made by the superuser only, on some machines.
#[test]
#[allow(clippy::print_stderr, reason = "a skipped test says so")]
fn the_limit_of_a_control_group_counts() {
    let parent = PathBuf::from("/sys/fs/cgroup/memory");
    let group = parent.join(format!("braidinfer-test-{}", std::process::id()));
    if fs::create_dir(&group).is_err() || fs::write(group.join("memory.limit_in_bytes"), "209715200").is_err() {
        eprintln!("skipped: no control group with a limit of memory can be made here");
        let _ = fs::remove_dir(&group);
        return;
    }
    let copy = with_vocabulary("llama-tied", 4 << 20);
    let model = copy.path().display().to_string();
    let script = format!("echo $$ > {}/cgroup.procs; exec \"$0\" \"$@\"", group.display());
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_braidinfer"), "run", &model, "--ids", "1,2,3"]);
    let output = command.env("HF_HUB_OFFLINE", "1").output().expect("a shell starts");
    fs::remove_dir(&group).expect("nobody is in it any more");
    check_refused(&output, &[": weights 1.1 GB", "within the limit of the control group"]);
}
