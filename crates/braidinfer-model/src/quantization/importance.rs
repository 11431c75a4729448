//! How much the error of each weight counts.

/// Mean squares of the inputs of a matrix, one for each of its columns: how much an error in that column changes
/// outputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Importance(Vec<f32>);

impl Importance {
    /// Takes one number for each column. `Err` has the index of the first number that is negative or not finite.
    pub fn new(columns: Vec<f32>) -> Result<Self, usize> {
        match columns.iter().position(|value| !(value.is_finite() && *value >= 0.0)) {
            Some(index) => Err(index),
            None => Ok(Self(columns)),
        }
    }

    /// The numbers.
    pub fn columns(&self) -> &[f32] {
        &self.0
    }
}

/// What the importance of a column is multiplied with to weight a squared error, as in llama.cpp (`ggml-quants.c`).
#[derive(Clone, Copy)]
pub enum Rule {
    /// Nothing.
    Plain,
    /// `√(s·mean(x²) + x²)` with the factor `s` and the mean of the block.
    WithinBlock(f64),
    /// `√(mean(x²) + x²)` with the mean of the row.
    WithinRow,
}

/// No weight of a block is below this part of their mean. So values whose columns had no input keep codes near them:
/// other texts may have some.
const LEAST: f64 = 1e-6;

/// Weights of the squared errors of a block, with a mean of 1; all 1 if no column has any importance.
pub fn weights<const LEN: usize>(values: &[f32; LEN], importance: &[f32; LEN], rule: Rule, row: f64) -> [f32; LEN] {
    let of_row = match rule {
        Rule::Plain => None,
        Rule::WithinBlock(factor) => Some(factor * mean_square(values)),
        Rule::WithinRow => Some(row),
    };
    let factor = |value: f32| of_row.map_or(1.0, |mean| (mean + f64::from(value).powi(2)).sqrt());
    let mut weights = [0.0; LEN];
    for ((weight, value), importance) in weights.iter_mut().zip(values).zip(importance) {
        *weight = f64::from(*importance) * factor(*value);
    }
    let mean = weights.iter().sum::<f64>() / LEN as f64;
    if mean == 0.0 { [1.0; LEN] } else { weights.map(|weight| (weight / mean).max(LEAST) as f32) }
}

/// 0 for no values.
pub fn mean_square(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / values.len().max(1) as f64
}
