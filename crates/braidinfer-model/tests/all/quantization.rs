//! Blocks against the `gguf` package's, and what every encoder promises. Goldens: `tools/quantization/goldens.py`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use braidinfer_model::arch::describe_config;
use braidinfer_model::arch::gguf::gguf_model;
use braidinfer_model::quantization::{FileType, QUANTIZABLE, QuantizeError, dequantize, quantize};
use braidinfer_model::{Dtype, JsonFile};
use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::SafeTensors;

const ENCODED_BY_GGUF: [Dtype; 8] =
    [Dtype::Q4_0, Dtype::Q4_1, Dtype::Q5_0, Dtype::Q5_1, Dtype::Q8_0, Dtype::Tq1_0, Dtype::Tq2_0, Dtype::Mxfp4];
const K_TYPES: [Dtype; 5] = [Dtype::Q2K, Dtype::Q3K, Dtype::Q4K, Dtype::Q5K, Dtype::Q6K];

fn block_types() -> impl Iterator<Item = Dtype> {
    Dtype::ALL.into_iter().filter(|dtype| dtype.is_quantized())
}

fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/quantization").join(name);
    fs::read(path).expect("the fixture is in the repository")
}

fn decoded(dtype: Dtype, blocks: &[u8]) -> Vec<f32> {
    let mut values = vec![f32::NAN; blocks.len() / dtype.block_size() * dtype.block_len()];
    dequantize(dtype, blocks, &mut values);
    values
}

fn encoded(dtype: Dtype, values: &[f32]) -> Result<Vec<u8>, QuantizeError> {
    let mut blocks = Vec::new();
    quantize(dtype, values, &mut blocks)?;
    Ok(blocks)
}

fn round_trip(dtype: Dtype, values: &[f32]) -> Vec<f32> {
    decoded(dtype, &encoded(dtype, values).expect("the values are in range"))
}

/// Root mean square.
fn rms(differences: impl ExactSizeIterator<Item = f64>) -> f64 {
    let len = differences.len() as f64;
    (differences.map(|difference| difference * difference).sum::<f64>() / len).sqrt()
}

fn rms_error(dtype: Dtype, values: &[f32]) -> f64 {
    let decoded = round_trip(dtype, values);
    rms(values.iter().zip(&decoded).map(|(value, decoded)| f64::from(*value) - f64::from(*decoded)))
}

#[test]
fn blocks_decode_as_gguf_decodes_them() {
    let bytes = fixture("dequantize.safetensors");
    let goldens = SafeTensors::deserialize(&bytes).expect("the fixture is whole");
    for dtype in block_types() {
        let tensor =
            |part: &str| goldens.tensor(&format!("{dtype}.{part}")).expect("the fixture has every type").data();
        let values = decoded(dtype, tensor("blocks"));
        let expected = decoded(Dtype::F32, tensor("values"));
        for (index, (value, expected)) in values.iter().zip(&expected).enumerate() {
            assert_eq!(value.to_bits(), expected.to_bits(), "{dtype} value {index}: {value} for {expected}");
        }
        assert_eq!(values.len(), expected.len());
    }
}

#[test]
fn values_encode_as_gguf_encodes_them() {
    let bytes = fixture("quantize.safetensors");
    let goldens = SafeTensors::deserialize(&bytes).expect("the fixture is whole");
    let cases: Vec<_> = goldens.names().into_iter().filter_map(|name| name.strip_suffix(".values")).collect();
    assert_eq!(cases.len(), 15);
    for case in cases {
        let tensor = |name: &str| goldens.tensor(name).expect("the case has every type").data();
        let values = decoded(Dtype::F32, tensor(&format!("{case}.values")));
        // A case for one type only has the name of the type at its end.
        let one = ENCODED_BY_GGUF.into_iter().find(|dtype| case.ends_with(&format!(".{dtype}")));
        for dtype in ENCODED_BY_GGUF.into_iter().filter(|dtype| one.is_none_or(|one| one == *dtype)) {
            let name = if one.is_some() { case.to_owned() } else { format!("{case}.{dtype}") };
            let blocks = encoded(dtype, &values).expect("the values are in range");
            let (found, expected) = (blocks.chunks(dtype.block_size()), tensor(&name).chunks(dtype.block_size()));
            for (index, (found, expected)) in found.zip(expected).enumerate() {
                assert_eq!(found, expected, "{case}: {dtype} block {index}");
            }
            assert_eq!(blocks.len(), tensor(&name).len());
        }
    }
}

/// The last step of splitmix64.
fn mixed(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

/// Random numbers: those of `tools/quantization/goldens.py`.
fn stream(start: u64) -> impl Iterator<Item = u64> {
    (1..).map(move |i: u64| mixed(start.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
}

/// A number for each of 20 runs of `values`: the sum of all values, each mixed with its place in the run.
fn checksums(values: impl ExactSizeIterator<Item = u32>) -> Vec<u64> {
    let run = values.len() / 20;
    let mut sums = vec![0u64; 20];
    for (i, value) in values.enumerate() {
        let place = ((i % run) as u64) << 32;
        sums[i / run] = sums[i / run].wrapping_add(mixed(u64::from(value) | place));
    }
    sums
}

fn expected_checksums(goldens: &SafeTensors<'_>, name: &str) -> Vec<u64> {
    let tensor = goldens.tensor(name).expect("the fixture has every type");
    tensor.data().as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect()
}

/// The number of a type in GGUF, and where its f16 numbers are in a block.
fn stream_of(dtype: Dtype) -> (u64, &'static [usize]) {
    match dtype {
        Dtype::Q4_0 => (2, &[0]),
        Dtype::Q4_1 => (3, &[0, 2]),
        Dtype::Q5_0 => (6, &[0]),
        Dtype::Q5_1 => (7, &[0, 2]),
        Dtype::Q8_0 => (8, &[0]),
        Dtype::Q2K => (10, &[80, 82]),
        Dtype::Q3K => (11, &[108]),
        Dtype::Q4K => (12, &[0, 2]),
        Dtype::Q5K => (13, &[0, 2]),
        Dtype::Q6K => (14, &[208]),
        Dtype::Iq2Xxs => (16, &[0]),
        Dtype::Iq2Xs => (17, &[0]),
        Dtype::Iq3Xxs => (18, &[0]),
        Dtype::Iq1S => (19, &[0]),
        Dtype::Iq4Nl => (20, &[0]),
        Dtype::Iq3S => (21, &[0]),
        Dtype::Iq2S => (22, &[0]),
        Dtype::Iq4Xs => (23, &[0]),
        Dtype::Iq1M => (29, &[]),
        Dtype::Tq1_0 => (34, &[52]),
        Dtype::Tq2_0 => (35, &[64]),
        Dtype::Mxfp4 => (39, &[]),
        Dtype::Nvfp4 => (40, &[]),
        Dtype::F32 | Dtype::F16 | Dtype::BF16 => panic!("{dtype} has no blocks"),
    }
}

/// Random blocks; f16 numbers that are not finite get another exponent.
fn streamed_blocks(dtype: Dtype, count: usize) -> Vec<u8> {
    let (start, halves) = stream_of(dtype);
    let size = dtype.block_size();
    let mut blocks: Vec<u8> = stream(start).take((count * size).div_ceil(8)).flat_map(u64::to_le_bytes).collect();
    blocks.truncate(count * size);
    for block in blocks.chunks_exact_mut(size) {
        for at in halves {
            if block[at + 1] & 0x7c == 0x7c {
                block[at + 1] &= 0xbf;
            }
        }
        if dtype == Dtype::Iq1M && block[55] & 0x70 == 0x70 && block[53] & 0xc0 == 0xc0 {
            block[55] &= 0xbf;
        }
    }
    blocks
}

#[test]
fn ten_thousand_random_blocks_decode_as_gguf_decodes_them() {
    let bytes = fixture("checksums.safetensors");
    let goldens = SafeTensors::deserialize(&bytes).expect("the fixture is whole");
    for dtype in block_types() {
        let values = decoded(dtype, &streamed_blocks(dtype, 10_000));
        let found = checksums(values.iter().map(|value| value.to_bits()));
        assert_eq!(found, expected_checksums(&goldens, &format!("{dtype}.decoded")), "{dtype}");
    }
}

/// Values whose exponents differ by up to 7 from one that each block of 32 has to itself.
fn streamed_values(count: usize) -> Vec<f32> {
    let numbers: Vec<u64> = stream(1000).take(count).collect();
    let value = |block: &[u64], number: u64| {
        let exponent = 100 + (block[0] >> 32) % 30 + (number >> 40) % 8;
        f32::from_bits(number as u32 & 0x807f_ffff | (exponent as u32) << 23)
    };
    numbers.chunks(32).flat_map(|block| block.iter().map(move |number| value(block, *number))).collect()
}

#[test]
fn random_values_encode_as_gguf_encodes_them() {
    let bytes = fixture("checksums.safetensors");
    let goldens = SafeTensors::deserialize(&bytes).expect("the fixture is whole");
    let values = streamed_values(10_000 * 256);
    for dtype in ENCODED_BY_GGUF {
        let blocks = encoded(dtype, &values).expect("the values are in range");
        let found = checksums(blocks.iter().map(|byte| u32::from(*byte)));
        assert_eq!(found, expected_checksums(&goldens, &format!("{dtype}.encoded")), "{dtype}");
    }
}

/// Root mean square errors of llama.cpp's quantizers (ggml 0.25.3, no importance matrix) for [`K_TYPES`] on the same values.
const LLAMA_CPP_ERRORS: [(&str, [f64; 5]); 8] = [
    ("gaussian", [0.30809, 0.16241, 0.076164, 0.038354, 0.019395]),
    ("heavy_tailed", [0.011405, 0.0066591, 0.0031047, 0.0015991, 0.00085929]),
    ("positive", [0.12, 0.10069, 0.025367, 0.012639, 0.011314]),
    ("negative", [0.069171, 0.092995, 0.016721, 0.0085828, 0.011209]),
    ("outlier", [1.8982, 1.0129, 1.8732, 1.8636, 1.0134]),
    ("equal", [6.4075e-5, 4.8816e-5, 9.1687e-5, 8.7357e-5, 4.8816e-5]),
    ("subnormal_scales", [3.493e-7, 1.0434e-6, 3.1503e-6, 3.1437e-6, 1.0434e-6]),
    ("large", [4802.2, 2547.3, 1171.4, 584.88, 298.61]),
];

#[test]
fn k_types_err_less_than_llama_cpp() {
    let bytes = fixture("quantize.safetensors");
    let goldens = SafeTensors::deserialize(&bytes).expect("the fixture is whole");
    for (case, limits) in LLAMA_CPP_ERRORS {
        let values = goldens.tensor(&format!("{case}.values")).expect("the fixture has the case");
        let values = decoded(Dtype::F32, values.data());
        for (dtype, limit) in K_TYPES.into_iter().zip(limits) {
            let error = rms_error(dtype, &values);
            // Beside an outlier, no step of `q3_k` is fine enough for any other code than 0.
            let part = if (case, dtype) == ("outlier", Dtype::Q3K) { 1.0001 } else { 0.985 };
            assert!(error <= part * limit, "{case}: {dtype}: {error} for {limit}");
        }
    }
}

/// The largest error that a block can have in units of its largest magnitude, and how many steps span that magnitude.
///
/// Half a step, but a whole one in `q4_0` and `q5_0`, which have one code less on the side opposite to the largest, and
/// in `mxfp4`, where the largest may have no level of its own.
fn error_bound(dtype: Dtype, block: &[f32]) -> f32 {
    let largest = block.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
    let (low, high) = block.iter().fold((0.0, 0.0), |(low, high): (f32, f32), x| (low.min(*x), high.max(*x)));
    let (step, steps) = match dtype {
        Dtype::Q4_0 => (largest / 8.0, 8.0),
        Dtype::Q5_0 => (largest / 16.0, 16.0),
        Dtype::Q4_1 => ((high - low) / 30.0, 15.0),
        Dtype::Q5_1 => ((high - low) / 62.0, 31.0),
        Dtype::Q8_0 => (largest / 254.0, 127.0),
        Dtype::Tq1_0 | Dtype::Tq2_0 => (largest / 2.0, 1.0),
        // The largest level, 6, stands for magnitudes of up to 8.
        Dtype::Mxfp4 => (largest / 4.0, 1.0),
        _ => (0.0, 1.0),
    };
    // Scales have 11 bits, or less below 2⁻¹⁴.
    step + largest * 3.0 / 2048.0 + steps * 2f32.powi(-24)
}

/// Values of all magnitudes that fit: signs, exponents and fractions apart.
fn values(len: usize) -> impl Strategy<Value = Vec<f32>> {
    let value = (-1.0f32..1.0, -3i32..3).prop_map(|(fraction, exponent)| fraction * 4f32.powi(exponent));
    (prop::collection::vec(value, len), -12i32..4).prop_map(|(values, exponent)| {
        let scale = 10f32.powi(exponent);
        values.into_iter().map(|value| value * scale).collect()
    })
}

proptest! {
    #[test]
    fn errors_are_within_a_step(values in values(256)) {
        for dtype in ENCODED_BY_GGUF {
            let decoded = round_trip(dtype, &values);
            let len = dtype.block_len();
            for (block, decoded) in values.chunks(len).zip(decoded.chunks(len)) {
                let bound = error_bound(dtype, block);
                for (value, decoded) in block.iter().zip(decoded) {
                    prop_assert!((value - decoded).abs() <= bound, "{}: {} for {}, bound {}", dtype, decoded, value, bound);
                }
            }
        }
    }

    #[test]
    fn k_errors_are_within_a_step_on_average(values in values(256)) {
        let largest = values.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
        for (dtype, steps) in [(Dtype::Q2K, 1.5), (Dtype::Q3K, 4.0), (Dtype::Q4K, 7.5), (Dtype::Q5K, 15.5), (Dtype::Q6K, 32.0)] {
            let bound = f64::from(largest) / steps + 2f64.powi(-24);
            let error = rms_error(dtype, &values);
            prop_assert!(error <= bound, "{}: {} beyond {}", dtype, error, bound);
        }
    }

    /// Where a code of the largest magnitude is in use, the scale comes out as it was.
    #[test]
    fn q8_0_and_q4_0_blocks_are_kept(scale in 0x0400u16..0x7400, codes in prop::array::uniform32(-127i8..=127), at in 0usize..32) {
        let d = f16::from_bits(scale).to_f32();
        let mut q8_0 = codes.map(|q| d * f32::from(q));
        q8_0[at] = d * 127.0;
        prop_assert_eq!(&round_trip(Dtype::Q8_0, &q8_0), &q8_0);
        let mut q4_0 = codes.map(|q| d * f32::from(q >> 4));
        q4_0[at] = d * -8.0;
        prop_assert_eq!(&round_trip(Dtype::Q4_0, &q4_0), &q4_0);
    }

    /// Any finite values are either written or refused with the place.
    #[test]
    fn values_are_kept_or_refused(bits in prop::collection::vec(any::<u32>(), 256), exponent in 0u32..255) {
        let one_exponent = |bits: &u32| f32::from_bits(bits & 0x807f_ffff | exponent << 23);
        let anything = |bits: &u32| f32::from_bits(if bits >> 23 & 255 == 255 { bits & 0xbfff_ffff } else { *bits });
        for values in [bits.iter().map(one_exponent).collect::<Vec<_>>(), bits.iter().map(anything).collect()] {
            for dtype in QUANTIZABLE {
                match encoded(*dtype, &values) {
                    Ok(blocks) => {
                        let largest = values.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
                        let few_levels = matches!(dtype, Dtype::Tq1_0 | Dtype::Tq2_0 | Dtype::Q2K | Dtype::Q3K);
                        let part = if few_levels { 0.501 } else { 0.25 };
                        for (decoded, value) in decoded(*dtype, &blocks).iter().zip(&values) {
                            let near = (decoded - value).abs() <= largest * part + 127.0 * 2f32.powi(-25);
                            prop_assert!(near, "{}: {} for {}", dtype, decoded, value);
                        }
                    }
                    Err(QuantizeError::OutOfRange { index, value, .. }) => {
                        prop_assert_eq!(value.to_bits(), values[index].to_bits());
                        prop_assert!(value.abs() > 65504.0, "{}: {}", dtype, value);
                    }
                    Err(error) => prop_assert!(false, "{}", error),
                }
            }
        }
    }

    #[test]
    fn any_bytes_decode(bytes in prop::collection::vec(any::<u8>(), 210)) {
        for dtype in block_types() {
            prop_assert_eq!(decoded(dtype, &bytes[..dtype.block_size()]).len(), dtype.block_len());
        }
    }
}

#[test]
fn sixteen_bit_floats_are_widened_exactly() {
    let bits = || 0..=u16::MAX;
    let bytes: Vec<u8> = bits().flat_map(u16::to_le_bytes).collect();
    let (f16s, bf16s) = (decoded(Dtype::F16, &bytes), decoded(Dtype::BF16, &bytes));
    for (bits, (from_f16, from_bf16)) in bits().zip(f16s.into_iter().zip(bf16s)) {
        let (half, brain) = (f16::from_bits(bits), bf16::from_bits(bits));
        assert!(half.is_nan() || from_f16.to_bits() == half.to_f32_const().to_bits(), "{bits:#x}: {from_f16}");
        assert!(brain.is_nan() || from_bf16.to_bits() == brain.to_f32_const().to_bits(), "{bits:#x}: {from_bf16}");
    }
}

#[test]
fn floats_are_rounded_to_even() {
    let values = [1.0, 1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 3e-8];
    let f16s = [1.0, 1.0, 1.0 + 2.0 / 1024.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 2f32.powi(-24)];
    assert_eq!(round_trip(Dtype::F16, &values), f16s);
    assert_eq!(round_trip(Dtype::BF16, &values)[..5], [1.0, 1.0, 1.0, 1.0, 1.0 + 2.0 / 128.0]);
    assert_eq!(round_trip(Dtype::F32, &values), values);
}

#[test]
fn zeros_have_zero_scales() {
    for dtype in K_TYPES {
        for zero in [0.0, -0.0] {
            let blocks = encoded(dtype, &[zero; 256]).expect("zeros are in range");
            // Codes and scales of zero are not zero bits in types with a sign.
            let signed = matches!(dtype, Dtype::Q3K | Dtype::Q6K);
            assert!(
                blocks.iter().all(|byte| *byte == 0 || signed && [0xaa, 0xff].contains(byte)),
                "{dtype}: {blocks:?}"
            );
            assert_eq!(decoded(dtype, &blocks), [0.0; 256]);
        }
    }
}

#[test]
fn constants_that_are_f16_are_exact_in_k_types() {
    for value in [1.0, -1.0, 0.5, -0.3125, 1234.0, -7.0 / 1024.0].map(|value| f16::from_f32(value).to_f32()) {
        for dtype in K_TYPES {
            assert_eq!(round_trip(dtype, &[value; 256]), [value; 256], "{dtype}");
        }
    }
}

#[test]
fn what_cannot_be_written_is_named() {
    let mut values = vec![0.5; 512];
    for (value, types) in [(f32::INFINITY, QUANTIZABLE), (f32::MAX, &QUANTIZABLE[1..]), (3e8, &QUANTIZABLE[3..])] {
        values[401] = value;
        values[402..410].fill(if value.is_finite() { 0.9 * value } else { f32::NAN });
        // `mxfp4` reaches as far as f32.
        for dtype in types.iter().filter(|dtype| !value.is_finite() || **dtype != Dtype::Mxfp4) {
            let error = QuantizeError::OutOfRange { dtype: *dtype, index: 401, value };
            assert_eq!(encoded(*dtype, &values), Err(error));
        }
    }
    assert_eq!(encoded(Dtype::Q4K, &[0.0; 255]), Err(QuantizeError::PartialBlock { dtype: Dtype::Q4K, len: 255 }));
    assert_eq!(encoded(Dtype::Nvfp4, &[0.0; 256]), Err(QuantizeError::NotWritten { dtype: Dtype::Nvfp4 }));
    let error = encoded(Dtype::Iq2Xxs, &[0.0; 256]).expect_err("there is no encoder");
    assert_eq!(error.to_string(), "iq2_xxs can be read but not written");
}

#[test]
fn the_largest_numbers_fit_in_mxfp4() {
    let decoded = round_trip(Dtype::Mxfp4, &[f32::MAX, -f32::MAX, 2f32.powi(127), 0.0].repeat(8));
    let step = 2f32.powi(125);
    assert_eq!(decoded[..4], [6.0 * step, -6.0 * step, 4.0 * step, 0.0]);
}

#[test]
fn scales_of_mxfp4_are_every_power_of_two() {
    let decoded = |exponent, codes| decoded(Dtype::Mxfp4, &[vec![exponent], vec![codes; 16]].concat())[0];
    for exponent in 0..=255 {
        let scale = 2f64.powi(i32::from(exponent) - 127);
        assert_eq!(f64::from(decoded(exponent, 1)), 0.5 * scale, "{exponent}");
        assert_eq!(f64::from(decoded(exponent, 15)), f64::from((-6.0 * scale) as f32), "{exponent}");
    }
}

#[test]
fn the_largest_scales_are_used() {
    let largest = [
        (Dtype::Q2K, 3.0 * 15.0, 1.05),
        (Dtype::Q3K, 4.0 * 32.0, 1.02),
        (Dtype::Q4K, 15.0 * 63.0, 1.02),
        (Dtype::Q5K, 31.0 * 63.0, 1.02),
        (Dtype::Q6K, 32.0 * 128.0, 1.02),
    ];
    for (dtype, limit, beyond) in largest {
        let largest = 65504.0 * limit;
        let mut values = [0.0; 256];
        values[17] = largest;
        let decoded = round_trip(dtype, &values);
        assert!((decoded[17] - largest).abs() <= largest * 0.01, "{dtype}: {} for {largest}", decoded[17]);
        values[17] = largest * beyond;
        assert!(encoded(dtype, &values).is_err(), "{dtype}");
    }
}

/// How many tensors of a model of TinyLlama's shape have which type.
fn mixture(file_type: FileType, changes: serde_json::Value) -> BTreeMap<&'static str, usize> {
    let mut config = serde_json::json!({
        "model_type": "llama", "vocab_size": 32_000, "hidden_size": 2048, "intermediate_size": 5632,
        "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
    });
    config.as_object_mut().expect("an object").extend(changes.as_object().expect("an object").clone());
    let config = JsonFile::parse("config.json".into(), config.to_string().as_bytes()).expect("an object");
    let spec = describe_config(&config).expect("a llama").spec;
    let model = gguf_model("tiny", &spec, spec.tie_word_embeddings).expect("GGUF has llama");
    let mut types = BTreeMap::new();
    for stack in &model.tensors {
        *types.entry(file_type.dtype(&spec, stack, spec.tie_word_embeddings).name()).or_insert(0) += 1;
    }
    types
}

#[test]
fn mixtures_are_those_of_llama_cpp() {
    let plain = || serde_json::json!({});
    // What its quantizer makes of this model (llama-cpp-python 0.3.36).
    assert_eq!(mixture(FileType::Q4KM, plain()), BTreeMap::from([("f32", 45), ("q4_k", 135), ("q6_k", 21)]));
    assert_eq!(mixture(FileType::Q5KM, plain()), BTreeMap::from([("f32", 45), ("q5_k", 135), ("q6_k", 21)]));
    assert_eq!(mixture(FileType::Q8_0, plain()), BTreeMap::from([("f32", 45), ("q8_0", 156)]));
    assert_eq!(mixture(FileType::Q4_0, plain()), BTreeMap::from([("f32", 45), ("q4_0", 155), ("q6_k", 1)]));
    assert_eq!(mixture(FileType::F16, plain()), BTreeMap::from([("f16", 156), ("f32", 45)]));
    // By its rules.
    let expected = BTreeMap::from([("f32", 45), ("q2_k", 89), ("q3_k", 44), ("q4_k", 22), ("q6_k", 1)]);
    assert_eq!(mixture(FileType::Q2K, plain()), expected);
    let expected = BTreeMap::from([("f32", 45), ("q3_k", 89), ("q4_k", 63), ("q5_k", 3), ("q6_k", 1)]);
    assert_eq!(mixture(FileType::Q3KM, plain()), expected);
    // They give `MXFP4_MOE` to experts only.
    for (file_type, name) in [(FileType::Tq1_0, "tq1_0"), (FileType::Tq2_0, "tq2_0")] {
        let expected = BTreeMap::from([("f32", 45), ("q4_k", 1), ("q6_k", 1), (name, 154)]);
        assert_eq!(mixture(file_type, plain()), expected);
    }
    assert_eq!(mixture(FileType::Mxfp4, plain()), BTreeMap::from([("f32", 45), ("mxfp4", 66), ("q8_0", 90)]));
    // A tied embedding is the output head, and rows that are no multiple of 256 take smaller blocks.
    let tied = serde_json::json!({"tie_word_embeddings": true});
    assert_eq!(mixture(FileType::Q4_0, tied), BTreeMap::from([("f32", 45), ("q4_0", 154), ("q6_k", 1)]));
    let narrow = serde_json::json!({"hidden_size": 2080, "num_attention_heads": 32, "head_dim": 64});
    let expected = BTreeMap::from([("f32", 45), ("q4_k", 34), ("q5_0", 101), ("q6_k", 10), ("q8_0", 11)]);
    assert_eq!(mixture(FileType::Q4KM, narrow.clone()), expected);
    let expected = BTreeMap::from([("f32", 45), ("q4_0", 110), ("q5_0", 1), ("q8_0", 1), ("tq1_0", 44)]);
    assert_eq!(mixture(FileType::Tq1_0, narrow), expected);
}

#[test]
fn types_that_are_only_read_are_told_from_unknown_ones() {
    let error = |name: &str| name.parse::<FileType>().expect_err(name).to_string();
    let known = "f32, f16, bf16, q8_0, q6_k, q5_k_m, mxfp4, q4_k_m, q4_0, q3_k_m, q2_k, tq2_0, tq1_0";
    let expected =
        format!("expected a quantization type ({known}), found `iq2_xxs`, which can be read but not written");
    assert_eq!(error("iq2_xxs"), expected);
    assert_eq!(error("q9_9"), format!("expected a quantization type ({known}), found `q9_9`"));
    assert_eq!("MXFP4".parse::<FileType>().ok(), Some(FileType::Mxfp4));
}
