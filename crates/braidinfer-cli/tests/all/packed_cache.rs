//! Packed weights in a folder: several processes, killed ones, full disks, and `braidinfer cache`.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::support::server::{code_of, get, rest, send, signal, start_server};
use crate::support::vocabulary::with_vocabulary;
use crate::support::{Broken, braidinfer, model, refuse, stderr, stdout, succeed, succeed_json, wait_until};
use tempfile::TempDir;

/// The logits of some tokens, at the fastest level, with packed weights in a folder or `off`.
fn logits(model: &Path, cache: &Path) -> Command {
    let mut command =
        braidinfer(["logits", "--ids", "1,2,3,4", "--json", "--kernels", "fused", "--force", "--threads", "2"]);
    command.arg(model).arg("--packed-cache").arg(cache);
    command
}

fn run(mut command: Command) -> Output {
    let output = command.output().expect("the binary starts");
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

/// stdout of a run without packed weights on the disk.
fn expected(model: &Path) -> String {
    stdout(&run(logits(model, Path::new("off"))))
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder can be made")
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("it can be listed").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn only_one(folder: &Path) -> PathBuf {
    let names = names(folder);
    assert!(names.len() == 1 && names[0].ends_with(".packed"), "{names:?}");
    folder.join(&names[0])
}

/// Large enough to be caught at work.
fn large() -> Broken {
    with_vocabulary("llama-tied", 1 << 18)
}

#[test]
fn killed_makers_leave_nothing_that_is_used() {
    let (copy, folder) = (large(), folder());
    let expected = expected(copy.path());
    for _ in 0..3 {
        let mut maker = logits(copy.path(), folder.path());
        let mut maker = maker.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary starts");
        let begun = || names(folder.path()).iter().any(|name| name.ends_with(".making"));
        assert!(wait_until(begun), "it is made");
        // SIGKILL.
        maker.kill().expect("it can be killed");
        maker.wait().expect("it ends");
        // It may have been quicker.
        for name in names(folder.path()).iter().filter(|name| name.ends_with(".packed")) {
            fs::remove_file(folder.path().join(name)).expect("it is ours");
        }
    }
    assert!(names(folder.path()).len() <= 1, "one is gone over by the next");
    for start in ["first", "second"] {
        assert_eq!(stdout(&run(logits(copy.path(), folder.path()))), expected, "the {start} start after them");
        only_one(folder.path());
    }
    // Cut and overwritten by somebody, meanwhile.
    let path = only_one(folder.path());
    let whole = fs::read(&path).expect("it can be read");
    for bytes in [&whole[..whole.len() / 2], &vec![7; whole.len()], b""] {
        fs::remove_file(&path).expect("it is ours");
        fs::write(&path, bytes).expect("it can be written");
        let output = run(logits(copy.path(), folder.path()));
        assert_eq!(stdout(&output), expected);
        assert!(stderr(&output).contains("cannot be used: "), "{}", stderr(&output));
        assert_eq!(only_one(folder.path()), path);
    }
}

#[test]
fn processes_that_start_at_once_agree() {
    let (copy, folder) = (large(), folder());
    let expected = expected(copy.path());
    let start = |_| {
        let mut command = logits(copy.path(), folder.path());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts")
    };
    let processes: Vec<_> = (0..4).map(start).collect();
    for process in processes {
        let output = process.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(stdout(&output), expected, "{}", stderr(&output));
    }
    only_one(folder.path());
}

/// Overwrites a byte in every page of the second half of a file, which a process has mapped.
fn damage(path: &Path) {
    use std::os::unix::fs::{FileExt, PermissionsExt};
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("it is ours");
    let file = fs::File::options().read(true).write(true).open(path).expect("it can be opened");
    let len = file.metadata().expect("it is open").len();
    for at in (len / 2..len).step_by(4096) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("it can be read");
        file.write_all_at(&[!byte[0]], at).expect("it can be written");
    }
}

/// It cannot answer any more. Only a new start helps, so probes of the server have to fail.
#[test]
fn a_server_whose_packed_weights_are_damaged_says_that_it_must_be_started_anew() {
    let (copy, folder) = (large(), folder());
    let start = || {
        let mut command = braidinfer(["serve", "--port", "0", "--kernels", "fused", "--force", "--threads", "2"]);
        command.arg(copy.path()).arg("--packed-cache").arg(folder.path());
        start_server(command)
    };
    let ask = |address: &str| {
        let body = r#"{"prompt": [1, 2, 3], "max_tokens": 2}"#;
        let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close";
        let kind = "content-type: application/json";
        rest(send(address, &format!("{head}\r\n{kind}\r\ncontent-length: {}\r\n\r\n{body}", body.len())))
    };
    let (server, _lines, address) = start();
    let path = only_one(folder.path());
    let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
    assert!(get(&address, "/ready").starts_with("HTTP/1.1 200"));
    damage(&path);
    for answer in [ask(&address), ask(&address), get(&address, "/ready"), get(&address, "/health")] {
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains(&name) && answer.contains("the next start makes it anew"), "{answer}");
    }
    assert!(!path.exists(), "it was removed");
    signal(&server, "TERM");
    code_of(server);
    let (server, _lines, address) = start();
    assert!(ask(&address).starts_with("HTTP/1.1 200"));
    assert!(get(&address, "/ready").starts_with("HTTP/1.1 200"));
    signal(&server, "TERM");
    code_of(server);
}

#[test]
fn without_room_weights_are_packed_into_memory_which_is_said() {
    let model = model("llama");
    let (expected, folder) = (expected(&model), folder());
    for cache in [Path::new("/proc/no/such/folder"), Path::new("/dev/null/folder")] {
        let output = run(logits(&model, cache));
        assert_eq!(stdout(&output), expected);
        assert!(stderr(&output).contains("packed weights"), "{}: {}", cache.display(), stderr(&output));
    }
    // The disk is as full as the user's limit says.
    let plain = logits(&model, folder.path());
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 8; exec \"$0\" \"$@\""]).arg(plain.get_program()).args(plain.get_args());
    limited.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = limited.output().expect("the binary starts");
    assert_eq!(stdout(&output), expected);
    assert!(stderr(&output).contains("packed weights could not be kept"), "{}", stderr(&output));
    assert!(names(folder.path()).is_empty(), "{:?}", names(folder.path()));
    // Nothing is said to be made anew that then cannot be.
    run(logits(&model, folder.path()));
    let path = only_one(folder.path());
    fs::remove_file(&path).expect("it is ours");
    fs::write(&path, "damaged").expect("it can be written");
    let output = run(limited);
    assert_eq!(stdout(&output), expected);
    let said = stderr(&output);
    assert!(said.contains("cannot be used") && said.contains("packed weights could not be kept"), "{said}");
    assert!(!said.contains("anew") && !said.contains("are kept in"), "{said}");
    // A bound that is too small.
    let mut bounded = logits(&model, folder.path());
    bounded.args(["--packed-cache-size", "10kB"]);
    let output = run(bounded);
    assert_eq!(stdout(&output), expected);
    let said = stderr(&output);
    assert!(said.contains("packed weights are not kept") && said.contains("10.0 kB"), "{said}");
}

#[test]
fn each_instruction_set_has_its_own_file() {
    let (model, folder) = (model("llama"), folder());
    let vectors = if cfg!(target_arch = "aarch64") { "neon" } else { "avx2" };
    for isa in ["scalar", vectors, "scalar"] {
        let mut command = logits(&model, folder.path());
        command.env("BRAIDINFER_ISA", isa);
        let output = command.output().expect("the binary starts");
        // Not every processor has both.
        if isa == "scalar" {
            assert!(output.status.success(), "{}", stderr(&output));
        }
        assert!(!stderr(&output).contains("cannot be used"), "{}", stderr(&output));
    }
    assert!(names(folder.path()).iter().all(|name| name.starts_with("llama-") && name.ends_with(".packed")));
}

#[test]
fn cache_lists_and_removes_files() {
    let (model, folder) = (model("llama"), folder());
    let cache = folder.path().join("packed").display().to_string();
    let listed = |more: &[&str]| succeed_json([&["cache", "--json", "--packed-cache", &cache], more].concat());
    assert_eq!(listed(&[])["files"].as_array().map(Vec::len), Some(0));
    run(logits(&model, cache.as_ref()));
    let file = &listed(&[])["files"][0];
    assert_eq!(file["path"].as_str(), only_one(cache.as_ref()).to_str());
    assert_eq!(file["in_use"].as_bool(), Some(false));
    let text = succeed(["cache", "--packed-cache", &cache]);
    assert!(text.contains("llama-") && text.contains("1 file, "), "{text}");
    let text = succeed(["cache", "--clear", "--packed-cache", &cache]);
    assert!(text.starts_with("removed 1 file, "), "{text}");
    assert!(names(cache.as_ref()).is_empty());
    run(logits(&model, cache.as_ref()));
    let (path, used) = (only_one(cache.as_ref()), folder.path().join("packed/used.packed"));
    fs::write(&used, "of another process").expect("it can be written");
    let lock = fs::File::open(&used).expect("it can be opened");
    lock.lock_shared().expect("it can be locked");
    let cleared = listed(&["--clear"]);
    assert_eq!(cleared["removed"].as_bool(), Some(true));
    let paths = |field: &str| {
        let files = cleared[field].as_array().expect("a list").iter();
        files.map(|file| PathBuf::from(file["path"].as_str().expect("a path"))).collect::<Vec<_>>()
    };
    assert_eq!((paths("files"), paths("left")), (vec![path], vec![used]), "{cleared}");
    assert_eq!(cleared["left"][0]["in_use"].as_bool(), Some(true));
    assert!(listed(&[]).get("left").is_none(), "nothing was removed");
}

#[test]
fn the_folder_and_its_bound_come_from_arguments_or_the_environment() {
    let (model, folder) = (model("llama"), folder());
    let model = model.display().to_string();
    let args = ["logits", &model, "--ids", "1,2", "--kernels", "fused", "--force"];
    let with = |variables: &[(&str, &str)], more: &[&str]| {
        let mut command = braidinfer([&args[..], more].concat());
        command.envs(variables.iter().copied());
        run(command)
    };
    let named = folder.path().join("named").display().to_string();
    let variable = ("BRAIDINFER_PACKED_CACHE", &*named);
    with(&[variable], &["--packed-cache", "off"]);
    with(&[("BRAIDINFER_CACHE", &named)], &[]);
    assert!(names(named.as_ref()).iter().all(|name| name != "packed"), "small models are not kept unless asked for");
    let output = with(&[variable, ("BRAIDINFER_PACKED_CACHE_SIZE", "1kB")], &[]);
    assert!(stderr(&output).contains("1.0 kB"), "{}", stderr(&output));
    with(&[variable, ("BRAIDINFER_PACKED_CACHE_SIZE", "1kB")], &["--packed-cache-size", "1.5GiB"]);
    only_one(named.as_ref());
    refuse([&args[..], &["--packed-cache", "off", "--packed-cache-size", "1GB"]].concat(), &["--packed-cache-size"]);
    let empty = ["--packed-cache: expected a folder or `off`, found an empty name"];
    refuse([&args[..], &["--packed-cache", ""]].concat(), &empty);
    refuse(["cache", "--packed-cache", ""], &empty);
    refuse(["cache", "--packed-cache", "off"], &["expected a folder with packed weights"]);
    let mut wrong = braidinfer(args);
    wrong.env("BRAIDINFER_PACKED_CACHE_SIZE", "much");
    let output = wrong.output().expect("the binary starts");
    assert_eq!(output.status.code(), Some(3));
    assert!(
        stderr(&output)
            .contains("BRAIDINFER_PACKED_CACHE_SIZE: expected a size such as 40GB or 1.5GiB, in one of the units kB, ")
    );
}
