//! `braidinfer inspect`: metadata of a model's files, without loading the weights.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use braidinfer::model::spec::{
    AttentionSpec, FeedForward, LayerSpec, Mixer, NormKind, QkNormExtent, QkNormSpec, ScoringFunction,
};
use braidinfer::model::{DecoderSpec, Dtype, GenerationConfig, TensorView, Weights, describe};
use braidinfer::text::{ChatTemplate, Tokenizer, TokenizerSettings};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::args::InspectArgs;
use crate::{model, output};

#[derive(Serialize)]
struct Inspection {
    model: String,
    #[serde(serialize_with = "with_sizes_of_config")]
    spec: DecoderSpec,
    context_length: usize,
    parameters: usize,
    bytes: usize,
    dtype: Dtype,
    /// Size of all tensors of each type, in bytes.
    bytes_by_dtype: BTreeMap<&'static str, usize>,
    tensors: Vec<TensorRow>,
    generation: GenerationJson,
    tokenizer: Option<TokenizerJson>,
    chat_template: bool,
    notes: Vec<String>,
}

/// The spec with the sizes of its heads beside its other sizes, as in `config.json`, where all layers have the same.
fn with_sizes_of_config<S: Serializer>(spec: &DecoderSpec, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct WithSizes<'a> {
        #[serde(flatten)]
        spec: &'a DecoderSpec,
        num_attention_heads: usize,
        num_key_value_heads: usize,
        head_dim: usize,
    }
    let [attention] = spec.attentions[..] else { return spec.serialize(serializer) };
    let AttentionSpec { num_attention_heads, num_key_value_heads, head_dim, .. } = attention;
    WithSizes { spec, num_attention_heads, num_key_value_heads, head_dim }.serialize(serializer)
}

#[derive(Serialize)]
struct TensorRow {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
}

#[derive(Serialize)]
struct GenerationJson {
    bos_token_id: Option<u32>,
    eos_token_id: Vec<u32>,
    do_sample: bool,
    temperature: Option<f64>,
    top_k: Option<usize>,
    top_p: Option<f64>,
}

#[derive(Serialize)]
struct TokenizerJson {
    kind: &'static str,
    vocab_size: usize,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

pub fn run(args: InspectArgs) -> anyhow::Result<()> {
    let inspection = inspect(args.model.as_deref())?;
    if args.json {
        return output::print_json(&inspection);
    }
    inspection.notes.iter().for_each(output::note);
    output::print_line(output::one_line(&inspection.model))?;
    section("decoder", &decoder_rows(&inspection))?;
    section("rope", &rope_rows(&inspection.spec)?)?;
    section("layers", &layer_rows(&inspection.spec))?;
    section("weights", &weight_rows(&inspection))?;
    section("text", &text_rows(&inspection))?;
    if args.tensors {
        let row = |tensor: &TensorRow| (tensor.name.clone(), format!("{} {:?}", tensor.dtype, tensor.shape));
        section("tensors", &inspection.tensors.iter().map(row).collect::<Vec<_>>())?;
    }
    Ok(())
}

fn inspect(model: Option<&OsStr>) -> anyhow::Result<Inspection> {
    let source = model::source(model)?;
    let (description, config) = describe(&source)?;
    let weights = Weights::open(&source, &description.spec, &description.names)?;
    let generation = GenerationConfig::read(&source, &config)?;
    let settings = TokenizerSettings::read(&source)?;
    let tokenizer = Tokenizer::read(&source, &settings)?;
    let assumed = tokenizer.iter().flat_map(Tokenizer::notes).cloned();
    let notes = weights.notes().iter().cloned().chain(assumed).collect();
    let tokenizer = tokenizer.as_ref().map(|tokenizer| TokenizerJson {
        kind: tokenizer.kind(),
        vocab_size: tokenizer.vocab_size(),
        bos_token: tokenizer.bos_token().map(str::to_owned),
        eos_token: tokenizer.eos_token().map(str::to_owned),
    });
    let row = |view: TensorView| TensorRow { name: view.name.to_owned(), dtype: view.dtype, shape: view.shape };
    let tensors = weights.tensors().map(row).collect();
    Ok(Inspection {
        model: source.label(),
        context_length: description.spec.context_length(),
        parameters: weights.parameter_count(),
        bytes: weights.size(),
        dtype: weights.dtype(),
        bytes_by_dtype: weights.sizes().into_iter().map(|(dtype, bytes)| (dtype.name(), bytes)).collect(),
        tensors,
        generation: GenerationJson {
            bos_token_id: generation.bos_token_id,
            eos_token_id: generation.eos_token_id,
            do_sample: generation.do_sample,
            temperature: generation.temperature,
            top_k: generation.top_k,
            top_p: generation.top_p,
        },
        tokenizer,
        chat_template: ChatTemplate::read(&source, &settings, Some(&model::worker()?))?.is_some(),
        notes,
        spec: description.spec,
    })
}

type Rows = Vec<(String, String)>;

fn section(title: &str, rows: &Rows) -> anyhow::Result<()> {
    output::print_line("")?;
    output::print_dim(title)?;
    output::print_line("")?;
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.add_rows(rows.iter().map(|(name, value)| [output::one_line(name), output::one_line(value)]));
    table.lines().try_for_each(|line| output::print_line(line.trim_end()))
}

/// The decoder in the terms of `config.json`. Fields that most architectures lack are shown only if they are set.
fn decoder_rows(inspection: &Inspection) -> Rows {
    let (spec, attention) = (&inspection.spec, &inspection.spec.attentions[0]);
    let eps = match spec.norm.kind {
        NormKind::Rms => "rms_norm_eps",
        NormKind::Layer => "layer_norm_eps",
    };
    let mut rows = vec![
        row("model_type", &spec.model_type),
        row("vocab_size", spec.vocab_size),
        row("hidden_size", spec.hidden_size),
        row("num_hidden_layers", spec.layers.len()),
        row("num_attention_heads", attention.num_attention_heads),
        row("num_key_value_heads", attention.num_key_value_heads),
        row("head_dim", attention.head_dim),
        row(eps, format!("{:?}", spec.norm.eps)),
        row("tie_word_embeddings", spec.tie_word_embeddings),
        row("attention_bias", attention_bias(attention)),
        row("max_position_embeddings", spec.max_position_embeddings),
        row("context", format!("{} tokens", inspection.context_length)),
    ];
    let feed_forward = [dense_rows(spec), expert_rows(spec)].concat();
    let after = rows.iter().position(|(name, _)| name == "head_dim").map_or(rows.len(), |index| index + 1);
    rows.splice(after..after, feed_forward);
    rows.extend(rare_rows(spec));
    rows
}

/// The layers with one feed-forward network, if there are any.
fn dense_rows(spec: &DecoderSpec) -> Rows {
    let dense = |layer: &LayerSpec| match layer.feed_forward {
        FeedForward::Dense { intermediate_size, hidden_act, gated, bias, .. } => {
            Some((intermediate_size, hidden_act, gated, bias))
        }
        FeedForward::Experts(_) | FeedForward::None => None,
    };
    let Some((intermediate_size, hidden_act, gated, bias)) = spec.layers.iter().find_map(dense) else {
        return Rows::new();
    };
    vec![
        row("intermediate_size", intermediate_size),
        row("hidden_act", format!("{}{}", json_text(hidden_act), if gated { ", gated" } else { "" })),
        row("mlp_bias", bias),
    ]
}

/// The layers with a mixture of experts, if there are any.
fn expert_rows(spec: &DecoderSpec) -> Rows {
    let Some(experts) = (0..spec.layers.len()).find_map(|layer| spec.experts(layer)) else { return Rows::new() };
    let layers = (0..spec.layers.len()).filter(|layer| spec.experts(*layer).is_some()).count();
    let router = &experts.router;
    let mut rows = vec![
        row("expert layers", format!("{layers} of {}", spec.layers.len())),
        row("num_experts", experts.num_experts),
        row("num_experts_per_tok", experts.num_experts_per_tok),
        row("moe_intermediate_size", experts.intermediate_size),
        row("scoring_func", scoring_in_words(router.scoring_func)),
        row("norm_topk_prob", router.norm_topk_prob),
    ];
    if router.routed_scaling_factor != 1.0 {
        rows.push(row("routed_scaling_factor", router.routed_scaling_factor));
    }
    if router.correction_bias {
        rows.push(row("e_score_correction_bias", true));
    }
    if let Some(groups) = router.groups {
        rows.push(row("groups of experts", format!("{} of {}", groups.topk_group, groups.n_group)));
    }
    if let Some(shared) = experts.shared_expert {
        let gate = if shared.gated { ", gated" } else { "" };
        rows.push(row("shared expert", format!("{}{gate}", shared.intermediate_size)));
    }
    rows
}

fn scoring_in_words(scoring_func: ScoringFunction) -> String {
    match scoring_func {
        ScoringFunction::Softmax => "softmax".into(),
        ScoringFunction::Sigmoid => "sigmoid".into(),
        ScoringFunction::Sparsemixer { router_jitter_noise } => {
            format!("sparsemixer, router_jitter_noise {router_jitter_noise}")
        }
    }
}

fn row(name: &str, value: impl ToString) -> (String, String) {
    (name.to_owned(), value.to_string())
}

/// The JSON name of an enum variant without data.
fn json_text(value: impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn attention_bias(attention: &AttentionSpec) -> &'static str {
    match (attention.qkv_bias, attention.output_bias) {
        (true, true) => "true",
        (true, false) => "on q, k, v",
        (false, true) => "on the output",
        (false, false) => "false",
    }
}

fn qk_norm_text(norm: QkNormSpec) -> String {
    let extent = match norm.extent {
        QkNormExtent::Head => "over each head",
        QkNormExtent::EachHead => "over each head, with weights of its own",
        QkNormExtent::Projection => "over each projection",
    };
    format!("{extent}{}", if norm.after_rope { ", after rope" } else { "" })
}

/// Fields that few architectures set.
fn rare_rows(spec: &DecoderSpec) -> Rows {
    let (attention, block) = (&spec.attentions[0], &spec.block);
    let plain = (attention.head_dim as f64).powf(-0.5);
    let mut rows = vec![];
    let mut add = |set: bool, name: &str, value: String| rows.extend(set.then(|| (name.to_owned(), value)));
    let or_none = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    add(spec.norm.weight_offset != 0.0, "norm weight", format!("stored as w - {}", spec.norm.weight_offset));
    let norms = if block.feed_forward_norm { ", each with its own norm" } else { "" };
    add(block.parallel, "block", format!("attention and mlp side by side{norms}"));
    add(!block.input_norm, "block", "norms only after attention and mlp".into());
    add(block.input_norm && block.attention_output_norm, "block", "norms before and after attention and mlp".into());
    add(attention.qk_norm.is_some(), "query/key norm", attention.qk_norm.map(qk_norm_text).unwrap_or_default());
    add(attention.output_gate, "attn_output_gate", "true".into());
    add(attention.head_gate, "gate", "one for each head of attention".into());
    add(attention.scale != plain, "attention scale", attention.scale.to_string());
    add(attention.logit_softcapping.is_some(), "attn_logit_softcapping", or_none(attention.logit_softcapping));
    add(spec.final_logit_softcapping.is_some(), "final_logit_softcapping", or_none(spec.final_logit_softcapping));
    add(spec.embedding_multiplier != 1.0, "embedding_multiplier", spec.embedding_multiplier.to_string());
    add(spec.residual_multiplier != 1.0, "residual_multiplier", spec.residual_multiplier.to_string());
    add(spec.logits_scaling != 1.0, "logits_scaling", spec.logits_scaling.to_string());
    add(spec.lm_head_bias, "lm_head bias", "true".into());
    let beta = attention.query_position_scale.map(|scale| scale.beta);
    add(beta.is_some(), "llama_4_scaling_beta", or_none(beta));
    if let Some(latent) = attention.latent {
        let rank = latent.q_lora_rank;
        add(rank.is_some(), "q_lora_rank", rank.map_or_else(String::new, |rank| rank.to_string()));
        for (name, size) in [
            ("kv_lora_rank", latent.kv_lora_rank),
            ("qk_nope_head_dim", latent.qk_nope_head_dim),
            ("qk_rope_head_dim", latent.qk_rope_head_dim),
            ("v_head_dim", latent.v_head_dim),
        ] {
            add(true, name, size.to_string());
        }
    }
    if let Some(net) = spec.delta_nets.first() {
        for (name, size) in [
            ("linear_num_key_heads", net.linear_num_key_heads),
            ("linear_num_value_heads", net.linear_num_value_heads),
            ("linear_key_head_dim", net.linear_key_head_dim),
            ("linear_value_head_dim", net.linear_value_head_dim),
            ("linear_conv_kernel_dim", net.linear_conv_kernel_dim),
        ] {
            add(true, name, size.to_string());
        }
    }
    rows_of_streams(spec, &mut add);
    rows_of_mamba2(spec, &mut add);
    if let Some(conv) = spec.short_convs.first() {
        add(true, "conv_L_cache", conv.conv_l_cache.to_string());
        add(conv.conv_bias, "conv_bias", "true".into());
    }
    rows
}

fn rows_of_streams(spec: &DecoderSpec, add: &mut impl FnMut(bool, &str, String)) {
    let rank = spec.laurel.map(|laurel| laurel.laurel_rank);
    add(rank.is_some(), "laurel_rank", rank.map_or_else(String::new, |rank| rank.to_string()));
    let sparse = |layer: &&LayerSpec| matches!(layer.feed_forward, FeedForward::Dense { gate_cutoff: Some(_), .. });
    let sparse = spec.layers.iter().filter(sparse).count();
    add(sparse > 0, "sparse layers", format!("{sparse} of {}", spec.layers.len()));
    let Some(altup) = spec.altup else { return };
    add(true, "altup_num_inputs", altup.altup_num_inputs.to_string());
    add(true, "altup_active_idx", altup.altup_active_idx.to_string());
}

fn rows_of_mamba2(spec: &DecoderSpec, add: &mut impl FnMut(bool, &str, String)) {
    let Some(mamba2) = spec.layer_mamba2s().next() else { return };
    for (name, size) in [
        ("mamba_n_heads", mamba2.mamba_n_heads),
        ("mamba_d_head", mamba2.mamba_d_head),
        ("mamba_n_groups", mamba2.mamba_n_groups),
        ("mamba_d_state", mamba2.mamba_d_state),
        ("mamba_d_conv", mamba2.mamba_d_conv),
    ] {
        add(true, name, size.to_string());
    }
    let norm = mamba2.norm.map_or("none", |norm| if norm.before_gate { "before the gate" } else { "after the gate" });
    add(true, "mamba norm", norm.into());
    add(mamba2.multipliers.is_some(), "ssm_multipliers", mamba2.multipliers.map(json_text).unwrap_or_default());
    let branches = spec.branch_multipliers;
    add(branches.is_some(), "branch multipliers", branches.map(json_text).unwrap_or_default());
}

fn rope_rows(spec: &DecoderSpec) -> anyhow::Result<Rows> {
    if spec.rope.is_empty() {
        return Ok(vec![("rope_type".into(), "none".into())]);
    }
    let mut rows = vec![];
    for (index, table) in spec.rope.iter().enumerate() {
        let prefix = if spec.rope.len() > 1 { format!("table {index}: ") } else { String::new() };
        let mut add = |name: &str, value: String| rows.push((format!("{prefix}{name}"), value));
        add("rope_theta", table.rope_theta.to_string());
        let turnable = spec.attentions[0].head_dim - spec.attentions[0].first_rotated();
        add("partial_rotary_factor", (table.rotary_dim as f64 / turnable as f64).to_string());
        add("pairs", json_text(table.pairing));
        if let Value::Object(fields) = serde_json::to_value(&table.scaling)? {
            fields.iter().for_each(|(name, value)| add(name, value.to_string().trim_matches('"').to_owned()));
        }
    }
    Ok(rows)
}

/// Layers, with consecutive equal ones in one row.
fn layer_rows(spec: &DecoderSpec) -> Rows {
    let mut runs: Vec<(usize, usize, &LayerSpec)> = vec![];
    for (index, layer) in spec.layers.iter().enumerate() {
        match runs.last_mut() {
            Some((_, last, same)) if *same == layer => *last = index,
            _ => runs.push((index, index, layer)),
        }
    }
    let range = |first, last| if first == last { format!("{first}") } else { format!("{first} to {last}") };
    runs.into_iter().map(|(first, last, layer)| (range(first, last), layer_text(spec, layer))).collect()
}

fn layer_text(spec: &DecoderSpec, layer: &LayerSpec) -> String {
    let Mixer::Attention { sliding_window, rope, .. } = layer.mixer else {
        return match (layer.mixer, layer.feed_forward) {
            (Mixer::None, FeedForward::Experts(_)) => "moe".into(),
            (Mixer::None, _) => "mlp".into(),
            _ => "linear_attention".into(),
        };
    };
    let attention =
        sliding_window.map_or("full_attention".to_owned(), |keys| format!("sliding_attention, sliding_window {keys}"));
    let attention = if layer.mamba2_beside.is_some() { format!("{attention} beside mamba") } else { attention };
    match rope {
        None => format!("{attention}, no rope"),
        Some(table) if spec.rope.len() > 1 => format!("{attention}, rope table {table}"),
        Some(_) => attention,
    }
}

fn weight_rows(inspection: &Inspection) -> Rows {
    vec![
        ("tensors".into(), format!("{} (all with --tensors)", inspection.tensors.len())),
        ("parameters".into(), format!("{:.1} M", inspection.parameters as f64 / 1e6)),
        ("dtype".into(), dtypes(inspection)),
        ("size".into(), output::size(inspection.bytes)),
    ]
}

/// The type of the weights, or the size of the weights of each type if there are several.
fn dtypes(inspection: &Inspection) -> String {
    let sizes = &inspection.bytes_by_dtype;
    if sizes.len() < 2 {
        return inspection.dtype.to_string();
    }
    sizes.iter().map(|(dtype, bytes)| format!("{dtype} {}", output::size(*bytes))).collect::<Vec<_>>().join(", ")
}

fn text_rows(inspection: &Inspection) -> Rows {
    let tokenizer = match &inspection.tokenizer {
        Some(tokenizer) => format!("{}, {} ids", tokenizer.kind, tokenizer.vocab_size),
        None => "none".into(),
    };
    let quoted = |token: Option<&String>| token.map_or("none".to_owned(), |token| format!("{token:?}"));
    let own = inspection.tokenizer.as_ref();
    let generation = &inspection.generation;
    let number = |value: Option<String>| value.unwrap_or_else(|| "not set".into());
    vec![
        ("tokenizer".into(), tokenizer),
        ("bos_token".into(), quoted(own.and_then(|tokenizer| tokenizer.bos_token.as_ref()))),
        ("eos_token".into(), quoted(own.and_then(|tokenizer| tokenizer.eos_token.as_ref()))),
        ("bos_token_id".into(), number(generation.bos_token_id.map(|id| id.to_string()))),
        ("eos_token_id".into(), format!("{:?}", generation.eos_token_id)),
        ("chat template".into(), if inspection.chat_template { "yes" } else { "none" }.into()),
        ("do_sample".into(), generation.do_sample.to_string()),
        ("temperature".into(), number(generation.temperature.map(|value| value.to_string()))),
        ("top_k".into(), number(generation.top_k.map(|value| value.to_string()))),
        ("top_p".into(), number(generation.top_p.map(|value| value.to_string()))),
    ]
}
