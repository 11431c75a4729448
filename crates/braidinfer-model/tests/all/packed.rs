//! Quantized matrices of safetensors checkpoints: the values that `transformers`, compressed-tensors or the published
//! description of GPTQ and AWQ give. `tools/quantization/packed.py` writes the files.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use braidinfer_model::format::{Checkpoint, safetensors as checkpoints};
use braidinfer_model::{Dtype, ModelError, ModelSource};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/quantization/packed")
}

fn names() -> Vec<String> {
    let entries = fs::read_dir(folder()).expect("the folder is there");
    entries.map(|entry| entry.expect("it can be listed").file_name().into_string().expect("UTF-8")).collect()
}

/// The expected values, and the type they are read in.
fn expected(name: &str) -> (Vec<f32>, String) {
    let bytes = fs::read(folder().join(name).join("expected.safetensors")).expect("it is there");
    let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("it is a valid file");
    let dtype = metadata.metadata().as_ref().and_then(|pairs| pairs.get("type")).expect("it names a type").clone();
    let file = SafeTensors::deserialize(&bytes).expect("it is a valid file");
    let data = file.tensor("proj.weight").expect("it is there").data();
    (data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(), dtype)
}

#[test]
fn values_and_types_are_as_expected() {
    let names = names();
    assert!(names.len() >= 21, "{names:?}");
    for name in names {
        let source = ModelSource::open(folder().join(&name)).expect("it is a directory");
        let checkpoint = checkpoints::open(&source).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["norm.weight", "proj.weight"], "{name}");
        let view = checkpoint.tensor("proj.weight").expect("its type is known").expect("it is there");
        let (values, dtype) = expected(&name);
        assert_eq!(view.dtype.name().to_lowercase(), dtype.to_lowercase(), "{name}");
        let found = view.read::<f32>().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(found.len(), values.len(), "{name}");
        for (index, (found, value)) in found.iter().zip(&values).enumerate() {
            assert_eq!(found, value, "{name}, index {index}");
        }
        // Rows are the same in any order.
        for rows in [3..5, 0..1, view.shape[0] - 1..view.shape[0]] {
            let width = view.shape[1];
            let part = view.read_rows::<f32>(rows.clone()).expect("the rows exist");
            assert_eq!(part, values[rows.start * width..rows.end * width], "{name}: {rows:?}");
        }
    }
}

/// Type, shape and data of tensors by name.
type Tensors = BTreeMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)>;

/// The tensors and the config of a file.
fn parts(name: &str) -> (Tensors, Value) {
    let read = |file: &str| fs::read(folder().join(name).join(file)).expect("it is there");
    let bytes = read("model.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("it is a valid file");
    let part =
        |(name, view): (String, TensorView<'_>)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
    let config = serde_json::from_slice(&read("config.json")).expect("it is JSON");
    (file.tensors().into_iter().map(part).collect(), config)
}

/// A checkpoint of them.
fn checkpoint(tensors: &Tensors, config: &Value) -> Result<Checkpoint, ModelError> {
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), data).expect("as many bytes as the shape needs"))
    });
    let bytes = safetensors::serialize(views, None).expect("it can be written");
    let files = BTreeMap::from([
        ("model.safetensors".to_owned(), Arc::from(bytes)),
        ("config.json".to_owned(), Arc::from(config.to_string().into_bytes())),
    ]);
    checkpoints::open(&ModelSource::Memory { label: "changed".into(), files: Arc::new(files) })
}

/// A checkpoint with some tensors replaced, or removed where there is `None`.
fn changed(name: &str, change: impl Fn(&mut Tensors, &mut Value)) -> Result<(), ModelError> {
    let (mut tensors, mut config) = parts(name);
    change(&mut tensors, &mut config);
    let checkpoint = checkpoint(&tensors, &config)?;
    for name in checkpoint.names() {
        if let Some(view) = checkpoint.tensor(name)? {
            view.read::<f32>()?;
        }
    }
    Ok(())
}

/// Checks that a change is refused with a message that has all `parts`.
fn refused(name: &str, tensor: &str, parts: &[&str]) {
    let error = changed(name, |tensors, _| {
        let (_, shape, data) = tensors.get_mut(tensor).expect("it is there");
        let row = data.len() / shape[0];
        shape[0] -= 1;
        data.truncate(row * shape[0]);
    });
    let message = error.expect_err(name).to_string();
    parts.iter().for_each(|part| assert!(message.contains(part), "{name}: `{part}` in {message}"));
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    refused("fp8-channels", "proj.weight_scale", &["proj.weight_scale", "[24, 128]", "[23, 1]"]);
    refused("ct-int4", "proj.weight_scale", &["proj.weight_scale", "[24, 128]"]);
    refused("ct-int4-zeros", "proj.weight_zero_point", &["proj.weight_zero_point", "I32 of shape [3, 2]"]);
    refused("ct-int4", "proj.weight_shape", &["proj.weight_shape", "two I64 numbers"]);
    refused("gptq", "proj.qweight", &["proj.g_idx", "one I32 per input"]);
    refused("gptq-zeros", "proj.qzeros", &["proj.qweight", "zero points of 4 bits"]);
    refused("gptq", "proj.g_idx", &["proj.g_idx", "one I32 per input"]);
    refused("ct-nvfp4", "proj.weight_scale", &["proj.weight_scale", "[24, 8]", "[23, 8]"]);
    refused("modelopt-nvfp4", "proj.weight_scale", &["proj.weight_scale", "[24, 8]"]);
    refused("awq", "proj.qzeros", &["proj.qweight", "zero points of 4 bits"]);
}

#[test]
fn rows_without_bound_are_refused() {
    for (name, columns) in [("fp8-channels", 1 << 63), ("modelopt-nvfp4", 1 << 62)] {
        let error = changed(name, |tensors, _| {
            let mut empty = |tensor: &str, shape: Vec<usize>| {
                let stored = tensors.get_mut(tensor).expect("it is there");
                (stored.1, stored.2) = (shape, Vec::new());
            };
            empty("proj.weight", vec![0, columns]);
            if name == "modelopt-nvfp4" {
                empty("proj.weight_scale", vec![0, columns / 8]);
            }
        });
        let message = error.expect_err(name).to_string();
        assert!(message.contains("`proj.weight`: expected rows that fit in memory"), "{message}");
    }
}

#[test]
fn numbers_that_make_nvfp4_useless_are_refused() {
    for number in [0.0_f32, -1.0, f32::INFINITY, f32::NAN] {
        for (name, tensor) in [("ct-nvfp4", "proj.weight_global_scale"), ("modelopt-nvfp4", "proj.weight_scale_2")] {
            let error = changed(name, |tensors, _| {
                tensors.get_mut(tensor).expect("it is there").2 = number.to_le_bytes().to_vec();
            });
            let message = error.expect_err(name).to_string();
            assert!(message.contains(&format!("`{tensor}`: expected a finite number above zero")), "{message}");
        }
    }
    let scaled = changed("modelopt-nvfp4", |tensors, _| {
        let scale = (safetensors::Dtype::F32, vec![128], vec![0; 512]);
        tensors.insert("proj.pre_quant_scale".into(), scale);
    });
    let message = scaled.expect_err("its inputs are scaled").to_string();
    assert!(message.contains("`proj.pre_quant_scale`: expected no such tensor"), "{message}");
}

#[test]
fn missing_parts_and_other_methods_are_named() {
    let without = |name: &str, tensor: &str| {
        changed(name, |tensors, _| drop(tensors.remove(tensor))).expect_err(name).to_string()
    };
    assert!(without("fp8-blocks", "proj.weight_scale_inv").contains("scales in `proj.weight_scale_inv`"));
    assert!(without("ct-int4", "proj.weight_scale").contains("scales in `proj.weight_scale`"));
    assert!(without("ct-int4", "proj.weight_shape").contains("`proj.weight_shape`"));
    assert!(without("gptq", "proj.qzeros").contains("`proj.qzeros`"));
    let gemv = changed("awq", |_, config| config["quantization_config"]["version"] = json!("gemv"));
    assert!(gemv.expect_err("another order").to_string().contains("found gemv"));
    let format = changed("ct-int4", |_, config| config["quantization_config"]["format"] = json!("marlin-24"));
    assert!(format.expect_err("another format").to_string().contains("found marlin-24"));
    let awq = changed("modelopt-nvfp4", |_, config| config["quantization_config"]["quant_algo"] = json!("NVFP4_AWQ"));
    assert!(awq.expect_err("inputs are scaled, too").to_string().contains("found NVFP4_AWQ"));
    assert!(without("ct-nvfp4", "proj.weight_global_scale").contains("in `proj.weight_global_scale`"));
    assert!(without("modelopt-nvfp4", "proj.weight_scale_2").contains("in `proj.weight_scale_2`"));
    let bits = changed("gptq", |_, config| config["quantization_config"]["bits"] = json!(3));
    assert!(bits.expect_err("another width").to_string().contains("not of 3"));
    // Unordered groups that do not exist.
    let order = changed("gptq-shuffled", |tensors, _| {
        let (_, _, data) = tensors.get_mut("proj.g_idx").expect("it is there");
        data[..4].copy_from_slice(&400u32.to_le_bytes());
    });
    assert!(order.expect_err("no such group").to_string().contains("each below 4"));
}

#[test]
fn matrices_of_one_kind_have_one_type() {
    // The scales of the second expert are no numbers of f16, so that neither is read in blocks.
    let two = |spoiled: bool| {
        let (single, config) = parts("ct-int4");
        let mut tensors = Tensors::new();
        for (name, (dtype, shape, data)) in single {
            for expert in 0..2 {
                let mut data = data.clone();
                if spoiled && expert == 1 && name.ends_with("weight_scale") {
                    // The bf16 number 2^-30.
                    data[..2].copy_from_slice(&half::bf16::from_f32(2.0f32.powi(-30)).to_le_bytes());
                }
                tensors.insert(format!("experts.{expert}.{name}"), (dtype, shape.clone(), data));
            }
        }
        let checkpoint = checkpoint(&tensors, &config).expect("it is valid");
        [0, 1].map(|expert| {
            let name = format!("experts.{expert}.proj.weight");
            checkpoint.tensor(&name).expect("its type is known").expect("it is there").dtype
        })
    };
    assert_eq!(two(false), [Dtype::Q4_0; 2]);
    assert_eq!(two(true), [Dtype::F32; 2]);
}
