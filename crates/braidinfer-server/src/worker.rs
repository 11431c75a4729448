//! The thread that owns the model: takes requests, runs steps, hands out what they say.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvError, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use braidinfer::engine::{ConstraintFactory, Pooling};
use braidinfer::{Error, Event, Llm, Output, RequestId, SamplingParams, Token};
use tokio::sync::{mpsc, oneshot};

use crate::metrics::{Metrics, RequestTimes};

/// What one step did for one answer; an error ends it.
pub struct Said {
    /// Which of the answers, counted from 0: all answers to the first prompt, then those to the second, and so on.
    pub choice: usize,
    pub output: Result<Output, Fault>,
}

/// Why an answer ended early.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The model gave no number that can be chosen from, or could not be run.
    Model(String),
    /// The server stops.
    ShuttingDown,
}

/// What is wanted of prompts.
#[derive(Debug, Clone)]
pub enum Task {
    /// Answers, which may have to have a form.
    Answer(Box<SamplingParams>, Option<ConstraintFactory>),
    /// Vectors.
    Embed(Pooling),
}

impl Task {
    /// Results for each prompt.
    pub fn n(&self) -> usize {
        match self {
            Self::Answer(params, _) => params.n,
            Self::Embed(_) => 1,
        }
    }
}

struct Job {
    prompts: Vec<Vec<u32>>,
    task: Task,
    arrived: Instant,
    said: mpsc::UnboundedSender<Said>,
    accepted: oneshot::Sender<Result<(), Error>>,
}

enum Command {
    Add(Box<Job>),
    /// Ends every answer.
    EndAll,
}

/// Speaks to the thread from anywhere.
pub struct Worker {
    commands: Sender<Command>,
    thread: JoinHandle<()>,
}

impl Worker {
    pub fn start(llm: Llm, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let (commands, received) = channel();
        let desk = Desk { llm, metrics, open: HashMap::new(), early: None };
        let thread = thread::Builder::new().name("engine".into()).spawn(move || desk.run(&received))?;
        Ok(Self { commands, thread })
    }

    /// Whether the thread runs; it ends only if something in it is broken.
    pub fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Queues prompts that arrived at `arrived`: all of them, or none.
    pub async fn submit(
        &self,
        prompts: Vec<Vec<u32>>,
        task: Task,
        arrived: Instant,
    ) -> Result<AnswerStream, SubmitError> {
        let (said, receiver) = mpsc::unbounded_channel();
        let (accepted, answer) = oneshot::channel();
        let job = Job { prompts, task, arrived, said, accepted };
        self.commands.send(Command::Add(Box::new(job))).map_err(|_| SubmitError::Stopped)?;
        answer.await.map_err(|_| SubmitError::Stopped)?.map_err(SubmitError::Refused)?;
        Ok(AnswerStream(receiver))
    }

    /// Ends every answer with [`Fault::ShuttingDown`].
    pub fn end_all(&self) {
        // A thread that is gone has ended them already.
        let _ = self.commands.send(Command::EndAll);
    }
}

/// Why a prompt was not taken.
pub enum SubmitError {
    Refused(Error),
    /// The thread has ended.
    Stopped,
}

/// What the answers to some prompts say, as it is said. The worker ends them when this is dropped.
pub struct AnswerStream(mpsc::UnboundedReceiver<Said>);

impl AnswerStream {
    /// The next token of any answer; `None` when all are complete.
    pub async fn next(&mut self) -> Option<Said> {
        self.0.recv().await
    }
}

/// A request that is being answered.
struct Open {
    said: mpsc::UnboundedSender<Said>,
    first_choice: usize,
    /// Answers that are not complete.
    unfinished: usize,
    times: RequestTimes,
}

/// What the thread works with.
struct Desk {
    llm: Llm,
    metrics: Arc<Metrics>,
    open: HashMap<RequestId, Open>,
    /// A command that came while a step was checked.
    early: Option<Command>,
}

impl Desk {
    /// Ends when nobody can send commands any more.
    fn run(mut self, commands: &Receiver<Command>) {
        while let Some(pending) = self.wait(commands) {
            pending.into_iter().for_each(|command| self.obey(command));
            // Commands are taken between steps, all that are there, so that cancelling takes one step at most.
            while let Ok(command) = commands.try_recv() {
                self.obey(command);
            }
            self.drop_unheard();
            if self.llm.has_unfinished() {
                self.step();
            }
            self.metrics.observe_engine(&self.llm.stats());
        }
    }

    /// Ends what nobody listens to any more, however its client went away.
    fn drop_unheard(&mut self) {
        let unheard: Vec<RequestId> =
            self.open.iter().filter(|(_, open)| open.said.is_closed()).map(|(request, _)| *request).collect();
        unheard.into_iter().for_each(|request| self.abort(request));
    }

    /// The next command, waited for only when there is nothing else to do; `None` at the end.
    fn wait(&mut self, commands: &Receiver<Command>) -> Option<Option<Command>> {
        while !self.llm.has_unfinished() && self.early.is_none() && self.llm.has_unchecked_step() {
            self.check_step(commands);
        }
        if let Some(command) = self.early.take() {
            return Some(Some(command));
        }
        if !self.llm.has_unfinished() {
            return match commands.recv() {
                Ok(command) => Some(Some(command)),
                Err(RecvError) => None,
            };
        }
        match commands.try_recv() {
            Ok(command) => Some(Some(command)),
            Err(TryRecvError::Empty) => Some(None),
            Err(TryRecvError::Disconnected) => None,
        }
    }

    /// Checks a step until someone wants something.
    fn check_step(&mut self, commands: &Receiver<Command>) {
        let early = &mut self.early;
        let checked = self.llm.shadow_check(&mut || {
            *early = commands.try_recv().ok();
            early.is_none()
        });
        match checked {
            Ok(None) => {}
            Ok(Some(check)) => {
                self.metrics.observe_shadow(&check);
                let (kl, tokens, disagrees) = (check.kl, check.tokens, check.disagrees);
                let bound = self.llm.shadow_bound();
                // What is not a number is beyond every bound.
                if kl.is_nan() || kl > bound || disagrees {
                    tracing::warn!(kl, bound, tokens, disagrees, "a step was far from standard kernels");
                }
            }
            Err(error) => tracing::error!(%error, "a step could not be checked"),
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Add(job) => self.add(*job),
            Command::EndAll => self.end_all(&Fault::ShuttingDown),
        }
    }

    fn add(&mut self, job: Job) {
        let Job { prompts, task, arrived, said, accepted } = job;
        let mut requests = Vec::with_capacity(prompts.len());
        let added = self.queue_all(prompts, &task, &mut requests);
        for (index, request) in requests.into_iter().enumerate() {
            if added.is_err() {
                // All prompts, or none.
                self.llm.abort(request);
                continue;
            }
            let (n, times) = (task.n(), RequestTimes::new(arrived, task.n()));
            let open = Open { said: said.clone(), first_choice: index * n, unfinished: n, times };
            self.open.insert(request, open);
        }
        // That nobody waits for this any more is noticed before the next step.
        let _ = accepted.send(added);
    }

    fn queue_all(&mut self, prompts: Vec<Vec<u32>>, task: &Task, requests: &mut Vec<RequestId>) -> Result<(), Error> {
        self.llm.check_room()?;
        for prompt in prompts {
            requests.push(self.queue(prompt, task)?);
        }
        Ok(())
    }

    fn queue(&mut self, prompt: Vec<u32>, task: &Task) -> Result<RequestId, Error> {
        match task {
            Task::Answer(params, constraint) => self.llm.add_constrained(prompt, params, constraint.clone()),
            Task::Embed(pooling) => self.llm.add_embedding(prompt, *pooling),
        }
    }

    fn abort(&mut self, request: RequestId) {
        self.llm.abort(request);
        if let Some(open) = self.open.remove(&request) {
            self.metrics.count_finished("abort", open.unfinished);
        }
    }

    fn end_all(&mut self, fault: &Fault) {
        for (request, open) in self.open.drain() {
            self.llm.abort(request);
            self.metrics.count_finished("error", open.unfinished);
            // Whoever does not listen any more needs no reason.
            let _ = open.said.send(Said { choice: open.first_choice, output: Err(fault.clone()) });
        }
    }

    fn step(&mut self) {
        match self.llm.step() {
            Ok(events) => {
                self.metrics.observe_step(&self.llm.stats().last_step);
                events.into_iter().for_each(|event| self.hand_out(event));
            }
            Err(error) => {
                tracing::error!(%error, "a step failed; every answer was ended");
                self.end_all(&Fault::Model(error.to_string()));
            }
        }
    }

    fn hand_out(&mut self, event: Event) {
        let Event { request, choice, output } = event;
        let Some(open) = self.open.get_mut(&request) else { return };
        match &output {
            Ok(Output::Token(token)) => open.times.observe(choice, token, &self.metrics),
            Ok(Output::Embedding(_)) => self.metrics.count_finished("stop", 1),
            Err(error) => {
                tracing::error!(%error, "an answer failed");
                self.metrics.count_finished("error", 1);
            }
        }
        let ends = !matches!(&output, Ok(Output::Token(Token { finished: None, .. })));
        open.unfinished -= usize::from(ends);
        let output = output.map_err(|error| Fault::Model(error.to_string()));
        // That nobody listens any more is noticed before the next step.
        let _ = open.said.send(Said { choice: open.first_choice + choice, output });
        if open.unfinished == 0 {
            self.open.remove(&request);
        }
    }
}
