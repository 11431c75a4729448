//! Queries, keys and values of latent attention.

use braidinfer_model::spec::{AttentionSpec, LatentSpec};
use candle_core::Tensor;

use super::attention::KeyValue;
use super::linear::Linear;
use super::norm::Norm;
use crate::Result;
use crate::executor::latent::Latent;

impl Latent<Linear, Norm> {
    /// The output `[T, q_lora_rank]` of the query projection to queries `[T, H * d]`.
    pub(super) fn expand_queries(&self, q: Tensor) -> Result<Tensor> {
        match &self.queries {
            Some((norm, q_b_proj)) => q_b_proj.forward(&norm.forward(&q)?),
            None => Ok(q),
        }
    }

    /// The output `[T, kv_lora_rank + qk_rope_head_dim]` of the key projection to keys `[T, H * d]` and values
    /// `[T, H * value width]`, before RoPE.
    pub(super) fn expand_keys(&self, attention: &AttentionSpec, compressed: &Tensor) -> Result<KeyValue> {
        let LatentSpec { kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim, .. } = self.spec;
        let (rows, heads) = (compressed.dim(0)?, attention.num_key_value_heads);
        let latent = compressed.narrow(1, 0, kv_lora_rank)?.contiguous()?;
        let shared = compressed.narrow(1, kv_lora_rank, qk_rope_head_dim)?.reshape((rows, 1, qk_rope_head_dim))?;
        let expanded = self.kv_b_proj.forward(&self.kv_a_norm.forward(&latent)?)?;
        let expanded = expanded.reshape((rows, heads, self.spec.expanded_head_rows()))?;
        let own = expanded.narrow(2, 0, qk_nope_head_dim)?;
        let k = Tensor::cat(&[&own, &shared.expand((rows, heads, qk_rope_head_dim))?], 2)?;
        let v = expanded.narrow(2, qk_nope_head_dim, v_head_dim)?.contiguous()?;
        Ok((k.reshape((rows, attention.key_value_width()))?, v.reshape((rows, heads * v_head_dim))?))
    }
}
