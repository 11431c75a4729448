//! Which waiting sequences begin to run.
//!
//! A client without a running sequence comes first; then clients below their share of the running sequences, then the
//! others. Among equals, preempted sequences come before new ones, and then the client for which the fewest tokens were
//! computed. If all slots are taken and a client has none, the client that holds most of them gives way: its latest
//! sequence is preempted and computed again later. So an answer waits for others to end only if there are more clients than
//! slots.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::{ScheduledStep, Scheduler};
use crate::engine::SequenceId;
use crate::engine::waiting::{ClientId, TurnLimits};

/// Most clients in one step whose first sequence cannot start and that others pass.
const MOST_PASSED: usize = 8;

impl Scheduler {
    /// Moves waiting sequences to the running ones as long as there is room for them.
    pub(super) fn admit(&mut self, step: &mut ScheduledStep) {
        let (mut passed, mut started) = (Vec::new(), Vec::new());
        self.short_of_blocks.clear();
        while passed.len() < MOST_PASSED {
            let Some((client, id)) = self.next(&passed) else { break };
            let is_full = self.running.len() >= self.config.max_sequences;
            if is_full && (self.held(client) > 0 || self.held_by_client().values().all(|held| *held <= 1)) {
                break;
            }
            if (!is_full || self.give_way(client, &started)) && self.start(client, step) {
                started.push(id);
            } else {
                passed.push(client);
            }
        }
    }

    /// A client begins to contend, if it does not do so already.
    pub(super) fn begin_to_contend(&mut self, client: ClientId) {
        let contending = self.contending();
        if !contending.contains(&client) {
            self.turns.arrive(client, contending.is_empty(), self.turn_limits());
        }
    }

    /// The clients that wait for slots, or for prompt tokens of a step. Those that only decode wait for nobody.
    pub(super) fn contending(&self) -> BTreeSet<ClientId> {
        let waiting = self.waiting.fronts().map(|(client, _)| client);
        let prefilling = self.running.iter().filter(|sequence| sequence.is_prefilling());
        waiting.chain(prefilling.map(|sequence| sequence.client)).collect()
    }

    /// A client may come half a step of tokens before its turn, and the others catch up with it for at most a step. It keeps its
    /// turn for a step, too, but as long as it waits for blocks, others may pass it by a context.
    pub(super) fn turn_limits(&self) -> TurnLimits {
        let step = self.config.max_batched_tokens as u64;
        TurnLimits { credit: step / 2, debt: step, claim: step, claim_for_blocks: step + self.config.context as u64 }
    }

    /// The clients that have sequences.
    pub(super) fn clients(&self) -> BTreeSet<ClientId> {
        let waiting = self.waiting.fronts().map(|(client, _)| client);
        waiting.chain(self.running.iter().map(|sequence| sequence.client)).collect()
    }

    /// Number of running sequences of a client.
    fn held(&self, client: ClientId) -> usize {
        self.running.iter().filter(|sequence| sequence.client == client).count()
    }

    fn held_by_client(&self) -> BTreeMap<ClientId, usize> {
        let mut held = BTreeMap::new();
        self.running.iter().for_each(|sequence| *held.entry(sequence.client).or_default() += 1);
        held
    }

    /// The client whose turn it is, and its first sequence. Those in `passed` could not start in this step. Others may pass
    /// them until they are one context of tokens ahead; then blocks are left free for the sequence that needs many.
    fn next(&self, passed: &[ClientId]) -> Option<(ClientId, SequenceId)> {
        let share = (self.config.max_sequences / self.clients().len().max(1)).max(1);
        let held = self.held_by_client();
        let behind = passed.iter().map(|client| self.turns.computed(*client)).min();
        let limit = behind.map_or(u64::MAX, |behind| behind.saturating_add(self.config.context as u64));
        let may_run = |client: ClientId| !passed.contains(&client) && self.turns.computed(client) <= limit;
        let fronts = self.waiting.fronts().filter(|(client, _)| may_run(*client));
        let first = fronts.min_by_key(|(client, front)| {
            let held = held.get(client).copied().unwrap_or(0);
            (held >= share, held > 0, !front.was_preempted, self.turns.computed(*client), front.id)
        });
        first.map(|(client, front)| (client, front.id))
    }

    /// Starts the first sequence of a client. `false` if it must wait for blocks or for the prompt of its leader.
    fn start(&mut self, client: ClientId, step: &mut ScheduledStep) -> bool {
        let Some(next) = self.waiting.front(client) else { return false };
        let leader = next.leader.and_then(|leader| self.find(leader)).map(|index| &self.running[index]);
        if leader.is_some_and(|leader| !leader.has_read_prompt()) {
            return false;
        }
        let Some(mut sequence) = self.waiting.pop_front(client) else { return false };
        let restored = self.find_prefix(&mut sequence);
        // A prompt that starts without enough free blocks would run out of them, preempt others or be preempted.
        let needed = sequence.tokens.len().div_ceil(self.block_size) - sequence.blocks.len();
        let has_blocks = self.running.is_empty() || self.pool.available() >= needed;
        if !has_blocks || !self.allocate_state(&mut sequence, restored, step) {
            sequence.release();
            self.short_of_blocks.insert(client);
            self.waiting.push_front(sequence);
            return false;
        }
        self.record_start(&mut sequence);
        self.running.push(sequence);
        true
    }

    /// Preempts the latest sequence of the client that holds most slots, for a client that holds none. `false` if nobody
    /// holds more than one, or if that would not free enough blocks. Sequences that were `started` in this step stay.
    fn give_way(&mut self, client: ClientId, started: &[SequenceId]) -> bool {
        let held = self.held_by_client();
        let most = held.iter().max_by_key(|(client, held)| (**held, self.turns.computed(**client), Reverse(**client)));
        let Some((holder, _)) = most.filter(|(_, held)| **held > 1) else { return false };
        let Some(index) = self.running.iter().rposition(|sequence| sequence.client == *holder) else { return false };
        let (Some(front), latest) = (self.waiting.front(client), &self.running[index]) else { return false };
        let freed = self.pool.available() + latest.blocks.unshared();
        if started.contains(&latest.id) {
            return false;
        }
        if freed < front.tokens.len().div_ceil(self.block_size) {
            self.short_of_blocks.insert(client);
            return false;
        }
        self.preempt(index);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{request, scheduler, sequence_of, step};
    use super::*;
    use crate::engine::Request;
    use crate::engine::sequence::Sequence;
    use crate::engine::waiting::Caller;

    const A: ClientId = ClientId(1);
    const B: ClientId = ClientId(2);
    const C: ClientId = ClientId(3);

    /// A sequence of a client, whose prompt shares no prefix with any other.
    fn sequence(id: SequenceId, client: ClientId, len: usize) -> Sequence {
        let prompt = (0..len as u32).map(|token| 1000 * id as u32 + token).collect();
        sequence_of(id, Request { caller: Caller { client, ..Caller::default() }, ..request(prompt) })
    }

    fn running(scheduler: &Scheduler) -> Vec<SequenceId> {
        scheduler.running.iter().map(|sequence| sequence.id).collect()
    }

    #[test]
    fn one_client_with_two_thousand_prompts_does_not_delay_another() {
        let mut scheduler = scheduler(64, 64);
        (0..2000).for_each(|id| scheduler.add(sequence(id, A, 4)));
        assert_eq!(step(&mut scheduler).1, [0, 1, 2, 3]);
        scheduler.add(sequence(5000, B, 4));
        assert_eq!(step(&mut scheduler).1, [0, 1, 2, 5000], "the other client answers in the very next step");
        assert_eq!(scheduler.preemptions, 1);
        // The preempted sequence comes before those that have not begun.
        scheduler.remove(5000);
        assert_eq!(step(&mut scheduler).1, [0, 1, 2, 3]);
        assert_eq!(scheduler.waiting(), 1996);
    }

    #[test]
    fn slots_go_to_clients_below_their_share() {
        let mut scheduler = scheduler(64, 64);
        (0..8).for_each(|id| scheduler.add(sequence(id, A, 4)));
        step(&mut scheduler);
        (10..18).for_each(|id| scheduler.add(sequence(id, B, 4)));
        step(&mut scheduler);
        assert_eq!(running(&scheduler), [0, 1, 2, 10], "nobody is preempted for a client that has a slot");
        for (ended, next) in [(0, vec![1, 2, 10, 11]), (1, vec![2, 10, 11, 3]), (10, vec![2, 11, 3, 12])] {
            scheduler.remove(ended);
            step(&mut scheduler);
            assert_eq!(running(&scheduler), next, "each keeps two of four");
        }
        // Of three clients each has one, and the fourth slot goes by turns.
        scheduler.add(sequence(20, C, 4));
        step(&mut scheduler);
        assert_eq!(scheduler.held(C), 1);
    }

    #[test]
    fn a_single_client_keeps_all_slots_and_the_last_slot_of_a_client_is_its_own() {
        let mut scheduler = scheduler(64, 64);
        (0..4).for_each(|id| scheduler.add(sequence(id, ClientId(id as u64), 4)));
        step(&mut scheduler);
        scheduler.add(sequence(9, ClientId(9), 4));
        assert_eq!(step(&mut scheduler).1, [0, 1, 2, 3], "each holds one, so the fifth waits");
        assert_eq!(scheduler.preemptions, 0);
    }

    #[test]
    fn turns_follow_the_tokens_that_are_computed() {
        let mut scheduler = scheduler(64, 64);
        scheduler.config.max_sequences = 1;
        for id in 0..40 {
            scheduler.add(sequence(id, A, 12));
            scheduler.add(sequence(100 + id, B, 4));
        }
        let mut answered = [0, 0];
        for _ in 0..40 {
            for id in step(&mut scheduler).1 {
                scheduler.remove(id);
                answered[usize::from(id >= 100)] += 1;
            }
        }
        assert_eq!(answered, [10, 30], "prompts a third as long are read three times as often");
    }

    #[test]
    fn clients_share_the_prompt_tokens_of_a_step() {
        // Half as many as one client alone would get.
        let mut scheduler = scheduler(64, 128);
        scheduler.add(sequence(0, A, 100));
        scheduler.add(sequence(1, A, 10));
        scheduler.add(sequence(2, B, 20));
        let (chunks, sampled) = step(&mut scheduler);
        assert_eq!((chunks, sampled), (vec![(0, 44), (2, 20)], vec![2]), "B's prompt is not behind A's");
    }

    #[test]
    fn others_pass_a_prompt_that_finds_no_blocks_but_not_for_ever() {
        // Twelve blocks of four tokens.
        let mut scheduler = scheduler(12, 64);
        scheduler.config.max_sequences = 3;
        scheduler.add(sequence(0, B, 8));
        step(&mut scheduler);
        scheduler.add(sequence(1, A, 44));
        (2..40).for_each(|id| scheduler.add(sequence(id, B, 4)));
        step(&mut scheduler);
        assert_eq!(running(&scheduler), [0, 2, 3], "A's prompt needs eleven blocks");
        let mut steps = 0;
        while scheduler.held(A) == 0 {
            let oldest = running(&scheduler).first().copied();
            oldest.into_iter().for_each(|id| scheduler.remove(id));
            step(&mut scheduler);
            steps += 1;
            assert!(steps < 12, "A's prompt waits for ever");
        }
        assert!(scheduler.waiting_of(B) > 20, "while B has more to do");
    }
}
