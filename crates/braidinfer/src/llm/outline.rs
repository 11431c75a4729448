//! What a model is, read without its weights.

use std::sync::Arc;

use braidinfer_model::{DecoderSpec, ModelSource};

use super::{ModelText, WeightsInfo};
use crate::Result;
use crate::executor::{DeviceChoice, GpuShare};
use crate::loading::{LoadOptions, ModelParts};

/// What a model is.
#[derive(Debug, Clone)]
pub struct Outline {
    /// The architecture's name in `config.json`.
    pub model_type: String,
    /// Longest sequence in tokens that the model is meant for.
    pub context: usize,
    /// Width of hidden states.
    pub hidden_size: usize,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Its weights.
    pub weights: WeightsInfo,
    /// Its tokenizer, chat template and settings.
    pub text: Arc<ModelText>,
}

impl Outline {
    /// Reads all files of a model, but of the weights only what describes them.
    pub fn read(source: &ModelSource, options: &LoadOptions) -> Result<Self> {
        let (device, gpu_share) = (DeviceChoice::Cpu, GpuShare::default());
        // It will compute nothing.
        let options = LoadOptions { quantize: None, device, gpu_share, adapters: Vec::new(), ..options.clone() };
        let mut parts = ModelParts::read(source, &options, &|_, _| {})?;
        let text = Arc::new(ModelText::take_from(&mut parts, &options));
        Ok(Self::of(&parts.spec, WeightsInfo::of(&parts.weights), text))
    }

    pub(super) fn of(spec: &DecoderSpec, weights: WeightsInfo, text: Arc<ModelText>) -> Self {
        Self {
            model_type: spec.model_type.clone(),
            context: spec.context_length(),
            hidden_size: spec.hidden_size,
            vocab_size: spec.vocab_size,
            weights,
            text,
        }
    }
}
