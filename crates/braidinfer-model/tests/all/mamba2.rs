//! Reading configs of architectures with Mamba-2: which layers have it, its sizes, limits and factors, and refusals.

use braidinfer_model::arch::describe_config;
use braidinfer_model::spec::{ActivationFunction, DecoderSpec, FeedForward, Mixer};
use braidinfer_model::{JsonFile, ModelError};
use serde_json::{Value, json};

fn read(config: &str) -> Result<DecoderSpec, ModelError> {
    let file = JsonFile::parse("config.json".into(), config.as_bytes())?;
    describe_config(&file).map(|description| description.spec)
}

/// A small config of `model_type` with `changes` on top.
fn config(model_type: &str, changes: &Value) -> Value {
    let mut config = json!({
        "model_type": model_type, "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "mamba_n_heads": 8, "mamba_num_heads": 8, "mamba_d_ssm": 128, "num_local_experts": 4,
    });
    for (field, value) in changes.as_object().expect("changes are an object") {
        config[field] = value.clone();
    }
    config
}

fn describe(model_type: &str, changes: &Value) -> Result<DecoderSpec, ModelError> {
    read(&config(model_type, changes).to_string())
}

fn spec(model_type: &str, changes: Value) -> DecoderSpec {
    describe(model_type, &changes).unwrap_or_else(|error| panic!("{error}"))
}

/// A letter for each layer: `M` for Mamba-2, `a` for attention, `A` for both, `-` for a network, `E` for experts.
fn layers(spec: &DecoderSpec) -> String {
    let letters = |index: usize| {
        let layer = &spec.layers[index];
        let mixer = match (layer.mixer, spec.mamba2(index)) {
            (Mixer::Attention { .. }, Some(_)) => "A",
            (Mixer::Attention { .. }, None) => "a",
            (Mixer::Mamba2 { .. }, _) => "M",
            _ => "",
        };
        let feed_forward = match layer.feed_forward {
            FeedForward::Dense { .. } => "-",
            FeedForward::Experts(_) => "E",
            FeedForward::None => "",
        };
        format!("{mixer}{feed_forward}")
    };
    (0..spec.layers.len()).map(letters).collect::<Vec<_>>().join(" ")
}

#[test]
fn layers_are_listed() {
    let granite = |changes| layers(&spec("granitemoehybrid", changes));
    assert_eq!(granite(json!({})), "ME ME ME ME");
    let listed = json!(["mamba", "attention", "linear_attention", "full_attention"]);
    assert_eq!(granite(json!({"layer_types": listed})), "ME aE ME aE");
    assert_eq!(granite(json!({"layer_types": listed, "num_local_experts": 0})), "M- a- M- a-");
    assert_eq!(layers(&spec("falcon_h1", json!({}))), "A- A- A- A-");
    let nemotron = |changes| layers(&spec("nemotron_h", changes));
    assert_eq!(nemotron(json!({})), "M E a -");
    assert_eq!(nemotron(json!({"hybrid_override_pattern": "M-M*-E"})), "M - M a - E");
    let listed = json!(["mamba", "mlp", "full_attention", "moe", "linear_attention"]);
    assert_eq!(nemotron(json!({"layers_block_type": listed, "hybrid_override_pattern": "M"})), "M - a E M");
}

#[test]
fn granite_rotates_only_where_the_config_says_so() {
    let rotates = |changes| {
        let spec = spec("granitemoehybrid", changes);
        let rope = |mixer| if let Mixer::Attention { rope, .. } = mixer { rope } else { None };
        spec.layers.iter().any(|layer| rope(layer.mixer).is_some())
    };
    let layers = json!(["mamba", "attention", "mamba", "attention"]);
    assert!(!rotates(json!({"layer_types": layers})));
    assert!(!rotates(json!({"layer_types": layers, "position_embedding_type": "nope"})));
    assert!(rotates(json!({"layer_types": layers, "position_embedding_type": "rope"})));
}

#[test]
fn steps_are_limited_as_the_config_says_in_any_spelling_of_infinity() {
    let limits = |spec: &DecoderSpec| (spec.mamba2s[0].least_step, spec.mamba2s[0].largest_step);
    assert_eq!(limits(&spec("falcon_h1", json!({}))), (0.0, None));
    assert_eq!(limits(&spec("falcon_h1", json!({"time_step_limit": [0.25, 2]}))), (0.25, Some(2.0)));
    let tagged = json!({"time_step_limit": [0.0, {"__float__": "Infinity"}]});
    assert_eq!(limits(&spec("granitemoehybrid", tagged)), (0.0, None));
    let bare = config("granitemoehybrid", &json!({"time_step_limit": [0.5, "?"]})).to_string();
    let bare = read(&bare.replace("\"?\"", "Infinity")).expect("that is how Python writes it");
    assert_eq!(limits(&bare), (0.5, None));
    assert_eq!(limits(&spec("nemotron_h", json!({}))), (0.001, None));
    assert_eq!(limits(&spec("nemotron_h", json!({"time_step_min": 0.5, "mamba_dt_min": 0.25}))), (0.25, None));
}

#[test]
fn factors_of_inputs_are_factors_of_outputs() {
    let spec = spec(
        "falcon_h1",
        json!({
            "attention_in_multiplier": 2.0, "key_multiplier": 0.5, "attention_out_multiplier": 3.0,
            "ssm_in_multiplier": 0.5, "ssm_multipliers": [1, 2, 4, 6, 8], "ssm_out_multiplier": 5.0,
            "mlp_multipliers": [0.25, 7.0], "embedding_multiplier": 9.0, "lm_head_multiplier": 0.125,
        }),
    );
    assert_eq!(spec.attentions[0].scale, 0.25 * 4.0 * 0.5);
    let branches = spec.branch_multipliers();
    assert_eq!((branches.attention, branches.mamba2, branches.feed_forward), (6.0, 5.0, 7.0));
    let inputs = spec.mamba2s[0].multipliers();
    assert_eq!([inputs.z, inputs.x, inputs.b, inputs.c, inputs.dt], [0.5, 1.0, 2.0, 3.0, 4.0]);
    assert_eq!((spec.embedding_multiplier, spec.logits_scaling), (9.0, 8.0));
    let gate = ActivationFunction::ScaledSilu { gate_multiplier: 0.25 };
    assert!(matches!(spec.layers[0].feed_forward, FeedForward::Dense { hidden_act, .. } if hidden_act == gate));
}

#[test]
fn what_does_not_fit_is_refused_by_its_field() {
    for (model_type, field, changes) in [
        ("granitemoehybrid", "mamba_n_groups", json!({"mamba_n_groups": 3})),
        ("granitemoehybrid", "mamba_n_heads", json!({"mamba_n_heads": 1 << 20})),
        ("granitemoehybrid", "mamba_n_heads", json!({"mamba_n_heads": 7, "mamba_n_groups": 7})),
        ("granitemoehybrid", "mamba_n_heads", json!({"mamba_n_heads": "many"})),
        ("granitemoehybrid", "mamba_d_head", json!({"mamba_d_head": 5, "mamba_expand": 2})),
        ("granitemoehybrid", "mamba_d_conv", json!({"mamba_d_conv": 1000})),
        ("granitemoehybrid", "mamba_d_state", json!({"mamba_d_state": 0})),
        ("granitemoehybrid", "hidden_act", json!({"hidden_act": "gelu"})),
        ("granitemoehybrid", "layer_types", json!({"layer_types": ["mamba", "conv", "mamba", "mamba"]})),
        ("granitemoehybrid", "layer_types", json!({"layer_types": ["mamba"]})),
        ("granitemoehybrid", "time_step_limit", json!({"time_step_limit": [1.0, 0.5]})),
        ("granitemoehybrid", "time_step_limit", json!({"time_step_limit": [{"__float__": "NaN"}, 0.5]})),
        ("granitemoehybrid", "time_step_limit", json!({"time_step_limit": [0.0]})),
        ("falcon_h1", "mamba_d_head", json!({"mamba_d_head": 15})),
        ("falcon_h1", "ssm_multipliers", json!({"ssm_multipliers": [1, 1, 1]})),
        ("falcon_h1", "mlp_multipliers", json!({"mlp_multipliers": [1, -1]})),
        ("falcon_h1", "key_multiplier", json!({"key_multiplier": 0})),
        ("falcon_h1", "attention_in_multiplier", json!({"attention_bias": true, "attention_in_multiplier": 2})),
        ("falcon_h1", "ssm_in_multiplier", json!({"mamba_proj_bias": true, "ssm_in_multiplier": 2})),
        ("nemotron_h", "hybrid_override_pattern", json!({"hybrid_override_pattern": "M?M"})),
        ("nemotron_h", "hybrid_override_pattern", json!({"hybrid_override_pattern": ""})),
        ("nemotron_h", "hybrid_override_pattern", json!({"hybrid_override_pattern": "M".repeat(5000)})),
        ("nemotron_h", "layers_block_type", json!({"layers_block_type": ["mamba", "conv"]})),
        ("nemotron_h", "layers_block_type", json!({"layers_block_type": []})),
        ("nemotron_h", "mamba_hidden_act", json!({"mamba_hidden_act": "relu"})),
        ("nemotron_h", "mlp_hidden_act", json!({"mlp_hidden_act": "prelu"})),
        ("nemotron_h", "moe_latent_size", json!({"moe_latent_size": 32})),
        ("nemotron_h", "n_groups", json!({"n_groups": 5})),
        ("nemotron_h", "num_experts_per_tok", json!({"num_experts_per_tok": 9})),
    ] {
        let error = describe(model_type, &changes).expect_err("that is no such model").to_string();
        assert!(error.contains(&format!("`{field}`")), "{model_type} {changes}: {error}");
    }
}
