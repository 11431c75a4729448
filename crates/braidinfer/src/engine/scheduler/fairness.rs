//! Clients that ask again and again: how long the patient ones wait beside those that ask for much.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::tests::{request, scheduler, sequence_of};
use super::*;
use crate::engine::waiting::Caller;
use crate::engine::{Request, SamplingParams};

const CONTEXT: usize = 1024;
const VOCAB: u32 = 1000;

/// What a client asks for, again and again.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Habit {
    /// Short prompts with answers of 32 tokens.
    Short,
    /// Hundreds of prompts at once.
    ManyPrompts,
    /// Sixteen answers to one prompt.
    Choices,
    /// Prompts as long as the context.
    LongPrompts,
    /// Answers as long as the context.
    LongAnswers,
    /// Answers whose constraint is often late.
    LateConstraint,
    /// Prompts of some hundred tokens, each from a new address.
    NewAddresses,
    /// Eight answers of two tokens.
    Brief,
}

const HOSTILE: [Habit; 5] =
    [Habit::ManyPrompts, Habit::Choices, Habit::LongPrompts, Habit::LongAnswers, Habit::LateConstraint];

/// What one client waits for.
#[derive(Debug)]
struct Asked {
    client: ClientId,
    habit: Habit,
    /// Sequences that have not ended.
    open: Vec<SequenceId>,
    /// When it asked.
    since: Duration,
    /// Whether it waits for the first token.
    waits: bool,
}

/// A scheduler whose steps take a pretended time.
struct Load {
    scheduler: Scheduler,
    rng: StdRng,
    next_id: SequenceId,
    joined: u64,
    now: Duration,
    /// What each step takes beside 1 ms for each token.
    weights: Duration,
    clients: Vec<Asked>,
    /// Sequences that sit out until a time.
    parked: Vec<(SequenceId, Duration)>,
    /// Longest time that a client with short prompts waited for its first token.
    longest: Duration,
    /// Times from requests of such clients to the ends of their answers.
    whole: Vec<Duration>,
    /// Tokens that were computed, by client.
    computed: BTreeMap<ClientId, usize>,
}

impl Load {
    fn new(seed: u64) -> Self {
        let mut scheduler = scheduler(4 * 16 * CONTEXT / 4, 512);
        scheduler.config = EngineConfig { context: CONTEXT, max_sequences: 16, ..scheduler.config };
        let rng = StdRng::seed_from_u64(seed);
        Self {
            scheduler,
            rng,
            next_id: 0,
            joined: 0,
            now: Duration::ZERO,
            weights: Duration::from_millis(10),
            clients: Vec::new(),
            parked: Vec::new(),
            longest: Duration::ZERO,
            whole: Vec::new(),
            computed: BTreeMap::new(),
        }
    }

    /// A client that has not been here before.
    fn new_client(&mut self) -> ClientId {
        self.joined += 1;
        ClientId(self.joined)
    }

    fn join(&mut self, habit: Habit) {
        let client = self.new_client();
        self.join_as(client, habit);
    }

    /// A client asks for something else at the same time.
    fn join_as(&mut self, client: ClientId, habit: Habit) {
        self.clients.push(Asked { client, habit, open: Vec::new(), since: Duration::ZERO, waits: false });
    }

    /// A client goes away.
    fn leave(&mut self, index: usize) -> Asked {
        let mut asked = self.clients.remove(index);
        asked.open.drain(..).for_each(|id| self.scheduler.remove(id));
        asked.waits = false;
        asked
    }

    /// Lets each client without an open sequence ask.
    fn ask(&mut self) {
        for index in 0..self.clients.len() {
            if !self.clients[index].open.is_empty() {
                continue;
            }
            let (prompt, max_tokens, count, leads) = match self.clients[index].habit {
                Habit::Short => (self.rng.random_range(8..120), 32, 1, false),
                Habit::ManyPrompts => (self.rng.random_range(2..20), 16, 300, false),
                Habit::Choices => (self.rng.random_range(2..100), 24, 16, true),
                Habit::LongPrompts => (self.rng.random_range(CONTEXT / 2..CONTEXT - 2), 2, 1, false),
                Habit::LongAnswers => (8, CONTEXT, 1, false),
                Habit::LateConstraint => (20, 24, 1, false),
                Habit::NewAddresses => (self.rng.random_range(100..300), 1, 1, false),
                Habit::Brief => (4, 2, 8, false),
            };
            if self.clients[index].habit == Habit::NewAddresses {
                self.clients[index].client = self.new_client();
            }
            let caller = Caller { client: self.clients[index].client, call: self.next_id as u64 };
            let first = self.next_id;
            for id in first..first + count {
                let leader = (leads && id > first).then_some(first);
                let salt = if leads { first } else { id } as u32;
                let prompt = (0..prompt as u32).map(|token| (token * 31 + salt * 7919) % VOCAB).collect();
                let params = SamplingParams { max_tokens: Some(max_tokens), ..SamplingParams::default() };
                self.scheduler.add(sequence_of(id, Request { params, leader, caller, ..request(prompt) }));
            }
            self.next_id += count;
            self.clients[index].open = (first..first + count).collect();
            (self.clients[index].since, self.clients[index].waits) = (self.now, true);
        }
    }

    fn step(&mut self) {
        self.ask();
        let (now, scheduler) = (self.now, &mut self.scheduler);
        self.parked.retain(|(id, until)| {
            let is_over = *until <= now;
            scheduler.sequence_mut(*id).into_iter().for_each(|sequence| sequence.is_parked = !is_over);
            !is_over
        });
        let step = self.scheduler.schedule(None);
        // A decoding sequence costs little beside the weights that every step reads.
        let tokens = step.tokens();
        let took = self.weights + Duration::from_millis((tokens.prompt + tokens.decodes) as u64);
        self.now += took;
        self.scheduler.step_costs.observe(tokens, took);
        for scheduled in &step.sequences {
            self.scheduler.record_computed(scheduled.sequence, scheduled.positions.end);
            let Some(sequence) = self.scheduler.sequence_mut(scheduled.sequence) else { continue };
            *self.computed.entry(sequence.client).or_default() += scheduled.positions.len();
            if scheduled.wanted.last().is_some_and(|position| position + 1 == sequence.tokens.len()) {
                let token = sequence.tokens.len() as u32 * 17 % VOCAB;
                let has_ended = sequence.append(token, false, CONTEXT).is_some();
                self.took_token(scheduled.sequence, has_ended);
            }
        }
    }

    fn took_token(&mut self, id: SequenceId, has_ended: bool) {
        let Some(asked) = self.clients.iter_mut().find(|asked| asked.open.contains(&id)) else { return };
        if std::mem::take(&mut asked.waits) && asked.habit == Habit::Short {
            self.longest = self.longest.max(self.now - asked.since);
        }
        if asked.habit == Habit::LateConstraint && !has_ended && self.rng.random_bool(0.2) {
            self.parked.push((id, self.now + Duration::from_millis(self.rng.random_range(1..3000))));
        }
        if has_ended {
            let whole = (asked.habit == Habit::Short).then(|| self.now - asked.since);
            self.whole.extend(whole);
            asked.open.retain(|open| *open != id);
            self.scheduler.remove(id);
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
        // Those that wait still count, too.
        let waiting = self.clients.iter().filter(|asked| asked.habit == Habit::Short && asked.waits);
        let longest = waiting.map(|asked| self.now - asked.since).max().unwrap_or_default();
        self.longest = self.longest.max(longest);
    }
}

/// The longest wait of clients with short prompts: 24 of them beside four others, one of which asked `alone` for a time before,
/// and newcomers now and then.
fn longest_wait(seed: u64, others: [Habit; 4], alone: Duration) -> Duration {
    let mut load = Load::new(seed);
    load.join(Habit::Short);
    load.run(alone);
    let first = load.leave(0);
    (0..23).for_each(|_| load.join(Habit::Short));
    load.step();
    load.clients.push(first);
    load.run(Duration::from_secs(30));
    others.into_iter().for_each(|habit| load.join(habit));
    for _ in 0..6 {
        load.run(Duration::from_secs(15));
        (0..8).for_each(|_| load.join(Habit::Short));
        load.run(Duration::from_secs(5));
        (0..8).for_each(|_| drop(load.leave(load.clients.len() - 1)));
    }
    load.longest
}

#[test]
fn nobody_waits_long_beside_those_that_ask_for_much() {
    for seed in 0..3 {
        let usual = longest_wait(seed, [Habit::Short; 4], Duration::ZERO);
        // For 36 clients one after the other, some 96 tokens take 5 s with what they share of the weights.
        assert!(usual < Duration::from_secs(15), "seed {seed}: {usual:?}");
        let check = |others, alone| {
            let longest = longest_wait(seed, others, alone);
            assert!(
                longest < 2 * usual,
                "seed {seed}, {others:?}, alone for {alone:?}: {longest:?}, usually {usual:?}"
            );
        };
        check([Habit::Short; 4], Duration::from_secs(60));
        HOSTILE.iter().for_each(|habit| check([*habit; 4], Duration::ZERO));
        let mut rng = StdRng::seed_from_u64(seed);
        check([(); 4].map(|()| HOSTILE[rng.random_range(0..HOSTILE.len())]), Duration::from_secs(10));
    }
}

/// The median time of an answer to four clients beside others, where a step takes `weights` beside 1 ms for each token.
fn usual_time(others: &[Habit], weights: Duration) -> Duration {
    let mut load = Load::new(0);
    load.weights = weights;
    (0..4).for_each(|_| load.join(Habit::Short));
    others.iter().for_each(|habit| load.join(*habit));
    load.run(Duration::from_secs(200));
    load.whole.sort_unstable();
    load.whole[load.whole.len() / 2]
}

#[test]
fn answers_beside_those_that_ask_for_much_take_at_most_twice_as_long() {
    for weights in [0, 2, 50].map(Duration::from_millis) {
        let alone = usual_time(&[], weights);
        let check = |others: &[Habit], most: f64| {
            let ratio = usual_time(others, weights).as_secs_f64() / alone.as_secs_f64();
            assert!(ratio < most, "{others:?} with {weights:?}: {ratio:.2} times as long");
        };
        HOSTILE.iter().for_each(|habit| check(&[*habit], 2.0));
        for habit in HOSTILE {
            // Half of the clients read long prompts all the time.
            check(&[habit; 4], if habit == Habit::LongPrompts { 2.2 } else { 2.0 });
        }
    }
}

#[test]
fn new_addresses_get_no_more_than_others() {
    for (seed, streams, others) in [(0, 1, 0), (1, 2, 0), (2, 4, 0), (3, 8, 0), (4, 2, 12), (5, 3, 12)] {
        let mut load = Load::new(seed);
        let patient = load.new_client();
        // Two, so that one of them always waits.
        (0..2).for_each(|_| load.join_as(patient, Habit::LongPrompts));
        let decoding: Vec<ClientId> = (0..others).map(|_| load.new_client()).collect();
        decoding.iter().for_each(|client| load.join_as(*client, Habit::LongAnswers));
        (0..streams).for_each(|_| load.join(Habit::NewAddresses));
        load.run(Duration::from_secs(60));
        let readers = load.computed.iter().filter(|(client, _)| !decoding.contains(client));
        let all: usize = readers.map(|(_, computed)| computed).sum();
        let share = load.computed[&patient] as f64 / all as f64;
        let equal = 1.0 / (streams + 1) as f64;
        assert!(share > 0.9 * equal, "beside {streams} streams of new addresses and {others} others: {share:.3}");
    }
}

#[test]
fn a_client_with_a_slow_answer_has_no_claim_to_what_was_computed_meanwhile() {
    let mut load = Load::new(0);
    let slow = load.new_client();
    load.join_as(slow, Habit::LongAnswers);
    (0..2).for_each(|_| load.join(Habit::LongPrompts));
    load.run(Duration::from_secs(15));
    (0..8).for_each(|_| load.join_as(slow, Habit::LongPrompts));
    load.step();
    load.join(Habit::Short);
    load.run(Duration::from_secs(5));
    assert!(load.longest < Duration::from_secs(1), "{:?}", load.longest);
}

#[test]
fn a_long_answer_goes_on_beside_short_ones_of_the_same_client() {
    let mut load = Load::new(0);
    load.weights = Duration::ZERO;
    let client = load.new_client();
    load.join_as(client, Habit::LongAnswers);
    load.run(Duration::from_millis(100));
    load.join_as(client, Habit::Brief);
    load.join(Habit::LongAnswers);
    let long = load.clients[0].open[0];
    let mut tokens_after = |time| {
        load.run(time);
        load.scheduler.sequence_mut(long).map_or(0, |sequence| sequence.tokens.len())
    };
    let (before, after) = (tokens_after(Duration::from_millis(100)), tokens_after(Duration::from_millis(500)));
    let more = after - before;
    // A step of two tokens takes 2 ms, and the client's own nine answers take turns.
    assert!(more > 500 / 2 / 9 / 2, "{more} tokens");
}
