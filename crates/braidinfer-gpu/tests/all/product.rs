//! Products against their plain definition.

use std::borrow::Cow;

use crate::support::{assert_close, download, gpu, upload};
use braidinfer_gpu::kernels::{Activation, Epilogue, ProductKernels, ProductStep};
use braidinfer_gpu::{Buffer, Format, Gpu, GpuError, Matrix, stride};
use braidinfer_model::Dtype;
use braidinfer_model::quantization::{dequantize, quantize};
use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const DTYPES: [Dtype; 16] = [
    Dtype::F32,
    Dtype::F16,
    Dtype::BF16,
    Dtype::Q8_0,
    Dtype::Q4_0,
    Dtype::Iq4Nl,
    Dtype::Mxfp4,
    Dtype::Q4_1,
    Dtype::Q5_0,
    Dtype::Q5_1,
    Dtype::Q2K,
    Dtype::Q3K,
    Dtype::Iq4Xs,
    Dtype::Q4K,
    Dtype::Q5K,
    Dtype::Q6K,
];

/// Random weights `[rows, columns]`: their bytes, row by row, and their exact values.
struct RandomWeights {
    bytes: Vec<Vec<u8>>,
    values: Vec<f32>,
}

impl RandomWeights {
    fn new(rng: &mut StdRng, dtype: Dtype, [rows, columns]: [usize; 2], scale: f32) -> Self {
        let (mut bytes, mut values) = (Vec::new(), Vec::new());
        for _ in 0..rows {
            let row: Vec<f32> = (0..columns).map(|_| rng.random_range(-scale..scale)).collect();
            let mut stored = Vec::new();
            match dtype {
                Dtype::F32 => row.iter().for_each(|value| stored.extend(value.to_le_bytes())),
                Dtype::F16 => row.iter().for_each(|value| stored.extend(f16::from_f32(*value).to_le_bytes())),
                Dtype::BF16 => row.iter().for_each(|value| stored.extend(bf16::from_f32(*value).to_le_bytes())),
                Dtype::Iq4Nl | Dtype::Iq4Xs | Dtype::Mxfp4 => stored = random_blocks(rng, dtype, columns),
                _ => quantize(dtype, &row, &mut stored).unwrap(),
            }
            let mut exact = vec![0.0; columns];
            match dtype {
                Dtype::F32 => exact = row,
                Dtype::F16 => exact = row.iter().map(|value| f16::from_f32(*value).to_f32()).collect(),
                Dtype::BF16 => exact = row.iter().map(|value| bf16::from_f32(*value).to_f32()).collect(),
                _ => dequantize(dtype, &stored, &mut exact),
            }
            bytes.push(stored);
            values.extend(exact);
        }
        Self { bytes, values }
    }

    fn load(&self, gpu: &mut Gpu, dtype: Dtype, columns: usize) -> Matrix {
        let rows = self.bytes.len();
        Matrix::load(gpu, "weights", Format::of(dtype).unwrap(), [rows, columns], |rows| {
            Ok::<_, GpuError>(self.bytes[rows].iter().map(|row| Cow::Owned(row.clone())).collect())
        })
        .unwrap()
    }
}

/// Blocks of a type that is not written, with any codes and small scales.
fn random_blocks(rng: &mut StdRng, dtype: Dtype, columns: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..columns / dtype.block_len() {
        let start = bytes.len();
        match dtype {
            Dtype::Mxfp4 => bytes.push(rng.random_range(118..128)),
            // Its scale is multiplied by a second one, up to 32.
            Dtype::Iq4Xs => bytes.extend(f16::from_f32(rng.random_range(-0.0003..0.0003)).to_le_bytes()),
            _ => bytes.extend(f16::from_f32(rng.random_range(-0.01..0.01)).to_le_bytes()),
        }
        bytes.extend((bytes.len() - start..dtype.block_size()).map(|_| rng.random::<u8>()));
    }
    bytes
}

/// The definition: products of a row of activations with all rows of weights, summed in f64.
fn product(weights: &[f32], x: &[f32], columns: usize) -> Vec<f32> {
    let row = |weights: &[f32]| weights.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>() as f32;
    weights.chunks_exact(columns).map(row).collect()
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

struct Run<'a> {
    x: &'a [f32],
    tokens: usize,
    width: usize,
}

impl Run<'_> {
    fn step<'a>(&self, matrix: &Matrix, x: &'a Buffer, output: &'a Buffer) -> ProductStep<'a> {
        ProductStep {
            input: x,
            input_stride: stride(matrix.columns),
            output,
            output_stride: stride(self.width),
            output_column: 0,
            tokens: self.tokens,
        }
    }

    fn of(&self, gpu: &mut Gpu, matrix: &Matrix, epilogue: Epilogue, before: f32) -> Vec<f32> {
        let kernels = ProductKernels::new(gpu, matrix.format, matrix.bias.is_some(), epilogue).unwrap();
        let x = upload(gpu, self.x, matrix.columns);
        let output = upload(gpu, &vec![before; self.tokens * self.width], self.width);
        kernels.record(gpu, matrix, self.step(matrix, &x, &output));
        let found = download(gpu, &output, self.tokens, self.width);
        gpu.forget_buffers();
        found
    }
}

#[test]
fn products_are_those_of_the_definition_for_every_format_and_number_of_rows() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(1);
    for dtype in DTYPES {
        for (rows, columns, tokens) in [(70, 512, 1), (33, 256, 3), (32, 768, 8), (97, 512, 9), (5, 256, 70)] {
            let weights = RandomWeights::new(&mut rng, dtype, [rows, columns], 0.5);
            let x: Vec<f32> = (0..tokens * columns).map(|_| rng.random_range(-1.0..1.0)).collect();
            let matrix = weights.load(&mut gpu, dtype, columns);
            let found = Run { x: &x, tokens, width: rows }.of(&mut gpu, &matrix, Epilogue::Stored, 7.0);
            let expected: Vec<f32> =
                x.chunks_exact(columns).flat_map(|x| product(&weights.values, x, columns)).collect();
            assert_close(&found, &expected, 2e-5, &format!("{dtype} {rows}x{columns}, {tokens} tokens"));
        }
    }
}

#[test]
fn the_bits_of_a_row_do_not_depend_on_the_others() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(2);
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::Q4_0, Dtype::Q6K] {
        let (rows, columns, tokens) = (77, 1280, 67);
        let weights = RandomWeights::new(&mut rng, dtype, [rows, columns], 0.5);
        let x: Vec<f32> = (0..tokens * columns).map(|_| rng.random_range(-1.0..1.0)).collect();
        let matrix = weights.load(&mut gpu, dtype, columns);
        let all = Run { x: &x, tokens, width: rows }.of(&mut gpu, &matrix, Epilogue::Stored, 0.0);
        for count in [1, 2, 3, 5, 8, 9, 20] {
            for first in [0, 11, tokens - count] {
                let part = &x[first * columns..(first + count) * columns];
                let found = Run { x: part, tokens: count, width: rows }.of(&mut gpu, &matrix, Epilogue::Stored, 0.0);
                let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                assert_eq!(
                    bits(&found),
                    bits(&all[first * rows..(first + count) * rows]),
                    "{dtype}, {count} from {first}"
                );
            }
        }
    }
}

#[test]
fn all_kernels_of_products_agree() {
    let Some(mut gpu) = gpu() else { return };
    assert!(ProductKernels::agree(&mut gpu).unwrap());
}

#[test]
fn columns_may_end_within_a_block_and_rows_may_be_biased() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(3);
    for (rows, columns, tokens) in [(3, 6, 1), (40, 50, 2), (65, 33, 12)] {
        let weights = RandomWeights::new(&mut rng, Dtype::F32, [rows, columns], 1.0);
        let bias: Vec<f32> = (0..rows).map(|_| rng.random_range(-2.0..2.0)).collect();
        let x: Vec<f32> = (0..tokens * columns).map(|_| rng.random_range(-1.0..1.0)).collect();
        let mut matrix = weights.load(&mut gpu, Dtype::F32, columns);
        matrix.set_bias(&mut gpu, &bias).unwrap();
        let run = Run { x: &x, tokens, width: rows };
        let sums = x.chunks_exact(columns).flat_map(|x| product(&weights.values, x, columns));
        let expected: Vec<f32> = sums.zip(bias.iter().cycle()).map(|(sum, bias)| sum + bias).collect();
        assert_close(&run.of(&mut gpu, &matrix, Epilogue::Stored, 0.0), &expected, 1e-5, "biased");
        let added: Vec<f32> = expected.iter().map(|value| 3.0 + 0.5 * value).collect();
        assert_close(&run.of(&mut gpu, &matrix, Epilogue::Added { factor: 0.5 }, 3.0), &added, 1e-5, "added");
        let capped: Vec<f32> = expected.iter().map(|value| 2.0 * (value / 4.0 / 2.0).tanh()).collect();
        let logits = Epilogue::Logits { scaling: 4.0, cap: Some(2.0) };
        assert_close(&run.of(&mut gpu, &matrix, logits, 0.0), &capped, 1e-5, "capped");
    }
}

#[test]
fn pairs_of_rows_are_gated() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(4);
    for (rows, columns, tokens) in [(2, 64, 1), (70, 96, 7), (66, 32, 30)] {
        let weights = RandomWeights::new(&mut rng, Dtype::F32, [rows, columns], 1.0);
        let x: Vec<f32> = (0..tokens * columns).map(|_| rng.random_range(-2.0..2.0)).collect();
        let matrix = weights.load(&mut gpu, Dtype::F32, columns);
        let gated = Epilogue::Gated(Activation::Silu { factor: 1.0 });
        let found = Run { x: &x, tokens, width: rows / 2 }.of(&mut gpu, &matrix, gated, 0.0);
        let sums: Vec<f32> = x.chunks_exact(columns).flat_map(|x| product(&weights.values, x, columns)).collect();
        let expected: Vec<f32> = sums.chunks_exact(2).map(|pair| silu(pair[0]) * pair[1]).collect();
        assert_close(&found, &expected, 2e-5, "gated");
    }
}

#[test]
fn activation_functions_are_those_of_their_definitions_also_far_out() {
    let Some(mut gpu) = gpu() else { return };
    let x: Vec<f32> = (-400..400).map(|step| step as f32 * 0.25).chain([-1e-6, 1e-6, -0.29, 0.31, 3e4, -3e4]).collect();
    let one = RandomWeights { bytes: vec![1.0_f32.to_le_bytes().to_vec()], values: vec![1.0] };
    let matrix = one.load(&mut gpu, Dtype::F32, 1);
    let xielu = Activation::Xielu { positive: 0.8, negative: 1.1, beta: 0.5 };
    let erf = |x: f64| {
        // The series near zero, and beyond 5 the limit.
        if x.abs() > 5.0 {
            return x.signum();
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    };
    let cases: [(Activation, &dyn Fn(f64) -> f64); 7] = [
        (Activation::Silu { factor: 1.0 }, &|x| x / (1.0 + (-x).exp())),
        (Activation::Silu { factor: 0.6 }, &|x| 0.6 * x / (1.0 + (-0.6 * x).exp())),
        (Activation::GeluTanh, &|x| {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }),
        (Activation::GeluErf, &|x| 0.5 * x * (1.0 + erf(x / 2.0_f64.sqrt()))),
        (Activation::Relu, &|x| x.max(0.0)),
        (Activation::Relu2, &|x| x.max(0.0).powi(2)),
        (xielu, &|x| if x > 0.0 { 0.8 * x * x + 0.5 * x } else { 1.1 * (x.exp_m1() - x) + 0.5 * x }),
    ];
    for (activation, definition) in cases {
        let run = Run { x: &x, tokens: x.len(), width: 1 };
        let found = run.of(&mut gpu, &matrix, Epilogue::Activated(activation), 0.0);
        let expected: Vec<f32> = x.iter().map(|x| definition(f64::from(*x)) as f32).collect();
        assert_close(&found, &expected, 3e-6, &format!("{activation:?}"));
    }
}

#[test]
fn halves_are_exact_also_where_they_are_denormal() {
    let Some(mut gpu) = gpu() else { return };
    let patterns: Vec<u16> = (0..=u16::MAX).filter(|bits| bits & 0x7c00 != 0x7c00).collect();
    let bytes: Vec<Vec<u8>> = patterns.iter().map(|bits| bits.to_le_bytes().to_vec()).collect();
    let weights = RandomWeights { bytes, values: Vec::new() };
    let matrix = weights.load(&mut gpu, Dtype::F16, 1);
    let found = Run { x: &[1.0], tokens: 1, width: patterns.len() }.of(&mut gpu, &matrix, Epilogue::Stored, 0.0);
    for (bits, found) in patterns.iter().zip(found) {
        assert_eq!(found, f16::from_bits(*bits).to_f32(), "{bits:#x}");
    }
}
