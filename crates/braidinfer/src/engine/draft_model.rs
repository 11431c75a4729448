//! Draft tokens by a smaller model with the same vocabulary (speculative decoding: Leviathan et al. 2023, arXiv:2211.17192).
//!
//! The small model chooses each token as the sequence's own sampler would choose it from these logits, with the random number
//! that the sampler will take at that position. So a token is accepted wherever both models agree about that number, the
//! distribution of the output is that of the large model alone, and so is its text with the same seed.

use std::collections::HashMap;
use std::time::Instant;

use super::SequenceId;
use super::block_pool::{BlockPool, BlockTable};
use super::draft::expected_tokens;
use super::sampler::Proposer;
use super::softmax::first_not_finite;
use super::step_costs::DecodeTimes;
use crate::executor::{Batch, Decoder, Logits, NoProbe, SequenceSlice};
use crate::{Error, Result};

/// Share of drafted tokens that are accepted, before any was seen.
const FIRST_RATE: f64 = 0.7;
/// Weight of each accepted or rejected token in the moving average of a rate.
const RATE_WEIGHT: f64 = 0.1;
/// How fast a rate rises while it is too low to draft.
const RECOVERY: f64 = 0.003;
/// Time of a step of the small model as a share of one of the large model, before any was measured.
const FIRST_COST: f64 = 0.2;
/// How many times as fast drafting must be expected to be, since estimates err.
const LEAST_GAIN: f64 = 1.03;
/// Most tokens in one step of the small model.
const MAX_BATCHED_TOKENS: usize = 512;

/// A small model that drafts.
pub(crate) struct DraftModel {
    decoder: Decoder<'static>,
    pool: BlockPool,
    /// Tokens that both models know have ids below this.
    vocab: usize,
    /// How many tokens to draft at a time, whatever was measured.
    fixed: Option<usize>,
    sequences: HashMap<SequenceId, Known>,
    /// Of all sequences, for those that begin.
    rate: f64,
    /// Of steps with one token for each sequence.
    times: DecodeTimes,
    /// Why it does not draft any more.
    failure: Option<Error>,
}

/// What is kept of a sequence.
struct Known {
    /// Tokens whose keys and values are stored.
    tokens: Vec<u32>,
    blocks: BlockTable,
    /// Share of drafted tokens that are accepted.
    rate: f64,
}

/// A sequence to draft for.
pub(super) struct Wanted {
    pub(super) id: SequenceId,
    /// All of its tokens.
    pub(super) tokens: Vec<u32>,
    /// How many tokens to draft.
    pub(super) depth: usize,
    /// Chooses tokens as the sequence will.
    pub(super) proposer: Proposer,
}

/// How much drafting is worth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Worth {
    pub(super) depth: usize,
    /// How many times as fast tokens come as without drafts.
    pub(super) gain: f64,
}

impl DraftModel {
    /// `vocab` is the number of tokens that both models have. So many tokens are drafted at a time; if `fixed` is `None`, as many as are
    /// expected to pay off.
    ///
    /// Fails if the decoder keeps states that cannot be taken back to an earlier token.
    pub(crate) fn new(decoder: Decoder<'static>, vocab: usize, fixed: Option<usize>) -> Result<Self> {
        if decoder.state().bytes_per_sequence > 0 {
            let expected = "a model whose layers are all attention, so that drafts can be taken back";
            return Err(Error::bad_request(
                "draft",
                expected,
                format!("recurrent layers of {}", decoder.spec().model_type),
            ));
        }
        Ok(Self {
            pool: BlockPool::new(decoder.kv_cache().num_blocks),
            decoder,
            vocab,
            fixed,
            sequences: HashMap::new(),
            rate: FIRST_RATE,
            times: DecodeTimes::default(),
            failure: None,
        })
    }

    /// Forgets all sequences but these.
    pub(super) fn retain(&mut self, is_known: impl Fn(SequenceId) -> bool) {
        self.sequences.retain(|id, _| is_known(*id));
        if self.sequences.is_empty() {
            self.decoder.release_scratch();
        }
    }

    /// Why it does not draft any more, if that was not told yet.
    pub(super) fn take_failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    /// How many tokens to draft for a sequence, at most `most`, beside `decodes - 1` others. A step of the large model takes `step`
    /// seconds if that is known, and `token` more for each drafted token.
    pub(super) fn worth(
        &mut self,
        id: SequenceId,
        most: usize,
        decodes: usize,
        step: Option<f64>,
        token: f64,
    ) -> Worth {
        if let Some(fixed) = self.fixed {
            return Worth { depth: fixed.min(most), gain: f64::INFINITY };
        }
        let own = self.times.of(decodes);
        let cost = match (step, own) {
            (Some(step), Some(own)) => (decodes as f64 * token + own) / step.max(1e-9),
            _ => FIRST_COST,
        };
        let rate = self.sequences.get(&id).map_or(self.rate, |known| known.rate);
        let gain = |depth: usize| expected_tokens(rate, depth) / (1.0 + cost * depth as f64);
        let depths = (0..=most).map(|depth| Worth { depth, gain: gain(depth) });
        let best = depths.max_by(|a, b| a.gain.total_cmp(&b.gain)).filter(|best| best.gain >= LEAST_GAIN);
        best.unwrap_or_else(|| {
            // It is tried again after a while: the text may have become easier.
            if let Some(known) = self.sequences.get_mut(&id) {
                known.rate = (known.rate + RECOVERY).min(1.0);
            }
            self.rate = (self.rate + RECOVERY / 10.0).min(1.0);
            Worth { depth: 0, gain: 1.0 }
        })
    }

    /// Records how many tokens of a draft were accepted.
    pub(super) fn record(&mut self, id: SequenceId, drafted: usize, accepted: usize) {
        let own = self.sequences.get_mut(&id).map(|known| &mut known.rate);
        for rate in own.into_iter().chain([&mut self.rate]) {
            for _ in 0..accepted {
                *rate += RATE_WEIGHT * (1.0 - *rate);
            }
            if accepted < drafted {
                *rate -= RATE_WEIGHT * *rate;
            }
        }
    }

    /// Drafts for sequences together; returns the drafts in their order. One whose tokens are not all read yet has none this time.
    pub(super) fn draft(&mut self, wanted: &mut [Wanted]) -> Vec<Vec<u32>> {
        let none = wanted.iter().map(|_| Vec::new()).collect();
        match self.try_draft(wanted) {
            Ok(drafts) => drafts,
            Err(error) => {
                // The large model goes on alone.
                self.sequences.clear();
                self.failure = Some(error);
                none
            }
        }
    }

    fn try_draft(&mut self, wanted: &mut [Wanted]) -> Result<Vec<Vec<u32>>> {
        let mut drafts: Vec<Vec<u32>> = wanted.iter().map(|_| Vec::new()).collect();
        let mut logits = self.read_known(wanted)?;
        loop {
            // Those whose next token the small model chooses now, with the row of its logits.
            let mut going_on = Vec::new();
            for (index, row) in logits.rows {
                let (sequence, draft) = (&mut wanted[index], &mut drafts[index]);
                let values = &logits.values.row(row)[..self.vocab];
                if first_not_finite(values).is_some() {
                    continue;
                }
                let token = sequence.proposer.propose(values);
                draft.push(token);
                if draft.len() < sequence.depth && !sequence.proposer.is_end(token) {
                    going_on.push((index, token));
                }
            }
            if going_on.is_empty() {
                return Ok(drafts);
            }
            logits = self.read_drafted(wanted, &going_on)?;
        }
    }

    /// Reads the tokens that are not read yet, as many as a step takes.
    fn read_known(&mut self, wanted: &[Wanted]) -> Result<Rows> {
        let block_size = self.decoder.kv_cache().block_size;
        let most_tokens = self.decoder.kv_cache().capacity();
        let (mut batch, mut rows) = (Batch::default(), Vec::new());
        let mut is_plain = true;
        for (index, Wanted { id, tokens, depth, .. }) in wanted.iter().enumerate() {
            let rate = self.rate;
            let known = self.sequences.entry(*id).or_insert_with(|| Known::new(rate));
            let same = known.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
            // The last token is read for what comes after it.
            known.tokens.truncate(same.min(tokens.len() - 1));
            let from = known.tokens.len();
            let budget = MAX_BATCHED_TOKENS.saturating_sub(batch.token_ids.len());
            let count = (tokens.len() - from).min(budget);
            let end = from + count;
            let is_known = tokens[from..end].iter().all(|token| (*token as usize) < self.decoder.spec().vocab_size);
            let fits =
                tokens.len() + depth <= most_tokens && known.reserve(&self.pool, (end + depth).div_ceil(block_size));
            if count == 0 || !is_known || !fits {
                continue;
            }
            let is_whole = end == tokens.len();
            is_plain &= count <= 2;
            let slice = SequenceSlice {
                rope_len: tokens.len().max(end),
                ..SequenceSlice::new(from, count, known.blocks.ids())
            };
            batch.push(&tokens[from..end], slice, usize::from(is_whole));
            known.tokens.extend(&tokens[from..end]);
            if is_whole {
                rows.push(index);
            }
        }
        self.run(&batch, rows, is_plain)
    }

    /// Reads one drafted token of each of these sequences.
    fn read_drafted(&mut self, wanted: &[Wanted], drafted: &[(usize, u32)]) -> Result<Rows> {
        let (mut batch, mut rows) = (Batch::default(), Vec::new());
        for (index, token) in drafted {
            let Some(known) = self.sequences.get_mut(&wanted[*index].id) else { continue };
            let slice = SequenceSlice::new(known.tokens.len(), 1, known.blocks.ids());
            batch.push(&[*token], slice, 1);
            known.tokens.push(*token);
            rows.push(*index);
        }
        self.run(&batch, rows, true)
    }

    /// Runs a batch in which the sequences `rows` have a row of logits each, in this order. `is_plain` says that its time is that of
    /// one token for each sequence.
    fn run(&mut self, batch: &Batch, rows: Vec<usize>, is_plain: bool) -> Result<Rows> {
        let started = Instant::now();
        self.decoder.reserve(batch)?;
        let values = self.decoder.forward(batch, &mut NoProbe)?.logits;
        if is_plain && !rows.is_empty() {
            self.times.observe(batch.sequences.len(), started.elapsed().as_secs_f64());
        }
        Ok(Rows { rows: rows.into_iter().zip(0..).collect(), values })
    }
}

/// Logits of some sequences.
struct Rows {
    /// Indices of the sequences, with the rows of their logits.
    rows: Vec<(usize, usize)>,
    values: Logits,
}

impl Known {
    fn new(rate: f64) -> Self {
        Self { tokens: Vec::new(), blocks: BlockTable::default(), rate }
    }

    /// Makes sure of so many blocks. Returns false if there are too few.
    fn reserve(&mut self, pool: &BlockPool, blocks: usize) -> bool {
        while self.blocks.len() < blocks {
            let Some(block) = pool.allocate() else { return false };
            self.blocks.push(block);
        }
        true
    }
}
