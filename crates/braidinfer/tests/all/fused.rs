//! The fused executor against the standard one and against itself, for every fixture.

use crate::support::{Fixture, Fused, bits, check_greedy, distance, feed, in_company, kl, long_context, quantized};
use braidinfer::executor::standard::ComputeDtype;
use braidinfer::executor::{Batch, KvDtype, NoProbe};
use braidinfer::kernels::{Isa, NumericLevel};
use braidinfer::model::quantization::FileType;
use braidinfer::model::{Description, Weights};

/// Largest allowed difference of a logit where nothing is rounded but sums.
const TOLERANCE: f32 = 1e-3;
/// Largest allowed divergence from `transformers` on the model that amplifies every rounding.
const EXTREME_KL: f64 = 1e-5;

const WHOLE: usize = usize::MAX >> 1;

#[test]
fn level_f32_equals_standard_kernels() {
    for fixture in Fixture::all() {
        let (mut standard, mut fused) = (fixture.standard(), fixture.fused(Fused::exact()));
        for (prompt, expected) in fixture.prompts.iter().enumerate() {
            let rows = feed(&mut standard, prompt, &expected.ids, WHOLE);
            let same = feed(&mut fused, prompt, &expected.ids, WHOLE);
            for (position, (row, same)) in rows.iter().zip(&same).enumerate() {
                let what = format!("{} prompt {prompt} position {position}", fixture.name);
                if fixture.name == "qwen3-extreme" {
                    let divergence = kl(fixture.expected(prompt, position).expect("all are stored"), same);
                    assert!(divergence <= EXTREME_KL, "{what}: KL {divergence:e}");
                } else {
                    let distance = distance(row, same);
                    assert!(distance <= TOLERANCE, "{what}: logits differ by {distance:e}");
                }
            }
        }
    }
}

#[test]
fn level_f32_equals_standard_kernels_on_quantized_weights() {
    for fixture in Fixture::all().iter().filter(|fixture| fixture.name != "qwen3-extreme") {
        for file_type in [FileType::F16, FileType::Q8_0, FileType::Q4KM] {
            let quantize = quantized(Some(file_type));
            let Description { spec, names } = fixture.description();
            let mut weights = Weights::open(&fixture.source, &spec, &names).expect("the weights are there");
            quantize(&spec, &mut weights);
            let mut standard = fixture.standard_over(spec, &weights, ComputeDtype::F32);
            let mut fused = fixture.fused_with(Fused::exact(), &quantize);
            let ids = &fixture.prompts[0].ids;
            let rows = feed(&mut standard, 0, ids, WHOLE);
            for (row, same) in rows.iter().zip(feed(&mut fused, 0, ids, WHOLE)) {
                let distance = distance(row, &same);
                assert!(distance <= TOLERANCE, "{} {file_type:?}: logits differ by {distance:e}", fixture.name);
            }
        }
    }
}

/// No fixture has this block yet.
#[test]
fn parallel_blocks_with_two_norms_equal_standard_kernels() {
    for name in ["llama", "stablelm", "exaone4"] {
        let fixture = Fixture::open(name);
        let Description { mut spec, names } = fixture.description();
        let weights = Weights::open(&fixture.source, &spec, &names).expect("the weights are there");
        spec.block.parallel = true;
        let mut standard = fixture.standard_over(spec.clone(), &weights, ComputeDtype::F32);
        let mut fused = fixture.fused_over(Fused::exact(), spec, &weights);
        let ids = &fixture.prompts[2].ids;
        let rows = feed(&mut standard, 2, ids, WHOLE);
        for (position, (row, same)) in rows.iter().zip(feed(&mut fused, 2, ids, WHOLE)).enumerate() {
            let found = distance(row, &same);
            assert!(found <= TOLERANCE, "{name} position {position}: logits differ by {found:e}");
        }
        for (position, row, plain) in fixture.beside_expected(2, &rows) {
            let changed = position == 0 || distance(row, plain) > TOLERANCE;
            assert!(changed, "{name} position {position}: the block changes nothing");
        }
    }
}

/// The mean square of the differences of all logits from those with keys and values in f32.
fn square_of_storage(fixture: &Fixture, kv_dtype: KvDtype) -> f64 {
    let (mut plain, mut stored) = (fixture.fused(Fused::exact()), fixture.fused(Fused { kv_dtype, ..Fused::exact() }));
    let mut squares = Vec::new();
    for (prompt, expected) in fixture.prompts.iter().enumerate() {
        let rows = feed(&mut plain, prompt, &expected.ids, WHOLE).concat();
        let others = feed(&mut stored, prompt, &expected.ids, WHOLE).concat();
        squares.extend(rows.iter().zip(&others).map(|(a, b)| f64::from(a - b).powi(2)));
    }
    squares.iter().sum::<f64>() / squares.len() as f64
}

/// To first order, logits move as keys and values do. The step of f16 is 2^-11 to 2^-10 of a value. That of q8_0 is 1/127 of the
/// largest of 32 values, which is at most the square root of 32 times their quadratic mean: at most 92 times as much. That of
/// q4_0 is 127/8 times that of q8_0, and errors may be twice as large where one sign has no code for the largest value.
#[test]
fn quantized_keys_and_values_move_logits_as_much_as_their_steps() {
    // With windows, sinks, latent attention, shared keys and values, softcapping, one norm per head, and hybrid layers.
    for name in ["llama", "qwen3", "gemma2", "gemma3n", "gpt_oss", "deepseek_v2", "phi", "stablelm", "falcon_h1"] {
        let fixture = Fixture::open(name);
        let [half, eight, four] =
            [KvDtype::F16, KvDtype::Q8_0, KvDtype::Q4_0].map(|kv_dtype| square_of_storage(&fixture, kv_dtype).sqrt());
        let what = format!("{name}: f16 {half:.1e}, q8_0 {eight:.1e}, q4_0 {four:.1e}");
        assert!(half > 0.0 && eight > half && four > eight, "{what}");
        assert!(eight <= 92.0 * half && four <= 2.0 * 127.0 / 8.0 * eight, "{what}");
    }
}

#[test]
fn greedy_tokens_equal_transformers() {
    for fixture in Fixture::all() {
        check_greedy(&mut fixture.fused(Fused::exact()), &fixture);
    }
}

/// The levels and storage whose bits are compared: the exact one, the fastest of each kind of weights, and each quantized
/// type of keys and values.
const VARIANTS: [(NumericLevel, KvDtype, Option<FileType>); 7] = [
    (NumericLevel::F32, KvDtype::F32, None),
    (NumericLevel::Int8, KvDtype::F16, Some(FileType::BF16)),
    (NumericLevel::Int8, KvDtype::F16, Some(FileType::Q8_0)),
    (NumericLevel::Int8, KvDtype::F16, Some(FileType::Q4KM)),
    (NumericLevel::Int8, KvDtype::F16, Some(FileType::Mxfp4)),
    (NumericLevel::F32, KvDtype::Q8_0, None),
    (NumericLevel::F32, KvDtype::Q4_0, None),
];

/// Every prompt alone and whole, on two threads.
fn reference(fixture: &Fixture, fused: Fused, file_type: Option<FileType>) -> Vec<Vec<Vec<u32>>> {
    let mut executor = fixture.fused_with(fused, quantized(file_type));
    let prompts = fixture.prompts.iter().enumerate();
    prompts.map(|(prompt, expected)| bits(&feed(&mut executor, prompt, &expected.ids, WHOLE))).collect()
}

fn for_each_variant(mut check: impl FnMut(&Fixture, Fused, Option<FileType>, &[Vec<Vec<u32>>])) {
    for fixture in Fixture::all() {
        for (coarsest, kv_dtype, file_type) in VARIANTS {
            let fused = Fused { coarsest, kv_dtype, ..Fused::exact() };
            check(&fixture, fused, file_type, &reference(&fixture, fused, file_type));
        }
    }
}

#[test]
fn neither_chunks_nor_threads_change_a_bit() {
    for_each_variant(|fixture, fused, file_type, expected| {
        for (threads, chunk) in [(1, WHOLE), (1, 1), (2, 3), (4, 5)] {
            let mut executor = fixture.fused_with(Fused { threads, ..fused }, quantized(file_type));
            for (index, (prompt, expected)) in fixture.prompts.iter().zip(expected).enumerate() {
                let same = bits(&feed(&mut executor, index, &prompt.ids, chunk)) == *expected;
                let what = format!("{} {file_type:?} prompt {index}", fixture.name);
                assert!(same, "{what}: {threads} threads, chunks of {chunk}");
            }
        }
    });
}

#[test]
fn company_changes_no_bit() {
    for_each_variant(|fixture, fused, file_type, expected| {
        let mut executor = fixture.fused_with(fused, quantized(file_type));
        in_company(&mut executor, fixture, |prompt, position, row| {
            let same = bits(&[row.to_vec()]) == expected[prompt][position..=position];
            assert!(same, "{} {file_type:?} prompt {prompt} position {position} in company", fixture.name);
        });
    });
}

#[test]
fn instruction_sets_change_no_bit() {
    for name in [
        "llama",
        "qwen3-extreme",
        "gemma2",
        "gemma3n",
        "gemma4",
        "gemma4-moe",
        "phi",
        "olmo2",
        "ernie4_5",
        "qwen3-window",
        "qwen3_5",
        "qwen3_next-dense",
        "granitemoehybrid",
        "falcon_h1",
        "nemotron_h-moe",
    ] {
        let fixture = Fixture::open(name);
        for (coarsest, kv_dtype, file_type) in VARIANTS {
            let fused = Fused { coarsest, kv_dtype, ..Fused::exact() };
            let expected = reference(&fixture, Fused { isa: Isa::SCALAR, ..fused }, file_type);
            let executor = fixture.fused_with(fused, quantized(file_type));
            let bf16 = executor.plan().projections.iter().any(|projection| projection.level == NumericLevel::Bf16);
            // A matrix unit adds products of bf16 in another order.
            for isa in Isa::available().into_iter().filter(|isa| !(bf16 && isa.has_tile_unit())) {
                let same = reference(&fixture, Fused { isa, ..fused }, file_type) == expected;
                assert!(same, "{name} {file_type:?} at {coarsest:?}: {} and scalar", isa.name());
            }
        }
    }
}

/// Bits of the logits of a long context.
fn bits_of_context(fixture: &Fixture, kv_dtype: KvDtype, threads: usize, ids: &[u32], chunk: usize) -> Vec<Vec<u32>> {
    bits(&long_context(&mut fixture.fused(Fused { threads, kv_dtype, ..Fused::exact() }), ids, chunk))
}

#[test]
fn how_long_contexts_are_shared_out_changes_no_bit() {
    // Beyond two of the spans that attention cuts long contexts into.
    let ids: Vec<u32> = (0..2100_u32).map(|index| index * 7 % 50 + 1).collect();
    let names = ["llama", "qwen3-window", "gemma2", "gemma4", "qwen3_5", "falcon_h1"];
    let quantized = [("llama", KvDtype::Q8_0), ("gemma4", KvDtype::Q4_0)];
    for (name, kv_dtype) in names.map(|name| (name, KvDtype::F16)).into_iter().chain(quantized) {
        let fixture = Fixture::open(name);
        let expected = bits_of_context(&fixture, kv_dtype, 1, &ids, 512);
        // Few tasks for many threads: every span is a task of its own.
        for (threads, chunk) in [(8, 512), (8, 100), (2, 37)] {
            let same = bits_of_context(&fixture, kv_dtype, threads, &ids, chunk) == expected;
            assert!(same, "{name}: {threads} threads, chunks of {chunk}");
        }
    }
}

#[test]
fn an_empty_batch_has_no_logits() {
    let fixture = Fixture::open("llama");
    for executor in [&mut fixture.standard(), &mut fixture.fused(Fused::exact())] {
        assert_eq!(executor.forward(&Batch::default(), &mut NoProbe).expect("nothing is a batch").logits.rows(), 0);
    }
}
