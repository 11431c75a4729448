//! The adapters of a machine: GPUs, and programs that behave like one.

use std::fmt;

use serde::Serialize;

use crate::{GpuError, Result};

/// Memory that kernels share within a workgroup, in bytes.
const WORKGROUP_BYTES: u32 = 32 << 10;

/// Invocations of a workgroup.
const INVOCATIONS: u32 = 256;

/// Bytes of the parameters of a dispatch.
pub(crate) const IMMEDIATE_BYTES: u32 = 96;

/// The adapters of this machine.
pub struct Adapters {
    adapters: Vec<(wgpu::Adapter, AdapterDescription)>,
}

/// What an adapter is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AdapterDescription {
    /// Its number in `--device gpu:N`.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// A GPU with memory of its own, one that shares the processor's, or a program.
    pub kind: AdapterKind,
    /// The interface that it is reached by, `vulkan`, `metal` or `dx12`.
    pub backend: String,
    /// The name of the driver.
    pub driver: String,
    /// The version of the driver.
    pub driver_info: String,
    /// Largest part of a buffer that a kernel can read, in bytes.
    pub max_binding_bytes: u64,
    /// Largest buffer, in bytes. Interfaces do not tell how much memory there is.
    pub max_buffer_bytes: u64,
    /// Features beyond those that every kernel needs.
    pub features: Vec<&'static str>,
    /// What the kernels need and this adapter lacks; empty if it can be used.
    pub lacks: Vec<String>,
}

/// Kinds of adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterKind {
    /// A GPU with memory of its own.
    Discrete,
    /// A GPU that shares the processor's memory.
    Integrated,
    /// A GPU that a virtual machine is given.
    Virtual,
    /// A program that computes on the CPU.
    Software,
    /// None of these.
    Other,
}

impl AdapterKind {
    /// The name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Discrete => "discrete",
            Self::Integrated => "integrated",
            Self::Virtual => "virtual",
            Self::Software => "software",
            Self::Other => "other",
        }
    }
}

impl AdapterDescription {
    /// What it is, and why it may not serve.
    fn in_list(&self) -> String {
        let program = if self.kind == AdapterKind::Software { ", a program on the CPU" } else { "" };
        let lacks =
            if self.lacks.is_empty() { String::new() } else { format!(", which lacks {}", self.lacks.join(", ")) };
        format!("gpu:{} is {self}{program}{lacks}", self.index)
    }
}

impl fmt::Display for AdapterDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {} {})", self.name, self.backend, self.driver, self.driver_info)
    }
}

impl Adapters {
    /// Looks which ones there are.
    pub fn find() -> Self {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
        // Neither validation layers nor names of objects: those are for who writes kernels.
        descriptor.flags = wgpu::InstanceFlags::empty();
        // Without it, drivers move what does not fit to memory that is a hundred times slower, or take down the device.
        descriptor.memory_budget_thresholds.for_resource_creation = Some(95);
        let instance = wgpu::Instance::new(descriptor);
        let found = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
        let adapters = found.into_iter().enumerate().map(|(index, adapter)| {
            let description = describe(index, &adapter);
            (adapter, description)
        });
        Self { adapters: adapters.collect() }
    }

    /// All of them, in the order of their numbers.
    pub fn descriptions(&self) -> impl Iterator<Item = &AdapterDescription> {
        self.adapters.iter().map(|(_, description)| description)
    }

    /// The one that is chosen where none is named: a GPU of its own before one that shares the processor's memory. Programs are
    /// never chosen.
    ///
    /// Fails if there is none that can be used.
    pub fn best(&self) -> Result<&AdapterDescription> {
        let rank = |description: &&AdapterDescription| match description.kind {
            AdapterKind::Discrete => Some(0),
            AdapterKind::Integrated => Some(1),
            AdapterKind::Virtual => Some(2),
            AdapterKind::Other => Some(3),
            AdapterKind::Software => None,
        };
        let usable = self.descriptions().filter(|description| description.lacks.is_empty());
        let hardware = usable.filter(|description| rank(description).is_some());
        hardware.min_by_key(rank).ok_or_else(|| self.none("that computes by itself"))
    }

    /// The best one, a program only where there is nothing else; where none can be used, the first one.
    ///
    /// Fails if there is none.
    pub fn first(&self) -> Result<&AdapterDescription> {
        let usable = || self.descriptions().find(|description| description.lacks.is_empty());
        let any = || usable().or_else(|| self.descriptions().next());
        self.best().or_else(|_| any().ok_or_else(|| self.none("at all")))
    }

    /// The one with this number.
    pub fn numbered(&self, index: usize) -> Result<&AdapterDescription> {
        self.descriptions().nth(index).ok_or_else(|| self.none(&format!("number {index}")))
    }

    /// The only one whose name, interface and driver, as they are shown, contain `name`, whatever its case.
    pub fn named(&self, name: &str) -> Result<&AdapterDescription> {
        let wanted = name.to_lowercase();
        let mut matching =
            self.descriptions().filter(|description| description.to_string().to_lowercase().contains(&wanted));
        match (matching.next(), matching.next()) {
            (Some(only), None) => Ok(only),
            (Some(_), Some(_)) => Err(self.none(&format!("that alone is called `{name}`"))),
            (None, _) => Err(self.none(&format!("called `{name}`"))),
        }
    }

    pub(crate) fn get(&self, index: usize) -> Result<(&wgpu::Adapter, &AdapterDescription)> {
        let found = self.adapters.get(index).ok_or_else(|| self.none(&format!("number {index}")))?;
        Ok((&found.0, &found.1))
    }

    fn none(&self, asked: &str) -> GpuError {
        let known: Vec<String> = self.descriptions().map(AdapterDescription::in_list).collect();
        let found = match known.is_empty() {
            true => "no driver for Vulkan, Metal or DirectX 12 was found that answers".to_owned(),
            false => known.join(", "),
        };
        GpuError::NoAdapter { asked: asked.to_owned(), found }
    }
}

fn describe(index: usize, adapter: &wgpu::Adapter) -> AdapterDescription {
    let (info, limits) = (adapter.get_info(), adapter.limits());
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
        wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
        wgpu::DeviceType::VirtualGpu => AdapterKind::Virtual,
        wgpu::DeviceType::Cpu => AdapterKind::Software,
        wgpu::DeviceType::Other => AdapterKind::Other,
    };
    let features = [
        (wgpu::Features::SHADER_F16, "f16"),
        (wgpu::Features::SUBGROUP, "subgroups"),
        (wgpu::Features::TIMESTAMP_QUERY, "timestamps"),
        (wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, "cooperative matrices"),
    ];
    let has = adapter.features();
    AdapterDescription {
        index,
        name: info.name,
        kind,
        backend: info.backend.to_string(),
        driver: info.driver,
        driver_info: info.driver_info,
        max_binding_bytes: limits.max_storage_buffer_binding_size,
        max_buffer_bytes: limits.max_buffer_size,
        features: features.into_iter().filter(|(feature, _)| has.contains(*feature)).map(|(_, name)| name).collect(),
        lacks: lacks(has, &limits),
    }
}

/// What the kernels need and an adapter lacks.
fn lacks(features: wgpu::Features, limits: &wgpu::Limits) -> Vec<String> {
    let mut lacks = Vec::new();
    if !features.contains(wgpu::Features::IMMEDIATES) || limits.max_immediate_size < IMMEDIATE_BYTES {
        lacks.push(format!("parameters of {IMMEDIATE_BYTES} bytes with each command"));
    }
    for (what, needed, found) in [
        ("bytes that a workgroup shares", WORKGROUP_BYTES, limits.max_compute_workgroup_storage_size),
        ("invocations of a workgroup", INVOCATIONS, limits.max_compute_invocations_per_workgroup),
        ("storage buffers of a kernel", 8, limits.max_storage_buffers_per_shader_stage),
    ] {
        if found < needed {
            lacks.push(format!("{what}: {needed}, of which it has {found}"));
        }
    }
    lacks
}
