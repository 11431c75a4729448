//! Tiny models that answer what a script says, token by token, through the same engine as all others.
//!
//! Each token of an answer occurs once in the script, so the token after it is certain: embeddings are unit vectors, all layers
//! add nothing, and the head is the table of what follows what.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Deserialize;
use serde_json::{Value, json};

/// What a model says and how its chats are written.
#[derive(Debug, Clone, Deserialize)]
pub struct Script {
    /// The chat template. Prompts must end with a cue of one of the answers.
    pub template: String,
    /// Tokens that are special, like the marks of a family. Where one occurs again in the answers, it is written in ordinary
    /// tokens.
    #[serde(default)]
    pub special_tokens: Vec<String>,
    pub answers: Vec<ScriptedAnswer>,
    /// Chooses where the answers are cut into tokens.
    #[serde(default)]
    pub seed: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct ScriptedAnswer {
    /// The special token at the end of the prompts that get this answer.
    pub cue: String,
    pub text: String,
}

const END: &str = "<end_of_script>";
const HEAD_DIM: usize = 64;

impl Script {
    /// Writes the model's files into a folder.
    pub fn write(&self, folder: &Path) {
        let mut vocabulary = Vocabulary::new(self);
        let mut follows = HashMap::new();
        let mut random = self.seed;
        for answer in &self.answers {
            let mut last = vocabulary.ids[&answer.cue];
            for piece in vocabulary.cut(&answer.text, &mut random) {
                follows.insert(last, piece);
                last = piece;
            }
            follows.insert(last, vocabulary.ids[END]);
        }
        let width = vocabulary.texts.len().next_multiple_of(HEAD_DIM);
        let files = [
            ("config.json", config(width, vocabulary.ids[END])),
            ("tokenizer.json", vocabulary.tokenizer()),
            ("tokenizer_config.json", json!({"eos_token": END, "add_bos_token": false})),
        ];
        for (name, contents) in files {
            std::fs::write(folder.join(name), contents.to_string()).expect("the file can be written");
        }
        std::fs::write(folder.join("chat_template.jinja"), &self.template).expect("the file can be written");
        write_weights(width, vocabulary.ids[END], &follows, folder);
    }
}

/// The tokens: the special ones, all bytes, and pieces of answers.
struct Vocabulary {
    special: Vec<String>,
    texts: Vec<String>,
    ids: BTreeMap<String, usize>,
    /// Tokens that an answer has.
    used: Vec<usize>,
}

impl Vocabulary {
    fn new(script: &Script) -> Self {
        let cues = script.answers.iter().map(|answer| answer.cue.clone());
        let mut special: Vec<String> =
            [END.to_owned()].into_iter().chain(script.special_tokens.iter().cloned()).chain(cues).collect();
        special.sort();
        special.dedup();
        let mut vocabulary =
            Self { special: special.clone(), texts: Vec::new(), ids: BTreeMap::new(), used: Vec::new() };
        special.into_iter().for_each(|text| _ = vocabulary.add(text));
        (0..=255).for_each(|byte| _ = vocabulary.add(symbol(byte).to_string()));
        vocabulary
    }

    fn add(&mut self, text: String) -> usize {
        let next = self.texts.len();
        *self.ids.entry(text.clone()).or_insert_with(|| {
            self.texts.push(text);
            next
        })
    }

    /// The tokens of an answer, none of which occurred before.
    fn cut(&mut self, text: &str, random: &mut u64) -> Vec<usize> {
        let mut pieces: Vec<String> = Vec::new();
        let mut piece = String::new();
        let mut length = 0;
        let mut rest = text;
        while let Some(next) = rest.chars().next() {
            let mark = self.special.iter().filter(|mark| rest.starts_with(mark.as_str())).max_by_key(|mark| mark.len());
            if let Some(mark) = mark.filter(|mark| piece.is_empty() && !self.used.contains(&self.ids[*mark])).cloned() {
                self.used.push(self.ids[&mark]);
                rest = &rest[mark.len()..];
                pieces.push(mark);
                continue;
            }
            if piece.is_empty() {
                *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                length = 1 + (*random >> 61);
            }
            piece.push(next);
            rest = &rest[next.len_utf8()..];
            // Tokens of real vocabularies seldom go on after the end of a mark.
            let ends = piece.chars().count() as u64 >= length || next == '>' || mark_follows(&self.special, rest);
            let spelled: String = piece.bytes().map(symbol).collect();
            if ends && self.ids.get(&spelled).is_none_or(|id| !self.used.contains(id)) {
                let id = self.add(spelled.clone());
                self.used.push(id);
                pieces.push(spelled);
                piece.clear();
            }
        }
        let mut ids: Vec<usize> = pieces.iter().map(|piece| self.ids[piece]).collect();
        // An end that occurred before becomes part of a longer token.
        while !piece.is_empty() {
            let spelled: String = piece.bytes().map(symbol).collect();
            if self.ids.get(&spelled).is_none_or(|id| !self.used.contains(id)) {
                let id = self.add(spelled);
                self.used.push(id);
                ids.push(id);
                break;
            }
            let before = ids.pop().expect("not all of the answer occurred before");
            piece = self.text_of(before) + &piece;
        }
        ids
    }

    fn text_of(&self, id: usize) -> String {
        let spelling = &self.texts[id];
        if id < self.special.len() {
            return spelling.clone();
        }
        let byte = |shown: char| (0..=255).find(|byte| symbol(*byte) == shown).expect("it is the symbol of a byte");
        String::from_utf8(spelling.chars().map(byte).collect()).expect("pieces are whole characters")
    }

    fn tokenizer(&self) -> Value {
        let added: Vec<Value> = self
            .special
            .iter()
            .map(|text| {
                json!({"id": self.ids[text], "content": text, "special": true, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false})
            })
            .collect();
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        json!({"version": "1.0", "added_tokens": added, "pre_tokenizer": bytes, "decoder": bytes,
            "model": {"type": "BPE", "vocab": self.ids, "merges": []}})
    }
}

fn mark_follows(special: &[String], rest: &str) -> bool {
    special.iter().any(|mark| rest.starts_with(mark.as_str()))
}

/// The character that byte-level tokenizers write for a byte: itself if it is visible, and the next free one otherwise.
fn symbol(byte: u8) -> char {
    let is_visible = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if is_visible(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|byte| !is_visible(*byte)).count() as u32;
    char::from_u32(0x100 + before).expect("there are characters above the bytes")
}

fn config(width: usize, end: usize) -> Value {
    json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "intermediate_size": HEAD_DIM,
        "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": HEAD_DIM, "vocab_size": width,
        "max_position_embeddings": 16384, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": false, "eos_token_id": end, "dtype": "float32"})
}

/// The weights for a vocabulary and hidden vectors of `width`; what follows nothing is followed by `end`.
fn write_weights(width: usize, end: usize, follows: &HashMap<usize, usize>, folder: &Path) {
    let mut head = vec![0.0_f32; width * width];
    for id in 0..width {
        head[follows.get(&id).copied().unwrap_or(end) * width + id] = 4.0;
    }
    let mut embeddings = vec![0.0; width * width];
    (0..width).for_each(|id| embeddings[id * width + id] = 1.0);
    let small = |rows: usize, columns: usize| (vec![rows, columns], vec![0.0; rows * columns]);
    let ones = || (vec![width], vec![1.0; width]);
    let mut tensors = vec![
        ("model.embed_tokens.weight", (vec![width, width], embeddings)),
        ("lm_head.weight", (vec![width, width], head)),
        ("model.norm.weight", ones()),
        ("model.layers.0.input_layernorm.weight", ones()),
        ("model.layers.0.post_attention_layernorm.weight", ones()),
        ("model.layers.0.self_attn.o_proj.weight", small(width, HEAD_DIM)),
        ("model.layers.0.mlp.down_proj.weight", small(width, HEAD_DIM)),
    ];
    for name in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"] {
        tensors.push((Box::leak(format!("model.layers.0.{name}.weight").into_boxed_str()), small(HEAD_DIM, width)));
    }
    let bytes: Vec<(&str, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, (shape, values))| (name, shape, values.into_iter().flat_map(f32::to_le_bytes).collect()))
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("the shape fits the values"))
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).expect("the file can be written");
}
