//! Observing activations by name, whoever computes them.

/// Receives named activations during a forward pass.
///
/// Names are `embed`, `layer.N.<part>`, `final_norm` and `logits`, where a part is one of `input_norm`,
/// `attn.q`, `attn.k`, `attn.v` (projections), `attn.q_norm`, `attn.k_norm`, `attn.q_rope`, `attn.k_rope`,
/// `attn.heads` (before the output projection), `attn.out`, `attn.residual` (the stream after attention),
/// `ffn.norm`, `ffn.out`, `output` (the stream after the layer). `final_norm` and `logits` have rows only for the tokens whose
/// logits are wanted; they do not come where there are none, and some rows at a time where there are many.
pub trait Probe: Send {
    /// Whether any activation is wanted at all.
    fn is_active(&self) -> bool {
        true
    }

    /// Whether to hand over the activation called `name`.
    fn wants(&self, name: &str) -> bool;

    /// Takes the activation `[rows, width]`, one row per token of the batch, in f32.
    fn record(&mut self, name: &str, rows: usize, values: Vec<f32>);
}

/// Observes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProbe;

impl Probe for NoProbe {
    fn is_active(&self) -> bool {
        false
    }

    fn wants(&self, _name: &str) -> bool {
        false
    }

    fn record(&mut self, _name: &str, _rows: usize, _values: Vec<f32>) {}
}

/// One recorded activation.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedActivation {
    /// Its name.
    pub name: String,
    /// Tokens.
    pub rows: usize,
    /// `[rows, width]`, row-major.
    pub values: Vec<f32>,
}

/// Keeps every activation whose name a filter accepts, in the order of computation.
#[derive(Debug)]
pub struct Recorder<F> {
    filter: F,
    /// What was recorded so far.
    pub activations: Vec<RecordedActivation>,
}

impl<F: Fn(&str) -> bool + Send> Recorder<F> {
    /// Records what `filter` accepts.
    pub fn new(filter: F) -> Self {
        Self { filter, activations: Vec::new() }
    }
}

impl<F: Fn(&str) -> bool + Send> Probe for Recorder<F> {
    fn wants(&self, name: &str) -> bool {
        (self.filter)(name)
    }

    fn record(&mut self, name: &str, rows: usize, values: Vec<f32>) {
        self.activations.push(RecordedActivation { name: name.to_owned(), rows, values });
    }
}
