//! Changed model files: an error that says what is wrong or a model, never a panic.

#[path = "support/mutations.rs"]
mod mutations;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use braidinfer_model::arch::describe_config;
use braidinfer_model::arch::gguf::gguf_model;
use braidinfer_model::format::gguf::{Gguf, GgufWriter, Metadata, TensorHeader, Value};
use braidinfer_model::format::safetensors;
use braidinfer_model::{Dtype, JsonFile, ModelError, ModelSource, Weights, describe};
use mutations::{File, GgufParts, changed_json, changes, check_changed, gguf_changes, json_changes, with_index};

const GGUF: &str = "changed.gguf";
const FOLDER: &str = "changed";
const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";

/// Folders whose configs differ: plain, two rotary tables, factors for each frequency, a list of layers, stacked tensors,
/// experts in rows, in columns and as codes and scales, recurrences, latent attention.
const MODELS: [&str; 16] = [
    "llama-tied",
    "gemma3",
    "gemma4",
    "phi3-longrope",
    "llama3",
    "ministral",
    "qwen2-window",
    "qwen3_moe-stacked",
    "gpt_oss",
    "gpt_oss-mxfp4",
    "qwen3_5",
    "deepseek_v3",
    "falcon_h1-norm",
    "lfm3",
    "gemma3n",
    "nemotron_h",
];
/// Files that differ in the same way.
const GGUF_MODELS: [&str; 20] = [
    "deepseek_v3",
    "gemma",
    "gemma3",
    "gemma3n",
    "gemma4",
    "gemma4-moe",
    "granite",
    "lfm2_moe",
    "llama-yarn",
    "llama3",
    "phi",
    "phi3-longrope",
    "qwen2",
    "qwen3_5",
    "qwen3_next",
    "smollm3",
    "gpt_oss-mxfp4",
    "granitemoehybrid-dense",
    "falcon_h1",
    "nemotron_h-moe",
];

/// Quantized matrices of each kind.
const PACKED: [&str; 9] = [
    "ct-nvfp4",
    "awq",
    "ct-bytes",
    "ct-int4",
    "ct-int4-zeros",
    "ct-mxfp4",
    "fp8-blocks-bf16",
    "gptq-cut-group",
    "gptq-shuffled",
];

fn fixture(path: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(path);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Describes a model and reads all of its weights.
fn read(source: &ModelSource) -> Result<(), ModelError> {
    let (description, _) = describe(source)?;
    let weights = Weights::open(source, &description.spec, &description.names)?;
    for (_, _, view) in weights.iter() {
        view.read::<f32>()?;
    }
    Ok(())
}

fn read_gguf(bytes: Vec<u8>) -> Result<(), ModelError> {
    read(&ModelSource::Gguf(Arc::new(Gguf::from_bytes(GGUF, bytes.into())?)))
}

/// A file whose matrices have all block types, one after the other, and `extra` tensors.
fn every_block_type(extra: &[TensorHeader], data: impl Fn(&TensorHeader) -> Vec<u8>) -> Vec<u8> {
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": 8, "hidden_size": 256, "intermediate_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "tie_word_embeddings": false,
    });
    let config = JsonFile::parse(CONFIG.into(), config.to_string().as_bytes()).expect("an object");
    let spec = describe_config(&config).expect("a llama").spec;
    let model = gguf_model("types", &spec, false).expect("GGUF has llama");
    let mut left: Vec<Dtype> = Dtype::ALL.into_iter().filter(|dtype| dtype.is_quantized()).collect();
    let mut headers: Vec<TensorHeader> = Vec::new();
    for stack in &model.tensors {
        let shape = stack.shape();
        let fits = |dtype: &Dtype| shape.len() == 2 && shape[1].is_multiple_of(dtype.block_len());
        let dtype = left.iter().position(fits).map_or(Dtype::F32, |at| left.remove(at));
        headers.push(TensorHeader { name: stack.tensor.clone(), shape, dtype });
    }
    assert_eq!(left, []);
    headers.extend_from_slice(extra);
    let mut writer = GgufWriter::begin(Vec::new(), &model.metadata, &headers).expect("memory can be written to");
    for header in &headers {
        writer.tensor([Ok::<_, std::io::Error>(data(header))]).expect("the data is as long as it must be");
    }
    writer.finish().expect("all tensors are there")
}

/// Data of which the scales of all types are small numbers.
fn ones(header: &TensorHeader) -> Vec<u8> {
    vec![0x11; header.size() as usize]
}

fn folder(config: Arc<[u8]>, weights: Arc<[u8]>) -> ModelSource {
    let files = BTreeMap::from([(CONFIG.to_owned(), config), (WEIGHTS.to_owned(), weights)]);
    ModelSource::Memory { label: FOLDER.to_owned(), files: Arc::new(files) }
}

fn read_folder(config: Arc<[u8]>, weights: Arc<[u8]>) -> Result<(), ModelError> {
    read(&folder(config, weights))
}

/// A model of two files.
struct Folder {
    config: File,
    weights: File,
}

impl Folder {
    fn all() -> Vec<Self> {
        Self::those_in("models", &MODELS)
    }

    /// Folders of fixtures with these names.
    fn those_in(parent: &str, names: &[&str]) -> Vec<Self> {
        let file = |name: &str, file: &str| fixture(&format!("{parent}/{name}/{file}"));
        let folder = |name: &&str| Self {
            config: File::json(name, file(name, CONFIG)),
            weights: File::safetensors(name, file(name, WEIGHTS)),
        };
        names.iter().map(folder).collect()
    }

    fn config(&self) -> serde_json::Value {
        serde_json::from_slice(&self.config.bytes).expect("the fixture is JSON")
    }

    /// The header of the weights, and the data behind it.
    fn weights(&self) -> (serde_json::Value, &[u8]) {
        let (len, rest) = self.weights.bytes.split_first_chunk().expect("the file has a header");
        let (header, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
        (serde_json::from_slice(header).expect("the fixture is JSON"), data)
    }
}

#[test]
fn the_unchanged_files_open() {
    for folder in Folder::all() {
        let opened = read_folder(folder.config.bytes.into(), folder.weights.bytes.into());
        opened.unwrap_or_else(|error| panic!("{error}"));
    }
    for name in GGUF_MODELS {
        read_gguf(fixture(&format!("gguf/models/{name}.gguf"))).unwrap_or_else(|error| panic!("{error}"));
    }
    read_gguf(every_block_type(&[], ones)).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn changed_gguf_files_never_panic() {
    let file = |name: &str| File::gguf(name, fixture(&format!("gguf/models/{name}.gguf")));
    let mut files: Vec<File> = GGUF_MODELS.into_iter().map(file).collect();
    files.push(File::gguf("every-block-type", every_block_type(&[], ones)));
    check_changed(GGUF, 35_000, with_index(files.len(), changes()), |(file, changes)| {
        read_gguf(files[*file].changed(changes))
    });
    let parts: Vec<GgufParts> = files.iter().map(GgufParts::of).collect();
    check_changed(GGUF, 20_000, with_index(parts.len(), gguf_changes()), |(file, changes)| {
        read_gguf(parts[*file].changed(changes))
    });
}

#[test]
fn changed_safetensors_files_never_panic() {
    let folders = Folder::all();
    check_changed(FOLDER, 20_000, with_index(folders.len(), changes()), |(folder, changes)| {
        let folder = &folders[*folder];
        read_folder(folder.config.bytes.as_slice().into(), folder.weights.changed(changes).into())
    });
}

/// Reads all tensors of a file with quantized matrices, as its config says.
fn read_matrices(config: Arc<[u8]>, weights: Arc<[u8]>) -> Result<(), ModelError> {
    let checkpoint = safetensors::open(&folder(config, weights))?;
    for name in checkpoint.names() {
        if let Some(view) = checkpoint.tensor(name)? {
            view.read::<f32>()?;
        }
    }
    Ok(())
}

#[test]
fn changed_quantized_matrices_never_panic() {
    let folders = Folder::those_in("quantization/packed", &PACKED);
    for Folder { config, weights } in &folders {
        read_matrices(config.bytes.as_slice().into(), weights.bytes.as_slice().into()).expect("the file is valid");
    }
    check_changed(FOLDER, 20_000, with_index(folders.len(), changes()), |(folder, changes)| {
        let folder = &folders[*folder];
        read_matrices(folder.config.bytes.as_slice().into(), folder.weights.changed(changes).into())
    });
    let configs: Vec<serde_json::Value> = folders.iter().map(Folder::config).collect();
    check_changed(FOLDER, 5000, with_index(folders.len(), json_changes()), |(folder, changes)| {
        let config = changed_json(&configs[*folder], changes).to_string();
        read_matrices(config.into_bytes().into(), folders[*folder].weights.bytes.as_slice().into())
    });
}

#[test]
fn changed_safetensors_headers_never_panic() {
    let folders = Folder::all();
    let weights: Vec<_> = folders.iter().map(Folder::weights).collect();
    check_changed(FOLDER, 15_000, with_index(folders.len(), json_changes()), |(folder, changes)| {
        let (header, data) = &weights[*folder];
        let header = changed_json(header, changes).to_string();
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
        read_folder(folders[*folder].config.bytes.as_slice().into(), file.into())
    });
}

#[test]
fn changed_configs_never_panic() {
    let folders = Folder::all();
    let configs: Vec<_> = folders.iter().map(Folder::config).collect();
    let weights: Vec<Arc<[u8]>> = folders.iter().map(|folder| folder.weights.bytes.as_slice().into()).collect();
    check_changed(FOLDER, 15_000, with_index(folders.len(), json_changes()), |(folder, changes)| {
        let config = changed_json(&configs[*folder], changes).to_string();
        read_folder(config.into_bytes().into(), Arc::clone(&weights[*folder]))
    });
    check_changed(FOLDER, 5000, with_index(folders.len(), changes()), |(folder, changes)| {
        read_folder(folders[*folder].config.changed(changes).into(), Arc::clone(&weights[*folder]))
    });
}

/// Files that once did harm: in `tests/hostile`, with what must be said of them.
#[test]
fn files_that_did_harm_are_refused() {
    for (name, expected) in [
        ("scalar-embedding.gguf", "tensor `token_embd.weight`: expected a row for each token, found a single number"),
        (
            "shard-number-00001-of-00002.gguf",
            "field `split.no`: expected a number below 2, the number of shards, found 18446744073709551615",
        ),
    ] {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/hostile").join(name);
        let error = ModelSource::open(&path).and_then(|source| read(&source)).expect_err(name);
        assert_eq!(error.to_string(), format!("{}: {expected}", path.display()));
    }
}

/// The file of `metadata` without tensors.
fn written(metadata: &Metadata) -> Vec<u8> {
    GgufWriter::begin(Vec::new(), metadata, &[]).and_then(GgufWriter::finish).expect("memory can be written to")
}

#[test]
fn factors_of_whole_tensors_are_not_ignored() {
    let scale = TensorHeader { name: "blk.1.ffn_up.scale".into(), shape: vec![1], dtype: Dtype::F32 };
    let file = |factor: f32| {
        let is_scale = |header: &TensorHeader| header.name == scale.name;
        let data = |header: &TensorHeader| if is_scale(header) { factor.to_le_bytes().into() } else { ones(header) };
        read_gguf(every_block_type(std::slice::from_ref(&scale), data))
    };
    file(1.0).unwrap_or_else(|error| panic!("{error}"));
    let error = file(0.5).expect_err("a factor is not applied").to_string();
    let expected = "expected 1, since factors of `blk.1.ffn_up.weight` are not applied, found 0.5";
    assert_eq!(error, format!("{GGUF}: tensor `blk.1.ffn_up.scale`: {expected}"));
}

/// With the largest scales of `mxfp4`, some of its values are beyond f32.
#[test]
fn values_beyond_f32_are_refused() {
    let file = |exponent: u8, codes: u8| {
        let data = |header: &TensorHeader| {
            let mut data = ones(header);
            if header.dtype == Dtype::Mxfp4 {
                data[3 * 17] = exponent;
                data[3 * 17 + 8] = codes;
            }
            data
        };
        read_gguf(every_block_type(&[], data)).map_err(|error| error.to_string())
    };
    assert_eq!(file(252, 0x70), Ok(()));
    // The codes of columns 7 and 23.
    assert_eq!(file(253, 0x50), Ok(()));
    for (exponent, codes, found) in [(253, 0x70, "inf at index 119"), (255, 0x0f, "-inf at index 103")] {
        let error = file(exponent, codes).expect_err("a value is infinite");
        assert!(error.contains(&format!("`: expected finite values, found {found}")), "{error}");
    }
}

#[test]
fn a_long_key_before_a_long_list_takes_no_time_to_speak_of() {
    let mut metadata = Metadata::new(GGUF.into());
    // Reading both takes a moment; copying the key for each entry would take minutes.
    metadata.insert("k".repeat(1 << 20), vec![""; 1 << 20].into_iter().collect::<Value>());
    let error = read_gguf(written(&metadata)).expect_err("the file has no model").to_string();
    assert_eq!(
        error,
        "changed.gguf: field `general.architecture`: expected the name of an architecture, found nothing"
    );
}

#[test]
fn lists_that_are_not_one_entry_per_layer_are_refused() {
    let sizes = ["context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"];
    let mut metadata = Metadata::new(GGUF.into());
    metadata.insert("general.architecture", "gemma2");
    sizes.iter().for_each(|size| drop(metadata.insert(format!("gemma2.{size}"), 2)));
    metadata.insert("gemma2.attention.sliding_window", 16);
    metadata.insert("gemma2.attention.sliding_window_pattern", &[true; 3][..]);
    let error = read_gguf(written(&metadata)).expect_err("the list is too long").to_string();
    let expected = "field `gemma2.attention.sliding_window_pattern`: expected 2 entries, one per layer, found 3";
    assert_eq!(error, format!("{GGUF}: {expected}"));
    metadata.insert("gemma2.attention.head_count", &[2, 2, 4][..]);
    let error = read_gguf(written(&metadata)).expect_err("layers differ").to_string();
    let expected = "field `gemma2.attention.head_count`: expected the same number for every layer";
    assert_eq!(error, format!("{GGUF}: {expected}, found 3 entries that differ"));
}
