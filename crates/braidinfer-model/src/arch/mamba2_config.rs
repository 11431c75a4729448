//! The settings of Mamba-2, and its tensor names.

use serde_json::Value;

use crate::arch::delta_net_config::MAX_KERNEL;
use crate::layout::{LayerSlot, TensorNames};
use crate::python_numbers::FLOAT;
use crate::spec::{DecayRates, GatedNormSpec, Mamba2Spec, NormSpec};
use crate::{JsonFile, Result};

/// So that sums of products of sizes do not overflow; published models have 256.
const MAX_HEADS: usize = 1 << 16;

/// Names of fields that differ between architectures, with their class defaults.
pub(super) struct Mamba2Fields {
    pub heads: (&'static str, usize),
    pub groups: (&'static str, usize),
    pub state: (&'static str, usize),
    pub kernel: (&'static str, usize),
    /// Bias of the convolution, true by default.
    pub conv_bias: &'static str,
    /// Bias of the input projection, false by default.
    pub input_bias: &'static str,
    /// Bias of the output projection, false by default.
    pub output_bias: &'static str,
}

impl Mamba2Fields {
    /// Of most architectures.
    pub(super) const PREFIXED: Self = Self {
        heads: ("mamba_n_heads", 128),
        groups: ("mamba_n_groups", 1),
        state: ("mamba_d_state", 256),
        kernel: ("mamba_d_conv", 4),
        conv_bias: "mamba_conv_bias",
        input_bias: "mamba_proj_bias",
        output_bias: "mamba_proj_bias",
    };
}

/// Reads Mamba-2; `head_dim` is given the number of heads. Steps are not limited, and outputs are multiplied by the gate
/// before they are normed.
pub(super) fn mamba2(
    config: &JsonFile,
    fields: &Mamba2Fields,
    norm: NormSpec,
    head_dim: impl FnOnce(usize) -> Result<usize>,
) -> Result<Mamba2Spec> {
    let size = |(field, absent): (&str, usize)| config.size_or(field, absent);
    let flag = |field: &str, absent| Ok::<_, crate::ModelError>(config.flag(field)?.unwrap_or(absent));
    let (heads, groups) = (size(fields.heads)?, size(fields.groups)?);
    if heads > MAX_HEADS {
        return Err(config.error(fields.heads.0, format!("at most {MAX_HEADS}"), heads.to_string()));
    }
    if !heads.is_multiple_of(groups) {
        let expected = format!("a divisor of {heads} heads");
        return Err(config.error(fields.groups.0, expected, groups.to_string()));
    }
    let kernel = size(fields.kernel)?;
    if kernel > MAX_KERNEL {
        return Err(config.error(fields.kernel.0, format!("at most {MAX_KERNEL}"), kernel.to_string()));
    }
    Ok(Mamba2Spec {
        mamba_n_heads: heads,
        mamba_d_head: head_dim(heads)?,
        mamba_n_groups: groups,
        mamba_d_state: size(fields.state)?,
        mamba_d_conv: kernel,
        conv_bias: flag(fields.conv_bias, true)?,
        input_bias: flag(fields.input_bias, false)?,
        output_bias: flag(fields.output_bias, false)?,
        least_step: 0.0,
        largest_step: None,
        norm: Some(GatedNormSpec { norm, before_gate: false }),
        decay_rates: DecayRates::Logarithm,
        multipliers: None,
    })
}

/// The width of a head: `mamba_d_head`, which may be `auto`, of `inner` values in all heads.
pub(super) fn head_dim(config: &JsonFile, inner: usize, heads: usize) -> Result<usize> {
    const FIELD: &str = "mamba_d_head";
    let is_auto = !config.has(FIELD) || config.value(FIELD).and_then(Value::as_str) == Some("auto");
    if is_auto && !inner.is_multiple_of(heads) {
        let expected = format!("a divisor of {inner}, the width of all heads");
        return Err(config.error("mamba_n_heads", expected, heads.to_string()));
    }
    if is_auto { Ok(inner / heads) } else { config.required_size(FIELD) }
}

/// The limits of steps in `time_step_limit`, if there are any.
pub(super) fn read_step_limits(config: &JsonFile, spec: &mut Mamba2Spec) -> Result<()> {
    const FIELD: &str = "time_step_limit";
    let Some(limits) = config.list(FIELD)? else { return Ok(()) };
    let number = |value: &Value| match value {
        Value::Object(fields) if fields.get(FLOAT).and_then(Value::as_str) == Some("Infinity") => Some(f64::INFINITY),
        value => value.as_f64().filter(|limit| limit.is_finite()),
    };
    let numbers: Vec<f64> = limits.iter().filter_map(number).collect();
    match numbers[..] {
        [least, largest] if limits.len() == 2 && 0.0 <= least && least <= largest && least.is_finite() => {
            spec.least_step = least;
            spec.largest_step = largest.is_finite().then_some(largest);
            Ok(())
        }
        _ => {
            let found = Value::Array(limits.to_vec()).to_string();
            Err(config.error(FIELD, "two numbers from zero on, the least first", found))
        }
    }
}

/// Fails unless the activation function after the convolution is SiLU.
pub(super) fn check_activation(config: &JsonFile, field: &str) -> Result<()> {
    match config.text(field)? {
        None | Some("silu" | "swish") => Ok(()),
        Some(other) => Err(config.error(field, "silu, which the convolution is followed by", format!("`{other}`"))),
    }
}

/// Names of the tensors of Mamba-2 in a module `mamba`.
pub(super) fn named_mamba(names: TensorNames) -> TensorNames {
    names
        .with(&[
            (LayerSlot::InProjZxbcdt, "mamba.in_proj"),
            (LayerSlot::Conv1d, "mamba.conv1d"),
            (LayerSlot::MambaNorm, "mamba.norm"),
            (LayerSlot::OutProj, "mamba.out_proj"),
        ])
        .with_tensor(&[
            (LayerSlot::DtBias, "mamba.dt_bias"),
            (LayerSlot::ALog, "mamba.A_log"),
            (LayerSlot::SkipD, "mamba.D"),
        ])
}
