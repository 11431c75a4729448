//! What can be typed.

mod load;
mod measure;
mod sampling;
mod serve;
mod size;

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use anyhow::bail;
use braidinfer::model::quantization::FileType;
use braidinfer_hub::HubId;
use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

pub use self::load::{ComputingArgs, DtypeArg, KernelsArg, KvDtypeArg, LoadArgs, PackedArgs, PrecisionArg};
pub use self::measure::{
    BenchArgs, BenchKernels, CheckArgs, CompareArgs, DiffArgs, OutputArgs, PerplexityArgs, ValidateArgs,
};
pub use self::sampling::SamplingArgs;
pub use self::serve::{EngineArgs, FormArgs, LogFormat, NetworkArgs, OnDemandArgs, ReasoningFieldArg, ServeArgs};
pub use self::size::parse_size;

/// Runs language models on your own machine, and shows that its answers are right.
///
/// MODEL is a directory in Hugging Face layout, a GGUF file, or an id of the Hugging Face Hub (org/name, org/name@revision,
/// org/name:QUANT). Without one, the small built-in demo model tells stories.
#[derive(Debug, Parser)]
#[command(name = "braidinfer", version, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer a message, or complete a text
    Run(RunArgs),
    /// Talk with a model, using its chat template
    Chat(ChatArgs),
    /// Print the logits of the last (or every) position
    Logits(LogitsArgs),
    /// Show what a model's files say: decoder, tensors, tokenizer, template
    Inspect(InspectArgs),
    /// Turn text into token ids and pieces
    Tokenize(TokenizeArgs),
    /// Fetch a model from the Hugging Face Hub
    Pull(PullArgs),
    /// List the models that are on this machine, by the names that commands take
    List(ListArgs),
    /// Show what a model on this machine is and can
    Show(ShowArgs),
    /// Delete a model from this machine
    Remove(RemoveArgs),
    /// List the servers that run on this machine, with their models
    Ps(PsArgs),
    /// Give a model a short name, or list those that were given
    Alias(AliasArgs),
    /// Measure on a text which weights matter, for `quantize`: make an importance matrix
    Imatrix(ImatrixArgs),
    /// Make a model smaller: write it as a GGUF file
    Quantize(QuantizeArgs),
    /// Measure whether fused kernels change a model's answers
    Check(CheckArgs),
    /// Look at everything before a model is deployed: files, text, machine, kernels, answers
    Validate(ValidateArgs),
    /// Put several models side by side: size, compatibility, speed, answers
    Compare(CompareArgs),
    /// Serve models: the APIs of OpenAI, Anthropic and Ollama, and a web page
    Serve(Box<ServeArgs>),
    /// Compare the answers of two models, or of one model run in two ways
    Diff(DiffArgs),
    /// Measure how well a model predicts a text, and how far it is from another one
    Perplexity(PerplexityArgs),
    /// Measure speed, beside what the machine can do at most
    Bench(BenchArgs),
    /// List the supported architectures and how each is verified
    Models(ModelsArgs),
    /// List the devices that models can be computed on
    Devices(DevicesArgs),
    /// List the packed weights that are kept on the disk, or remove them
    Cache(CacheArgs),
    /// Do work on untrusted input for another process of this program
    #[command(hide = true)]
    Worker,
    /// Ask a server of this program whether it is ready for requests
    Health(HealthArgs),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Print the manual page of the program, or of one of its commands
    Man {
        /// Which command
        #[arg(value_name = "COMMAND")]
        of: Option<String>,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
Models are read where they lie: in the folders that BRAIDINFER_MODELS names (separated as in PATH), in the cache of the Hugging Face
Hub, and in the folders of Ollama (OLLAMA_MODELS) and LM Studio.")]
pub struct ListArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// A model directory, GGUF file, Hub id or name (see `list`)
    pub model: OsString,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Asks before it deletes anything. A model of Ollama or LM Studio is left to these.")]
pub struct RemoveArgs {
    /// Name of the model, as `list` shows it, or its path where several have the name
    pub model: String,
    /// Delete without a question
    #[arg(long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A server with a key is asked with BRAIDINFER_API_KEY.")]
pub struct PsArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Aliases are kept in aliases.json, in the system's folder for settings or in BRAIDINFER_CONFIG.

Examples:
  braidinfer alias smol ./SmolLM2-135M-Instruct.Q4_1.gguf
  braidinfer run smol \"What is 2+2?\"
  braidinfer alias --remove smol")]
pub struct AliasArgs {
    /// The short name
    #[arg(requires = "model")]
    pub name: Option<String>,
    /// What it stands for: a path, a Hub id, or the name of a model on this machine
    pub model: Option<String>,
    /// Forget a short name
    #[arg(long, value_name = "NAME", conflicts_with = "name")]
    pub remove: Option<String>,
    /// Print JSON instead of a table
    #[arg(long, conflicts_with_all = ["name", "remove"])]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Exits with 0 if it is ready, and with 3 and the reason if it is not.")]
pub struct HealthArgs {
    /// Where the server is
    #[arg(default_value = "http://127.0.0.1:8080")]
    pub url: String,
    /// How long to wait for its answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub timeout: u64,
}

#[derive(Debug, Args)]
#[command(
    override_usage = "braidinfer run [OPTIONS] [MODEL] [PROMPT]",
    allow_negative_numbers = true,
    after_help = "\
The prompt comes from PROMPT, --file, or standard input; with both, the file comes first. If the model
has a chat template, it is a message, which the model answers; otherwise, or with --raw, the model completes it. A newline at the end of a file or of standard input is
not part of it, except with --raw. A single argument is taken as MODEL if it exists, looks like a path or a Hub id (a
slash and no white space), or is the name of a model (`braidinfer list`), and as PROMPT for the built-in model otherwise.

Examples:
  braidinfer run \"Tell me a story about a fox.\"
  braidinfer run ./Qwen3-0.6B \"What is 2+2?\" --system \"Answer in one word.\"
  git diff | braidinfer run ./Qwen3-0.6B --file - \"Describe this change.\"
  braidinfer run ./Qwen3-0.6B --raw \"The capital of France is\" --max-tokens 20
  braidinfer run ./Qwen3-0.6B --ids 1,2,3 --temperature 0 --json"
)]
pub struct RunArgs {
    /// A model directory, GGUF file, Hub id or name (see `list`), then the message or text; both may be left out
    #[arg(value_name = "MODEL|PROMPT", num_args = 0..=2)]
    pub positional: Vec<OsString>,
    /// Token ids to continue, instead of text
    #[arg(long, value_parser = parse_ids, value_name = "ID,..", conflicts_with = "file")]
    pub ids: Option<Ids>,
    /// Read the prompt from a file, or what stands before PROMPT; `-` is standard input
    #[arg(long, short, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Complete the text byte for byte, without the chat template
    #[arg(long, conflicts_with_all = ["system", "chat"])]
    pub raw: bool,
    /// Instructions that stand before the message
    #[arg(long, value_name = "TEXT", conflicts_with = "ids")]
    pub system: Option<String>,
    /// Go on with a conversation: a JSON file with a list of messages, or with an object that has `messages`
    #[arg(long, value_name = "FILE", conflicts_with = "ids")]
    pub chat: Option<PathBuf>,
    /// Hold the answer to a JSON schema, which stands here or in a file
    #[arg(long, value_name = "JSON|FILE", conflicts_with = "grammar")]
    pub json_schema: Option<String>,
    /// Hold the answer to a Lark grammar, which stands here or in a file
    #[arg(long, value_name = "LARK|FILE")]
    pub grammar: Option<String>,
    /// Print one JSON object instead of streaming text
    #[arg(long)]
    pub json: bool,
    /// With --json: the log-probability of each token, and so many of the likeliest ones at its place
    #[arg(long, value_name = "N", requires = "json")]
    pub logprobs: Option<usize>,
    /// Take what a prompt begins with from this file, so that it need not be computed, and keep the prompt and its answer there
    #[arg(long, value_name = "FILE")]
    pub prompt_cache: Option<PathBuf>,
    /// Only read that file, and keep what is in it
    #[arg(long, requires = "prompt_cache")]
    pub prompt_cache_ro: bool,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub load: LoadArgs,
}

#[derive(Debug, Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "\
Messages come from the terminal, or from a pipe or file: then each line is a message, unless it is one of the commands that
/help shows, and answers are all that is written to standard output. The first error ends such a chat. A message of several
lines stands between two lines of \"\"\", or is written with Alt-Enter. What is typed is kept in chat_history, beside aliases.

Examples:
  braidinfer chat ./Llama-3.2-1B-Instruct
  printf 'My name is Ada.\\nWhat is my name?\\n' | braidinfer chat ./Llama-3.2-1B-Instruct"
)]
pub struct ChatArgs {
    /// A model directory, GGUF file, Hub id or name (see `list`); the built-in demo model if left out
    pub model: Option<OsString>,
    /// Instructions that stand before the chat
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Neither show what was typed in earlier chats, nor keep what is typed in this one
    #[arg(long)]
    pub no_history: bool,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub load: LoadArgs,
}

#[derive(Debug, Args)]
pub struct LogitsArgs {
    /// A model directory, GGUF file, Hub id or name (see `list`); the built-in demo model if left out
    pub model: Option<OsString>,
    /// Token ids
    #[arg(
        long,
        value_parser = parse_ids,
        value_name = "ID,..",
        required_unless_present = "prompt",
        conflicts_with = "prompt"
    )]
    pub ids: Option<Ids>,
    /// Text, tokenized with the model's own first token
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Every position instead of the last
    #[arg(long)]
    pub all: bool,
    /// Print one JSON object with all logits instead of the likeliest tokens
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub load: LoadArgs,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A model directory, GGUF file, Hub id or name (see `list`); the built-in demo model if left out
    pub model: Option<OsString>,
    /// List every tensor
    #[arg(long)]
    pub tensors: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(
    override_usage = "braidinfer tokenize [OPTIONS] [MODEL] [TEXT]",
    after_help = "A single argument is taken as MODEL if it exists, or looks like a path or a Hub id (a slash and no white space), and as TEXT otherwise."
)]
pub struct TokenizeArgs {
    /// A model directory, GGUF file, Hub id or name (see `list`) (or a tokenizer.json or tokenizer.model), then the text; both may be left out
    #[arg(value_name = "MODEL|TEXT", num_args = 0..=2)]
    pub positional: Vec<OsString>,
    /// Read the text from a file; `-` is standard input
    #[arg(long, short, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Leave out the tokens that the tokenizer puts around every text
    #[arg(long)]
    pub no_special: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The model goes into the usual Hugging Face cache, which Python tools share, and its path to standard output. Only the
files that are needed are fetched, and an interrupted download goes on where it stopped. Environment: HF_HOME and
HF_HUB_CACHE (where the cache is), HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE.

Examples:
  braidinfer pull Qwen/Qwen3-0.6B
  braidinfer pull Qwen/Qwen3-0.6B-GGUF:Q8_0")]
pub struct PullArgs {
    /// ORG/NAME, ORG/NAME@REVISION, or ORG/NAME:QUANT for one of its GGUF files
    #[arg(value_name = "ORG/NAME")]
    pub id: HubId,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The text goes through standard kernels in f32, in chunks that are read by themselves, and the squares of what each matrix
is multiplied with are added up by column, for an expert over the tokens that are routed to it. The output head is left
out, as by llama.cpp, whose GGUF form the file has. Take text like what the model is for, a hundred chunks or more.

Examples:
  braidinfer imatrix ./Qwen3-0.6B calibration.txt --out imatrix.gguf
  braidinfer quantize ./Qwen3-0.6B small.gguf --type q3_k_m --imatrix imatrix.gguf")]
pub struct ImatrixArgs {
    /// A model directory, a GGUF file or a Hub id
    pub model: OsString,
    /// The file with the text
    pub text: PathBuf,
    /// The file to write; its name ends in .gguf
    #[arg(long, value_name = "FILE.gguf")]
    pub out: PathBuf,
    /// Tokens in each chunk
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub chunk: usize,
    /// Most chunks to read; all if left out
    #[arg(long, value_name = "N")]
    pub chunks: Option<usize>,
    /// Overwrite FILE.gguf if it is there
    #[arg(long)]
    pub force: bool,
    /// Threads; all cores, or all fast ones of a machine that has slow ones, if left out
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Types, from large to small: f32, f16, bf16, q8_0, q6_k, q5_k_m, mxfp4, q4_k_m, q4_0, q3_k_m, q2_k, tq2_0, tq1_0. The
mixtures (_m and q2_k) give more bits to the tensors that need them, as llama.cpp does; mxfp4 is for feed-forward matrices,
with all others in q8_0; the tq types are for models that were trained to have weights of -1, 0 and 1. The file appears whole or not at all.

Examples:
  braidinfer quantize ./Qwen3-0.6B qwen3-q4_k_m.gguf --type q4_k_m
  braidinfer run qwen3-q4_k_m.gguf \"The capital of France is\"")]
pub struct QuantizeArgs {
    /// A model directory, a GGUF file or a Hub id
    #[arg(value_name = "SRC")]
    pub source: OsString,
    /// The file to write; its name ends in .gguf
    #[arg(value_name = "DST.gguf")]
    pub destination: PathBuf,
    /// How to store the weights
    #[arg(long = "type", value_name = "TYPE")]
    pub file_type: FileType,
    /// An importance matrix, of `braidinfer imatrix` or of llama.cpp: how much errors in each column of a matrix count
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// Overwrite DST.gguf if it is there
    #[arg(long)]
    pub force: bool,
    /// Then measure the perplexity of the written file, and how far it is from SRC, as `braidinfer perplexity` does
    #[arg(long)]
    pub perplexity: bool,
    /// The text for that; a built-in one if left out
    #[arg(long, short, value_name = "FILE", requires = "perplexity")]
    pub file: Option<PathBuf>,
    /// Threads; all cores, or all fast ones of a machine that has slow ones, if left out
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// Print a JSON list
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ModelsArgs {
    /// Print a JSON list
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Fused kernels keep the weights of a model as they multiply them, so that it starts faster the next time, and so that a model
can be larger than the memory. The files lie in the system's cache folder, or in that of BRAIDINFER_CACHE, unless
--packed-cache or BRAIDINFER_PACKED_CACHE names another folder. They can be made again from the model at any time.

Examples:
  braidinfer cache
  braidinfer cache --clear")]
pub struct CacheArgs {
    /// Remove the files that no process uses
    #[arg(long)]
    pub clear: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub packed: PackedArgs,
}

/// Most tokens of a sequence that the library takes.
pub const MOST_TOKENS: usize = 1 << 31;

/// Token ids typed as one argument.
#[derive(Debug, Clone)]
pub struct Ids(pub Vec<u32>);

/// Fails if a number is out of range; the error names the flag. Called before anything is loaded.
pub fn check_count(flag: &str, found: usize, range: RangeInclusive<usize>) -> anyhow::Result<()> {
    if !range.contains(&found) {
        bail!("--{flag}: expected from {} to {}, found {found}", range.start(), range.end());
    }
    Ok(())
}

fn parse_ids(text: &str) -> Result<Ids, String> {
    let one = |id: &str| id.trim().parse().map_err(|_| format!("expected token ids such as 1,2,3, found `{id}`"));
    text.split(',').map(one).collect::<Result<_, _>>().map(Ids)
}

/// Reads a number in a range.
fn count(least: u64, most: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least..=most)
}
