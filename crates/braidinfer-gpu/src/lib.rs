//! Kernels for language models on GPUs: buffers and commands of a device ([`Gpu`]), matrices as its kernels read them
//! ([`Matrix`]), and the [`kernels`], each a program in WGSL.
//!
//! Rows of activations are `[T, stride]` in f32, where the stride is the width rounded up to a multiple of
//! [`BLOCK`] and what is beyond the width is zero. Every sum has an order that depends on shapes alone: what is computed of a
//! token does not depend on the other ones, where a driver rounds alike in all kernels ([`kernels::ProductKernels::agree`]).
//!
//! Nothing here is `unsafe`. What a driver says, and what it does not do in time once it has commands, is a [`GpuError`].

mod adapter;
mod device;
mod error;
pub mod kernels;
mod matrix;

pub use adapter::{AdapterDescription, AdapterKind, Adapters};
pub use device::{Buffer, Gpu, Kernel, SourceEdit, Usage};
pub use error::GpuError;
pub use matrix::{Format, Matrix, MatrixPart};

/// Results of this crate.
pub type Result<T, E = GpuError> = std::result::Result<T, E>;

/// Values of a row that kernels read together; rows of activations end with zeros up to a multiple of it.
pub const BLOCK: usize = 32;

/// The stride of rows that are `width` wide.
pub const fn stride(width: usize) -> usize {
    width.next_multiple_of(BLOCK)
}
