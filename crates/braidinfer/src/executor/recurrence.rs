//! Which tokens the state of a recurrent layer covers, as [`super::LayerState::bytes_per_sequence`] demands.

use braidinfer_model::spec::Mamba2Spec;

use super::SequenceSlice;
use crate::{Error, Result};

/// The state is that at a block boundary, and what is needed to continue from any of the tokens that are kept after it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct StatePosition {
    /// Number of tokens that the state covers.
    boundary: usize,
    /// Number of tokens after it.
    kept: usize,
}

impl StatePosition {
    /// Takes a sequence up where a slice begins, and returns how many tokens are kept before that.
    ///
    /// Fails if the state is that of another position.
    pub(super) fn resume(&mut self, sequence: &SequenceSlice) -> Result<usize> {
        if sequence.context_len == 0 {
            *self = Self::default();
        }
        match sequence.context_len.checked_sub(self.boundary).filter(|known| *known <= self.kept) {
            Some(known) => {
                self.kept = known;
                Ok(known)
            }
            None => {
                let Self { boundary, kept } = *self;
                let has = format!("it has {boundary} to {}", boundary + kept);
                Err(Error::Internal(format!(
                    "state slot {} was to continue from position {}, but {has}",
                    sequence.state_slot, sequence.context_len
                )))
            }
        }
    }

    /// Counts the tokens of a slice, and moves on to the last block boundary before its drafts. Returns how many tokens
    /// the state passes.
    pub(super) fn advance(&mut self, sequence: &SequenceSlice, block_size: usize) -> usize {
        let end = self.boundary + self.kept + sequence.query_len;
        let certain = end - sequence.draft_len.min(sequence.query_len);
        let boundary = (certain / block_size * block_size).max(self.boundary);
        let passed = boundary - self.boundary;
        *self = Self { boundary, kept: end - boundary };
        passed
    }
}

/// Number of heads of Mamba-2 that fused kernels compute together, a part of a group: as many as have no more than 512
/// values, so that there is work for several threads where there are few groups.
pub(crate) fn heads_per_part(spec: &Mamba2Spec) -> usize {
    const WIDEST: usize = 512;
    let fits = |heads: &usize| spec.heads_per_group().is_multiple_of(*heads) && heads * spec.mamba_d_head <= WIDEST;
    (1..=spec.heads_per_group()).filter(fits).max().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(context_len: usize, query_len: usize, draft_len: usize) -> SequenceSlice {
        SequenceSlice { draft_len, ..SequenceSlice::new(context_len, query_len, Vec::new()) }
    }

    #[test]
    fn states_stay_at_boundaries_before_drafts() {
        let mut position = StatePosition::default();
        let mut step = |context_len, query_len, draft_len| {
            let slice = slice(context_len, query_len, draft_len);
            let known = position.resume(&slice).map_err(|error| error.to_string())?;
            Ok::<_, String>((known, position.advance(&slice, 4), position.boundary, position.kept))
        };
        assert_eq!(step(0, 3, 0), Ok((0, 0, 0, 3)));
        assert_eq!(step(3, 6, 0), Ok((3, 8, 8, 1)));
        assert_eq!(step(9, 8, 6), Ok((1, 0, 8, 9)), "drafts are beyond the boundary");
        assert_eq!(step(14, 1, 0), Ok((6, 4, 12, 3)), "some of them are accepted");
        assert_eq!(step(12, 2, 1), Ok((0, 0, 12, 2)), "back to the boundary");
        assert!(step(11, 1, 0).expect_err("that is before the boundary").contains("position 11"));
        assert!(step(15, 1, 0).expect_err("that is beyond the end").contains("12 to 14"));
        assert_eq!(step(0, 1, 0), Ok((0, 0, 0, 1)), "another sequence");
    }
}
