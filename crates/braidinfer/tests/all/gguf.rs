//! GGUF files that llama.cpp's own converter made, against `transformers` and against the directories they came from.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use crate::support::{Fixture, Fused, argmax, distance, feed, fixtures, read_json, tokenizer};
use braidinfer::executor::standard::ComputeDtype;
use braidinfer::model::format::gguf::{Gguf, GgufWriter, Metadata, TensorHeader, Value};
use braidinfer::model::spec::{Mixer, RopeScaling};
use braidinfer::model::{DecoderSpec, Description, ModelSource, Weights, describe};
use braidinfer::text::Tokenizer;
use serde::Deserialize;

/// Largest allowed difference of a logit from `transformers`.
const TOLERANCE: f32 = 5e-4;
/// Largest allowed difference from the same model read from its directory.
const SAME: f32 = 1e-4;

fn folder() -> PathBuf {
    fixtures().join("gguf/models")
}

/// Names of the files, of a split model the first shard only.
fn names() -> Vec<String> {
    let entries = fs::read_dir(folder()).expect("the fixtures are in the repository");
    let files = entries.map(|entry| entry.expect("the folder can be listed").file_name());
    let names = files.filter_map(|file| file.to_string_lossy().strip_suffix(".gguf").map(str::to_owned));
    let mut names: Vec<String> = names.filter(|name| !name.contains("-of-") || name.contains("-00001-of-")).collect();
    names.sort();
    assert!(names.len() >= 20, "expected at least 20 files, found {}", names.len());
    names
}

/// The file with what is expected of it: beside it where llama.cpp cannot say all that the directory says, else what
/// is expected of the directory.
fn open(name: &str) -> (Fixture, bool) {
    let source = ModelSource::open(folder().join(format!("{name}.gguf"))).unwrap_or_else(|error| panic!("{error}"));
    let (own_prompts, own_logits) =
        (folder().join(format!("{name}.expected.json")), folder().join(format!("{name}.expected.safetensors")));
    if own_prompts.is_file() {
        return (Fixture::with_expected(name, source, &own_prompts, &own_logits), false);
    }
    let original = fixtures().join("models").join(name.split("-split").next().unwrap_or(name));
    let (prompts, logits) = (original.join("expected.json"), original.join("expected.safetensors"));
    (Fixture::with_expected(name, source, &prompts, &logits), true)
}

#[test]
fn files_of_llama_cpp_give_the_logits_of_transformers() {
    for name in names() {
        let (fixture, same_as_directory) = open(&name);
        let (mut executor, mut fused) = (fixture.standard(), fixture.fused(Fused::exact()));
        let directory = same_as_directory.then(|| Fixture::open(name.split("-split").next().unwrap_or(&name)));
        let mut original = directory.map(|fixture| fixture.standard_with(ComputeDtype::F32, |_| {}));
        for (prompt, expected) in fixture.prompts.iter().enumerate() {
            let rows = feed(&mut executor, prompt, &expected.ids, usize::MAX >> 1);
            let of_fused = feed(&mut fused, prompt, &expected.ids, usize::MAX >> 1);
            for (kernels, rows) in [("standard", &rows), ("fused", &of_fused)] {
                for (position, row, wanted) in fixture.beside_expected(prompt, rows) {
                    let distance = distance(row, wanted);
                    assert!(
                        distance <= TOLERANCE,
                        "{name} {kernels} prompt {prompt} position {position}: {distance:e}"
                    );
                }
            }
            assert_eq!(expected.greedy.first(), Some(&argmax(&rows[rows.len() - 1])), "{name} prompt {prompt}");
            let Some(original) = &mut original else { continue };
            for (row, same) in rows.iter().zip(feed(original, prompt, &expected.ids, usize::MAX >> 1)) {
                let distance = distance(row, &same);
                assert!(distance <= SAME, "{name} prompt {prompt}: {distance:e} from the directory");
            }
        }
    }
}

#[derive(Deserialize)]
struct ExpectedIds {
    /// Ids of the tokens around every text.
    before: Vec<u32>,
    after: Vec<u32>,
    /// Texts beyond those that all vocabularies share.
    texts: Vec<String>,
    /// Of the shared texts, then of the own ones.
    ids: Vec<Vec<u32>>,
}

#[test]
fn vocabularies_give_the_ids_of_the_original_tokenizers() {
    let folder = fixtures().join("gguf/vocabularies");
    let shared: Vec<String> = read_json(folder.join("texts.json"));
    assert!(shared.len() >= 200, "expected at least 200 texts, found {}", shared.len());
    let mut vocabularies = 0;
    for entry in fs::read_dir(&folder).expect("the fixtures are in the repository") {
        let folder = entry.expect("the folder can be listed").path();
        if !folder.is_dir() {
            continue;
        }
        vocabularies += 1;
        let name = folder.file_name().expect("folders have names").to_string_lossy().into_owned();
        let expected: ExpectedIds = read_json(folder.join("expected.json"));
        let from_gguf =
            tokenizer(&ModelSource::open(folder.join("vocab.gguf")).unwrap_or_else(|error| panic!("{error}")));
        let texts: Vec<&String> = shared.iter().chain(&expected.texts).collect();
        assert_eq!(texts.len(), expected.ids.len());
        let mut wrong = Vec::new();
        for (text, ids) in texts.into_iter().zip(&expected.ids) {
            let found = from_gguf.encode(text, false).expect("the text can be encoded");
            if found != *ids {
                wrong.push(format!("{text:?}: expected {ids:?}, found {found:?}"));
                continue;
            }
            let around: Vec<u32> = expected.before.iter().chain(ids).chain(&expected.after).copied().collect();
            assert_eq!(from_gguf.encode(text, true).expect("the text can be encoded"), around, "{name}: {text:?}");
        }
        assert!(wrong.is_empty(), "{name}: {} of {} texts:\n{}", wrong.len(), expected.ids.len(), wrong.join("\n"));
    }
    assert!(vocabularies >= 12, "expected at least 12 vocabularies, found {vocabularies}");
}

/// A GGUF fixture whose pairs and tensors can be changed.
struct Rewritten {
    metadata: Metadata,
    tensors: Vec<(TensorHeader, Vec<u8>)>,
}

impl Rewritten {
    fn new(file: &str) -> Self {
        let gguf = Gguf::open(&fixtures().join("gguf").join(file)).unwrap_or_else(|error| panic!("{error}"));
        let tensor = |name: &str| {
            let view = gguf.checkpoint().tensor(name).ok().flatten().expect("the fixture's types are supported");
            let header = TensorHeader { name: name.to_owned(), shape: view.shape.clone(), dtype: view.dtype };
            (header, view.data.read().expect("the file is as it was").into_owned())
        };
        Self { metadata: gguf.metadata().clone(), tensors: gguf.checkpoint().names().map(tensor).collect() }
    }

    fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.metadata.insert(key, value);
        self
    }

    fn without(mut self, key: &str) -> Self {
        self.metadata.retain(|found| found != key);
        self
    }

    /// Changes the tokens.
    fn tokens(self, change: impl Fn(&mut Vec<String>)) -> Self {
        let tokens = self.metadata.texts(TOKENS).ok().flatten().expect("the file has tokens");
        let mut tokens: Vec<String> = tokens.into_iter().map(str::to_owned).collect();
        change(&mut tokens);
        self.set(TOKENS, tokens.iter().collect::<Value>())
    }

    fn source(&self) -> ModelSource {
        let headers: Vec<TensorHeader> = self.tensors.iter().map(|(header, _)| header.clone()).collect();
        let mut writer = GgufWriter::begin(Vec::new(), &self.metadata, &headers).expect("memory can be written");
        for (_, data) in &self.tensors {
            writer.tensor([Ok::<_, std::io::Error>(data.clone())]).expect("memory can be written");
        }
        let bytes = writer.finish().expect("all tensors are there");
        let gguf = Gguf::from_bytes("rewritten.gguf", bytes.into()).unwrap_or_else(|error| panic!("{error}"));
        ModelSource::Gguf(Arc::new(gguf))
    }

    fn spec(&self) -> DecoderSpec {
        describe(&self.source()).unwrap_or_else(|error| panic!("{error}")).0.spec
    }

    fn error(&self) -> String {
        describe(&self.source()).err().map(|error| error.to_string()).unwrap_or_default()
    }
}

const TOKENS: &str = "tokenizer.ggml.tokens";

#[test]
fn keys_that_change_the_decoder_are_supported_or_refused() {
    let windowed = Rewritten::new("models/granite.gguf").set("granite.attention.sliding_window", 8u32);
    assert!(
        windowed.error().contains("`granite.attention.sliding_window`: expected no window"),
        "{}",
        windowed.error()
    );
    // Older files of OLMo 3 have the whole factor of YaRN where others have a multiple of the paper's.
    for (stored, expected) in [(None, 1.207_944), (Some(1.207_944_2_f32), 1.207_944), (Some(1.5), 1.811_916)] {
        let olmo3 = Rewritten::new("models/olmo3.gguf").without("olmo2.rope.scaling.yarn_attn_factor");
        let olmo3 = match stored {
            Some(factor) => olmo3.set("olmo2.rope.scaling.attn_factor", factor),
            None => olmo3,
        };
        let RopeScaling::Yarn { attention_factor, .. } = olmo3.spec().rope[0].scaling else { panic!("it has YaRN") };
        assert!((attention_factor - expected).abs() < 1e-5, "{stored:?}: {attention_factor}");
    }
    let unrotated = Rewritten::new("models/granite.gguf").set("granite.rope.scaling.finetuned", false).spec();
    assert!(unrotated.layers.iter().all(|layer| matches!(layer.mixer, Mixer::Attention { rope: None, .. })));
    let qwen2 = Rewritten::new("models/qwen2.gguf").without("qwen2.attention.head_count_kv").spec();
    assert_eq!(qwen2.attentions[0].num_key_value_heads, qwen2.attentions[0].num_attention_heads);
    let uncapped = Rewritten::new("models/gemma2.gguf").set("gemma2.final_logit_softcapping", 0f32).spec();
    assert_eq!(uncapped.final_logit_softcapping, None);
    let yarn = Rewritten::new("models/llama-yarn.gguf").without("llama.rope.scaling.factor").spec();
    assert!(matches!(yarn.rope[0].scaling, RopeScaling::Yarn { factor: 1.0, .. }), "{:?}", yarn.rope);
    let partial = Rewritten::new("models/phi3.gguf").set("phi3.rope.dimension_count", 8u32).spec();
    assert_eq!(partial.rope[0].rotary_dim, 8);
    let odd = Rewritten::new("models/phi3.gguf").set("phi3.rope.dimension_count", 7u32).error();
    assert!(odd.contains("`phi3.rope.dimension_count`: expected an even number"), "{odd}");
    let eps = Rewritten::new("models/llama.gguf").without("llama.attention.layer_norm_rms_epsilon").error();
    assert!(eps.contains("`llama.attention.layer_norm_rms_epsilon`: expected a number above zero"), "{eps}");
    let theta = Rewritten::new("models/llama.gguf").set("llama.rope.freq_base", 0f32).error();
    assert!(theta.contains("`llama.rope.freq_base`: expected a number above zero, found 0"), "{theta}");
    let mut unscaled = Rewritten::new("models/phi3-longrope.gguf").set("phi3.rope.scaling.type", "longrope");
    unscaled.tensors.retain(|(header, _)| !header.name.starts_with("rope_factors"));
    assert!(unscaled.error().contains("the file has no tensor `rope_factors_long.weight`"), "{}", unscaled.error());
    let experts = Rewritten::new("models/llama.gguf").set("llama.expert_count", 8u32).error();
    assert!(experts.contains("`llama.expert_count`: expected none, since no layer has a tensor"), "{experts}");
    let experts = Rewritten::new("models/qwen2.gguf").set("qwen2.expert_count", 8u32).error();
    assert!(experts.contains("`qwen2` is a mixture-of-experts model"), "{experts}");
    let per_layer = Rewritten::new("models/llama.gguf").set("llama.attention.head_count", &[4i32, 4, 4][..]).spec();
    assert_eq!(per_layer.attentions[0].num_attention_heads, 4);
}

#[test]
fn keys_say_which_layers_are_recurrent() {
    let file = || Rewritten::new("models/qwen3_5.gguf");
    let original = file().spec();
    let kinds = |spec: &DecoderSpec| -> Vec<bool> {
        (0..spec.layers.len()).map(|layer| spec.delta_net(layer).is_some()).collect()
    };
    assert_eq!(kinds(&original), [true, true, true, false]);
    let by_interval = file().without("qwen35.attention.recurrent_layers");
    assert_eq!(by_interval.spec(), original);
    assert_eq!(kinds(&by_interval.set("qwen35.full_attention_interval", 2u32).spec()), [true, false, true, false]);
    let short = file().set("qwen35.attention.recurrent_layers", &[true, false][..]).error();
    assert!(short.contains("`qwen35.attention.recurrent_layers`: expected 4 entries, one per layer"), "{short}");
    for key in ["conv_kernel", "state_size", "group_count", "time_step_rank", "inner_size"] {
        let missing = file().without(&format!("qwen35.ssm.{key}")).error();
        assert!(missing.contains(&format!("`qwen35.ssm.{key}`: expected a positive whole number")), "{missing}");
    }
    let uneven = file().set("qwen35.ssm.inner_size", 81u32).error();
    assert!(uneven.contains("`qwen35.ssm.inner_size`: expected a multiple of 4 heads, found 81"), "{uneven}");
    // A layer that predicts a token after the next is left out.
    let mut further = file()
        .set("qwen35.block_count", 5u32)
        .set("qwen35.nextn_predict_layers", 1u32)
        .set("qwen35.attention.recurrent_layers", &[true, true, true, false, false][..]);
    let of_last = further.tensors.iter().filter(|(header, _)| header.name.starts_with("blk.3."));
    let copies: Vec<_> = of_last
        .map(|(header, data)| {
            (TensorHeader { name: header.name.replace("blk.3.", "blk.4."), ..header.clone() }, data.clone())
        })
        .collect();
    further.tensors.extend(copies);
    let (source, names) = (further.source(), Fixture { source: further.source(), ..Fixture::open("qwen3_5") });
    let Description { spec, names } = names.description();
    assert_eq!(spec, original);
    let weights = Weights::open(&source, &spec, &names).unwrap_or_else(|error| panic!("{error}"));
    assert!(weights.notes().iter().any(|note| note.contains("`blk.4.attn_k.weight`")), "{:?}", weights.notes());
}

#[test]
fn stacked_projections_are_found_with_their_biases_apart() {
    let mut stacked = Rewritten::new("models/qwen2.gguf");
    let mut rows: BTreeMap<String, (TensorHeader, Vec<u8>)> = BTreeMap::new();
    stacked.tensors.retain(|(header, data)| {
        let Some((layer, "q" | "k" | "v")) =
            header.name.strip_suffix(".weight").and_then(|name| name.split_once(".attn_"))
        else {
            return true;
        };
        let name = format!("{layer}.attn_qkv.weight");
        let (whole, bytes) = rows.entry(name.clone()).or_insert_with(|| {
            (TensorHeader { name, shape: vec![0, header.shape[1]], dtype: header.dtype }, Vec::new())
        });
        // Names come in the order k, q, v.
        let at = if header.name.ends_with("attn_q.weight") { 0 } else { bytes.len() };
        bytes.splice(at..at, data.iter().copied());
        whole.shape[0] += header.shape[0];
        false
    });
    stacked.tensors.extend(rows.into_values());
    let fixture = Fixture { source: stacked.source(), ..Fixture::open("qwen2") };
    let rows = feed(&mut fixture.standard(), 0, &fixture.prompts[2].ids, usize::MAX >> 1);
    for (position, row, expected) in fixture.beside_expected(2, &rows) {
        let distance = distance(row, expected);
        assert!(distance <= TOLERANCE, "position {position}: {distance:e}");
    }
}

#[test]
fn vocabularies_are_taken_as_they_come() {
    let ids = |tokenizer: &Tokenizer, text: &str| tokenizer.encode(text, false).expect("the text can be encoded");
    let original = tokenizer(&Rewritten::new("vocabularies/llama-spm/vocab.gguf").source());
    let marred = Rewritten::new("vocabularies/llama-spm/vocab.gguf").tokens(|tokens| {
        tokens.push(String::new());
        tokens.push(tokens[300].clone());
    });
    let marred = marred.without("tokenizer.ggml.token_type").without("tokenizer.ggml.scores");
    tokenizer(&marred.source());
    // llama.cpp takes ids of its own where a file names none.
    let unnamed = Rewritten::new("vocabularies/llama-spm/vocab.gguf");
    let unnamed = unnamed.without("tokenizer.ggml.bos_token_id").without("tokenizer.ggml.unknown_token_id");
    assert_eq!(
        tokenizer(&unnamed.source()).encode("a", true).expect("it can be encoded"),
        [&[1], &ids(&original, "a")[..]].concat()
    );
    // Phi 3's control tokens swallow the white space behind them.
    let phi3 = Rewritten::new("vocabularies/llama-spm/vocab.gguf").set("general.architecture", "phi3");
    let phi3 = tokenizer(&phi3.source());
    assert_eq!(ids(&phi3, "<|turn|>\nHello<|end|>\n"), ids(&phi3, "<|turn|>Hello<|end|>"));
    assert_ne!(ids(&original, "<|turn|>\nHello"), ids(&original, "<|turn|>Hello"));
    // What converters wrote that did not know the tokenizer, and what they wrote before there was a key.
    let qwen2 = tokenizer(&Rewritten::new("vocabularies/qwen2/vocab.gguf").source());
    let unknown = Rewritten::new("vocabularies/qwen2/vocab.gguf").set("tokenizer.ggml.pre", "default");
    for file in [unknown, Rewritten::new("vocabularies/qwen2/vocab.gguf").without("tokenizer.ggml.pre")] {
        let assumed = tokenizer(&file.source());
        assert!(assumed.notes().iter().any(|note| note.contains("assuming `qwen2`")), "{:?}", assumed.notes());
        assert_eq!(ids(&assumed, "it's 1234 cafe\u{301}"), ids(&qwen2, "it's 1234 cafe\u{301}"));
    }
    // A token that ends a text is one whatever kind the file gives it.
    let ordinary =
        Rewritten::new("vocabularies/llama-bpe/vocab.gguf").tokens(|tokens| tokens[300] = "<|im_end|>".into());
    assert_eq!(ids(&tokenizer(&ordinary.source()), "a<|im_end|>").last(), Some(&300));
    let model = Rewritten::new("models/llama.gguf").set(TOKENS, ["a", "<|im_end|>", "</s>"].iter().collect::<Value>());
    let (_, config) = describe(&model.source()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.token_ids("eos_token_id").expect("the ids are a list"), [1, 2]);
}
