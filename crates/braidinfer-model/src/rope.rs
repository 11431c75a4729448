//! Rotary frequencies of a [`RopeSpec`], in the f32 arithmetic that models were trained with.
//!
//! Frequencies are computed as powers and quotients in f32, and an angle is `position as f32 * frequency`: angles
//! computed in f64 would differ by 1e-3 rad at position 32k from those used in training. The formulas are those of
//! `transformers` 5, `modeling_rope_utils.py`, and of the papers named in [`RopeScaling`].

use std::f64::consts::PI;

use crate::spec::{DecoderSpec, QueryPositionScale, RopeScaling, RopeSpec};

/// Identifies which of a table's frequency sets applies at a sequence length. Queries may only meet keys that were
/// rotated in the same regime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RopeRegime(u64);

impl DecoderSpec {
    /// The model's context length, in tokens: RoPE scaling by a factor may extend it beyond `max_position_embeddings`,
    /// which is the length before scaling in some configs.
    pub fn context_length(&self) -> usize {
        // Prevents overflow in later computations if the factor is corrupt.
        const LIMIT: usize = 1 << 31;
        let stretched = |table: &RopeSpec| match table.scaling {
            RopeScaling::Dynamic { factor, original_max_position_embeddings: original }
            | RopeScaling::Yarn { factor, original_max_position_embeddings: original, .. } => {
                (original as f64 * factor) as usize
            }
            _ => 0,
        };
        self.rope.iter().map(stretched).fold(self.max_position_embeddings, usize::max).min(LIMIT)
    }
}

impl QueryPositionScale {
    /// The factor of a query at `position`.
    pub fn factor(&self, position: usize) -> f32 {
        let whole = (position / self.original_max_position_embeddings) as f64;
        (1.0 + self.beta * (1.0 + whole).ln()) as f32
    }
}

impl RopeSpec {
    /// Whether the frequencies depend on the length of the sequence.
    pub fn depends_on_length(&self) -> bool {
        matches!(self.scaling, RopeScaling::Dynamic { .. } | RopeScaling::Longrope { .. })
    }

    /// The regime of a sequence of `len` tokens.
    pub fn regime(&self, len: usize) -> RopeRegime {
        RopeRegime(match &self.scaling {
            RopeScaling::Dynamic { original_max_position_embeddings, .. } => {
                len.max(*original_max_position_embeddings) as u64
            }
            RopeScaling::Longrope { original_max_position_embeddings, .. } => {
                u64::from(len > *original_max_position_embeddings)
            }
            _ => 0,
        })
    }

    /// Radians per position of each pair, `[rotary_dim / 2]`, for a sequence of `len` tokens.
    pub fn inv_freq(&self, len: usize) -> Vec<f32> {
        match &self.scaling {
            RopeScaling::Default => self.base_frequencies(self.rope_theta),
            RopeScaling::Linear { factor } => {
                self.base_frequencies(self.rope_theta).iter().map(|f| f / *factor as f32).collect()
            }
            RopeScaling::Dynamic { factor, original_max_position_embeddings } => {
                self.base_frequencies(self.dynamic_theta(*factor, *original_max_position_embeddings, len))
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let original = *original_max_position_embeddings as f64;
                let frequencies = self.base_frequencies(self.rope_theta);
                let scale = |f: &f32| llama3(*f, *factor as f32, *low_freq_factor, *high_freq_factor, original);
                frequencies.iter().map(scale).collect()
            }
            RopeScaling::Yarn { factor, original_max_position_embeddings, beta_fast, beta_slow, truncate, .. } => {
                let original = *original_max_position_embeddings as f64;
                self.yarn(
                    *factor,
                    (self.yarn_dim(*beta_fast, original), self.yarn_dim(*beta_slow, original)),
                    *truncate,
                )
            }
            RopeScaling::FrequencyFactors { factors } => {
                let frequencies = self.base_frequencies(self.rope_theta);
                frequencies.iter().zip(factors).map(|(frequency, factor)| frequency / *factor as f32).collect()
            }
            RopeScaling::Proportional { rotated_pairs, factor } => {
                let mut frequencies = self.base_frequencies(self.rope_theta);
                for (pair, frequency) in frequencies.iter_mut().enumerate() {
                    *frequency = if pair < *rotated_pairs { *frequency / *factor as f32 } else { 0.0 };
                }
                frequencies
            }
            RopeScaling::Longrope { short_factor, long_factor, original_max_position_embeddings, .. } => {
                let factors = if len > *original_max_position_embeddings { long_factor } else { short_factor };
                let powers = self.powers(self.rope_theta);
                powers.iter().zip(factors).map(|(power, factor)| 1.0 / (*factor as f32 * power)).collect()
            }
        }
    }

    /// The factor of cosines and sines, for a sequence of `len` tokens.
    pub fn attention_factor(&self, len: usize) -> f32 {
        match self.scaling {
            RopeScaling::Longrope { original_max_position_embeddings: original, long_attention_factor, .. }
                if len > original =>
            {
                long_attention_factor as f32
            }
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::Longrope { attention_factor, .. } => {
                attention_factor as f32
            }
            _ => 1.0,
        }
    }

    /// `theta^(2i / rotary_dim)`.
    fn powers(&self, theta: f64) -> Vec<f32> {
        let rotary_dim = self.rotary_dim as f32;
        (0..self.rotary_dim / 2).map(|i| (theta as f32).powf((2 * i) as f32 / rotary_dim)).collect()
    }

    fn base_frequencies(&self, theta: f64) -> Vec<f32> {
        self.powers(theta).iter().map(|power| 1.0 / power).collect()
    }

    fn dynamic_theta(&self, factor: f64, original: usize, len: usize) -> f64 {
        let (original, len, rotary_dim) = (original as f64, len.max(original) as f64, self.rotary_dim as f64);
        self.rope_theta * (factor * len / original - (factor - 1.0)).powf(rotary_dim / (rotary_dim - 2.0))
    }

    /// The dimension (possibly fractional) that makes `rotations` full turns over the `original` length.
    fn yarn_dim(&self, rotations: f64, original: f64) -> f64 {
        self.rotary_dim as f64 * (original / (rotations * 2.0 * PI)).ln() / (2.0 * self.rope_theta.ln())
    }

    fn yarn(&self, factor: f64, (low, high): (f64, f64), truncate: bool) -> Vec<f32> {
        let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, mut high) = (low.max(0.0), high.min(self.rotary_dim as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        let ramp = |i: usize| ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        let blend = |(i, power): (usize, &f32)| {
            let kept = 1.0 - ramp(i);
            1.0 / (factor as f32 * power) * (1.0 - kept) + 1.0 / power * kept
        };
        self.powers(self.rope_theta).iter().enumerate().map(blend).collect()
    }
}

/// YaRN's factor of cosines and sines for frequencies divided by `factor` (arXiv:2309.00071, where `strength` is 1).
pub(crate) fn yarn_mscale(factor: f64, strength: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * strength * factor.ln() + 1.0 }
}

fn llama3(frequency: f32, factor: f32, low_freq_factor: f64, high_freq_factor: f64, original: f64) -> f32 {
    let wavelength = 2.0 * std::f32::consts::PI / frequency;
    if wavelength > (original / low_freq_factor) as f32 {
        frequency / factor
    } else if wavelength < (original / high_freq_factor) as f32 {
        frequency
    } else {
        let kept =
            (original as f32 / wavelength - low_freq_factor as f32) / (high_freq_factor - low_freq_factor) as f32;
        (1.0 - kept) * frequency / factor + kept * frequency
    }
}
