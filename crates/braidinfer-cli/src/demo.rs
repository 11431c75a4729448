//! The built-in demo model: a small model of children's stories, trained by `tools/demo-model/`.

use braidinfer::model::ModelSource;

macro_rules! embedded {
    ($($file:literal),+) => {
        &[$(($file, include_bytes!(concat!("../demo-model/", $file)))),+]
    };
}

/// The files of `crates/braidinfer-cli/demo-model/`, compiled into the program.
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
