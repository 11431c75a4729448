//! Which of the sequences that decode are part of the next step.
//!
//! Alone, a client may decode as many as it has: its own answers are all that they slow down. Beside others, those of clients
//! with more sequences than the others take turns, if all at once would make the others' steps much longer.

use std::collections::{BTreeMap, BTreeSet};

use super::Scheduler;
use crate::engine::SequenceId;
use crate::engine::waiting::ClientId;

/// The sequences that decode in a step.
#[derive(Debug)]
pub(super) struct Decoding {
    pub(super) sequences: Vec<SequenceId>,
    /// How many of them there would be if every client had as many as the others; `None` if there is one client only.
    pub(super) if_equal: Option<usize>,
}

impl Scheduler {
    /// Chooses from the sequences that could decode, beside those that read prompts.
    pub(super) fn choose_decoding(&self, ready: Vec<SequenceId>, prefilling: &[SequenceId]) -> Decoding {
        let both = self.running_of(&ready).chain(self.running_of(prefilling));
        let clients: BTreeSet<ClientId> = both.map(|sequence| sequence.client).collect();
        if clients.len() <= 1 {
            return Decoding { sequences: ready, if_equal: None };
        }
        let mut by_client: BTreeMap<ClientId, Vec<(u64, SequenceId)>> = BTreeMap::new();
        for sequence in self.running_of(&ready) {
            by_client.entry(sequence.client).or_default().push((sequence.decoded_in, sequence.id));
        }
        let fewest = by_client.values().map(Vec::len).min().unwrap_or(0);
        let if_equal = fewest * by_client.len();
        let most = self.step_costs.max_decodes_beside_clients(if_equal, ready.len());
        let sequences = if most < ready.len() { longest_ago(by_client, fewest, most - if_equal) } else { ready };
        Decoding { sequences, if_equal: Some(if_equal) }
    }
}

/// `each` sequences of every client, and `extra` ones of any client: those that decoded longest ago. Sequences come with the last
/// step in which they decoded.
fn longest_ago(by_client: BTreeMap<ClientId, Vec<(u64, SequenceId)>>, each: usize, extra: usize) -> Vec<SequenceId> {
    let (mut chosen, mut others) = (Vec::new(), Vec::new());
    for mut sequences in by_client.into_values() {
        sequences.sort_unstable();
        others.extend(sequences.split_off(each));
        chosen.extend(sequences);
    }
    others.sort_unstable();
    chosen.extend(others.into_iter().take(extra));
    chosen.into_iter().map(|(_, id)| id).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{request, scheduler, sequence_of, step};
    use super::*;
    use crate::engine::Request;
    use crate::engine::step_costs::StepTokens;
    use crate::engine::waiting::Caller;

    /// A scheduler with three sequences of a client, and one of another.
    fn three_beside_one() -> Scheduler {
        let mut scheduler = scheduler(64, 64);
        for (id, client) in [(0, 1), (1, 1), (2, 1), (3, 2)] {
            let caller = Caller { client: ClientId(client), ..Caller::default() };
            let prompt = (0..4).map(|token| 100 * id as u32 + token).collect();
            scheduler.add(sequence_of(id, Request { caller, ..request(prompt) }));
        }
        step(&mut scheduler);
        scheduler
    }

    fn observe(scheduler: &mut Scheduler, seconds: impl Fn(usize) -> f64) {
        for decodes in [1, 2, 3, 4].repeat(100) {
            let tokens = StepTokens { decodes, ..StepTokens::default() };
            scheduler.step_costs.observe(tokens, Duration::from_secs_f64(seconds(decodes)));
        }
    }

    #[test]
    fn sequences_of_the_client_with_most_take_turns_where_they_slow_down_others() {
        let mut scheduler = three_beside_one();
        observe(&mut scheduler, |decodes| 0.01 * decodes as f64);
        let steps: Vec<Vec<SequenceId>> = (0..4).map(|_| step(&mut scheduler).1).collect();
        assert_eq!(steps, [[0, 3], [1, 3], [2, 3], [0, 3]]);
        // Alone, the client has the whole step.
        scheduler.remove(3);
        assert_eq!(step(&mut scheduler).1, [0, 1, 2]);
    }

    #[test]
    fn all_decode_where_that_costs_little() {
        let mut scheduler = three_beside_one();
        observe(&mut scheduler, |decodes| 1.0 + 0.001 * decodes as f64);
        assert_eq!(step(&mut scheduler).1.len(), 4);
    }
}
