//! The queue of waiting sequences, and turns between clients.
//!
//! Each client has a line of its own, in which its calls take turns. Which line is next depends on how many tokens were computed
//! for each client, as with the virtual token counters of "Fairness in Serving Large Language Models" (OSDI 2024): the client
//! with the fewest goes first, so that one with many or long prompts gets no more than its share. The counts are kept near an
//! equal part of what the clients got that wait, so neither idle times nor busy ones count for long.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::SequenceId;
use super::sequence::Sequence;

/// The one for whom a sequence is computed, such as a user: the engine takes turns between clients. Callers choose the
/// numbers; all requests without one belong to the same client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u64);

/// Whose call a sequence belongs to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caller {
    /// The client; the engine takes turns between clients.
    pub client: ClientId,
    /// A number that the sequences of one call share, such as answers to several prompts of one request. Calls of a client take
    /// turns, too, so that one with many sequences does not hold up the next.
    pub call: u64,
}

/// Waiting sequences, in a line for each client.
#[derive(Debug, Default)]
pub(super) struct WaitingQueue {
    /// Lines with at least one sequence.
    lines: BTreeMap<ClientId, Line>,
    len: usize,
}

/// The waiting sequences of one client. Each call begins where the line is now, and its sequences take a place in every round
/// (start-time fair queueing): one with many sequences is passed by later ones with few. With one sequence in each call it is
/// first come, first served.
#[derive(Debug, Default)]
struct Line {
    /// By round and arrival.
    sequences: BTreeMap<(u64, SequenceId), Sequence>,
    /// The round of the last sequence that was taken.
    round: u64,
    /// The round of the last sequence of each call.
    last_of_call: HashMap<u64, u64>,
}

impl Line {
    fn push_back(&mut self, sequence: Sequence) {
        let next = self.last_of_call.get(&sequence.call).map_or(0, |last| last + 1);
        let round = next.max(self.round);
        self.last_of_call.insert(sequence.call, round);
        self.sequences.insert((round, sequence.id), sequence);
    }

    fn pop_front(&mut self) -> Option<Sequence> {
        let ((round, _), sequence) = self.sequences.pop_first()?;
        self.round = self.round.max(round);
        Some(sequence)
    }
}

impl WaitingQueue {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Number of waiting sequences of one client.
    pub(super) fn len_of(&self, client: ClientId) -> usize {
        self.lines.get(&client).map_or(0, |line| line.sequences.len())
    }

    /// Clients with waiting sequences, each with the first of them.
    pub(super) fn fronts(&self) -> impl Iterator<Item = (ClientId, &Sequence)> {
        self.lines.iter().filter_map(|(client, line)| Some((*client, line.sequences.first_key_value()?.1)))
    }

    /// The first sequence of a client.
    pub(super) fn front(&self, client: ClientId) -> Option<&Sequence> {
        Some(self.lines.get(&client)?.sequences.first_key_value()?.1)
    }

    /// Adds a sequence to its client's line, at the turn of its call.
    pub(super) fn push_back(&mut self, sequence: Sequence) {
        self.len += 1;
        self.lines.entry(sequence.client).or_default().push_back(sequence);
    }

    /// Puts a sequence before those of its client that have not run yet.
    pub(super) fn push_front(&mut self, sequence: Sequence) {
        self.len += 1;
        let line = self.lines.entry(sequence.client).or_default();
        line.sequences.insert((0, sequence.id), sequence);
    }

    /// Takes the first sequence of a client.
    pub(super) fn pop_front(&mut self, client: ClientId) -> Option<Sequence> {
        let line = self.lines.get_mut(&client)?;
        let sequence = line.pop_front()?;
        if line.sequences.is_empty() {
            self.lines.remove(&client);
        }
        self.len -= 1;
        Some(sequence)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Sequence> {
        self.lines.values_mut().flat_map(|line| line.sequences.values_mut())
    }

    pub(super) fn remove(&mut self, id: SequenceId) {
        self.lines.retain(|_, line| {
            line.sequences.retain(|(_, of), _| *of != id);
            !line.sequences.is_empty()
        });
        self.len = self.lines.values().map(|line| line.sequences.len()).sum();
    }

    pub(super) fn clear(&mut self) {
        self.lines.clear();
        self.len = 0;
    }
}

/// How many tokens were computed for each client. Clients that are not known have none.
#[derive(Debug, Default)]
pub(super) struct Turns {
    computed: BTreeMap<ClientId, u64>,
    /// Clients that wait, or whose prompts are read, in the current step.
    contending: BTreeSet<ClientId>,
    /// The tokens of a client that contended all the time and got an equal part of what the contending ones got: the virtual
    /// time of fair queueing. It rises with what is computed, however many clients come and go.
    equal_part: u64,
    /// Tokens that are not divided among the contending clients yet.
    undivided: u64,
}

/// How far the tokens of a client may be from an equal part.
#[derive(Debug, Clone, Copy)]
pub(super) struct TurnLimits {
    /// How many fewer it may have had when it begins to contend.
    pub(super) credit: u64,
    /// How many more.
    pub(super) debt: u64,
    /// How many fewer it may have had while it contends.
    pub(super) claim: u64,
    /// The same while it finds too few blocks.
    pub(super) claim_for_blocks: u64,
}

impl Turns {
    pub(super) fn computed(&self, client: ClientId) -> u64 {
        self.computed.get(&client).copied().unwrap_or(0)
    }

    /// Counts tokens that are computed for a client.
    pub(super) fn charge(&mut self, client: ClientId, tokens: usize) {
        let computed = self.computed.entry(client).or_default();
        *computed = computed.saturating_add(tokens as u64);
        if self.contending.contains(&client) {
            self.undivided += tokens as u64;
            let clients = self.contending.len() as u64;
            self.equal_part = self.equal_part.saturating_add(self.undivided / clients);
            self.undivided %= clients;
        }
    }

    /// A client begins to contend; `is_alone` says that no other does.
    ///
    /// It comes at most `credit` tokens before an equal part: that it asked for nothing before, or only decoded, gives it no
    /// claim on all that was computed meanwhile. If it had more, the others catch up, but not for longer than if it had had
    /// `debt` more than an equal part. If no other contends, what was computed is forgotten: that took nothing from anybody.
    pub(super) fn arrive(&mut self, client: ClientId, is_alone: bool, limits: TurnLimits) {
        if is_alone {
            return *self = Self::default();
        }
        let computed = self.computed.entry(client).or_default();
        let (low, high) = (self.equal_part.saturating_sub(limits.credit), self.equal_part.saturating_add(limits.debt));
        *computed = (*computed).clamp(low, high);
    }

    /// Begins a step in which these clients contend. Some of them could not start in the last one for want of blocks.
    ///
    /// What one of them had beyond its part because the others did not want it is no debt for ever, and what one did not want is
    /// no claim for ever. Other clients are forgotten as far as nothing changes by that when they contend again, so a client
    /// gains nothing by leaving and coming back.
    pub(super) fn begin_step(
        &mut self,
        contending: BTreeSet<ClientId>,
        short_of_blocks: &BTreeSet<ClientId>,
        limits: TurnLimits,
    ) {
        let most = contending.iter().map(|client| self.computed(*client)).max().unwrap_or(0);
        self.equal_part = self.equal_part.max(most.saturating_sub(limits.debt));
        let when_it_comes = self.equal_part.saturating_sub(limits.credit);
        self.computed.retain(|client, computed| contending.contains(client) || *computed > when_it_comes);
        for client in &contending {
            let claim = if short_of_blocks.contains(client) { limits.claim_for_blocks } else { limits.claim };
            let computed = self.computed.entry(*client).or_default();
            *computed = self.equal_part.saturating_sub(claim).max(*computed);
        }
        self.contending = contending;
    }
}

/// Divides a `budget` of tokens among clients. Each comes with the tokens that were computed for it, and with the most that it can
/// use. Those with the fewest get theirs first, until all have had the same. Of what cannot be divided, the first ones get one
/// more.
pub(super) fn level_shares(budget: usize, clients: &[(u64, usize)]) -> Vec<usize> {
    let mut shares = vec![0; clients.len()];
    let mut left = budget;
    loop {
        let had = |index: usize| clients[index].0.saturating_add(shares[index] as u64);
        let open: Vec<usize> = (0..clients.len()).filter(|index| shares[*index] < clients[*index].1).collect();
        let Some(least) = open.iter().map(|index| had(*index)).min().filter(|_| left > 0) else { return shares };
        let (lowest, higher): (Vec<usize>, Vec<usize>) = open.into_iter().partition(|index| had(*index) == least);
        // Until the next ones have had no more, or the first of these has enough.
        let next = higher.into_iter().map(|index| had(index) - least).min().unwrap_or(u64::MAX);
        let demand = lowest.iter().map(|index| clients[*index].1 - shares[*index]).min().unwrap_or(0);
        let each = demand.min(usize::try_from(next).unwrap_or(usize::MAX)).min(left / lowest.len()).max(1);
        for index in lowest {
            let more = each.min(left);
            shares[index] += more;
            left -= more;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Request;

    const A: ClientId = ClientId(1);
    const B: ClientId = ClientId(2);

    fn sequence(id: SequenceId, client: ClientId) -> Sequence {
        Sequence::new(
            id,
            Request { prompt: vec![1], caller: Caller { client, call: id as u64 }, ..Request::default() },
            None,
        )
        .expect("there is no constraint")
    }

    #[test]
    fn lines_are_first_come_first_served() {
        let mut queue = WaitingQueue::default();
        for (id, client) in [(0, A), (1, B), (2, A), (3, A)] {
            queue.push_back(sequence(id, client));
        }
        assert_eq!((queue.len(), queue.len_of(A), queue.len_of(B)), (4, 3, 1));
        let first = queue.pop_front(A).expect("it waits");
        queue.push_front(first);
        queue.remove(2);
        assert_eq!(queue.fronts().map(|(client, front)| (client, front.id)).collect::<Vec<_>>(), [(A, 0), (B, 1)]);
        assert_eq!(
            [A, A, A].map(|client| queue.pop_front(client).map(|sequence| sequence.id)),
            [Some(0), Some(3), None]
        );
        assert_eq!((queue.len(), queue.len_of(A)), (1, 0));
        queue.clear();
        assert_eq!((queue.len(), queue.fronts().count()), (0, 0));
    }

    #[test]
    fn a_call_with_many_sequences_is_passed_by_one_with_few() {
        let mut queue = WaitingQueue::default();
        let add = |queue: &mut WaitingQueue, ids: std::ops::Range<usize>, call: u64| {
            for id in ids {
                let request = Request { prompt: vec![1], caller: Caller { client: A, call }, ..Request::default() };
                queue.push_back(Sequence::new(id, request, None).expect("there is no constraint"));
            }
        };
        let taken = |queue: &mut WaitingQueue, count: usize| -> Vec<SequenceId> {
            (0..count).filter_map(|_| queue.pop_front(A).map(|sequence| sequence.id)).collect()
        };
        add(&mut queue, 0..100, 1);
        assert_eq!(taken(&mut queue, 3), [0, 1, 2]);
        add(&mut queue, 100..102, 2);
        add(&mut queue, 102..103, 3);
        // The new calls begin in the round of the last sequence that was taken.
        assert_eq!(taken(&mut queue, 6), [100, 102, 3, 101, 4, 5]);
        // What was preempted comes first.
        let first = queue.pop_front(A).expect("it waits");
        assert_eq!(first.id, 6);
        queue.push_front(first);
        assert_eq!(taken(&mut queue, 2), [6, 7]);
    }

    const LIMITS: TurnLimits = TurnLimits { credit: 30, debt: 1000, claim: 2000, claim_for_blocks: 5000 };

    const NOBODY: &BTreeSet<ClientId> = &BTreeSet::new();

    /// Turns in a step in which these clients contend.
    fn turns_of(clients: &[ClientId]) -> Turns {
        let mut turns = Turns::default();
        turns.begin_step(clients.iter().copied().collect(), NOBODY, LIMITS);
        turns
    }

    #[test]
    fn who_comes_late_or_again_has_little_advantage() {
        let mut turns = turns_of(&[A]);
        turns.charge(A, 100);
        turns.arrive(B, false, LIMITS);
        assert_eq!((turns.computed(A), turns.computed(B)), (100, 70));
        turns.begin_step(BTreeSet::from([A, B]), NOBODY, LIMITS);
        turns.charge(B, 50);
        assert_eq!((turns.computed(B), turns.equal_part), (120, 125));
        // B leaves and comes back.
        turns.begin_step(BTreeSet::from([A]), NOBODY, LIMITS);
        turns.arrive(B, false, LIMITS);
        assert_eq!(turns.computed(B), 120);
        turns.charge(A, 24);
        turns.begin_step(BTreeSet::from([A]), NOBODY, LIMITS);
        assert_eq!(turns.computed.len(), 2, "B would come a token earlier");
        turns.charge(A, 1);
        turns.begin_step(BTreeSet::from([A]), NOBODY, LIMITS);
        assert_eq!(turns.computed.len(), 1);
    }

    #[test]
    fn many_newcomers_begin_at_the_same_place_and_do_not_hold_up_those_that_wait() {
        let mut turns = turns_of(&[A]);
        turns.charge(A, 100);
        let mut first = 0;
        for newcomer in (10..1000).map(ClientId) {
            turns.arrive(newcomer, false, LIMITS);
            first = turns.computed(newcomer);
            turns.begin_step(BTreeSet::from([A, newcomer]), NOBODY, LIMITS);
            turns.charge(newcomer, 20);
            if first > 100 {
                break;
            }
        }
        assert_eq!(first, 110, "each second token is A's, and soon it is A's turn");
        let beginnings = [B, ClientId(5), ClientId(6)].map(|client| {
            turns.arrive(client, false, LIMITS);
            turns.computed(client)
        });
        assert_eq!(beginnings, [120; 3]);
    }

    #[test]
    fn what_was_computed_while_nobody_waited_is_forgotten_and_other_debts_and_claims_are_limited() {
        let mut turns = turns_of(&[]);
        turns.charge(A, 100_000);
        turns.arrive(A, true, LIMITS);
        assert_eq!(turns.computed(A), 0);
        turns.charge(A, 100_000);
        turns.arrive(A, false, LIMITS);
        assert_eq!(turns.computed(A), 1000);
        // B waits, and does not want more than it has.
        turns.charge(A, 100_000);
        turns.begin_step(BTreeSet::from([A, B]), NOBODY, LIMITS);
        assert_eq!((turns.computed(A), turns.equal_part, turns.computed(B)), (101_000, 100_000, 98_000));
        turns.charge(A, 50_000);
        turns.begin_step(BTreeSet::from([A, B]), &BTreeSet::from([B]), LIMITS);
        assert_eq!((turns.equal_part, turns.computed(B)), (150_000, 145_000));
    }

    #[test]
    fn what_one_cannot_use_goes_to_the_others() {
        let equal = |budget, demands: &[usize]| {
            level_shares(budget, &demands.iter().map(|demand| (7, *demand)).collect::<Vec<_>>())
        };
        assert_eq!(equal(512, &[1000]), [512]);
        assert_eq!(equal(512, &[10_000, 100]), [412, 100]);
        assert_eq!(equal(512, &[10_000, 10_000, 2]), [255, 255, 2]);
        assert_eq!(equal(5, &[9, 9, 9]), [2, 2, 1]);
        assert_eq!(equal(0, &[1]), [0]);
        assert!(equal(5, &[]).is_empty());
    }

    #[test]
    fn who_had_less_catches_up_first() {
        assert_eq!(level_shares(10, &[(0, 99), (100, 99)]), [10, 0]);
        assert_eq!(level_shares(100, &[(0, 99), (40, 99)]), [70, 30]);
        assert_eq!(level_shares(100, &[(0, 20), (40, 99)]), [20, 80]);
        assert_eq!(level_shares(50, &[(10, 99), (20, 99), (u64::MAX, 99)]), [30, 20, 0]);
    }
}
