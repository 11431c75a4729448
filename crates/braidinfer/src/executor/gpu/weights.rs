//! The parameters of layers in the memory of a device, and the kernels that read them.

use std::borrow::Cow;
use std::ops::Range;

use braidinfer_gpu::kernels::{
    Activation, Add, ArgmaxKernel, AttentionKernels, AttentionShape, Epilogue, Gate, HeadNorm, HeadNormExtent,
    HeadsKernel, HeadsShape, NormKernel, ProductKernels,
};
use braidinfer_gpu::{Buffer, Format, Gpu, Matrix};
use braidinfer_model::quantization::dequantize;
use braidinfer_model::spec::{
    ActivationFunction, AttentionSpec, FeedForward, LayerSpec, Mixer, NormSpec, QkNormExtent,
};
use braidinfer_model::{DecoderSpec, Dtype, LayerSlot, Param, Slot, WeightBytes, Weights};

use crate::executor::KvDtype;
use crate::{Error, Result};

/// Embeddings, which are read where the model's files are and uploaded for the tokens of a step.
#[derive(Debug)]
pub(super) struct Embedding {
    dtype: Dtype,
    rows: usize,
    width: usize,
    bytes: WeightBytes,
}

/// What comes before the first layer and after the last one.
pub(super) struct Ends {
    pub(super) embedding: Embedding,
    pub(super) final_norm: Buffer,
    /// Norms listed rows.
    pub(super) norm: NormKernel,
    pub(super) lm_head: Matrix,
    pub(super) logits: ProductKernels,
    pub(super) argmax: ArgmaxKernel,
}

/// One layer.
pub(super) struct GpuLayer {
    pub(super) input_norm: Option<(NormKernel, Buffer)>,
    pub(super) attention: Option<GpuAttention>,
    pub(super) feed_forward: Option<GpuFeedForward>,
    /// Factor of the residual stream at the end.
    pub(super) scalar: f32,
}

/// A norm of what a branch adds to the residual stream, or nothing but the addition.
pub(super) struct BranchAdd {
    pub(super) kernel: NormKernel,
    /// The weight of the norm, if there is one.
    pub(super) norm: Option<Buffer>,
    pub(super) factor: f32,
}

/// Products with the matrices that read one row of activations, side by side in what they write.
pub(super) struct Projections {
    parts: Vec<Projection>,
    /// Width of all outputs.
    pub(super) width: usize,
}

/// A product with a matrix whose rows are those of one or more projections.
pub(super) struct Projection {
    pub(super) matrix: Matrix,
    pub(super) kernels: ProductKernels,
    /// Where its outputs begin.
    pub(super) column: usize,
}

/// The product at the end of a branch. Its kernels add to the residual stream, or write the branch.
pub(super) struct OutputProjection {
    pub(super) matrix: Matrix,
    pub(super) stored: ProductKernels,
    pub(super) added: ProductKernels,
}

/// Attention.
pub(super) struct GpuAttention {
    pub(super) spec: AttentionSpec,
    pub(super) rope: Option<usize>,
    /// Index into [`DecoderSpec::attentions`].
    pub(super) kind: usize,
    pub(super) projections: Projections,
    /// Columns of queries, keys and values in the output of the projections.
    pub(super) columns: [usize; 3],
    pub(super) head_norms: Buffer,
    pub(super) sinks: Option<Buffer>,
    /// For keys and values in f32, and in f16.
    pub(super) by_storage: [HeadKernels; 2],
    pub(super) output: OutputProjection,
    pub(super) add: BranchAdd,
}

/// The kernels of heads, for one type of keys and values.
pub(super) struct HeadKernels {
    pub(super) heads: HeadsKernel,
    pub(super) attention: AttentionKernels,
    pub(super) attention_shape: AttentionShape,
}

/// A feed-forward network.
pub(super) struct GpuFeedForward {
    pub(super) norm: Option<(NormKernel, Buffer)>,
    pub(super) inner: Projection,
    pub(super) inner_width: usize,
    pub(super) output: OutputProjection,
    pub(super) add: BranchAdd,
}

/// Why layers of a model cannot be computed here.
pub(super) fn unsupported(spec: &DecoderSpec, layer: usize) -> Option<&'static str> {
    let LayerSpec { mixer, feed_forward, mamba2_beside } = &spec.layers[layer];
    if spec.block.parallel && !spec.block.input_norm {
        return Some("attention and feed-forward network side by side without a norm");
    }
    match mixer {
        _ if mamba2_beside.is_some() => return Some("Mamba-2 beside attention"),
        Mixer::Attention { kv_shared_with: Some(_), .. } => return Some("keys and values of another layer"),
        Mixer::Attention { .. } => {
            let attention = spec.attention(layer)?;
            if attention.latent.is_some() {
                return Some("latent attention");
            }
            if !attention.head_dim.is_multiple_of(2) {
                return Some("heads of an odd width");
            }
        }
        Mixer::DeltaNet { .. } => return Some("a gated delta net"),
        Mixer::ShortConv { .. } => return Some("a short convolution"),
        Mixer::Mamba2 { .. } => return Some("Mamba-2"),
        Mixer::None => {}
    }
    match feed_forward {
        FeedForward::Experts(_) => Some("a mixture of experts"),
        FeedForward::Dense { gate_cutoff: Some(_), .. } => Some("gates of which only the largest take part"),
        FeedForward::Dense { hidden_act: ActivationFunction::ClampedSwiglu { .. }, .. } => Some("a clamped gate"),
        FeedForward::Dense { .. } | FeedForward::None => None,
    }
}

impl Embedding {
    fn load(weights: &Weights) -> Result<Self> {
        let (slot, param) = (Slot::EmbedTokens, Param::Weight);
        let view = weights.get(slot, param).ok_or_else(|| absent(slot))?;
        view.check()?;
        let bytes = weights.bytes(slot, param).ok_or_else(|| absent(slot))?;
        Ok(Self { dtype: view.dtype, rows: view.shape[0], width: view.shape[1], bytes })
    }

    /// Appends the embedding of a token to `out`.
    pub(super) fn row(&self, token: u32, out: &mut Vec<f32>) -> Result<()> {
        let (row, at) = (self.bytes.size() / self.rows, token as usize);
        let start = out.len();
        out.resize(start + self.width, 0.0);
        dequantize(self.dtype, &self.bytes.part(at * row..(at + 1) * row)?, &mut out[start..]);
        Ok(())
    }
}

/// Loads parameters into the memory of a device.
pub(super) struct Loader<'a> {
    pub(super) gpu: &'a mut Gpu,
    pub(super) spec: &'a DecoderSpec,
    pub(super) weights: &'a Weights,
}

/// The order of the rows of several projections in one matrix.
#[derive(Clone, Copy, PartialEq)]
enum RowOrder {
    /// All rows of one, then those of the next.
    Following,
    /// The first rows of all, then the second ones.
    Alternating,
}

impl Loader<'_> {
    pub(super) fn ends(&mut self) -> Result<Ends> {
        let spec = self.spec;
        let lm_head = self.matrix(&[Slot::LmHead], RowOrder::Following)?;
        let epilogue = Epilogue::Logits {
            scaling: spec.logits_scaling as f32,
            cap: spec.final_logit_softcapping.map(|cap| cap as f32),
        };
        Ok(Ends {
            embedding: Embedding::load(self.weights)?,
            final_norm: self.norm(Slot::FinalNorm, &spec.norm)?.ok_or_else(|| absent(Slot::FinalNorm))?,
            norm: NormKernel::new(self.gpu, Add::Nothing, Some(spec.norm), true)?,
            logits: ProductKernels::new(self.gpu, lm_head.format, lm_head.bias.is_some(), epilogue)?,
            argmax: ArgmaxKernel::new(self.gpu)?,
            lm_head,
        })
    }

    pub(super) fn layer(&mut self, index: usize) -> Result<GpuLayer> {
        let spec = self.spec;
        let scalar = self.weights.get(Slot::Layer(index, LayerSlot::LayerScalar), Param::Weight);
        let scalar = scalar.map(|view| view.read::<f32>()).transpose()?.and_then(|values| values.first().copied());
        let input_norm = self.norm(Slot::Layer(index, LayerSlot::InputNorm), &spec.norm)?;
        Ok(GpuLayer {
            input_norm: self.with_kernel(input_norm)?,
            attention: match spec.layers[index].mixer {
                Mixer::Attention { .. } => Some(self.attention(index)?),
                _ => None,
            },
            feed_forward: self.feed_forward(index)?,
            scalar: scalar.unwrap_or(1.0),
        })
    }

    fn with_kernel(&mut self, norm: Option<Buffer>) -> Result<Option<(NormKernel, Buffer)>> {
        let spec = self.spec.norm;
        norm.map(|norm| Ok((NormKernel::new(self.gpu, Add::Nothing, Some(spec), false)?, norm))).transpose()
    }

    fn attention(&mut self, index: usize) -> Result<GpuAttention> {
        let spec = self.spec;
        let Mixer::Attention { attention: kind, sliding_window: window, rope, .. } = spec.layers[index].mixer else {
            return Err(absent(Slot::Layer(index, LayerSlot::QProj)));
        };
        let attention = spec.attentions[kind];
        let slot = |slot| Slot::Layer(index, slot);
        let mut slots = vec![slot(LayerSlot::QProj), slot(LayerSlot::KProj)];
        slots.extend(attention.value_slot().map(slot));
        slots.extend(attention.head_gate.then_some(slot(LayerSlot::HeadGate)));
        let projections = self.projections(&slots)?;
        let keys = attention.query_rows();
        let values = if attention.attention_k_eq_v { keys } else { keys + attention.key_value_width() };
        let gate = match (attention.output_gate, attention.head_gate) {
            (true, _) => Gate::Queries,
            (_, true) => Gate::Heads(values + attention.key_value_width()),
            _ => Gate::None,
        };
        let norm = attention.qk_norm.map(|norm| HeadNorm {
            norm: norm.norm,
            extent: match norm.extent {
                QkNormExtent::Head => HeadNormExtent::Head,
                QkNormExtent::EachHead => HeadNormExtent::EachHead,
                QkNormExtent::Projection => HeadNormExtent::Projection,
            },
            after_rope: norm.after_rope,
        });
        let heads = HeadsShape {
            heads: attention.num_attention_heads,
            kv_heads: attention.num_key_value_heads,
            head_dim: attention.head_dim,
            query_rows: attention.query_head_rows(),
            key_column: Some(keys),
            value_column: values,
            norm,
            value_norm_eps: attention.value_norm_eps.map(|eps| eps as f32),
            rotation: rope.map(|table| (spec.rope[table].rotary_dim / 2, spec.rope[table].pairing)),
            scales_queries: attention.query_position_scale.is_some(),
            half_kv: false,
        };
        let shape = AttentionShape {
            heads: attention.num_attention_heads,
            kv_heads: attention.num_key_value_heads,
            head_dim: attention.head_dim,
            scale: attention.scale as f32,
            cap: attention.logit_softcapping.map(|cap| cap as f32),
            window,
            sinks: attention.sinks,
            gate,
            half_kv: false,
        };
        let by_storage = [self.head_kernels(heads, shape, false)?, self.head_kernels(heads, shape, true)?];
        let factor = (spec.residual_multiplier * spec.branch_multipliers().attention) as f32;
        let sinks =
            self.weights.get(slot(LayerSlot::Sinks), Param::Weight).map(|view| view.read::<f32>()).transpose()?;
        Ok(GpuAttention {
            spec: attention,
            rope,
            kind,
            projections,
            columns: [0, keys, values],
            head_norms: self.head_norms(index, &attention)?,
            sinks: sinks.map(|sinks| self.vector(&sinks)).transpose()?,
            by_storage,
            output: self.output(slot(LayerSlot::OProj), factor)?,
            add: self.branch_add(slot(LayerSlot::AttentionOutputNorm), factor)?,
        })
    }

    fn head_kernels(&mut self, heads: HeadsShape, shape: AttentionShape, half_kv: bool) -> Result<HeadKernels> {
        let heads_shape = HeadsShape { half_kv, ..heads };
        let attention_shape = AttentionShape { half_kv, ..shape };
        Ok(HeadKernels {
            heads: HeadsKernel::new(self.gpu, &heads_shape)?,
            attention: AttentionKernels::new(self.gpu, &attention_shape)?,
            attention_shape,
        })
    }

    /// The weights of the norm of queries, its biases, and those of keys.
    fn head_norms(&mut self, index: usize, attention: &AttentionSpec) -> Result<Buffer> {
        let mut values = Vec::new();
        if let Some(norm) = attention.qk_norm {
            for name in [LayerSlot::QNorm, LayerSlot::KNorm] {
                let slot = Slot::Layer(index, name);
                values.extend(self.norm_values(slot, &norm.norm)?.ok_or_else(|| absent(slot))?);
            }
        }
        self.vector(&values)
    }

    fn feed_forward(&mut self, index: usize) -> Result<Option<GpuFeedForward>> {
        let spec = self.spec;
        let FeedForward::Dense { intermediate_size, hidden_act, gated, .. } = spec.layers[index].feed_forward else {
            return Ok(None);
        };
        let slot = |slot| Slot::Layer(index, slot);
        let down = slot(LayerSlot::DownProj);
        let activation = self.activation(down, hidden_act)?;
        let factor = (spec.residual_multiplier * spec.branch_multipliers().feed_forward) as f32;
        let norm = self.norm(slot(LayerSlot::FeedForwardNorm), &spec.norm)?;
        let (slots, epilogue) = match gated {
            true => (vec![slot(LayerSlot::GateProj), slot(LayerSlot::UpProj)], Epilogue::Gated(activation)),
            false => (vec![slot(LayerSlot::UpProj)], Epilogue::Activated(activation)),
        };
        let matrix = self.matrix(&slots, RowOrder::Alternating)?;
        let kernels = ProductKernels::new(self.gpu, matrix.format, matrix.bias.is_some(), epilogue)?;
        Ok(Some(GpuFeedForward {
            norm: self.with_kernel(norm)?,
            inner: Projection { matrix, kernels, column: 0 },
            inner_width: intermediate_size,
            output: self.output(down, factor)?,
            add: self.branch_add(slot(LayerSlot::FeedForwardOutputNorm), factor)?,
        }))
    }

    fn activation(&self, down: Slot, function: ActivationFunction) -> Result<Activation> {
        Ok(match function {
            ActivationFunction::Silu => Activation::Silu { factor: 1.0 },
            ActivationFunction::ScaledSilu { gate_multiplier } => Activation::Silu { factor: gate_multiplier as f32 },
            ActivationFunction::GeluTanh => Activation::GeluTanh,
            ActivationFunction::GeluErf => Activation::GeluErf,
            ActivationFunction::Relu => Activation::Relu,
            ActivationFunction::Relu2 => Activation::Relu2,
            ActivationFunction::Xielu => {
                let xielu = self.weights.xielu(down)?.ok_or_else(|| absent(down))?;
                Activation::Xielu { positive: xielu.positive, negative: xielu.negative, beta: xielu.beta }
            }
            ActivationFunction::ClampedSwiglu { .. } => {
                return Err(Error::Internal("a clamped gate was given to a GPU".into()));
            }
        })
    }

    /// Products with matrices that read the same rows; those of one type are one product.
    fn projections(&mut self, slots: &[Slot]) -> Result<Projections> {
        let mut parts = Vec::new();
        let mut width = 0;
        let dtype = |slot| self.weights.get(slot, Param::Weight).map(|view| view.dtype);
        let alike: Vec<&[Slot]> = slots.chunk_by(|a, b| dtype(*a) == dtype(*b)).collect();
        for slots in alike {
            let matrix = self.matrix(slots, RowOrder::Following)?;
            let kernels = ProductKernels::new(self.gpu, matrix.format, matrix.bias.is_some(), Epilogue::Stored)?;
            let column = width;
            width += matrix.rows;
            parts.push(Projection { matrix, kernels, column });
        }
        Ok(Projections { parts, width })
    }

    fn output(&mut self, slot: Slot, factor: f32) -> Result<OutputProjection> {
        let matrix = self.matrix(&[slot], RowOrder::Following)?;
        let has_bias = matrix.bias.is_some();
        Ok(OutputProjection {
            stored: ProductKernels::new(self.gpu, matrix.format, has_bias, Epilogue::Stored)?,
            added: ProductKernels::new(self.gpu, matrix.format, has_bias, Epilogue::Added { factor })?,
            matrix,
        })
    }

    fn branch_add(&mut self, slot: Slot, factor: f32) -> Result<BranchAdd> {
        let norm = self.norm(slot, &self.spec.norm)?;
        let add = if norm.is_some() { Add::Normed(self.spec.norm) } else { Add::Branch };
        Ok(BranchAdd { kernel: NormKernel::new(self.gpu, add, None, false)?, norm, factor })
    }

    /// The matrices in some slots as one, with the biases of all of them if any has some.
    fn matrix(&mut self, slots: &[Slot], order: RowOrder) -> Result<Matrix> {
        let rows = Rows::new(self.weights, slots, order)?;
        let what = format!("{:?}", slots[0]);
        let shape = [rows.count, rows.columns];
        let mut matrix = Matrix::load(self.gpu, &what, rows.format, shape, |range| rows.read(range))?;
        let biases: Vec<Option<Vec<f32>>> = slots
            .iter()
            .map(|slot| self.weights.get(*slot, Param::Bias).map(|view| view.read::<f32>()).transpose())
            .collect::<std::result::Result<_, _>>()?;
        if biases.iter().any(Option::is_some) {
            let value = |row: usize| {
                let (part, row) = rows.source(row);
                biases[part].as_ref().map_or(0.0, |bias| bias[row])
            };
            let all: Vec<f32> = (0..rows.count).map(value).collect();
            matrix.set_bias(self.gpu, &all)?;
        }
        Ok(matrix)
    }

    fn norm(&mut self, slot: Slot, spec: &NormSpec) -> Result<Option<Buffer>> {
        self.norm_values(slot, spec)?.map(|values| self.vector(&values)).transpose()
    }

    /// The weight of a norm, with what is added to it, and then its bias if it has one.
    fn norm_values(&self, slot: Slot, spec: &NormSpec) -> Result<Option<Vec<f32>>> {
        let Some(weight) = self.weights.get(slot, Param::Weight) else { return Ok(None) };
        let mut values: Vec<f32> = weight.read::<f32>()?.iter().map(|weight| weight + spec.weight_offset).collect();
        if spec.bias {
            let bias = self.weights.get(slot, Param::Bias).ok_or_else(|| absent(slot))?;
            values.extend(bias.read::<f32>()?);
        }
        Ok(Some(values))
    }

    fn vector(&mut self, values: &[f32]) -> Result<Buffer> {
        let buffer = self.gpu.buffer("vectors", values.len() * 4)?;
        self.gpu.write_f32(&buffer, 0, values);
        Ok(buffer)
    }
}

impl Projections {
    /// The products, in the order of their columns.
    pub(super) fn parts(&self) -> &[Projection] {
        &self.parts
    }
}

/// Rows of the matrices in some slots.
struct Rows<'a> {
    weights: &'a Weights,
    slots: &'a [Slot],
    /// Rows of each.
    lengths: Vec<usize>,
    order: RowOrder,
    format: Format,
    count: usize,
    columns: usize,
}

impl<'a> Rows<'a> {
    fn new(weights: &'a Weights, slots: &'a [Slot], order: RowOrder) -> Result<Self> {
        let (mut lengths, mut dtypes, mut columns) = (Vec::new(), Vec::new(), 0);
        for slot in slots {
            let view = weights.get(*slot, Param::Weight).ok_or_else(|| absent(*slot))?;
            view.check()?;
            lengths.push(view.shape[0]);
            columns = view.shape[1];
            dtypes.push(view.dtype);
        }
        // Matrices of several types in one are read in f32.
        let same = dtypes.iter().all(|dtype| *dtype == dtypes[0]);
        let format = Format::or_f32(if same { dtypes[0] } else { Dtype::F32 });
        let count = lengths.iter().sum();
        Ok(Self { weights, slots, lengths, order, format, count, columns })
    }

    /// Where a row comes from: the slot's index, and the row there.
    fn source(&self, row: usize) -> (usize, usize) {
        match self.order {
            RowOrder::Alternating => (row % self.slots.len(), row / self.slots.len()),
            RowOrder::Following => {
                let mut row = row;
                for (part, length) in self.lengths.iter().enumerate() {
                    if row < *length {
                        return (part, row);
                    }
                    row -= length;
                }
                (self.slots.len(), row)
            }
        }
    }

    /// The bytes of some rows, in the type of the format.
    fn read(&self, rows: Range<usize>) -> Result<Vec<Cow<'static, [u8]>>> {
        let mut all = vec![Cow::Borrowed(&[][..]); rows.len()];
        for (part, slot) in self.slots.iter().enumerate() {
            let own: Vec<(usize, usize)> = rows
                .clone()
                .map(|row| (row - rows.start, self.source(row)))
                .filter(|(_, (of, _))| *of == part)
                .map(|(at, (_, row))| (at, row))
                .collect();
            let (Some((_, first)), Some((_, last))) = (own.first(), own.last()) else { continue };
            let bytes = self.read_slot(*slot, *first..last + 1)?;
            let length = bytes.len() / (last + 1 - first);
            for (at, row) in &own {
                let from = (row - first) * length;
                all[*at] = Cow::Owned(bytes[from..from + length].to_vec());
            }
        }
        Ok(all)
    }

    fn read_slot(&self, slot: Slot, rows: Range<usize>) -> Result<Vec<u8>> {
        let view = self.weights.get(slot, Param::Weight).ok_or_else(|| absent(slot))?;
        if view.dtype == self.format.dtype {
            let row = view.data.len() / view.shape[0];
            return Ok(view.data.read_part(rows.start * row..rows.end * row)?.into_owned());
        }
        Ok(view.read_rows::<f32>(rows)?.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
}

/// The kernels for a type of keys and values.
pub(super) fn storage_index(dtype: KvDtype) -> Result<usize> {
    match dtype {
        KvDtype::F32 => Ok(0),
        KvDtype::F16 => Ok(1),
        KvDtype::Q8_0 | KvDtype::Q4_0 => Err(Error::bad_request("kv_dtype", "f32 or f16 on a GPU", dtype.name())),
    }
}

fn absent(slot: Slot) -> Error {
    Error::Internal(format!("the architecture calls for {slot:?}, which the weights lack"))
}
