//! How a model is loaded and computed, for all commands that do so.

use std::ffi::OsString;
use std::path::PathBuf;

use braidinfer::model::quantization::FileType;
use clap::{Args, ValueEnum};

use super::count;
use super::size::parse_size;

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
