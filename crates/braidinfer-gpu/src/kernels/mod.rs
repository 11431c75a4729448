//! The kernels: programs in WGSL, made from the templates beside these files.

mod argmax;
mod attention;
mod heads;
mod norm;
mod product;
mod template;

pub use argmax::ArgmaxKernel;
pub use attention::{AttentionKernels, AttentionShape, AttentionStep, Gate};
pub use heads::{HeadNorm, HeadNormExtent, HeadsKernel, HeadsShape, HeadsStep};
pub use norm::{Add, NormKernel, NormStep};
pub use product::{Activation, Epilogue, ProductKernels, ProductStep};
