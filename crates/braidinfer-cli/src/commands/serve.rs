//! `braidinfer serve`.

use std::borrow::Cow;
use std::env;
use std::fs;
use std::future::Future;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process;
use std::time::Duration;

use anyhow::{Context, bail};
use braidinfer::conversation::{ReasoningFormat, ToolCallFormat};
use braidinfer::{FormLimits, KvCacheRoom, Llm, LoadOptions, WorkLimits};
#[cfg(feature = "kv-events")]
use braidinfer_server::KvEventPublisher;
use braidinfer_server::{Conversations, FormatChoice, ModelNames, ReasoningFields, Server, ServerConfig, TlsFiles};
use tokio::runtime::Runtime;

use crate::args::{EngineArgs, FormArgs, LogFormat, NetworkArgs, ReasoningFieldArg, ServeArgs};
use crate::{INTERRUPTED, interrupt, model, output, stderr, wording};

/// Environment variable for an API key, which unlike a flag is not visible in the process list.
const API_KEY: &str = "BRAIDINFER_API_KEY";

pub fn run(args: ServeArgs) -> anyhow::Result<()> {
    log(args.network.log_format)?;
    let (name, model_names) = names(&args);
    let config = config(&args, model_names)?;
    let runtime = Runtime::new().context("threads for the server")?;
    let result = runtime.block_on(serve(config, name, args));
    // Does not wait for a model that is still loading.
    runtime.shutdown_background();
    result
}

async fn serve(config: ServerConfig, name: String, args: ServeArgs) -> anyhow::Result<()> {
    let stop = stop()?;
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let server = Server::bind(config).await.map_err(|error| anyhow::Error::msg(wording::start(&error)))?;
    let address = format!("{scheme}://{}", server.address());
    output::note(format!("listening at {address}, while the model is being loaded"));
    let model_slot = server.model_slot();
    #[cfg(feature = "kv-events")]
    let publisher = publisher(&args)?;
    let loading = tokio::task::spawn_blocking(move || {
        #[cfg_attr(not(feature = "kv-events"), expect(unused_mut))]
        let mut llm = load(&args)?;
        #[cfg(feature = "kv-events")]
        if let Some(publisher) = publisher {
            llm.listen_to_blocks(publisher.into_listener())?;
        }
        let (kernels, context) = (llm.kernels().as_str(), llm.context());
        model_slot.serve(llm, name.clone()).context("a thread for the engine")?;
        let conversations = in_words(model_slot.conversations());
        output::note(format!(
            "{name} is served at {address}: {kernels} kernels, {context} tokens of context, {conversations}"
        ));
        anyhow::Ok(())
    });
    let running = server.run(stop);
    tokio::pin!(running);
    tokio::select! {
        () = &mut running => return Ok(()),
        loaded = loading => loaded.context("the model was not loaded")??,
    }
    running.await;
    Ok(())
}

/// Where changes of the prefix cache are published, if they are to be.
#[cfg(feature = "kv-events")]
fn publisher(args: &ServeArgs) -> anyhow::Result<Option<KvEventPublisher>> {
    let Some(address) = args.kv_events.kv_events else { return Ok(None) };
    if !address.ip().is_loopback() && !args.network.public_without_key {
        bail!(
            "--kv-events {address} can be reached from other machines, which could read prompts there: expected an address of this \
             machine alone such as 127.0.0.1:5557, or --public-without-key"
        );
    }
    let publisher = KvEventPublisher::bind(address, args.kv_events.kv_events_topic.clone()).context("--kv-events")?;
    output::note(format!("what the prefix cache holds is published at tcp://{}", publisher.address()));
    Ok(Some(publisher))
}

/// Completes at the first signal that asks for the end; the second one ends the program.
fn stop() -> anyhow::Result<impl Future<Output = ()>> {
    let mut endings = interrupt::of_server().context("signals cannot be caught")?;
    Ok(async move {
        endings.next().await;
        output::note("stopping: running answers are finished first; once more to end at once");
        tokio::spawn(async move {
            endings.next().await;
            stderr::flush();
            process::exit(i32::from(INTERRUPTED));
        });
    })
}

fn load(args: &ServeArgs) -> anyhow::Result<Llm> {
    let EngineArgs { max_sequences, max_waiting, kv_cache_tokens, no_prefix_cache, shadow_check, .. } = args.engine;
    let options = LoadOptions {
        max_sequences,
        max_waiting,
        max_waiting_per_client: args.engine.max_waiting_per_client.unwrap_or(max_waiting.div_ceil(2)),
        kv_cache: kv_cache_tokens.map_or(KvCacheRoom::Fitting, KvCacheRoom::Tokens),
        prefix_cache: !no_prefix_cache,
        shadow_check,
        ..model::load_options(&args.load)?
    };
    let source = model::source(args.model.as_deref())?;
    let llm = model::load(&source, &options)?;
    llm.notes().iter().for_each(output::note);
    Ok(llm)
}

/// How conversations with the model are read.
fn in_words(conversations: Option<Conversations>) -> String {
    let Some(Conversations { reasoning, tool_calls }) = conversations else {
        return "no chat template: completions only".to_owned();
    };
    let [reasoning, tool_calls] = [reasoning, tool_calls].map(|name| name.unwrap_or("none"));
    format!("reasoning format {reasoning}, tool call format {tool_calls}")
}

/// The name of the model in requests, and its other ones.
fn names(args: &ServeArgs) -> (String, ModelNames) {
    let any = args.engine.any_model_name;
    if let Some((name, listed)) = args.engine.served_model_name.split_first() {
        return (name.clone(), ModelNames { listed: listed.to_vec(), unlisted: None, any });
    }
    let model = args.model.as_ref().map_or("demo".into(), |model| model.to_string_lossy());
    let file = model.trim_end_matches('/').rsplit('/').next().unwrap_or(&model);
    let stem = file.strip_suffix(".gguf").filter(|name| !name.is_empty());
    let unlisted = stem.map(|_| file.to_owned());
    (stem.unwrap_or(file).to_owned(), ModelNames { listed: Vec::new(), unlisted, any })
}

fn config(all: &ServeArgs, model_names: ModelNames) -> anyhow::Result<ServerConfig> {
    let ServeArgs { network: args, forms, conversation, .. } = all;
    let tls = args.tls_cert.clone().zip(args.tls_key.clone());
    Ok(ServerConfig {
        address: SocketAddr::new(args.host, args.port),
        api_keys: keys(args)?,
        public_without_key: args.public_without_key,
        cors_origins: args.cors_origin.clone(),
        tls: tls.map(|(certificates, key)| TlsFiles { certificates, key }),
        lenient: args.lenient,
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

/// Takes one line of the log at a time, and never makes a request wait for a reader of stderr.
struct LogLine(LogFormat);

impl Write for LogLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = String::from_utf8_lossy(bytes);
        // What clients send may steer terminals; the other format is JSON, where that would be no JSON any more.
        let line = if self.0 == LogFormat::Text { output::lines(&line) } else { Cow::Borrowed(&*line) };
        stderr::write_soon(line.into_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts logging to stderr, one line per event.
fn log(format: LogFormat) -> anyhow::Result<()> {
    let lines = tracing_subscriber::fmt().with_writer(move || LogLine(format)).with_max_level(tracing::Level::INFO);
    let begun = match format {
        LogFormat::Text => lines.with_target(false).with_ansi(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_target(false).try_init(),
        LogFormat::None => Ok(()),
    };
    begun.map_err(|error| anyhow::anyhow!("--log-format: {error}"))
}
