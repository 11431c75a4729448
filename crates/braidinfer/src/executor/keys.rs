//! Where the keys and values of a layer come from.

/// With projections `L` and norms `N`, as kernels keep them.
#[derive(Debug)]
pub(super) enum Keys<L, N> {
    /// The layer has its own.
    Own(Box<OwnKeys<L, N>>),
    /// Those that an earlier layer stored.
    OfLayer(usize),
}

/// The projections of keys and values.
#[derive(Debug)]
pub(super) struct OwnKeys<L, N> {
    /// With latent attention, to the narrower vector that keys and values are computed from, and the shared part of keys.
    pub(super) k_proj: L,
    /// If there is none, keys and values are both computed from the output of the key projection.
    pub(super) v_proj: Option<L>,
    pub(super) k_norm: Option<N>,
    /// Of every value head.
    pub(super) v_norm: Option<N>,
}

impl<L, N> Keys<L, N> {
    /// The layer's own, if it has some.
    pub(super) fn own(&self) -> Option<&OwnKeys<L, N>> {
        match self {
            Self::Own(own) => Some(own),
            Self::OfLayer(_) => None,
        }
    }

    /// The layer that stores the keys and values of layer `index`.
    pub(super) fn stored_by(&self, index: usize) -> usize {
        match self {
            Self::Own(_) => index,
            Self::OfLayer(layer) => *layer,
        }
    }
}
