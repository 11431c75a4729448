//! The feed-forward part of a layer: one network, or a mixture of experts.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use braidinfer_model::spec::{ActivationFunction, Xielu};
use candle_core::{D, DType, Tensor};
use candle_nn::ops::sigmoid;

use super::linear::Linear;
use super::mixture::Mixture;
use super::trace::Trace;
use crate::{Error, Result};

/// The feed-forward part of a layer.
#[derive(Debug)]
pub(super) enum FeedForward {
    Dense(Box<DenseFeedForward>),
    Experts(Box<Mixture>),
}

impl FeedForward {
    /// `[T, h]` to `[T, h]`; `x` is the normed residual stream.
    pub(super) fn forward(&self, x: &Tensor, residual: &Tensor, trace: &mut Trace) -> Result<Tensor> {
        match self {
            Self::Dense(dense) => dense.forward(x),
            Self::Experts(mixture) => mixture.forward(x, residual, trace),
        }
    }

    /// Its linear layers.
    pub(super) fn projections(&self) -> Box<dyn Iterator<Item = &Linear> + '_> {
        match self {
            Self::Dense(dense) => Box::new(dense.projections()),
            Self::Experts(mixture) => Box::new(mixture.projections()),
        }
    }
}

/// `down(act(gate x) * up x)`, or `down(act(up x))` without a gate.
#[derive(Debug)]
pub(super) struct DenseFeedForward {
    pub(super) hidden_act: ActivationFunction,
    /// The parameters of xIELU.
    pub(super) xielu: Option<Xielu>,
    pub(super) gate_proj: Option<Linear>,
    /// Which of the gate's values take part, see [`braidinfer_model::spec::FeedForward::Dense`].
    pub(super) gate_cutoff: Option<f64>,
    pub(super) up_proj: Linear,
    pub(super) down_proj: Linear,
}

impl DenseFeedForward {
    /// `[T, h]` to `[T, h]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let up = self.up_proj.forward(x)?.to_dtype(DType::F32)?;
        let inner = match &self.gate_proj {
            Some(gate_proj) => {
                let gate = self.cut(gate_proj.forward(x)?.to_dtype(DType::F32)?)?;
                let gate = self.activate(&gate)?;
                (gate * self.other_factor(up)?)?
            }
            None => self.activate(&up)?,
        };
        self.down_proj.forward(&inner.to_dtype(x.dtype())?)
    }

    /// Its linear layers.
    pub(super) fn projections(&self) -> impl Iterator<Item = &Linear> {
        self.gate_proj.iter().chain([&self.up_proj, &self.down_proj])
    }

    /// The gate's values `[T, inner]` beyond the cutoff of their token, less that; zeros for the others.
    fn cut(&self, gate: Tensor) -> Result<Tensor> {
        let Some(deviations) = self.gate_cutoff else { return Ok(gate) };
        let centred = gate.broadcast_sub(&gate.mean_keepdim(D::Minus1)?)?;
        let deviation = centred.sqr()?.mean_keepdim(D::Minus1)?.sqrt()?;
        relu(&centred.broadcast_sub(&(deviation * deviations)?)?)
    }

    fn activate(&self, x: &Tensor) -> Result<Tensor> {
        activate(self.hidden_act, self.xielu.as_ref(), x)
    }

    /// What the activated gate is multiplied by.
    fn other_factor(&self, up: Tensor) -> Result<Tensor> {
        Ok(match self.hidden_act {
            ActivationFunction::ClampedSwiglu { swiglu_limit, .. } => {
                (up.clamp(-swiglu_limit as f32, swiglu_limit as f32)? + 1.0)?
            }
            _ => up,
        })
    }
}

/// An activation function of every value, in f32, with its parameters if it has any.
pub(super) fn activate(function: ActivationFunction, parameters: Option<&Xielu>, x: &Tensor) -> Result<Tensor> {
    Ok(match function {
        ActivationFunction::Silu => x.silu()?,
        ActivationFunction::GeluTanh => gelu_tanh(x)?,
        ActivationFunction::GeluErf => gelu_erf(x)?,
        ActivationFunction::Relu => relu(x)?,
        ActivationFunction::ClampedSwiglu { swiglu_alpha, swiglu_limit } => {
            let x = x.minimum(swiglu_limit)?;
            let logistic = sigmoid(&(&x * swiglu_alpha)?)?;
            (x * logistic)?
        }
        ActivationFunction::Relu2 => relu(x)?.sqr()?,
        ActivationFunction::ScaledSilu { gate_multiplier } => (x * gate_multiplier)?.silu()?,
        ActivationFunction::Xielu => match parameters {
            Some(parameters) => xielu(parameters, x)?,
            None => return Err(Error::Internal("the parameters of xIELU were not loaded".into())),
        },
    })
}

/// `max(x, 0)`; unlike Candle's `relu` it keeps NaN, so that broken values are found.
fn relu(x: &Tensor) -> Result<Tensor> {
    Ok(x.maximum(&x.zeros_like()?)?)
}

/// `x / 2 * (1 + tanh(u))` with `u = sqrt(2 / pi) * (x + 0.044715 x^3)`, as `x * sigmoid(2 u)`: far below zero the sum of 1 and
/// the tangent would be rounded to nothing, and a norm may follow that makes much of what is left.
fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    let cubic = ((x.sqr()? * 0.044_715)? + 1.0)?;
    let twice = ((x * cubic)? * (2.0 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2))?;
    Ok((x * sigmoid(&twice)?)?)
}

/// `x / 2 * (1 + erf(x / sqrt(2)))`, in f64 for the same reason.
fn gelu_erf(x: &Tensor) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F64)?;
    let share = (((&wide * FRAC_1_SQRT_2)?.erf()? + 1.0)? * 0.5)?;
    Ok((wide * share)?.to_dtype(DType::F32)?)
}

/// The two branches meet at zero, so each sees only the values of its sign.
fn xielu(act: &Xielu, x: &Tensor) -> Result<Tensor> {
    let positive = (relu(x)?.sqr()? * f64::from(act.positive))?;
    let below = x.minimum(&x.zeros_like()?)?;
    let negative = (((below.exp()? - 1.0)? - &below)? * f64::from(act.negative))?;
    Ok(((positive + negative)? + (x * f64::from(act.beta))?)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn no_activation_function_hides_nan() {
        let x = Tensor::new(&[f32::NAN, 1.0], &Device::Cpu).expect("the tensor is made");
        let parameters = Xielu { positive: 0.5, negative: 0.5, beta: 0.5 };
        for function in [
            ActivationFunction::Silu,
            ActivationFunction::GeluTanh,
            ActivationFunction::GeluErf,
            ActivationFunction::Relu,
            ActivationFunction::Relu2,
            ActivationFunction::ClampedSwiglu { swiglu_alpha: 1.702, swiglu_limit: 7.0 },
            ActivationFunction::ScaledSilu { gate_multiplier: 0.5 },
            ActivationFunction::Xielu,
        ] {
            let y = activate(function, Some(&parameters), &x).and_then(|y| Ok(y.to_vec1::<f32>()?));
            let y = y.expect("the function is computed");
            assert!(y[0].is_nan() && y[1].is_finite(), "{function:?}: {y:?}");
        }
    }
}
