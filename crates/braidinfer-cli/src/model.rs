//! Opens the model that the arguments ask for.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use braidinfer::compat::Precision;
use braidinfer::executor::standard::{ComputeDtype, LoadProgress};
use braidinfer::executor::{GpuShare, Kernels, KvDtype};
use braidinfer::model::ModelSource;
use braidinfer::{
    AdapterOptions, Aliases, DraftOptions, Llm, LoadOptions, ModelName, PackedCache, Places, ResolveOptions,
    SavedPrefixes, WorkerProgram, default_packed_folder, default_verdict_folder,
};

use crate::args::{ComputingArgs, DtypeArg, KernelsArg, KvDtypeArg, LoadArgs, PackedArgs, PrecisionArg, parse_size};
use crate::hub::Bars;
use crate::{demo, interrupt, output};

/// The files of the argument MODEL, or the built-in model if it is absent.
pub fn source(model: Option<&OsStr>) -> anyhow::Result<ModelSource> {
    let Some(model) = model else { return Ok(demo::SOURCE) };
    let name = ModelName::parse_argument(model)?;
    if let Some(target) = alias_target(model) {
        output::note(format!("{} is {target}", model.to_string_lossy()));
    }
    match &name {
        ModelName::Hub(_) => interrupt::install()?,
        ModelName::Local(found) => {
            output::note(format!("{} is {}, found in: {}", found.name, found.path.display(), found.place));
        }
        ModelName::Path(path) => require_path(path)?,
    }
    Ok(name.resolve(&ResolveOptions::default(), &mut Bars::new())?)
}

/// What an alias stands for, if this is one.
fn alias_target(model: &OsStr) -> Option<String> {
    let name = model.to_str().filter(|name| Aliases::may_be(name) && !Path::new(name).exists())?;
    Aliases::from_env().ok()??.get(name).map(str::to_owned)
}

/// Says more of what is not there than a path would: it may have been meant for the name of a model.
pub fn require_path(path: &Path) -> anyhow::Result<()> {
    let name = path.to_string_lossy();
    let is_name = !name.is_empty() && !name.contains(['/', '\\']) && !name.ends_with(".gguf");
    if !is_name || path.exists() {
        return Ok(());
    }
    let similar = Places::from_env().similar(&name);
    let advice = match similar.is_empty() {
        true => "`braidinfer list` shows the models that are here".to_owned(),
        false => format!("did you mean {}?", similar.join(" or ")),
    };
    bail!("{name}: expected a path, or the name of a model that is on this machine, found neither; {advice}")
}

/// Fails if a model is neither an id of the Hub, nor on this machine, by name or path. Nothing is fetched.
pub fn require(model: &OsStr) -> anyhow::Result<()> {
    if let ModelName::Path(path) = ModelName::parse_argument(model)? {
        require_path(&path)?;
        fs::metadata(&path).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Sorts up to two positional arguments into MODEL and text. `has_text` says that there is another text, so that a single one is
/// MODEL, unless it has blanks and is none.
pub fn split_positional(
    mut positional: Vec<OsString>,
    has_text: bool,
) -> anyhow::Result<(Option<OsString>, Option<String>)> {
    let last = positional.pop();
    match (positional.pop(), last) {
        (Some(model), text) => Ok((Some(model), text.map(utf8).transpose()?)),
        (None, Some(only)) if (has_text && !has_blanks(&only)) || is_model(&only) => Ok((Some(only), None)),
        (None, text) => Ok((None, text.map(utf8).transpose()?)),
    }
}

fn has_blanks(argument: &OsStr) -> bool {
    argument.to_string_lossy().contains(char::is_whitespace)
}

fn utf8(text: OsString) -> anyhow::Result<String> {
    text.into_string().map_err(|text| anyhow!("expected UTF-8 text, found `{}`", text.to_string_lossy()))
}

/// Whether a single argument is a model and not text: it is an existing path, looks like a path or a Hub id, or is the name of a
/// model on this machine.
fn is_model(argument: &OsStr) -> bool {
    let text = argument.to_string_lossy();
    if text.contains(char::is_whitespace) || text.is_empty() {
        // Names of files and folders may have blanks, and messages have lines.
        let may_be_name = (1..=LONGEST_NAME).contains(&text.len()) && !text.contains('\n');
        return Path::new(argument).exists()
            || (may_be_name && Places::from_env().find(&text).is_ok_and(|it| it.is_some()));
    }
    let path_like = text.contains('/') || text.ends_with(".gguf");
    // One that cannot be looked up is a model, so that people see why.
    path_like || Path::new(argument).exists() || !matches!(ModelName::parse(&text), Ok(ModelName::Path(_)))
}

/// Longest name of a model with blanks in it, in bytes.
const LONGEST_NAME: usize = 200;
/// Longest text in bytes. What is longer may be a device or a pipe that never ends.
const MOST_TEXT: u64 = 256 << 20;

/// Text from a file, or from standard input if that is not a terminal or the file is called `-`; byte for byte.
pub fn read_text(file: Option<&PathBuf>, what: &str) -> anyhow::Result<String> {
    let (name, bytes) = match file.filter(|path| path.as_os_str() != "-") {
        Some(path) => {
            let name = path.display().to_string();
            (name.clone(), File::open(path).and_then(read_bounded).with_context(|| name)?)
        }
        None if file.is_none() && io::stdin().is_terminal() => {
            bail!("expected {what} as an argument, with --file, or on standard input")
        }
        None => ("standard input".to_owned(), read_bounded(io::stdin().lock()).context("standard input")?),
    };
    if bytes.len() as u64 > MOST_TEXT {
        bail!("{name}: expected a text of at most {} MiB, found a longer one, or one that never ends", MOST_TEXT >> 20);
    }
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        anyhow::anyhow!("{name}: expected UTF-8 text, found an invalid byte at offset {offset}")
    })
}

/// Says so where something was piped to the program, or redirected to it from a file, and nobody read it.
///
/// It is not read by itself beside a prompt: programs that start others often leave a pipe open that never ends.
#[cfg(unix)]
pub fn note_unread_input() {
    let unread = || rustix::io::ioctl_fionread(rustix::stdio::stdin());
    if !io::stdin().is_terminal() && unread().is_ok_and(|bytes| bytes > 0) {
        output::note("standard input was not read; `--file -` reads it, and puts it before the PROMPT");
    }
}

/// Nothing is known of unread input here.
#[cfg(not(unix))]
pub fn note_unread_input() {}

/// Text from a file that must not be empty.
pub fn read_text_in(file: &PathBuf) -> anyhow::Result<String> {
    let text = read_text(Some(file), "a text")?;
    if text.is_empty() {
        bail!("{}: expected a text, found an empty file", file.display());
    }
    Ok(text)
}

/// All bytes, or one more than a text may have.
fn read_bounded(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MOST_TEXT + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Opens a model with a progress bar, prints its notes, and returns the time it took.
pub fn open(model: Option<&OsStr>, args: &LoadArgs) -> anyhow::Result<(Llm, Duration)> {
    open_with(model, args, None)
}

/// The same, with keys and values of prompts kept on the disk.
pub fn open_with(
    model: Option<&OsStr>,
    args: &LoadArgs,
    saved_prefixes: Option<SavedPrefixes>,
) -> anyhow::Result<(Llm, Duration)> {
    let started = Instant::now();
    interrupt::install()?;
    let source = source(model)?;
    // The command runs one sequence at a time.
    let options = LoadOptions { max_sequences: 1, saved_prefixes, ..load_options(args)? };
    let llm = load(&source, &options)?;
    llm.notes().iter().for_each(output::note);
    Ok((llm, started.elapsed()))
}

/// The library's load options for the arguments, including kernels.
pub fn load_options(args: &LoadArgs) -> anyhow::Result<LoadOptions> {
    let kernels = Kernels::from(args.kernels);
    if args.force && kernels != Kernels::Fused {
        bail!("--force: expected --kernels fused beside it, found {}", kernels.as_str());
    }
    let precision = Precision::from(args.precision.precision);
    if precision != Precision::Auto && kernels == Kernels::Standard {
        bail!(
            "--precision: it chooses levels of fused kernels, so expected --kernels auto or fused beside it, found standard"
        );
    }
    if args.force && precision == Precision::Exact {
        bail!("--force: it takes the fastest level, so expected --precision fast or auto beside it, found exact");
    }
    let chat_template = args.chat_template.clone();
    let draft = args.draft.as_deref().map(|draft| source(Some(draft)).context("--draft")).transpose()?;
    let draft = draft.map(|source| DraftOptions { source, tokens: args.draft_tokens });
    let adapters = adapters(&args.lora);
    let computing = options(kernels, &args.computing)?;
    Ok(LoadOptions { force: args.force, precision, chat_template, draft, adapters, ..computing })
}

/// The adapters that arguments name, each `PATH` or `NAME=PATH`.
pub fn adapters(arguments: &[OsString]) -> Vec<AdapterOptions> {
    let adapter = |argument: &OsString| {
        let named = argument.to_str().and_then(|text| text.split_once('='));
        // A name has no separators: a path may have an equals sign.
        match named.filter(|(name, _)| !name.is_empty() && !name.contains(['/', '\\']) && !Path::new(argument).exists())
        {
            Some((name, path)) => AdapterOptions { name: name.to_owned(), path: path.into() },
            None => AdapterOptions { name: name_of_adapter(Path::new(argument)), path: argument.into() },
        }
    };
    arguments.iter().map(adapter).collect()
}

/// The name of its folder or file.
fn name_of_adapter(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let is_gguf = path.extension().is_some_and(|extension| extension == "gguf");
    let name = if is_gguf { path.file_stem() } else { path.file_name() };
    name.unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// The adapter to compute with, for a command that answers by itself.
pub fn only_adapter(args: &LoadArgs) -> anyhow::Result<Option<u32>> {
    match args.lora.len() {
        0 => Ok(None),
        1 => Ok(Some(0)),
        several => bail!("--lora: expected one adapter, found {several}; `serve` has several side by side"),
    }
}

impl From<PrecisionArg> for Precision {
    fn from(asked: PrecisionArg) -> Self {
        match asked {
            PrecisionArg::Auto => Self::Auto,
            PrecisionArg::Exact => Self::Exact,
            PrecisionArg::Fast => Self::Fast,
        }
    }
}

impl From<KernelsArg> for Kernels {
    fn from(asked: KernelsArg) -> Self {
        match asked {
            KernelsArg::Auto => Self::Auto,
            KernelsArg::Standard => Self::Standard,
            KernelsArg::Fused => Self::Fused,
        }
    }
}

/// The library's load options for the arguments, with the given kernels.
pub fn options(kernels: Kernels, args: &ComputingArgs) -> anyhow::Result<LoadOptions> {
    Ok(LoadOptions {
        kernels,
        dtype: compute_dtype(args.dtype),
        kv_dtype: kv_dtype(args.kv_dtype),
        quantize: args.quantize,
        device: args.device.parse()?,
        gpu_share: GpuShare { layers: args.gpu_layers.0.clone(), memory: args.gpu_memory },
        threads: args.threads,
        context: args.context,
        verdicts: default_verdict_folder(),
        packed: packed_cache(&args.packed)?,
        worker: Some(worker()?),
        ..LoadOptions::default()
    })
}

/// Where packed weights are kept, by the arguments, or else by the environment.
pub fn packed_cache(args: &PackedArgs) -> anyhow::Result<Option<PackedCache>> {
    const FOLDER: &str = "BRAIDINFER_PACKED_CACHE";
    const SIZE: &str = "BRAIDINFER_PACKED_CACHE_SIZE";
    let set = |name| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
    let most_bytes = match (args.packed_cache_size, set(SIZE)) {
        (None, Some(text)) => Some(parse_size(&text.to_string_lossy()).map_err(|error| anyhow!("{SIZE}: {error}"))?),
        (typed, _) => typed,
    };
    let cache = match args.packed_cache.clone().or_else(|| set(FOLDER)) {
        Some(off) if off == "off" => None,
        // It would be the folder in which the program was started.
        Some(folder) if folder.is_empty() => bail!("--packed-cache: expected a folder or `off`, found an empty name"),
        // Who names a folder wants to find even small files in it.
        Some(folder) => Some(PackedCache { least_bytes: 0, ..PackedCache::new(folder) }),
        None => default_packed_folder().map(PackedCache::new),
    };
    if cache.is_none() && args.packed_cache_size.is_some() {
        bail!("--packed-cache-size: expected a folder for packed weights, found none: see --packed-cache");
    }
    Ok(cache.map(|cache| PackedCache { most_bytes, ..cache }))
}

static WORKER: OnceLock<WorkerProgram> = OnceLock::new();

/// Sets what [`worker`] gives, before any command runs.
pub fn set_worker(worker: Option<WorkerProgram>) {
    if let Some(worker) = worker {
        WORKER.get_or_init(|| worker);
    }
}

/// The program that does work on untrusted input in processes of its own: the one that was set, or else the running one.
pub fn worker() -> anyhow::Result<WorkerProgram> {
    match WORKER.get() {
        Some(worker) => Ok(worker.clone()),
        None => WorkerProgram::this(["worker"]).context("the path of this program"),
    }
}

/// Opens a model with a progress bar.
pub fn load(source: &ModelSource, options: &LoadOptions) -> anyhow::Result<Llm> {
    with_progress("loading", source, |progress| Llm::open(source, options, progress))
}

/// Runs work that reports its progress in layers, with a progress bar.
pub fn with_progress<T>(
    doing: &str,
    source: &ModelSource,
    work: impl FnOnce(LoadProgress) -> braidinfer::Result<T>,
) -> anyhow::Result<T> {
    let bar = output::progress_bar(&format!("{doing} {}", source.label()), "layers");
    let result = work(&|done, layers| {
        // Layers finish on several threads, so the counts may arrive out of order.
        bar.set_length(layers as u64);
        bar.update(|state| state.set_pos(state.pos().max(done as u64)));
    });
    bar.finish_and_clear();
    Ok(result?)
}

/// The type for `--kv-dtype`; `None` leaves the choice to the library.
fn kv_dtype(asked: KvDtypeArg) -> Option<KvDtype> {
    match asked {
        KvDtypeArg::Auto => None,
        KvDtypeArg::F32 => Some(KvDtype::F32),
        KvDtypeArg::F16 => Some(KvDtype::F16),
        KvDtypeArg::Q8_0 => Some(KvDtype::Q8_0),
        KvDtypeArg::Q4_0 => Some(KvDtype::Q4_0),
    }
}

/// The type for `--dtype`; `None` leaves the choice to the library.
fn compute_dtype(asked: DtypeArg) -> Option<ComputeDtype> {
    match asked {
        DtypeArg::Auto => None,
        DtypeArg::F32 => Some(ComputeDtype::F32),
        DtypeArg::Bf16 => Some(ComputeDtype::BF16),
        DtypeArg::F16 => Some(ComputeDtype::F16),
    }
}
