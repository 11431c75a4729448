//! Device selection. Only this file depends on the devices that the build supports.

use std::fmt;
use std::str::FromStr;

use braidinfer_model::{DecoderSpec, Weights};
use candle_core::Device;

use super::Decoder;
use super::fused::FusedOptions;
use super::standard::LoadProgress;
use crate::{Error, Result};

/// A device by name: `cpu`, `auto`, `gpu`, `gpu:N`, a part of a GPU's name, `cuda`, `cuda:N` or `metal`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The CPU.
    #[default]
    Cpu,
    /// The best GPU, if there is one that can compute the model, or else the CPU.
    Auto,
    /// A GPU through Vulkan, Metal or DirectX 12.
    Gpu(GpuChoice),
    /// An NVIDIA GPU by index, for standard kernels.
    Cuda(usize),
    /// An Apple GPU, for standard kernels.
    Metal,
}

/// Which GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GpuChoice {
    /// The best one; a program that behaves like one only where there is nothing else.
    Best,
    /// By its number.
    Index(usize),
    /// By a part of its name.
    Name(String),
}

/// How much of a model a GPU takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GpuShare {
    /// How many of the last layers run there, with those before them on the CPU; if `None`, as many as there is memory for.
    pub layers: Option<usize>,
    /// Most memory that it may take there, in bytes; if `None`, what its driver gives.
    pub memory: Option<u64>,
}

/// The GPU that a model is computed on.
#[derive(Debug, Clone)]
pub(crate) struct ChosenGpu {
    index: usize,
    /// Adapter and driver.
    pub(crate) name: String,
    /// Largest part of its memory that can be read as a whole, in bytes.
    max_binding_bytes: usize,
    /// Whether its memory is the processor's.
    pub(crate) shares_memory: bool,
}

impl ChosenGpu {
    /// Tokens whose keys a layer can read, at most, also where a check asks for f32.
    pub(crate) fn most_tokens(&self, spec: &DecoderSpec) -> usize {
        let widths = (0..spec.layers.len()).map(|layer| spec.key_value_width(layer) * size_of::<f32>());
        self.max_binding_bytes / widths.max().unwrap_or(0).max(1)
    }
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "cpu" => return Ok(Self::Cpu),
            "auto" => return Ok(Self::Auto),
            "gpu" => return Ok(Self::Gpu(GpuChoice::Best)),
            "metal" => return Ok(Self::Metal),
            "cuda" => return Ok(Self::Cuda(0)),
            _ => {}
        }
        let numbered = |kind: &str| name.strip_prefix(kind).map(str::parse::<usize>);
        match (numbered("cuda:"), numbered("gpu:")) {
            (Some(Ok(index)), _) => Ok(Self::Cuda(index)),
            (_, Some(Ok(index))) => Ok(Self::Gpu(GpuChoice::Index(index))),
            (None, None) if !name.trim().is_empty() => Ok(Self::Gpu(GpuChoice::Name(name.to_owned()))),
            _ => {
                let expected = "cpu, auto, gpu, gpu:N, a GPU's name, cuda, cuda:N or metal";
                Err(Error::bad_request("device", expected, format!("`{name}`")))
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Auto => f.write_str("auto"),
            Self::Gpu(GpuChoice::Best) => f.write_str("gpu"),
            Self::Gpu(GpuChoice::Index(index)) => write!(f, "gpu:{index}"),
            Self::Gpu(GpuChoice::Name(name)) => f.write_str(name),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl DeviceChoice {
    /// Names of the devices that this build supports.
    pub fn available() -> Vec<&'static str> {
        let mut names = vec!["cpu"];
        for (name, has) in
            [("gpu", cfg!(feature = "gpu")), ("cuda", cfg!(feature = "cuda")), ("metal", cfg!(feature = "metal"))]
        {
            names.extend(has.then_some(name));
        }
        names
    }

    /// Those of them that can compute a model.
    pub fn available_for(spec: &DecoderSpec) -> Vec<&'static str> {
        let mut names = Self::available();
        names.retain(|name| *name != "gpu" || has_kernels(spec));
        names
    }

    /// Whether Candle computes on a GPU, in standard kernels.
    pub fn is_of_candle(&self) -> bool {
        matches!(self, Self::Cuda(_) | Self::Metal)
    }

    /// Opens the device that standard kernels run on. Fails if this build or machine does not have it.
    pub(crate) fn open(&self) -> Result<Device> {
        let opened = match self {
            Self::Cpu | Self::Auto | Self::Gpu(_) => return Ok(Device::Cpu),
            Self::Cuda(index) => Device::new_cuda(*index),
            Self::Metal => Device::new_metal(0),
        };
        let known = Self::available().join(", ");
        // Candle adds a backtrace where it was asked for one.
        let first_line = |error: candle_core::Error| error.to_string().lines().next().unwrap_or_default().to_owned();
        opened.map_err(|error| {
            Error::Unsupported(format!("device {self}: {}; this build knows: {known}", first_line(error)))
        })
    }

    /// The GPU to compute a model on; `None` for the CPU, and for Candle's devices. Where none was asked for by name and none can
    /// be used, `notes` says why.
    ///
    /// Fails if there is no such GPU, or if it cannot compute this model.
    pub(crate) fn gpu(&self, spec: &DecoderSpec, notes: &mut Vec<String>) -> Result<Option<ChosenGpu>> {
        match self {
            Self::Cpu | Self::Cuda(_) | Self::Metal => Ok(None),
            Self::Gpu(choice) => find(choice, spec).map(Some),
            Self::Auto => match find_hardware(spec) {
                Ok(found) => Ok(Some(found)),
                Err(error) => {
                    notes.push(format!("runs on the CPU: {error}"));
                    Ok(None)
                }
            },
        }
    }
}

#[cfg(feature = "gpu")]
fn find(choice: &GpuChoice, spec: &DecoderSpec) -> Result<ChosenGpu> {
    let adapters = braidinfer_gpu::Adapters::find();
    let adapter = match choice {
        GpuChoice::Best => adapters.first(),
        GpuChoice::Index(index) => adapters.numbered(*index),
        GpuChoice::Name(name) => adapters.named(name),
    };
    chosen(adapter?, spec)
}

/// The best one that is no program.
#[cfg(feature = "gpu")]
fn find_hardware(spec: &DecoderSpec) -> Result<ChosenGpu> {
    chosen(braidinfer_gpu::Adapters::find().best()?, spec)
}

#[cfg(feature = "gpu")]
fn chosen(adapter: &braidinfer_gpu::AdapterDescription, spec: &DecoderSpec) -> Result<ChosenGpu> {
    super::gpu::check(spec)?;
    let max_binding_bytes = adapter.max_binding_bytes.min(adapter.max_buffer_bytes) as usize;
    let kinds = [braidinfer_gpu::AdapterKind::Integrated, braidinfer_gpu::AdapterKind::Software];
    let shares_memory = kinds.contains(&adapter.kind);
    Ok(ChosenGpu { index: adapter.index, name: adapter.to_string(), max_binding_bytes, shares_memory })
}

/// Whether there are kernels for all layers of a model on GPUs.
#[cfg(feature = "gpu")]
fn has_kernels(spec: &DecoderSpec) -> bool {
    super::gpu::check(spec).is_ok()
}

#[cfg(not(feature = "gpu"))]
fn has_kernels(_spec: &DecoderSpec) -> bool {
    false
}

/// Loads a model onto a GPU, or a share of it. Also returns how many layers run on the CPU, as `fused` says.
#[cfg(feature = "gpu")]
pub(crate) fn load_on_gpu(
    gpu: &ChosenGpu,
    spec: DecoderSpec,
    weights: &Weights,
    (share, fused): (GpuShare, FusedOptions),
    progress: LoadProgress,
) -> Result<(Decoder<'static>, usize)> {
    use super::gpu::{GpuLayers, GpuOptions};
    let GpuShare { layers, memory } = share;
    let (kv_cache, layers) = (fused.kv_cache, layers.map_or(GpuLayers::Fitting, GpuLayers::Last));
    super::gpu::load(spec, weights, &GpuOptions { adapter: gpu.index, kv_cache, layers, fused, memory }, progress)
}

#[cfg(not(feature = "gpu"))]
fn find(_choice: &GpuChoice, _spec: &DecoderSpec) -> Result<ChosenGpu> {
    Err(Error::Unsupported(format!(
        "this build has no kernels for GPUs; it knows: {}",
        DeviceChoice::available().join(", ")
    )))
}

#[cfg(not(feature = "gpu"))]
fn find_hardware(spec: &DecoderSpec) -> Result<ChosenGpu> {
    find(&GpuChoice::Best, spec)
}

#[cfg(not(feature = "gpu"))]
pub(crate) fn load_on_gpu(
    gpu: &ChosenGpu,
    spec: DecoderSpec,
    _weights: &Weights,
    _how: (GpuShare, FusedOptions),
    _progress: LoadProgress,
) -> Result<(Decoder<'static>, usize)> {
    find(&GpuChoice::Index(gpu.index), &spec).and(Err(Error::Internal("a GPU without kernels".into())))
}
