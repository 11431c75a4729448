//! Norms of the residual stream against their plain definition.

use crate::support::{
    assert_close, assert_zero, bits, download, download_pad, gpu, random, statistics, upload, upload_padded, values,
    words,
};
use braidinfer_gpu::kernels::{Add, NormKernel, NormStep};
use braidinfer_gpu::{Buffer, Gpu};
use braidinfer_model::spec::{NormKind, NormSpec};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const fn spec(kind: NormKind, bias: bool) -> NormSpec {
    // Two norms of one kernel differ in this, too.
    NormSpec { kind, eps: if bias { 1e-5 } else { 1e-6 }, weight_offset: 0.0, bias }
}

const NORMS: [NormSpec; 4] =
    [spec(NormKind::Rms, false), spec(NormKind::Rms, true), spec(NormKind::Layer, false), spec(NormKind::Layer, true)];

/// The definition of a norm, with the weight and then the bias in one slice.
fn normalize(x: &[f64], spec: NormSpec, weights: &[f32]) -> Vec<f64> {
    let (mean, inverse) = statistics(x, spec);
    let bias = |index: usize| if spec.bias { f64::from(weights[x.len() + index]) } else { 0.0 };
    let normed = |(index, x): (usize, &f64)| (x - mean) * inverse * f64::from(weights[index]) + bias(index);
    x.iter().enumerate().map(normed).collect()
}

/// What a kernel reads.
#[derive(Clone)]
struct Inputs {
    width: usize,
    stream: Vec<f32>,
    branch: Vec<f32>,
    branch_norm: Vec<f32>,
    norm: Vec<f32>,
    factor: f32,
    stream_factor: f32,
}

impl Inputs {
    fn random(rng: &mut StdRng, width: usize, tokens: usize) -> Self {
        Self {
            width,
            stream: random(rng, tokens * width, -3.0..3.0),
            branch: random(rng, tokens * width, -3.0..3.0),
            branch_norm: random(rng, 2 * width, -1.5..1.5),
            norm: random(rng, 2 * width, -1.5..1.5),
            factor: 0.75,
            stream_factor: 1.25,
        }
    }

    fn tokens(&self) -> usize {
        self.stream.len() / self.width
    }

    /// Those of some tokens.
    fn part(&self, tokens: std::ops::Range<usize>) -> Self {
        let values = tokens.start * self.width..tokens.end * self.width;
        let (stream, branch) = (self.stream[values.clone()].to_vec(), self.branch[values].to_vec());
        Self { stream, branch, ..self.clone() }
    }

    /// The definition: the stream, and the output, which is zeros without a norm.
    fn expected(&self, add: Add, norm: Option<NormSpec>) -> (Vec<f32>, Vec<f32>) {
        let (mut streams, mut outputs) = (Vec::new(), Vec::new());
        for (stream, branch) in self.stream.chunks_exact(self.width).zip(self.branch.chunks_exact(self.width)) {
            let mut stream = wide(stream);
            let added = match add {
                Add::Nothing => None,
                Add::Branch => Some(wide(branch)),
                Add::Normed(spec) => Some(normalize(&wide(branch), spec, &self.branch_norm)),
            };
            for (value, added) in stream.iter_mut().zip(added.into_iter().flatten()) {
                *value = (*value + f64::from(self.factor) * added) * f64::from(self.stream_factor);
            }
            let output = norm.map_or(vec![0.0; self.width], |spec| normalize(&stream, spec, &self.norm));
            outputs.extend(output.into_iter().map(|value| value as f32));
            streams.extend(stream.into_iter().map(|value| value as f32));
        }
        (streams, outputs)
    }

    fn run(&self, gpu: &mut Gpu, add: Add, norm: Option<NormSpec>) -> Results {
        let kernel = NormKernel::new(gpu, add, norm, false).unwrap();
        let stream = upload(gpu, &self.stream, self.width);
        let branch = upload(gpu, &self.branch, self.width);
        self.record(gpu, &kernel, [&stream, &branch], None)
    }

    /// Runs a kernel, of these rows if some are listed.
    fn record(
        &self,
        gpu: &mut Gpu,
        kernel: &NormKernel,
        [stream, branch]: [&Buffer; 2],
        rows: Option<(&Buffer, usize, usize)>,
    ) -> Results {
        let (branch_norm, norm) = (values(gpu, &self.branch_norm), values(gpu, &self.norm));
        let nothing = values(gpu, &[]);
        let (list, at, tokens) = rows.unwrap_or((&nothing, 0, self.tokens()));
        let output = upload(gpu, &vec![0.0; tokens * self.width], self.width);
        kernel.record(
            gpu,
            NormStep {
                stream,
                branch,
                branch_norm: &branch_norm,
                norm: &norm,
                output: &output,
                step: (list, at),
                width: self.width,
                tokens,
                factor: self.factor,
                stream_factor: self.stream_factor,
            },
        );
        let found = Results {
            stream: download(gpu, stream, self.tokens(), self.width),
            output: download(gpu, &output, tokens, self.width),
            pads: [
                download_pad(gpu, stream, self.tokens(), self.width),
                download_pad(gpu, &output, tokens, self.width),
            ],
        };
        gpu.forget_buffers();
        found
    }
}

/// What a kernel writes.
struct Results {
    stream: Vec<f32>,
    output: Vec<f32>,
    /// What is beyond the width of both.
    pads: [Vec<f32>; 2],
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

/// Every kernel that there is, but the one that would do nothing.
fn kernels() -> Vec<(Add, Option<NormSpec>)> {
    let adds = [Add::Nothing, Add::Branch].into_iter().chain(NORMS.map(Add::Normed));
    let all = adds.flat_map(|add| NORMS.map(Some).into_iter().chain([None]).map(move |norm| (add, norm)));
    all.filter(|kernel| *kernel != (Add::Nothing, None)).collect()
}

#[test]
fn every_sum_and_norm_is_that_of_the_definition() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(10);
    for (width, tokens) in [(1, 4), (6, 3), (33, 5), (100, 1), (576, 3), (2048, 2)] {
        let inputs = Inputs::random(&mut rng, width, tokens);
        for (add, norm) in kernels() {
            let what = format!("{add:?}, {norm:?}, {width} wide");
            let found = inputs.run(&mut gpu, add, norm);
            let (stream, output) = inputs.expected(add, norm);
            assert_close(&found.stream, &stream, 2e-6, &what);
            // A sum of both signs may lose the digits that the norm then makes visible.
            assert_close(&found.output, &output, 1e-5, &what);
            found.pads.iter().for_each(|pad| assert_zero(pad, &what));
        }
    }
}

#[test]
fn a_norm_alone_leaves_the_stream_as_it_is_and_ignores_factors() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(11);
    let inputs = Inputs { factor: f32::NAN, stream_factor: f32::NAN, ..Inputs::random(&mut rng, 75, 3) };
    for norm in NORMS {
        let found = inputs.run(&mut gpu, Add::Nothing, Some(norm));
        assert_eq!(bits(&found.stream), bits(&inputs.stream), "{norm:?}");
        assert_close(&found.output, &inputs.expected(Add::Nothing, Some(norm)).1, 5e-6, &format!("{norm:?}"));
    }
}

#[test]
fn factors_of_zero_and_one_are_exact() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(12);
    let inputs = Inputs { factor: 0.0, stream_factor: 1.0, ..Inputs::random(&mut rng, 45, 2) };
    assert_eq!(inputs.run(&mut gpu, Add::Branch, None).stream, inputs.stream);
    let plain = Inputs { factor: 1.0, ..inputs };
    let sums: Vec<f32> = plain.stream.iter().zip(&plain.branch).map(|(stream, branch)| stream + branch).collect();
    assert_eq!(bits(&plain.run(&mut gpu, Add::Branch, None).stream), bits(&sums));
}

#[test]
fn norms_are_right_where_values_are_extreme() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(13);
    for width in [6, 100, 2048] {
        let scaled = |rng: &mut StdRng, scale: f32| -> Vec<f32> {
            random(rng, width, -1.0..1.0).into_iter().map(|value| value * scale).collect()
        };
        // Squares near the largest value, and far below what is added to their mean; a single value; nothing at all.
        let mut stream = [scaled(&mut rng, 1e15), scaled(&mut rng, 1e-12)].concat();
        stream.extend((0..width).map(|index| if index == width / 2 { -1e18 } else { 0.0 }));
        stream.extend(vec![0.0; width]);
        let inputs = Inputs { stream, ..Inputs::random(&mut rng, width, 4) };
        for norm in NORMS {
            let (_, expected) = inputs.expected(Add::Nothing, Some(norm));
            let found = inputs.run(&mut gpu, Add::Nothing, Some(norm));
            assert_close(&found.output, &expected, 5e-6, &format!("{norm:?}, {width} wide"));
            let branch = Inputs { branch: inputs.stream.clone(), stream: vec![0.0; 4 * width], ..inputs.clone() };
            let (expected, _) = branch.expected(Add::Normed(norm), None);
            let found = branch.run(&mut gpu, Add::Normed(norm), None);
            assert_close(&found.stream, &expected, 5e-6, &format!("added {norm:?}, {width} wide"));
        }
    }
}

#[test]
fn a_layer_norm_keeps_the_digits_of_small_differences() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(14);
    for width in [33, 576, 2048] {
        let inputs =
            Inputs { stream: random(&mut rng, 3 * width, 999.0..1001.0), ..Inputs::random(&mut rng, width, 3) };
        for norm in [spec(NormKind::Layer, false), spec(NormKind::Layer, true)] {
            let (_, expected) = inputs.expected(Add::Nothing, Some(norm));
            let found = inputs.run(&mut gpu, Add::Nothing, Some(norm));
            // The mean has an error in the seventh digit, and differences are a thousandth of it. From the mean of squares, which
            // are a million times as large as their variance, no digit would be right.
            assert_close(&found.output, &expected, 5e-4, &format!("{norm:?}, {width} wide"));
        }
    }
}

#[test]
fn listed_rows_are_normed_in_the_order_of_the_list() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(15);
    for (width, tokens, listed) in [(1, 3, 2), (33, 20, 7), (100, 9, 9), (576, 5, 1)] {
        let inputs = Inputs::random(&mut rng, width, tokens);
        let mut rows: Vec<u32> = (0..listed).map(|_| rng.random_range(0..tokens as u32)).collect();
        // One is asked for twice, where there is more than one.
        rows[listed - 1] = rows[0];
        let at = 5;
        let list = words(&mut gpu, &[vec![u32::MAX; at], rows.clone(), vec![u32::MAX; 3]].concat());
        // Norms of a stream add nothing, so none of its rows may change. What is beyond their width may not be read.
        let stream = upload_padded(&mut gpu, &inputs.stream, width, f32::NAN);
        for norm in NORMS {
            let what = format!("{norm:?}, {width} wide");
            let kernel = NormKernel::new(&mut gpu, Add::Nothing, Some(norm), true).unwrap();
            let branch = values(&mut gpu, &[]);
            let found = inputs.record(&mut gpu, &kernel, [&stream, &branch], Some((&list, at, listed)));
            let all = inputs.run(&mut gpu, Add::Nothing, Some(norm)).output;
            let expected: Vec<f32> =
                rows.iter().flat_map(|row| all[*row as usize * width..][..width].to_vec()).collect();
            assert_eq!(bits(&found.output), bits(&expected), "{what}");
            assert_eq!(bits(&found.stream), bits(&inputs.stream), "{what}");
            assert_zero(&found.pads[1], &what);
        }
    }
}

#[test]
fn the_bits_of_a_token_do_not_depend_on_the_others() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(16);
    for width in [33, 2048] {
        let inputs = Inputs::random(&mut rng, width, 11);
        for (add, norm) in kernels() {
            let all = inputs.run(&mut gpu, add, norm);
            for tokens in [0..1, 4..5, 3..9, 8..11] {
                let found = inputs.part(tokens.clone()).run(&mut gpu, add, norm);
                let values = tokens.start * width..tokens.end * width;
                let what = format!("{add:?}, {norm:?}, {tokens:?}");
                assert_eq!(bits(&found.stream), bits(&all.stream[values.clone()]), "{what}");
                assert_eq!(bits(&found.output), bits(&all.output[values]), "{what}");
            }
        }
    }
}

#[test]
fn what_is_not_a_number_stays_with_its_token() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(17);
    let width = 100;
    let inputs = Inputs::random(&mut rng, width, 3);
    for hostile in [f32::NAN, f32::INFINITY, f32::MAX] {
        let mut changed = inputs.clone();
        (changed.stream[width + 7], changed.branch[width + 90]) = (hostile, hostile);
        for (add, norm) in kernels() {
            let (found, expected) = (changed.run(&mut gpu, add, norm), inputs.run(&mut gpu, add, norm));
            for others in [0..width, 2 * width..3 * width] {
                let what = format!("{hostile}, {add:?}, {norm:?}");
                assert_eq!(bits(&found.stream[others.clone()]), bits(&expected.stream[others.clone()]), "{what}");
                assert_eq!(bits(&found.output[others.clone()]), bits(&expected.output[others]), "{what}");
            }
            let found = if norm.is_some() { &found.output } else { &found.stream };
            let found = &found[width..2 * width];
            assert!(!hostile.is_nan() || found.iter().any(|value| value.is_nan()), "{add:?}, {norm:?}");
        }
    }
}
