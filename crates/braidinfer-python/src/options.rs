//! Keyword arguments as the library's load options.

use std::net::AddrParseError;
use std::path::PathBuf;

use braidinfer::compat::Precision;
use braidinfer::executor::standard::ComputeDtype;
use braidinfer::executor::{GpuShare, Kernels, KvDtype};
use braidinfer::model::ModelSource;
use braidinfer::{
    KvCacheRoom, LoadOptions, ModelName, PackedCache, ResolveOptions, WorkerProgram, default_packed_folder,
    default_verdict_folder,
};
use braidinfer_server::KvEventPublisher;
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;

use crate::errors::{bad_argument, exception};

/// A program that is started for untrusted input, and its arguments.
pub type Worker = (PathBuf, Vec<String>);

pub fn worker_program((program, arguments): Worker) -> WorkerProgram {
    WorkerProgram::new(program, arguments)
}

/// How a model is to be loaded: a dictionary with all of these keys.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Options {
    kernels: String,
    force: bool,
    precision: String,
    dtype: String,
    kv_dtype: String,
    quantize: Option<String>,
    device: String,
    gpu_layers: Option<Vec<usize>>,
    gpu_memory: Option<u64>,
    threads: Option<usize>,
    context: Option<usize>,
    max_sequences: usize,
    kv_cache_tokens: Option<usize>,
    prefix_cache: bool,
    prompt_lookup: bool,
    chat_template: Option<PathBuf>,
    packed_cache: bool,
    kv_events: Option<String>,
    worker: Option<Worker>,
}

impl Options {
    /// The library's options. Fails with `ValueError` on a name that is none.
    pub fn load_options(&self) -> PyResult<LoadOptions> {
        let file_type = |name: &String| name.parse().map_err(|error| bad_type(name, error));
        Ok(LoadOptions {
            kernels: chosen("kernels", &self.kernels, &KERNELS)?,
            force: self.force,
            precision: chosen("precision", &self.precision, &PRECISIONS)?,
            verdicts: default_verdict_folder(),
            packed: default_packed_folder().filter(|_| self.packed_cache).map(PackedCache::new),
            chat_template: self.chat_template.clone(),
            dtype: chosen("dtype", &self.dtype, &DTYPES)?,
            kv_dtype: chosen("kv_dtype", &self.kv_dtype, &KV_DTYPES)?,
            quantize: self.quantize.as_ref().map(file_type).transpose()?,
            device: self.device.parse().map_err(|error| exception(&error))?,
            gpu_share: GpuShare { layers: self.gpu_layers.clone().unwrap_or_default(), memory: self.gpu_memory },
            threads: self.threads,
            context: self.context,
            max_sequences: self.max_sequences,
            kv_cache: self.kv_cache_tokens.map_or(KvCacheRoom::Fitting, KvCacheRoom::Tokens),
            prefix_cache: self.prefix_cache,
            prompt_lookup: self.prompt_lookup,
            worker: self.worker.clone().map(worker_program),
            ..LoadOptions::default()
        })
    }

    /// Where changes of the prefix cache are published, if they are to be. Fails on what is no address, or is taken.
    pub fn kv_events(&self) -> PyResult<Option<KvEventPublisher>> {
        let Some(name) = &self.kv_events else { return Ok(None) };
        let wrong =
            |_: AddrParseError| bad_argument("kv_events", "an address such as 127.0.0.1:5557", format!("`{name}`"));
        let bound = KvEventPublisher::bind(name.parse().map_err(wrong)?, String::new());
        bound.map(Some).map_err(|error| PyOSError::new_err(format!("kv_events: {error}")))
    }
}

const KERNELS: [(&str, Kernels); 3] =
    [("auto", Kernels::Auto), ("standard", Kernels::Standard), ("fused", Kernels::Fused)];

const PRECISIONS: [(&str, Precision); 3] =
    [("auto", Precision::Auto), ("exact", Precision::Exact), ("fast", Precision::Fast)];

const DTYPES: [(&str, Option<ComputeDtype>); 4] = [
    ("auto", None),
    ("f32", Some(ComputeDtype::F32)),
    ("bf16", Some(ComputeDtype::BF16)),
    ("f16", Some(ComputeDtype::F16)),
];

const KV_DTYPES: [(&str, Option<KvDtype>); 5] = [
    ("auto", None),
    ("f32", Some(KvDtype::F32)),
    ("f16", Some(KvDtype::F16)),
    ("q8_0", Some(KvDtype::Q8_0)),
    ("q4_0", Some(KvDtype::Q4_0)),
];

/// The value that is called `name`.
pub fn chosen<T: Copy>(field: &str, name: &str, values: &[(&str, T)]) -> PyResult<T> {
    match values.iter().find(|(known, _)| *known == name) {
        Some((_, value)) => Ok(*value),
        None => {
            let known: Vec<&str> = values.iter().map(|(known, _)| *known).collect();
            Err(bad_argument(field, format!("one of {}", known.join(", ")), format!("`{name}`")))
        }
    }
}

fn bad_type(name: &str, error: braidinfer::model::ModelError) -> PyErr {
    bad_argument("quantize", format!("a type of weights ({error})"), format!("`{name}`"))
}

/// The files of a model by its path or Hub id; without a name, of the built-in one.
pub fn source(model: Option<PathBuf>) -> braidinfer::Result<ModelSource> {
    let Some(path) = model else { return Ok(braidinfer_cli::DEMO_MODEL) };
    ModelName::parse_argument(path.as_os_str())?.resolve(&ResolveOptions::default(), &mut ())
}
