//! `docs/models.md` says what the registry and the arithmetic of sizes say. `BRAIDINFER_BLESS=1 cargo test --test
//! models_page` writes it.

use std::fmt::Write;
use std::path::PathBuf;

use braidinfer_model::arch::gguf::GgufForm;
use braidinfer_model::arch::{REFUSED, REGISTRY, describe_config};
use braidinfer_model::quantization::FileType;
use braidinfer_model::spec::Mamba2Spec;
use braidinfer_model::{DecoderSpec, Dtype, JsonFile, Slot, Stack, TensorNames, stacks};
use serde_json::Value;

/// Tokens whose keys and values are counted.
const CONTEXT: usize = 8192;
/// Sizes of memory for which a type is named.
const MEMORIES: [f64; 3] = [8.0, 16.0, 32.0];
/// What the system, the program and its buffers take.
const OTHERS: f64 = 2.0;
const GIB: f64 = (1u64 << 30) as f64;
/// Types from large to small.
const TYPES: [FileType; 4] = [FileType::BF16, FileType::Q8_0, FileType::Q6K, FileType::Q4KM];

fn spec(config: &Value) -> Option<DecoderSpec> {
    let file = JsonFile::parse("config.json".into(), config.to_string().as_bytes()).expect("it is an object");
    describe_config(&file).ok().map(|description| description.spec)
}

fn tensors(spec: &DecoderSpec) -> Vec<Stack> {
    let tied = spec.tie_word_embeddings;
    stacks(spec, tied, |slot, param| TensorNames::default().tensor(slot, param, "", ""))
}

fn values(stack: &Stack) -> usize {
    stack.shape().iter().product()
}

/// Size of all weights in bytes.
fn weights(spec: &DecoderSpec, tensors: &[Stack], file_type: FileType) -> f64 {
    let bytes = tensors.iter().map(|stack| {
        let dtype = file_type.dtype(spec, stack, spec.tie_word_embeddings);
        dtype.bytes(values(stack)).expect("types that fit were chosen")
    });
    bytes.sum::<usize>() as f64
}

/// Size of the keys and values of [`CONTEXT`] tokens in f16, and of recurrent states in f32, in bytes.
fn state(spec: &DecoderSpec) -> f64 {
    let keys: usize = (0..spec.layers.len()).map(|layer| spec.key_value_width(layer)).sum();
    let recurrent: usize = spec
        .layer_delta_nets()
        .map(|net| net.value_width() * net.linear_key_head_dim + net.conv_width() * (net.linear_conv_kernel_dim - 1))
        .sum();
    let of_mamba2 = |mamba2: &Mamba2Spec| {
        mamba2.inner_width() * mamba2.mamba_d_state + mamba2.conv_width() * (mamba2.mamba_d_conv - 1)
    };
    let recurrent = recurrent + spec.layer_mamba2s().map(of_mamba2).sum::<usize>();
    (2 * 2 * keys * CONTEXT + 4 * recurrent) as f64
}

/// The largest type with which the model fits into memory.
fn fitting(sizes: &[f64; TYPES.len()], state: f64, memory: f64) -> String {
    let fits = |index: &usize| (sizes[*index] + state) / GIB + OTHERS <= memory;
    (0..TYPES.len()).find(fits).map_or("-".into(), |index| TYPES[index].to_string())
}

fn families() -> String {
    let mut table =
        String::from("| architecture | models | beside the usual | GGUF | fixtures |\n|---|---|---|---|---|\n");
    for architecture in REGISTRY {
        let found = architecture.features().join(", ");
        let names =
            |form: GgufForm| [form.architecture].into_iter().chain(form.with_experts).collect::<Vec<_>>().join(", ");
        let gguf = architecture.gguf.map_or("-".into(), names);
        let names = [&[architecture.model_type], architecture.aliases].concat().join(", ");
        let (models, fixtures) = (architecture.models, architecture.fixtures.len());
        writeln!(table, "| {names} | {models} | {found} | {gguf} | {fixtures} |").expect("a string takes text");
    }
    table
}

fn well_known() -> Vec<Value> {
    serde_json::from_str(include_str!("../well_known.json")).expect("it is a list")
}

/// Size of a model whose experts are in MXFP4 and whose other weights are in bf16, in GiB.
fn published(name: &str) -> String {
    let list = well_known();
    let entry = list.iter().find(|entry| entry["name"] == name).expect("it is listed");
    let spec = spec(&entry["config"]).expect("it is supported");
    let is_expert = |stack: &Stack| matches!(stack.parameters[0].slot, Slot::Expert(..)) && stack.shape().len() == 2;
    let dtype = |stack: &Stack| if is_expert(stack) { Dtype::Mxfp4 } else { Dtype::BF16 };
    let bytes = |stack: &Stack| dtype(stack).bytes(values(stack)).expect("whole blocks");
    format!("{:.1}", tensors(&spec).iter().map(bytes).sum::<usize>() as f64 / GIB)
}

fn sizes() -> String {
    let list = well_known();
    let mut table = String::from(
        "| model | parameters | bf16 | q8_0 | q4_k_m | 8192 tokens | 8 GB | 16 GB | 32 GB |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for entry in &list {
        let name = entry["name"].as_str().expect("it has a name");
        let spec = spec(&entry["config"]).unwrap_or_else(|| panic!("{name} is supported"));
        let (tensors, state) = (tensors(&spec), state(&spec));
        let count = tensors.iter().map(values).sum::<usize>() as f64 / 1e9;
        let sizes = TYPES.map(|file_type| weights(&spec, &tensors, file_type));
        let [bf16, q8_0, _, q4_k_m] = sizes.map(|size| size / GIB);
        let fitting = MEMORIES.map(|memory| fitting(&sizes, state, memory)).join(" | ");
        let state = state / GIB;
        write!(table, "| {name} | {count:.2} B | {bf16:.1} | {q8_0:.1} | {q4_k_m:.1} | {state:.2} | {fitting} |")
            .expect("a string takes text");
        table.push('\n');
    }
    table
}

#[test]
fn the_page_of_models_is_true() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/models.md");
    let refused = REFUSED.iter().map(|(name, reason)| format!("- `{name}` {reason}.\n")).collect::<String>();
    let page = format!(
        "# Models\n\n\
         This page is written by a test (`crates/braidinfer-model/tests/all/models_page.rs`) from the registry of architectures.\n\n\
         ## Architectures\n\n\
         The usual is attention and a gated feed-forward network with RMS norms before both, no biases, and RoPE. What else a\n\
         checkpoint has is read from its `config.json`; the table is for the class's defaults. All of them run on standard and\n\
         fused kernels, from safetensors, and from GGUF where the architecture's name in such files is given; logits and greedy\n\
         text of every fixture equal those of `transformers`.\n\n{}\n\
         Known and refused:\n\n{refused}\n\
         ## Sizes\n\n\
         Computed from each model's `config.json`: weights in GiB with the file types of `braidinfer quantize`, and keys and\n\
         values (in f16) of 8192 tokens with the states of recurrent layers. gpt-oss is published with experts in MXFP4: so, 20B\n\
         needs {}, 120B needs {}. The last columns name the largest of bf16, q8_0, q6_k and q4_k_m with which all of this and {OTHERS} GiB\n\
         for everything else fit; `-` is none. Keys and values of latent attention are kept for each head, not as the narrower\n\
         vectors that they are computed from. Fused kernels keep weights in about the size of the file. Mixtures of experts\n\
         read only the chosen experts for each token, but need memory for all.\n\n{}",
        families(),
        published("gpt-oss 20B"),
        published("gpt-oss 120B"),
        sizes(),
    );
    if std::env::var_os("BRAIDINFER_BLESS").is_some() {
        std::fs::write(&path, &page).expect("the page can be written");
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(there == page, "docs/models.md differs from the registry: run with BRAIDINFER_BLESS=1");
}
