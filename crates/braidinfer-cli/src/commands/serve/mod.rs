//! `braidinfer serve`.

mod config;
mod on_demand;
pub mod running;

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::future::Future;
use std::io::{self, Write};
use std::process;

use anyhow::{Context, bail};
use braidinfer::{KvCacheRoom, Llm, LoadOptions, SavedPrefixes, default_prefix_folder};
#[cfg(feature = "kv-events")]
use braidinfer_server::KvEventPublisher;
use braidinfer_server::{Conversations, ModelNames, Server, ServerConfig};
use tokio::runtime::Runtime;

pub use self::config::API_KEY;
pub use self::on_demand::parse_time;
use self::running::RunningServer;
use crate::args::{EngineArgs, LogFormat, ServeArgs};
use crate::{INTERRUPTED, interrupt, model, output, stderr, wording};

pub fn run(args: ServeArgs) -> anyhow::Result<()> {
    log(args.network.log_format)?;
    on_demand::check(&args)?;
    let runtime = Runtime::new().context("threads for the server")?;
    let result = runtime.block_on(serve(args));
    // Does not wait for a model that is still loading.
    runtime.shutdown_background();
    result
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let is_on_demand = on_demand::is_wanted(&args);
    let (name, model_names) = if is_on_demand { Default::default() } else { names(&args) };
    check_adapters(&args, &name, &model_names)?;
    let config = config::config(&args, model_names)?;
    let stop = stop()?;
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let server = bind(config).await?;
    let address = format!("{scheme}://{}", server.address());
    let _listed = RunningServer::note(scheme, server.address());
    if is_on_demand {
        on_demand::begin(&server, args, &address)?;
        server.run(stop).await;
        return Ok(());
    }
    serve_one(server, name, args, address, stop).await
}

/// Fails if an adapter has a name of the model.
fn check_adapters(args: &ServeArgs, name: &str, names: &ModelNames) -> anyhow::Result<()> {
    let adapters = model::adapters(&args.load.lora);
    match adapters.iter().find(|adapter| adapter.name == name || names.is_named(&adapter.name)) {
        Some(adapter) => bail!(
            "--lora: expected a name that is not one of the model, found {}; NAME=PATH gives it another one",
            adapter.name
        ),
        None => Ok(()),
    }
}

async fn bind(config: ServerConfig) -> anyhow::Result<Server> {
    Server::bind(config).await.map_err(|error| anyhow::Error::msg(wording::start(&error)))
}

/// Serves the model that was named, which is loaded now.
async fn serve_one(
    server: Server,
    name: String,
    args: ServeArgs,
    address: String,
    stop: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
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

/// How models are loaded for a server.
fn load_options(args: &ServeArgs) -> anyhow::Result<LoadOptions> {
    let EngineArgs { max_sequences, max_waiting, kv_cache_tokens, no_prefix_cache, shadow_check, .. } = args.engine;
    Ok(LoadOptions {
        max_sequences,
        max_waiting,
        max_waiting_per_client: args.engine.max_waiting_per_client.unwrap_or(max_waiting.div_ceil(2)),
        kv_cache: kv_cache_tokens.map_or(KvCacheRoom::Fitting, KvCacheRoom::Tokens),
        prefix_cache: !no_prefix_cache,
        saved_prefixes: saved_prefixes(&args.engine)?,
        shadow_check,
        ..model::load_options(&args.load)?
    })
}

/// Where prefixes are kept on the disk, if they are.
fn saved_prefixes(args: &EngineArgs) -> anyhow::Result<Option<SavedPrefixes>> {
    let Some(most_bytes) = args.saved_prefixes else { return Ok(None) };
    let folder = args.saved_prefixes_folder.clone().or_else(default_prefix_folder);
    let folder =
        folder.context("--saved-prefixes: this system has no folder for caches: --saved-prefixes-folder names one")?;
    Ok(Some(SavedPrefixes::Folder { folder, most_bytes }))
}

fn load(args: &ServeArgs) -> anyhow::Result<Llm> {
    let options = load_options(args)?;
    let source = model::source(args.models.first().map(OsString::as_os_str))?;
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
    let demo = OsString::from("demo");
    let (name, unlisted) = name_of(args.models.first().unwrap_or(&demo));
    (name, ModelNames { listed: Vec::new(), unlisted, any })
}

/// The name of a model in requests, and that of its file if it is another one.
fn name_of(model: &OsStr) -> (String, Option<String>) {
    let model = model.to_string_lossy();
    let file = model.trim_end_matches('/').rsplit('/').next().unwrap_or(&model);
    let stem = file.strip_suffix(".gguf").filter(|name| !name.is_empty());
    (stem.unwrap_or(file).to_owned(), stem.map(|_| file.to_owned()))
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
