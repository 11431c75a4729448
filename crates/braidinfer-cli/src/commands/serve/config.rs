//! The settings of a server, from the command line and the environment.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use braidinfer::conversation::{ReasoningFormat, ToolCallFormat};
use braidinfer::{FormLimits, WorkLimits};
use braidinfer_server::{FormatChoice, ModelNames, ReasoningFields, ServerConfig, TlsFiles};

use crate::args::{FormArgs, NetworkArgs, ReasoningFieldArg, ServeArgs};
use crate::model;

/// Environment variable for an API key, which unlike a flag is not visible in the process list.
pub const API_KEY: &str = "BRAIDINFER_API_KEY";

pub fn config(all: &ServeArgs, model_names: ModelNames) -> anyhow::Result<ServerConfig> {
    let ServeArgs { network: args, forms, conversation, .. } = all;
    let tls = args.tls_cert.clone().zip(args.tls_key.clone());
    Ok(ServerConfig {
        address: SocketAddr::new(args.host, args.port),
        api_keys: keys(args)?,
        public_without_key: args.public_without_key,
        cors_origins: args.cors_origin.clone(),
        tls: tls.map(|(certificates, key)| TlsFiles { certificates, key }),
        lenient: args.lenient,
        worker: Some(model::worker()?),
        max_body_bytes: args.max_body.saturating_mul(1 << 20),
        max_answer_bytes: args.max_answer.saturating_mul(1 << 20),
        max_request_memory: args.max_request_memory.saturating_mul(1 << 20),
        max_connections: args.max_connections,
        max_connections_per_client: args.max_connections_per_client.unwrap_or(args.max_connections.div_ceil(2)),
        read_timeout: Duration::from_secs(args.read_timeout),
        write_timeout: Duration::from_secs(args.write_timeout),
        request_timeout: Duration::from_secs(args.request_timeout),
        shutdown_timeout: Duration::from_secs(args.shutdown_timeout),
        form_limits: form_limits(forms),
        reasoning_format: match conversation.reasoning_format.as_str() {
            "auto" => FormatChoice::Own,
            "none" => FormatChoice::None,
            name => {
                FormatChoice::Named(ReasoningFormat::named(name).with_context(|| format!("--reasoning-format {name}"))?)
            }
        },
        tool_call_format: ToolCallFormat::named(&conversation.tool_call_format),
        thinking_budget: conversation.reasoning_budget,
        reasoning_fields: match conversation.reasoning_field {
            ReasoningFieldArg::Both => ReasoningFields::Both,
            ReasoningFieldArg::ReasoningContent => ReasoningFields::ReasoningContent,
            ReasoningFieldArg::Reasoning => ReasoningFields::Reasoning,
        },
        model_names,
    })
}

fn form_limits(args: &FormArgs) -> FormLimits {
    FormLimits {
        max_bytes: args.form_bytes,
        max_depth: args.form_depth,
        max_parts: args.form_parts,
        compile: WorkLimits {
            time: Duration::from_secs(args.form_timeout),
            memory: args.form_memory.saturating_mul(1 << 20),
        },
        mask_time: Duration::from_millis(args.mask_timeout),
        ..FormLimits::default()
    }
}

/// API keys from the command line, the environment and a file.
fn keys(args: &NetworkArgs) -> anyhow::Result<Vec<String>> {
    let mut keys = args.api_key.clone();
    keys.extend(env::var(API_KEY).ok().filter(|key| !key.is_empty()));
    if let Some(path) = &args.api_key_file {
        let text = fs::read_to_string(path).with_context(|| format!("--api-key-file {}", path.display()))?;
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if lines.is_empty() {
            bail!("--api-key-file {}: expected a key in each line, found none", path.display());
        }
        keys.extend(lines.into_iter().map(str::to_owned));
    }
    Ok(keys)
}
