//! Fields of requests that other servers know: those that mean nothing here, and hints, which a server may follow or not. What is
//! not followed is listed in a header of the response.

use serde_json::Value;

/// What a field means that the server does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// Nothing: it is null or empty, which clients send for unset options, or has the value that is always so here.
    Nothing,
    /// A hint, which a server may follow or not.
    Hint,
    /// It could change the answer.
    Something,
}

/// Fields that are hints, whatever their value. An index in a path is left out: `messages[].id`.
const HINTS: &[&str] = &[
    "cache_control",
    "cache_prompt",
    "context_management",
    "diagnostics",
    "inference_geo",
    "keep_alive",
    "max_tool_calls",
    "metadata",
    "options.f16_kv",
    "options.low_vram",
    "options.main_gpu",
    "options.num_batch",
    "options.num_ctx",
    "options.num_gpu",
    "options.num_gqa",
    "options.num_keep",
    "options.num_thread",
    "options.numa",
    "options.use_mlock",
    "options.use_mmap",
    "messages[].annotations",
    "messages[].cache_control",
    "messages[].content[].annotations",
    "messages[].content[].cache_control",
    "messages[].content[].caller",
    "messages[].content[].citations",
    "messages[].content[].content[].cache_control",
    "messages[].id",
    "messages[].index",
    "messages[].parsed",
    "messages[].provider_specific_fields",
    "messages[].reasoning_details",
    "messages[].thinking_blocks",
    "messages[].tool_calls[].extra_content",
    "messages[].tool_calls[].function.parsed_arguments",
    "messages[].tool_calls[].index",
    "messages[].tool_calls[].provider_specific_fields",
    "prediction",
    "priority",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning.generate_summary",
    "reasoning.summary",
    "request_id",
    "rid",
    "safety_identifier",
    "service_tier",
    "store",
    "stream_options.continuous_usage_stats",
    "stream_options.include_obfuscation",
    "stream_reasoning",
    "system[].cache_control",
    "system[].citations",
    "tools[].allowed_callers",
    "tools[].cache_control",
    "tools[].defer_loading",
    "tools[].eager_input_streaming",
    "tools[].input_examples",
    "text.verbosity",
    "truncate",
    "truncation",
    "user_id",
    "user_profile_id",
    "verbosity",
    "workspace_id",
];

/// Fields with the values that they have here anyway.
const AS_IT_IS: &[(&str, &str)] = &[
    ("background", "false"),
    ("best_of", "1"),
    ("custom_logit_processor", "\"\""),
    ("detokenize", "true"),
    ("dry_multiplier", "0"),
    ("dynatemp_range", "0"),
    ("early_stopping", "false"),
    ("echo", "false"),
    ("id_slot", "-1"),
    ("include_reasoning", "true"),
    ("include_stop_str_in_output", "false"),
    ("length_penalty", "1"),
    ("logprobs", "false"),
    ("min_keep", "0"),
    ("mirostat", "0"),
    ("modalities", "[\"text\"]"),
    ("n_keep", "0"),
    ("no_stop_trim", "false"),
    ("options.embedding_only", "false"),
    ("options.logits_all", "false"),
    ("options.mirostat", "0"),
    ("options.mirostat_eta", "0.1"),
    ("options.mirostat_tau", "5"),
    ("options.penalize_newline", "true"),
    ("options.tfs_z", "1"),
    ("options.typical_p", "1"),
    ("options.vocab_only", "false"),
    ("return_hidden_states", "false"),
    ("return_token_ids", "false"),
    ("return_tokens_as_token_ids", "false"),
    ("separate_reasoning", "true"),
    ("spaces_between_special_tokens", "true"),
    ("speed", "\"standard\""),
    ("suffix", "\"\""),
    ("tfs_z", "1"),
    ("top_logprobs", "0"),
    ("typical_p", "1"),
    ("use_beam_search", "false"),
    ("xtc_probability", "0"),
];

/// What the unknown field with this path means in `body`.
pub fn meaning(body: &Value, field: &str) -> Meaning {
    // A field whose name contains a dot is not found by its path.
    let Some(value) = value_at(body, field) else { return Meaning::Something };
    let is_empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    let kind = without_indices(field);
    if is_empty || AS_IT_IS.iter().any(|(name, own)| *name == kind && is_same(value, own)) {
        Meaning::Nothing
    } else if HINTS.contains(&kind.as_str()) {
        Meaning::Hint
    } else {
        Meaning::Something
    }
}

/// Whether a value is that of this JSON text; 1.0 is 1.
fn is_same(value: &Value, json: &str) -> bool {
    let Ok(own) = serde_json::from_str::<Value>(json) else { return false };
    *value == own || own.as_f64().is_some_and(|own| value.as_f64() == Some(own))
}

/// A path with every index left out.
fn without_indices(path: &str) -> String {
    path.split('[')
        .map(|step| step.trim_start_matches(|next: char| next.is_ascii_digit()))
        .collect::<Vec<_>>()
        .join("[")
}

/// The value of a field by its path.
fn value_at<'a>(body: &'a Value, field: &str) -> Option<&'a Value> {
    field.split(['.', '[']).try_fold(body, |value, step| match step.strip_suffix(']').map(str::parse::<usize>) {
        Some(Ok(index)) => value.get(index),
        _ => value.get(step),
    })
}
