//! `braidinfer diff`: two models, or one in two ways.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::thread;

use crate::support::{braidinfer, fixtures, model, refuse, stderr, stdout, succeed};
use serde_json::{Value, json};

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
    refuse(
        ["diff", &llama, &format!("{llama},speed=fast")],
        &["expected kernels=, precision=, dtype=, kv_dtype=, quantize= or device=", "speed=fast"],
    );
    refuse(["diff", &llama, &format!("{llama},kernels=best")], &["best"]);
    refuse(["diff", &llama, "/no/such/model"], &["/no/such/model"]);
}

/// An engine that always gives one answer: status and body by path. Returns its address; it ends with the test.
fn endpoint(answer: impl Fn(&str, &Value) -> (u16, String) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.expect("a client connects"));
            let (mut head, mut length) = (String::new(), 0);
            while stream.read_line(&mut head).expect("the head is text") > 2 {
                let line = head.lines().next_back().unwrap_or_default().to_ascii_lowercase();
                if let Some(value) = line.strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a length");
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).expect("the body is whole");
            let path = head.split(' ').nth(1).unwrap_or_default();
            let (status, text) = answer(path, &serde_json::from_slice(&body).unwrap_or(Value::Null));
            let head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", text.len());
            stream.get_mut().write_all((head + &text).as_bytes()).expect("the client listens");
        }
    });
    format!("http://{address}/v1")
}

fn models() -> (u16, String) {
    (200, json!({"data": [{"id": "only"}]}).to_string())
}

/// Completions of `tokens` in the form of completions.
fn speaking(tokens: &'static [(&'static str, f64)], other: (&'static str, f64)) -> String {
    endpoint(move |path, asked| {
        if path == "/v1/models" {
            return models();
        }
        assert_eq!((path, &asked["model"], &asked["temperature"]), ("/v1/completions", &json!("only"), &json!(0)));
        let text: String = tokens.iter().map(|(text, _)| *text).collect();
        let top = |(text, logprob): &(&str, f64)| json!({*text: logprob, other.0: other.1});
        let logprobs = json!({
            "tokens": tokens.iter().map(|(text, _)| *text).chain(["</s>"]).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(|(_, logprob)| *logprob).chain([-0.5]).collect::<Vec<_>>(),
            "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        });
        let answer = json!({
            "choices": [{"text": text, "logprobs": logprobs, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3},
        });
        (200, answer.to_string())
    })
}

#[test]
fn two_endpoints_are_compared_up_to_the_first_other_token() {
    let a = speaking(&[(" one", -0.25), (" two", -1.0), (" three", -0.5)], (" drei", -0.625));
    let b = speaking(&[(" one", -0.5), (" two", -1.125), (" drei", -0.75)], (" three", -2.0));
    let (code, report) = diff(&a, &b, &["--prompt", "count"]);
    let prompt = &report["prompts"][0];
    assert_eq!((code, &prompt["first_difference"], &report["tokens"]), (Some(1), &json!(2), &json!(2)));
    assert_eq!(prompt["logprob_differences"], json!([0.25, 0.125]));
    assert_eq!(prompt["parting"], json!({"a": " three", "b": " drei", "a_margin": 0.125, "b_margin": 1.25}));
    // The token that only ends the answer is none of its own.
    let (code, report) = diff(&a, &a, &["--prompt", "count"]);
    assert_eq!((code, &report["tokens"], &report["logprob_difference_max"]), (Some(0), &json!(3), &json!(0.0)));
}

#[test]
fn a_model_is_compared_with_an_endpoint() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/demo-model");
    let prompt = "Once upon a time";
    let answer: Value = serde_json::from_str(&succeed([
        "run",
        "--raw",
        demo,
        prompt,
        "--max-tokens",
        "6",
        "--temperature",
        "0",
        "--json",
    ]))
    .expect("run prints JSON");
    let ids: Vec<u64> = answer["ids"].as_array().expect("ids").iter().filter_map(Value::as_u64).collect();
    let text = answer["text"].as_str().expect("text").to_owned();
    // The same tokens, of which only the ids are known, each with a probability of a half.
    let url = endpoint(move |path, asked| {
        assert_eq!((path, &asked["prompt"]), ("/v1/completions", &json!(prompt)));
        let token = |id: &u64| json!({"id": id, "token": "\u{FFFD}", "logprob": -(2.0_f64.ln()), "top_logprobs": []});
        let content: Vec<Value> = ids.iter().map(token).collect();
        (200, json!({"choices": [{"text": text, "logprobs": {"content": content}}]}).to_string())
    });
    let named = format!("{url},model=any");
    let (code, report) = diff(demo, &named, &["--prompt", prompt, "-n", "6"]);
    assert_eq!((code, &report["tokens"]), (Some(0), &json!(6)), "{report}");
    assert_eq!(report["prompts"][0]["prompt_tokens"][1], Value::Null);
    let difference = report["logprob_difference_mean"].as_f64().expect("a number");
    assert!(difference > 0.0 && difference <= report["logprob_difference_max"].as_f64().expect("a number"));
    let shown = String::from_utf8(
        braidinfer(["diff", demo, &named, "--prompt", prompt, "-n", "6"]).output().expect("the binary starts").stdout,
    )
    .expect("tables are text");
    assert!(shown.contains("SAME") && shown.contains("tokens in common"), "{shown}");
}

#[test]
fn endpoints_that_do_not_tell_are_refused() {
    let silent = endpoint(|path, _| match path {
        "/v1/models" => models(),
        _ => (200, json!({"choices": [{"text": "yes"}]}).to_string()),
    });
    let llama = path("llama");
    refuse(["diff", &silent, &silent], &["/v1", "expected `logprobs`"]);
    let failing = endpoint(|_, _| (401, json!({"error": {"message": "no such key"}}).to_string()));
    refuse(["diff", &failing, &failing], &["/v1/models", "401", "no such key"]);
    let several = endpoint(|_, _| (200, json!({"data": [{"id": "a"}, {"id": "b"}]}).to_string()));
    refuse(["diff", &llama, &several], &["expected ,model=NAME", "a, b"]);
    refuse(["diff", &llama, &format!("{several},kernels=fused")], &["expected model=", "kernels=fused"]);
    let garbage = endpoint(|_, _| (200, "<html>".into()));
    refuse(["diff", &llama, &garbage], &["not the answer of an OpenAI-compatible endpoint"]);
    refuse(["diff", &llama, "http://127.0.0.1:1/v1"], &["http://127.0.0.1:1/v1/models"]);
    // Token ids mean nothing without a vocabulary.
    refuse(
        ["diff", &llama, &format!("{},model=only", speaking(&[("a", -1.0)], ("b", -2.0))), "--ids", "1,2"],
        &["tokenizer"],
    );
}
