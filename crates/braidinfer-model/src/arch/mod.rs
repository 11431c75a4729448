//! Architectures: each file converts a `config.json` to a [`DecoderSpec`] and tensor names.
//!
//! Adding one takes a file here, a line in [`REGISTRY`] and a fixture. If an executor needs an edit too, the spec
//! lacked a field.

mod apertus;
mod arcee;
mod cohere;
mod cohere2;
mod deepseek_v2;
mod deepseek_v3;
mod delta_net_config;
mod dots1;
mod ernie4_5;
mod ernie4_5_moe;
mod exaone4;
mod expert_config;
mod falcon_h1;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma3n;
mod gemma4;
mod gemma4_unified;
pub mod gguf;
mod glm4;
mod glm4_moe;
mod glm4_moe_lite;
mod gpt_oss;
mod granite;
mod granite_swa;
mod granitemoe;
mod granitemoehybrid;
mod helium;
mod hunyuan_v1_dense;
mod latent_config;
mod lfm2;
mod lfm2_moe;
mod lfm3;
mod llama;
mod llama_like;
mod mamba2_config;
mod minicpm3;
mod ministral;
mod ministral3;
mod mistral;
mod mixtral;
mod nemotron;
mod nemotron_h;
mod olmo2;
mod olmo3;
mod olmoe;
mod phi;
mod phi3;
mod phimoe;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_5;
mod qwen3_5_moe;
mod qwen3_moe;
mod qwen3_next;
mod rope_config;
mod seed_oss;
mod smollm3;
mod stablelm;
mod starcoder2;

use serde_json::json;

use self::gguf::GgufForm;
use crate::format::quantized::METHODS;
use crate::layout::TensorNames;
use crate::spec::{ActivationFunction, DecoderSpec, FeedForward, LayerSpec, Mixer, QkNormExtent};
use crate::{JsonFile, ModelError, ModelSource, Result, features};

/// An architecture that this engine supports.
#[derive(Debug, Clone, Copy)]
pub struct Architecture {
    /// Its name in `config.json`.
    pub model_type: &'static str,
    /// Other names of the same architecture.
    pub aliases: &'static [&'static str],
    /// Published models it covers.
    pub models: &'static str,
    /// How GGUF files store it, if they support it.
    pub gguf: Option<GgufForm>,
    /// Test fixtures with logits and text of `transformers`: folders of `tests/fixtures/models`.
    pub fixtures: &'static [&'static str],
    describe: fn(&JsonFile) -> Result<Description>,
}

/// The result of reading a config.
#[derive(Debug, Clone)]
pub struct Description {
    /// The decoder.
    pub spec: DecoderSpec,
    /// Tensor names in its checkpoints.
    pub names: TensorNames,
}

/// Every architecture, in the order of the support matrix.
pub const REGISTRY: &[Architecture] = &[
    llama::ARCHITECTURE,
    mistral::ARCHITECTURE,
    ministral::ARCHITECTURE,
    ministral3::ARCHITECTURE,
    gemma::ARCHITECTURE,
    gemma2::ARCHITECTURE,
    gemma3::ARCHITECTURE,
    gemma3n::ARCHITECTURE,
    gemma4::ARCHITECTURE,
    gemma4_unified::ARCHITECTURE,
    qwen2::ARCHITECTURE,
    qwen3::ARCHITECTURE,
    phi::ARCHITECTURE,
    phi3::ARCHITECTURE,
    ernie4_5::ARCHITECTURE,
    smollm3::ARCHITECTURE,
    olmo2::ARCHITECTURE,
    granite::ARCHITECTURE,
    olmo3::ARCHITECTURE,
    seed_oss::ARCHITECTURE,
    glm4::ARCHITECTURE,
    exaone4::ARCHITECTURE,
    cohere2::ARCHITECTURE,
    hunyuan_v1_dense::ARCHITECTURE,
    stablelm::ARCHITECTURE,
    starcoder2::ARCHITECTURE,
    arcee::ARCHITECTURE,
    apertus::ARCHITECTURE,
    cohere::ARCHITECTURE,
    nemotron::ARCHITECTURE,
    helium::ARCHITECTURE,
    minicpm3::ARCHITECTURE,
    qwen3_moe::ARCHITECTURE,
    qwen2_moe::ARCHITECTURE,
    mixtral::ARCHITECTURE,
    olmoe::ARCHITECTURE,
    granitemoe::ARCHITECTURE,
    granite_swa::ARCHITECTURE,
    granite_swa::WITH_EXPERTS,
    phimoe::ARCHITECTURE,
    ernie4_5_moe::ARCHITECTURE,
    glm4_moe::ARCHITECTURE,
    deepseek_v3::ARCHITECTURE,
    deepseek_v2::ARCHITECTURE,
    glm4_moe_lite::ARCHITECTURE,
    gpt_oss::ARCHITECTURE,
    dots1::ARCHITECTURE,
    qwen3_5::ARCHITECTURE,
    qwen3_5_moe::ARCHITECTURE,
    qwen3_next::ARCHITECTURE,
    lfm2::ARCHITECTURE,
    lfm2_moe::ARCHITECTURE,
    lfm3::ARCHITECTURE,
    granitemoehybrid::ARCHITECTURE,
    falcon_h1::ARCHITECTURE,
    nemotron_h::ARCHITECTURE,
];

impl Architecture {
    /// What a decoder with the class's defaults has beside the usual, see [`features`].
    pub fn features(&self) -> Vec<&'static str> {
        self.default_spec().map_or_else(Vec::new, |spec| features(&spec))
    }

    /// A decoder with the class's defaults, if they describe one.
    pub fn default_spec(&self) -> Option<DecoderSpec> {
        // Some classes have a default width of heads that does not follow from the others.
        let settings =
            [json!({"model_type": self.model_type}), json!({"model_type": self.model_type, "head_dim": 128})];
        let described = settings.into_iter().find_map(|settings| {
            let config = JsonFile::parse("class defaults".into(), settings.to_string().as_bytes()).ok()?;
            (self.describe)(&config).ok()
        });
        described.map(|description| description.spec)
    }
}

/// Limit against huge allocations from a corrupt count; the largest published decoders have 128 layers.
const MAX_LAYERS: usize = 4096;
const MIXTURE_OF_EXPERTS: &str = "is a mixture-of-experts model, which is not supported yet";
const STACKED_BY_HEAD: &str = "stacks queries, keys and values head by head in one tensor, which is not supported yet";
/// Known architectures that are not supported, with the reason.
pub const REFUSED: &[(&str, &str)] = &[("gpt_neox", STACKED_BY_HEAD)];

/// Reads `config.json` of a model, or the keys of a GGUF file, and describes its decoder. Also returns the decoder's
/// part of the config, which has fields that are not in the description.
pub fn describe(source: &ModelSource) -> Result<(Description, JsonFile)> {
    if let Some(gguf) = source.gguf() {
        return gguf::describe(gguf);
    }
    let config = JsonFile::read(source, "config.json")?.ok_or_else(|| {
        let files = source.gguf_files();
        let found = match &files[..] {
            [] => "no such file".to_owned(),
            files => format!("no such file, but GGUF files, of which one can be named: {}", files.join(", ")),
        };
        ModelError::Missing { path: source.label(), expected: "`config.json`".into(), found }
    })?;
    let description = describe_config(&config)?;
    Ok((description, decoder_config(&config)?))
}

/// Describes the decoder of a parsed `config.json`. For multimodal models, that is the one in `text_config`.
pub fn describe_config(config: &JsonFile) -> Result<Description> {
    if let Some(quantization) = config.object("quantization_config")? {
        let method = quantization.text("quant_method")?.unwrap_or("an unnamed method");
        // Which tensors are quantized, and how, is told by the tensors.
        if !METHODS.contains(&method) {
            let expected = format!("an unquantized checkpoint, or one quantized by {}", METHODS.join(", "));
            return Err(config.error("quantization_config", expected, format!("weights quantized by {method}")));
        }
    }
    let decoder = decoder_config(config)?;
    let model_type = decoder.text("model_type")?;
    let model_type = model_type.ok_or_else(|| config.error("model_type", "the name of an architecture", "nothing"))?;
    // transformers loads a `mistral` config with a layer pattern as `ministral`.
    let resolved =
        if model_type == "mistral" && decoder.value("layer_types").is_some() { "ministral" } else { model_type };
    let Some(architecture) = find(resolved) else { return Err(unsupported(config, model_type)) };
    let description = (architecture.describe)(&decoder)?;
    check(&decoder, &description.spec)?;
    check_unread(&decoder, architecture, &description.spec)?;
    Ok(description)
}

/// Architectures in which RoPE may turn a part of each head.
const PARTIAL_ROPE: [&str; 12] = [
    "gemma4_text",
    "gemma4_unified_text",
    "glm4",
    "glm4_moe",
    "glm4_moe_lite",
    "nemotron",
    "phi",
    "phi3",
    "qwen3_5_text",
    "qwen3_5_moe_text",
    "qwen3_next",
    "stablelm",
];

/// Fails on fields that `transformers` and this crate would not understand in the same way.
fn check_unread(config: &JsonFile, architecture: &Architecture, spec: &DecoderSpec) -> Result<()> {
    if config.flag("is_causal")? == Some(false) {
        return Err(config.error("is_causal", "true: tokens see earlier ones only", "false"));
    }
    for settings in [config.object("rope_parameters")?, config.object("rope_scaling")?].iter().flatten() {
        let kind = ["full_attention", "sliding_attention"].into_iter().find(|kind| settings.has(kind));
        if let Some(kind) = kind.filter(|_| spec.rope.len() < 2) {
            return Err(settings.error(kind, "settings for all layers, which are of one kind", "some for each kind"));
        }
        check_rotated_part(settings, architecture)?;
    }
    check_rotated_part(config, architecture)
}

/// transformers rotates whole heads in most architectures, whatever this field says, or fails.
fn check_rotated_part(settings: &JsonFile, architecture: &Architecture) -> Result<()> {
    const FIELD: &str = "partial_rotary_factor";
    match settings.number(FIELD)?.filter(|_| !PARTIAL_ROPE.contains(&architecture.model_type)) {
        None | Some(1.0) => Ok(()),
        Some(other) => {
            let expected = format!("1, since {} models rotate whole heads", architecture.model_type);
            Err(settings.error(FIELD, expected, other.to_string()))
        }
    }
}

/// Tensor names of checkpoints of a described decoder, whatever its files are.
pub(crate) fn checkpoint_names(config: &JsonFile) -> Result<TensorNames> {
    let model_type = config.text("model_type")?.unwrap_or_default();
    let Some(architecture) = find(model_type) else { return Err(unsupported(config, model_type)) };
    Ok((architecture.describe)(config)?.names)
}

fn find(model_type: &str) -> Option<&'static Architecture> {
    REGISTRY.iter().find(|arch| arch.model_type == model_type || arch.aliases.contains(&model_type))
}

/// The part of a config that describes the decoder: the root object, or `text_config` of a multimodal model, completed
/// with fields that only the outer object has.
fn decoder_config(config: &JsonFile) -> Result<JsonFile> {
    const OUTER: [&str; 4] = ["model_type", "tie_word_embeddings", "eos_token_id", "bos_token_id"];
    Ok(match config.object("text_config")? {
        Some(text) => text.or_fields_of(config, &OUTER),
        None => config.clone(),
    })
}

fn unsupported(config: &JsonFile, model_type: &str) -> ModelError {
    let known = REFUSED.iter().find(|(name, _)| *name == model_type);
    ModelError::UnsupportedArchitecture {
        path: config.path().to_owned(),
        model_type: model_type.to_owned(),
        reason: known.map_or("is not a known architecture", |(_, reason)| reason).to_owned(),
        supported: REGISTRY.iter().map(|arch| arch.model_type).collect::<Vec<_>>().join(", "),
    }
}

/// Smallest width of a head, or of its rotated part, in layers that use a rotary table, or in all if none uses it.
fn narrowest_head(spec: &DecoderSpec, table: usize) -> usize {
    let turned = spec.layers.iter().filter_map(|layer| match layer.mixer {
        Mixer::Attention { attention, rope: Some(rope), .. } if rope == table => Some(attention),
        _ => None,
    });
    let width = |attention: usize| spec.attentions[attention].head_dim - spec.attentions[attention].first_rotated();
    turned.map(width).min().unwrap_or(width(0))
}

/// Checks relations between sizes that executors rely on.
fn check(config: &JsonFile, spec: &DecoderSpec) -> Result<()> {
    // Also where a switch says that it is not used.
    llama_like::check_layer_types(config, spec)?;
    expert_config::check(config, spec)?;
    let with_parameters = |layer: &LayerSpec| match layer.feed_forward {
        FeedForward::Experts(experts) => experts.hidden_act == ActivationFunction::Xielu,
        FeedForward::Dense { .. } | FeedForward::None => false,
    };
    if spec.layers.iter().any(with_parameters) {
        return Err(config.error("hidden_act", "an activation function without parameters in experts", "xielu"));
    }
    for attention in &spec.attentions {
        let (heads, kv_heads) = (attention.num_attention_heads, attention.num_key_value_heads);
        if kv_heads > heads || heads % kv_heads != 0 {
            return Err(config.error(
                "num_key_value_heads",
                format!("a divisor of {heads} attention heads"),
                kv_heads.to_string(),
            ));
        }
        // Its statistics are taken from the projection, before anything is rotated.
        if attention.qk_norm.is_some_and(|norm| norm.after_rope && norm.extent == QkNormExtent::Projection) {
            return Err(config.error("qk_norm", "norms of whole projections before RoPE", "after RoPE"));
        }
    }
    for (index, table) in spec.rope.iter().enumerate() {
        let (rotary_dim, head_dim) = (table.rotary_dim, narrowest_head(spec, index));
        if rotary_dim % 2 != 0 || rotary_dim > head_dim || rotary_dim < 2 {
            let expected = format!("an even number of rotated dimensions from 2 to head_dim ({head_dim})");
            return Err(config.error("partial_rotary_factor", expected, rotary_dim.to_string()));
        }
    }
    Ok(())
}
