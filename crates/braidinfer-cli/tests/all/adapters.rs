//! `--lora`: an adapter is used by the commands that take one, or refused by name.

use std::path::Path;

use crate::support::server::{code_of, get, post, signal, start_server};
use crate::support::{braidinfer, fixtures, model, output, random_adapter, refuse, stderr, stdout, succeed_json};
use serde_json::{Value, json};

/// The largest difference from the logits that peft gives.
fn distance_from_peft(logits: &Value, folder: &Path) -> f64 {
    let bytes = std::fs::read(folder.join("expected.safetensors")).expect("the fixture is whole");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("the fixture is whole");
    let data = tensors.tensor("logits").expect("it has a name").data();
    let expected: Vec<f64> = data.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
    let rows = logits["logits"].as_array().expect("logits are rows");
    let actual: Vec<f64> =
        rows.iter().flat_map(|row| row.as_array().expect("a row is a list")).filter_map(Value::as_f64).collect();
    assert_eq!(actual.len(), expected.len());
    actual.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn commands_compute_with_the_adapter_that_they_are_given() {
    let folder = fixtures().join("adapters/llama");
    let expected: Value =
        serde_json::from_slice(&std::fs::read(folder.join("expected.json")).expect("the fixture is whole"))
            .expect("it is JSON");
    let ids: Vec<String> = expected["ids"].as_array().expect("a list").iter().map(Value::to_string).collect();
    let (ids, base, lora) = (ids.join(","), model("llama").display().to_string(), folder.display().to_string());
    let logits = ["logits", &base, "--ids", &ids, "--all", "--json", "--kernels", "standard"];
    let with = succeed_json(logits.iter().chain(&["--lora", &lora]));
    assert!(distance_from_peft(&with, &folder) <= 5e-4);
    assert!(distance_from_peft(&succeed_json(logits), &folder) > 0.05, "without it, there is none");
    let run = ["run", &base, "--ids", &ids, "--max-tokens", "8", "--ignore-eos", "--json"];
    let gguf = fixtures().join("adapters/llama.gguf").display().to_string();
    let [plain, peft, of_gguf] = [None, Some(&lora), Some(&gguf)].map(|lora| {
        let lora = lora.map(|path| ["--lora".to_owned(), path.clone()]).into_iter().flatten();
        succeed_json(run.iter().map(ToString::to_string).chain(lora))["ids"].clone()
    });
    assert!(plain != peft && peft == of_gguf, "{plain}, {peft}, {of_gguf}");
    let check = output(["check", &base, "--lora", &lora]);
    assert_eq!(check.status.code(), Some(0), "{}", stdout(&check));
    assert!(stdout(&check).contains(&format!("with {lora}")), "{}", stdout(&check));
    let again = format!("again={lora}");
    refuse(["run", &base, "--ids", &ids, "--lora", &lora, "--lora", &again], &["expected one adapter"]);
    refuse(["run", &base, "--ids", &ids, "--lora", &lora, "--device", "gpu"], &["--device", "CPU"]);
    refuse(
        ["run", &model("qwen3").display().to_string(), "--ids", "1", "--lora", &lora],
        &["adapter_model.safetensors"],
    );
    refuse(["run", &base, "--ids", "1", "--lora", "nothing-here"], &["nothing-here", "adapter_config.json"]);
    refuse(["run", &lora, "--ids", "1"], &["with this folder as its adapter"]);
}

#[test]
fn a_server_has_adapters_by_name() {
    let folder = tempfile::tempdir().expect("there is room");
    let paths = ["red", "blue"].map(|name| folder.path().join(name));
    paths.iter().zip([5, 9]).for_each(|(path, seed)| random_adapter::write(path, seed));
    let (red, blue) = (paths[0].display().to_string(), format!("sky={}", paths[1].display()));
    let (server, _lines, address) = start_server(braidinfer(["serve", "--port", "0", "--lora", &red, "--lora", &blue]));
    let listed = get(&address, "/v1/models");
    assert!(listed.contains("\"id\":\"red\"") && listed.contains("\"id\":\"sky\""), "{listed}");
    let answer = |model: &str| {
        let body = json!({"model": model, "prompt": "Once upon a time", "temperature": 0, "max_tokens": 8});
        post(&address, "/v1/completions", "application/json", body.to_string().as_bytes())
    };
    let [red, sky] = ["red", "sky"].map(answer);
    assert!(red.starts_with("HTTP/1.1 200") && sky.contains("\"model\":\"sky\""), "{red}\n{sky}");
    let text = |reply: &str| reply.split("\"text\":").nth(1).map(str::to_owned);
    assert_ne!(text(&red), text(&sky));
    signal(&server, "TERM");
    assert_eq!(code_of(server), Some(0));
    let named = format!("demo={}", paths[0].display());
    let clash = output(["serve", "--port", "0", "--lora", &named]);
    assert!(stderr(&clash).contains("a name that is not one of the model"), "{}", stderr(&clash));
    let on_demand = output(["serve", "--port", "0", "--idle", "1m", "--lora", &paths[0].display().to_string()]);
    assert!(stderr(&on_demand).contains("--lora: expected one model"), "{}", stderr(&on_demand));
}
