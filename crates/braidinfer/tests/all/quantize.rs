//! Files that `quantize` writes: they hold the model that went in.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use crate::support::{Fixture, distance, feed, fixtures, read_json, tokenizer};
use braidinfer::executor::Kernels;
use braidinfer::executor::standard::ComputeDtype;
use braidinfer::model::ModelSource;
use braidinfer::model::quantization::FileType;
use braidinfer::text::Tokenizer;
use braidinfer::{Error, Llm, LoadOptions, QuantizeReport, Threads, quantize};
use serde_json::json;
use tempfile::TempDir;

/// Largest allowed difference of a logit between a directory and a file of its values.
const SAME: f32 = 1e-4;

/// Fixtures that GGUF cannot describe, with what the message has to say.
const REFUSED: [(&str, &str); 18] = [
    ("granite_swa", "for which GGUF has no form here"),
    ("granitemoe_swa", "for which GGUF has no form here"),
    ("gpt_oss", "swiglu_limit`"),
    ("apertus", "a apertus model, for which GGUF has no form"),
    ("lfm3", "a lfm3 model, for which GGUF has no form"),
    ("helium", "a helium model, for which GGUF has no form"),
    ("deepseek_v3-plain", "`rope[0].pairing`"),
    ("minicpm3", "multiplier`"),
    ("phimoe", "router_jitter_noise`"),
    ("phimoe-longrope", "`rope[0].scaling.long_attention_factor`"),
    ("ernie4_5_moe-bias", "`layers[1].feed_forward.router.norm_min`"),
    ("llama-dynamic", "`rope[0].scaling"),
    ("llama-yarn-mscale", "`rope[0].scaling.truncate`"),
    ("phi-qk-layernorm", "`attentions[0].qk_norm`"),
    ("qwen3_next-dense", "expert_count"),
    ("smollm3-window", "`layers[1].mixer.rope`"),
    ("falcon_h1-norm", "`mamba2s[0].least_step`"),
    ("nemotron_h-moe", "`mamba2s[0].least_step`"),
];

fn write(source: &ModelSource, path: &Path, file_type: FileType) -> Result<QuantizeReport, Error> {
    quantize(source, path, file_type, false, &threads(), &mut |_, _| ControlFlow::Continue(()))
}

fn open(path: &Path) -> ModelSource {
    ModelSource::open(path).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_fixture_comes_back_from_an_f32_file() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let mut refused = BTreeMap::new();
    for fixture in Fixture::all() {
        let path = folder.path().join(format!("{}.gguf", fixture.name));
        if let Err(error) = write(&fixture.source, &path, FileType::F32) {
            refused.insert(fixture.name.clone(), error.to_string());
            continue;
        }
        let again = Fixture { source: open(&path), ..Fixture::open(&fixture.name) };
        let (mut original, mut written) = (fixture.standard(), again.standard());
        for (prompt, expected) in fixture.prompts.iter().enumerate() {
            let rows = feed(&mut original, prompt, &expected.ids, usize::MAX >> 1);
            for (row, same) in rows.iter().zip(feed(&mut written, prompt, &expected.ids, usize::MAX >> 1)) {
                let distance = distance(row, &same);
                assert!(distance <= SAME, "{} prompt {prompt}: {distance:e}", fixture.name);
            }
        }
    }
    assert_eq!(refused.len(), REFUSED.len(), "{refused:#?}");
    for (name, reason) in REFUSED {
        assert!(refused.get(name).is_some_and(|message| message.contains(reason)), "{name}: {refused:#?}");
    }
}

/// The values of every tensor of a file, in f32.
fn values(source: &ModelSource) -> BTreeMap<String, Vec<f32>> {
    let checkpoint = source.gguf().expect("it is a GGUF file").checkpoint();
    let values = |name: &str| {
        let view = checkpoint.tensor(name).ok().flatten().expect("the file has the tensor");
        let convolves = name.ends_with("conv1d.weight") || name.ends_with("shortconv.conv.weight");
        assert!(!convolves || view.shape.len() == 2, "{name}: {:?}", view.shape);
        (name.to_owned(), view.read::<f32>().unwrap_or_else(|error| panic!("{error}")))
    };
    checkpoint.names().map(values).collect()
}

#[test]
fn files_hold_what_llama_cpps_converter_puts_there() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    for name in [
        "llama",
        "gemma2",
        "phi3",
        "olmoe",
        "qwen3_5",
        "qwen3_5_moe",
        "lfm2",
        "lfm2_moe",
        "granitemoehybrid",
        "granitemoehybrid-dense",
    ] {
        let path = folder.path().join(format!("{name}.gguf"));
        write(&Fixture::open(name).source, &path, FileType::F32).unwrap_or_else(|error| panic!("{error}"));
        let converted = values(&open(&fixtures().join(format!("gguf/models/{name}.gguf"))));
        let written = values(&open(&path));
        assert!(written.keys().eq(converted.keys()), "{name}: {:?} {:?}", written.keys(), converted.keys());
        for (tensor, written) in &written {
            // Exponentials differ in the last place.
            let distance = distance(written, &converted[tensor]);
            assert!(distance <= 2e-7 || tensor.ends_with("ssm_a") && distance <= 2e-6, "{name} {tensor}: {distance:e}");
        }
    }
}

#[test]
fn layers_that_share_keys_and_values_have_those_of_others_in_files_of_gemma3n() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let path = folder.path().join("written.gguf");
    write(&Fixture::open("gemma3n").source, &path, FileType::F32).unwrap_or_else(|error| panic!("{error}"));
    let converted = values(&open(&fixtures().join("gguf/models/gemma3n.gguf")));
    let written = values(&open(&path));
    // The fixture's converted file has none, as its checkpoint has none, but llama.cpp wants them.
    let repeated = |name: &str| {
        let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
        let source = match (layer, rest) {
            ("3", "attn_k.weight" | "attn_v.weight" | "attn_k_norm.weight") => "1",
            ("4", "attn_k.weight" | "attn_v.weight" | "attn_k_norm.weight") => "2",
            _ => return None,
        };
        Some(format!("blk.{source}.{rest}"))
    };
    assert_eq!(written.len(), converted.len() + 6);
    for (tensor, written) in &written {
        let expected = &converted[&repeated(tensor).unwrap_or_else(|| tensor.clone())];
        assert_eq!(distance(written, expected), 0.0, "{tensor}");
    }
}

#[test]
fn what_llama_cpp_takes_for_granted_is_said() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    for (name, said) in [
        ("lfm2_moe", "llama.cpp takes 1 for the factor of experts' weights in lfm2moe models, not "),
        ("deepseek_v2", "to have queries with a projection before theirs, and does not load this one"),
        ("gemma3n", "llama.cpp takes 64 values in low-rank branches in a gemma3n model, not 5"),
    ] {
        let path = folder.path().join(format!("{name}.gguf"));
        let report = write(&Fixture::open(name).source, &path, FileType::F32);
        let notes = report.unwrap_or_else(|error| panic!("{error}")).notes;
        assert!(notes.iter().any(|note| note.contains(said)), "{name}: {notes:?}");
    }
    let report = write(&Fixture::open("deepseek_v3").source, &folder.path().join("narrow.gguf"), FileType::F32);
    let notes = report.unwrap_or_else(|error| panic!("{error}")).notes;
    assert!(!notes.iter().any(|note| note.contains("queries")), "{notes:?}");
}

#[test]
fn memory_and_file_hold_the_same_weights() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    for name in ["llama-f32", "phi3", "gemma2", "qwen3", "qwen3_next"] {
        let fixture = Fixture::open(name);
        for file_type in FileType::ALL {
            let path = folder.path().join(format!("{name}-{file_type}.gguf"));
            write(&fixture.source, &path, file_type).unwrap_or_else(|error| panic!("{error}"));
            let ids = &fixture.prompts[2].ids;
            // Nothing is rounded but sums, so that what differs are weights.
            let from_file = LoadOptions { dtype: Some(ComputeDtype::F32), ..LoadOptions::default() };
            let in_memory = LoadOptions { quantize: Some(file_type), ..from_file.clone() };
            let logits = |source: &ModelSource, options: &LoadOptions| {
                let llm = Llm::open(source, options, &|_, _| {});
                llm.and_then(|mut llm| llm.logits(ids, true)).unwrap_or_else(|error| panic!("{error}")).concat()
            };
            let (file, memory) = (logits(&open(&path), &from_file), logits(&fixture.source, &in_memory));
            let distance = distance(&file, &memory);
            // Rows of queries and keys change places in some files, and with them the order of sums.
            assert!(distance <= SAME, "{name} {file_type}: {distance:e}");
        }
    }
}

#[test]
fn a_file_can_be_the_source() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    for name in ["llama3", "qwen3_5", "qwen3_5_moe", "qwen3_next"] {
        let fixture = Fixture::open(name);
        let file = |name: &str| folder.path().join(format!("{}-{name}.gguf", fixture.name));
        let (first, second) = (file("first"), file("second"));
        write(&fixture.source, &first, FileType::Q8_0).unwrap_or_else(|error| panic!("{error}"));
        let report = write(&open(&first), &second, FileType::Q8_0).unwrap_or_else(|error| panic!("{error}"));
        assert!(report.notes.iter().any(|note| note.contains("quantized before (q8_0)")), "{:?}", report.notes);
        // Values of q8_0 blocks are the values that make those blocks.
        let without_name = |path| {
            let bytes = fs::read(path).expect("the file is there");
            bytes[bytes.len() / 2..].to_vec()
        };
        assert!(without_name(&first) == without_name(&second), "{name}");
    }
}

#[test]
fn nothing_is_overwritten_and_nothing_half_written() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let path = folder.path().join("model.gguf");
    fs::write(&path, "mine").expect("the file can be written");
    let source = Fixture::open("llama").source;
    let error = write(&source, &path, FileType::F16).expect_err("the file is there");
    assert!(error.to_string().contains("model.gguf: expected no file of this name"), "{error}");
    let error = write(&source, &folder.path().join("model.bin"), FileType::F16).expect_err("the name is wrong");
    assert!(error.to_string().contains("expected a name that ends in .gguf"), "{error}");
    let cancelled = quantize(&source, &path, FileType::F16, true, &threads(), &mut |_, _| ControlFlow::Break(()));
    assert!(matches!(cancelled, Err(Error::Cancelled)));
    let missing = folder.path().join("no/such/folder/model.gguf");
    assert!(matches!(write(&source, &missing, FileType::F16), Err(Error::File { .. })));
    let left: Vec<_> = fs::read_dir(folder.path()).expect("the folder can be listed").collect();
    assert_eq!(left.len(), 1);
    assert_eq!(fs::read_to_string(&path).expect("the file is there"), "mine");
    let forced = quantize(&source, &path, FileType::F16, true, &threads(), &mut |_, _| ControlFlow::Continue(()));
    assert!(forced.is_ok() && fs::read(&path).expect("the file is there").starts_with(b"GGUF"));
}

#[test]
fn a_file_is_not_made_from_itself() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let (path, dotted) = (folder.path().join("model.gguf"), folder.path().join("./model.gguf"));
    write(&Fixture::open("llama").source, &path, FileType::F16).unwrap_or_else(|error| panic!("{error}"));
    let before = fs::read(&path).expect("the file is there");
    let source = ModelSource::open(&path).unwrap_or_else(|error| panic!("{error}"));
    for destination in [&path, &dotted] {
        let same =
            quantize(&source, destination, FileType::Q8_0, true, &threads(), &mut |_, _| ControlFlow::Continue(()));
        let error = same.expect_err("nothing would be left of the model").to_string();
        assert!(error.starts_with("destination: expected another file than it is made from"), "{error}");
    }
    assert!(fs::read(&path).expect("the file is there") == before);
    assert_eq!(fs::read_dir(folder.path()).expect("the folder can be listed").count(), 1);
}

/// A model of one tiny layer with the tokenizer files of `from`.
fn model_with_tokenizer(from: &Path, vocab_size: usize) -> TempDir {
    let folder = TempDir::new().expect("a temporary folder can be made");
    for entry in fs::read_dir(from).expect("the fixture exists") {
        let path = entry.expect("the folder can be listed").path();
        let name = path.file_name().expect("files have names").to_owned();
        if path.is_file() && name != "vocab.gguf" {
            fs::copy(&path, folder.path().join(name)).expect("the file can be copied");
        }
    }
    let config = json!({
        "model_type": "llama", "vocab_size": vocab_size, "hidden_size": 4, "intermediate_size": 4,
        "num_hidden_layers": 1, "num_attention_heads": 1, "tie_word_embeddings": true, "eos_token_id": 1,
    });
    fs::write(folder.path().join("config.json"), config.to_string()).expect("the file can be written");
    let matrices = ["q_proj", "k_proj", "v_proj", "o_proj"].map(|name| format!("self_attn.{name}"));
    let matrices = matrices.into_iter().chain(["gate_proj", "up_proj", "down_proj"].map(|name| format!("mlp.{name}")));
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let mut shapes: Vec<(String, Vec<usize>)> = matrices.map(|name| (layer(&name), vec![4, 4])).collect();
    shapes.push((layer("input_layernorm"), vec![4]));
    shapes.push((layer("post_attention_layernorm"), vec![4]));
    shapes.push(("model.norm.weight".into(), vec![4]));
    shapes.push(("model.embed_tokens.weight".into(), vec![vocab_size, 4]));
    let zeros = vec![0u8; vocab_size * 16];
    let views = shapes.into_iter().map(|(name, shape)| {
        let bytes = shape.iter().product::<usize>() * 4;
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &zeros[..bytes]);
        (name, view.expect("the sizes agree"))
    });
    safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors")).expect("it can be written");
    folder
}

#[test]
fn tokenizers_come_back() {
    let texts: Vec<String> = read_json(fixtures().join("gguf/vocabularies/texts.json"));
    let folders = ["gguf/vocabularies", "gguf/converted", "text/tokenizers"].map(|folder| fixtures().join(folder));
    let folders = folders.iter().flat_map(|folder| fs::read_dir(folder).expect("the fixtures are in the repository"));
    let mut seen = 0;
    for folder in folders.map(|entry| entry.expect("the folder can be listed").path()).filter(|path| path.is_dir()) {
        seen += 1;
        let original = tokenizer(&ModelSource::Directory(folder.clone()));
        let model = model_with_tokenizer(&folder, original.vocab_size());
        let path = model.path().join("model.gguf");
        write(&ModelSource::Directory(model.path().to_owned()), &path, FileType::F32)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let written = tokenizer(&open(&path));
        for text in &texts {
            for special in [false, true] {
                let ids = |tokenizer: &Tokenizer| tokenizer.encode(text, special).expect("the text can be encoded");
                assert_eq!(ids(&original), ids(&written), "{}: {text:?}", folder.display());
            }
            let ids = original.encode(text, true).expect("the text can be encoded");
            let decoded = |tokenizer: &Tokenizer| tokenizer.decode(&ids, true).expect("the ids can be decoded");
            assert_eq!(decoded(&original), decoded(&written), "{}: {text:?}", folder.display());
        }
    }
    assert!(seen >= 19, "expected at least 19 tokenizers, found {seen}");
}

#[test]
fn partial_longrope_comes_back() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let original = fixtures().join("models/phi3-longrope");
    fs::copy(original.join("model.safetensors"), folder.path().join("model.safetensors")).expect("it can be copied");
    let mut config: serde_json::Value = read_json(original.join("config.json"));
    let pairs = 4;
    let head_dim =
        config["hidden_size"].as_f64().expect("a size") / config["num_attention_heads"].as_f64().expect("a size");
    config["partial_rotary_factor"] = json!(f64::from(2 * pairs) / head_dim);
    for field in ["rope_scaling", "rope_parameters"] {
        for factors in ["short_factor", "long_factor"] {
            if let Some(list) = config[field].get_mut(factors).and_then(|list| list.as_array_mut()) {
                list.truncate(pairs as usize);
            }
        }
    }
    fs::write(folder.path().join("config.json"), config.to_string()).expect("the file can be written");
    let (source, path) = (open(folder.path()), folder.path().join("model.gguf"));
    let report = write(&source, &path, FileType::F32).unwrap_or_else(|error| panic!("{error}"));
    assert!(
        report.notes.iter().any(|note| note.contains("llama.cpp chooses longrope's factors")),
        "{:?}",
        report.notes
    );
    let logits = |source: &ModelSource| {
        let standard = LoadOptions { kernels: Kernels::Standard, ..LoadOptions::default() };
        let llm = Llm::open(source, &standard, &|_, _| {});
        let ids: Vec<u32> = (0..60).collect();
        llm.and_then(|mut llm| llm.logits(&ids, true)).unwrap_or_else(|error| panic!("{error}")).concat()
    };
    let distance = distance(&logits(&source), &logits(&open(&path)));
    assert!(distance <= SAME, "{distance:e}");
}

#[test]
fn generation_settings_go_with_the_file() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let original = fixtures().join("models/llama");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(original.join(file), folder.path().join(file)).expect("the file can be copied");
    }
    let settings = json!({
        "eos_token_id": [5, 6, 7, 8, 9], "do_sample": true, "temperature": 0.7, "top_p": 0.9, "top_k": 20,
        "repetition_penalty": 1.1, "max_new_tokens": 5, "bos_token_id": 1,
    });
    fs::write(folder.path().join("generation_config.json"), settings.to_string()).expect("the file can be written");
    let (source, path) = (open(folder.path()), folder.path().join("model.gguf"));
    write(&source, &path, FileType::F16).unwrap_or_else(|error| panic!("{error}"));
    let generation = |source: &ModelSource| {
        let llm = Llm::open(source, &LoadOptions::default(), &|_, _| {}).unwrap_or_else(|error| panic!("{error}"));
        llm.generation_config().clone()
    };
    assert_eq!(generation(&source), generation(&open(&path)));
}

fn threads() -> Threads {
    Threads::new(Some(2)).expect("threads can be had")
}

#[test]
fn named_chat_templates_go_with_the_file() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../braidinfer-cli/demo-model");
    for file in fs::read_dir(demo).expect("the demo model is there") {
        let file = file.expect("its files can be listed");
        fs::copy(file.path(), folder.path().join(file.file_name())).expect("and copied");
    }
    let named = folder.path().join("additional_chat_templates");
    fs::create_dir(&named).expect("a folder can be made");
    for name in ["tool_use", "rag.v2"] {
        fs::write(named.join(format!("{name}.jinja")), format!("{{# {name} #}}")).expect("it can be written");
    }
    let path = folder.path().join("demo.gguf");
    write(&ModelSource::Directory(folder.path().to_owned()), &path, FileType::Q8_0).expect("it can be written");
    let source = open(&path);
    let metadata = source.gguf().expect("it is a GGUF file").metadata();
    for name in ["tool_use", "rag.v2"] {
        let template = metadata.text(&format!("tokenizer.chat_template.{name}")).expect("it is a text");
        assert_eq!(template, Some(format!("{{# {name} #}}").as_str()));
    }
}
