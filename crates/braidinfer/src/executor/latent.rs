//! The projections of latent attention that read narrower vectors than the residual stream.

use braidinfer_model::spec::LatentSpec;

/// With projections `L` and norms `N`, as kernels keep them. The query and key projections of the layer give the narrower
/// vectors.
#[derive(Debug)]
pub(super) struct Latent<L, N> {
    pub(super) spec: LatentSpec,
    /// The norm of the vector that queries are computed from, and the projection to them; if there are none, the query
    /// projection gives queries.
    pub(super) queries: Option<(N, L)>,
    /// The norm of the vector that keys and values are computed from.
    pub(super) kv_a_norm: N,
    pub(super) kv_b_proj: L,
}

impl<L, N> Latent<L, N> {
    pub(super) fn projections(&self) -> impl Iterator<Item = &L> {
        self.queries.iter().map(|(_, q_b_proj)| q_b_proj).chain([&self.kv_b_proj])
    }
}
