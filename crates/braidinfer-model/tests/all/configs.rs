//! Reading `config.json`: styles, precedence, defaults, refusals.

use braidinfer_model::arch::{REFUSED, REGISTRY, describe_config};
use braidinfer_model::spec::{
    ActivationFunction, BlockSpec, ExpertsSpec, FeedForward, LayerSpec, Mixer, RopePairing, RopeScaling,
};
use braidinfer_model::{DecoderSpec, JsonFile, ModelError};
use serde_json::{Value, json};

fn describe(config: &Value) -> Result<DecoderSpec, ModelError> {
    let file = JsonFile::parse("config.json".into(), config.to_string().as_bytes())?;
    describe_config(&file).map(|description| description.spec)
}

fn spec(config: &Value) -> DecoderSpec {
    describe(config).unwrap_or_else(|error| panic!("{error}"))
}

/// A small config of `model_type` with `changes` on top.
fn config(model_type: &str, changes: Value) -> Value {
    let mut config = json!({
        "model_type": model_type, "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 512,
    });
    for (field, value) in changes.as_object().expect("changes are an object") {
        config[field] = value.clone();
    }
    config
}

fn windows(spec: &DecoderSpec) -> Vec<Option<usize>> {
    spec.layers
        .iter()
        .map(|layer| match layer.mixer {
            Mixer::Attention { sliding_window, .. } => sliding_window,
            _ => None,
        })
        .collect()
}

#[test]
fn every_registered_architecture_reads_a_minimal_config() {
    for architecture in REGISTRY {
        for name in std::iter::once(&architecture.model_type).chain(architecture.aliases) {
            let changes = match *name {
                // Experts beside gated delta nets are refused.
                "qwen3_next" => json!({"num_experts": 0}),
                // By default, more layers than these read the keys and values of others.
                "gemma3n" | "gemma3n_text" => json!({"num_kv_shared_layers": 0}),
                // The layers are those that are listed.
                "nemotron_h" => json!({"hybrid_override_pattern": "M-M*ME"}),
                _ => json!({}),
            };
            // Latent attention has no groups of queries.
            let described = describe(&config(name, changes)).or_else(|error| {
                assert!(error.to_string().contains("`num_key_value_heads`: expected 4"), "{error}");
                describe(&config(name, json!({"num_key_value_heads": 4})))
            });
            assert_eq!(described.map(|spec| spec.layers.len()).ok(), Some(6), "{name}");
        }
    }
}

#[test]
fn refused_architectures_say_why() {
    for (name, reason) in REFUSED {
        let message = describe(&config(name, json!({}))).expect_err("it is refused").to_string();
        assert!(message.contains(&format!("`{name}` {reason}; supported: llama")), "{message}");
    }
}

#[test]
fn rope_theta_is_read_in_both_styles_and_by_precedence() {
    let theta = |changes| spec(&config("llama", changes)).rope[0].rope_theta;
    assert_eq!(theta(json!({})), 1e4);
    assert_eq!(theta(json!({"rope_theta": 5e5})), 5e5);
    assert_eq!(theta(json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}})), 1e6);
    assert_eq!(theta(json!({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e6}})), 1e6);
    let scaling = json!({"type": "linear", "factor": 2.0});
    assert_eq!(theta(json!({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e6}, "rope_scaling": scaling})), 5e5);
    assert_eq!(spec(&config("ernie4_5", json!({}))).rope[0].rope_theta, 5e5);
    assert_eq!(spec(&config("smollm3", json!({}))).rope[0].rope_theta, 2e6);
}

#[test]
fn rope_scaling_is_read_in_both_styles() {
    let scaling = |changes| spec(&config("llama", changes)).rope[0].scaling.clone();
    let linear = RopeScaling::Linear { factor: 4.0 };
    assert_eq!(scaling(json!({"rope_scaling": {"type": "linear", "factor": 4.0}})), linear);
    assert_eq!(scaling(json!({"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 4.0}})), linear);
    assert_eq!(scaling(json!({"rope_parameters": {"rope_type": "linear", "factor": 4.0}})), linear);
    assert_eq!(scaling(json!({"rope_scaling": null})), RopeScaling::Default);
    let yarn = |changes: Value| match scaling(json!({"rope_scaling": changes})) {
        RopeScaling::Yarn { factor, attention_factor, .. } => (factor, attention_factor),
        other => panic!("{other:?}"),
    };
    assert_eq!(yarn(json!({"type": "yarn", "original_max_position_embeddings": 128})).0, 4.0, "from the lengths");
    assert_eq!(yarn(json!({"type": "yarn", "factor": 8.0, "attention_factor": 1.5})), (8.0, 1.5));
    let both = yarn(json!({"type": "yarn", "factor": 8.0, "mscale": 1.0, "mscale_all_dim": 1.0}));
    assert_eq!(both, (8.0, 1.0));
    assert_eq!(yarn(json!({"type": "yarn", "factor": 8.0})).1, 0.1 * 8f64.ln() + 1.0);
}

#[test]
fn explicit_null_is_not_an_absent_key() {
    let mistral = |changes| windows(&spec(&config("mistral", changes)))[0];
    assert_eq!(mistral(json!({})), Some(4096));
    assert_eq!(mistral(json!({"sliding_window": null})), None);
    assert_eq!(mistral(json!({"sliding_window": 32})), Some(32));
    assert_eq!(spec(&config("qwen2", json!({"num_key_value_heads": null}))).attentions[0].num_key_value_heads, 4);
    assert_eq!(spec(&config("ernie4_5", json!({"head_dim": null}))).attentions[0].head_dim, 16);
    let mut absent = config("ernie4_5", json!({}));
    absent.as_object_mut().expect("it is an object").remove("head_dim");
    assert_eq!(spec(&absent).attentions[0].head_dim, 128);
}

#[test]
fn window_patterns_follow_their_architecture() {
    let of = |name, changes| windows(&spec(&config(name, changes)));
    let (w, full) = (Some(8), None);
    assert_eq!(of("gemma2", json!({"sliding_window": 8})), [w, full, w, full, w, full]);
    assert_eq!(of("gemma3_text", json!({"sliding_window": 8})), [w, w, w, w, w, full]);
    assert_eq!(of("gemma3_text", json!({"sliding_window": 8, "sliding_window_pattern": 3})), [w, w, full, w, w, full]);
    assert_eq!(of("qwen2", json!({"sliding_window": 8, "max_window_layers": 0})), [full; 6], "off unless switched on");
    let on = json!({"sliding_window": 8, "max_window_layers": 4, "use_sliding_window": true});
    assert_eq!(of("qwen3", on), [full, full, full, full, w, w]);
    let types =
        ["full_attention", "sliding_attention", "attention", "sliding_attention", "full_attention", "full_attention"];
    let listed = json!({"sliding_window": 8, "layer_types": types});
    assert_eq!(of("mistral", listed.clone()), [full, w, full, w, full, full], "read as ministral");
    assert_eq!(of("gemma2", listed), [full, w, full, w, full, full], "a list wins over the rule");
    let message = describe(&config("gemma2", json!({"layer_types": ["mamba"]}))).expect_err("one entry").to_string();
    assert!(message.contains("field `layer_types`: expected 6 entries"), "{message}");
    // Whether or not it decides anything.
    for (name, changes) in [
        ("llama", json!({"layer_types": ["full_attention"]})),
        ("qwen2", json!({"layer_types": vec!["mamba"; 6], "use_sliding_window": false})),
        ("qwen3", json!({"layer_types": vec!["linear_attention"; 6]})),
        ("phi3", json!({"layer_types": [1, 2, 3, 4, 5, 6]})),
    ] {
        let message = describe(&config(name, changes)).expect_err("no such kinds").to_string();
        assert!(message.contains("field `layer_types`"), "{name}: {message}");
    }
}

#[test]
fn rope_details_of_single_architectures() {
    assert_eq!(spec(&config("ernie4_5", json!({}))).rope[0].pairing, RopePairing::Interleaved);
    assert_eq!(spec(&config("phi", json!({}))).rope[0].rotary_dim, 8);
    assert_eq!(spec(&config("phi", json!({"head_dim": 80, "partial_rotary_factor": 0.4}))).rope[0].rotary_dim, 32);
    let rotated: Vec<bool> = spec(&config("smollm3", json!({"no_rope_layers": [1, 0, 1, 1, 0, 1]})))
        .layers
        .iter()
        .map(|layer| matches!(layer.mixer, Mixer::Attention { rope: Some(_), .. }))
        .collect();
    assert_eq!(rotated, [true, false, true, true, false, true], "1 means rotate");
    let factors = vec![1.5; 8];
    let longrope = |kind: &str| {
        let scaling = json!({"type": kind, "short_factor": factors, "long_factor": factors});
        spec(&config("phi3", json!({"rope_scaling": scaling, "original_max_position_embeddings": 128}))).rope[0].clone()
    };
    assert_eq!(longrope("su"), longrope("longrope"));
    assert_eq!(longrope("yarn"), longrope("longrope"));
    let short = json!({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": factors}});
    let message = describe(&config("phi3", short)).expect_err("the list is too short").to_string();
    assert!(message.contains("field `rope_scaling.short_factor`: expected a list of 8 numbers"), "{message}");
}

#[test]
fn text_models_nested_in_multimodal_configs_are_found() {
    let mut outer = json!({"model_type": "gemma3", "text_config": config("gemma3_text", json!({}))});
    assert_eq!(spec(&outer).model_type, "gemma3_text");
    outer["text_config"].as_object_mut().expect("it is an object").remove("model_type");
    assert_eq!(spec(&outer).hidden_size, 64);
}

#[test]
fn nested_configs_may_leave_out_what_equals_the_class_default() {
    let text = json!({
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    });
    let gemma = spec(&json!({"model_type": "gemma3", "text_config": text}));
    let attention = gemma.attentions[0];
    assert_eq!((attention.num_attention_heads, attention.num_key_value_heads, attention.head_dim), (8, 4, 256));
    assert_eq!((gemma.vocab_size, gemma.tie_word_embeddings, gemma.layers.len()), (262_208, true, 34));
    let mut wrapped =
        json!({"model_type": "mistral3", "tie_word_embeddings": true, "text_config": config("mistral", json!({}))});
    wrapped["text_config"].as_object_mut().expect("it is an object").remove("model_type");
    assert!(spec(&wrapped).tie_word_embeddings, "what only the outer object says counts");
    let message = describe(&config("llama", json!({"hidden_size": null}))).expect_err("null is no size").to_string();
    assert!(message.contains("field `hidden_size`: expected a positive whole number, found null"), "{message}");
}

#[test]
fn lengths_before_scaling_come_from_where_transformers_takes_them() {
    let factors = vec![1.5; 8];
    let original = |model_type: &str, nested: Value, top: Value| {
        let mut scaling = json!({"type": "longrope", "short_factor": factors, "long_factor": factors});
        scaling["original_max_position_embeddings"] = nested;
        let changes = json!({"rope_scaling": scaling, "max_position_embeddings": 131_072, "original_max_position_embeddings": top});
        match spec(&config(model_type, changes)).rope[0].scaling {
            RopeScaling::Longrope { original_max_position_embeddings, .. } => original_max_position_embeddings,
            ref other => panic!("{other:?}"),
        }
    };
    let (null, nested, top) = (json!(null), json!(8192), json!(1024));
    assert_eq!(original("llama", nested.clone(), top.clone()), 1024, "the top level wins");
    assert_eq!(original("llama", nested.clone(), null.clone()), 8192);
    assert_eq!(original("llama", null.clone(), null.clone()), 131_072);
    assert_eq!(original("phi3", nested, null.clone()), 4096, "the class has one of its own");
    assert_eq!(original("phi3", null.clone(), null), 4096);
}

#[test]
fn gemma3_scaling_is_merged_and_only_rope_type_counts() {
    let full = |changes| spec(&config("gemma3_text", changes)).rope[0].clone();
    let linear = RopeScaling::Linear { factor: 8.0 };
    assert_eq!(full(json!({"rope_scaling": {"rope_type": "linear", "factor": 8.0}})).scaling, linear);
    assert_eq!(full(json!({"rope_scaling": {"type": "linear", "factor": 8.0}})).scaling, RopeScaling::Default);
    let nested = json!({"full_attention": {"rope_type": "default", "rope_theta": 2e6}});
    let merged = full(
        json!({"rope_theta": 5e5, "rope_parameters": nested, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    );
    assert_eq!((merged.scaling, merged.rope_theta), (linear, 2e6));
    let sliding = spec(&config("gemma3_text", json!({"rope_local_base_freq": 3e4}))).rope[1].rope_theta;
    assert_eq!(sliding, 3e4);
    let message =
        describe(&config("gemma3_text", json!({"use_bidirectional_attention": true}))).expect_err("not causal");
    assert!(message.to_string().contains("`use_bidirectional_attention`"), "{message}");
}

#[test]
fn ministral3_scales_by_default() {
    let plain = spec(&config("ministral3", json!({"rope_theta": 5.0})));
    assert_eq!(plain.rope[0].rope_theta, 1e6, "the top level does not count");
    assert!(matches!(plain.rope[0].scaling, RopeScaling::Yarn { factor: 16.0, attention_factor: 1.0, .. }));
    assert_eq!(plain.attentions[0].query_position_scale.map(|scale| scale.beta), Some(0.1));
    let empty = spec(&config("llama", json!({"rope_scaling": {}, "rope_parameters": {"rope_theta": 1e6}})));
    assert_eq!(empty.rope[0].rope_theta, 1e6, "an empty object is none");
}

#[test]
fn gated_and_plain_feed_forward() {
    let gated = |name| {
        let FeedForward::Dense { gated, bias, .. } = spec(&config(name, json!({}))).layers[0].feed_forward else {
            panic!("{name}: experts");
        };
        (gated, bias)
    };
    assert_eq!((gated("llama"), gated("phi")), ((true, false), (false, true)));
}

fn experts(model_type: &str, fields: Value, layer: usize) -> Option<ExpertsSpec> {
    spec(&config(model_type, fields)).experts(layer).copied()
}

#[test]
fn which_layers_have_experts() {
    let sparse = |model_type: &str, fields: Value| -> Vec<usize> {
        let spec = spec(&config(model_type, fields));
        (0..spec.layers.len()).filter(|layer| spec.experts(*layer).is_some()).collect()
    };
    let qwen = json!({"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]});
    assert_eq!(sparse("qwen3_moe", qwen), [1, 5]);
    assert_eq!(sparse("glm4_moe", json!({"num_hidden_layers": 4, "first_k_dense_replace": 2})), [2, 3]);
    let ernie =
        json!({"num_hidden_layers": 8, "moe_layer_start_index": 2, "moe_layer_end_index": 6, "moe_layer_interval": 2});
    assert_eq!(sparse("ernie4_5_moe", ernie), [3, 5]);
    assert_eq!(sparse("mixtral", json!({"num_hidden_layers": 2})), [0, 1]);
}

#[test]
fn routers_are_those_of_their_classes() {
    let qwen = experts("qwen3_moe", json!({"num_local_experts": 16}), 0).expect("all layers have experts");
    assert_eq!((qwen.num_experts, qwen.num_experts_per_tok, qwen.router.norm_topk_prob), (16, 8, false));
    let glm = experts("glm4_moe", json!({"n_group": 4, "topk_group": 2}), 1).expect("the second layer has experts");
    assert!(glm.router.correction_bias && glm.router.norm_topk_prob && glm.router.groups.is_some());
    assert_eq!(glm.shared_expert.map(|shared| shared.intermediate_size), Some(1408));
    let none = experts("ernie4_5_moe", json!({"moe_num_shared_experts": 0}), 1).expect("the second layer has experts");
    assert_eq!(none.shared_expert, None);
    let hybrid = experts("qwen3_next", json!({}), 0).expect("all layers have experts");
    assert_eq!((hybrid.num_experts, hybrid.num_experts_per_tok, hybrid.router.norm_topk_prob), (512, 10, true));
    assert!(hybrid.shared_expert.is_some_and(|shared| shared.gated));
    assert_eq!(experts("qwen3_next", json!({"num_experts": 0}), 0), None);
    assert_eq!(experts("qwen3_5_moe", json!({}), 5).map(|experts| experts.num_experts_per_tok), Some(8));
}

/// `config` with as many key/value heads as query heads.
fn latent(model_type: &str, changes: Value) -> Value {
    let mut config = config(model_type, changes);
    config["num_key_value_heads"] = config["num_attention_heads"].clone();
    config
}

#[test]
fn latent_attention_is_that_of_its_classes() {
    let yarn = json!({"type": "yarn", "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096});
    let v2 = spec(&latent("deepseek_v2", json!({"rope_scaling": yarn, "q_lora_rank": null, "rms_norm_eps": 1e-5})));
    let attention = v2.attentions[0];
    let widths = attention.latent.expect("it has latent attention");
    assert_eq!((attention.head_dim, widths.q_lora_rank, widths.kv_lora_rank, widths.v_head_dim), (192, None, 512, 128));
    // The norms of narrower vectors have the class's epsilon.
    assert_eq!((widths.norm.eps, v2.norm.eps), (1e-6, 1e-5));
    let mscale: f64 = 0.1 * 0.707 * 40f64.ln() + 1.0;
    assert!((attention.scale - mscale.powi(2) / 192f64.sqrt()).abs() < 1e-12);
    assert_eq!((v2.rope[0].rotary_dim, v2.rope[0].pairing), (64, RopePairing::Interleaved));
    let RopeScaling::Yarn { attention_factor, .. } = v2.rope[0].scaling else { panic!("it has YaRN") };
    assert_eq!(attention_factor, 1.0);

    let v3 = spec(&latent("deepseek_v3", json!({"qk_rope_head_dim": 32, "head_dim": 64})));
    assert_eq!((v3.attentions[0].head_dim, v3.rope[0].rotary_dim), (160, 32));
    assert_eq!(v3.attentions[0].latent.and_then(|latent| latent.q_lora_rank), Some(1536));
    assert_eq!(v3.rope[0].pairing, RopePairing::Interleaved);
    for off in [json!(false), Value::Null] {
        let halves = spec(&latent("deepseek_v3", json!({"rope_interleave": off})));
        assert_eq!(halves.rope[0].pairing, RopePairing::HalfSplit);
    }
    let experts = v3.experts(3).expect("layers from the fourth on have experts");
    let groups = experts.router.groups.map(|groups| (groups.n_group, groups.topk_group));
    assert_eq!((groups, experts.router.routed_scaling_factor, v3.experts(2)), (Some((8, 4)), 2.5, None));

    let flash = spec(&latent("glm4_moe_lite", json!({})));
    assert_eq!((flash.experts(0), flash.experts(1).map(|experts| experts.num_experts)), (None, Some(64)));
    let minicpm = spec(&latent("minicpm3", json!({"scale_depth": null, "dim_model_base": 32})));
    let factors = [minicpm.embedding_multiplier, minicpm.residual_multiplier, minicpm.logits_scaling];
    assert_eq!((factors, minicpm.attentions[0].value_head_dim()), ([12.0, 1.0, 2.0], 16));
}

#[test]
fn fields_that_transformers_reads_in_another_way_are_refused() {
    let partial = json!({"partial_rotary_factor": 0.5});
    let nested = json!({"rope_parameters": {"full_attention": {"rope_theta": 7.0}}});
    for (name, changes, field) in [
        ("llama", json!({"is_causal": false}), "`is_causal`"),
        ("mixtral", partial.clone(), "`partial_rotary_factor`: expected 1"),
        ("starcoder2", json!({"rope_parameters": partial}), "`rope_parameters.partial_rotary_factor`"),
        ("qwen3_next", nested.clone(), "`rope_parameters.full_attention`"),
        ("gpt_oss", nested, "`rope_parameters.full_attention`"),
        ("gemma4_text", json!({"rope_parameters": {"rope_theta": 7.0}}), "`rope_parameters`"),
        ("gemma4_text", json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}), "`rope_scaling`"),
        ("gemma4_text", json!({"use_bidirectional_attention": "x"}), "`use_bidirectional_attention`"),
        ("lfm3", json!({"rope_parameters": {"rope_theta": 7.0}}), "`rope_parameters`"),
        ("lfm2", json!({"hidden_act": "relu"}), "`hidden_act`: expected `silu`"),
        ("phimoe", json!({"router_jitter_noise": -0.1}), "`router_jitter_noise`"),
    ] {
        let message = describe(&config(name, changes)).expect_err("it is refused").to_string();
        assert!(message.contains(field), "{name}: {message}");
    }
    describe(&config("mixtral", json!({"partial_rotary_factor": 1.0}))).expect("heads are rotated whole");
}

#[test]
fn a_base_without_settings_is_not_that_of_apertus() {
    for (changes, theta) in [
        (json!({"rope_theta": 777.0}), 12e6),
        (json!({"rope_theta": 777.0, "rope_parameters": {}}), 12e6),
        (json!({"rope_theta": 777.0, "rope_parameters": {"rope_type": "default"}}), 777.0),
    ] {
        let spec = describe(&config("apertus", changes)).expect("it is possible");
        assert!((spec.rope[0].rope_theta - theta).abs() < 1e-6, "{:?}", spec.rope);
    }
}

#[test]
fn impossible_latent_attention_is_refused() {
    for (model_type, fields, field) in [
        ("deepseek_v2", json!({"v_head_dim": 193}), "v_head_dim"),
        ("deepseek_v2", json!({"qk_nope_head_dim": 1 << 30}), "qk_nope_head_dim"),
        ("deepseek_v2", json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        ("deepseek_v2", json!({"qk_rope_head_dim": 7}), "partial_rotary_factor"),
        ("deepseek_v2", json!({"norm_topk_prob": true}), "norm_topk_prob"),
        ("deepseek_v2", json!({"topk_method": "noaux_tc"}), "topk_method"),
        ("deepseek_v2", json!({"moe_layer_freq": 2}), "moe_layer_freq"),
        ("deepseek_v3", json!({"topk_method": "greedy"}), "topk_method"),
        ("deepseek_v3", json!({"scoring_func": "softmax"}), "scoring_func"),
        ("glm4_moe_lite", json!({"first_k_dense_replace": 2}), "first_k_dense_replace"),
        ("glm4_moe_lite", json!({"mlp_layer_types": ["dense"]}), "mlp_layer_types"),
        ("minicpm3", json!({"hidden_size": 2, "v_head_dim": null}), "v_head_dim"),
        ("minicpm3", json!({"rope_scaling": {"type": "linear", "mscale_all_dim": 1.0}}), "rope_scaling.factor"),
    ] {
        let message = describe(&latent(model_type, fields)).expect_err("it is impossible").to_string();
        assert!(message.contains(&format!("`{field}`")), "{message}");
    }
    let message = describe(&config("deepseek_v3", json!({}))).expect_err("groups of queries").to_string();
    assert!(message.contains("`num_key_value_heads`: expected 4, as many as attention heads, found 2"), "{message}");
}

#[test]
fn impossible_mixtures_are_refused() {
    let message = |model_type: &str, fields: Value| {
        describe(&config(model_type, fields)).expect_err("it is impossible").to_string()
    };
    for (model_type, fields, field) in [
        ("qwen3_moe", json!({"num_experts": 4}), "num_experts_per_tok"),
        ("qwen3_moe", json!({"num_experts": 1 << 20}), "num_experts"),
        ("mixtral", json!({"num_hidden_layers": 4096, "num_local_experts": 64}), "num_experts"),
        ("glm4_moe", json!({"n_group": 3}), "n_group"),
        ("glm4_moe", json!({"n_group": 128, "topk_group": 64}), "n_group"),
        ("glm4_moe", json!({"n_group": 32, "topk_group": 1}), "topk_group"),
        ("glm4_moe", json!({"n_group": 4, "topk_group": 5}), "topk_group"),
        ("qwen2_moe", json!({"mlp_only_layers": [-1]}), "mlp_only_layers"),
        ("olmoe", json!({"clip_qkv": 8.0}), "clip_qkv"),
    ] {
        let message = message(model_type, fields);
        assert!(message.contains(&format!("`{field}`")), "{message}");
    }
}

#[test]
fn layers_of_hybrids_are_listed_or_follow_the_interval() {
    let recurrent = |changes| -> Vec<bool> {
        let spec = spec(&config("qwen3_5_text", changes));
        spec.layers.iter().map(|layer| matches!(layer.mixer, Mixer::DeltaNet { .. })).collect()
    };
    assert_eq!(recurrent(json!({})), [true, true, true, false, true, true]);
    assert_eq!(recurrent(json!({"full_attention_interval": 2})), [true, false, true, false, true, false]);
    let kinds = ["full_attention", "linear_attention"].repeat(3);
    assert_eq!(recurrent(json!({"layer_types": kinds})), [false, true, false, true, false, true]);
}

#[test]
fn hybrids_have_gates_and_centred_norms_and_rotate_a_quarter() {
    let nested = json!({"text_config": config("qwen3_5_text", json!({})), "model_type": "qwen3_5"});
    let spec = spec(&nested);
    let attention = spec.attentions[0];
    assert!(attention.output_gate);
    assert_eq!((attention.query_width(), attention.query_rows()), (64, 128));
    assert_eq!(attention.qk_norm.map(|norm| norm.norm.weight_offset), Some(1.0));
    assert_eq!((spec.norm.weight_offset, spec.delta_nets[0].norm.weight_offset), (1.0, 0.0));
    assert_eq!(spec.rope[0].rotary_dim, 4);
    let delta_net = spec.delta_nets[0];
    assert_eq!((delta_net.key_width(), delta_net.value_width(), delta_net.conv_width()), (2048, 4096, 8192));
}

#[test]
fn inner_widths_of_lfm2_are_adjusted() {
    let width = |changes: Value| match spec(&config("lfm2", changes)).layers[0].feed_forward {
        FeedForward::Dense { intermediate_size, .. } => intermediate_size,
        FeedForward::Experts(_) | FeedForward::None => 0,
    };
    // Of the published models with 1.2B and 350M parameters.
    assert_eq!(width(json!({"block_ff_dim": 12_288})), 8192);
    assert_eq!(width(json!({"block_ff_dim": 6656, "block_ffn_dim_multiplier": 1.0, "block_multiple_of": 256})), 4608);
    assert_eq!(width(json!({"intermediate_size": 10_752, "block_auto_adjust_ff_dim": false})), 10_752);
    assert_eq!(width(json!({"intermediate_size": 100, "block_ffn_dim_multiplier": null})), 66);
    let error = describe(&config("lfm2", json!({"block_ffn_dim_multiplier": 1e30}))).expect_err("that is too wide");
    assert!(error.to_string().contains("`block_ffn_dim_multiplier`"), "{error}");
}

#[test]
fn layers_of_lfm2_are_listed_in_one_of_two_ways() {
    let convolves = |changes| -> Vec<bool> {
        let spec = spec(&config("lfm2", changes));
        (0..spec.layers.len()).map(|layer| spec.short_conv(layer).is_some()).collect()
    };
    assert_eq!(convolves(json!({})), [false; 6]);
    assert_eq!(convolves(json!({"full_attn_idxs": [2, 5]})), [true, true, false, true, true, false]);
    let kinds = ["full_attention", "conv"].repeat(3);
    assert_eq!(convolves(json!({"layer_types": kinds})), [false, true, false, true, false, true]);
    for (field, changes) in [
        ("layer_types", json!({"layer_types": vec!["linear_attention"; 6]})),
        ("full_attn_idxs", json!({"full_attn_idxs": ["first"]})),
        ("conv_L_cache", json!({"conv_L_cache": 1 << 20})),
    ] {
        let error = describe(&config("lfm2", changes)).expect_err("that is no such model");
        assert!(error.to_string().contains(&format!("`{field}`")), "{error}");
    }
    let error = describe(&config("qwen3", json!({"layer_types": vec!["conv"; 6]}))).expect_err("it has none");
    assert!(error.to_string().contains("`layer_types`"), "{error}");
}

#[test]
fn what_hybrids_cannot_be_is_refused_by_name() {
    for (field, changes) in [
        ("layer_types", json!({"layer_types": vec!["sliding_attention"; 6]})),
        ("linear_num_value_heads", json!({"linear_num_value_heads": 24})),
        ("linear_num_value_heads", json!({"linear_num_value_heads": 1 << 20})),
        ("linear_conv_kernel_dim", json!({"linear_conv_kernel_dim": 1 << 20})),
        ("attn_output_gate", json!({"attn_output_gate": false})),
        ("hidden_act", json!({"hidden_act": "gelu"})),
    ] {
        let message = describe(&config("qwen3_5_text", changes)).expect_err(field).to_string();
        assert!(message.contains(&format!("`{field}`")), "{field}: {message}");
    }
    let linear = config("llama", json!({"layer_types": vec!["linear_attention"; 6]}));
    let message = describe(&linear).expect_err("llama has no such layers").to_string();
    assert!(message.contains("layer_types"), "{message}");
}

#[test]
fn dense_architectures_in_the_spelling_of_published_files() {
    let of = |name: &str, changes: Value| spec(&config(name, changes));
    let ropes = |spec: &DecoderSpec| -> Vec<Option<usize>> {
        let rope = |layer: &LayerSpec| match layer.mixer {
            Mixer::Attention { rope, .. } => rope,
            _ => None,
        };
        spec.layers.iter().map(rope).collect()
    };
    let (w, full) = (Some(8), None);

    // Scaling in the old style is that of the full layers; the others have the class's theta.
    let yarn = json!({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64});
    let olmo3 = of("olmo3", json!({"sliding_window": 8, "rope_theta": 1e6, "rope_scaling": yarn}));
    assert_eq!(windows(&olmo3), [w, w, w, full, w, w]);
    assert_eq!(ropes(&olmo3), [Some(1), Some(1), Some(1), Some(0), Some(1), Some(1)]);
    assert!(matches!(olmo3.rope[0].scaling, RopeScaling::Yarn { factor: 8.0, .. }));
    assert_eq!((olmo3.rope[0].rope_theta, olmo3.rope[1].rope_theta), (1e6, 5e5));
    assert_eq!(olmo3.rope[1].scaling, RopeScaling::Default);

    // `truncate` counts beside the kinds of layers only.
    for name in ["olmo3", "gemma3_text"] {
        for outer in [None, Some(true), Some(false)] {
            let full = json!({"rope_type": "yarn", "factor": 8.0, "truncate": outer.is_some_and(|outer| outer)});
            let parameters = json!({"full_attention": full, "truncate": outer});
            let found = of(name, json!({"sliding_window": 8, "rope_parameters": parameters})).rope[0].scaling.clone();
            let RopeScaling::Yarn { truncate, .. } = found else { panic!("{name}: {found:?}") };
            assert_eq!(truncate, outer.unwrap_or(true), "{name}");
        }
    }

    // Published files have letters here, and a list that decides.
    let kinds = ["sliding_attention", "sliding_attention", "full_attention"].repeat(2);
    let exaone = json!({"sliding_window": 8, "sliding_window_pattern": "LLLG", "layer_types": kinds});
    let exaone = of("exaone4", exaone);
    assert_eq!(windows(&exaone), [w, w, full, w, w, full]);
    assert_eq!(ropes(&exaone), [Some(0), Some(0), None, Some(0), Some(0), None]);
    let message = describe(&config("exaone4", json!({"sliding_window_pattern": "LLLG"}))).expect_err("no list");
    assert!(message.to_string().contains("field `sliding_window_pattern`"), "{message}");
    assert_eq!(ropes(&of("exaone4", json!({"sliding_window": null}))), [Some(0); 6]);

    let cohere = of("cohere2", json!({"sliding_window": 8, "sliding_window_pattern": 3, "logit_scale": 0.25}));
    assert_eq!(windows(&cohere), [w, w, full, w, w, full]);
    assert_eq!((ropes(&cohere)[2], cohere.logits_scaling), (None, 4.0));
    assert_eq!(of("cohere2", json!({})).logits_scaling, 16.0);
    assert!(of("cohere", json!({})).tie_word_embeddings);

    let dynamic = |settings: Value| of("hunyuan_v1_dense", json!({"rope_scaling": settings})).rope[0].clone();
    let stretched = dynamic(json!({"type": "dynamic", "alpha": 1000.0, "factor": 1.0}));
    assert_eq!(stretched.scaling, RopeScaling::Default);
    assert!((stretched.rope_theta - 1e4 * 1000f64.powf(16.0 / 14.0)).abs() < 1.0, "{}", stretched.rope_theta);
    let plain = dynamic(json!({"type": "dynamic", "factor": 2.0}));
    assert!(matches!(plain.scaling, RopeScaling::Dynamic { factor: 2.0, .. }), "{plain:?}");

    assert!(of("seed_oss", json!({})).attentions[0].qkv_bias && !of("seed_oss", json!({})).attentions[0].output_bias);
    assert_eq!(of("glm4", json!({})).rope[0].rotary_dim, 8);
    assert_eq!(of("stablelm", json!({})).rope[0].rotary_dim, 4);
    assert_eq!(of("nemotron", json!({})).rope[0].rotary_dim, 8);
    assert_eq!(of("starcoder2", json!({"norm_epsilon": 1e-4})).norm.eps, 1e-4);
    assert!(matches!(of("apertus", json!({})).rope[0].scaling, RopeScaling::Llama3 { factor: 8.0, .. }));
    for (name, field) in [("stablelm", "qk_layernorm"), ("phi", "qk_layernorm")] {
        let read = describe(&config(name, json!({field: true})));
        assert_eq!(read.is_err(), name == "stablelm", "{name}");
    }
    for (name, expected) in [
        ("arcee", ActivationFunction::Relu2),
        ("nemotron", ActivationFunction::Relu2),
        ("apertus", ActivationFunction::Xielu),
        ("starcoder2", ActivationFunction::GeluTanh),
    ] {
        let found = of(name, json!({})).layers[0].feed_forward;
        let ungated = matches!(found, FeedForward::Dense { gated: false, hidden_act, .. } if hidden_act == expected);
        assert!(ungated, "{name}: {found:?}");
    }
    let message = describe(&config("mixtral", json!({"hidden_act": "xielu"}))).expect_err("it has parameters");
    assert!(message.to_string().contains("field `hidden_act`"), "{message}");
}

/// For each layer of a Gemma 4: head width, number of key/value heads, the layer whose keys it reads, inner width.
fn gemma4_layers(spec: &DecoderSpec) -> Vec<(usize, usize, Option<usize>, usize)> {
    let of = |layer: usize| {
        let attention = spec.attention(layer).expect("all layers have attention");
        let width = spec.layers[layer].feed_forward.inner_width();
        (attention.head_dim, attention.num_key_value_heads, spec.kv_shared_with(layer), width)
    };
    (0..spec.layers.len()).map(of).collect()
}

#[test]
fn layers_of_gemma4_differ_by_kind_and_by_what_they_share() {
    let types = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"];
    let changes = json!({
        "num_hidden_layers": 5, "layer_types": types, "num_kv_shared_layers": 2, "use_double_wide_mlp": true,
        "global_head_dim": 32, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 100,
    });
    let shared = spec(&config("gemma4_text", changes.clone()));
    let expected =
        [(16, 2, None, 96), (16, 2, None, 96), (32, 2, None, 96), (16, 2, Some(1), 192), (32, 2, Some(2), 192)];
    assert_eq!(gemma4_layers(&shared), expected);
    assert_eq!(shared.key_value_width(1), 32);
    assert_eq!(shared.key_value_width(3), 0, "it keeps none of its own");
    assert!(!shared.has_separate_layers());
    let inputs = shared.per_layer_inputs.expect("it has inputs for each layer");
    assert_eq!((inputs.hidden_size_per_layer_input, inputs.projection_multiplier), (8, 0.125));
    // As transformers 5 spells the same.
    let mut changes = changes;
    changes.as_object_mut().expect("an object").remove("global_head_dim");
    changes["per_layer_config"] = json!({"2": {"head_dim": 32}, "4": {"head_dim": 32}});
    assert_eq!(spec(&config("gemma4_text", changes)), shared);
    // The last layer is full, whatever the list says, and one in six without a list.
    let plain = spec(&config("gemma4_text", json!({"hidden_size_per_layer_input": 0, "sliding_window": 8})));
    assert_eq!(windows(&plain), [Some(8), Some(8), Some(8), Some(8), Some(8), None]);
    assert_eq!(gemma4_layers(&plain)[5], (512, 2, None, 96));
    assert!(plain.has_separate_layers());
}

#[test]
fn lfm3_has_windows_gates_and_norms_unless_its_config_says_otherwise() {
    let usual = spec(&config("lfm3", json!({"norm_eps": 1e-4})));
    let kinds: Vec<Option<Option<usize>>> = usual
        .layers
        .iter()
        .map(|layer| match layer.mixer {
            Mixer::Attention { sliding_window, .. } => Some(sliding_window),
            _ => None,
        })
        .collect();
    assert_eq!(kinds[..6], [None, None, Some(None), None, Some(Some(256)), None]);
    assert!(usual.attentions[0].head_gate && usual.block == BlockSpec::SANDWICH);
    assert_eq!((usual.short_convs[0].conv_l_cache, usual.norm.eps), (7, 1e-4));
    assert!(matches!(usual.rope[0].scaling, RopeScaling::Proportional { .. }));
    assert_eq!((usual.rope[0].rope_theta, usual.rope[1].rope_theta), (1e6, 1e4));
    // Settings without a base have that of the class, or the outer one.
    let kinds = json!({"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"}});
    for (changes, theta) in [
        (json!({"rope_parameters": kinds, "rope_theta": null}), 1e6),
        (json!({"rope_parameters": kinds, "rope_theta": 5.0}), 5.0),
    ] {
        let rope = spec(&config("lfm3", changes)).rope;
        assert_eq!((rope[0].rope_theta, rope[1].rope_theta), (theta, theta));
    }
    let plain = json!({"use_attention_gate": false, "use_sandwich_norm": false, "layer_types": vec!["conv"; 6]});
    let plain = spec(&config("lfm3", plain));
    assert!(!plain.attentions[0].head_gate && plain.block == BlockSpec::PRE_NORM);
    let linear = json!({"layer_types": ["linear_attention", "conv", "conv", "conv", "conv", "conv"]});
    let error = describe(&config("lfm3", linear)).expect_err("it has no such layers").to_string();
    assert!(error.contains("conv, full_attention or sliding_attention"), "{error}");
}

#[test]
fn gemma3n_has_streams_branches_and_sparse_networks() {
    let sparsity = [0.95, 0.0, 0.5, 0.0, 0.2, 0.0];
    let changes = json!({
        "num_kv_shared_layers": 1, "activation_sparsity_pattern": sparsity, "intermediate_size": [8, 9, 10, 11, 12, 13],
        "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention",
            "sliding_attention", "full_attention"],
        "altup_active_idx": 2, "laurel_rank": 5,
    });
    let described = spec(&config("gemma3n_text", changes));
    let networks: Vec<(usize, Option<f64>)> = described
        .layers
        .iter()
        .map(|layer| match layer.feed_forward {
            FeedForward::Dense { intermediate_size, gate_cutoff, .. } => (intermediate_size, gate_cutoff),
            _ => (0, None),
        })
        .collect();
    assert_eq!(networks.iter().map(|(width, _)| *width).collect::<Vec<_>>(), [8, 9, 10, 11, 12, 13]);
    for ((_, found), expected) in
        networks.iter().zip([Some(1.644_853_6), None, Some(0.0), None, Some(-0.841_621_2), None])
    {
        let near = found.zip(expected).is_some_and(|(found, expected)| (found - expected).abs() < 1e-6);
        assert!(near || found.is_none() && expected.is_none(), "{networks:?}");
    }
    assert_eq!(windows(&described), [None, Some(512), None, Some(512), Some(512), None]);
    assert_eq!(described.kv_shared_with(5), Some(2));
    let altup = described.altup.expect("it has several streams");
    assert_eq!((altup.altup_num_inputs, altup.altup_active_idx, altup.router_multiplier), (4, 2, 1.0 / 64.0));
    assert_eq!((described.streams(), described.stream_width()), (4, 256));
    assert_eq!(described.laurel.map(|laurel| laurel.laurel_rank), Some(5));
    assert_eq!(described.rope.iter().map(|table| table.rope_theta).collect::<Vec<_>>(), [1e6, 1e4]);
    assert!(!described.has_separate_layers());
    // Tokens without a row of their own have the first one.
    let few = json!({"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 90});
    let inputs = spec(&config("gemma3n_text", few)).per_layer_inputs.expect("it has inputs for each layer");
    assert_eq!([0, 89, 90, 99].map(|token| inputs.row(token)), [0, 89, 0, 0]);
    // By default the first ten of more layers are sparse, and one in five is full.
    let deep = json!({"num_hidden_layers": 12, "num_kv_shared_layers": 2});
    let deep = spec(&config("gemma3n_text", deep));
    let sparse = |layer: &LayerSpec| matches!(layer.feed_forward, FeedForward::Dense { gate_cutoff: Some(_), .. });
    assert_eq!(deep.layers.iter().map(sparse).collect::<Vec<_>>(), [vec![true; 10], vec![false; 2]].concat());
    assert_eq!((windows(&deep)[4], windows(&deep)[9], windows(&deep)[11]), (None, None, Some(512)));
    assert_eq!((deep.kv_shared_with(10), deep.final_logit_softcapping), (Some(8), Some(30.0)));
}

#[test]
fn what_gemma3n_cannot_be_is_refused_by_name() {
    for (changes, expected) in [
        (json!({"altup_num_inputs": 0}), "`altup_num_inputs`"),
        (json!({"altup_num_inputs": 17}), "`altup_num_inputs`: expected at most 16"),
        (json!({"altup_num_inputs": 4_000_000_000_u64}), "`altup_num_inputs`"),
        (json!({"altup_active_idx": 4}), "`altup_active_idx`: expected the index of one of 4 streams"),
        (json!({"altup_active_idx": -1}), "`altup_active_idx`"),
        (json!({"altup_active_idx": 0.5}), "`altup_active_idx`"),
        (json!({"altup_coef_clip": -1.0}), "`altup_coef_clip`"),
        (json!({"altup_coef_clip": "Infinity"}), "`altup_coef_clip`"),
        (json!({"laurel_rank": 0}), "`laurel_rank`"),
        (json!({"hidden_size_per_layer_input": 0}), "`hidden_size_per_layer_input`"),
        (json!({"vocab_size_per_layer_input": 0}), "`vocab_size_per_layer_input`"),
        (json!({"activation_sparsity_pattern": [0.5]}), "`activation_sparsity_pattern`: expected 6 numbers"),
        (json!({"activation_sparsity_pattern": 0.5}), "`activation_sparsity_pattern`"),
        (json!({"activation_sparsity_pattern": [0, 0, 0, 0, 0, 1.0]}), "`activation_sparsity_pattern`"),
        (json!({"activation_sparsity_pattern": [0, 0, 0, 0, 0, -0.1]}), "`activation_sparsity_pattern`"),
        (json!({"activation_sparsity_pattern": [0, 0, 0, 0, 0, "x"]}), "`activation_sparsity_pattern`"),
        (json!({"intermediate_size": [8, 8]}), "`intermediate_size`"),
        (json!({"intermediate_size": [8, 8, 8, 8, 8, 0]}), "`intermediate_size`"),
        (json!({"intermediate_size": [8, 8, 8, 8, 8, 1e30]}), "`intermediate_size`"),
        (json!({"num_kv_shared_layers": 15}), "`num_kv_shared_layers`"),
        (json!({"num_kv_shared_layers": 5}), "`num_kv_shared_layers`"),
        (json!({"hidden_activation": "xielu"}), "`hidden_activation`"),
        (json!({"use_bidirectional_attention": true}), "`use_bidirectional_attention`"),
        (json!({"partial_rotary_factor": 0.5}), "`partial_rotary_factor`"),
    ] {
        let mut all = json!({"num_kv_shared_layers": 0});
        all.as_object_mut().expect("an object").extend(changes.as_object().expect("an object").clone());
        let message = describe(&config("gemma3n_text", all)).expect_err("it is refused").to_string();
        assert!(message.contains(&format!("field {expected}")), "{changes}: {message}");
    }
}

#[test]
fn full_layers_of_gemma4_have_keys_as_values_and_turn_a_quarter() {
    let global = json!({
        "attention_k_eq_v": true, "num_global_key_value_heads": 1, "hidden_size_per_layer_input": 0,
    });
    let full = spec(&config("gemma4_text", global));
    assert_eq!(full.attentions.iter().map(|of| of.attention_k_eq_v).collect::<Vec<_>>(), [true, false]);
    assert_eq!(full.attentions.iter().map(|of| of.num_key_value_heads).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(full.rope[0].scaling, RopeScaling::Proportional { rotated_pairs: 64, factor: 1.0 });
    assert_eq!((full.rope[0].rotary_dim, full.rope[1].rotary_dim), (512, 16));
    let frequencies = full.rope[0].inv_freq(1);
    assert!(
        (frequencies[63] - 1e6_f32.powf(-126.0 / 512.0)).abs() < 1e-8 && frequencies[64..].iter().all(|f| *f == 0.0)
    );
    // Without the switch, the number of heads of full layers is not read.
    let ignored = json!({"num_global_key_value_heads": 1, "hidden_size_per_layer_input": 0});
    assert_eq!(spec(&config("gemma4_text", ignored)).attentions[0].num_key_value_heads, 2);
    // The class without inputs for each layer and experts has no default for them.
    let unified = spec(&config("gemma4_unified_text", json!({"enable_moe_block": true})));
    assert!(unified.per_layer_inputs.is_none() && unified.experts(0).is_none());
    assert_eq!(windows(&unified)[0], Some(1024));
}

#[test]
fn what_gemma4_cannot_be_is_refused_by_name() {
    for (changes, expected) in [
        (json!({"num_kv_shared_layers": 5}), "`num_kv_shared_layers`"),
        (json!({"num_kv_shared_layers": 9}), "`num_kv_shared_layers`"),
        (json!({"vocab_size_per_layer_input": 99}), "`vocab_size_per_layer_input`: expected at least vocab_size (100)"),
        (json!({"use_bidirectional_attention": "all"}), "`use_bidirectional_attention`"),
        (json!({"hidden_activation": "silu"}), "`hidden_activation`"),
        (json!({"per_layer_config": {"0": {"head_dim": 32}}}), "`per_layer_config.1`"),
        (json!({"per_layer_config": {"5": {"intermediate_size": 32}}}), "`per_layer_config.5.intermediate_size`"),
        (json!({"enable_moe_block": true, "num_experts": 4, "top_k_experts": 2}), "`moe_intermediate_size`"),
    ] {
        let message = describe(&config("gemma4_text", changes)).expect_err(expected).to_string();
        assert!(message.contains(expected), "{message}");
    }
}
