//! The executor on a GPU, against `transformers` and against itself, for every fixture whose layers it has kernels for.

#![cfg(feature = "gpu")]

use crate::support::{
    BLOCKS_PER_SEQUENCE, FUSED_BLOCK_SIZE, Fixture, Fused, adapter, argmax, bits, check_greedy, distance, feed,
    in_company, kl, long_context, quantized, slice,
};
use braidinfer::Error;
use braidinfer::executor::fused::FusedOptions;
use braidinfer::executor::gpu::{self, GpuLayers, GpuOptions};
use braidinfer::executor::standard::ComputeDtype;
use braidinfer::executor::{Batch, Decoder, KvCacheConfig, KvDtype, NoProbe};
use braidinfer::kernels::{Isa, NumericLevel};
use braidinfer::model::quantization::FileType;
use braidinfer::model::spec::Mixer;
use braidinfer::model::{DecoderSpec, Description, Weights};

/// Largest allowed distance of a logit from `transformers`.
const TOLERANCE: f32 = 5e-4;
/// Largest allowed divergence from `transformers` on the model that amplifies every rounding.
const EXTREME_KL: f64 = 1e-5;

const WHOLE: usize = usize::MAX >> 1;

/// For one adapter, or for several.
fn options(adapters: &[(usize, GpuLayers)], kv_cache: KvCacheConfig) -> GpuOptions {
    let isa = Isa::detect().expect("there are kernels");
    let fused = FusedOptions { coarsest: NumericLevel::F32, kv_cache, threads: 2, isa };
    GpuOptions { adapters: adapters.to_vec(), fused, memory: None, compare_with_cpu: false }
}

/// A decoder with room for 16 sequences of 128 tokens, over weights that `change` may replace; `None` if a layer has a part that
/// there are no kernels for.
fn open_with(
    fixture: &Fixture,
    adapter: usize,
    dtype: KvDtype,
    change: impl Fn(&DecoderSpec, &mut Weights),
) -> Option<Decoder<'static>> {
    let Description { spec, names } = fixture.description();
    let mut weights = Weights::open(&fixture.source, &spec, &names).expect("the weights are there");
    change(&spec, &mut weights);
    let kv_cache = KvCacheConfig { block_size: FUSED_BLOCK_SIZE, num_blocks: 16 * BLOCKS_PER_SEQUENCE, dtype };
    match gpu::load(spec, &weights, &options(&[(adapter, GpuLayers::Fitting)], kv_cache), &|_, _| {}) {
        Ok((decoder, placement)) => {
            assert_eq!((placement.on_cpu, placement.in_words()), (0, None), "{}", fixture.name);
            Some(decoder)
        }
        Err(Error::Unsupported(_)) => None,
        Err(error) => panic!("{}: {error}", fixture.name),
    }
}

fn open(fixture: &Fixture, adapter: usize) -> Option<Decoder<'static>> {
    open_with(fixture, adapter, KvDtype::F32, |_, _| {})
}

#[test]
fn logits_and_greedy_tokens_are_those_of_transformers() {
    let Some(adapter) = adapter() else { return };
    let mut tried = Vec::new();
    for fixture in Fixture::all() {
        let Some(mut decoder) = open(&fixture, adapter) else { continue };
        for (prompt, expected) in fixture.prompts.iter().enumerate() {
            let rows = feed(&mut decoder, prompt, &expected.ids, WHOLE);
            for (position, row, expected) in fixture.beside_expected(prompt, &rows) {
                let what = format!("{} prompt {prompt} position {position}", fixture.name);
                if fixture.name == "qwen3-extreme" {
                    let divergence = kl(expected, row);
                    assert!(divergence <= EXTREME_KL, "{what}: KL {divergence:e}");
                } else {
                    let distance = distance(row, expected);
                    assert!(distance <= TOLERANCE, "{what}: logits differ by {distance:e}");
                }
            }
        }
        check_greedy(&mut decoder, &fixture);
        tried.push(fixture.name);
    }
    assert!(tried.len() >= 40, "kernels for {} fixtures only: {tried:?}", tried.len());
}

/// Types of keys and values, and of weights, whose bits are compared: each fixture has one of them.
const VARIANTS: [(KvDtype, Option<FileType>); 4] = [
    (KvDtype::F16, Some(FileType::BF16)),
    (KvDtype::F16, Some(FileType::Q8_0)),
    (KvDtype::F32, None),
    (KvDtype::F16, Some(FileType::Q4KM)),
];

#[test]
fn neither_chunks_nor_company_change_a_bit() {
    let Some(adapter) = adapter() else { return };
    let mut tried = 0;
    for (index, fixture) in Fixture::all().into_iter().enumerate() {
        let (dtype, file_type) = VARIANTS[index % VARIANTS.len()];
        let Some(mut decoder) = open_with(&fixture, adapter, dtype, quantized(file_type)) else { continue };
        let what = format!("{} {file_type:?}", fixture.name);
        let mut whole = Vec::new();
        for (prompt, expected) in fixture.prompts.iter().enumerate() {
            let rows = bits(&feed(&mut decoder, prompt, &expected.ids, WHOLE));
            // Token by token takes a program long.
            let chunk = if prompt == 0 { 1 } else { 11 };
            let same = bits(&feed(&mut decoder, prompt, &expected.ids, chunk)) == rows;
            assert!(same, "{what} prompt {prompt}: chunks of {chunk}");
            whole.push(rows);
        }
        in_company(&mut decoder, &fixture, |prompt, position, row| {
            let same = bits(&[row.to_vec()]) == whole[prompt][position..=position];
            assert!(same, "{what} prompt {prompt} position {position} in company");
        });
        tried += 1;
    }
    assert!(tried >= 40, "kernels for {tried} fixtures only");
}

#[test]
fn quantized_weights_have_their_exact_values() {
    let Some(adapter) = adapter() else { return };
    for name in ["llama", "gemma3", "qwen2"] {
        let fixture = Fixture::open(name);
        for file_type in [
            FileType::F16,
            FileType::BF16,
            FileType::Q8_0,
            FileType::Q4_0,
            FileType::Q4KM,
            FileType::Q5KM,
            FileType::Q6K,
            FileType::Mxfp4,
            FileType::Q3KM,
        ] {
            let quantize = quantized(Some(file_type));
            let Some(mut decoder) = open_with(&fixture, adapter, KvDtype::F32, &quantize) else {
                panic!("no kernels for {name}")
            };
            let Description { spec, names } = fixture.description();
            let mut weights = Weights::open(&fixture.source, &spec, &names).expect("the weights are there");
            quantize(&spec, &mut weights);
            let mut standard = fixture.standard_over(spec, &weights, ComputeDtype::F32);
            let ids = &fixture.prompts[0].ids;
            let rows = feed(&mut standard, 0, ids, WHOLE);
            for (row, same) in rows.iter().zip(feed(&mut decoder, 0, ids, WHOLE)) {
                let distance = distance(row, &same);
                assert!(distance <= TOLERANCE, "{name} {file_type:?}: logits differ by {distance:e}");
            }
        }
    }
}

#[test]
fn long_contexts_are_those_of_standard_kernels_however_they_are_cut() {
    let Some(adapter) = adapter() else { return };
    // Beyond two of the spans that attention cuts long contexts into.
    let ids: Vec<u32> = (0..700_u32).map(|index| index * 7 % 50 + 1).collect();
    for name in ["llama", "qwen3-window", "gemma2"] {
        let fixture = Fixture::open(name);
        let Some(mut decoder) = open(&fixture, adapter) else { panic!("no kernels for {name}") };
        let rows = long_context(&mut decoder, &ids, 512);
        for chunk in [100, 37] {
            let same = bits(&long_context(&mut decoder, &ids, chunk)) == bits(&rows);
            assert!(same, "{name}: chunks of {chunk}");
        }
        let Description { spec, names } = fixture.description();
        let weights = Weights::open(&fixture.source, &spec, &names).expect("the weights are there");
        let mut fused = fixture.fused_over(Fused::exact(), spec, &weights);
        for (row, same) in long_context(&mut fused, &ids, 512).iter().zip(&rows) {
            let distance = distance(row, same);
            assert!(distance <= TOLERANCE, "{name}: logits differ by {distance:e}");
        }
    }
}

/// One sequence that decodes: a submission for the whole step, kernels by the number of layers, and nothing read back but the
/// likeliest token.
#[test]
fn a_step_is_one_submission_and_its_memory_does_not_grow() {
    let Some(adapter) = adapter() else { return };
    let fixture = Fixture::open("llama");
    let Some(mut decoder) = open(&fixture, adapter) else { panic!("no kernels for llama") };
    let layers = decoder.spec().layers.len() as u64;
    let device = |decoder: &Decoder<'_>| decoder.report().device.expect("it runs on a GPU");
    let mut before = device(&decoder);
    for step in 0..1000 {
        let position = step % 100;
        let mut batch = Batch::default();
        batch.push(&[7], slice(0, position, 1, position + 1), 0);
        batch.argmax_rows.push(0);
        let outputs = decoder.forward(&batch, &mut NoProbe).expect("the batch runs");
        assert_eq!((outputs.argmax.len(), outputs.logits.rows()), (1, 0));
        let after = device(&decoder);
        if step >= 100 {
            assert_eq!(after.submissions - before.submissions, 1);
            // Norms, projections, heads, spans and their sum, output projection, the network; at the end norm, head and argmax, and
            // what says that the answer is one.
            assert_eq!(after.dispatches - before.dispatches, 9 * layers + 4);
            assert_eq!(after.bytes_read - before.bytes_read, 8);
            assert_eq!(after.allocated_bytes, before.allocated_bytes, "step {step}");
        }
        before = after;
    }
}

/// For a token that is generated, kernels are to read the weights and what it sees of keys and values once, and hardly more than that.
#[test]
fn kernels_are_given_each_weight_once_for_a_token() {
    let Some(adapter) = adapter() else { return };
    for (name, file_type) in
        [("llama", None), ("gemma3", None), ("llama", Some(FileType::Q8_0)), ("qwen3-window", Some(FileType::BF16))]
    {
        let fixture = Fixture::open(name);
        let Some(mut decoder) = open_with(&fixture, adapter, KvDtype::F16, quantized(file_type)) else {
            panic!("no kernels for {name}")
        };
        let spec = decoder.spec().clone();
        for len in [1, 40, 100] {
            let before = decoder.report().device.expect("it runs on a GPU").model_bytes;
            let mut batch = Batch::default();
            batch.push(&[7], slice(0, len - 1, 1, len), 0);
            batch.argmax_rows.push(0);
            decoder.forward(&batch, &mut NoProbe).expect("the batch runs");
            let report = decoder.report();
            let read = report.device.expect("it runs on a GPU").model_bytes - before;
            let seen = |layer: usize| match spec.layers[layer].mixer {
                Mixer::Attention { sliding_window: Some(window), .. } => window.min(len),
                _ => len,
            };
            let kv: usize = (0..spec.layers.len()).map(|layer| 2 * 2 * spec.key_value_width(layer) * seen(layer)).sum();
            let needed = (report.weight_bytes + kv) as f64;
            let ratio = read as f64 / needed;
            assert!((0.95..=1.05).contains(&ratio), "{name} {file_type:?}, {len} tokens: {read} bytes for {needed}");
        }
    }
}

#[test]
fn the_likeliest_tokens_are_those_of_the_logits() {
    let Some(adapter) = adapter() else { return };
    let fixture = Fixture::open("gemma2");
    let Some(mut decoder) = open(&fixture, adapter) else { panic!("no kernels for gemma2") };
    let ids = &fixture.prompts[2].ids;
    let mut batch = Batch::default();
    batch.push(ids, slice(0, 0, ids.len(), ids.len()), ids.len());
    batch.argmax_rows = (0..ids.len()).rev().collect();
    batch.hidden_rows = vec![1, 0];
    let outputs = decoder.forward(&batch, &mut NoProbe).expect("the batch runs");
    for (index, row) in batch.argmax_rows.iter().enumerate() {
        let logits = outputs.logits.row(*row);
        assert_eq!(outputs.argmax[index].token, argmax(logits));
        assert_eq!(outputs.argmax[index].logit, logits[argmax(logits) as usize]);
    }
    // More than are computed at once, of either kind.
    let long: Vec<u32> = ids.iter().copied().cycle().take(140).collect();
    let mut many = Batch::default();
    many.push(&long, slice(1, 0, 140, 140), 1);
    many.argmax_rows = (0..139).collect();
    let outputs_of_many = decoder.forward(&many, &mut NoProbe).expect("the batch runs");
    assert_eq!((outputs_of_many.argmax.len(), outputs_of_many.logits.rows()), (139, 1));
    many.argmax_rows = vec![139];
    let last = decoder.forward(&many, &mut NoProbe).expect("the batch runs");
    assert_eq!(last.argmax[0].token, argmax(outputs_of_many.logits.row(0)));
    let mut standard = fixture.standard();
    let mut batch = Batch { argmax_rows: Vec::new(), ..batch };
    batch.sequences[0] = slice(0, 0, ids.len(), ids.len());
    let expected = standard.forward(&batch, &mut NoProbe).expect("the batch runs").hidden;
    for (found, expected) in outputs.hidden.iter().zip(&expected) {
        assert!(distance(found, expected) <= TOLERANCE);
    }
}

#[test]
fn a_device_that_is_lost_ends_a_step_with_an_error_that_names_it() {
    let Some(adapter) = adapter() else { return };
    let fixture = Fixture::open("llama");
    let Some(mut decoder) = open(&fixture, adapter) else { panic!("no kernels for llama") };
    let ids = &fixture.prompts[0].ids;
    feed(&mut decoder, 0, ids, WHOLE);
    assert!(decoder.give_up_device());
    let mut batch = Batch::default();
    batch.push(ids, slice(1, 0, ids.len(), ids.len()), 1);
    for _ in 0..3 {
        let error = decoder.forward(&batch, &mut NoProbe).expect_err("the device is gone");
        assert!(error.ends_device() && error.to_string().contains("was lost"), "{error}");
    }
}

/// Layers that do not fit run on another GPU or on the CPU; wherever the cuts are, the answers are the same.
#[test]
fn the_first_layers_may_run_elsewhere() {
    let Some(adapter) = adapter() else { return };
    for name in ["llama", "gemma3", "qwen3-window"] {
        let fixture = Fixture::open(name);
        let Description { spec, names } = fixture.description();
        let weights = Weights::open(&fixture.source, &spec, &names).expect("the weights are there");
        let count = spec.layers.len();
        let num_blocks = 16 * BLOCKS_PER_SEQUENCE;
        let kv_cache = KvCacheConfig { block_size: FUSED_BLOCK_SIZE, num_blocks, dtype: KvDtype::F32 };
        for layers in [&[0][..], &[1], &[count - 1], &[count + 5], &[1, 1], &[1, count], &[0, 1, 1]] {
            let shares: Vec<_> = layers.iter().map(|layers| (adapter, GpuLayers::Last(*layers))).collect();
            let loaded = gpu::load(spec.clone(), &weights, &options(&shares, kv_cache), &|_, _| {});
            let (mut decoder, placement) = loaded.expect("it is loaded");
            let what = format!("{name}, {layers:?} layers of {count}");
            assert_eq!(placement.on_cpu, count.saturating_sub(layers.iter().sum()), "{what}");
            assert_eq!(placement.layer_times.is_some(), (1..count).contains(&placement.on_cpu), "{what}");
            let said = placement.in_words().unwrap_or_default();
            assert_eq!(said.is_empty(), layers == [count + 5], "{what}: {said}");
            for (prompt, expected) in fixture.prompts.iter().enumerate() {
                let rows = feed(&mut decoder, prompt, &expected.ids, 5);
                for (position, row, expected) in fixture.beside_expected(prompt, &rows) {
                    let distance = distance(row, expected);
                    assert!(
                        distance <= TOLERANCE,
                        "{what}, prompt {prompt}, {position}: logits differ by {distance:e}"
                    );
                }
            }
        }
    }
}

/// As many layers as there is memory for, with keys and values; without any limit, all of them.
#[test]
fn memory_decides_how_many_layers_run_on_a_gpu() {
    let Some(adapter) = adapter() else { return };
    let fixture = Fixture::open("llama");
    let Description { spec, names } = fixture.description();
    let weights = Weights::open(&fixture.source, &spec, &names).expect("the weights are there");
    let num_blocks = 16 * BLOCKS_PER_SEQUENCE;
    let kv_cache = KvCacheConfig { block_size: FUSED_BLOCK_SIZE, num_blocks, dtype: KvDtype::F32 };
    let load = |shares: &[GpuLayers], memory| {
        let shares: Vec<_> = shares.iter().map(|layers| (adapter, *layers)).collect();
        let options = GpuOptions { memory, ..options(&shares, kv_cache) };
        gpu::load(spec.clone(), &weights, &options, &|_, _| {})
    };
    let fitting = [GpuLayers::Fitting];
    let (whole, placement) = load(&fitting, None).expect("it fits");
    let all = whole.device_bytes();
    assert_eq!(placement.on_cpu, 0);
    // Beside keys and values of 2048 tokens, whose memory is given back after loading.
    let kv: usize = (0..spec.layers.len()).map(|layer| 2 * 2048 * 4 * spec.key_value_width(layer)).sum();
    // And what is replaced while that is made.
    let needed = all + kv as u64 + 4096;
    let (_, placement) = load(&fitting, Some(needed)).expect("it just fits");
    assert_eq!(placement.on_cpu, 0);
    let (mut part, placement) = load(&fitting, Some(needed - 8192)).expect("some layers fit");
    let on_cpu = placement.on_cpu;
    assert!((1..spec.layers.len()).contains(&on_cpu), "{on_cpu} layers on the CPU");
    check_greedy(&mut part, &fixture);
    // There, a second GPU takes them.
    let (mut two, placement) = load(&[GpuLayers::Fitting; 2], Some(needed - 8192)).expect("all layers fit");
    let layers: Vec<usize> = placement.gpus.iter().map(|gpu| gpu.layers).collect();
    assert_eq!((placement.on_cpu, &layers[..]), (0, &[spec.layers.len() - on_cpu, on_cpu][..]));
    check_greedy(&mut two, &fixture);
    // More memory never means fewer layers, or an error, and what is loaded runs.
    let mut most = None;
    for limit in (needed / 2..needed + 8192).step_by(needed as usize / 40) {
        let Ok((mut decoder, placement)) = load(&fitting, Some(limit)) else {
            assert!(most.is_none(), "{limit} bytes");
            continue;
        };
        assert!(most.is_none_or(|on_cpu| placement.on_cpu <= on_cpu), "{limit} bytes");
        most = Some(placement.on_cpu);
        feed(&mut decoder, 0, &fixture.prompts[2].ids, WHOLE);
    }
    assert_eq!(most, Some(0));
    let compared = GpuOptions { compare_with_cpu: true, ..options(&[(adapter, GpuLayers::Fitting)], kv_cache) };
    let (mut all, placement) = gpu::load(spec.clone(), &weights, &compared, &|_, _| {}).expect("it fits");
    assert!(placement.on_cpu == 0 && placement.layer_times.is_some());
    check_greedy(&mut all, &fixture);
    let refused = load(&[GpuLayers::Last(usize::MAX)], Some(50_000)).err().expect("it does not fit");
    assert!(matches!(refused, Error::TooLittleMemory { .. }), "{refused}");
}
