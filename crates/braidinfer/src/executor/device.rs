//! Device selection. Only this file depends on the devices that the build supports.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

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
    /// A GPU through Vulkan, Metal or DirectX 12, or several: layers that do not fit the first one run on the next.
    Gpu(Vec<GpuChoice>),
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

/// How much of a model GPUs take.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GpuShare {
    /// How many of the last layers run on the GPU, or on each of several, with those before them on the CPU; if empty, as many as there
    /// is memory for.
    pub layers: Vec<usize>,
    /// Most memory that it may take on each, in bytes; if `None`, what their drivers give.
    pub memory: Option<u64>,
}

/// Which layers of a model run where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// How many of the first layers run on the CPU.
    pub on_cpu: usize,
    /// GPUs. The first one has the last layers, the next one those before them.
    pub gpus: Vec<PlacedLayers>,
    /// How long a layer takes, if that was measured.
    pub layer_times: Option<LayerTimes>,
}

/// Layers on a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedLayers {
    /// The number of the GPU.
    pub index: usize,
    /// Adapter and driver.
    pub name: String,
    /// How many layers it has.
    pub layers: usize,
}

/// How long a layer takes for one token, on average.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerTimes {
    /// On the CPU, in the fastest kernels that are allowed.
    pub on_cpu: Duration,
    /// On the first GPU that has layers.
    pub on_gpu: Duration,
}

impl Placement {
    /// Whether a GPU was named twice and has layers each time.
    pub(crate) fn has_twins(&self) -> bool {
        (1..self.gpus.len()).any(|at| self.gpus[..at].iter().any(|gpu| gpu.index == self.gpus[at].index))
    }

    /// In words, if the layers have several places; `None` if all run on one GPU.
    pub fn in_words(&self) -> Option<String> {
        if let ([gpu], 0) = (&self.gpus[..], self.on_cpu)
            && gpu.layers > 0
        {
            return None;
        }
        let place = |gpu: &PlacedLayers| match gpu.layers {
            0 => format!("none but the output head on gpu:{} ({})", gpu.index, gpu.name),
            layers => format!("{layers} on gpu:{} ({})", gpu.index, gpu.name),
        };
        let on_cpu = (self.on_cpu > 0).then(|| format!("{} on the CPU", self.on_cpu));
        // From the first layer on.
        let places: Vec<String> = on_cpu.into_iter().chain(self.gpus.iter().rev().map(place)).collect();
        Some(format!("layers, from the first one on: {}", places.join(", ")))
    }
}

impl LayerTimes {
    /// Whether a layer takes twice as long on the GPU. If they are closer, whole steps may be the other way round: these times
    /// are without the output head, and those of the GPU have the beginning and the end of a step in them.
    pub fn cpu_is_faster(self) -> bool {
        2 * self.on_cpu < self.on_gpu
    }
}

impl fmt::Display for LayerTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [on_cpu, on_gpu] = [self.on_cpu, self.on_gpu].map(|time| time.as_secs_f64() * 1e3);
        write!(f, "a layer takes {on_gpu:.3} ms for a token on the GPU, and {on_cpu:.3} ms on the CPU")
    }
}

/// The GPU that a model is computed on, or several.
#[derive(Debug, Clone)]
pub(crate) struct ChosenGpu {
    /// Numbers of the adapters.
    indices: Vec<usize>,
    /// Adapters and drivers.
    pub(crate) name: String,
    /// Largest part of its memory that can be read as a whole, in bytes; the smallest of several.
    max_binding_bytes: usize,
    /// Whether the memory of any is the processor's.
    pub(crate) shares_memory: bool,
}

/// How a model is loaded onto GPUs.
#[cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "only builds with kernels for GPUs load onto them"))]
pub(crate) struct OnGpu<'a> {
    pub(crate) share: &'a GpuShare,
    /// Layers on the CPU.
    pub(crate) fused: FusedOptions,
    /// Whether to measure how long a layer takes on the CPU also if none runs there.
    pub(crate) compare_with_cpu: bool,
}

impl ChosenGpu {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.indices.len()
    }

    /// With the names of those that have something to compute.
    pub(crate) fn used_in(&self, placement: &Placement) -> Self {
        let names: Vec<&str> = placement.gpus.iter().map(|gpu| gpu.name.as_str()).collect();
        Self { name: names.join(" and "), ..self.clone() }
    }

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
            "metal" => return Ok(Self::Metal),
            "cuda" => return Ok(Self::Cuda(0)),
            _ => {}
        }
        let numbered = |kind: &str| name.strip_prefix(kind).map(str::parse::<usize>);
        let gpus = || name.split('+').map(GpuChoice::of).collect::<Option<Vec<_>>>();
        let choice = match numbered("cuda:") {
            Some(index) => index.ok().map(Self::Cuda),
            None => gpus().map(Self::Gpu),
        };
        let expected = "cpu, auto, gpu, gpu:N, a GPU's name, several GPUs such as gpu:0+gpu:1, cuda, cuda:N or metal";
        choice.ok_or_else(|| Error::bad_request("device", expected, format!("`{name}`")))
    }
}

impl GpuChoice {
    /// By its name; `None` for what is none, and for devices that are no GPUs through Vulkan, Metal or DirectX 12.
    fn of(name: &str) -> Option<Self> {
        let others = ["cpu", "auto", "metal", "cuda"];
        match (name, name.strip_prefix("gpu:")) {
            ("gpu", _) => Some(Self::Best),
            (_, Some(index)) => index.parse().ok().map(Self::Index),
            // A number of the list, which parts of many names are, too.
            _ if name.trim().parse::<u8>().is_ok() => None,
            _ if name.trim().is_empty() || others.contains(&name) || name.starts_with("cuda:") => None,
            _ => Some(Self::Name(name.to_owned())),
        }
    }
}

impl fmt::Display for GpuChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Best => f.write_str("gpu"),
            Self::Index(index) => write!(f, "gpu:{index}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Auto => f.write_str("auto"),
            Self::Gpu(gpus) => {
                let names: Vec<String> = gpus.iter().map(GpuChoice::to_string).collect();
                f.write_str(&names.join("+"))
            }
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
            Self::Gpu(choices) => find(choices, spec).map(Some),
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
fn find(choices: &[GpuChoice], spec: &DecoderSpec) -> Result<ChosenGpu> {
    let adapters = braidinfer_gpu::Adapters::find();
    let found = choices.iter().map(|choice| match choice {
        GpuChoice::Best => adapters.first(),
        GpuChoice::Index(index) => adapters.numbered(*index),
        GpuChoice::Name(name) => adapters.named(name),
    });
    chosen(&found.collect::<std::result::Result<Vec<_>, _>>()?, spec)
}

/// The best one that is no program.
#[cfg(feature = "gpu")]
fn find_hardware(spec: &DecoderSpec) -> Result<ChosenGpu> {
    chosen(&[braidinfer_gpu::Adapters::find().best()?], spec)
}

#[cfg(feature = "gpu")]
fn chosen(adapters: &[&braidinfer_gpu::AdapterDescription], spec: &DecoderSpec) -> Result<ChosenGpu> {
    super::gpu::check(spec)?;
    let binding =
        |adapter: &&braidinfer_gpu::AdapterDescription| adapter.max_binding_bytes.min(adapter.max_buffer_bytes);
    let kinds = [braidinfer_gpu::AdapterKind::Integrated, braidinfer_gpu::AdapterKind::Software];
    let names: Vec<String> = adapters.iter().map(ToString::to_string).collect();
    Ok(ChosenGpu {
        indices: adapters.iter().map(|adapter| adapter.index).collect(),
        name: names.join(" and "),
        max_binding_bytes: adapters.iter().map(binding).min().unwrap_or(0) as usize,
        shares_memory: adapters.iter().any(|adapter| kinds.contains(&adapter.kind)),
    })
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

/// Loads a model onto GPUs, or a share of it, and the rest for the CPU, as `fused` says. Measures how long a layer takes on either, if
/// both compute or if that is asked for.
#[cfg(feature = "gpu")]
pub(crate) fn load_on_gpu(
    gpu: &ChosenGpu,
    spec: DecoderSpec,
    weights: &Weights,
    how: OnGpu<'_>,
    progress: LoadProgress,
) -> Result<(Decoder<'static>, Placement)> {
    use super::gpu::{GpuLayers, GpuOptions};
    let OnGpu { share: GpuShare { layers, memory }, fused, compare_with_cpu } = how;
    let layers = layers.iter().map(|layers| GpuLayers::Last(*layers)).chain(std::iter::repeat(GpuLayers::Fitting));
    let adapters = gpu.indices.iter().copied().zip(layers).collect();
    let options = GpuOptions { adapters, fused, memory: *memory, compare_with_cpu };
    super::gpu::load(spec, weights, &options, progress)
}

#[cfg(not(feature = "gpu"))]
fn find(_choices: &[GpuChoice], _spec: &DecoderSpec) -> Result<ChosenGpu> {
    Err(Error::Unsupported(format!(
        "this build has no kernels for GPUs; it knows: {}",
        DeviceChoice::available().join(", ")
    )))
}

#[cfg(not(feature = "gpu"))]
fn find_hardware(spec: &DecoderSpec) -> Result<ChosenGpu> {
    find(&[], spec)
}

#[cfg(not(feature = "gpu"))]
pub(crate) fn load_on_gpu(
    gpu: &ChosenGpu,
    spec: DecoderSpec,
    _weights: &Weights,
    _how: OnGpu<'_>,
    _progress: LoadProgress,
) -> Result<(Decoder<'static>, Placement)> {
    find(&[], &spec).and(Err(Error::Internal(format!("{} without kernels", gpu.name))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_the_names_that_they_are_chosen_by() {
        for name in ["cpu", "auto", "gpu", "gpu:3", "RTX 4090", "gpu:0+gpu:1", "gpu+Arc A770", "cuda:1", "metal"] {
            assert_eq!(name.parse::<DeviceChoice>().expect("it is a device").to_string(), name);
        }
        for name in ["", " ", "gpu:", "gpu:x", "gpu:0+", "gpu:0+1", "gpu:0+cpu", "auto+gpu", "cuda:0+gpu:0", "cuda:x"] {
            let error = name.parse::<DeviceChoice>().expect_err(name).to_string();
            assert!(error.contains(&format!("found `{name}`")), "{error}");
        }
    }

    #[test]
    fn places_are_said_from_the_first_layer_on() {
        let gpu = |index, layers| PlacedLayers { index, name: "X".into(), layers };
        let said = |on_cpu, gpus| Placement { on_cpu, gpus, layer_times: None }.in_words();
        assert_eq!(said(0, vec![gpu(0, 8)]), None);
        let two = "layers, from the first one on: 3 on gpu:1 (X), 5 on gpu:0 (X)";
        assert_eq!(said(0, vec![gpu(0, 5), gpu(1, 3)]).as_deref(), Some(two));
        let all = "layers, from the first one on: 1 on the CPU, 3 on gpu:1 (X), 5 on gpu:0 (X)";
        assert_eq!(said(1, vec![gpu(0, 5), gpu(1, 3)]).as_deref(), Some(all));
        let none = "layers, from the first one on: 4 on the CPU, none but the output head on gpu:0 (X)";
        assert_eq!(said(4, vec![gpu(0, 0)]).as_deref(), Some(none));
    }

    #[test]
    fn only_a_clear_difference_counts() {
        let faster = |on_cpu, on_gpu| {
            let times = LayerTimes { on_cpu: Duration::from_micros(on_cpu), on_gpu: Duration::from_micros(on_gpu) };
            times.cpu_is_faster()
        };
        assert_eq!(
            [faster(100, 50), faster(100, 150), faster(100, 200), faster(100, 201)],
            [false, false, false, true]
        );
    }
}
