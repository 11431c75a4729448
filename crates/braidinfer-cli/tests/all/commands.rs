//! The commands as a user meets them.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;

use crate::support::{
    Broken, braidinfer, config, fixtures, model, models, output, refuse, stderr, stdout, succeed, succeed_json,
};
use serde_json::{Value, json};
use tempfile::TempDir;

fn expected(name: &str) -> Value {
    serde_json::from_slice(&fs::read(model(name).join("expected.json")).expect("the fixture is whole"))
        .expect("it is JSON")
}

fn joined(ids: &Value) -> String {
    let ids: Vec<String> = ids.as_array().expect("ids are a list").iter().map(Value::to_string).collect();
    ids.join(",")
}

#[test]
fn run_gives_the_greedy_tokens_of_transformers_on_every_fixture() {
    for name in models() {
        let (dir, expected) = (model(&name).display().to_string(), expected(&name));
        let prompt = &expected["prompts"][1];
        let ids = joined(&prompt["ids"]);
        let args = ["run", &dir, "--ids", &ids, "--max-tokens", "24", "--temperature", "0", "--ignore-eos", "--json"];
        let answer = succeed_json(args.iter().chain(&["--kernels", "standard"]));
        assert_eq!(answer["ids"], prompt["greedy"], "{name}");
        assert_eq!(answer["prompt_ids"], prompt["ids"], "{name}");
        assert_eq!((&answer["finish_reason"], &answer["kernels"]), (&"length".into(), &"standard".into()), "{name}");
        for field in ["load_ms", "prefill_ms", "decode_ms", "prefill_tok_s", "decode_tok_s"] {
            assert!(answer["timings"][field].as_f64().is_some_and(|value| value > 0.0), "{name}: {field}");
        }
    }
}

#[test]
fn logits_are_those_of_transformers_on_every_fixture() {
    for name in models() {
        let (dir, expected) = (model(&name).display().to_string(), expected(&name));
        let ids = joined(&expected["prompts"][1]["ids"]);
        let bytes = fs::read(model(&name).join("expected.safetensors")).expect("the fixture is whole");
        let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("the fixture is whole");
        let data = tensors.tensor("logits.1").expect("every prompt has logits").data();
        let reference: Vec<f64> = data.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
        let answer = succeed_json(["logits", &dir, "--ids", &ids, "--all", "--json", "--kernels", "standard"]);
        let rows = answer["logits"].as_array().expect("logits are rows");
        let actual: Vec<f64> =
            rows.iter().flat_map(|row| row.as_array().expect("a row is a list")).filter_map(Value::as_f64).collect();
        assert_eq!(actual.len(), reference.len(), "{name}");
        let distance = actual.iter().zip(&reference).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let tolerance = if name == "qwen3-extreme" { 2e-3 } else { 5e-4 };
        assert!(distance <= tolerance, "{name}: {distance:e}");
        let last = succeed_json(["logits", &dir, "--ids", &ids, "--json"]);
        assert_eq!(last["positions"], serde_json::json!([6]));
        assert_eq!(last["logits"].as_array().expect("logits are rows").len(), 1);
    }
}

#[test]
fn inspect_speaks_the_terms_of_config_json() {
    for name in models() {
        let dir = model(&name).display().to_string();
        let text = succeed(["inspect", &dir]);
        let json = succeed_json(["inspect", &dir, "--json"]);
        for term in [
            "hidden_size",
            "num_key_value_heads",
            "head_dim",
            "rope_theta",
            "rope_type",
            "full_attention",
            "attention_bias",
        ] {
            let only_sliding = term == "full_attention" && text.contains("sliding_attention");
            let unrotated = term == "rope_theta" && json["spec"]["rope"] == json!([]);
            assert!(text.contains(term) || only_sliding || unrotated, "{name}: {term} is missing in\n{text}");
        }
        let config = config(&name);
        // Of a multimodal model, the text part.
        let config = config.get("text_config").unwrap_or(&config);
        for field in ["vocab_size", "hidden_size", "model_type"] {
            assert_eq!(json["spec"][field], config[field], "{name}: {field}");
        }
        // Layers of several kinds are listed.
        let spec = &json["spec"];
        let attention = spec.get("attentions").map_or(spec, |kinds| &kinds[0]);
        assert_eq!(attention["num_attention_heads"], config["num_attention_heads"], "{name}");
    }
}

#[test]
fn an_eos_list_ends_the_answer_and_can_be_ignored() {
    let (dir, expected) = (model("llama-eos-list").display().to_string(), expected("llama-eos-list"));
    let prompt = &expected["prompts"][2];
    let ids = joined(&prompt["ids"]);
    let args = ["run", &dir, "--ids", &ids, "--max-tokens", "24", "--temperature", "0", "--json"];
    let answer = succeed_json(args);
    assert_eq!(answer["finish_reason"], "stop");
    let greedy = prompt["greedy"].as_array().expect("greedy is a list");
    assert_eq!(answer["ids"].as_array().map(Vec::as_slice), Some(&greedy[..6]));
    let ignored = succeed_json(args.into_iter().chain(["--ignore-eos"]));
    assert_eq!(ignored["ids"], prompt["greedy"]);
    let stop = greedy.iter().position(|id| *id == greedy[9]).expect("it is there");
    let named = format!("0,{}", greedy[9]);
    let stopped = succeed_json(args.into_iter().chain(["--ignore-eos", "--stop-token-ids", &named]));
    assert_eq!(stopped["ids"].as_array().map(Vec::as_slice), Some(&greedy[..=stop]), "0 is not in it");
}

#[test]
fn sampling_defaults_come_from_the_model_and_can_be_overridden() {
    let dir = model("llama-eos-list").display().to_string();
    let run = |args: &[&str]| {
        let base = ["run", &dir, "--ids", "5,9,77", "--max-tokens", "12", "--ignore-eos", "--json"];
        succeed_json(base.iter().chain(args))["ids"].clone()
    };
    let sampled: Vec<Value> = ["1", "2", "3"].map(|seed| run(&["--seed", seed])).to_vec();
    assert!(sampled.windows(2).any(|pair| pair[0] != pair[1]), "the model's own config asks for sampling");
    assert_eq!(run(&["--seed", "1"]), sampled[0]);
    assert_eq!(run(&["--temperature", "0", "--seed", "1"]), run(&["--temperature", "0", "--seed", "2"]));
    assert_eq!(run(&["--top-k", "1", "--seed", "1"]), run(&["--temperature", "0"]));
}

#[test]
fn sixteen_bit_types_run_and_stay_near() {
    for dtype in ["bf16", "f16"] {
        let dir = model("qwen3").display().to_string();
        let logits = |dtype: &str| {
            let answer = succeed_json(["logits", &dir, "--ids", "3,14,15,92,65", "--dtype", dtype, "--json"]);
            answer["logits"][0].as_array().expect("a row").iter().filter_map(Value::as_f64).collect::<Vec<_>>()
        };
        let (exact, rounded) = (logits("f32"), logits(dtype));
        let distance = exact.iter().zip(&rounded).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(distance > 0.0 && distance < 0.5, "{dtype}: {distance}");
    }
}

#[test]
fn the_demo_model_tells_a_story() {
    let story = succeed(["run", "--raw", "Once upon a time", "--seed", "1"]);
    assert!(story.split_whitespace().count() > 30, "{story}");
    assert!(story.trim_end().ends_with(['.', '!', '"', '?']), "{story}");
    assert_eq!(story, succeed(["run", "--raw", "Once upon a time", "--seed", "1"]));
    assert_ne!(story, succeed(["run", "--raw", "Once upon a time", "--seed", "2"]));
    let json = succeed_json(["run", "--raw", "Once upon a time", "--seed", "1", "--json"]);
    assert_eq!(json["text"].as_str().map(|text| format!("{text}\n")), Some(story));
    assert_eq!(json["finish_reason"], "stop");
}

#[test]
fn an_empty_prompt_begins_with_the_first_token() {
    let answer = succeed_json(["run", "--raw", "", "--seed", "1", "--json"]);
    assert_eq!(answer["prompt_ids"], serde_json::json!([0]));
    assert!(answer["text"].as_str().is_some_and(|text| text.split_whitespace().count() > 30), "{answer}");
}

#[test]
fn a_stop_text_ends_the_answer_and_is_not_shown() {
    let whole = succeed(["run", "--raw", "Once upon a time", "--temperature", "0"]);
    let stop = whole.split_whitespace().nth(12).expect("the story has words");
    let cut = succeed(["run", "--raw", "Once upon a time", "--temperature", "0", "--stop", stop]);
    let before = whole.split(stop).next().expect("split has a first part");
    assert_eq!(cut.trim_end_matches('\n'), before);
}

#[test]
fn prompts_come_from_arguments_files_and_standard_input_byte_for_byte() {
    let prompt = "  Once upon\ta time\n";
    let by_argument = succeed_json(["run", "--raw", prompt, "--max-tokens", "1", "--json"]);
    let file = tempfile::NamedTempFile::new().expect("a file can be made");
    fs::write(file.path(), prompt).expect("the file can be written");
    let by_file =
        succeed_json(["run", "--raw", "--file", &file.path().display().to_string(), "--max-tokens", "1", "--json"]);
    let by_stdin: Value =
        serde_json::from_str(&piped(&["run", "--raw", "--max-tokens", "1", "--json"], prompt).0).expect("it is JSON");
    assert_eq!(by_argument["prompt_ids"], by_file["prompt_ids"]);
    assert_eq!(by_argument["prompt_ids"], by_stdin["prompt_ids"]);
    let tokens = succeed_json(["tokenize", prompt, "--json"]);
    assert_eq!(tokens["ids"], by_argument["prompt_ids"]);
}

/// Standard output and error of a run that reads this text.
fn piped(args: &[&str], text: &str) -> (String, String) {
    let mut child = braidinfer(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    child.stdin.take().expect("stdin is piped").write_all(text.as_bytes()).expect("the binary reads");
    let output = child.wait_with_output().expect("the binary ends");
    assert!(output.status.success(), "{}", stderr(&output));
    (stdout(&output), stderr(&output))
}

#[test]
fn a_file_beside_a_prompt_comes_before_it() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/demo-model");
    let run = ["run", demo, "What is this?", "--max-tokens", "1", "--json"];
    let ids = |text: &str| serde_json::from_str::<Value>(text).expect("it is JSON")["prompt_ids"].clone();
    let about = |text: &'static str| [&["run", demo, text][..], &run[3..]].concat();
    let from_pipe = [&run[..], &["--file", "-"]].concat();
    let (answer, _) = piped(&from_pipe, "A story.\n");
    assert_eq!(ids(&answer), ids(&succeed(about("A story.\n\nWhat is this?"))));
    let (answer, _) = piped(&[&from_pipe[..], &["--raw"]].concat(), "A story.\n");
    let whole = succeed([&about("A story.\nWhat is this?")[..], &["--raw"]].concat());
    assert_eq!(ids(&answer), ids(&whole), "no byte is added or left out");
    // A pipe beside a prompt may never end: it is left alone, which is said.
    let (answer, said) = piped(&run, "A story.\n");
    assert_eq!(ids(&answer), ids(&succeed(run)));
    assert!(said.contains("standard input was not read") && said.contains("`--file -`"), "{said}");
    let (_, said) = piped(&run, "");
    assert!(!said.contains("standard input"), "{said}");
    refuse([&run[..], &["--ids", "1,2"]].concat(), &["--ids: expected one source of text", "`What is this?`"]);
    // The built-in model, and what other programs write for standard input.
    let of_demo = ["run", "What is this?", "--file", "-", "--max-tokens", "1", "--json"];
    assert_eq!(ids(&piped(&of_demo, "A story.\n").0), ids(&piped(&from_pipe, "A story.\n").0));
    let dash = ["run", demo, "-", "--max-tokens", "1", "--json"];
    assert_eq!(ids(&piped(&dash, "What is this?\n").0), ids(&succeed(run)));
    refuse([&dash[..], &["--file", "x"]].concat(), &["expected one source of text", "standard input"]);
    refuse(["tokenize", demo, "x", "--file", "-"], &["--file: expected one source of text", "`x`"]);
}

const GREEDY: [&str; 4] = ["--temperature", "0", "--max-tokens", "40"];

#[test]
fn a_prompt_is_a_message_where_there_is_a_template() {
    let asked = [&["run", "What is 2+2?"][..], &GREEDY].concat();
    let chat = output(&asked);
    let answer = stdout(&chat);
    assert!(answer.contains("I only know little stories"), "{answer}");
    assert!(stderr(&chat).contains("a message in a chat, by the model's template; --raw completes it"));
    let (from_pipe, _) = piped(&[&["run"][..], &GREEDY].concat(), "What is 2+2?\r\n");
    assert_eq!(from_pipe, answer, "the end of the line is no part of the message");
    assert_ne!(succeed([&asked[..], &["--raw"]].concat()), answer);
    // A model without a template completes, and says so.
    let llama = model("llama").display().to_string();
    refuse(["run", &llama, "x", "--system", "y"], &["--system: ", "the model has no chat template"]);
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("chat.json").display().to_string();
    fs::write(&path, "[{\"role\": \"user\", \"content\": \"Hi\"}]").expect("the file can be written");
    refuse(["run", &llama, "--chat", &path], &["--chat: ", "the model has no chat template"]);
    let both = output(["run", "x", "--raw", "--system", "y"]);
    assert!(both.status.code() == Some(3) && stderr(&both).contains("cannot be used with"), "{}", stderr(&both));
}

#[test]
fn a_conversation_goes_on_from_a_file() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("chat.json").display().to_string();
    let write = |json: &str| fs::write(&path, json).expect("the file can be written");
    let turns = r#"{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"}"#;
    write(&format!("[{turns}]"));
    let by_argument = succeed([&["run", "--chat", &path, "What is 2+2?"][..], &GREEDY].concat());
    write(&format!(r#"{{"messages": [{turns}, {{"role": "user", "content": "What is 2+2?"}}]}}"#));
    assert_eq!(succeed([&["run", "--chat", &path][..], &GREEDY].concat()), by_argument);
    for (contents, says) in [
        ("no JSON", "expected JSON"),
        ("[]", "expected at least one message"),
        ("[{\"content\": \"x\"}]", "messages[0]: expected a role, found none"),
        ("{\"a\": 1}", "found `a`"),
    ] {
        write(contents);
        refuse(["run", "--chat", &path], &["--chat ", "chat.json", says]);
    }
    write(r#"[{"role": "system", "content": "x"}]"#);
    refuse(["run", "--chat", &path, "--system", "y"], &["--system: expected a conversation without"]);
}

#[test]
fn answers_are_held_to_a_schema_or_a_grammar() {
    let schema = r#"{"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": false}"#;
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("schema.json").display().to_string();
    fs::write(&path, schema).expect("the file can be written");
    let answer = succeed([&["run", "Hello", "--json-schema", schema][..], &GREEDY].concat());
    let value: Value = serde_json::from_str(&answer).expect("the answer is JSON");
    assert!(value["a"] == "x" || value["a"] == "y", "{answer}");
    assert_eq!(succeed([&["run", "Hello", "--json-schema", &path][..], &GREEDY].concat()), answer);
    let grammar = "start: \"yes\" | \"no\"";
    let answer = succeed([&["run", "Hello", "--grammar", grammar][..], &GREEDY].concat());
    assert!(answer == "yes\n" || answer == "no\n", "{answer}");
    refuse(["run", "Hello", "--json-schema", "{\"type\": \"wizard\"}"], &["wizard"]);
    refuse(["run", "Hello", "--json-schema", "{no JSON"], &["--json-schema: expected JSON"]);
    refuse(["run", "Hello", "--grammar", "/no/such/file"], &["/no/such/file"]);
}

#[test]
fn probabilities_are_printed_where_they_are_asked_for() {
    let asked = ["run", "--raw", "Once upon a time", "--json", "--logprobs", "2"];
    let answer = succeed_json([&asked[..], &GREEDY].concat());
    let (ids, found) = (answer["ids"].as_array().expect("ids"), answer["logprobs"].as_array().expect("they are there"));
    assert_eq!(found.len(), ids.len());
    for (one, id) in found.iter().zip(ids) {
        assert_eq!((&one["id"], &one["top"][0]["id"], one["top"].as_array().map(Vec::len)), (id, id, Some(2)), "{one}");
        assert!(one["logprob"].as_f64() <= Some(0.0) && one["token"].is_string(), "{one}");
    }
    assert!(stderr(&output(["run", "x", "--logprobs", "2"])).contains("--json"));
    refuse(["run", "--raw", "x", "--json", "--logprobs", "21"], &["--logprobs", "20"]);
}

#[test]
fn a_prompt_is_kept_in_a_file_and_taken_from_there() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("prompt").display().to_string();
    let story = "Once upon a time there was a little fox who lived in the forest with his friend the owl. ".repeat(3);
    let run = |text: &str| output([&["run", "--raw", text, "--prompt-cache", &path][..], &GREEDY].concat());
    let plain = succeed([&["run", "--raw", &format!("{story}One day")][..], &GREEDY].concat());
    let first = run(&story);
    assert!(first.status.success() && stderr(&first).contains("0 of "), "{}", stderr(&first));
    let second = run(&format!("{story}One day"));
    assert_eq!(stdout(&second), plain);
    assert!(
        !stderr(&second).contains("note: 0 of ") && stderr(&second).contains("of the prompt are from"),
        "{}",
        stderr(&second)
    );
    // What is something else is left alone.
    let letter = folder.path().join("letter.txt").display().to_string();
    fs::write(&letter, "Dear Ada").expect("it can be written");
    refuse(["run", "--raw", "x", "--prompt-cache", &letter], &["--prompt-cache", "letter.txt, which is another file"]);
    assert_eq!(fs::read_to_string(&letter).ok().as_deref(), Some("Dear Ada"));
    let llama = model("llama").display().to_string();
    refuse(["run", &llama, "--ids", "1,2,3", "--prompt-cache", &path], &["which is another one's"]);
    refuse(
        ["run", "--raw", "x", "--prompt-cache", &path, "--kernels", "standard"],
        &["--prompt-cache", "fused kernels"],
    );
}

#[test]
fn a_saved_prompt_is_of_one_model_to_the_last_value_and_lost_only_with_a_word() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo-model");
    for file in fs::read_dir(demo).expect("it is there") {
        let file = file.expect("it can be listed");
        fs::copy(file.path(), folder.path().join(file.file_name())).expect("it can be copied");
    }
    let own = folder.path().display().to_string();
    let path = folder.path().join("prompt").display().to_string();
    let long = "Once upon a time there was a little fox who lived in the forest with his friend the owl. ".repeat(6);
    let run = |model: &str, text: &str, flags: &[&str]| {
        let asked = ["run", model, "--raw", text, "-n", "2", "--temperature", "0", "--prompt-cache", &path];
        output([&asked[..], flags].concat())
    };
    assert!(run(&own, &long, &[]).status.success());
    let saved = fs::read(&path).expect("it was saved");
    let short = run(&own, "Once", &["--prompt-cache-ro"]);
    assert!(!stderr(&short).contains("make room"), "{}", stderr(&short));
    assert_eq!(fs::read(&path).ok().as_ref(), Some(&saved), "it is only read");
    // One value of the embedding, between the samples that a verdict is about; also where it is quantized.
    let quantized = ["--quantize", "q8_0"];
    let of_quantized = folder.path().join("quantized").display().to_string();
    let run_quantized = || {
        let asked = ["run", &own, "--raw", &long, "-n", "2", "--temperature", "0", "--prompt-cache", &of_quantized];
        output([&asked[..], &quantized].concat())
    };
    assert!(run_quantized().status.success());
    assert!(run_quantized().status.success());
    let weights = folder.path().join("model.safetensors");
    let before = fs::read(&weights).expect("it can be read");
    let mut changed = before.clone();
    let header = 8 + u64::from_le_bytes(*changed.first_chunk().expect("it has a header")) as usize;
    let tensors: Value = serde_json::from_slice(&changed[8..header]).expect("it is JSON");
    let embedding = tensors["model.embed_tokens.weight"]["data_offsets"][0].as_u64().expect("it has a place");
    changed[header + embedding as usize + 5001] ^= 1;
    fs::write(&weights, &changed).expect("it can be written");
    let other = run(&own, &long, &[]);
    assert!(other.status.code() == Some(3) && stderr(&other).contains("another one's"), "{}", stderr(&other));
    let other = run_quantized();
    assert!(other.status.code() == Some(3) && stderr(&other).contains("another one's"), "{}", stderr(&other));
    assert_eq!(fs::read(&path).ok().as_ref(), Some(&saved), "it is left alone");
    fs::remove_file(&path).expect("it can be removed");
    assert!(run(&own, &long, &[]).status.success());
    let short = run(&own, "Once", &[]);
    assert!(stderr(&short).contains("make room for this prompt"), "{}", stderr(&short));
    let nowhere = folder.path().join("none/prompt").display().to_string();
    refuse(["run", &own, "x", "--prompt-cache", &nowhere], &["--prompt-cache", "a folder that is there"]);
}

#[test]
fn a_chat_reads_lines_from_a_pipe() {
    let (answers, said) = piped(&[&["chat"][..], &GREEDY].concat(), "Hello\n\nWhat is 2+2?\n/help\n");
    assert!(said.contains("/reset") && said.contains("forgets the chat"), "{said}");
    let lines: Vec<&str> = answers.lines().collect();
    assert!(lines.len() == 2 && lines[1].contains("I only know little stories"), "{answers}");
    // The second answer knows the first message.
    let (alone, _) = piped(&[&["chat", "--context", "64"][..], &GREEDY].concat(), "Hello");
    assert_eq!(alone.lines().next(), Some(lines[0]));
}

#[test]
fn tokenize_shows_ids_and_pieces() {
    let dir = fixtures().join("text/tokenizers/bytelevel").display().to_string();
    let with = succeed_json(["tokenize", &dir, "Hello!", "--json"]);
    let without = succeed_json(["tokenize", &dir, "Hello!", "--no-special", "--json"]);
    let ids = |value: &Value| value["ids"].as_array().expect("ids are a list").len();
    assert_eq!(ids(&with), ids(&without) + 1);
    assert_eq!(with["pieces"][0], "<|begin|>");
    let file = format!("{dir}/tokenizer.json");
    assert_eq!(succeed_json(["tokenize", &file, "Hello!", "--json"]), with, "a file that holds only a vocabulary");
    assert!(succeed(["tokenize", &dir, "Hello!"]).lines().next().is_some_and(|line| line.contains("\"<|begin|>\"")));
}

#[test]
fn unused_tensors_are_ignored_with_one_line_that_names_them() {
    let broken =
        Broken::copy_of("llama-bias").edit_json("config.json", |config| config["attention_bias"] = false.into());
    let output = output(broken.run_args());
    assert!(output.status.success());
    let notes: Vec<String> =
        stderr(&output).lines().filter(|line| line.contains("ignored")).map(str::to_owned).collect();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("`model.layers.0.self_attn.k_proj.bias`"), "{notes:?}");
}

#[test]
fn a_stored_head_that_differs_from_the_embedding_is_used_and_said() {
    let tied = Broken::copy_of("llama").edit_json("config.json", |config| config["tie_word_embeddings"] = true.into());
    let output = output(tied.run_args());
    assert!(output.status.success());
    assert!(stderr(&output).contains("`lm_head.weight` differs from it: using the stored head"), "{}", stderr(&output));
    let original = Broken::copy_of("llama");
    assert_eq!(stdout(&output), succeed(original.run_args()));
}

#[test]
fn models_lists_every_architecture_and_fixture() {
    let rows = succeed_json(["models", "--json"]);
    let rows = rows.as_array().expect("models is a list");
    let mut listed: Vec<&str> = rows
        .iter()
        .flat_map(|row| row["verified"]["fixtures"].as_array().expect("fixtures are a list"))
        .filter_map(Value::as_str)
        .collect();
    listed.sort_unstable();
    assert_eq!(listed, models(), "the registry names each fixture once");
    for row in rows {
        let name = row["architecture"].as_str().expect("architectures have names");
        for fixture in row["verified"]["fixtures"].as_array().expect("fixtures are a list") {
            let config = config(fixture.as_str().expect("names are text"));
            let known = config["model_type"] == name
                || row["aliases"].as_array().is_some_and(|a| a.contains(&config["model_type"]));
            assert!(known, "{fixture} is listed under {name}");
        }
    }
    let table = succeed(["models"]);
    assert!(rows.iter().all(|row| table.contains(row["architecture"].as_str().unwrap_or_default())));
}

#[test]
fn devices_lists_the_cpu_and_every_gpu() {
    let rows = succeed_json(["devices", "--json"]);
    let rows = rows.as_array().expect("devices is a list");
    assert_eq!((rows[0]["device"].as_str(), rows[0]["usable"].as_bool()), (Some("cpu"), Some(true)));
    for (index, row) in rows[1..].iter().enumerate() {
        assert_eq!(row["device"], format!("gpu:{index}"));
        assert!(["backend", "driver", "name"].iter().all(|part| row[part].is_string()), "{row}");
    }
    let table = succeed(["devices"]);
    assert!(rows.iter().all(|row| table.contains(row["device"].as_str().unwrap_or_default())), "{table}");
}

#[test]
fn a_gpu_that_is_not_there_is_refused_by_name() {
    let model = model("llama");
    let args = |device: &'static str| ["run", model.to_str().expect("UTF-8"), "--ids", "1", "--device", device];
    refuse(args("no such card"), &["no GPU called `no such card`"]);
    refuse(args("gpu:99"), &["no GPU number 99"]);
}

/// Whatever GPUs there are, the answer is that of the CPU.
#[test]
fn the_best_device_answers_as_the_cpu_does() {
    let model = model("llama");
    let on = |device: &'static str| {
        let model = model.to_str().expect("UTF-8");
        succeed(["run", model, "--ids", "1,2,3", "--precision", "exact", "--device", device])
    };
    assert_eq!(on("auto"), on("cpu"));
    let rows = succeed_json(["devices", "--json"]);
    if rows.as_array().is_some_and(|rows| rows.len() > 1) {
        assert_eq!(on("gpu"), on("cpu"));
    }
}

#[test]
fn help_and_completions() {
    for args in
        [&["--help"][..], &["run", "--help"], &["help", "logits"], &["completions", "bash"], &["completions", "zsh"]]
    {
        assert!(succeed(args).len() > 200, "{args:?}");
    }
    assert!(succeed(["man"]).starts_with(".ie") && succeed(["man"]).contains("braidinfer\\-serve(1)"));
    assert!(succeed(["man", "serve"]).contains("max\\-sequences"));
    refuse(["man", "worker"], &["expected a command"]);
    assert!(succeed(["--version"]).starts_with("braidinfer "));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = braidinfer(["run", "Once upon a time", "--ignore-eos", "--max-tokens", "400"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the binary ends");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_the_answer_cleanly() {
    let args = ["run", "Once upon a time", "--ignore-eos", "--max-tokens", "500", "--context", "600", "--threads", "1"];
    let mut child = braidinfer(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    let mut first = [0; 1];
    let mut stdout = child.stdout.take().expect("stdout is piped");
    stdout.read_exact(&mut first).expect("the answer begins");
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(killed.expect("kill runs").success());
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("the answer is text");
    let output = child.wait_with_output().expect("the binary ends");
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(rest.ends_with('\n') && rest.split_whitespace().count() < 400, "{rest}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("the device exists");
    let output = braidinfer(["models"]).stdout(full).output().expect("the binary starts");
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("error: stdout: No space left on device"), "{}", stderr(&output));
}

/// Writes a file of the demo model and returns its path.
fn quantized_demo(folder: &Path, file_type: &str) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo-model").display().to_string();
    let path = folder.join(format!("demo-{file_type}.gguf")).display().to_string();
    let summary = succeed(["quantize", &directory, &path, "--type", file_type]);
    assert!(summary.starts_with(&path) && summary.contains("tensors: "), "{summary}");
    path
}

#[test]
fn a_file_tells_the_story_of_the_directory_it_was_made_from() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let path = quantized_demo(folder.path(), "f32");
    let story = |model: &[&str]| {
        let prompt = ["Once upon a time", "--seed", "1", "--max-tokens", "60"];
        succeed(["run"].iter().chain(model).chain(&prompt))
    };
    assert_eq!(story(&[&path]), story(&[]), "sampling settings and tokenizer go with the file");
    let json = succeed_json(["inspect", &path, "--json"]);
    assert_eq!(json["tokenizer"]["kind"], "byte-level BPE in GGUF");
    assert_eq!((json["dtype"].as_str(), json["chat_template"].as_bool()), (Some("f32"), Some(true)));
    assert_eq!(json["generation"]["eos_token_id"], json!([0, 3]));
    let ids = |args: &[&str]| succeed(["tokenize"].iter().chain(args).chain(&["Hello world, 123!<|end|>"]));
    assert_eq!(ids(&[&path]), ids(&[]));
}

#[test]
fn quantized_models_run_from_a_file_and_in_memory() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    for file_type in ["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "mxfp4", "q4_k_m", "q4_0"] {
        let path = quantized_demo(folder.path(), file_type);
        let prompt = ["Once upon a time", "--temperature", "0", "--max-tokens", "24"];
        for kernels in [["--kernels", "auto"], ["--kernels", "standard"]] {
            let from_file = succeed(["run", &path].iter().chain(&prompt).chain(&kernels));
            let in_memory = ["--quantize", file_type];
            assert_eq!(
                from_file,
                succeed(["run"].iter().chain(&prompt).chain(&in_memory).chain(&kernels)),
                "{file_type}"
            );
        }
        let standard = succeed(["run", &path].iter().chain(&prompt).chain(&["--kernels", "standard"]));
        let exact = ["--kernels", "fused", "--dtype", "f32"];
        assert_eq!(standard, succeed(["run", &path].iter().chain(&prompt).chain(&exact)), "{file_type}");
    }
}

#[test]
fn a_model_of_the_cache_runs_without_a_network() {
    let cache = TempDir::new().expect("a temporary folder can be made");
    let repo = cache.path().join("models--org--tiny");
    let commit = "0123456789012345678901234567890123456789";
    let snapshot = repo.join("snapshots").join(commit);
    fs::create_dir_all(repo.join("refs")).expect("a folder can be made");
    fs::create_dir_all(&snapshot).expect("a folder can be made");
    fs::write(repo.join("refs/main"), commit).expect("the file can be written");
    for file in ["config.json", "model.safetensors", "generation_config.json"] {
        fs::copy(model("llama").join(file), snapshot.join(file)).expect("the file can be copied");
    }
    fs::copy(fixtures().join("gguf/models/llama.gguf"), snapshot.join("tiny-BF16.gguf")).expect("it can be copied");
    let run = |id: &str| {
        let args = ["run", id, "--ids", "1,2,3", "--max-tokens", "4", "--temperature", "0", "--json"];
        let output = braidinfer(args).env("HF_HUB_CACHE", cache.path()).output().expect("the binary starts");
        assert!(output.status.success(), "{}", stderr(&output));
        let answer: Value = serde_json::from_str(&stdout(&output)).expect("stdout is JSON");
        answer["ids"].clone()
    };
    assert_eq!(run("org/tiny"), run("org/tiny:BF16"));
    assert_eq!(run("org/tiny"), run("org/tiny@main"));
    let pulled =
        braidinfer(["pull", "org/tiny"]).env("HF_HUB_CACHE", cache.path()).output().expect("the binary starts");
    assert_eq!(Path::new(stdout(&pulled).trim()), snapshot);
}
