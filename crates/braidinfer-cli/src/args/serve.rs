//! What can be typed after `serve`.

use std::ffi::OsString;
use std::net::IpAddr;
#[cfg(feature = "kv-events")]
use std::net::SocketAddr;
use std::path::PathBuf;

use braidinfer::conversation::{ReasoningFormat, ToolCallFormat};
use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};

use super::count;
use super::load::LoadArgs;
use super::size::parse_size;
use crate::commands::serve::parse_time;

#[derive(Debug, Args)]
#[command(after_help = "\
Speaks the OpenAI API at /v1 (chat/completions, completions, embeddings, models), and beside it /tokenize, /detokenize,
/v1/compat (the verdict of the check), /metrics (Prometheus), /health and /ready. A web page to chat with is at /.

Fields of requests that mean nothing here are refused by name, unless with --lenient. Ctrl-C or SIGTERM lets running answers
finish, a second one ends the program.

Of several models, each is loaded when somebody asks for it. /v1/models says in which state each is; /v1/models/load and
/v1/models/unload change it.

Examples:
  braidinfer serve ./Qwen3-0.6B
  braidinfer serve --models-dir ~/models --model-memory 16GB --idle 10m
  BRAIDINFER_API_KEY=secret braidinfer serve q.gguf --host 0.0.0.0 --port 443 --tls-cert c.pem --tls-key k.pem
  curl localhost:8080/v1/completions -H 'content-type: application/json' -d '{\"prompt\": \"Once upon\"}'")]
pub struct ServeArgs {
    /// A model directory, GGUF file, Hub id or name (see `list`); the built-in demo model if left out. Of several, each is loaded when
    /// somebody asks for it
    #[arg(value_name = "MODEL")]
    pub models: Vec<OsString>,
    #[command(flatten)]
    pub on_demand: OnDemandArgs,
    #[command(flatten)]
    pub network: NetworkArgs,
    #[cfg(feature = "kv-events")]
    #[command(flatten)]
    pub kv_events: KvEventArgs,
    #[command(flatten)]
    pub conversation: ConversationArgs,
    #[command(flatten)]
    pub forms: FormArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub load: LoadArgs,
}

/// Models that are loaded when somebody asks for them.
#[derive(Debug, Args)]
#[command(next_help_heading = "Several models")]
pub struct OnDemandArgs {
    /// Serve the models in this folder, too, also those that are put there later; may be given several times
    #[arg(long, value_name = "FOLDER")]
    pub models_dir: Vec<PathBuf>,
    /// Serve all models that `list` shows, too
    #[arg(long)]
    pub local_models: bool,
    /// Most memory for the models that are loaded at once, such as 16GB: the one that was not used for longest makes room for the
    /// next. What is available at the start if left out
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub model_memory: Option<u64>,
    /// Let clients fetch models of the Hugging Face Hub, with /api/pull
    #[arg(long)]
    pub allow_pull: bool,
    /// Unload a model that nobody has used for so long, such as 10m; if left out, when its memory is needed
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub idle: Option<humantime::Duration>,
}

/// A year: clocks cannot count much further.
const MOST_SECONDS: u64 = 31_536_000;

/// Who may ask, and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub struct NetworkArgs {
    /// Address to listen at; one that other machines can reach needs a key
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
    pub host: IpAddr,
    /// Port; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// Key that requests must bring, as `Authorization: Bearer KEY`; may be given several times. Other users of this machine
    /// can see arguments: BRAIDINFER_API_KEY and --api-key-file are safer
    #[arg(long, value_name = "KEY")]
    pub api_key: Vec<String>,
    /// File with a key in each line
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Serve everybody who can reach the address
    #[arg(long)]
    pub public_without_key: bool,
    /// Origin of web pages that may ask, or *; may be given several times, none may if left out
    #[arg(long, value_name = "ORIGIN")]
    pub cors_origin: Vec<String>,
    /// Certificates in PEM form, for TLS
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key in PEM form
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Ignore fields of requests that mean nothing here, and name them in the header x-braidinfer-ignored
    #[arg(long)]
    pub lenient: bool,
    /// Largest request, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 8, value_parser = count(1, MOST_MIB))]
    pub max_body: usize,
    /// Most memory for the answers to one request, in MiB; one that could take more is refused
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = count(1, MOST_MIB))]
    pub max_answer: usize,
    /// Most memory for all requests with their prompts and answers, in MiB; one client may take half of it
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = count(1, MOST_MIB))]
    pub max_request_memory: usize,
    /// Connections at once; when all are taken, idle ones give way, and probes of /health, /ready and /metrics are answered
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = count(1, MOST_CONNECTIONS))]
    pub max_connections: usize,
    /// Connections of one address; half of all if left out
    #[arg(long, value_name = "N", value_parser = count(1, MOST_CONNECTIONS))]
    pub max_connections_per_client: Option<usize>,
    /// Seconds for a request to arrive
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=MOST_SECONDS))]
    pub read_timeout: u64,
    /// Seconds for a client to take some of what is sent to it
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=MOST_SECONDS))]
    pub write_timeout: u64,
    /// Seconds for an answer, waiting included
    #[arg(long, value_name = "SECONDS", default_value_t = 1800, value_parser = clap::value_parser!(u64).range(1..=MOST_SECONDS))]
    pub request_timeout: u64,
    /// Seconds for running answers when the server stops
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(..=MOST_SECONDS))]
    pub shutdown_timeout: u64,
    /// How to write a line for each request to standard error; text of prompts and answers is never in it
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Tells routers which beginnings of prompts this server has in its cache, so that they send it prompts that begin in the same way.
#[cfg(feature = "kv-events")]
#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub struct KvEventArgs {
    /// Address at which routers learn, over ZeroMQ and in vLLM's form, what the prefix cache holds, such as 127.0.0.1:5557. It has
    /// no key, and prompts can be read there: an address that other machines can reach needs --public-without-key
    #[arg(long, value_name = "IP:PORT")]
    pub kv_events: Option<SocketAddr>,
    /// First part of these messages, by which subscribers choose; llm-d expects kv@POD@MODEL
    #[arg(long, value_name = "TOPIC", default_value = "", hide_default_value = true, requires = "kv_events")]
    pub kv_events_topic: String,
}

/// How reasoning and tool calls are found in answers.
#[derive(Debug, Args)]
#[command(next_help_heading = "Conversations")]
pub struct ConversationArgs {
    /// How the model marks its reasoning: `auto` looks into its chat template, `none` leaves it in the text
    #[arg(long, value_name = "FORMAT", default_value = "auto", value_parser = format_names(&["auto", "none"], ReasoningFormat::names()))]
    pub reasoning_format: String,
    /// Names of reasoning in answers: some proxies refuse messages that have both
    #[arg(long, value_enum, default_value_t = ReasoningFieldArg::Both)]
    pub reasoning_field: ReasoningFieldArg,
    /// Most tokens of reasoning before an answer, where a request does not say (`thinking_budget`)
    #[arg(long, value_name = "N")]
    pub reasoning_budget: Option<usize>,
    /// How the model writes tool calls: `auto` looks into its chat template
    #[arg(long, value_name = "FORMAT", default_value = "auto", value_parser = format_names(&["auto"], ToolCallFormat::names()))]
    pub tool_call_format: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum ReasoningFieldArg {
    Both,
    ReasoningContent,
    Reasoning,
}

fn format_names(words: &[&'static str], names: impl Iterator<Item = &'static str>) -> PossibleValuesParser {
    PossibleValuesParser::new(words.iter().copied().chain(names))
}

/// What the form of an answer may cost: a schema, an expression or a grammar.
#[derive(Debug, Args)]
#[command(next_help_heading = "Forms of answers (schemas, expressions, grammars)")]
pub struct FormArgs {
    /// Longest form
    #[arg(long, value_name = "BYTES", default_value_t = 524_288, value_parser = count(1, 1 << 40))]
    pub form_bytes: usize,
    /// Deepest nesting of a schema as it is written
    #[arg(long, value_name = "LEVELS", default_value_t = 64, value_parser = count(1, 1 << 40))]
    pub form_depth: usize,
    /// Most values of a schema, or lines of a grammar
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = count(1, 1 << 40))]
    pub form_parts: usize,
    /// Seconds to compile a form
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=MOST_SECONDS))]
    pub form_timeout: u64,
    /// Memory for a form
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = count(1, 1 << 20))]
    pub form_memory: usize,
    /// Milliseconds to find which tokens may come next
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1000 * MOST_SECONDS))]
    pub mask_timeout: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
    None,
}

/// Most of what is counted in MiB.
const MOST_MIB: u64 = 1 << 24;
const MOST_CONNECTIONS: u64 = 1_000_000;
/// Most answers at once, running or waiting.
const MOST_ANSWERS: u64 = 1_000_000;

/// How many answers at once.
#[derive(Debug, Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// Name of the model in requests; that of its file or folder if left out. May be given several times: all are taken, and
    /// answers have the first
    #[arg(long, value_name = "NAME")]
    pub served_model_name: Vec<String>,
    /// Take any name of a model in requests
    #[arg(long)]
    pub any_model_name: bool,
    /// Answers that are written at once
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = count(1, MOST_ANSWERS))]
    pub max_sequences: usize,
    /// Answers that wait beside them; a request that asks for more is refused with 429
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = count(0, MOST_ANSWERS))]
    pub max_waiting: usize,
    /// Waiting answers of one client, which is an API key or, without one, an address; half of all if left out
    #[arg(long, value_name = "N", value_parser = count(0, MOST_ANSWERS))]
    pub max_waiting_per_client: Option<usize>,
    /// Tokens whose keys and values there is room for; what half of the free memory holds if left out
    #[arg(long, value_name = "N", value_parser = count(1, 1 << 48))]
    pub kv_cache_tokens: Option<usize>,
    /// Keep keys and values of prompts on the disk, too, at most so much of each model, such as 10GB, and read them from there when a
    /// prompt begins in the same way
    #[arg(long, value_name = "SIZE", value_parser = parse_size, conflicts_with = "no_prefix_cache")]
    pub saved_prefixes: Option<u64>,
    /// Folder for them; one in the system's folder for caches if left out
    #[arg(long, value_name = "FOLDER", requires = "saved_prefixes")]
    pub saved_prefixes_folder: Option<PathBuf>,
    /// Compute every prompt from its first token on, even if another one began alike
    #[arg(long)]
    pub no_prefix_cache: bool,
    /// Share of written tokens, such as 0.01, that are checked against standard kernels while there is nothing else to do;
    /// the divergence is a metric, and a warning where it is beyond what the check at loading lets expect
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub shadow_check: f64,
}
