//! What can go wrong on a device.

use std::time::Duration;

/// An error of an adapter, its driver, or a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GpuError {
    /// There is no adapter of this name or number.
    #[error("no GPU {asked}; {found}")]
    NoAdapter {
        /// What was asked for.
        asked: String,
        /// Which ones there are.
        found: String,
    },
    /// The adapter lacks what the kernels need.
    #[error("GPU {adapter} lacks {what}")]
    Lacking {
        /// Its name.
        adapter: String,
        /// What it lacks.
        what: String,
    },
    /// The driver gave no device.
    #[error("GPU {adapter} could not be opened: {message}")]
    Denied {
        /// Its name.
        adapter: String,
        /// What the driver says.
        message: String,
    },
    /// There is too little memory on the device.
    #[error("GPU {adapter} has too little memory for {bytes} bytes of {what}{}", available.map_or(String::new(), |bytes| format!(": {bytes} are left")))]
    OutOfMemory {
        /// Its name.
        adapter: String,
        /// What the memory was for.
        what: String,
        /// How much was asked for.
        bytes: u64,
        /// How much there is, if that is known: of what may be taken, or in one buffer.
        available: Option<u64>,
    },
    /// A driver refused a kernel or a command.
    #[error("GPU {adapter} refused {what}: {message}")]
    Refused {
        /// Its name.
        adapter: String,
        /// What was refused.
        what: String,
        /// What the driver says.
        message: String,
    },
    /// The device is gone: it was reset, removed, or given up by its driver.
    #[error("GPU {adapter} was lost: {message}")]
    Lost {
        /// Its name.
        adapter: String,
        /// What the driver says.
        message: String,
    },
    /// The device did not answer in time.
    #[error("GPU {adapter} gave no answer within {waited:?}")]
    NoAnswer {
        /// Its name.
        adapter: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The device answered with something other than the results of what it was told to do.
    #[error("GPU {adapter} returned results that are not those of its last commands")]
    Stale {
        /// Its name.
        adapter: String,
    },
}

impl GpuError {
    /// Whether nothing more can be done with the device.
    pub fn ends_device(&self) -> bool {
        match self {
            Self::Lost { .. } | Self::NoAnswer { .. } | Self::Stale { .. } | Self::Refused { .. } => true,
            Self::NoAdapter { .. } | Self::Lacking { .. } | Self::Denied { .. } | Self::OutOfMemory { .. } => false,
        }
    }
}
