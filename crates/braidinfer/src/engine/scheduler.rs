//! Chooses the tokens of the next step.
//!
//! First come, first served for each client. Decoding sequences come first in every step, with one token each, unless a client
//! has so many of them that others would be slowed down. Prompts get the rest of the token budget: clients for which fewer tokens
//! were computed come first, and the sequences of a client in order of arrival. In a step that also decodes, [`StepCosts`] limits
//! how many prompt tokens run.

mod admission;
mod decoding;
#[cfg(test)]
mod fairness;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use self::decoding::Decoding;
use super::block_pool::{Block, BlockEvent, BlockHash, BlockPool, BlockTable, Origin, block_hash};
use super::draft::{Draft, MAX_DECODE_ROWS};
use super::draft_model::{DraftModel, Wanted, Worth};
use super::sequence::{Sequence, SequenceState};
use super::step_costs::{StepCosts, StepTokens};
use super::waiting::{ClientId, Turns, WaitingQueue, level_shares};
use super::{EngineConfig, SequenceId};
use crate::executor::{Batch, KvCacheConfig, LayerState, SequenceSlice};
use crate::{Error, Result};

/// Most logits of prompt tokens in one step, as a number of f32 values: 64 MB. A prompt with log-probabilities is computed
/// in as many steps as that takes.
const PROMPT_LOGITS: usize = 1 << 24;

#[derive(Debug)]
pub(super) struct Scheduler {
    pub(super) config: EngineConfig,
    block_size: usize,
    num_blocks: usize,
    /// Number of last tokens whose blocks are still read (sliding window), including the token that is computed; `None`
    /// means all.
    window: Option<usize>,
    /// Most prompt tokens whose logits are computed in one step.
    most_logits_rows: usize,
    /// Whether the decoder finds likeliest tokens itself.
    computes_argmax: bool,
    pool: BlockPool,
    /// Slots for recurrent states of running sequences and of cached prefixes, if layers have such states.
    states: Option<StateSlots>,
    pub(super) step_costs: StepCosts,
    /// Number of steps that were scheduled.
    steps: u64,
    waiting: WaitingQueue,
    /// Running sequences in the order in which they started.
    running: Vec<Sequence>,
    turns: Turns,
    /// Clients whose first waiting sequences found too few blocks in the last step.
    short_of_blocks: BTreeSet<ClientId>,
    /// Prompt tokens that were looked up in the prefix cache, and those that were found.
    pub(super) prefix_queries: usize,
    pub(super) prefix_hits: usize,
    pub(super) preemptions: usize,
}

/// Number of slots for recurrent states: for running sequences, as many for cached prefixes, and one for a sequence outside
/// of any request.
pub(crate) fn state_slots(max_sequences: usize) -> usize {
    max_sequences.saturating_mul(2).saturating_add(1)
}

/// Slots for the recurrent states of sequences, which layers keep in addition to blocks.
#[derive(Debug)]
struct StateSlots {
    slots: BlockPool,
    /// Copies of states to make after the current step.
    snapshots: Vec<StateCopy>,
}

/// A copy from one state slot to another. It owns one of the slots, so that it is not reused before the copy is made.
#[derive(Debug)]
pub(super) struct StateCopy {
    pub(super) from: u32,
    pub(super) to: u32,
    _owned: Block,
}

/// The work of one step.
#[derive(Debug, Default)]
pub(super) struct ScheduledStep {
    pub(super) batch: Batch,
    /// Copies of states to make before the step.
    pub(super) restored: Vec<StateCopy>,
    /// One entry for each sequence of the batch.
    pub(super) sequences: Vec<ScheduledSequence>,
    /// Number of prompt tokens whose logits may be wanted.
    prompt_logits_rows: usize,
}

/// What is wanted of a sequence's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutputKind {
    /// Logits.
    Logits,
    /// Nothing but the likeliest next token.
    Argmax,
    /// Hidden states.
    Hidden,
}

/// The tokens of one sequence in a step.
#[derive(Debug)]
pub(super) struct ScheduledSequence {
    pub(super) sequence: SequenceId,
    /// Positions of its tokens.
    pub(super) positions: Range<usize>,
    /// Positions whose logits are wanted (for an embedding, whose hidden states are wanted), in the order of the batch's
    /// rows.
    pub(super) wanted: Vec<usize>,
    pub(super) is_decoding: bool,
    /// What is wanted of these positions.
    pub(super) kind: OutputKind,
    /// Draft tokens after the newest token; `positions` includes theirs.
    pub(super) draft: Draft,
}

impl StateSlots {
    /// The cached state of the longest prefix of a sequence that has one. Releases the sequence's cached blocks after that
    /// prefix, which cannot be used without a state.
    fn longest_prefix_state(&self, sequence: &mut Sequence) -> Option<Block> {
        let found = (1..=sequence.hashes.len()).rev().find_map(|blocks| {
            let state = self.slots.find(&sequence.hashes[blocks - 1])?;
            Some((blocks, state))
        });
        let (blocks, state) = found.map_or((0, None), |(blocks, state)| (blocks, Some(state)));
        sequence.blocks.truncate(blocks);
        sequence.hashes.truncate(blocks);
        state
    }
}

/// The hash of the prefix that a sequence's state covers; `None` if that is less than one whole block.
fn state_hash<'a>(sequence: &'a Sequence, state: &SequenceState) -> Option<&'a BlockHash> {
    sequence.hashes.get(state.blocks.checked_sub(1)?)
}

impl ScheduledStep {
    /// The tokens by kind.
    pub(super) fn tokens(&self) -> StepTokens {
        let decoding = |scheduled: &&ScheduledSequence| scheduled.is_decoding;
        let prompts = self.sequences.iter().filter(|scheduled| !scheduled.is_decoding);
        StepTokens {
            prompt: prompts.map(|scheduled| scheduled.positions.len()).sum(),
            decodes: self.sequences.iter().filter(decoding).count(),
            draft: self.sequences.iter().map(|scheduled| scheduled.draft.tokens.len()).sum(),
        }
    }

    /// The sequence that needs the most memory: the one with the highest block.
    pub(super) fn largest(&self) -> Option<SequenceId> {
        let highest = |slice: &SequenceSlice| slice.block_table.iter().max().copied();
        let slices = self.sequences.iter().zip(&self.batch.sequences);
        slices.max_by_key(|(_, slice)| highest(slice)).map(|(scheduled, _)| scheduled.sequence)
    }

    /// Whether any sequence decodes.
    pub(super) fn has_decodes(&self) -> bool {
        self.sequences.iter().any(|scheduled| scheduled.is_decoding)
    }
}

impl Scheduler {
    /// Lets the decoder find likeliest tokens itself, where nothing else is needed.
    pub(super) fn with_argmax(self, computes_argmax: bool) -> Self {
        Self { computes_argmax, ..self }
    }

    /// If layers have recurrent states, as many slots as for running sequences are added for the states of cached prefixes.
    pub(super) fn new(kv_cache: KvCacheConfig, vocab_size: usize, config: EngineConfig, state: LayerState) -> Self {
        let slots = || BlockPool::new(state_slots(config.max_sequences));
        Self {
            states: (state.bytes_per_sequence > 0).then(|| StateSlots { slots: slots(), snapshots: Vec::new() }),
            // Whatever is read, the block that is being filled is needed.
            window: state.window.map(|window| window.max(1)),
            most_logits_rows: (PROMPT_LOGITS / vocab_size).max(1),
            computes_argmax: false,
            config,
            block_size: kv_cache.block_size,
            num_blocks: kv_cache.num_blocks,
            pool: BlockPool::new(kv_cache.num_blocks),
            step_costs: StepCosts::default(),
            steps: 0,
            waiting: WaitingQueue::default(),
            running: Vec::new(),
            turns: Turns::default(),
            short_of_blocks: BTreeSet::new(),
            prefix_queries: 0,
            prefix_hits: 0,
            preemptions: 0,
        }
    }

    pub(super) fn add(&mut self, sequence: Sequence) {
        self.begin_to_contend(sequence.client);
        self.waiting.push_back(sequence);
    }

    /// Number of sequences of a client that wait.
    pub(super) fn waiting_of(&self, client: ClientId) -> usize {
        self.waiting.len_of(client)
    }

    /// Number of clients that have sequences.
    pub(super) fn num_clients(&self) -> usize {
        self.clients().len()
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// Number of free blocks.
    pub(super) fn free_blocks(&self) -> usize {
        self.pool.available()
    }

    /// Allocates `count` blocks, and a state slot if layers need one, outside of any sequence. `None` if too few are free.
    pub(super) fn allocate(&self, count: usize) -> Option<(BlockTable, Option<Block>)> {
        let mut blocks = BlockTable::default();
        for _ in 0..count {
            blocks.push(self.pool.allocate()?);
        }
        let state = match &self.states {
            Some(states) => Some(states.slots.allocate()?),
            None => None,
        };
        Some((blocks, state))
    }

    /// Allocates only the first `most` blocks from now on, because there is no memory for more.
    pub(super) fn limit_blocks(&mut self, most: usize) {
        self.pool.limit(most.min(self.num_blocks));
    }

    /// Allocates all blocks again.
    pub(super) fn unlimit_blocks(&mut self) {
        self.pool.limit(self.num_blocks);
    }

    /// The oldest sequence, with an error, if none can run because there is memory for too few blocks.
    pub(super) fn starved(&self) -> Option<(SequenceId, Error)> {
        let most = self.pool.limited();
        let waiting = || self.waiting.fronts().map(|(_, first)| first).min_by_key(|first| first.id);
        let oldest = self.running.first().or_else(waiting).filter(|_| most < self.num_blocks)?;
        let what = format!("keys and values of a sequence of {} tokens", oldest.tokens.len() + 1);
        let tokens = |count: usize| format!("room for {count} tokens");
        let (needed, found) = (tokens(oldest.tokens.len() + 1), tokens(most * self.block_size));
        Some((oldest.id, Error::TooLittleMemory { what, needed, found, limit: "in what could be allocated" }))
    }

    /// Share of the blocks that have an owner.
    pub(super) fn kv_cache_usage(&self) -> f64 {
        self.pool.used() as f64 / self.num_blocks.max(1) as f64
    }

    /// What the prefix cache holds, by its changes; noted from the first call on.
    pub(super) fn take_block_events(&self) -> Vec<BlockEvent> {
        self.pool.note_events();
        self.pool.take_events()
    }

    /// The blocks of the longest prefix of these tokens that is in the prefix cache.
    /// `seed` is what comes before the first one.
    pub(super) fn cached_prefix(&self, seed: Option<BlockHash>, tokens: &[u32]) -> Vec<Block> {
        let (mut before, mut blocks) = (seed, Vec::new());
        for tokens in tokens.chunks_exact(self.block_size) {
            let hash = block_hash(before.as_ref(), tokens);
            let Some(block) = self.pool.find(&hash) else { break };
            blocks.push(block);
            before = Some(hash);
        }
        blocks
    }

    /// Whether a block is in the prefix cache.
    pub(super) fn has_cached(&self, hash: &BlockHash) -> bool {
        self.pool.has(hash)
    }

    /// A block of the prefix cache.
    pub(super) fn cached_block(&self, hash: &BlockHash) -> Option<Block> {
        self.pool.find(hash)
    }

    /// A free block, to be written to.
    pub(super) fn free_block(&self) -> Option<Block> {
        self.pool.allocate()
    }

    /// Adds a block that was written to the prefix cache; `before` stands for the tokens before it.
    pub(super) fn register(&self, block: &Block, before: Option<&BlockHash>, tokens: &[u32], of: Origin) {
        self.pool.register_tokens(block, before, tokens, of);
    }

    /// Empties the prefix cache, so that blocks and states may be overwritten.
    pub(super) fn forget_cached(&mut self) {
        if let Some(states) = &mut self.states {
            states.snapshots.clear();
            states.slots.forget();
        }
        self.pool.forget();
    }

    pub(super) fn sequence_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.running.iter_mut().chain(self.waiting.iter_mut()).find(|sequence| sequence.id == id)
    }

    /// A sequence that was part of a step; fails if it is unknown.
    pub(super) fn sequence_that_ran(&mut self, id: SequenceId) -> Result<&mut Sequence> {
        self.sequence_mut(id).ok_or_else(|| Error::Internal(format!("sequence {id} was run but is not known")))
    }

    /// Removes a sequence and frees what it owns.
    pub(super) fn remove(&mut self, id: SequenceId) {
        self.waiting.remove(id);
        if let Some(index) = self.find(id) {
            let mut sequence = self.running.remove(index);
            self.release_state(&mut sequence);
        }
    }

    /// Lets all sequences be computed anew, with another decoder. Removes those that do not fit into its cache, and returns them with
    /// their lengths.
    pub(super) fn restart(&mut self, kv_cache: KvCacheConfig, computes_argmax: bool) -> Vec<(SequenceId, usize)> {
        while let Some(last) = self.running.len().checked_sub(1) {
            self.preempt(last);
        }
        self.forget_cached();
        self.num_blocks = self.num_blocks.min(kv_cache.num_blocks);
        self.pool.limit(self.num_blocks);
        self.computes_argmax = computes_argmax;
        self.step_costs = StepCosts::default();
        let capacity = kv_cache.capacity();
        let waiting = self.waiting.iter_mut().map(|sequence| (sequence.id, sequence.tokens.len() + 1));
        let too_long: Vec<(SequenceId, usize)> = waiting.filter(|(_, tokens)| *tokens > capacity).collect();
        too_long.iter().for_each(|(sequence, _)| self.remove(*sequence));
        too_long
    }

    /// Removes all sequences and empties the prefix cache, because after a failed step the contents of blocks are unknown.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.running.clear();
        self.forget_cached();
    }

    /// Schedules the next step, with drafts of a model if there is one.
    pub(super) fn schedule(&mut self, draft_model: Option<&mut DraftModel>) -> ScheduledStep {
        let mut step = ScheduledStep::default();
        self.steps += 1;
        self.turns.begin_step(self.contending(), &self.short_of_blocks, self.turn_limits());
        self.admit(&mut step);
        let running: Vec<SequenceId> =
            self.running.iter().filter(|sequence| !sequence.is_parked).map(|sequence| sequence.id).collect();
        let (mut ready, prefilling): (Vec<_>, Vec<_>) =
            running.into_iter().partition(|id| self.find(*id).is_some_and(|index| self.running[index].is_decoding()));
        if self.config.prompts_first && !prefilling.is_empty() {
            ready.clear();
        }
        let Decoding { sequences: decoding, if_equal } = self.choose_decoding(ready, &prefilling);
        let only_decodes = self.step_costs.is_decode_time_wanted();
        let decodes = decoding.len();
        let drafts = match only_decodes {
            true => vec![Draft::default(); decodes],
            false => self.drafts(&decoding, draft_model),
        };
        for (id, draft) in decoding.into_iter().zip(drafts) {
            self.push(&mut step, id, 1, draft);
        }
        let most = match (if_equal, step.has_decodes()) {
            (_, true) if only_decodes => 0,
            (Some(if_equal), true) => self.step_costs.max_prompt_tokens_beside_clients(decodes, if_equal),
            (None, true) => self.step_costs.max_prompt_tokens_beside_decodes(decodes),
            // A short prompt should not wait for much of the long ones of others.
            (Some(_), false) => self.config.max_batched_tokens / 2,
            (None, false) => self.config.max_batched_tokens,
        };
        let budget = self.config.max_batched_tokens.saturating_sub(step.batch.token_ids.len()).min(most);
        self.read_prompts(&mut step, &prefilling, budget);
        step
    }

    /// Adds at most `budget` tokens of prompts to a step.
    fn read_prompts(&mut self, step: &mut ScheduledStep, prefilling: &[SequenceId], budget: usize) {
        let (mut left_over, mut without_share) = (0, Vec::new());
        for (sequences, mut share) in self.shared_by_clients(prefilling, budget) {
            let mut sequences = sequences.into_iter();
            while share > 0
                && let Some(id) = sequences.next()
                && let Some(taken) = self.push(step, id, share, Draft::default())
            {
                share -= taken;
            }
            left_over += share;
            without_share.extend(sequences);
        }
        // Where a client finds no blocks for its share, the others must go on, so that there are some again.
        for id in without_share {
            if left_over == 0 {
                return;
            }
            left_over -= self.push(step, id, left_over, Draft::default()).unwrap_or(0);
        }
    }

    /// The sequences of each client, with its share of a `budget` of prompt tokens. The client for which the fewest tokens
    /// were computed comes first.
    fn shared_by_clients(&self, prefilling: &[SequenceId], budget: usize) -> Vec<(Vec<SequenceId>, usize)> {
        let mut by_client: BTreeMap<ClientId, (Vec<SequenceId>, usize)> = BTreeMap::new();
        for sequence in self.running_of(prefilling) {
            let (sequences, demand) = by_client.entry(sequence.client).or_default();
            sequences.push(sequence.id);
            *demand += self.prompt_chunk(sequence);
        }
        let mut clients: Vec<_> = by_client.into_iter().collect();
        clients.sort_by_key(|(client, _)| self.turns.computed(*client));
        let demands: Vec<_> =
            clients.iter().map(|(client, (_, demand))| (self.turns.computed(*client), *demand)).collect();
        let shares = level_shares(budget, &demands);
        clients.into_iter().map(|(_, (sequences, _))| sequences).zip(shares).collect()
    }

    fn find(&self, id: SequenceId) -> Option<usize> {
        self.running.iter().position(|sequence| sequence.id == id)
    }

    /// The running sequences with these ids.
    fn running_of(&self, ids: &[SequenceId]) -> impl Iterator<Item = &Sequence> {
        ids.iter().filter_map(|id| Some(&self.running[self.find(*id)?]))
    }

    /// Draft tokens after the newest token of each sequence that decodes: looked up earlier in it, or those of a draft model, by what
    /// is expected to be faster.
    fn drafts(&mut self, decoding: &[SequenceId], mut model: Option<&mut DraftModel>) -> Vec<Draft> {
        let decodes = decoding.len();
        let most = (MAX_DECODE_ROWS / decodes.max(1)).saturating_sub(1);
        let cost = self.step_costs.cost_of_draft_token(decodes);
        let (step, token) = self.step_costs.decode_and_draft_token(decodes);
        let (mut drafts, mut wanted, mut places) = (Vec::with_capacity(decodes), Vec::new(), Vec::new());
        for (place, id) in decoding.iter().enumerate() {
            let most = self.most_drafts(*id, most);
            let (found, gain) = match self.find(*id).filter(|_| self.config.prompt_lookup) {
                Some(index) => self.running[index].look_up(most, cost),
                None => (Vec::new(), 1.0),
            };
            let worth = model.as_mut().map(|model| model.worth(*id, most, decodes, step, token));
            if let (Some(Worth { depth, .. }), Some(index)) =
                (worth.filter(|worth| worth.depth > 0 && worth.gain > gain), self.find(*id))
            {
                let sequence = &self.running[index];
                let (tokens, proposer) = (sequence.tokens.clone(), sequence.proposer());
                wanted.push(Wanted { id: *id, tokens, depth, proposer });
                places.push(place);
                drafts.push(Draft::default());
            } else {
                drafts.push(Draft { tokens: found, is_of_model: false });
            }
        }
        if let Some(model) = model {
            model.retain(|id| self.find(id).is_some());
            let drafted = if wanted.is_empty() { Vec::new() } else { model.draft(&mut wanted) };
            for (place, tokens) in places.into_iter().zip(drafted) {
                drafts[place] = Draft { tokens, is_of_model: true };
            }
        }
        drafts
    }

    /// Most draft tokens of a sequence within its token limit and the free blocks.
    fn most_drafts(&self, id: SequenceId, most: usize) -> usize {
        let Some(index) = self.find(id) else { return 0 };
        let sequence = &self.running[index];
        // A step generates one token more than it accepts draft tokens.
        let most = most.min(sequence.tokens_left(self.config.context).saturating_sub(1));
        // Keep one free block for each running sequence, which may need it for its next token.
        let spare = self.pool.available().saturating_sub(self.running.len());
        let room = (sequence.blocks.len() + spare) * self.block_size;
        most.min(room.saturating_sub(sequence.tokens.len()))
    }

    /// Adds at most `budget` of a sequence's next tokens to `step`, followed by its draft tokens. Returns how many tokens
    /// were added besides drafts. `None` if there are no blocks for them, or if the sequence was preempted.
    fn push(&mut self, step: &mut ScheduledStep, id: SequenceId, budget: usize, draft: Draft) -> Option<usize> {
        let index = self.find(id)?;
        let mut chunk = self.prompt_chunk(&self.running[index]).min(budget);
        if self.running[index].wants_prompt_logprobs() {
            let room = self.most_logits_rows - step.prompt_logits_rows;
            if room == 0 {
                return None;
            }
            chunk = chunk.min(room);
            step.prompt_logits_rows += chunk;
        }
        let drafted = draft.tokens.len();
        if !self.reserve(index, chunk + drafted, step) {
            return None;
        }
        let sequence = &mut self.running[index];
        self.turns.charge(sequence.client, chunk + drafted);
        let known = sequence.computed..sequence.computed + chunk;
        let positions = known.start..known.end + drafted;
        if let Some(state) = &mut sequence.state {
            state.blocks = known.end / self.block_size;
        }
        let wanted: Vec<usize> = positions.clone().filter(|position| sequence.wants_output(*position)).collect();
        let slice = SequenceSlice {
            rope_len: sequence.tokens.len() + drafted,
            draft_len: drafted,
            adapter: sequence.adapter,
            state_slot: sequence.state.as_ref().map_or(0, |state| state.slot.id()),
            ..SequenceSlice::new(sequence.computed, positions.len(), sequence.blocks.ids())
        };
        let first_row = step.batch.token_ids.len();
        step.batch.push(&[&sequence.tokens[known], &draft.tokens].concat(), slice, 0);
        let is_decoding = sequence.is_decoding();
        if is_decoding {
            sequence.decoded_in = self.steps;
        }
        let (kind, rows) = match (sequence.is_embedding(), self.computes_argmax && sequence.needs_only_argmax()) {
            (true, _) => (OutputKind::Hidden, &mut step.batch.hidden_rows),
            (false, true) => (OutputKind::Argmax, &mut step.batch.argmax_rows),
            (false, false) => (OutputKind::Logits, &mut step.batch.logits_rows),
        };
        rows.extend(wanted.iter().map(|position| first_row + position - positions.start));
        step.sequences.push(ScheduledSequence { sequence: id, positions, wanted, is_decoding, kind, draft });
        Some(chunk)
    }

    /// Records that the first `computed` tokens of a sequence are computed, and registers its full blocks in the prefix
    /// cache.
    pub(super) fn record_computed(&mut self, id: SequenceId, computed: usize) {
        let Some(index) = self.find(id) else { return };
        let sequence = &mut self.running[index];
        let was_prefilling = sequence.computed < sequence.prompt_len;
        sequence.computed = computed;
        if was_prefilling && sequence.has_read_prompt() {
            sequence.decoded_in = self.steps;
        }
        if self.config.prefix_cache {
            while (sequence.hashes.len() + 1) * self.block_size <= sequence.computed {
                let block = sequence.hashes.len();
                let tokens = &sequence.tokens[block * self.block_size..(block + 1) * self.block_size];
                let before = sequence.before_next_block();
                let of = Origin { is_first: block == 0, adapter: sequence.adapter };
                let hash = self.pool.register_tokens(sequence.blocks.get(block), before, tokens, of);
                sequence.hashes.push(hash);
            }
        }
        if let Some(window) = self.window {
            // The next query is at position `computed` and sees `window` tokens up to and including itself.
            sequence.blocks.release_first((sequence.computed + 1).saturating_sub(window) / self.block_size);
        }
        // A state takes much memory, so only that of the longest prefix is kept.
        if was_prefilling && computed + self.block_size >= self.running[index].prompt_len {
            self.snapshot(index);
        }
    }

    /// Pending tokens that one step may compute. If the prefix cache keeps states of layers, the last tokens of a prompt are computed in a step
    /// of their own: the state before them is that of the longest prefix that the same prompt can start from.
    fn prompt_chunk(&self, sequence: &Sequence) -> usize {
        let last = (sequence.tokens.len() - 1) / self.block_size * self.block_size;
        match last.checked_sub(sequence.computed) {
            Some(before) if before > 0 && self.config.prefix_cache && self.states.is_some() => before,
            _ => sequence.pending(),
        }
    }

    /// Schedules a copy of a sequence's state after the step, so that other sequences can start from it.
    fn snapshot(&mut self, index: usize) {
        let (Some(states), Some(state)) = (&mut self.states, &self.running[index].state) else { return };
        let Some(hash) = state_hash(&self.running[index], state) else { return };
        if states.slots.has(hash) {
            return;
        }
        if let Some(slot) = states.slots.allocate() {
            states.slots.register(&slot, *hash);
            states.snapshots.push(StateCopy { from: state.slot.id(), to: slot.id(), _owned: slot });
        }
    }

    /// Copies of states to make now that the step has run.
    pub(super) fn take_snapshots(&mut self) -> Vec<StateCopy> {
        self.states.as_mut().map(|states| std::mem::take(&mut states.snapshots)).unwrap_or_default()
    }

    /// Frees the state slot of a sequence; other sequences can start from its state until the slot is reused.
    fn release_state(&self, sequence: &mut Sequence) {
        let (Some(states), Some(state)) = (&self.states, sequence.state.take()) else { return };
        if let Some(hash) = state_hash(sequence, &state) {
            states.slots.register(&state.slot, *hash);
        }
    }

    /// Allocates the state slot of a sequence that starts, where layers need one; `restored` is copied into it before the
    /// step. Returns false if all slots are owned.
    fn allocate_state(&mut self, sequence: &mut Sequence, restored: Option<Block>, step: &mut ScheduledStep) -> bool {
        let Some(states) = &self.states else { return true };
        let Some(slot) = states.slots.allocate() else { return false };
        step.restored.extend(restored.map(|from| StateCopy { from: from.id(), to: slot.id(), _owned: from }));
        sequence.state = Some(SequenceState { slot, blocks: sequence.hashes.len() });
        true
    }

    /// Records the start of a sequence in the statistics; a preempted one was recorded at its first start.
    fn record_start(&mut self, sequence: &mut Sequence) {
        if sequence.was_preempted {
            return;
        }
        sequence.record_start();
        if self.config.prefix_cache && !sequence.wants_every_position() {
            self.prefix_queries += sequence.prompt_len;
            self.prefix_hits += sequence.cached;
        }
    }

    /// Gives a new sequence the cached blocks of its longest prefix. The last token is always computed, for its logits. If
    /// layers have recurrent states, the prefix ends where a state is cached, which is returned.
    fn find_prefix(&mut self, sequence: &mut Sequence) -> Option<Block> {
        if !self.config.prefix_cache || sequence.wants_every_position() {
            return None;
        }
        let whole = sequence.tokens.chunks_exact(self.block_size);
        for tokens in whole.take((sequence.tokens.len() - 1) / self.block_size) {
            let hash = block_hash(sequence.before_next_block(), tokens);
            let Some(block) = self.pool.find(&hash) else { break };
            sequence.blocks.push(block);
            sequence.hashes.push(hash);
        }
        let state = self.states.as_ref().and_then(|states| states.longest_prefix_state(sequence));
        sequence.computed = sequence.hashes.len() * self.block_size;
        state
    }

    /// Allocates blocks for the next `chunk` tokens of a running sequence. If they run out, preempts the latest arrivals that
    /// are not in `step` yet; they will be computed again. `false` if there are still too few.
    fn reserve(&mut self, index: usize, chunk: usize, step: &ScheduledStep) -> bool {
        let blocks = (self.running[index].computed + chunk).div_ceil(self.block_size);
        loop {
            let sequence = &mut self.running[index];
            while sequence.blocks.len() < blocks {
                let Some(block) = self.pool.allocate() else { break };
                sequence.blocks.push(block);
            }
            if sequence.blocks.len() >= blocks {
                return true;
            }
            let is_free =
                |sequence: &Sequence| step.sequences.iter().all(|scheduled| scheduled.sequence != sequence.id);
            let Some(latest) = self.running.last().filter(|latest| is_free(latest)) else { return false };
            if latest.id == self.running[index].id {
                return false;
            }
            self.preempt(self.running.len() - 1);
        }
    }

    /// Preempts a running sequence, which then waits before the others of its client.
    fn preempt(&mut self, index: usize) {
        let mut sequence = self.running.remove(index);
        self.release_state(&mut sequence);
        sequence.preempt();
        self.preemptions += 1;
        self.begin_to_contend(sequence.client);
        self.waiting.push_front(sequence);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::{Pooling, Request, SamplingParams};
    use crate::executor::KvDtype;

    const CONFIG: EngineConfig = EngineConfig {
        context: 16,
        max_batched_tokens: 64,
        max_sequences: 4,
        max_waiting: 8,
        max_waiting_per_client: 8,
        prefix_cache: true,
        prompt_lookup: false,
        prompts_first: false,
        shadow_share: 0.0,
    };

    /// Layers with full attention and no recurrent state.
    const PLAIN: LayerState = LayerState { bytes_per_token: 4, bytes_per_sequence: 0, window: None };

    pub(super) fn scheduler(num_blocks: usize, max_batched_tokens: usize) -> Scheduler {
        let kv_cache = KvCacheConfig { block_size: 4, num_blocks, dtype: KvDtype::F32 };
        Scheduler::new(kv_cache, 1000, EngineConfig { max_batched_tokens, ..CONFIG }, PLAIN)
    }

    pub(super) fn request(prompt: Vec<u32>) -> Request {
        Request { prompt, ..Request::default() }
    }

    pub(super) fn sequence_of(id: SequenceId, request: Request) -> Sequence {
        Sequence::new(id, request, None).expect("there is no constraint")
    }

    /// A sequence whose prompt shares no prefix with any other.
    pub(super) fn sequence(id: SequenceId, len: usize) -> Sequence {
        sequence_of(id, request((0..len as u32).map(|token| 100 * id as u32 + token).collect()))
    }

    /// Runs a step in which every sampled token is 5. Returns the number of tokens by sequence, and which sequences sampled.
    pub(super) fn step(scheduler: &mut Scheduler) -> (Vec<(SequenceId, usize)>, Vec<SequenceId>) {
        let scheduled_step = scheduler.schedule(None);
        let mut sampled = Vec::new();
        for scheduled in &scheduled_step.sequences {
            scheduler.record_computed(scheduled.sequence, scheduled.positions.end);
            let sequence = scheduler.sequence_mut(scheduled.sequence).expect("it ran");
            if scheduled.wanted.last().is_some_and(|position| position + 1 == sequence.tokens.len()) {
                sequence.append(5, false, 1000);
                sampled.push(scheduled.sequence);
            }
        }
        (
            scheduled_step.sequences.iter().map(|scheduled| (scheduled.sequence, scheduled.positions.len())).collect(),
            sampled,
        )
    }

    #[test]
    fn long_prompts_are_fed_in_chunks_and_sampled_once() {
        let mut scheduler = scheduler(8, 6);
        scheduler.add(sequence(0, 10));
        let scheduled_step = scheduler.schedule(None);
        assert_eq!((scheduled_step.batch.sequences[0].query_len, scheduled_step.batch.sequences[0].rope_len), (6, 10));
        assert!(scheduled_step.batch.logits_rows.is_empty());
        scheduler.record_computed(0, scheduled_step.sequences[0].positions.end);
        let scheduled_step = scheduler.schedule(None);
        assert_eq!(
            (scheduled_step.batch.sequences[0].query_len, scheduled_step.batch.logits_rows.as_slice()),
            (4, [3].as_slice())
        );
    }

    #[test]
    fn logits_and_hidden_rows_are_computed_only_where_needed() {
        let kv_cache = KvCacheConfig { block_size: 4, num_blocks: 8, dtype: KvDtype::F16 };
        let mut scheduler = Scheduler::new(kv_cache, PROMPT_LOGITS / 4, CONFIG, PLAIN);
        let rows_of_step = |scheduler: &mut Scheduler| {
            let scheduled_step = scheduler.schedule(None);
            scheduled_step
                .sequences
                .iter()
                .for_each(|scheduled| scheduler.record_computed(scheduled.sequence, scheduled.positions.end));
            (
                scheduled_step.batch.token_ids.len(),
                scheduled_step.batch.logits_rows.len(),
                scheduled_step.batch.hidden_rows.len(),
            )
        };
        scheduler.add(sequence_of(0, Request { pooling: Some(Pooling::Mean), ..request((0..10).collect()) }));
        assert_eq!(rows_of_step(&mut scheduler), (10, 0, 10));
        scheduler.remove(0);
        let params = SamplingParams { prompt_logprobs: Some(0), ..SamplingParams::default() };
        scheduler.add(sequence_of(1, Request { params: params.clone(), ..request((0..10).collect()) }));
        scheduler.add(sequence_of(2, Request { params: params.clone(), ..request((20..23).collect()) }));
        assert_eq!([(); 3].map(|()| rows_of_step(&mut scheduler)), [(4, 4, 0), (4, 4, 0), (4, 4, 0)]);
        scheduler.remove(1);
        assert_eq!(rows_of_step(&mut scheduler), (1, 1, 0));
    }

    #[test]
    fn with_a_smaller_cache_sequences_begin_anew_and_those_that_do_not_fit_are_removed() {
        let mut scheduler = scheduler(8, 64);
        scheduler.add(sequence(0, 3));
        scheduler.add(sequence(1, 9));
        assert_eq!(step(&mut scheduler), (vec![(0, 3), (1, 9)], vec![0, 1]));
        let smaller = KvCacheConfig { block_size: 4, num_blocks: 2, dtype: KvDtype::F32 };
        // Nine tokens, the one that was sampled, and room for the next one.
        assert_eq!(scheduler.restart(smaller, false), vec![(1, 11)]);
        assert_eq!(step(&mut scheduler), (vec![(0, 4)], vec![0]));
        scheduler.remove(0);
        assert_eq!((scheduler.running() + scheduler.waiting(), scheduler.kv_cache_usage()), (0, 0.0));
    }

    #[test]
    fn without_free_blocks_the_latest_sequence_is_preempted() {
        let mut scheduler = scheduler(3, 64);
        scheduler.add(sequence(0, 8));
        scheduler.add(sequence(1, 4));
        assert_eq!(step(&mut scheduler), (vec![(0, 8), (1, 4)], vec![0, 1]));
        // Both need one more block, and there is none.
        assert_eq!(step(&mut scheduler), (vec![(0, 1)], vec![0]));
        assert_eq!((scheduler.sequence_mut(1).expect("waits").computed, scheduler.preemptions), (0, 1));
        scheduler.remove(0);
        assert_eq!(step(&mut scheduler), (vec![(1, 5)], vec![1]));
        scheduler.remove(1);
        assert_eq!((scheduler.pool.available(), scheduler.kv_cache_usage()), (3, 0.0));
    }

    #[test]
    fn decoding_continues_while_a_prompt_is_computed_in_chunks() {
        let mut scheduler = scheduler(64, 128);
        scheduler.add(sequence(0, 4));
        step(&mut scheduler);
        scheduler.add(sequence(1, 100));
        scheduler.add(sequence(2, 20));
        let first = scheduler.step_costs.max_prompt_tokens_beside_decodes(1);
        assert_eq!(step(&mut scheduler), (vec![(0, 1), (1, first)], vec![0]));
        for _ in 0..100 {
            // A decode step takes 50 ms, and each prompt token 1 ms.
            let costs = &mut scheduler.step_costs;
            costs.observe(StepTokens { decodes: 1, ..StepTokens::default() }, Duration::from_millis(50));
            costs.observe(StepTokens { prompt: 40, ..StepTokens::default() }, Duration::from_millis(40));
        }
        let (chunks, sampled) = step(&mut scheduler);
        assert_eq!((chunks[0], chunks[1], chunks[2].0, sampled), ((0, 1), (1, 68), 2, vec![0, 1]));
    }

    #[test]
    fn a_step_leaves_out_prompts_when_the_time_of_decoding_was_not_measured_for_long() {
        let mut scheduler = scheduler(256, 64);
        scheduler.add(sequence(0, 4));
        step(&mut scheduler);
        scheduler.add(sequence(1, 900));
        let mut decoded_alone = Vec::new();
        for number in 0..40 {
            let scheduled_step = scheduler.schedule(None);
            let took = Duration::from_millis(50 * (1 + scheduled_step.tokens().prompt as u64));
            scheduler.step_costs.observe(scheduled_step.tokens(), took);
            if scheduled_step.tokens().prompt == 0 {
                decoded_alone.push(number);
            }
            scheduled_step.sequences.iter().for_each(|scheduled| {
                scheduler.record_computed(scheduled.sequence, scheduled.positions.end);
            });
            scheduler.sequence_mut(0).expect("it runs").append(5, false, 1000);
        }
        assert_eq!(decoded_alone, [1, 34], "after the first step, and after 32 more");
    }

    #[test]
    fn with_prompts_first_decoding_waits_for_prompts() {
        let mut scheduler = scheduler(64, 64);
        scheduler.config.prompts_first = true;
        scheduler.add(sequence(0, 4));
        step(&mut scheduler);
        scheduler.add(sequence(1, 100));
        assert_eq!(step(&mut scheduler), (vec![(1, 64)], vec![]));
        assert_eq!(step(&mut scheduler), (vec![(1, 36)], vec![1]));
        assert_eq!(step(&mut scheduler), (vec![(0, 1), (1, 1)], vec![0, 1]));
    }

    #[test]
    fn decoding_sequences_may_exceed_the_token_budget() {
        let mut scheduler = scheduler(64, 2);
        for id in 0..4 {
            scheduler.add(sequence(id, 1));
        }
        assert_eq!(step(&mut scheduler).1, [0, 1]);
        assert_eq!(step(&mut scheduler).1, [0, 1]);
        scheduler.remove(0);
        scheduler.remove(1);
        assert_eq!(step(&mut scheduler).1, [2, 3]);
        scheduler.add(sequence(5, 9));
        for _ in 0..3 {
            assert_eq!(step(&mut scheduler).1, [2, 3], "a prompt waits for its turn");
        }
    }

    #[test]
    fn a_cached_prefix_is_not_computed_again() {
        let mut scheduler = scheduler(16, 64);
        let prompt: Vec<u32> = (0..12).collect();
        scheduler.add(sequence_of(0, request(prompt.clone())));
        step(&mut scheduler);
        // The same prompt while the first sequence still decodes: all but its last block is cached; that one gives logits.
        scheduler.add(sequence_of(1, request(prompt.clone())));
        assert_eq!(step(&mut scheduler).0, [(0, 1), (1, 4)]);
        assert_eq!(scheduler.sequence_mut(1).expect("it runs").cached, 8);
        scheduler.remove(0);
        scheduler.remove(1);
        assert_eq!(scheduler.pool.available(), 16);
        // A longer prompt, and one that differs after the first block.
        let longer: Vec<u32> = prompt.iter().copied().chain(50..60).collect();
        scheduler.add(sequence_of(2, request(longer)));
        scheduler.add(sequence_of(3, request(vec![0, 1, 2, 3, 9, 9, 9, 9, 9])));
        assert_eq!(step(&mut scheduler).0, [(2, 10), (3, 5)]);
        assert_eq!((scheduler.prefix_queries, scheduler.prefix_hits), (12 + 12 + 22 + 9, 8 + 12 + 4));
    }

    #[test]
    fn a_prompt_needs_free_blocks_only_for_uncached_tokens() {
        let mut scheduler = scheduler(8, 64);
        let prompt: Vec<u32> = (0..16).collect();
        scheduler.add(sequence_of(0, request(prompt.clone())));
        step(&mut scheduler);
        step(&mut scheduler);
        // It needs six blocks: three are cached and three are free.
        scheduler.add(sequence_of(1, request(prompt[..12].iter().copied().chain(90..99).collect())));
        assert_eq!(step(&mut scheduler).0, [(0, 1), (1, 9)]);
        scheduler.add(sequence(2, 4));
        for _ in 0..2 {
            assert_eq!(step(&mut scheduler).0, [(0, 1), (1, 1)], "it waits and owns no blocks");
        }
        scheduler.remove(0);
        scheduler.remove(1);
        assert_eq!(step(&mut scheduler).0, [(2, 4)]);
        assert_eq!((scheduler.prefix_queries, scheduler.prefix_hits), (16 + 21 + 4, 12));
    }

    #[test]
    fn drafts_leave_a_free_block_for_every_sequence() {
        let mut scheduler = scheduler(5, 64);
        scheduler.config.prompt_lookup = true;
        scheduler.add(sequence_of(0, request(vec![5; 7])));
        scheduler.add(sequence(1, 4));
        step(&mut scheduler);
        // Two blocks are free, and each of the two sequences may need one.
        assert_eq!(scheduler.drafts(&[0], None)[0].tokens.len(), 0);
        scheduler.remove(1);
        assert!(!scheduler.drafts(&[0], None)[0].tokens.is_empty());
    }

    #[test]
    fn blocks_outside_the_sliding_window_are_freed() {
        let kv_cache = KvCacheConfig { block_size: 4, num_blocks: 8, dtype: KvDtype::F32 };
        let config = EngineConfig { context: 64, ..CONFIG };
        let mut scheduler = Scheduler::new(kv_cache, 1000, config, LayerState { window: Some(5), ..PLAIN });
        scheduler.add(sequence(0, 10));
        step(&mut scheduler);
        // The next query is at position 10 and sees positions 6 to 10, in blocks 1 and 2.
        assert_eq!(scheduler.pool.used(), 2);
        for computed in 11..40 {
            step(&mut scheduler);
            assert_eq!(scheduler.sequence_mut(0).expect("it runs").computed, computed);
            assert_eq!(scheduler.pool.used(), (computed - 1) / 4 + 1 - (computed - 4) / 4, "{computed} tokens");
        }
        // The freed block 0 was reused, so the prompt is not cached any more.
        scheduler.add(sequence_of(1, request((0..10).collect())));
        step(&mut scheduler);
        assert_eq!(scheduler.sequence_mut(1).expect("it runs").cached, 0);
        scheduler.remove(0);
        scheduler.remove(1);
        assert_eq!(scheduler.pool.available(), 8);
    }

    #[test]
    fn further_choices_wait_until_the_first_has_computed_the_prompt() {
        let mut scheduler = scheduler(16, 6);
        let prompt: Vec<u32> = (0..9).collect();
        scheduler.add(sequence_of(0, request(prompt.clone())));
        scheduler.add(sequence_of(1, Request { leader: Some(0), ..request(prompt) }));
        assert_eq!(step(&mut scheduler).0, [(0, 6)]);
        assert_eq!(step(&mut scheduler).0, [(0, 3)]);
        assert_eq!(step(&mut scheduler).0, [(0, 1), (1, 1)]);
    }
}
