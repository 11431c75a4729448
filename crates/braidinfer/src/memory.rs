//! Memory: what this process may still take, and what models need.
//!
//! A process that takes more than there is does not get an error from Linux: it is killed, or ends when a small allocation
//! fails. So what is large is compared with what there is before it is taken.

use braidinfer_kernels::LANES;
use braidinfer_model::DecoderSpec;
use braidinfer_model::spec::{DeltaNetSpec, FeedForward, LayerSpec, Mamba2Spec, ShortConvSpec};
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use crate::executor::{HEAD_ROWS, KvDtype, heads_per_part};
use crate::{Error, Result};

#[cfg(target_os = "linux")]
mod limits;

/// Memory for the rest of the process, in bytes: the program, its threads, texts and tokens.
pub(crate) const SLACK: usize = 64 << 20;

/// Kept free when storage grows while the model runs: for what is small and cannot fail.
const MARGIN: usize = 16 << 20;

/// Memory that this process may still take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Room {
    pub(crate) bytes: usize,
    /// What limits it, in words.
    pub(crate) limit: &'static str,
}

impl Room {
    /// The least of what the machine has available, and of what the limits of the control groups and of the process leave.
    pub(crate) fn now() -> Self {
        #[cfg(test)]
        if let Some(bytes) = tests::PRETENDED.get() {
            return Self { bytes, limit: "of the test" };
        }
        let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::everything());
        let machine = System::new_with_specifics(memory).available_memory();
        let machine = Self { bytes: usize::try_from(machine).unwrap_or(usize::MAX), limit: "of the machine" };
        #[cfg(target_os = "linux")]
        let machine = limits::rooms().into_iter().fold(machine, Self::min);
        machine
    }

    /// Fails if `what` needs more than this.
    pub(crate) fn hold(self, needed: usize, what: impl FnOnce() -> String) -> Result<()> {
        match needed <= self.bytes {
            true => Ok(()),
            false => Err(Error::TooLittleMemory {
                what: what(),
                needed: size(needed),
                found: size(self.bytes),
                limit: self.limit,
            }),
        }
    }
}

/// Bytes of addresses that this process may still take, if they are limited.
pub(crate) fn room_for_addresses() -> Option<usize> {
    #[cfg(target_os = "linux")]
    let room = limits::of_addresses();
    #[cfg(not(target_os = "linux"))]
    let room = None;
    room
}

/// Memory in bytes that this process may still take: the least of what the machine has available, and of what the limits of its
/// control groups and of the process leave.
pub fn available() -> usize {
    Room::now().bytes
}

/// Fails if the process cannot take `bytes` more for `what` while it runs.
pub(crate) fn can_grow(bytes: usize, what: impl FnOnce() -> String) -> Result<()> {
    Room::now().hold(bytes.saturating_add(MARGIN), what)
}

/// The error of an allocation of `bytes` that failed although there seemed to be room.
pub(crate) fn exhausted(bytes: usize, what: String) -> Error {
    let Room { bytes: found, limit } = Room::now();
    Error::TooLittleMemory { what, needed: size(bytes), found: size(found), limit }
}

/// The memory that a model needs, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    /// The weights, as the kernels keep them.
    pub(crate) weights: usize,
    /// Keys and values of one sequence that is as long as the context.
    pub(crate) kv: usize,
    /// What recurrent layers keep of all sequences, and of prefixes.
    pub(crate) states: usize,
    pub(crate) context: usize,
    /// Activations and logits of the largest step.
    pub(crate) scratch: usize,
}

impl Need {
    /// All but keys and values.
    pub(crate) fn fixed(self) -> usize {
        [self.scratch, self.states, SLACK].into_iter().fold(self.weights, usize::saturating_add)
    }

    /// Fails, with both figures, if there is less than this.
    pub(crate) fn check(self, model: &str, room: Room) -> Result<()> {
        room.hold(self.fixed().saturating_add(self.kv), || {
            let states =
                if self.states == 0 { String::new() } else { format!("recurrent states {}, ", size(self.states)) };
            format!(
                "{model}: weights {}, keys and values {} for a sequence of {} tokens, {states}and {} beside them",
                size(self.weights),
                size(self.kv),
                self.context,
                size(self.scratch.saturating_add(SLACK))
            )
        })
    }
}

/// KV cache bytes per token, over all layers.
pub(crate) fn kv_bytes_per_token(spec: &DecoderSpec, dtype: KvDtype) -> usize {
    (0..spec.layers.len()).map(|layer| dtype.layer_bytes(spec, layer)).sum()
}

/// State that a gated delta net keeps of a sequence, in bytes: an upper estimate for both kinds of kernels. Besides the
/// state matrices, the tokens since the last block boundary are kept, and drafts after them.
fn delta_state_bytes(delta_net: &DeltaNetSpec, block_size: usize) -> usize {
    let padded = |width: usize| width.next_multiple_of(LANES);
    let (keys, values) = (delta_net.linear_num_key_heads, delta_net.linear_num_value_heads);
    let (key_dim, value_dim) = (padded(delta_net.linear_key_head_dim), padded(delta_net.linear_value_head_dim));
    let tokens = block_size.saturating_mul(2);
    let (key_width, value_width) = (keys.saturating_mul(key_dim), values.saturating_mul(value_dim));
    let channels = key_width.saturating_mul(2).saturating_add(value_width);
    // Keys, updates, decays and strengths of updates.
    let kept = key_width.saturating_add(value_width).saturating_add(values.saturating_mul(2));
    let sizes = [
        value_width.saturating_mul(key_dim),
        channels.saturating_mul(delta_net.linear_conv_kernel_dim - 1 + tokens),
        kept.saturating_mul(tokens),
    ];
    sizes.into_iter().fold(0, usize::saturating_add).saturating_mul(size_of::<f32>())
}

/// State that a gated short convolution over `hidden_size` channels keeps of a sequence, in bytes: an upper estimate for both
/// kinds of kernels. The products of the tokens before a block boundary are kept, of those since, and of drafts after them.
fn short_conv_state_bytes(spec: &ShortConvSpec, hidden_size: usize, block_size: usize) -> usize {
    let tokens = block_size.saturating_mul(2).saturating_add(spec.conv_l_cache - 1);
    // Fused kernels pad groups of 128 channels or more to multiples of 16.
    let channels = hidden_size.saturating_add(hidden_size / 8).saturating_add(LANES);
    channels.saturating_mul(tokens).saturating_mul(size_of::<f32>())
}

/// State that Mamba-2 keeps of a sequence, in bytes: an upper estimate for both kinds of kernels, as for gated delta nets.
/// Fused kernels keep `B` and `C` of a group once for every few heads.
fn mamba2_state_bytes(mamba2: &Mamba2Spec, block_size: usize) -> usize {
    let padded = |width: usize| width.next_multiple_of(LANES);
    let (state, head) = (padded(mamba2.mamba_d_state), padded(mamba2.mamba_d_head));
    let (parts, inner) = (mamba2.mamba_n_heads / heads_per_part(mamba2), mamba2.mamba_n_heads.saturating_mul(head));
    let tokens = block_size.saturating_mul(2);
    let vectors = parts.saturating_mul(state);
    let channels = vectors.saturating_mul(2).saturating_add(inner);
    // `B`, updates, decays and steps.
    let kept = vectors.saturating_add(inner).saturating_add(mamba2.mamba_n_heads.saturating_mul(2));
    let sizes = [
        inner.saturating_mul(state),
        channels.saturating_mul(mamba2.mamba_d_conv - 1 + tokens),
        kept.saturating_mul(tokens),
    ];
    sizes.into_iter().fold(0, usize::saturating_add).saturating_mul(size_of::<f32>())
}

/// State that a layer keeps of a sequence besides keys and values, in bytes: an upper estimate for both kinds of kernels;
/// zero if it keeps none.
pub(crate) fn layer_state_bytes(spec: &DecoderSpec, layer: usize, block_size: usize) -> usize {
    let delta_net = spec.delta_net(layer).map(|net| delta_state_bytes(net, block_size));
    let short_conv = spec.short_conv(layer).map(|conv| short_conv_state_bytes(conv, spec.hidden_size, block_size));
    let mamba2 = spec.mamba2(layer).map(|mamba2| mamba2_state_bytes(mamba2, block_size));
    delta_net.or(short_conv).or(mamba2).unwrap_or(0)
}

/// State that all layers keep of a sequence besides keys and values, in bytes.
pub(crate) fn state_bytes(spec: &DecoderSpec, block_size: usize) -> usize {
    let layers = 0..spec.layers.len();
    layers.map(|layer| layer_state_bytes(spec, layer, block_size)).fold(0, usize::saturating_add)
}

/// Activations and logits of a step with `rows` tokens, `logits` of them with logits, in bytes: an upper estimate for both
/// kinds of kernels.
pub(crate) fn scratch_bytes(spec: &DecoderSpec, rows: usize, logits: usize) -> usize {
    let attentions = spec
        .layer_attentions()
        .map(|attention| attention.projected_rows(true).max(attention.query_rows() + 2 * attention.key_value_width()));
    // Queries, keys, values and gates, and as many again, padded and convolved.
    let delta_nets = spec.layer_delta_nets().map(|net| 2 * (net.conv_width() + net.value_width()));
    // Two gates and what is convolved, and the convolution.
    let short_convs = spec.short_convs.iter().map(|_| 4 * spec.hidden_size);
    // The outputs of the input projection, and those of the heads, padded and normed.
    let mamba2s = spec.layer_mamba2s().map(|mamba2| 2 * mamba2.input_rows());
    let widest = attentions.chain(delta_nets).chain(short_convs).chain(mamba2s);
    let inner = spec.layers.iter().map(|layer| 4 * layer.feed_forward.inner_width() + mixture(spec, layer)).max();
    // The further inputs of all layers, what they are computed from, and that of one layer, gated.
    let further = spec
        .per_layer_inputs
        .map_or(0, |inputs| inputs.hidden_size_per_layer_input.saturating_mul(3 * spec.layers.len() + 4));
    // The residual streams, what they are predicted and corrected with, and a low-rank branch.
    let streams = spec.altup.map_or(0, |altup| 6 * spec.stream_width() + 2 * altup.altup_num_inputs.pow(2));
    let laurel = spec.laurel.map_or(0, |laurel| 2 * spec.hidden_size + 2 * laurel.laurel_rank);
    let further = further.saturating_add(streams + laurel);
    let row = (6 * spec.hidden_size + 3 * widest.max().unwrap_or(0) + inner.unwrap_or(0)).saturating_add(further);
    // All of them are kept, and some are computed at a time.
    let logits = logits.saturating_add(2 * logits.min(HEAD_ROWS)).saturating_mul(spec.vocab_size);
    rows.saturating_mul(row).saturating_add(logits).saturating_mul(size_of::<f32>())
}

/// Activations of a token that only a mixture of experts has: inputs and outputs of each chosen expert, and the scores of all.
fn mixture(spec: &DecoderSpec, layer: &LayerSpec) -> usize {
    let FeedForward::Experts(experts) = &layer.feed_forward else { return 0 };
    2 * spec.hidden_size * (experts.num_experts_per_tok + 1) + 4 * experts.num_experts
}

/// What a step needs memory for, in words.
pub(crate) fn of_step(tokens: usize) -> String {
    format!("activations of a step of {tokens} tokens")
}

/// A number of bytes with a unit.
pub fn size(bytes: impl TryInto<u64>) -> String {
    const UNITS: [&str; 4] = ["B", "kB", "MB", "GB"];
    let bytes = bytes.try_into().unwrap_or(u64::MAX);
    let mut value = bytes as f64;
    let mut unit = 0;
    // What is rounded to a thousand is one of the next unit.
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// What [`Room::now`] finds on this thread.
        pub(super) static PRETENDED: Cell<Option<usize>> = const { Cell::new(None) };
    }

    /// Pretends that this thread may take this many bytes.
    pub(crate) fn pretend(bytes: Option<usize>) {
        PRETENDED.set(bytes);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_both_figures() {
        let need = Need { weights: 3 << 30, kv: 1 << 30, states: 0, context: 4096, scratch: 100 << 20 };
        let whole = need.fixed() + need.kv;
        need.check("a.gguf", Room { bytes: whole, limit: "of the machine" }).expect("it fits exactly");
        let error =
            need.check("a.gguf", Room { bytes: whole - 1, limit: "of the machine" }).expect_err("a byte is missing");
        let text = error.to_string();
        for part in
            ["a.gguf: weights 3.2 GB", "1.1 GB for a sequence of 4096 tokens", "4.5 GB of memory", "of the machine"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(error.advice().expect("there is something to do").to_string().contains("quantize"));
        let hybrid = Need { states: 1 << 30, ..need };
        let error =
            hybrid.check("a.gguf", Room { bytes: whole, limit: "" }).expect_err("there is no room for the states");
        assert!(error.to_string().contains("recurrent states 1.1 GB"), "{error}");
        let absurd = Need { kv: usize::MAX, ..need };
        absurd.check("a.gguf", Room { bytes: usize::MAX - 1, limit: "" }).expect_err("sums do not wrap");
    }

    #[test]
    fn there_is_memory_now() {
        let room = Room::now();
        assert!(room.bytes > 0, "{room:?}");
        can_grow(usize::MAX, || "everything".into()).expect_err("nobody has that much");
    }
}
