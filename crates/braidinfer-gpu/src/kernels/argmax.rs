//! The largest value of rows.

use super::template::render;
use crate::{Buffer, Gpu, Kernel, Result, stride};

/// The kernel. It writes two words for each row: where the largest value is, the first one of equals, and that value; if any is not
/// finite, where the first of these is, and NaN.
#[derive(Debug, Clone)]
pub struct ArgmaxKernel {
    kernel: Kernel,
}

impl ArgmaxKernel {
    /// Compiles it.
    ///
    /// Fails if the driver refuses it.
    pub fn new(gpu: &mut Gpu) -> Result<Self> {
        Ok(Self { kernel: gpu.kernel("argmax", render("argmax", ()), 2, 1 << 1)? })
    }

    /// Records it for `rows` rows of `width` values from `first_row` on.
    pub fn record(&self, gpu: &mut Gpu, input: &Buffer, width: usize, [first_row, rows]: [usize; 2], output: &Buffer) {
        let parameters = [stride(width) as u32, width as u32, first_row as u32];
        gpu.dispatch(&self.kernel, &[input, output], &parameters, [rows as u32, 1, 1]);
    }
}
