//! Bad input: one clear line, exit code 3, no backtrace.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use crate::support::{self, Broken, braidinfer, fixtures, model, refuse, stderr, succeed};
use serde_json::json;
use tempfile::TempDir;

#[test]
fn a_missing_directory() {
    refuse(
        ["run", "/no/such/model", "--ids", "1"],
        &["/no/such/model: expected a model directory or a GGUF file, found nothing"],
    );
    refuse(
        ["run", "org/name", "hi"],
        &["org/name: no such file or directory, so taken for a model of the Hub", "org/name is not whole in the cache"],
    );
    let file = model("llama").join("config.json").display().to_string();
    refuse(["run", &file, "--ids", "1"], &["expected a model directory or a GGUF file, found a file of another kind"]);
    refuse(
        ["run", "model.gguf", "--ids", "1"],
        &["model.gguf: expected a model directory or a GGUF file, found nothing"],
    );
}

#[test]
fn a_missing_or_broken_config() {
    Broken::copy_of("llama").remove("config.json").refused(&["expected `config.json`, found no such file"]);
    Broken::copy_of("llama").write("config.json", "{\"a\": ").refused(&["config.json: expected a JSON object", "EOF"]);
    Broken::copy_of("llama")
        .write("config.json", "[1]")
        .refused(&["config.json: expected a JSON object, found a list"]);
}

#[test]
fn an_unknown_or_refused_architecture() {
    let with_type =
        |name: &str| Broken::copy_of("llama").edit_json("config.json", |config| config["model_type"] = json!(name));
    with_type("mamba")
        .refused(&["config.json: model_type `mamba` is not a known architecture; supported: llama, mistral"]);
    let stacked = "model_type `gpt_neox` stacks queries, keys and values head by head in one tensor";
    with_type("gpt_neox").refused(&[stacked, "supported: llama"]);
    with_type("mixtral").refused(&["a tensor of shape"]);
    let nameless = Broken::copy_of("llama").edit_json("config.json", |config| {
        config.as_object_mut().expect("config is an object").remove("model_type");
    });
    nameless.refused(&["field `model_type`: expected the name of an architecture, found nothing"]);
}

#[test]
fn wrong_config_values() {
    let with = |field: &'static str, value: serde_json::Value| {
        Broken::copy_of("llama").edit_json("config.json", |config| config[field] = value)
    };
    with("hidden_size", json!(-4)).refused(&["field `hidden_size`: expected a positive whole number", "found -4"]);
    with("hidden_size", json!("big")).refused(&["field `hidden_size`", "found \"big\""]);
    with("num_hidden_layers", json!(u64::MAX)).refused(&["field `num_hidden_layers`"]);
    with("num_hidden_layers", json!(4_000_000)).refused(&["field `num_hidden_layers`: expected at most 4096"]);
    with("num_key_value_heads", json!(3)).refused(&["field `num_key_value_heads`: expected a divisor of 4"]);
    with("hidden_act", json!("mish")).refused(&["field `hidden_act`", "found `mish`"]);
    with("rope_scaling", json!({"type": "spiral"})).refused(&["field `rope_scaling.type`", "found `spiral`"]);
    with("rope_scaling", json!({"type": "linear"})).refused(&["field `rope_scaling.factor`", "found nothing"]);
    with("rms_norm_eps", json!(0)).refused(&["field `rms_norm_eps`: expected a number above zero, found 0"]);
    let refused = ["field `quantization_config`", "one quantized by mxfp4, fp8", "found weights quantized by quanto"];
    with("quantization_config", json!({"quant_method": "quanto"})).refused(&refused);
}

#[test]
fn a_truncated_file() {
    let broken = Broken::copy_of("llama").edit("model.safetensors", |bytes| bytes.truncate(bytes.len() - 1000));
    broken.refused(&["model.safetensors: expected", "bytes of tensor data", "the file is cut short"]);
    Broken::copy_of("llama")
        .write("model.safetensors", "")
        .refused(&["expected a non-empty file, found an empty file"]);
    let broken = Broken::copy_of("llama").write("model.safetensors", "1234");
    broken.refused(&["expected a safetensors header, found a file of 4 bytes"]);
}

#[test]
fn a_header_longer_than_the_file() {
    let broken = Broken::copy_of("llama").edit("model.safetensors", |bytes| {
        bytes[..8].copy_from_slice(&50_000_000u64.to_le_bytes());
    });
    broken.refused(&[
        "expected a header that ends inside the file, found a header length of 50000000 bytes in a file of",
    ]);
    let broken = Broken::copy_of("llama").edit("model.safetensors", |bytes| bytes[..8].fill(0xff));
    broken.refused(&["expected a safetensors header of at most 100 MB", "18446744073709551615"]);
}

#[test]
fn overlapping_and_outlying_offsets() {
    let offsets = |begin: u64, end: u64| {
        Broken::copy_of("llama").edit_header(move |header| {
            header["model.norm.weight"]["data_offsets"] = json!([begin, end]);
        })
    };
    offsets(0, 96)
        .refused(&["model.safetensors: tensor `", "expected data offsets that begin where the tensor before ends"]);
    offsets(1 << 40, (1 << 40) + 96).refused(&["model.safetensors: tensor `", "data offsets"]);
    offsets(96, 0).refused(&["model.safetensors: tensor `", "data offsets"]);
}

#[test]
fn a_wrong_shape_or_type() {
    let broken = Broken::copy_of("llama").edit_header(|header| {
        let shape = &mut header["model.layers.0.mlp.down_proj.weight"]["shape"];
        let swapped = json!([shape[1], shape[0]]);
        *shape = swapped;
    });
    broken.refused(&["tensor `model.layers.0.mlp.down_proj.weight`: expected shape [48, ", "found shape ["]);
    let broken = Broken::copy_of("llama").edit_header(|header| header["model.norm.weight"]["dtype"] = json!("I16"));
    broken.refused(&["tensor `model.norm.weight`: expected values of type F32, F16 or BF16, found I16"]);
    let broken = Broken::copy_of("llama").edit_header(|header| header["model.norm.weight"]["dtype"] = json!("F32"));
    broken.refused(&["tensor `model.norm.weight`: expected as many bytes as its shape and type need"]);
}

#[test]
fn a_missing_shard_or_tensor() {
    let index = "model.safetensors.index.json";
    let broken = Broken::copy_of("llama-sharded");
    let text = fs::read_to_string(broken.file(index)).expect("the fixture has an index");
    let shard = text
        .split('"')
        .find(|part| part.ends_with("00002-of-00003.safetensors"))
        .expect("there is a second shard")
        .to_owned();
    broken.remove(&shard).refused(&[&shard, "expected the shard that", "found no such file"]);
    let outside = Broken::copy_of("llama-sharded").edit_json(index, |index| {
        index["weight_map"]["model.norm.weight"] = json!("../secret.safetensors");
    });
    outside.refused(&["field `weight_map.model.norm.weight`: expected a file name without a path"]);
    Broken::copy_of("llama").remove("model.safetensors").refused(&["expected `model.safetensors` or", "found neither"]);
}

#[test]
fn an_untied_model_without_a_head() {
    let broken = Broken::copy_of("llama").edit_header(|header| {
        let header = header.as_object_mut().expect("the header is an object");
        let head = header.remove("lm_head.weight").expect("the model has a head");
        header.insert("something_else".into(), head);
    });
    broken.refused(&["tensor `lm_head.weight`: expected a tensor of shape [256, 48], found no such tensor"]);
}

#[test]
fn a_weight_that_is_not_a_number() {
    let broken = Broken::copy_of("llama-f32");
    let path = broken.file("model.safetensors");
    let bytes = fs::read(&path).expect("the fixture has weights");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("the fixture is whole");
    let tensor = tensors.tensor("model.layers.1.self_attn.v_proj.weight").expect("the tensor exists").data();
    let at = tensor.as_ptr() as usize - bytes.as_ptr() as usize + 5 * 4;
    let with = |value: f32| {
        Broken::copy_of("llama-f32")
            .edit("model.safetensors", |bytes| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes()))
    };
    let name = "tensor `model.layers.1.self_attn.v_proj.weight`: expected ";
    with(f32::NAN).refused(&[name, "finite values, found NaN at index 5"]);
    with(f32::INFINITY).refused(&[name, "finite values, found inf at index 5"]);
    let large = with(1e6);
    let mut args = large.run_args();
    args.extend(["--dtype".into(), "f16".into()]);
    refuse(args, &[name, "values within the range of f16, found 1000000 at index 5"]);
}

#[test]
fn bad_prompts() {
    let dir = model("llama").display().to_string();
    refuse(["run", &dir, "--ids", "1,256"], &["token id: expected below the vocabulary size 256, found 256"]);
    refuse(["logits", &dir, "--ids", "9999"], &["token id: expected below the vocabulary size 256, found 9999"]);
    let long = vec!["1"; 129].join(",");
    refuse(["run", &dir, "--ids", &long], &["the prompt has 129 tokens, but the context holds 128"]);
    refuse(["logits", &dir, "--ids", &long], &["the prompt has 129 tokens, but the context holds 128"]);
    refuse(["run", &dir, "--ids", "1,2,3", "--context", "2"], &["the prompt has 3 tokens, but the context holds 2"]);
    refuse(["run", &dir, "some text"], &["the model has no tokenizer", "give token ids instead"]);
    refuse(["run", &dir], &["expected a prompt, found an empty text"]);
    refuse(["run", &dir, "text", "--ids", "1"], &["expected one source of text"]);
    refuse(["run", "--file", "/no/such/prompt"], &["/no/such/prompt: No such file"]);
}

#[test]
fn bytes_that_are_not_text() {
    let mut child =
        braidinfer(["run"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    child.stdin.take().expect("stdin is piped").write_all(b"abc\xff").expect("the binary reads");
    let output = child.wait_with_output().expect("the binary ends");
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("standard input: expected UTF-8 text, found an invalid byte at offset 3"));
}

#[test]
fn invalid_sampling_values() {
    let dir = model("llama").display().to_string();
    for (flag, value, message) in [
        ("--temperature", "-1", "temperature: expected a number of at least 0, found -1"),
        ("--temperature", "nan", "temperature: expected a number of at least 0, found NaN"),
        ("--top-p", "0", "top-p: expected a number above 0 and at most 1, found 0"),
        ("--top-p", "1.5", "top-p: expected a number above 0 and at most 1, found 1.5"),
        ("--min-p", "-0.1", "min-p: expected a number from 0 to 1, found -0.1"),
        ("--top-k", "0", "top-k: expected a whole number of at least 1, found 0"),
        ("--repetition-penalty", "0", "repetition-penalty: expected a number from 0.001 to 1000, found 0"),
        ("--presence-penalty", "3", "presence-penalty: expected a number from -2 to 2, found 3"),
        ("--max-tokens", "0", "max-tokens: expected a whole number of at least 1, found 0"),
        ("--stop", "", "stop: expected a text of at least one character"),
        ("--threads", "0", "threads: expected from 1 to 512, found 0"),
        ("--threads", "100000", "threads: expected from 1 to 512, found 100000"),
        ("--context", "0", "context: expected from 1 to 2147483648 tokens, found 0"),
        ("--context", "99999999999", "context: expected from 1 to 2147483648 tokens, found 99999999999"),
        (
            "--device",
            "gpu:x",
            "device: expected cpu, auto, gpu, gpu:N, a GPU's name, several GPUs such as gpu:0+gpu:1, cuda, cuda:N or metal, found `gpu:x`",
        ),
        ("--device", "cuda", "device cuda:0"),
    ] {
        refuse(["run", &dir, "--ids", "1", flag, value], &[message]);
    }
}

#[test]
fn usage_errors_exit_with_the_same_code() {
    for args in [&["run", "--ids", "1,x"][..], &["run", "--no-such-flag"], &["fly"], &["logits"]] {
        let output = support::output(args);
        assert_eq!(output.status.code(), Some(3), "{args:?}");
        assert!(stderr(&output).starts_with("error: "), "{}", stderr(&output));
    }
}

#[test]
fn broken_tokenizers_and_templates() {
    let broken = Broken::copy_of("llama").write("tokenizer.json", "{}");
    broken.refused(&["tokenizer.json: not a usable tokenizer"]);
    let broken = Broken::copy_of("llama").write("tokenizer.model", "no protobuf at all");
    broken.refused(&["tokenizer.model: not a SentencePiece model"]);
    let broken = Broken::copy_of("llama").write("chat_template.jinja", "{% for m in messages %}\n{{ m.role }");
    // It stops only what needs it.
    let output = support::output(broken.run_args());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for part in ["chat_template.jinja: expected a Jinja template, found syntax error", "in line 2", "chats are refused"]
    {
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
    }
    let path = broken.path().display().to_string();
    let validated = support::output(["validate", &path]);
    assert!(support::stdout(&validated).contains("correct chat_template"), "{}", stderr(&validated));
    let other = broken.file("other.jinja");
    fs::write(&other, "{{ messages[0].content }}").expect("the file can be written");
    let args = [broken.run_args(), vec!["--chat-template".into(), other.display().to_string()]].concat();
    assert!(!stderr(&support::output(args)).contains("chats are refused"), "another template is taken");
    let args = [broken.run_args(), vec!["--chat-template".into(), "/absent.jinja".into()]].concat();
    assert!(
        stderr(&support::output(args)).contains("/absent.jinja: expected a file with a chat template"),
        "an absent one is not"
    );
    let broken = Broken::copy_of("llama").write("generation_config.json", "{\"eos_token_id\": 1.5}");
    broken.refused(&["generation_config.json: field `eos_token_id`: expected a token id", "found 1.5"]);
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_in_place_of_files_do_not_hang() {
    let broken = Broken::copy_of("llama").remove("model.safetensors");
    let made = std::process::Command::new("mkfifo").arg(broken.file("model.safetensors")).status();
    assert!(made.expect("mkfifo runs").success());
    broken.refused(&["model.safetensors: expected a non-empty file, found something that is not a plain file"]);
    let endless = Broken::copy_of("llama").remove("config.json");
    std::os::unix::fs::symlink("/dev/zero", endless.file("config.json")).expect("a link can be made");
    endless.refused(&["config.json: expected a plain file, found something else"]);
}

/// A copy of a GGUF fixture that may be broken.
struct BrokenGguf {
    folder: TempDir,
    bytes: Vec<u8>,
}

impl BrokenGguf {
    fn copy_of(name: &str) -> Self {
        let bytes = fs::read(fixtures().join(format!("gguf/models/{name}.gguf"))).expect("the fixture exists");
        Self { folder: TempDir::new().expect("a temporary folder can be made"), bytes }
    }

    /// Where `text` ends for the first time.
    fn after(&self, text: &str) -> usize {
        let found = self.bytes.windows(text.len()).position(|window| window == text.as_bytes());
        found.expect("the file has the text") + text.len()
    }

    fn replace(mut self, old: &str, new: &str) -> Self {
        assert_eq!(old.len(), new.len());
        let end = self.after(old);
        self.bytes[end - new.len()..end].copy_from_slice(new.as_bytes());
        self
    }

    fn edit(mut self, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        change(&mut self.bytes);
        self
    }

    fn refused(&self, parts: &[&str]) {
        let path = self.folder.path().join("broken.gguf");
        fs::write(&path, &self.bytes).expect("the file can be written");
        let path = path.display().to_string();
        let parts: Vec<&str> = parts.iter().copied().chain(["broken.gguf: "]).collect();
        refuse(["run", &path, "--ids", "1,2,3", "--max-tokens", "2"], &parts);
    }
}

#[test]
fn a_broken_gguf_file() {
    let broken = || BrokenGguf::copy_of("llama");
    broken().edit(|bytes| bytes[0] = b'X').refused(&["expected a GGUF file, which begins with `GGUF`"]);
    broken().edit(|bytes| bytes[4] = 1).refused(&["expected GGUF version 2 or 3, found version 1"]);
    broken()
        .edit(|bytes| bytes[4..8].reverse())
        .refused(&["expected a little-endian GGUF file, found a big-endian one"]);
    broken()
        .edit(|bytes| bytes[8..16].fill(0xff))
        .refused(&["tensors, which is what the file has room for, found 1844"]);
    broken().edit(|bytes| bytes.truncate(800)).refused(&["expected", " bytes of ", "to the end of the file"]);
    broken().edit(|bytes| bytes.truncate(bytes.len() - 1000)).refused(&[
        "tensor `",
        "of data inside the file",
        "is the file cut short?",
    ]);
    broken().edit(|bytes| bytes.clear()).refused(&["expected a non-empty file, found an empty file"]);
}

#[test]
fn gguf_files_that_say_what_we_cannot_run() {
    let broken = || BrokenGguf::copy_of("llama");
    let architecture = broken().after("general.architecture") + 4 + 8;
    let renamed = broken().edit(|bytes| bytes[architecture..architecture + 5].copy_from_slice(b"mamba"));
    renamed.refused(&["model_type `mamba` is not a known architecture; supported: arcee, cohere2"]);
    let missing = broken().replace("llama.block_count", "llama.block_cound");
    missing.refused(&["field `llama.block_count`: expected a positive whole number, found nothing"]);
    let tensor = broken().after("blk.0.ffn_down.weight") + 4 + 16;
    let type_number =
        |number: u32| broken().edit(|bytes| bytes[tensor..tensor + 4].copy_from_slice(&number.to_le_bytes()));
    type_number(15).refused(&["tensor `blk.0.ffn_down.weight`: expected values of type F32, F16", "found Q8_K"]);
    type_number(12).refused(&["tensor `blk.0.ffn_down.weight`: expected rows of whole blocks of 256 values"]);
    let missing = broken().replace("blk.1.attn_k.weight", "blk.1.attn_z.weight");
    missing.refused(&["tensor `blk.1.attn_k.weight`: expected a tensor of shape", "found no such tensor"]);
}

#[test]
fn shards_that_are_missing_or_not_the_first() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let shard = |number: usize| format!("llama-split-{number:05}-of-00003.gguf");
    for number in [1, 3] {
        let original = fixtures().join("gguf/models").join(shard(number));
        fs::copy(original, folder.path().join(shard(number))).expect("the file can be copied");
    }
    let path = |number: usize| folder.path().join(shard(number)).display().to_string();
    refuse(["run", &path(1), "--ids", "1"], &["llama-split-00002-of-00003.gguf: No such file"]);
    let first = "expected the first shard of the model, llama-split-00001-of-00003.gguf, found shard 3 of 3";
    refuse(["run", &path(3), "--ids", "1"], &[first]);
    let renamed = folder.path().join("renamed.gguf");
    fs::rename(path(1), &renamed).expect("the file can be renamed");
    let renamed = renamed.display().to_string();
    refuse(["run", &renamed, "--ids", "1"], &["expected a name that ends with `-00001-of-00003.gguf`"]);
    let folder = folder.path().display().to_string();
    refuse(
        ["run", &folder, "--ids", "1"],
        &["expected `config.json`, found no such file, but GGUF files", "renamed.gguf"],
    );
}

#[test]
fn quantizing_what_cannot_be() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let to = folder.path().join("x.gguf").display().to_string();
    let dynamic = model("llama-dynamic").display().to_string();
    refuse(["quantize", &dynamic, &to, "--type", "q8_0"], &["`rope[0].scaling`", "would read back as"]);
    let llama = model("llama").display().to_string();
    refuse(["quantize", &llama, "/dev/full/x.gguf", "--type", "q8_0"], &["/dev/full/x.gguf: "]);
    let full = braidinfer(["quantize", &llama, "/proc/x.gguf", "--type", "q8_0"]).output().expect("the binary starts");
    assert_eq!(stderr(&full).matches("os error").count(), 1, "{}", stderr(&full));
    let folder_of_that_name = folder.path().join("folder.gguf");
    fs::create_dir(&folder_of_that_name).expect("a folder can be made");
    let named = folder_of_that_name.display().to_string();
    refuse(["quantize", &llama, &named, "--type", "q8_0", "--force"], &["expected a plain file or nothing there"]);
    fs::remove_dir(&folder_of_that_name).expect("the folder is empty");
    let output = braidinfer(["quantize", &llama, &to, "--type", "q3"]).output().expect("the binary starts");
    assert!(stderr(&output).contains("expected a quantization type (f32, f16, bf16, q8_0"), "{}", stderr(&output));
    assert_eq!(fs::read_dir(folder.path()).expect("the folder can be listed").count(), 0);
}

/// A GGUF file without tensors, with these texts.
fn gguf_with(texts: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut bytes =
        [b"GGUF".as_slice(), &3_u32.to_le_bytes(), &0_u64.to_le_bytes(), &(texts.len() as u64).to_le_bytes()].concat();
    for (key, value) in texts {
        bytes.extend([text(key), 8_u32.to_le_bytes().to_vec(), text(value)].concat());
    }
    bytes
}

#[test]
fn what_is_no_model_is_named() {
    const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n";
    let weights = |broken: &Broken| fs::remove_file(broken.file("model.safetensors")).expect("they are there");
    let pointer = Broken::copy_of("llama").write("model.safetensors", POINTER);
    pointer.refused(&[
        "model.safetensors: expected a file of a model, found a pointer of Git LFS for 12345 bytes",
        "git lfs pull",
    ]);
    let page = Broken::copy_of("llama").write("config.json", "<!DOCTYPE html><html>");
    page.refused(&["config.json: expected a file of a model, found a web page"]);
    let pickle = Broken::copy_of("llama").write("pytorch_model.bin", "x");
    weights(&pickle);
    pickle.refused(&["expected weights as safetensors, found weights as a Python pickle", "save_pretrained"]);
    let shards = Broken::copy_of("llama").write("model-00001-of-00002.safetensors", "x");
    weights(&shards);
    shards.refused(&[
        "expected `model.safetensors.index.json`",
        "found 1 shards such as model-00001-of-00002.safetensors",
    ]);
    let adapter = Broken::copy_of("llama").write("adapter_config.json", "{\"base_model_name_or_path\": \"org/base\"}");
    adapter.refused(&["expected a model alone, found an adapter (adapter_config.json) beside it: move"]);
    fs::remove_file(adapter.file("config.json")).expect("it is there");
    adapter.refused(&[
        "found an adapter (adapter_config.json) alone: name its base model, org/base, with this folder as its adapter",
    ]);
    let original = Broken::copy_of("llama").write("params.json", "{}").write("consolidated.safetensors", "x");
    fs::remove_file(original.file("config.json")).expect("it is there");
    original.refused(&["layout of transformers, found weights in the layout of their maker"]);
    for (texts, says) in [
        ([("general.type", "adapter"), ("general.architecture", "llama")], "found a LoRA adapter"),
        ([("general.type", "mmproj"), ("general.architecture", "clip")], "found a projector"),
        ([("general.type", "model"), ("general.architecture", "clip")], "found a projector"),
        ([("general.type", "imatrix"), ("general.architecture", "")], "found an importance matrix"),
        ([("general.type", "model"), ("general.architecture", "controlvector")], "found a control vector"),
    ] {
        let folder = Broken::copy_of("llama");
        // Whatever its name is.
        for name in ["x.gguf", "blob"] {
            fs::write(folder.file(name), gguf_with(&texts)).expect("it can be written");
            refuse(["run", &folder.file(name).display().to_string(), "--ids", "1"], &[says]);
        }
    }
    let folder = Broken::copy_of("llama");
    for (name, text, says) in [
        ("p.gguf", POINTER, "found a pointer of Git LFS"),
        ("w.gguf", "<html>", "found a web page"),
        ("model.safetensors", "x", "name their directory"),
    ] {
        fs::write(folder.file(name), text).expect("it can be written");
        refuse(["run", &folder.file(name).display().to_string(), "--ids", "1"], &[says]);
    }
}

#[test]
fn other_tokenizers_and_encodings_are_named_and_marks_are_read() {
    let refused = |broken: &Broken, texts: &[&str]| {
        refuse(["run", &broken.path().display().to_string(), "some text"], texts);
    };
    let tekken = Broken::copy_of("llama").write("tekken.json", "{}");
    refused(&tekken, &["found Mistral's own tokenizer in tekken.json: take tokenizer.json"]);
    refused(
        &Broken::copy_of("llama").write("qwen.tiktoken", "IQ== 0\n"),
        &["a list of tokens for tiktoken in qwen.tiktoken"],
    );
    let original = Broken::copy_of("llama").write("tokenizer.model", "IQ== 0\nIg== 1\n");
    refused(&original, &["tokenizer.model: expected a SentencePiece model, found a list of tokens for tiktoken"]);
    let config = fs::read_to_string(model("llama").join("config.json")).expect("it can be read");
    let wide: Vec<u8> = "\u{feff}".encode_utf16().chain(config.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    let broken = Broken::copy_of("llama");
    fs::write(broken.file("config.json"), wide).expect("it can be written");
    broken.refused(&["config.json: expected a file of a model, found text in UTF-16"]);
    let marked = Broken::copy_of("llama").write("config.json", format!("\u{feff}{config}"));
    succeed(marked.run_args());
}

#[cfg(unix)]
#[test]
fn paths_need_not_be_utf_8() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().expect("a folder can be made");
    let odd = folder.path().join(OsStr::from_bytes(b"model \xff"));
    std::os::unix::fs::symlink(model("llama"), &odd).expect("a link can be made");
    let file = folder.path().join(OsStr::from_bytes(b"\xfe.gguf"));
    let succeeds = |args: &[&OsStr]| _ = succeed(args);
    let word = OsStr::new;
    succeeds(&[word("quantize"), odd.as_ref(), file.as_ref(), word("--type"), word("q8_0")]);
    for path in [&odd, &file] {
        succeeds(&[word("run"), path.as_ref(), word("--ids"), word("1,2"), word("-n"), word("2")]);
        succeeds(&[word("inspect"), path.as_ref()]);
        succeeds(&[word("logits"), path.as_ref(), word("--ids"), word("1")]);
    }
}
