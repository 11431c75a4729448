//! Quantization mixtures: the data type of each tensor of a model.

use std::fmt;
use std::str::FromStr;

use crate::layout::{ExpertSlot, LayerSlot, Param, Slot, Stack};
use crate::spec::DecoderSpec;
use crate::{Dtype, ModelError};

/// A mixture of data types, with the names and rules of llama.cpp (`llama-quant.cpp`, without an importance matrix):
/// norms and biases stay f32; the output head gets more bits than the rest; in the `_m` mixtures of 4 and 5 bits, value
/// and down projections of the first and last layers and of every third layer in between get more bits, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    /// Every tensor in f32.
    F32,
    /// Matrices in f16.
    F16,
    /// Matrices in bf16.
    BF16,
    /// Matrices in q8_0.
    Q8_0,
    /// Matrices in q6_k.
    Q6K,
    /// Matrices in q5_k, some in q6_k.
    Q5KM,
    /// Feed-forward matrices in mxfp4, all others in q8_0. llama.cpp's `MXFP4_MOE` has mxfp4 for experts only, which
    /// are the feed-forward matrices of models that have any.
    Mxfp4,
    /// Matrices in q4_k, some in q6_k.
    Q4KM,
    /// Matrices in q4_0, the output head in q6_k.
    Q4_0,
    /// Matrices in q3_k, but values, attention outputs and down projections in q4_k, the first of them in q5_k; the output
    /// head in q6_k.
    Q3KM,
    /// Matrices in q2_k, but attention outputs and down projections in q3_k, and values, too, or in q4_k where four or
    /// more heads share them; the output head in q6_k.
    Q2K,
    /// Matrices in tq2_0, the embedding in q4_k, the output head in q6_k: for models that were trained to be ternary.
    Tq2_0,
    /// Matrices in tq1_0, the embedding in q4_k, the output head in q6_k: for models that were trained to be ternary.
    Tq1_0,
}

impl FileType {
    /// All mixtures, largest files first.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q6K,
        Self::Q5KM,
        Self::Mxfp4,
        Self::Q4KM,
        Self::Q4_0,
        Self::Q3KM,
        Self::Q2K,
        Self::Tq2_0,
        Self::Tq1_0,
    ];

    /// The name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q6K => "q6_k",
            Self::Q5KM => "q5_k_m",
            Self::Q4KM => "q4_k_m",
            Self::Mxfp4 => "mxfp4",
            Self::Q4_0 => "q4_0",
            Self::Q3KM => "q3_k_m",
            Self::Q2K => "q2_k",
            Self::Tq2_0 => "tq2_0",
            Self::Tq1_0 => "tq1_0",
        }
    }

    /// llama.cpp's number (`enum llama_ftype` in `llama.h`), stored in files as `general.file_type`.
    pub const fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q2K => 10,
            Self::Q3KM => 12,
            Self::Q4KM => 15,
            Self::Q5KM => 17,
            Self::Q6K => 18,
            Self::BF16 => 32,
            Self::Tq1_0 => 36,
            Self::Tq2_0 => 37,
            Self::Mxfp4 => 38,
        }
    }

    /// The data type of a tensor of `spec`. If `head_is_embedding`, the output head is not stored.
    pub fn dtype(self, spec: &DecoderSpec, stack: &Stack, head_is_embedding: bool) -> Dtype {
        let wanted = self.wanted(spec, stack, head_is_embedding);
        fitting(wanted, stack.shape().last().copied().unwrap_or(1))
    }

    /// Like [`FileType::dtype`], where there is an importance matrix: with `q4_0`, down projections of the first layers
    /// are `q4_1` then, as in llama.cpp.
    pub fn dtype_with_importance(self, spec: &DecoderSpec, stack: &Stack, head_is_embedding: bool) -> Dtype {
        let is_early = |layer: usize| layer < spec.layers.len() / 8;
        match stack.parameters[0].slot {
            Slot::Layer(layer, LayerSlot::DownProj | LayerSlot::SharedDownProj)
            | Slot::Expert(layer, _, ExpertSlot::DownProj)
                if self == Self::Q4_0 && stack.parameters[0].param == Param::Weight && is_early(layer) =>
            {
                fitting(Dtype::Q4_1, stack.shape().last().copied().unwrap_or(1))
            }
            _ => self.dtype(spec, stack, head_is_embedding),
        }
    }

    /// Whether a tensor gets a fallback type, because its rows are not whole blocks of the intended type.
    pub fn falls_back(self, spec: &DecoderSpec, stack: &Stack, head_is_embedding: bool) -> bool {
        self.wanted(spec, stack, head_is_embedding) != self.dtype(spec, stack, head_is_embedding)
    }

    fn wanted(self, spec: &DecoderSpec, stack: &Stack, head_is_embedding: bool) -> Dtype {
        let first = &stack.parameters[0];
        if first.slot.is_norm() || first.param == Param::Bias || first.shape.len() < 2 {
            return Dtype::F32;
        }
        // As llama.cpp: a router is small, and decides; a convolution is small, and its rows are shorter than blocks. A gate of
        // heads is like a router: small, and each of its values weighs a whole head.
        if matches!(
            first.slot,
            Slot::Layer(_, LayerSlot::Router | LayerSlot::SharedExpertGate | LayerSlot::HeadGate | LayerSlot::Conv1d)
        ) {
            return Dtype::F32;
        }
        let base = self.base();
        if is_of_streams(first.slot) && base.is_quantized() {
            return Dtype::BF16;
        }
        match first.slot {
            // As llama.cpp, which leaves it as it is: it is small, and every layer depends on it.
            Slot::PerLayerModelProjection if base.is_quantized() => Dtype::BF16,
            _ if !base.is_quantized() || base == Dtype::Q8_0 => base,
            Slot::Layer(_, LayerSlot::GateProj | LayerSlot::UpProj | LayerSlot::DownProj) | Slot::Expert(..)
                if base == Dtype::Mxfp4 =>
            {
                base
            }
            _ if base == Dtype::Mxfp4 => Dtype::Q8_0,
            Slot::LmHead => Dtype::Q6K,
            Slot::EmbedTokens if head_is_embedding => Dtype::Q6K,
            Slot::EmbedTokens | Slot::EmbedTokensPerLayer if matches!(self, Self::Tq1_0 | Self::Tq2_0) => Dtype::Q4K,
            Slot::Layer(index, LayerSlot::DownProj | LayerSlot::SharedDownProj)
            | Slot::Expert(index, _, ExpertSlot::DownProj) => self.down(index, spec.layers.len()),
            Slot::Layer(_, LayerSlot::OProj) => match self {
                Self::Q3KM => Dtype::Q4K,
                Self::Q2K => Dtype::Q3K,
                _ => base,
            },
            Slot::Layer(index, _) if holds_values(stack) => self.values(spec, index),
            _ => base,
        }
    }

    fn base(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::BF16 => Dtype::BF16,
            Self::Q8_0 => Dtype::Q8_0,
            Self::Q6K => Dtype::Q6K,
            Self::Q5KM => Dtype::Q5K,
            Self::Q4KM => Dtype::Q4K,
            Self::Q4_0 => Dtype::Q4_0,
            Self::Q3KM => Dtype::Q3K,
            Self::Q2K => Dtype::Q2K,
            Self::Mxfp4 => Dtype::Mxfp4,
            Self::Tq1_0 => Dtype::Tq1_0,
            Self::Tq2_0 => Dtype::Tq2_0,
        }
    }

    /// The data type of a down projection.
    fn down(self, layer: usize, layers: usize) -> Dtype {
        match self {
            Self::Q3KM if layer < layers / 16 => Dtype::Q5K,
            Self::Q3KM => Dtype::Q4K,
            Self::Q2K => Dtype::Q3K,
            _ if self.more_bits(layer, layers) => Dtype::Q6K,
            _ => self.base(),
        }
    }

    /// The data type of a value projection.
    fn values(self, spec: &DecoderSpec, layer: usize) -> Dtype {
        if self.more_bits(layer, spec.layers.len()) {
            return Dtype::Q6K;
        }
        let Some(attention) = spec.attention(layer) else { return self.base() };
        let shared = attention.num_attention_heads / attention.num_key_value_heads.max(1);
        let dtype = match self {
            Self::Q3KM if layer < 2 => Dtype::Q5K,
            Self::Q3KM => Dtype::Q4K,
            Self::Q2K if shared >= 4 => Dtype::Q4K,
            Self::Q2K => Dtype::Q3K,
            _ => self.base(),
        };
        // In 70B models the value projections are so small that more bits cost next to nothing.
        let large = spec.layers.len() == 80 && shared > 1;
        if large && matches!(dtype, Dtype::Q3K | Dtype::Q4K) { Dtype::Q5K } else { dtype }
    }

    fn more_bits(self, layer: usize, layers: usize) -> bool {
        let chosen = layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
        matches!(self, Self::Q5KM | Self::Q4KM) && chosen
    }
}

/// Whether it is a matrix between residual streams or of a low-rank branch. llama.cpp leaves them as they are: they are
/// small, and all layers depend on those of streams.
fn is_of_streams(slot: Slot) -> bool {
    use LayerSlot::{CorrectionCoefs, LaurelLeft, LaurelRight, PredictionCoefs, StreamRouter};
    match slot {
        Slot::StreamProjection(_) | Slot::StreamUnembedding(_) => true,
        Slot::Layer(_, slot) => {
            matches!(slot, StreamRouter | PredictionCoefs | CorrectionCoefs | LaurelLeft | LaurelRight)
        }
        _ => false,
    }
}

/// Whether the tensor contains a value projection, alone or stacked after queries and keys.
fn holds_values(stack: &Stack) -> bool {
    stack.parameters.iter().any(|parameter| matches!(parameter.slot, Slot::Layer(_, LayerSlot::VProj)))
}

/// `wanted`, or its fallback if rows of `columns` values are not whole blocks of it.
fn fitting(wanted: Dtype, columns: usize) -> Dtype {
    let smaller = match wanted {
        Dtype::Q4K => Dtype::Q5_0,
        Dtype::Q5K => Dtype::Q5_1,
        Dtype::Q6K => Dtype::Q8_0,
        Dtype::Q2K | Dtype::Q3K | Dtype::Tq1_0 | Dtype::Tq2_0 => Dtype::Q4_0,
        other => other,
    };
    let fits = |dtype: &Dtype| columns.is_multiple_of(dtype.block_len());
    [wanted, smaller].into_iter().find(fits).unwrap_or(Dtype::F16)
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for FileType {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, ModelError> {
        let found = Self::ALL.into_iter().find(|file_type| file_type.name().eq_ignore_ascii_case(name));
        found.ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|file_type| file_type.name()).collect();
            let readable = Dtype::ALL.iter().any(|dtype| dtype.name().eq_ignore_ascii_case(name));
            ModelError::UnknownFileType { found: name.to_owned(), known: names.join(", "), readable }
        })
    }
}
