//! Which runner computes what.

use std::collections::BTreeSet;

/// Runners by index, for each part of a decoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) embed: usize,
    /// One for each layer.
    pub(super) layers: Vec<usize>,
    pub(super) head: usize,
}

impl Route {
    /// Everything to the first runner.
    pub(super) fn whole(layers: usize) -> Self {
        Self { embed: 0, layers: vec![0; layers], head: 0 }
    }

    /// Whether a runner has any part.
    pub(super) fn uses(&self, runner: usize) -> bool {
        [self.embed, self.head].contains(&runner) || self.layers.contains(&runner)
    }

    /// Some layers to another runner.
    pub(super) fn set(&mut self, layers: &BTreeSet<usize>, runner: usize) {
        layers.iter().for_each(|layer| self.layers[*layer] = runner);
    }
}
