//! Packs the weights of a model, one by one in the order of its layers.

use braidinfer_kernels::norm::NormKind;
use braidinfer_kernels::router::{Divisor, Groups, Routing, Scoring};
use braidinfer_kernels::{ActivationFunction as Activation, LANES, PanelFormat, Pool, panel_bytes};
use braidinfer_model::spec::{
    self, ActivationFunction, DeltaNetProjections, DeltaNetSpec, ExpertGroups, ExpertsSpec, FeedForward, GroupScore,
    LatentSpec, Mamba2Spec, Mixer, NormSpec, RouterSpec, ScoringFunction, ShortConvSpec,
};
use braidinfer_model::{DecoderSpec, ExpertSlot, LayerSlot, Param, Slot, Weights};

use super::super::packing::{Destination, Packable};
use super::super::recurrent_state::StateShape;
use super::{
    ALIGNMENT, Embedding, Ends, PackedAltUp, PackedAttention, PackedDeltaNet, PackedFeedForward, PackedLaurel,
    PackedLayer, PackedLinear, PackedMamba2, PackedMixer, PackedMixture, PackedNetwork, PackedNorm,
    PackedPerLayerInput, PackedPerLayerInputs, PackedShortConv, StoredRows, absent, matrix_bytes, section, weight_type,
};
use crate::executor::KernelPlan;
use crate::executor::branch_norms::BranchNorms;
use crate::executor::keys::{Keys, OwnKeys};
use crate::executor::latent::Latent;
use crate::{Error, Result};

pub(super) struct Packer<'a> {
    pub(super) spec: &'a DecoderSpec,
    pub(super) weights: &'a Weights,
    pub(super) plan: &'a KernelPlan,
    pub(super) to: Destination<'a>,
    /// The end of what was packed of each part.
    pub(super) packed: [usize; 3],
}

impl<'a> Packer<'a> {
    pub(super) fn ends(&mut self, pool: &mut Pool) -> Result<Ends> {
        let lm_head = self.linear(Slot::LmHead, pool)?;
        let final_norm = self.required_norm(Slot::FinalNorm, &self.spec.norm)?;
        let embedding = if self.weights.head_is_embedding() {
            Embedding::Head
        } else {
            Embedding::Stored(self.rows(Slot::EmbedTokens, pool)?)
        };
        Ok(Ends { embedding, final_norm, lm_head })
    }

    pub(super) fn layer(&mut self, index: usize, pool: &mut Pool) -> Result<PackedLayer> {
        let slot = |slot| Slot::Layer(index, slot);
        let norm = self.spec.norm;
        Ok(PackedLayer {
            altup: self.altup(index, pool)?.map(Box::new),
            input_norm: self.norm(slot(LayerSlot::InputNorm), &norm)?,
            laurel: self.laurel(index, pool)?.map(Box::new),
            mixers: self.mixers(index, pool)?,
            attention_output_norm: self.norm(slot(LayerSlot::AttentionOutputNorm), &norm)?,
            feed_forward_norm: self.norm(slot(LayerSlot::FeedForwardNorm), &norm)?,
            feed_forward: self.feed_forward(index, pool)?,
            feed_forward_output_norm: self.norm(slot(LayerSlot::FeedForwardOutputNorm), &norm)?,
            per_layer_input: self.per_layer_input(index, pool)?.map(Box::new),
            scalar: self.vector(slot(LayerSlot::LayerScalar), Param::Weight)?.map(|values| values[0]),
        })
    }

    /// The projections of each residual stream but the first.
    pub(super) fn of_streams(&mut self, slot: fn(usize) -> Slot, pool: &mut Pool) -> Result<Vec<PackedLinear>> {
        (0..self.spec.streams() - 1).map(|stream| self.linear(slot(stream), pool)).collect()
    }

    fn altup(&mut self, index: usize, pool: &mut Pool) -> Result<Option<PackedAltUp>> {
        let Some(spec) = self.spec.altup else { return Ok(None) };
        let slot = |slot| Slot::Layer(index, slot);
        let (count, factor) = (spec.altup_num_inputs, spec.router_multiplier as f32);
        let coefs = |name, len: usize| {
            let mut values = self.vector(slot(name), Param::Weight)?.ok_or_else(|| absent(slot(name)))?;
            values.truncate(len);
            Ok::<_, Error>(values)
        };
        let mut router_norm = self.required_norm(slot(LayerSlot::StreamRouterNorm), &self.spec.norm)?;
        router_norm.weight.iter_mut().for_each(|weight| *weight *= factor);
        Ok(Some(PackedAltUp {
            count,
            active: spec.altup_active_idx,
            router_norm,
            prediction_coefs: coefs(LayerSlot::PredictionCoefs, count.pow(3))?,
            correction_coefs: coefs(LayerSlot::CorrectionCoefs, count.pow(2))?,
            output_scale: self.vector(slot(LayerSlot::CorrectOutputScale), Param::Weight)?,
            router: self.linear(slot(LayerSlot::StreamRouter), pool)?,
        }))
    }

    fn laurel(&mut self, index: usize, pool: &mut Pool) -> Result<Option<PackedLaurel>> {
        let with_mixer = self.spec.layers[index].mixer != Mixer::None;
        let Some(laurel) = self.spec.laurel.filter(|_| with_mixer) else { return Ok(None) };
        let slot = |slot| Slot::Layer(index, slot);
        Ok(Some(PackedLaurel {
            left: self.linear(slot(LayerSlot::LaurelLeft), pool)?,
            right: self.linear(slot(LayerSlot::LaurelRight), pool)?,
            norm: self.required_norm(slot(LayerSlot::LaurelNorm), &self.spec.norm)?,
            sum_multiplier: laurel.sum_multiplier as f32,
        }))
    }

    fn mixers(&mut self, index: usize, pool: &mut Pool) -> Result<Vec<PackedMixer>> {
        let mut mixers = Vec::new();
        match self.spec.layers[index].mixer {
            Mixer::Attention { .. } => mixers.push(PackedMixer::Attention(Box::new(self.attention(index, pool)?))),
            Mixer::DeltaNet { delta_net } => {
                let delta_net = self.delta_net(index, self.spec.delta_nets[delta_net], pool)?;
                mixers.push(PackedMixer::DeltaNet(Box::new(delta_net)));
            }
            Mixer::ShortConv { short_conv } => {
                let short_conv = self.short_conv(index, self.spec.short_convs[short_conv], pool)?;
                mixers.push(PackedMixer::ShortConv(Box::new(short_conv)));
            }
            Mixer::Mamba2 { .. } | Mixer::None => {}
        }
        if let Some(mamba2) = self.spec.mamba2(index) {
            mixers.push(PackedMixer::Mamba2(Box::new(self.mamba2(index, *mamba2, pool)?)));
        }
        Ok(mixers)
    }

    fn mamba2(&mut self, index: usize, spec: Mamba2Spec, pool: &mut Pool) -> Result<PackedMamba2> {
        let slot = |slot| Slot::Layer(index, slot);
        let vector = |name| self.vector(slot(name), Param::Weight)?.ok_or_else(|| absent(slot(name)));
        let conv = vector(LayerSlot::Conv1d)?;
        let conv_bias = self.vector(slot(LayerSlot::Conv1d), Param::Bias)?;
        let conv_bias = conv_bias.unwrap_or_else(|| vec![0.0; spec.conv_width()]);
        let (shape, kernel) = (StateShape::of_mamba2(&spec), spec.mamba_d_conv);
        let bias = |part| of_part(&spec, shape, part, |channel: usize| conv_bias[channel]);
        let tap = |part, tap| of_part(&spec, shape, part, |channel: usize| conv[channel * kernel + tap]);
        Ok(PackedMamba2 {
            conv: (0..shape.groups).map(|part| (0..kernel).flat_map(|index| tap(part, index)).collect()).collect(),
            conv_bias: (0..shape.groups).map(bias).collect(),
            dt_bias: vector(LayerSlot::DtBias)?,
            rates: vector(LayerSlot::ALog)?.into_iter().map(|stored| spec.decay_rates.negative(stored)).collect(),
            skip: vector(LayerSlot::SkipD)?,
            norm: spec.norm.map(|norm| self.required_norm(slot(LayerSlot::MambaNorm), &norm.norm)).transpose()?,
            shape,
            spec,
            in_proj: self.linear(slot(LayerSlot::InProjZxbcdt), pool)?,
            out_proj: self.linear(slot(LayerSlot::OutProj), pool)?,
        })
    }

    pub(super) fn per_layer_inputs(&mut self, pool: &mut Pool) -> Result<Option<PackedPerLayerInputs>> {
        let Some(spec) = self.spec.per_layer_inputs else { return Ok(None) };
        Ok(Some(PackedPerLayerInputs {
            spec,
            embedding: self.rows(Slot::EmbedTokensPerLayer, pool)?,
            projection: self.linear(Slot::PerLayerModelProjection, pool)?,
            norm: self.required_norm(Slot::PerLayerProjectionNorm, &self.spec.norm)?,
        }))
    }

    fn per_layer_input(&mut self, index: usize, pool: &mut Pool) -> Result<Option<PackedPerLayerInput>> {
        let Some(spec) = self.spec.per_layer_inputs else { return Ok(None) };
        let slot = |slot| Slot::Layer(index, slot);
        Ok(Some(PackedPerLayerInput {
            hidden_act: self.activation(slot(LayerSlot::PerLayerProjection), spec.hidden_act)?,
            gate: self.linear(slot(LayerSlot::PerLayerInputGate), pool)?,
            projection: self.linear(slot(LayerSlot::PerLayerProjection), pool)?,
            norm: self.required_norm(slot(LayerSlot::PostPerLayerInputNorm), &self.spec.norm)?,
        }))
    }

    fn attention(&mut self, index: usize, pool: &mut Pool) -> Result<PackedAttention> {
        let slot = |slot| Slot::Layer(index, slot);
        let Mixer::Attention { attention: attention_index, sliding_window, rope, kv_shared_with } =
            self.spec.layers[index].mixer
        else {
            return Err(absent(slot(LayerSlot::QProj)));
        };
        let attention = self.spec.attentions[attention_index];
        let qk_norm = attention.qk_norm.map(|norm| norm.norm);
        let q_norm = qk_norm.map(|norm| self.required_norm(slot(LayerSlot::QNorm), &norm)).transpose()?;
        let q_proj = self.linear(slot(attention.query_slot()), pool)?;
        let keys = match kv_shared_with {
            Some(layer) => Keys::OfLayer(layer),
            None => Keys::Own(Box::new(OwnKeys {
                k_proj: self.linear(slot(attention.key_slot()), pool)?,
                v_proj: attention.value_slot().map(|name| self.linear(slot(name), pool)).transpose()?,
                k_norm: qk_norm.map(|norm| self.required_norm(slot(LayerSlot::KNorm), &norm)).transpose()?,
                v_norm: attention.value_norm_eps.map(|eps| PackedNorm::plain(eps, attention.head_dim)),
            })),
        };
        let latent = attention.latent.map(|latent| self.latent(index, latent, pool)).transpose()?.map(Box::new);
        Ok(PackedAttention {
            attention,
            attention_index,
            sliding_window,
            rope,
            q_norm,
            sinks: self.vector(slot(LayerSlot::Sinks), Param::Weight)?,
            q_proj,
            keys,
            latent,
            o_proj: self.linear(slot(LayerSlot::OProj), pool)?,
            head_gate: attention.head_gate.then(|| self.linear(slot(LayerSlot::HeadGate), pool)).transpose()?,
        })
    }

    /// What latent attention has besides its first projections.
    fn latent(&mut self, index: usize, spec: LatentSpec, pool: &mut Pool) -> Result<Latent<PackedLinear, PackedNorm>> {
        let slot = |slot| Slot::Layer(index, slot);
        let queries = match spec.q_lora_rank {
            Some(_) => {
                let norm = self.required_norm(slot(LayerSlot::QANorm), &spec.norm)?;
                Some((norm, self.linear(slot(LayerSlot::QBProj), pool)?))
            }
            None => None,
        };
        let kv_a_norm = self.required_norm(slot(LayerSlot::KvANorm), &spec.norm)?;
        Ok(Latent { spec, queries, kv_a_norm, kv_b_proj: self.linear(slot(LayerSlot::KvBProj), pool)? })
    }

    fn delta_net(&mut self, index: usize, spec: DeltaNetSpec, pool: &mut Pool) -> Result<PackedDeltaNet> {
        let slot = |slot| Slot::Layer(index, slot);
        let required = |found: Option<Vec<f32>>, name| found.ok_or_else(|| absent(slot(name)));
        let slots: &[LayerSlot] = match spec.projections {
            DeltaNetProjections::ByKind => {
                &[LayerSlot::InProjQkv, LayerSlot::InProjZ, LayerSlot::InProjB, LayerSlot::InProjA]
            }
            DeltaNetProjections::ByKeyHead => &[LayerSlot::InProjQkvz, LayerSlot::InProjBa],
            DeltaNetProjections::StrengthByKeyHead => &[LayerSlot::InProjQkv, LayerSlot::InProjZ, LayerSlot::InProjBa],
        };
        let inputs = slots.iter().map(|name| self.linear(slot(*name), pool)).collect::<Result<_>>()?;
        let vector = |name| required(self.vector(slot(name), Param::Weight)?, name);
        let (conv1d, norm) = (vector(LayerSlot::Conv1d)?, slot(LayerSlot::DeltaNorm));
        Ok(PackedDeltaNet {
            conv1d: (0..spec.linear_num_key_heads).map(|head| conv_of_head(&spec, &conv1d, head)).collect(),
            dt_bias: vector(LayerSlot::DtBias)?,
            rates: vector(LayerSlot::ALog)?.into_iter().map(|stored| spec.decay_rates.negative(stored)).collect(),
            norm: self.required_norm(norm, &spec.norm)?,
            spec,
            inputs,
            out_proj: self.linear(slot(LayerSlot::OutProj), pool)?,
        })
    }

    fn short_conv(&mut self, index: usize, spec: ShortConvSpec, pool: &mut Pool) -> Result<PackedShortConv> {
        let slot = |slot| Slot::Layer(index, slot);
        let (conv1d, channels) = (slot(LayerSlot::Conv1d), self.spec.hidden_size);
        let width = group_width(channels);
        let groups = channels / width;
        let shape = StateShape::of_short_conv(&spec, groups, width);
        let weights = self.vector(conv1d, Param::Weight)?.ok_or_else(|| absent(conv1d))?;
        let bias = self.vector(conv1d, Param::Bias)?;
        // Of one group, with the padding of states.
        let row = |group: usize, value: &dyn Fn(usize) -> f32| -> Vec<f32> {
            let mut row: Vec<f32> = (group * width..(group + 1) * width).map(value).collect();
            row.resize(shape.inputs, 0.0);
            row
        };
        let tap = |group, tap| row(group, &|channel: usize| weights[channel * spec.conv_l_cache + tap]);
        let conv = |group| (0..spec.conv_l_cache).flat_map(|index| tap(group, index)).collect();
        Ok(PackedShortConv {
            conv: (0..groups).map(conv).collect(),
            bias: (0..groups)
                .map(|group| row(group, &|channel: usize| bias.as_ref().map_or(0.0, |bias| bias[channel])))
                .collect(),
            shape,
            width,
            in_proj: self.linear(slot(LayerSlot::InProjBcx), pool)?,
            out_proj: self.linear(slot(LayerSlot::OutProj), pool)?,
        })
    }

    fn feed_forward(&mut self, index: usize, pool: &mut Pool) -> Result<PackedFeedForward> {
        let slot = |slot| Slot::Layer(index, slot);
        match self.spec.layers[index].feed_forward {
            FeedForward::Dense { hidden_act, gated, gate_cutoff, .. } => {
                let gate = gated.then_some(slot(LayerSlot::GateProj));
                let slots = [slot(LayerSlot::UpProj), slot(LayerSlot::DownProj)];
                let network = self.network(hidden_act, gate, slots, pool)?;
                let gate_cutoff = gate_cutoff.map(|cutoff| cutoff as f32);
                Ok(PackedFeedForward::Dense(Box::new(PackedNetwork { gate_cutoff, ..network })))
            }
            FeedForward::Experts(experts) => {
                self.mixture(index, &experts, pool).map(|mixture| PackedFeedForward::Experts(Box::new(mixture)))
            }
            FeedForward::None => Ok(PackedFeedForward::None),
        }
    }

    fn network(
        &mut self,
        hidden_act: ActivationFunction,
        gate: Option<Slot>,
        [up, down]: [Slot; 2],
        pool: &mut Pool,
    ) -> Result<PackedNetwork> {
        Ok(PackedNetwork {
            hidden_act: self.activation(down, hidden_act)?,
            gate_proj: gate.map(|gate| self.linear(gate, pool)).transpose()?,
            gate_cutoff: None,
            up_proj: self.linear(up, pool)?,
            down_proj: self.linear(down, pool)?,
        })
    }

    fn mixture(&mut self, index: usize, spec: &ExpertsSpec, pool: &mut Pool) -> Result<PackedMixture> {
        let slot = |slot| Slot::Layer(index, slot);
        let router = self.linear(slot(LayerSlot::Router), pool)?;
        let mut networks = Vec::with_capacity(spec.num_experts + 1);
        for expert in 0..spec.num_experts {
            let [gate, up, down] = ExpertSlot::ALL.map(|slot| Slot::Expert(index, expert, slot));
            networks.push(self.network(spec.hidden_act, spec.gated.then_some(gate), [up, down], pool)?);
        }
        let mut shared_gate = None;
        if let Some(shared) = &spec.shared_expert {
            let slots = [LayerSlot::SharedUpProj, LayerSlot::SharedDownProj].map(slot);
            let gate = spec.gated.then_some(slot(LayerSlot::SharedGateProj));
            networks.push(self.network(spec.hidden_act, gate, slots, pool)?);
            if shared.gated {
                shared_gate = Some(self.linear(slot(LayerSlot::SharedExpertGate), pool)?);
            }
        }
        let correction = self.vector(slot(LayerSlot::RouterCorrection), Param::Bias)?;
        Ok(PackedMixture {
            routing: routing(&spec.router),
            chosen: spec.num_experts_per_tok,
            router,
            correction: correction.map(|correction| correction[..spec.num_experts].to_vec()),
            networks,
            experts: spec.num_experts,
            shared_gate,
            router_norm: spec.router.norm_multiplier.map(|factor| self.router_norm(index, factor)).transpose()?,
            per_expert_scale: self.vector(slot(LayerSlot::PerExpertScale), Param::Weight)?,
            branch_norms: match spec.branch_norms {
                true => Some(BranchNorms::load(index, |slot| self.required_norm(slot, &self.spec.norm))?),
                false => None,
            },
        })
    }

    fn router_norm(&self, index: usize, factor: f64) -> Result<PackedNorm> {
        let norm = NormSpec { weight_offset: 0.0, ..self.spec.norm };
        let mut norm = self.required_norm(Slot::Layer(index, LayerSlot::RouterNorm), &norm)?;
        norm.weight.iter_mut().for_each(|weight| *weight *= factor as f32);
        Ok(norm)
    }

    /// The norm in `slot`, or `None` if the architecture has none there.
    fn norm(&self, slot: Slot, spec: &NormSpec) -> Result<Option<PackedNorm>> {
        let Some(mut weight) = self.vector(slot, Param::Weight)? else { return Ok(None) };
        weight.iter_mut().for_each(|weight| *weight += spec.weight_offset);
        let kind = match spec.kind {
            spec::NormKind::Rms => NormKind::Rms,
            spec::NormKind::Layer => NormKind::Layer,
        };
        Ok(Some(PackedNorm { kind, eps: spec.eps as f32, weight, bias: self.vector(slot, Param::Bias)? }))
    }

    /// The norm in `slot`, which the architecture has.
    fn required_norm(&self, slot: Slot, spec: &NormSpec) -> Result<PackedNorm> {
        self.norm(slot, spec)?.ok_or_else(|| absent(slot))
    }

    /// A vector in f32, padded to a multiple of 16, or `None` if the architecture has none there.
    fn vector(&self, slot: Slot, param: Param) -> Result<Option<Vec<f32>>> {
        let Some(view) = self.weights.get(slot, param) else { return Ok(None) };
        let mut values = view.read::<f32>()?;
        values.resize(values.len().next_multiple_of(LANES), 0.0);
        Ok(Some(values))
    }

    fn linear(&mut self, slot: Slot, pool: &mut Pool) -> Result<PackedLinear> {
        let view = self.weights.get(slot, Param::Weight).ok_or_else(|| absent(slot))?;
        let (rows, columns) = (view.shape[0], view.shape[1]);
        let format = PanelFormat::of(weight_type(view.dtype));
        let end = &mut self.packed[section(slot)];
        let data = *end..*end + rows.div_ceil(LANES) * panel_bytes(format, columns);
        *end += matrix_bytes(&view);
        self.to.put(Packable::panels(view), data.start, pool)?;
        let bias = self.vector(slot, Param::Bias)?;
        let planned = self.plan.index_of(slot).ok_or_else(|| absent(slot))?;
        Ok(PackedLinear { slot, rows, columns, format, planned, bias, data })
    }

    /// The activation function of the network whose down projection is in `down`, with its parameters if it has any.
    fn activation(&self, down: Slot, activation: ActivationFunction) -> Result<Activation> {
        Ok(match activation {
            ActivationFunction::Silu => Activation::Silu,
            ActivationFunction::GeluTanh => Activation::GeluTanh,
            ActivationFunction::GeluErf => Activation::GeluErf,
            ActivationFunction::Relu => Activation::Relu,
            ActivationFunction::ClampedSwiglu { swiglu_alpha, swiglu_limit } => {
                Activation::ClampedSwiglu { alpha: swiglu_alpha as f32, limit: swiglu_limit as f32 }
            }
            ActivationFunction::Relu2 => Activation::Relu2,
            ActivationFunction::ScaledSilu { gate_multiplier } => {
                Activation::ScaledSilu { factor: gate_multiplier as f32 }
            }
            ActivationFunction::Xielu => {
                let xielu = self.weights.xielu(down)?.ok_or_else(|| absent(down))?;
                let spec::Xielu { positive, negative, beta } = xielu;
                Activation::Xielu { positive, negative, beta }
            }
        })
    }

    /// The rows of an embedding.
    fn rows(&mut self, slot: Slot, pool: &mut Pool) -> Result<StoredRows> {
        let view = self.weights.get(slot, Param::Weight).ok_or_else(|| absent(slot))?;
        let (start, bytes) = (self.packed[1], view.data.len());
        self.packed[1] += bytes.next_multiple_of(ALIGNMENT);
        let rows = StoredRows { dtype: view.dtype, start, row_bytes: bytes / view.shape[0] };
        self.to.put(Packable::rows(view), start, pool)?;
        Ok(rows)
    }
}

fn routing(router: &RouterSpec) -> Routing {
    let groups = |groups: ExpertGroups| Groups {
        count: groups.n_group,
        chosen: groups.topk_group,
        by_two: groups.score == GroupScore::TwoBest,
    };
    Routing {
        scoring: match router.scoring_func {
            ScoringFunction::Softmax => Scoring::Softmax,
            ScoringFunction::Sigmoid => Scoring::Sigmoid,
            ScoringFunction::Sparsemixer { router_jitter_noise } => Scoring::Sparsemixer(router_jitter_noise as f32),
        },
        groups: router.groups.map(groups),
        normalized: router
            .norm_topk_prob
            .then_some(Divisor { added: router.norm_eps as f32, least: router.norm_min as f32 }),
        factor: router.routed_scaling_factor as f32,
    }
}

/// Values of the channels of the convolution of Mamba-2, `of` each channel, for one part: those of `C`, `B` and the inputs
/// of its heads, each padded to a multiple of 16.
fn of_part(spec: &Mamba2Spec, shape: StateShape, part: usize, of: impl Fn(usize) -> f32) -> Vec<f32> {
    let (inner, state, head) = (spec.inner_width(), spec.mamba_d_state, spec.mamba_d_head);
    let group = part * shape.values / spec.heads_per_group();
    let b = inner + group * state;
    let heads = (0..shape.values).map(|index| ((part * shape.values + index) * head, head));
    let mut values = Vec::with_capacity(shape.inputs);
    for (first, width) in [(b + spec.state_width(), state), (b, state)].into_iter().chain(heads) {
        values.extend((first..first + width).map(&of));
        values.resize(values.len().next_multiple_of(LANES), 0.0);
    }
    values
}

/// Width of the equal groups into which channels are divided for threads: the least that is no fewer than 128.
fn group_width(channels: usize) -> usize {
    (128..=channels).find(|width| channels.is_multiple_of(*width)).unwrap_or(channels)
}

/// The weights of a convolution, `[channels][kernel]`, for one key head and its values, `[kernel][width]`.
fn conv_of_head(spec: &DeltaNetSpec, weights: &[f32], head: usize) -> Vec<f32> {
    let (key, value, kernel) = (spec.linear_key_head_dim, spec.linear_value_head_dim, spec.linear_conv_kernel_dim);
    let (keys, per_key) = (spec.key_width(), spec.values_per_key());
    let values = (0..per_key).map(|index| (2 * keys + spec.value_head(head, index) * value, value));
    let parts = [(head * key, key), (keys + head * key, key)].into_iter().chain(values);
    let mut rows = vec![Vec::new(); kernel];
    for (first, width) in parts {
        for (tap, row) in rows.iter_mut().enumerate() {
            row.extend((first..first + width).map(|channel| weights[channel * kernel + tap]));
            row.resize(row.len().next_multiple_of(LANES), 0.0);
        }
    }
    rows.concat()
}
