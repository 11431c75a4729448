//! Device selection. Only this file depends on the devices that the build supports.

use std::fmt;
use std::str::FromStr;

use candle_core::Device;

use crate::{Error, Result};

/// A device by name: `cpu`, `cuda`, `cuda:N` or `metal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The CPU.
    #[default]
    Cpu,
    /// An NVIDIA GPU by index.
    Cuda(usize),
    /// An Apple GPU.
    Metal,
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "cpu" => return Ok(Self::Cpu),
            "metal" => return Ok(Self::Metal),
            "cuda" => return Ok(Self::Cuda(0)),
            _ => {}
        }
        let index = name.strip_prefix("cuda:").and_then(|index| index.parse().ok());
        index
            .map(Self::Cuda)
            .ok_or_else(|| Error::bad_request("device", "cpu, cuda, cuda:N or metal", format!("`{name}`")))
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl DeviceChoice {
    /// Names of the devices that this build supports.
    pub fn available() -> Vec<&'static str> {
        let mut names = vec!["cpu"];
        if cfg!(feature = "cuda") {
            names.push("cuda");
        }
        if cfg!(feature = "metal") {
            names.push("metal");
        }
        names
    }

    /// Opens the device. Fails if this build or machine does not have it.
    pub(crate) fn open(self) -> Result<Device> {
        let opened = match self {
            Self::Cpu => return Ok(Device::Cpu),
            Self::Cuda(index) => Device::new_cuda(index),
            Self::Metal => Device::new_metal(0),
        };
        let known = Self::available().join(", ");
        opened.map_err(|error| Error::Unsupported(format!("device {self}: {error}; this build knows: {known}")))
    }
}
