//! Models, contexts and prompts that are larger than the memory: an error with both figures, and never a killed process.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use crate::support::vocabulary::with_vocabulary;
use crate::support::{Broken, stderr, stdout};
use serde_json::json;

/// The binary with `args` in a process that may have this many megabytes of addresses.
fn within(megabytes: usize, args: &[&str]) -> Output {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("ulimit -v {}; exec \"$0\" \"$@\"", megabytes * 1024));
    command.arg(env!("CARGO_BIN_EXE_braidinfer")).args(args).env("HF_HUB_OFFLINE", "1").env("RAYON_NUM_THREADS", "2");
    command.env("BRAIDINFER_CACHE", env!("CARGO_TARGET_TMPDIR")).output().expect("a shell starts")
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
    // 805 MB, and 403 MB quantized, its rows being no whole blocks; the program and its threads take nearly 200 MB of addresses.
    let copy = with_vocabulary("llama-tied", 4 << 20);
    let (model, to) = (copy.path().display().to_string(), copy.file("small.gguf"));
    let to = to.to_str().expect("it is UTF-8").to_owned();
    let args = ["quantize", &model, &to, "--type", "q8_0", "--threads", "1"];
    let output = within(340, &args);
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

/// A control group with a limit of memory, which is removed with the value.
struct Group(PathBuf);

impl Group {
    /// `None` where none can be made: by the superuser only, on some machines.
    #[allow(clippy::print_stderr, reason = "a skipped test says so")]
    fn with_limit(name: &str, bytes: usize) -> Option<Self> {
        let group =
            Self(PathBuf::from("/sys/fs/cgroup/memory").join(format!("braidinfer-{name}-{}", std::process::id())));
        let made =
            fs::create_dir(&group.0).and_then(|()| fs::write(group.0.join("memory.limit_in_bytes"), bytes.to_string()));
        if made.is_err() {
            eprintln!("skipped: no control group with a limit of memory can be made here");
            return None;
        }
        Some(group)
    }

    fn run(&self, args: &[&str]) -> Output {
        let script = format!("echo $$ > {}/cgroup.procs; exec \"$0\" \"$@\"", self.0.display());
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_braidinfer")]).args(args);
        command.env("HF_HUB_OFFLINE", "1").env("BRAIDINFER_CACHE", env!("CARGO_TARGET_TMPDIR"));
        command.output().expect("a shell starts")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Nobody is in it any more.
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn the_limit_of_a_control_group_counts() {
    let Some(group) = Group::with_limit("limit", 200 << 20) else { return };
    let copy = with_vocabulary("llama-tied", 4 << 20);
    let model = copy.path().display().to_string();
    let output = group.run(&["run", &model, "--ids", "1,2,3", "--packed-cache", "off"]);
    check_refused(&output, &[": weights 1.1 GB", "within the limit of the control group"]);
}

#[test]
fn a_model_of_twice_the_limit_runs_from_its_packed_file() {
    let Some(group) = Group::with_limit("packed", 128 << 20) else { return };
    let copy = with_vocabulary("llama-tied", 1 << 20);
    let (model, folder) = (copy.path().display().to_string(), tempfile::tempdir().expect("a folder can be made"));
    let folder = folder.path().display().to_string();
    let args =
        ["logits", &model, "--ids", "1,2,3", "--kernels", "fused", "--force", "--context", "64", "--packed-cache"];
    let with = |cache: &'static str| [&args[..], &[cache]].concat();
    let expected = within(4000, &with("off"));
    assert!(expected.status.success(), "{}", stderr(&expected));
    check_refused(&group.run(&with("off")), &[": weights 268.6 MB", "within the limit of the control group"]);
    for start in ["first", "second"] {
        let output = group.run(&[&args[..], &[&folder]].concat());
        let said = stderr(&output);
        assert!(output.status.success(), "{start}: {:?} {said}", output.status);
        assert_eq!(stdout(&output), stdout(&expected), "{start} start");
        assert!(said.contains("for which there is too little memory"), "{start}: {said}");
        assert!(said.contains(&folder), "{start}: {said}");
    }
}
