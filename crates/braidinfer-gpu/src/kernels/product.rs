//! Products of matrices and rows of activations.

use std::borrow::Cow;

use braidinfer_model::Dtype;
use serde::Serialize;

use super::template::render;
use crate::matrix::{Format, Matrix, PANEL};
use crate::{BLOCK, Buffer, Gpu, GpuError, Kernel, Result};

/// Rows of activations that one thread multiplies a weight with, where there are few.
const FEW_ROWS: [usize; 4] = [1, 2, 4, 8];

/// From how many rows on weights are shared by the threads of a workgroup.
const MANY_ROWS: usize = 9;

/// Rows of a tile, and tokens of it.
const TILE: usize = 64;

/// Workgroups in one direction, of products whose matrix has more panels than there may be.
const GROUPS_X: usize = 32768;

/// Immediate parameters, in the order of the kernels' structure.
const PARAMETERS: usize = 15;

/// An activation function, with its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `factor x * logistic(factor x)`.
    Silu {
        /// 1, or what the function's input is multiplied by.
        factor: f32,
    },
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `0.5 x (1 + erf(x / sqrt 2))`.
    GeluErf,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2`.
    Relu2,
    /// `positive x^2 + beta x`, or `negative (e^x - 1 - x) + beta x` where `x` is not positive.
    Xielu {
        /// Curvature of positive values.
        positive: f32,
        /// Factor of the exponential of negative values.
        negative: f32,
        /// Slope at zero.
        beta: f32,
    },
}

impl Activation {
    fn name(self) -> &'static str {
        match self {
            Self::Silu { .. } => "silu",
            Self::GeluTanh => "gelu_pytorch_tanh",
            Self::GeluErf => "gelu",
            Self::Relu => "relu",
            Self::Relu2 => "relu2",
            Self::Xielu { .. } => "xielu",
        }
    }

    fn numbers(self) -> [f32; 3] {
        match self {
            Self::Silu { factor } => [factor, 0.0, 0.0],
            Self::GeluTanh | Self::GeluErf | Self::Relu | Self::Relu2 => [0.0; 3],
            Self::Xielu { positive, negative, beta } => [positive, negative, beta],
        }
    }
}

/// What a kernel does with a product `y`, to which the bias was added.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Epilogue {
    /// It is written.
    Stored,
    /// `factor * y` is added to what is there.
    Added {
        /// The factor.
        factor: f32,
    },
    /// The function of it is written.
    Activated(Activation),
    /// Rows of the matrix are those of two projections in turn: `function(y of the first) * y of the second` is written.
    Gated(Activation),
    /// `cap * tanh(y / scaling / cap)`, or `y / scaling` without a cap.
    Logits {
        /// The divisor.
        scaling: f32,
        /// The largest magnitude.
        cap: Option<f32>,
    },
}

impl Epilogue {
    fn name(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Added { .. } => "added",
            Self::Activated(_) => "activated",
            Self::Gated(_) => "gated",
            Self::Logits { .. } => "logits",
        }
    }

    fn activation(self) -> Option<Activation> {
        match self {
            Self::Activated(activation) | Self::Gated(activation) => Some(activation),
            Self::Stored | Self::Added { .. } | Self::Logits { .. } => None,
        }
    }
}

/// The kernels of products with matrices of one format and one epilogue.
#[derive(Debug, Clone)]
pub struct ProductKernels {
    epilogue: Epilogue,
    few: Vec<Kernel>,
    tile: Kernel,
}

/// One product.
#[derive(Debug, Clone, Copy)]
pub struct ProductStep<'a> {
    /// What is multiplied, `[tokens, stride]`, zero from the matrix's columns on.
    pub input: &'a Buffer,
    /// Its stride.
    pub input_stride: usize,
    /// What is written, `[tokens, stride]`.
    pub output: &'a Buffer,
    /// Its stride.
    pub output_stride: usize,
    /// Where the rows of the matrix begin in it.
    pub output_column: usize,
    /// Rows of activations.
    pub tokens: usize,
}

#[derive(Serialize)]
struct Values {
    format: &'static str,
    inner_blocks: usize,
    row_words: usize,
    panel_words: usize,
    blocks: &'static str,
    tokens: usize,
    groups_x: usize,
    epilogue: &'static str,
    activation: &'static str,
    has_bias: bool,
    has_softcap: bool,
}

impl ProductKernels {
    /// Compiles them.
    ///
    /// Fails if the driver refuses one.
    pub fn new(gpu: &mut Gpu, format: Format, has_bias: bool, epilogue: Epilogue) -> Result<Self> {
        let values = |tokens| Values {
            format: format.name(),
            inner_blocks: format.inner_blocks(),
            row_words: format.row_words(),
            panel_words: format.panel_words(),
            blocks: "parameters.blocks",
            tokens,
            groups_x: GROUPS_X,
            epilogue: epilogue.name(),
            activation: epilogue.activation().map_or("none", Activation::name),
            has_bias,
            has_softcap: matches!(epilogue, Epilogue::Logits { cap: Some(_), .. }),
        };
        let written = 1 << 3;
        let few = FEW_ROWS
            .map(|tokens| gpu.kernel("product of few rows", render("product_rows", values(tokens)), 4, written));
        let tile = gpu.kernel("product of many rows", render("product_tile", values(TILE)), 4, written)?;
        Ok(Self { epilogue, few: few.into_iter().collect::<Result<_>>()?, tile })
    }

    /// Records a product with a matrix of the format: one dispatch for each of its parts.
    pub fn record(&self, gpu: &mut Gpu, matrix: &Matrix, step: ProductStep<'_>) {
        let ranges = matrix.ranges();
        let numbers = self.epilogue.activation().map_or([0.0; 3], Activation::numbers);
        let (factor, scaling, cap) = match self.epilogue {
            Epilogue::Added { factor } => (factor, 1.0, 0.0),
            Epilogue::Logits { scaling, cap } => (1.0, scaling, cap.unwrap_or(0.0)),
            _ => (1.0, 1.0, 0.0),
        };
        let paired = matches!(self.epilogue, Epilogue::Gated(_));
        let rows = if paired { matrix.rows / 2 } else { matrix.rows };
        for part in &matrix.parts {
            let panels = part.panels.len();
            let parameters: [u32; PARAMETERS] = [
                step.tokens as u32,
                (step.input_stride / 4) as u32,
                step.output_stride as u32,
                step.output_column as u32,
                ranges.blocks as u32,
                ranges.length as u32,
                part.panels.start as u32,
                panels as u32,
                rows as u32,
                f32::to_bits(factor),
                f32::to_bits(numbers[0]),
                f32::to_bits(numbers[1]),
                f32::to_bits(numbers[2]),
                f32::to_bits(scaling),
                f32::to_bits(cap),
            ];
            let buffers = [&part.words, step.input, matrix.bias.as_ref().unwrap_or(step.input), step.output];
            let (kernel, groups, passes) = self.choose(step.tokens, panels);
            gpu.dispatch(kernel, &buffers, &parameters, groups);
            gpu.count_model_bytes(part.words.bytes() * passes as u64);
        }
    }

    /// Whether all kernels of this device's driver add products in the same order and round them alike, so that a row has the same
    /// bits however many others there are. Measured with a matrix of f32.
    ///
    /// Fails if the device does.
    pub fn agree(gpu: &mut Gpu) -> Result<bool> {
        const SHAPE: [usize; 2] = [64, 320];
        const TOKENS: usize = 16;
        // Values whose sums depend on every rounding.
        let value =
            |index: usize| ((index * 7919 % 10007) as f32 / 10007.0 - 0.5) * 1.37_f32.powi((index % 23) as i32 - 11);
        let matrix = Matrix::load(gpu, "a matrix", Format::or_f32(Dtype::F32), SHAPE, |rows| {
            let row = |row: usize| {
                let values = (0..SHAPE[1]).map(|column| value(row * SHAPE[1] + column));
                Cow::Owned(values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>())
            };
            Ok::<_, GpuError>(rows.map(row).collect())
        })?;
        let kernels = Self::new(gpu, matrix.format, false, Epilogue::Stored)?;
        let input = gpu.buffer("activations", TOKENS * SHAPE[1] * 4)?;
        let values: Vec<f32> = (0..TOKENS * SHAPE[1]).map(|index| value(index + 5)).collect();
        gpu.write_f32(&input, 0, &values);
        let output = gpu.buffer("products", TOKENS * SHAPE[0] * 4)?;
        let mut first: Option<Vec<u32>> = None;
        let mut agree = true;
        for tokens in FEW_ROWS.into_iter().chain([TOKENS]) {
            let (input_stride, output_stride) = (SHAPE[1], SHAPE[0]);
            let step =
                ProductStep { input: &input, input_stride, output: &output, output_stride, output_column: 0, tokens };
            kernels.record(gpu, &matrix, step);
            let row = gpu.read(&[(&output, 0..SHAPE[0])])?;
            agree &= first.get_or_insert_with(|| row.clone()) == &row;
        }
        gpu.forget_buffers();
        Ok(agree)
    }

    /// The kernel for some rows of activations, its workgroups, and how often it reads the matrix: once for each number of rows that it
    /// multiplies together.
    fn choose(&self, tokens: usize, panels: usize) -> (&Kernel, [u32; 3], usize) {
        if tokens >= MANY_ROWS {
            let passes = tokens.div_ceil(TILE);
            return (&self.tile, [panels.div_ceil(TILE / PANEL) as u32, passes as u32, 1], passes);
        }
        let fitting = FEW_ROWS.iter().position(|rows| *rows >= tokens).unwrap_or(FEW_ROWS.len() - 1);
        let passes = tokens.div_ceil(FEW_ROWS[fitting]);
        let groups = [panels.min(GROUPS_X) as u32, panels.div_ceil(GROUPS_X) as u32, passes as u32];
        (&self.few[fitting], groups, passes)
    }
}

/// Blocks that rows of activations are read in must be whole.
const _: () = assert!(BLOCK.is_multiple_of(4));
