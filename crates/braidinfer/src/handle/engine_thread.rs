//! The thread that owns the model: receives commands, runs steps, and sends their outputs to the streams.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::stream::Outbox;
use super::{AnswerEnd, EngineObserver, RequestError, RequestOutput, StreamId, Task, TokenTimes};
use crate::engine::{Caller, ClientId};
use crate::{Error, Event, FinishReason, Llm, Output, RequestId, Result};

/// How long nothing is asked until freed memory goes back to the system.
const IDLE: Duration = Duration::from_secs(5);

/// A command from a [`Handle`](super::Handle) to the thread.
pub(super) enum Command {
    Submit(Box<Submission>),
    /// Work to do with the model between two steps.
    Call(Box<dyn FnOnce(&mut Llm) + Send>),
    Cancel(StreamId),
    /// Ends every answer.
    EndAll,
    /// The last handle was dropped.
    Stop,
}

/// Prompts to queue.
pub(super) struct Submission {
    pub(super) stream: StreamId,
    pub(super) client: ClientId,
    /// Prompts as token ids, with what to compute for each.
    pub(super) requests: Vec<(Vec<u32>, Task)>,
    pub(super) arrived: Instant,
    pub(super) outbox: Outbox,
    /// Receives whether the prompts were queued.
    pub(super) accept: oneshot::Sender<Result<()>>,
}

/// The state of the thread.
pub(super) struct EngineThread {
    llm: Llm,
    observer: Arc<dyn EngineObserver>,
    commands: Receiver<Command>,
    unfinished: BTreeMap<RequestId, UnfinishedRequest>,
    /// A command that interrupted a shadow check.
    interruption: Option<Command>,
    /// For the handles: an error after which every step fails.
    fault: Arc<OnceLock<Arc<Error>>>,
}

impl EngineThread {
    pub(super) fn new(
        llm: Llm,
        observer: Arc<dyn EngineObserver>,
        commands: Receiver<Command>,
        fault: Arc<OnceLock<Arc<Error>>>,
    ) -> Self {
        Self { llm, observer, commands, unfinished: BTreeMap::new(), interruption: None, fault }
    }

    /// Runs steps until the last handle is dropped.
    pub(super) fn run(mut self) {
        self.observer.runs_on(self.llm.device());
        self.observer.engine_stats(&self.llm.stats());
        while self.take_commands().is_continue() {
            self.cancel_dropped();
            self.cancel_because(|request| request.outbox.too_much_unread());
            if self.llm.has_unfinished() {
                self.step();
            }
            self.observer.engine_stats(&self.llm.stats());
        }
        self.end_all(&RequestError::ShuttingDown);
        self.observer.engine_stats(&self.llm.stats());
    }

    /// Executes all pending commands before each step, so that cancelling takes one step at most. Blocks for a command only
    /// if there is no unfinished request.
    fn take_commands(&mut self) -> ControlFlow<()> {
        self.shadow_checks();
        let mut next = self.interruption.take();
        if next.is_none() && !self.llm.has_unfinished() {
            next = Some(self.command_after_copying().unwrap_or_else(|| wait_for_command(&self.commands)));
        }
        while let Some(command) = next.take().or_else(|| next_command(&self.commands)) {
            match command {
                Command::Submit(submission) => self.submit(*submission),
                Command::Call(work) => work(&mut self.llm),
                Command::Cancel(stream) => self.cancel(|request| request.stream == stream),
                Command::EndAll => self.end_all(&RequestError::ShuttingDown),
                Command::Stop => return ControlFlow::Break(()),
            }
        }
        ControlFlow::Continue(())
    }

    /// Copies weights to where they are read faster, as steps would do otherwise, until a command comes.
    fn command_after_copying(&mut self) -> Option<Command> {
        loop {
            let command = next_command(&self.commands);
            if command.is_some() || !self.llm.copy_some_weights() {
                return command;
            }
        }
    }

    /// Runs shadow checks while the engine is idle.
    fn shadow_checks(&mut self) {
        while !self.llm.has_unfinished() && self.interruption.is_none() && self.llm.has_unchecked_step() {
            self.shadow_check();
        }
    }

    /// Runs one shadow check, which the next command interrupts.
    fn shadow_check(&mut self) {
        let (commands, interruption) = (&self.commands, &mut self.interruption);
        let checked = self.llm.shadow_check(&mut || {
            *interruption = next_command(commands);
            interruption.is_none()
        });
        match checked {
            Ok(None) => {}
            Ok(Some(check)) => self.observer.shadow_checked(&check, self.llm.shadow_bound()),
            Err(error) => self.observer.shadow_check_failed(&error),
        }
    }

    fn submit(&mut self, submission: Submission) {
        let Submission { stream, client, requests, arrived, outbox, accept } = submission;
        let caller = Caller { client, call: stream.number() };
        let answers: Vec<usize> = requests.iter().map(|(_, task)| task.n()).collect();
        let mut ids = Vec::with_capacity(requests.len());
        let queued = self.queue_all(caller, requests, &mut ids);
        let mut first_choice = 0;
        for (id, answers) in ids.into_iter().zip(answers) {
            if queued.is_err() {
                // Either all prompts are queued or none.
                self.llm.abort(id);
                continue;
            }
            let outbox = outbox.clone();
            let unfinished = UnfinishedRequest {
                stream,
                outbox,
                first_choice,
                arrived,
                answers: vec![Progress::default(); answers],
            };
            self.unfinished.insert(id, unfinished);
            first_choice += answers;
        }
        // If the caller no longer waits, its stream is closed and `cancel_dropped` removes the requests before the next step.
        let _ = accept.send(queued);
    }

    /// Queues all prompts, if there is room for the answers to all of them.
    fn queue_all(&mut self, caller: Caller, requests: Vec<(Vec<u32>, Task)>, ids: &mut Vec<RequestId>) -> Result<()> {
        self.llm.check_room(caller.client, super::answers(&requests))?;
        for (prompt, task) in requests {
            ids.push(self.queue(caller, prompt, &task)?);
        }
        Ok(())
    }

    fn queue(&mut self, caller: Caller, prompt: Vec<u32>, task: &Task) -> Result<RequestId> {
        match task {
            Task::Generate(wanted) => self.llm.add_for(caller, prompt, wanted),
            Task::Embed { pooling, adapter } => self.llm.add_embedding_for(caller, prompt, *pooling, *adapter),
        }
    }

    /// Cancels the requests whose streams were dropped.
    fn cancel_dropped(&mut self) {
        self.cancel(|request| request.outbox.is_closed());
    }

    /// Cancels the requests for which `is_unwanted` is true.
    fn cancel(&mut self, is_unwanted: impl Fn(&UnfinishedRequest) -> bool) {
        self.cancel_because(|request| is_unwanted(request).then_some(RequestError::Cancelled));
    }

    /// Cancels the requests for which there is a `reason`.
    fn cancel_because(&mut self, reason: impl Fn(&UnfinishedRequest) -> Option<RequestError>) {
        let unwanted = self.unfinished.iter().filter_map(|(id, request)| Some((*id, reason(request)?)));
        for (id, error) in unwanted.collect::<Vec<_>>() {
            self.end(id, AnswerEnd::Cancelled, &error);
        }
    }

    /// Ends all requests.
    fn end_all(&mut self, error: &RequestError) {
        for id in self.unfinished.keys().copied().collect::<Vec<_>>() {
            self.end(id, AnswerEnd::Failed, error);
        }
    }

    /// Ends the unfinished answers to one request.
    fn end(&mut self, id: RequestId, end: AnswerEnd, error: &RequestError) {
        self.llm.abort(id);
        let Some(request) = self.unfinished.remove(&id) else { return };
        self.observer.answers_ended(end, request.unfinished().count());
        request.unfinished().for_each(|choice| request.send(choice, Err(error.clone())));
    }

    fn step(&mut self) {
        let stepped = self.llm.step();
        let notices = self.llm.take_notices();
        if !notices.is_empty() {
            notices.iter().for_each(|notice| self.observer.notice(notice));
            self.observer.runs_on(self.llm.device());
        }
        match stepped {
            Ok(events) => {
                self.observer.step(&self.llm.stats().last_step);
                events.into_iter().for_each(|event| self.deliver(event));
            }
            Err(error) => {
                self.observer.step_failed(&error);
                let error = Arc::new(error);
                if error.is_lasting() {
                    // The first one counts.
                    let _ = self.fault.set(Arc::clone(&error));
                }
                self.end_all(&RequestError::Failed(error));
            }
        }
    }

    /// Sends an output to its stream.
    fn deliver(&mut self, event: Event) {
        let Event { request: id, choice, output } = event;
        let Some(request) = self.unfinished.get_mut(&id) else { return };
        let observer = &self.observer;
        let end = match &output {
            Ok(Output::Token(token)) => {
                observer.token(token, &request.answers[choice].next_token(request.arrived));
                token.finished.map(AnswerEnd::Finished)
            }
            Ok(Output::Embedding(_)) => Some(AnswerEnd::Finished(FinishReason::Stop)),
            Err(error) => {
                observer.answer_failed(error);
                Some(AnswerEnd::Failed)
            }
        };
        if let Some(end) = end {
            request.answers[choice].has_ended = true;
            observer.answers_ended(end, 1);
        }
        request.send(choice, output.map_err(|error| RequestError::Failed(Arc::new(error))));
        if request.unfinished().next().is_none() {
            self.unfinished.remove(&id);
        }
    }
}

/// Waits for the next command. If none comes for a while, freed memory goes back to the system.
fn wait_for_command(commands: &Receiver<Command>) -> Command {
    match commands.recv_timeout(IDLE) {
        Ok(command) => command,
        Err(RecvTimeoutError::Disconnected) => Command::Stop,
        Err(RecvTimeoutError::Timeout) => {
            // The allocator keeps what requests and answers took.
            braidinfer_kernels::return_freed();
            commands.recv().unwrap_or(Command::Stop)
        }
    }
}

/// The next command, if there is one.
fn next_command(commands: &Receiver<Command>) -> Option<Command> {
    match commands.try_recv() {
        Ok(command) => Some(command),
        Err(TryRecvError::Empty) => None,
        Err(TryRecvError::Disconnected) => Some(Command::Stop),
    }
}

/// A request that is waiting or running.
struct UnfinishedRequest {
    stream: StreamId,
    outbox: Outbox,
    /// Index of its first answer among all answers of the stream.
    first_choice: usize,
    arrived: Instant,
    answers: Vec<Progress>,
}

impl UnfinishedRequest {
    /// Indices of its unfinished answers.
    fn unfinished(&self) -> impl Iterator<Item = usize> {
        self.answers.iter().enumerate().filter(|(_, answer)| !answer.has_ended).map(|(choice, _)| choice)
    }

    fn send(&self, choice: usize, output: Result<Output, RequestError>) {
        self.outbox.send(RequestOutput { choice: self.first_choice + choice, output });
    }
}

/// Progress of one answer.
#[derive(Debug, Clone, Default)]
struct Progress {
    tokens: usize,
    first_token: Option<Instant>,
    has_ended: bool,
}

impl Progress {
    /// Counts a new token and returns its times.
    fn next_token(&mut self, arrived: Instant) -> TokenTimes {
        let index = self.tokens;
        self.tokens += 1;
        let since_first_token = self.first_token.map_or(Duration::ZERO, |first| first.elapsed());
        self.first_token.get_or_insert_with(Instant::now);
        TokenTimes { index, since_arrival: arrived.elapsed(), since_first_token }
    }
}
