//! CPU kernels: functions that compute on slices.
//!
//! Every kernel is written once over sixteen lanes and compiled for several instruction sets, one of which is selected
//! at run time. All instruction sets give bitwise equal results (but at level bf16, where AVX-512 BF16 and AMX
//! flush denormals to zero, and AMX adds in an order of its own). The order of every sum depends only on the kernel and on
//! the shapes of one row, never on the other rows, the instruction set or the number of threads.

mod activations;
pub mod attention;
mod buffer;
pub mod ceilings;
pub mod convolution;
pub mod delta;
pub mod elementwise;
mod environment;
pub mod format;
mod isa;
mod low_rank;
pub mod mamba2;
mod mapped_file;
mod math;
mod matmul;
pub mod norm;
mod pack;
mod pages;
mod pool;
mod prepare;
pub mod rope;
pub mod router;
#[cfg(test)]
mod samples;
mod simd;

pub use activations::{Activations, NumericLevel, encode_row};
pub use buffer::Buffer;
pub use elementwise::ActivationFunction;
pub use environment::set_default_variable;
pub use format::{BLOCK, PanelFormat, WeightType, panel_bytes};
pub use isa::{ISA_VARIABLE, Isa, IsaError};
pub use low_rank::add_low_rank;
pub use mapped_file::MappedFile;
pub use matmul::{Panels, matmul};
pub use pack::{NotFinite, pack_panel};
pub use pages::{Pages, return_freed};
pub use pool::{Chunks, Items, Parts, PerThread, Pool, Ranges, default_threads};
pub use prepare::read_row;
pub use simd::LANES;
