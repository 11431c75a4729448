//! What can be typed.

use std::ffi::OsString;
use std::net::IpAddr;
#[cfg(feature = "kv-events")]
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use anyhow::bail;
use braidinfer::compat::Thoroughness;
use braidinfer::conversation::{ReasoningFormat, ToolCallFormat};
use braidinfer::model::quantization::FileType;
use braidinfer_hub::HubId;
use clap::builder::{PossibleValuesParser, RangedU64ValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::commands::perplexity::CONTEXT;
use crate::commands::serve::parse_time;
use crate::sampling_args::SamplingArgs;

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
    /// Name of the model, as `list` shows it
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
The prompt comes from PROMPT, --file, or standard input. If the model has a chat template, it is a message, which the
model answers; otherwise, or with --raw, the model completes it. A newline at the end of a file or of standard input is
not part of it, except with --raw. A single argument is taken as MODEL if it exists, looks like a path or a Hub id (a
slash and no white space), or is the name of a model (`braidinfer list`), and as PROMPT for the built-in model otherwise.

Examples:
  braidinfer run \"Tell me a story about a fox.\"
  braidinfer run ./Qwen3-0.6B \"What is 2+2?\" --system \"Answer in one word.\"
  git diff | braidinfer run ./Qwen3-0.6B --system \"Describe this change.\"
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
    /// Read the prompt from a file
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
    /// Read the text from a file
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
#[command(after_help = "\
The same tokens go through standard kernels in f32 (the truth), through them in the type of the checkpoint (what most
people run), and through fused kernels: whole, and layer by layer on the true input, so that an error shows in the layer
that makes it. Exactness is then given where it takes most of the divergence away, until answers are as close to f32 as
--precision asks: that plan is what --kernels auto runs. Where it is in doubt, more text is read. It is measured once per
model and machine, and kept.

Exit code: 0 compatible, 1 warning, 2 incompatible, 3 after a failure; with --static, of what the weights let expect.

Examples:
  braidinfer check ./Qwen3-0.6B --verbose
  braidinfer check q.gguf --full --export report.html")]
pub struct CheckArgs {
    /// A model directory, GGUF file, Hub id or name (see `list`); the built-in demo model if left out
    pub model: Option<OsString>,
    /// Show every layer
    #[arg(long, short)]
    pub verbose: bool,
    /// Check the model with this low-rank adapter (LoRA): a folder of peft, or a GGUF file
    #[arg(long, value_name = "PATH", conflicts_with = "static_only")]
    pub lora: Option<OsString>,
    /// Look at the weights only, and measure nothing
    #[arg(long = "static", conflicts_with = "full")]
    pub static_only: bool,
    #[command(flatten)]
    pub report: ReportArgs,
    #[command(flatten)]
    pub precision: PrecisionArgs,
    #[command(flatten)]
    pub computing: ComputingArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Each line ends in PASS, WARN or FAIL, and says what to do about it. Answers to a few prompts are shown on standard and fused
kernels side by side.

Exit code: 0 if everything passed, 1 with warnings, 2 with failures, 3 if it could not be looked at.

Examples:
  braidinfer validate ./Qwen3-0.6B
  braidinfer validate q.gguf --context 8192 --export report.html")]
pub struct ValidateArgs {
    /// A model directory, GGUF file, Hub id or name (see `list`); the built-in demo model if left out
    pub model: Option<OsString>,
    #[command(flatten)]
    pub report: ReportArgs,
    #[command(flatten)]
    pub precision: PrecisionArgs,
    #[command(flatten)]
    pub computing: ComputingArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Each model is validated in turn, as `braidinfer validate` does; one is in memory at a time.

Exit code: 0, 1 or 2 by the worst of them, 3 if one could not be looked at.

Examples:
  braidinfer compare ./Qwen3-0.6B q8_0.gguf q4_k_m.gguf --export report.html")]
pub struct CompareArgs {
    /// Model directories, GGUF files or Hub ids
    #[arg(value_name = "MODEL", required = true, num_args = 1..)]
    pub models: Vec<OsString>,
    #[command(flatten)]
    pub report: ReportArgs,
    #[command(flatten)]
    pub precision: PrecisionArgs,
    #[command(flatten)]
    pub computing: ComputingArgs,
}

#[derive(Debug, Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "\
Prefill reads a prompt of random tokens; decode generates for several sequences at once, greedily, after a context of
--depth tokens. After one untimed run of each, every kind of run is repeated in turn, so that what disturbs the machine
disturbs all alike; rates are medians, with the slowest and the fastest run. All kernels are in memory at the same time.

Each rate is also a share of a ceiling, measured before and after: decode cannot be faster than memory delivers the
weights, the keys and the values; prefill not faster than the processor multiplies at the numeric level of most weights
(2 operations per weight and token; attention is left out, and so is what caches save). For several sequences the larger
share is shown. On a GPU, decoding has the share of how fast its memory is copied, bytes that are read and written counted
together, and prefill has none. Time to first token is loading plus the first prompt; peak memory is the largest resident
size until then, less what the process held before (Linux only).

With --baseline, a rate is a regression if it is more than 3 % below that of the file and no run now was as fast as the
slowest run then.

Exit code: 0, 1 after a regression, 3 after a failure.

Examples:
  braidinfer bench ./Qwen3-0.6B --batch 1,8 --depth 0,4096
  braidinfer bench q.gguf --kernels fused --save before.json
  braidinfer bench q.gguf --kernels fused --baseline before.json"
)]
pub struct BenchArgs {
    /// A model directory, GGUF file, Hub id or name (see `list`); the built-in demo model if left out
    pub model: Option<OsString>,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub prompt_tokens: usize,
    /// Tokens to generate for each sequence
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub gen_tokens: usize,
    /// How many sequences to generate for at once; several numbers are measured one by one
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1,8")]
    pub batch: Vec<usize>,
    /// How many tokens stand before the generated ones; several numbers are measured one by one
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "0")]
    pub depth: Vec<usize>,
    /// Which kernels to measure
    #[arg(long, value_enum, value_name = "KERNELS,..", value_delimiter = ',', default_value = "standard,fused,auto")]
    pub kernels: Vec<BenchKernels>,
    /// How often each run is timed
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub repetitions: usize,
    #[command(flatten)]
    pub output: OutputArgs,
    /// Write the JSON object of --json to a file, for --baseline
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Compare with a file of --save
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    #[command(flatten)]
    pub computing: ComputingArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A side is a model, and after commas how to run it: MODEL[,kernels=KERNELS][,precision=PRECISION][,dtype=DTYPE]
[,kv_dtype=TYPE][,quantize=TYPE][,device=DEVICE]. Both must have one vocabulary. Each prompt is answered greedily by both; then B reads the prompt and A's answer, and its logits are compared
with A's at every position (Kullback-Leibler divergence, in nats). One side is in memory at a time.

A side may also be another engine: the address of an OpenAI-compatible endpoint that returns logprobs, such as
http://localhost:8080/v1[,model=NAME]; OPENAI_API_KEY is its key. Then answers are compared token by token up to the first
one that differs: the probabilities of common tokens, and how close the two tokens are where the sides part.

Exit code: 0 if all answers are the same, 1 if one differs, 3 after a failure.

Examples:
  braidinfer diff ./Qwen3-0.6B q4_k_m.gguf
  braidinfer diff ./Qwen3-0.6B,kernels=standard ./Qwen3-0.6B,kernels=fused --prompt \"The capital of France is\"
  braidinfer diff ./Qwen3-0.6B,kernels=standard ./Qwen3-0.6B,device=gpu
  braidinfer diff ./Qwen3-0.6B http://localhost:8080/v1 --max-tokens 64")]
pub struct DiffArgs {
    /// The side that is compared with
    #[arg(value_name = "A")]
    pub a: String,
    /// The side that is compared
    #[arg(value_name = "B")]
    pub b: String,
    /// A prompt; may be given several times, some of our own are taken if left out
    #[arg(long, value_name = "TEXT", conflicts_with = "ids")]
    pub prompt: Vec<String>,
    /// Token ids instead of text; may be given several times
    #[arg(long, value_parser = parse_ids, value_name = "ID,..")]
    pub ids: Vec<Ids>,
    /// Most tokens of an answer
    #[arg(long, short = 'n', value_name = "N", default_value_t = 32)]
    pub max_tokens: usize,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub computing: ComputingArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The text is cut into chunks of --context tokens that do not overlap; each is read by itself, and the tokens of its second half
are predicted and counted, as llama.cpp's tool does, so that figures compare. A rest shorter than a chunk is left out.

With --against, both read the same tokens, and the divergence of MODEL from the other one is measured at each position
(Kullback-Leibler, in nats). The other one is another model, such as f32.gguf, or the same files run in another way, such as
kernels=standard.

MODEL may say how to run it, as in `braidinfer diff`: MODEL[,kernels=KERNELS][,precision=PRECISION][,dtype=DTYPE]
[,kv_dtype=TYPE][,quantize=TYPE][,device=DEVICE].

Examples:
  braidinfer perplexity q4_k_m.gguf --file wiki.test.raw
  braidinfer perplexity q4_k_m.gguf,precision=fast --against kernels=standard
  braidinfer perplexity q4_k_m.gguf --against ./Qwen3-0.6B,precision=exact --json
  braidinfer perplexity ./Qwen3-0.6B,kernels=fused,kv_dtype=q8_0 --against kernels=fused,kv_dtype=f16")]
pub struct PerplexityArgs {
    /// A model directory, GGUF file, Hub id or name (see `list`), and how to run it
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// The model, or the way to run MODEL, that it is compared with
    #[arg(long, value_name = "MODEL|NAME=VALUE")]
    pub against: Option<String>,
    /// The text; some 2,500 tokens of prose, code, numbers and several scripts if left out
    #[arg(long, short, value_name = "FILE", conflicts_with = "ids")]
    pub file: Option<PathBuf>,
    /// Token ids instead of text
    #[arg(long, value_parser = parse_ids, value_name = "ID,..")]
    pub ids: Option<Ids>,
    /// Tokens of a chunk, at least 4
    #[arg(long, value_name = "N", default_value_t = CONTEXT)]
    pub context: usize,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Threads; all cores, or all fast ones of a machine that has slow ones, if left out
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// How to look at a model, and what to make of what was found.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Read every passage on standard kernels, and a long one: minutes instead of seconds
    #[arg(long)]
    pub full: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What to make of a report.
#[derive(Debug, Args)]
pub struct OutputArgs {
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
    /// Write the report to a file; its name ends in .txt, .md, .html or .json
    #[arg(long, value_name = "FILE")]
    pub export: Option<PathBuf>,
}

impl ReportArgs {
    /// How thorough a check is that someone waits for.
    pub fn thoroughness(&self) -> Thoroughness {
        if self.full { Thoroughness::Full } else { Thoroughness::Normal }
    }
}

/// Kernels that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchKernels {
    /// Candle operations, the reference
    Standard,
    /// Our own, on the CPU or a GPU, at the fastest level, whatever a check says
    Fused,
    /// What --kernels auto runs with this model
    Auto,
    /// What it runs with --precision exact
    Exact,
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

/// Where packed weights are kept.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Computing")]
pub struct PackedArgs {
    /// Folder for packed weights of fused kernels, so that a model starts faster the next time, or `off`. If left out, those of
    /// 128 MiB and more are kept in the system's cache folder
    #[arg(long, value_name = "DIR|off")]
    pub packed_cache: Option<OsString>,
    /// Most that they may take on the disk, such as 40GB or 1.5GiB; those that were not used for longest are removed. If
    /// left out, a quarter of what would be free without them
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub packed_cache_size: Option<u64>,
}

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

/// Most tokens of a sequence that the library takes.
pub const MOST_TOKENS: usize = 1 << 31;

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

/// Reads a number in a range.
fn count(least: u64, most: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least..=most)
}

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

/// How to load and compute.
#[derive(Debug, Args)]
#[command(next_help_heading = "Computing")]
pub struct LoadArgs {
    /// Which kernels compute
    #[arg(long, value_enum, default_value_t = KernelsArg::Auto)]
    pub kernels: KernelsArg,
    /// With --kernels fused: at the fastest level, without a check or against its verdict
    #[arg(long)]
    pub force: bool,
    /// File with a chat template in Jinja, or the name of one of the model's, in place of its default
    #[arg(long, value_name = "FILE|NAME")]
    pub chat_template: Option<PathBuf>,
    /// A smaller model with the same tokens, which guesses what comes next, where that is measured to be faster; answers do not change
    #[arg(long, value_name = "MODEL")]
    pub draft: Option<OsString>,
    /// How many tokens it guesses at a time; as many as pay off if left out
    #[arg(long, value_name = "N", requires = "draft", value_parser = count(1, 15))]
    pub draft_tokens: Option<usize>,
    /// A low-rank adapter (LoRA) for the model: a folder of peft, or a GGUF file. `serve` may have several, each of which is a model by
    /// its name beside the one without them; the name of its folder or file if left out
    #[arg(long, value_name = "[NAME=]PATH")]
    pub lora: Vec<OsString>,
    #[command(flatten)]
    pub precision: PrecisionArgs,
    #[command(flatten)]
    pub computing: ComputingArgs,
}

/// How close to f32 the answers of fused kernels must be.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Computing")]
pub struct PrecisionArgs {
    /// What matters more with fused kernels: answers as f32 gives them, or speed
    #[arg(long, value_enum, value_name = "PRECISION", default_value_t = PrecisionArg::Auto)]
    pub precision: PrecisionArg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PrecisionArg {
    /// As close to f32 as to leave greedy text as f32 has it, at the least cost
    Auto,
    /// The likeliest token of f32 at every position that is no near tie, with a wide margin
    Exact,
    /// The fastest level wherever it is no fault; on real models one token in fifty or so changes
    Fast,
}

/// How to load and compute, whichever kernels do it.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Computing")]
pub struct ComputingArgs {
    /// Type of weights and activations; auto is f32 on a CPU (quantized weights stay quantized) and the
    /// checkpoint's own elsewhere. For experts: fused kernels keep the weights as they are and round activations to this
    /// for products, at most; auto leaves that to --precision
    #[arg(long, value_enum, default_value_t = DtypeArg::Auto)]
    pub dtype: DtypeArg,
    /// Type of stored keys and values; auto is f32 with --dtype f32 and f16 otherwise. q8_0 and q4_0, for fused kernels,
    /// take half and a quarter of the memory and of the reading in long contexts; the check keeps f16 or f32 in layers
    /// where answers would change too often
    #[arg(long, value_enum, default_value_t = KvDtypeArg::Auto)]
    pub kv_dtype: KvDtypeArg,
    /// Quantize the weights in memory: f32, f16, bf16, q8_0, q6_k, q5_k_m, mxfp4, q4_k_m, q4_0, q3_k_m, q2_k, tq2_0 or
    /// tq1_0; with a --dtype other than auto they take the memory of that type afterwards
    #[arg(long, value_name = "TYPE")]
    pub quantize: Option<FileType>,
    /// cpu; auto: the best GPU, unless the CPU is measured to be twice as fast; gpu, gpu:N or a part of a GPU's name, see
    /// `devices`; gpu:0+gpu:1: layers that do not fit the first one run on the next. For standard kernels also cuda, cuda:N
    /// or metal, in builds that have them
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// How many of the last layers run on a GPU, with those before them on the CPU, or a number for each of several; auto: as
    /// many as there is memory for. Room for 2,048 tokens and for steps of 512 is made beside them
    #[arg(long, value_name = "N,..|auto", default_value = "auto", value_parser = gpu_layers)]
    pub gpu_layers: GpuLayersArg,
    /// Most memory to take on each GPU, such as 6GB, where its driver would give more, or gives what is slow
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub gpu_memory: Option<u64>,
    /// Threads; all cores, or all fast ones of a machine that has slow ones, if left out
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Longest prompt and answer together, in tokens; what the model is made for if left out
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    #[command(flatten)]
    pub packed: PackedArgs,
}

impl Default for ComputingArgs {
    /// What holds if nothing is typed.
    fn default() -> Self {
        let (dtype, kv_dtype, packed) = (DtypeArg::Auto, KvDtypeArg::Auto, PackedArgs::default());
        Self {
            dtype,
            kv_dtype,
            quantize: None,
            device: "cpu".into(),
            gpu_layers: GpuLayersArg::default(),
            gpu_memory: None,
            threads: None,
            context: None,
            packed,
        }
    }
}

/// How many layers run on each GPU; none for as many as there is memory for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GpuLayersArg(pub Vec<usize>);

fn gpu_layers(text: &str) -> Result<GpuLayersArg, String> {
    if text == "auto" {
        return Ok(GpuLayersArg::default());
    }
    let numbers: Result<Vec<usize>, _> = text.split(',').map(str::parse).collect();
    numbers.map(GpuLayersArg).map_err(|_| "expected a number of layers, one for each GPU, or auto".to_owned())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KernelsArg {
    /// Fused, unless a check, made once per model and machine, finds them INCOMPATIBLE; a WARNING is said
    Auto,
    /// Candle operations, the reference
    Standard,
    /// Our own, on the CPU or a GPU, by the same check; an error where that forbids them, unless --force
    Fused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DtypeArg {
    Auto,
    F32,
    Bf16,
    F16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvDtypeArg {
    Auto,
    F32,
    F16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
}

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

/// Reads a number of bytes: a number with or without decimals and a unit, in small or capital letters.
pub fn parse_size(text: &str) -> Result<u64, String> {
    size_in_bytes(text).ok_or_else(|| {
        let units: Vec<&str> = UNITS.iter().map(|(unit, _)| *unit).collect();
        format!("expected a size such as 40GB or 1.5GiB, in one of the units {}, found `{text}`", units.join(", "))
    })
}

/// Units of sizes, and their bytes.
const UNITS: [(&str, u64); 9] = [
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("B", 1),
];

fn size_in_bytes(text: &str) -> Option<u64> {
    let letters = text.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(letters);
    let unit = match unit {
        "" => 1,
        unit => UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1,
    };
    let (whole, decimals) = match number.trim_end().split_once('.') {
        // Part of a byte is no size.
        Some((_, "")) => return None,
        Some(_) if unit == 1 => return None,
        Some(parts) => parts,
        None => (number.trim_end(), ""),
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(decimals) {
        return None;
    }
    let scale = 10_u128.checked_pow(u32::try_from(decimals.len()).ok()?)?;
    let number: u128 = format!("{whole}{decimals}").parse().ok()?;
    u64::try_from(number.checked_mul(unit.into())? / scale).ok()
}

fn parse_ids(text: &str) -> Result<Ids, String> {
    let one = |id: &str| id.trim().parse().map_err(|_| format!("expected token ids such as 1,2,3, found `{id}`"));
    text.split(',').map(one).collect::<Result<_, _>>().map(Ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_and_decimals() {
        for (text, bytes) in [
            ("0", 0),
            ("12", 12),
            ("12B", 12),
            ("1KB", 1000),
            ("1kb", 1000),
            ("3 MB", 3_000_000),
            ("500MB", 500_000_000),
            ("1.5GB", 1_500_000_000),
            ("1.5GiB", 3 << 29),
            ("0.25tib", 1 << 38),
            ("2TB", 2_000_000_000_000),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        let wrong =
            ["", "GB", ".5GB", "1.GB", "1.5", "1.5B", "-1GB", "1e3", "4G", "1.5.0GB", "inf", "１GB", "16777216TiB"];
        for text in wrong {
            let error = parse_size(text).expect_err(text);
            for part in ["kB, MB, GB, TB, KiB, MiB, GiB, TiB, B", &format!("found `{text}`")] {
                assert!(error.contains(part), "{error}");
            }
        }
    }
}
