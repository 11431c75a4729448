//! The choice of tokens after a forward pass, which may have to wait for a constraint.
//!
//! Most tokens are chosen as soon as their logits are there. Where a constraint is late, the logits are kept and the sequence
//! sits out steps, so that it does not delay the others.

use std::time::{Duration, Instant};

use super::constraint::TokenMask;
use super::logprobs::TokenLogprobs;
use super::scheduler::ScheduledSequence;
use super::sequence::Sequence;
use crate::executor::Logits;
use crate::{Error, Result};

/// The state of the choice of one sequence's next tokens.
#[derive(Debug)]
pub(super) struct PendingSample {
    pub(super) scheduled: ScheduledSequence,
    /// Index of the next position in `scheduled.wanted`.
    pub(super) next: usize,
    /// Number of tokens that were generated so far.
    pub(super) generated: usize,
    /// The masks of the sequence's constraint, once they are there.
    masks: Option<Vec<TokenMask>>,
    /// A token that was chosen, while the constraint is advanced by it.
    chosen: Option<(u32, Option<TokenLogprobs>)>,
    /// Logits from position `next` on, once the sequence sits out.
    kept: Vec<Vec<f32>>,
}

/// A token that was chosen.
pub(super) struct Chosen {
    pub(super) id: u32,
    pub(super) logprobs: Option<TokenLogprobs>,
    /// Whether the constraint allows no token after it.
    pub(super) is_complete: bool,
}

impl PendingSample {
    pub(super) fn new(scheduled: ScheduledSequence) -> Self {
        Self { scheduled, next: 0, generated: 0, masks: None, chosen: None, kept: Vec::new() }
    }

    /// Keeps the logits that are still needed; those of the sequence begin at `row`.
    pub(super) fn keep(&mut self, logits: &Logits, row: usize) {
        self.kept = (self.next..self.scheduled.wanted.len()).map(|index| logits.row(row + index).to_vec()).collect();
    }

    /// The kept logits of the next position, moved out until [`PendingSample::put_back`].
    pub(super) fn take_kept(&mut self) -> Vec<Vec<f32>> {
        std::mem::take(&mut self.kept)
    }

    /// Keeps `rows`, which are those of the last positions.
    pub(super) fn put_back(&mut self, mut rows: Vec<Vec<f32>>) {
        rows.drain(..rows.len().saturating_sub(self.scheduled.wanted.len() - self.next));
        self.kept = rows;
    }

    /// Chooses the token after the next position by its `logits`. `None` if the constraint is not ready by `until`.
    pub(super) fn choose(&mut self, sequence: &mut Sequence, logits: &[f32], until: Instant) -> Result<Option<Chosen>> {
        if self.chosen.is_none() {
            let mask = match sequence.constraint() {
                None => None,
                Some(constraint) => {
                    if self.masks.is_none() {
                        let Some(masks) = constraint.masks(patience(until)) else { return Ok(None) };
                        self.masks = Some(masks?);
                    }
                    // There is one mask after each accepted draft token.
                    let mask = self.masks.as_ref().and_then(|masks| masks.get(self.generated));
                    Some(mask.ok_or_else(|| Error::Internal("a constraint gave too few masks".into()))?)
                }
            };
            let (token, logprobs) = sequence.sample(logits, mask)?;
            let Some(constraint) = sequence.constraint() else {
                return Ok(Some(Chosen { id: token, logprobs, is_complete: false }));
            };
            constraint.take(token);
            self.chosen = Some((token, logprobs));
        }
        let complete = sequence.constraint().map(|constraint| constraint.is_complete(patience(until)));
        let Some(is_complete) = complete.unwrap_or(Some(Ok(false))) else { return Ok(None) };
        let is_complete = is_complete?;
        Ok(self.chosen.take().map(|(id, logprobs)| Chosen { id, logprobs, is_complete }))
    }
}

fn patience(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}
