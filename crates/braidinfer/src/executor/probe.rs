//! Recording intermediate activations by name, from any kernels.

/// Receives named activations during a forward pass.
///
/// Names are `embed`, `layer.N.<part>`, `final_norm` and `logits`, where a part is one of `input_norm`,
/// `attn.q`, `attn.k`, `attn.v` (projections), `attn.q_norm`, `attn.k_norm`, `attn.q_rope`, `attn.k_rope`,
/// `attn.heads` (before the output projection), `attn.out`, `attn.residual` (the residual stream after attention),
/// `ffn.norm`, `ffn.out`, `output` (the residual stream after the layer, or all of them side by side); with several
/// residual streams also `altup.predicted` (all of them) and `altup.corrected`, with low-rank branches `laurel.out`; with
/// a mixture of experts also `ffn.router` (logits), `ffn.choice_scores` (what experts are chosen by) and `ffn.routing`
/// (the weight of each expert, zero where it is not chosen). `final_norm` and `logits` have rows only for the tokens whose logits are requested: they are not recorded without such tokens, and come in several chunks if
/// there are many.
pub trait Probe: Send {
    /// Whether the probe records anything.
    fn is_active(&self) -> bool {
        true
    }

    /// Whether to record the activation called `name`.
    fn wants(&self, name: &str) -> bool;

    /// Receives the activation `[rows, width]` in f32, one row per token of the batch.
    fn record(&mut self, name: &str, rows: usize, values: Vec<f32>);
}

/// Records nothing.
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
    /// Name of the activation.
    pub name: String,
    /// Number of tokens.
    pub rows: usize,
    /// `[rows, width]`, row-major.
    pub values: Vec<f32>,
}

/// Records every activation whose name passes a filter, in the order of computation.
#[derive(Debug)]
pub struct Recorder<F> {
    filter: F,
    /// The activations recorded so far.
    pub activations: Vec<RecordedActivation>,
}

impl<F: Fn(&str) -> bool + Send> Recorder<F> {
    /// A recorder of the activations whose names `filter` accepts.
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
