//! The tokens of a step, group by group: those that are computed with the same adapter.

use candle_core::{Device, Tensor};

use super::attention::MaskCache;
use super::rotary::Rotation;
use crate::Result;
use crate::executor::Batch;
use braidinfer_model::DecoderSpec;

/// Tensors that the layers of one step share.
#[derive(Default)]
pub(super) struct StepTensors {
    pub(super) rotations: Vec<Rotation>,
    pub(super) masks: MaskCache,
}

/// The sequences of a step that are computed with the same adapter, or with none.
pub(super) struct Group {
    pub(super) adapter: Option<u32>,
    /// The rows of the step's batch that are the rows of this one, in order.
    pub(super) rows: Vec<usize>,
    /// Its tokens and sequences; asks for no outputs.
    pub(super) batch: Batch,
    pub(super) tensors: StepTensors,
    /// The residual stream, `[T, h]`, or all streams, `[T, K, h]`.
    pub(super) hidden: Option<Tensor>,
}

impl Group {
    /// The groups of a batch.
    pub(super) fn all(batch: &Batch, spec: &DecoderSpec, device: &Device) -> Result<Vec<Self>> {
        let mut groups: Vec<Self> = Vec::new();
        for (range, sequence) in batch.ranges() {
            let known = groups.iter().position(|group| group.adapter == sequence.adapter);
            let index = known.unwrap_or_else(|| {
                groups.push(Self {
                    adapter: sequence.adapter,
                    rows: Vec::new(),
                    batch: Batch::default(),
                    tensors: StepTensors::default(),
                    hidden: None,
                });
                groups.len() - 1
            });
            let group = &mut groups[index];
            group.batch.push(&batch.token_ids[range.clone()], sequence.clone(), 0);
            group.rows.extend(range);
        }
        for group in &mut groups {
            let rotations = Rotation::for_batch(spec, &group.batch, device)?;
            group.tensors = StepTensors { rotations, masks: MaskCache::default() };
        }
        Ok(groups)
    }

    /// Which of `wanted`, rows of the step's batch, belong to this group: their places in `wanted`, and the group's own rows.
    pub(super) fn own_rows(&self, wanted: &[usize]) -> (Vec<usize>, Vec<usize>) {
        let found =
            wanted.iter().enumerate().filter_map(|(place, row)| Some((place, self.rows.binary_search(row).ok()?)));
        found.unzip()
    }
}
