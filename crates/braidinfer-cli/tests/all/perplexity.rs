//! `braidinfer perplexity`.

use std::fs;

use crate::support::{model, output, refuse, stdout, succeed, succeed_json};
use serde_json::Value;

fn path(name: &str) -> String {
    model(name).display().to_string()
}

/// The built-in model, which has a tokenizer.
fn demo() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/demo-model").to_owned()
}

fn number(report: &Value, name: &str) -> f64 {
    report[name].as_f64().unwrap_or_else(|| panic!("{name}: {report}"))
}

/// Ids of a text, as they are typed.
fn ids(count: usize) -> String {
    (0..count).map(|index| (index * 37 % 251).to_string()).collect::<Vec<_>>().join(",")
}

#[test]
fn it_is_that_of_the_logits_of_every_chunk() {
    let (model, context) = (path("llama"), 16);
    let text = ids(2 * context + 5);
    let found = succeed_json(["perplexity", &model, "--ids", &text, "--context", "16", "--json"]);
    // The same by hand: the second half of each chunk, without the token that nothing follows.
    let all: Vec<usize> = text.split(',').map(|id| id.parse().expect("it is an id")).collect();
    let mut losses = Vec::new();
    for chunk in all.chunks_exact(context) {
        let typed = chunk.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let logits = succeed_json(["logits", &model, "--ids", &typed, "--all", "--json", "--kernels", "standard"]);
        for position in context / 2..context - 1 {
            let row: Vec<f64> = serde_json::from_value(logits["logits"][position].clone()).expect("a row of numbers");
            let sum: f64 = row.iter().map(|logit| logit.exp()).sum();
            losses.push(sum.ln() - row[chunk[position + 1]]);
        }
    }
    let mean = losses.iter().sum::<f64>() / losses.len() as f64;
    assert!((number(&found, "perplexity") / mean.exp() - 1.0).abs() < 1e-3, "{found}, {}", mean.exp());
    assert_eq!((found["chunks"].as_u64(), found["positions"].as_u64()), (Some(2), Some(14)));
    assert_eq!((found["tokens"].as_u64(), &found["against"]), (Some(37), &Value::Null));
}

#[test]
fn another_way_to_run_a_model_is_compared_token_by_token() {
    let against = |side: &str, other: &str| {
        succeed_json(["perplexity", side, "--against", other, "--context", "64", "--json"])["against"].clone()
    };
    let model = demo();
    let itself = against(&format!("{model},kernels=standard"), "kernels=standard");
    assert_eq!((itself["kl_mean"].as_f64(), itself["top1_agreement"].as_f64()), (Some(0.0), Some(1.0)));
    let exact = against(&format!("{model},precision=exact"), "kernels=standard");
    assert!(number(&exact, "kl_mean") < 1e-6, "{exact}");
    let quantized = against(&format!("{model},quantize=q4_0,precision=exact"), "kernels=standard");
    assert!(number(&quantized, "kl_mean") > 1e-4, "{quantized}");
    assert!(number(&quantized, "kl_median") < number(&quantized, "kl_max"));
}

#[test]
fn people_read_a_table() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let text = folder.path().join("text.txt");
    fs::write(&text, "Once upon a time there was a little girl. ".repeat(40)).expect("the text can be written");
    let model = demo();
    let file = text.display().to_string();
    let printed = succeed(["perplexity", &model, "--file", &file, "--context", "64", "--against", "precision=fast"]);
    for part in ["perplexity", "chunks of 64 tokens", "mean KL from it", "beyond near ties", "95 %"] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).expect("the file can be written");
        path.display().to_string()
    };
    let demo = demo();
    let (empty, short) = (file("empty.txt", b""), file("short.txt", b"Once upon a time"));
    let broken = file("broken.txt", b"Once \xff upon");
    refuse(["perplexity", &demo, "--file", &empty], &["empty.txt", "an empty file"]);
    refuse(["perplexity", &demo, "--file", &short], &["text", "512", "--context"]);
    refuse(["perplexity", &demo, "--file", &broken], &["broken.txt", "UTF-8"]);
    refuse(["perplexity", &demo, "--file", "/no/such/text"], &["/no/such/text"]);
    refuse(["perplexity", &demo, "--file", &short, "--context", "2"], &["--context", "at least 4"]);
    refuse(["perplexity", &demo, "--file", &short, "--context", "100000"], &["context", "100000"]);
    refuse(["perplexity", &path("llama"), "--file", &short], &["tokenizer"]);
    refuse(["perplexity", &demo, "--against", &path("llama"), "--context", "8"], &["vocabulary of the other model"]);
    refuse(["perplexity", &demo, "--against", "kernels=best"], &["kernels: expected one of auto, standard", "best"]);
    refuse(["perplexity", &demo, "--against", "dtype=f32,dtype=bf16"], &["dtype= once"]);
    refuse(["perplexity", &demo, "--ids", "1,2,3,999999", "--context", "4"], &["token id", "999999"]);
    refuse(
        ["quantize", &path("llama"), "never.gguf", "--type", "q8_0", "--perplexity"],
        &["--perplexity", "tokenizer"],
    );
}

#[test]
fn a_written_file_is_measured_if_that_is_asked_for() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let written = folder.path().join("q4_0.gguf").display().to_string();
    let demo = demo();
    let printed = succeed(["quantize", &demo, &written, "--type", "q4_0", "--perplexity"]);
    for part in ["q4_0.gguf:", "perplexity", "the other's perplexity", "mean KL from it"] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
}

#[test]
fn one_prediction_has_no_standard_error() {
    let found = succeed_json(["perplexity", &path("llama"), "--ids", "1,2,3,4", "--context", "4", "--json"]);
    assert_eq!((found["positions"].as_u64(), found["standard_error"].is_null()), (Some(1), true), "{found}");
    let printed = succeed(["perplexity", &path("llama"), "--ids", "1,2,3,4", "--context", "4"]);
    assert!(printed.contains("± unknown"), "{printed}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_no_figure() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let text = folder.path().join("long.txt");
    // So long that nobody waits for its end.
    fs::write(&text, "Once upon a time, there was a little fox. ".repeat(20_000)).expect("a file can be written");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_braidinfer"));
    command
        .args(["perplexity", &demo(), "--against", "kernels=standard", "--json", "--context", "64", "--file"])
        .arg(text);
    // On a terminal a bar shows the perplexity of what was read so far.
    let mut session = rexpect::session::spawn_command(command, Some(60_000)).expect("the program starts");
    session.exp_string("perplexity ").expect("the first chunk is read");
    session.send_control('c').expect("the key is taken");
    let bar = session.exp_string("cancelled: nothing was measured").expect("it says so");
    let rest = session.exp_eof().expect("it ends");
    assert!(!bar.contains('{') && !rest.contains('{'), "{bar}{rest}");
    let status = session.process().wait().expect("it has ended");
    assert!(format!("{status:?}").contains("130"), "{status:?}");
}

#[test]
fn help_says_how_text_is_read() {
    let help = stdout(&output(["perplexity", "--help"]));
    for part in ["second half", "--against kernels=standard", "llama.cpp"] {
        assert!(help.contains(part), "{part}: {help}");
    }
}
