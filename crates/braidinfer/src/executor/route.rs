//! Assignment of layers to runners.

use std::collections::BTreeSet;

/// The index of the runner for each part of a decoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) embed: usize,
    /// One entry per layer.
    pub(super) layers: Vec<usize>,
    pub(super) head: usize,
}

impl Route {
    /// Assigns everything to the first runner.
    pub(super) fn whole(layers: usize) -> Self {
        Self { embed: 0, layers: vec![0; layers], head: 0 }
    }

    /// Whether anything is assigned to a runner.
    pub(super) fn uses(&self, runner: usize) -> bool {
        [self.embed, self.head].contains(&runner) || self.layers.contains(&runner)
    }

    /// Assigns some layers to a runner.
    pub(super) fn set(&mut self, layers: &BTreeSet<usize>, runner: usize) {
        layers.iter().for_each(|layer| self.layers[*layer] = runner);
    }
}
