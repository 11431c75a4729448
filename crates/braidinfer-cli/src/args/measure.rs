//! What can be typed after commands that measure: `check`, `validate`, `compare`, `bench`, `diff` and `perplexity`.

use std::ffi::OsString;
use std::path::PathBuf;

use braidinfer::compat::Thoroughness;
use clap::{Args, ValueEnum};

use super::load::{ComputingArgs, PrecisionArgs};
use super::{Ids, parse_ids};
use crate::commands::perplexity::CONTEXT;

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
