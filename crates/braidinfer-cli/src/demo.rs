//! The built-in demo model: a small story teller, trained as `tools/demo-model/` says.

use braidinfer::model::ModelSource;

macro_rules! embedded {
    ($($file:literal),+) => {
        &[$(($file, include_bytes!(concat!("../demo-model/", $file)))),+]
    };
}

/// The files, as they stand in `crates/braidinfer-cli/demo-model/`.
pub const SOURCE: ModelSource = ModelSource::Embedded {
    label: "the built-in demo model",
    files: embedded!(
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json"
    ),
};
