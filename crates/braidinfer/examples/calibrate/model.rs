//! Models from seeds: several architectures, sizes and depths, with what amplifies rounding, or without.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use braidinfer::model::quantization::FileType;
use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

/// What a model is drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Norms on keys with weights from 10 to 150, channels of the residual stream up to 60 times the others, heavy tails.
    Amplifying,
    /// None of it.
    Healthy,
}

impl FromStr for Family {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        match name {
            "amplifying" => Ok(Self::Amplifying),
            "healthy" => Ok(Self::Healthy),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Amplifying { "amplifying" } else { "healthy" })
    }
}

/// How weights are stored in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    F32,
    Bf16,
    F16,
}

/// How a model is made.
#[derive(Debug, Clone)]
pub struct Recipe {
    pub seed: u64,
    pub vocab_size: usize,
    /// Quantized in memory.
    pub quantize: Option<FileType>,
    model_type: &'static str,
    stored: Stored,
    hidden_size: usize,
    intermediate_size: usize,
    layers: usize,
    heads: usize,
    key_value_heads: usize,
    head_dim: usize,
    /// Largest weight of a norm on keys.
    key_norm: f32,
    /// Factor on a few channels of the embedding.
    outliers: f32,
    /// Spread of scores.
    scores: f32,
    /// Spread of what a half of a layer adds, beside that of the embedding.
    branch: f32,
    /// Spread of the logits.
    logits: f32,
    /// Share of weights that are zero.
    sparse: f32,
    /// Exponent that makes tails of weights heavier; 1 leaves them normal.
    tails: f32,
    /// Whether tokens come in pairs with nearly the same logit.
    tied_pairs: bool,
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, model_type, layers, hidden_size, stored, quantize, key_norm, outliers, tails, .. } = self;
        let quantize = quantize.map_or("-".to_owned(), |quantize| quantize.to_string());
        write!(
            f,
            "seed {seed}: {model_type}, {layers} layers of {hidden_size}, {stored:?} {quantize}, key norm {key_norm}, outliers {outliers}, tails {tails}"
        )
    }
}

fn pick<T: Copy>(rng: &mut Pcg64, values: &[T]) -> T {
    values[rng.random_range(0..values.len())]
}

/// Standard normal (Box and Muller 1958).
fn normal(rng: &mut Pcg64) -> f32 {
    let (u, v): (f64, f64) = (rng.random_range(f64::MIN_POSITIVE..1.0), rng.random_range(0.0..1.0));
    ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}

impl Recipe {
    /// The recipe of a seed.
    pub fn draw(family: Family, seed: u64) -> Self {
        let rng = &mut Pcg64::seed_from_u64(seed);
        let amplifying = family == Family::Amplifying;
        // Norms on keys are what amplifies most, so that more of these have them.
        let types: &[&str] = if amplifying {
            &["qwen3", "qwen3", "qwen3", "gemma3_text", "olmo2", "llama", "qwen2"]
        } else {
            &["llama", "qwen2", "qwen3", "gemma3_text", "olmo2"]
        };
        let head_dim = pick(rng, &[16, 32, 64]);
        let key_value_heads = pick(rng, &[1, 2]);
        Self {
            seed,
            vocab_size: pick(rng, &[256, 512, 1000]),
            quantize: pick(rng, &[None, None, Some(FileType::Q8_0), Some(FileType::Q4_0)]),
            model_type: pick(rng, types),
            stored: pick(rng, &[Stored::F32, Stored::Bf16, Stored::F16]),
            hidden_size: pick(rng, &[64, 96, 128]),
            intermediate_size: pick(rng, &[96, 160, 256]),
            layers: if amplifying { pick(rng, &[8, 16, 28, 36]) } else { pick(rng, &[2, 4, 8, 16]) },
            heads: key_value_heads * pick(rng, &[1, 2, 4]),
            key_value_heads,
            head_dim,
            key_norm: if amplifying { pick(rng, &[0.0, 10.0, 25.0, 50.0, 96.5, 96.5, 150.0]) } else { 0.0 },
            outliers: if amplifying { pick(rng, &[1.0, 1.0, 15.0, 60.0]) } else { 1.0 },
            scores: pick(rng, &[1.0, 2.0, 3.0]),
            branch: pick(rng, &[0.3, 1.0]),
            logits: pick(rng, &[1.5, 3.0]),
            sparse: pick(rng, &[0.0, 0.0, 0.5]),
            tails: if amplifying { pick(rng, &[1.0, 1.0, 1.8]) } else { 1.0 },
            tied_pairs: pick(rng, &[false, false, true]),
        }
    }

    /// Writes it as a directory in Hugging Face layout.
    pub fn write(&self, folder: &Path) {
        fs::write(folder.join("config.json"), self.config().to_string()).expect("the config can be written");
        let tensors = self.tensors();
        let encoded: BTreeMap<&String, (Vec<usize>, Vec<u8>)> =
            tensors.iter().map(|(name, (shape, values))| (name, (shape.clone(), self.encode(values)))).collect();
        let views = encoded.iter().map(|(name, (shape, bytes))| {
            (name.as_str(), TensorView::new(self.dtype(), shape.clone(), bytes).expect("shapes fit"))
        });
        safetensors::serialize_to_file(views, None, &folder.join("model.safetensors"))
            .expect("the weights can be written");
    }

    fn dtype(&self) -> Dtype {
        match self.stored {
            Stored::F32 => Dtype::F32,
            Stored::Bf16 => Dtype::BF16,
            Stored::F16 => Dtype::F16,
        }
    }

    fn encode(&self, values: &[f32]) -> Vec<u8> {
        match self.stored {
            Stored::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Stored::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
            Stored::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        }
    }

    fn config(&self) -> Value {
        json!({
            "model_type": self.model_type,
            "architectures": [match self.model_type {
                "qwen3" => "Qwen3ForCausalLM",
                "qwen2" => "Qwen2ForCausalLM",
                "gemma3_text" => "Gemma3ForCausalLM",
                "olmo2" => "Olmo2ForCausalLM",
                _ => "LlamaForCausalLM",
            }],
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "rope_local_base_freq": 10000.0,
            "sliding_window": if self.model_type == "gemma3_text" { json!(64) } else { json!(null) },
            "query_pre_attn_scalar": self.head_dim,
            "hidden_act": if self.model_type == "gemma3_text" { "gelu_pytorch_tanh" } else { "silu" },
            "hidden_activation": if self.model_type == "gemma3_text" { "gelu_pytorch_tanh" } else { "silu" },
            "tie_word_embeddings": false,
            "attention_bias": false,
            "torch_dtype": "float32",
        })
    }

    fn has_key_norms(&self) -> bool {
        matches!(self.model_type, "qwen3" | "gemma3_text" | "olmo2")
    }

    /// What is added to the weights of norms when they multiply.
    fn norm_offset(&self) -> f32 {
        if self.model_type == "gemma3_text" { 1.0 } else { 0.0 }
    }

    fn tensors(&self) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
        let mut maker =
            Maker { recipe: self, rng: Pcg64::seed_from_u64(self.seed ^ 0x5851_f42d), tensors: BTreeMap::new() };
        maker.ends();
        (0..self.layers).for_each(|layer| maker.layer(layer));
        maker.tensors
    }
}

struct Maker<'a> {
    recipe: &'a Recipe,
    rng: Pcg64,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Maker<'_> {
    fn put(&mut self, name: String, shape: Vec<usize>, values: Vec<f32>) {
        self.tensors.insert(name, (shape, values));
    }

    /// A weight with outputs of the wanted spread for inputs of spread 1.
    fn matrix(&mut self, name: String, rows: usize, columns: usize, spread: f32) {
        let Recipe { tails, sparse, .. } = *self.recipe;
        let mut values: Vec<f32> = (0..rows * columns)
            .map(|_| {
                let value = normal(&mut self.rng);
                let zero = self.rng.random_range(0.0..1.0) < sparse;
                if zero { 0.0 } else { value.signum() * value.abs().powf(tails) }
            })
            .collect();
        let squares: f32 = values.iter().map(|value| value * value).sum();
        let scale = spread / (squares / rows as f32).sqrt().max(1e-6);
        values.iter_mut().for_each(|value| *value *= scale);
        self.put(name, vec![rows, columns], values);
    }

    fn norm(&mut self, name: String, len: usize, centre: f32) {
        let offset = self.recipe.norm_offset();
        let values = (0..len).map(|_| centre * (1.0 + 0.3 * normal(&mut self.rng)).abs() - offset).collect();
        self.put(name, vec![len], values);
    }

    fn ends(&mut self) {
        let Recipe { vocab_size, hidden_size, outliers, logits, tied_pairs, .. } = *self.recipe;
        let mut embedding: Vec<f32> = (0..vocab_size * hidden_size).map(|_| normal(&mut self.rng)).collect();
        for _ in 0..3 {
            let channel = self.rng.random_range(0..hidden_size);
            embedding.iter_mut().skip(channel).step_by(hidden_size).for_each(|value| *value *= outliers);
        }
        self.put("model.embed_tokens.weight".into(), vec![vocab_size, hidden_size], embedding);
        self.norm("model.norm.weight".into(), hidden_size, 1.0);
        self.matrix("lm_head.weight".into(), vocab_size, hidden_size, logits);
        if tied_pairs {
            let (_, head) = self.tensors.get_mut("lm_head.weight").expect("it was just made");
            for pair in head.chunks_exact_mut(2 * hidden_size) {
                let (first, second) = pair.split_at_mut(hidden_size);
                second.iter_mut().zip(first).for_each(|(second, first)| *second = *first + 0.02 * *second);
            }
        }
    }

    fn layer(&mut self, layer: usize) {
        let Recipe { hidden_size, intermediate_size, heads, key_value_heads, head_dim, scores, branch, .. } =
            *self.recipe;
        let model_type = self.recipe.model_type;
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let spread = if self.recipe.has_key_norms() { 1.0 } else { scores.sqrt() };
        self.matrix(name("self_attn.q_proj"), heads * head_dim, hidden_size, spread);
        self.matrix(name("self_attn.k_proj"), key_value_heads * head_dim, hidden_size, spread);
        self.matrix(name("self_attn.v_proj"), key_value_heads * head_dim, hidden_size, 1.0);
        self.matrix(name("self_attn.o_proj"), hidden_size, heads * head_dim, branch);
        self.matrix(name("mlp.gate_proj"), intermediate_size, hidden_size, 1.5);
        self.matrix(name("mlp.up_proj"), intermediate_size, hidden_size, 1.0);
        self.matrix(name("mlp.down_proj"), hidden_size, intermediate_size, branch);
        if model_type == "qwen2" {
            for (part, rows) in [("q_proj", heads), ("k_proj", key_value_heads), ("v_proj", key_value_heads)] {
                let bias = (0..rows * head_dim).map(|_| 0.5 * normal(&mut self.rng)).collect();
                self.put(format!("model.layers.{layer}.self_attn.{part}.bias"), vec![rows * head_dim], bias);
            }
        }
        let norms: &[&str] = match model_type {
            "gemma3_text" => &[
                "input_layernorm",
                "post_attention_layernorm",
                "pre_feedforward_layernorm",
                "post_feedforward_layernorm",
            ],
            "olmo2" => &["post_attention_layernorm", "post_feedforward_layernorm"],
            _ => &["input_layernorm", "post_attention_layernorm"],
        };
        for norm in norms {
            self.norm(name(norm), hidden_size, 1.0);
        }
        if self.recipe.has_key_norms() {
            self.key_norms(layer);
        }
    }

    /// A few channels of keys are large; queries are small there, or one channel would decide every score.
    fn key_norms(&mut self, layer: usize) {
        let Recipe { heads, key_value_heads, head_dim, key_norm, scores, .. } = *self.recipe;
        let width = if self.recipe.model_type == "olmo2" {
            [heads * head_dim, key_value_heads * head_dim]
        } else {
            [head_dim; 2]
        };
        let mut product: Vec<f32> =
            (0..width[0].max(width[1])).map(|_| scores.sqrt() * (1.0 + 0.3 * normal(&mut self.rng)).abs()).collect();
        let mut keys: Vec<f32> =
            (0..width[1]).map(|_| scores.sqrt() * (1.0 + 0.3 * normal(&mut self.rng)).abs()).collect();
        if key_norm > 0.0 {
            for share in [1.0, 0.5, 0.25] {
                let channel = self.rng.random_range(0..head_dim);
                for head in 0..width[1] / head_dim {
                    keys[head * head_dim + channel] = key_norm * share;
                }
                for head in 0..product.len() / head_dim {
                    product[head * head_dim + channel] = 0.25 * key_norm * share;
                }
            }
        }
        let offset = self.recipe.norm_offset();
        let queries: Vec<f32> = (0..width[0]).map(|at| product[at] / keys[at % width[1]].max(0.05) - offset).collect();
        keys.iter_mut().for_each(|key| *key -= offset);
        self.put(format!("model.layers.{layer}.self_attn.q_norm.weight"), vec![width[0]], queries);
        self.put(format!("model.layers.{layer}.self_attn.k_norm.weight"), vec![width[1]], keys);
    }
}
