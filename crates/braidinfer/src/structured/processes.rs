//! Forms in worker processes: one process for each form at a time, so that what a form does stays with those who asked for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use lru::LruCache;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use sha2::{Digest, Sha256};

use super::compile::Progress;
use super::vocabulary::Vocabulary;
use super::{AnswerForm, FormLimits, refused};
use crate::containment::{self, CancelFlag, Failure, Pending, Process, Service, WorkKind, WorkerProgram, message};
use crate::engine::{Constraint, TokenMask};
use crate::{Error, Result};

/// Forms that are kept compiled when no answer needs them.
const KEPT: usize = 3;
/// Forms that are remembered, those that were refused among them.
const REMEMBERED: usize = 64;
/// Processes without a form that are kept.
const SPARE: usize = 1;
/// How often a request that waits for another one's compilation looks whether it is still wanted.
const PATIENCE: Duration = Duration::from_millis(20);

/// A request to the worker of a form.
#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    /// Compile the form; the first request.
    Compile(AnswerForm),
    /// The masks of an answer after its tokens so far and after each of the draft.
    Masks { answer: u64, draft: Vec<u32> },
    /// Advance an answer by a token.
    Take { answer: u64, token: u32 },
    /// Forget an answer.
    Forget { answer: u64 },
}

/// What the worker replies if all is well.
#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    Done,
    /// The words of each mask, in little-endian order.
    Masks(Vec<ByteBuf>),
    /// Whether nothing may come after the token.
    Taken(bool),
}

/// The worker processes for the forms of one model.
///
/// A process takes a while to read a large vocabulary, so one whose form nobody needs any more gets the next form.
pub(super) struct FormProcesses {
    program: WorkerProgram,
    setup: Vec<u8>,
    limits: FormLimits,
    /// The least recently used form is the last.
    forms: Mutex<LruCache<FormHash, Arc<Slot>>>,
    /// Processes that have no form, with the reply that they have read the vocabulary.
    spare: Mutex<Vec<(Process, Option<Pending>)>>,
    /// Ends the thread that ends unused processes.
    _alive: Sender<()>,
}

/// SHA-256 of a form as JSON: texts may be long, and nobody can craft two with the same hash.
type FormHash = [u8; 32];

fn hash_of(form: &AnswerForm) -> Result<FormHash, String> {
    let json = serde_json::to_vec(form).map_err(|error| error.to_string())?;
    Ok(Sha256::digest(json).into())
}

/// The place of one form.
#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default, Clone)]
enum State {
    #[default]
    Empty,
    /// A request compiles it.
    Building,
    Ready(Arc<FormProcess>),
    /// It cannot be compiled, by any request.
    Refused(String),
}

impl State {
    /// Whether the form is compiled and no answer has needed it for that long. Nobody can begin to need it while the state is
    /// locked.
    fn is_idle(&self, unused_for: Duration) -> bool {
        let is_unused = |process: &FormProcess| lock(&process.last_used).elapsed() >= unused_for;
        matches!(self, Self::Ready(process) if Arc::strong_count(process) == 1 && is_unused(process))
    }
}

impl Slot {
    /// Forgets the form, if no answer has needed it for that long by now, and returns its process.
    fn take_idle(&self, unused_for: Duration) -> Option<FormProcess> {
        let mut state = lock(&self.state);
        match state.is_idle(unused_for).then(|| std::mem::take(&mut *state)) {
            Some(State::Ready(process)) => Arc::into_inner(process),
            _ => None,
        }
    }
}

/// A process that has compiled a form.
pub(super) struct FormProcess {
    process: Process,
    limits: FormLimits,
    next_answer: AtomicU64,
    last_used: Mutex<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FormProcesses {
    pub(super) fn new(program: WorkerProgram, vocabulary: &Vocabulary, limits: FormLimits) -> Result<Arc<Self>> {
        let setup = message::setup(WorkKind::Form, vocabulary).map_err(Error::Internal)?;
        let forms = Mutex::new(LruCache::unbounded());
        let (alive, ended) = mpsc::channel();
        let processes = Arc::new(Self { program, setup, limits, forms, spare: Mutex::default(), _alive: alive });
        let watched = Arc::downgrade(&processes);
        let watch = move || end_unused(&watched, &ended, limits.kept_for);
        let watch = thread::Builder::new().name("forms".into()).spawn(watch);
        watch.map_err(|error| Error::Internal(format!("no thread could be started for forms: {error}")))?;
        Ok(processes)
    }

    /// The process of a form, which is compiled if that has not been done yet. Requests for the same form wait for the one
    /// that compiles it.
    pub(super) fn compiled(self: &Arc<Self>, form: &AnswerForm, field: &str, cancel: &CancelFlag) -> Result<FormInUse> {
        let form = self.process_of(form, field, cancel)?;
        Ok(FormInUse { form, owner: Arc::clone(self) })
    }

    fn process_of(&self, form: &AnswerForm, field: &str, cancel: &CancelFlag) -> Result<Arc<FormProcess>> {
        let key = hash_of(form).map_err(|message| refused(field, message))?;
        loop {
            let slot = self.slot(&key);
            let mut state = lock(&slot.state);
            match &*state {
                State::Ready(process) if process.is_alive() => return Ok(Arc::clone(process)),
                State::Refused(message) => return Err(refused(field, message.clone())),
                State::Empty | State::Ready(_) => {
                    *state = State::Building;
                    drop(state);
                    let built = self.build(form, cancel);
                    let (next, result) = match built {
                        Ok(process) => (State::Ready(Arc::clone(&process)), Ok(process)),
                        Err(Fault::OfForm(message)) => (State::Refused(message.clone()), Err(message)),
                        // With more time, or on a quieter machine, it may succeed.
                        Err(Fault::OfWork(failure)) => (State::Empty, Err(failure.to_string())),
                    };
                    *lock(&slot.state) = next;
                    slot.changed.notify_all();
                    return result.map_err(|message| refused(field, message));
                }
                State::Building if cancel.is_cancelled() => return Err(refused(field, Failure::Cancelled.to_string())),
                State::Building => {
                    drop(slot.changed.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner));
                }
            }
        }
    }

    /// Whether a form is compiled, so that it needs no other process.
    pub(super) fn is_compiled(&self, form: &AnswerForm) -> bool {
        let Ok(key) = hash_of(form) else { return false };
        let slot = lock(&self.forms).peek(&key).cloned();
        slot.is_some_and(|slot| matches!(&*lock(&slot.state), State::Ready(process) if process.is_alive()))
    }

    fn slot(&self, key: &FormHash) -> Arc<Slot> {
        let mut forms = lock(&self.forms);
        let slot = Arc::clone(forms.get_or_insert(*key, Arc::default));
        while forms.len() > REMEMBERED && forms.pop_lru().is_some() {}
        slot
    }

    fn build(&self, form: &AnswerForm, cancel: &CancelFlag) -> Result<Arc<FormProcess>, Fault> {
        let spare = lock(&self.spare).pop();
        if spare.is_none()
            && let Some(process) = self.recycled()
        {
            match self.compile(process, form, cancel) {
                // What the forms before it left may have been in its way.
                Err(Fault::OfWork(Failure::Memory(_))) => {}
                compiled => return compiled,
            }
        }
        let (process, ready) = match spare {
            Some(spare) => spare,
            None => self.start().map(|(process, ready)| (process, Some(ready)))?,
        };
        if let Some(ready) = ready {
            message::reply::<Reply>(&ready.wait()?).map_err(Fault::OfForm)?;
        }
        // The next form does not have to wait for a process to read the vocabulary.
        if lock(&self.spare).is_empty() && self.idle_forms(Duration::ZERO).len() < KEPT {
            let (process, ready) = self.start()?;
            self.keep_spare(process, Some(ready));
        }
        self.compile(process, form, cancel)
    }

    fn compile(&self, process: Process, form: &AnswerForm, cancel: &CancelFlag) -> Result<Arc<FormProcess>, Fault> {
        let ask = message::pack(&Ask::Compile(form.clone())).map_err(Fault::OfForm)?;
        let compiled = process.submit(ask, self.limits.compile.time, cancel.clone());
        if let Err(message) = message::reply::<Reply>(&compiled.wait()?) {
            self.keep_spare(process, None);
            return Err(Fault::OfForm(message));
        }
        let last_used = Mutex::new(Instant::now());
        Ok(Arc::new(FormProcess { process, limits: self.limits, next_answer: AtomicU64::new(0), last_used }))
    }

    fn keep_spare(&self, process: Process, ready: Option<Pending>) {
        let mut spare = lock(&self.spare);
        if spare.len() < SPARE {
            spare.push((process, ready));
        }
    }

    /// The forms that are compiled and that no answer has needed for that long, the least recently used one first.
    fn idle_forms(&self, unused_for: Duration) -> Vec<Arc<Slot>> {
        lock(&self.forms)
            .iter()
            .rev()
            .map(|(_, slot)| slot)
            .filter(|slot| lock(&slot.state).is_idle(unused_for))
            .cloned()
            .collect()
    }

    /// Ends processes whose forms nobody has needed for that long, but for the `kept` ones that were used last.
    fn end_idle(&self, unused_for: Duration, kept: usize) {
        let idle = self.idle_forms(unused_for);
        idle.iter().take(idle.len().saturating_sub(kept)).for_each(|slot| drop(slot.take_idle(unused_for)));
    }

    /// The process of a form that nobody needs, if more of them are kept than have to be.
    fn recycled(&self) -> Option<Process> {
        let idle = self.idle_forms(Duration::ZERO);
        if idle.len() < KEPT {
            return None;
        }
        idle.iter()
            .filter_map(|slot| slot.take_idle(Duration::ZERO))
            .find(FormProcess::is_alive)
            .map(|form| form.process)
    }

    fn start(&self) -> Result<(Process, Pending), Failure> {
        Process::start(&self.program, self.setup.clone(), self.limits.compile, CancelFlag::default())
    }
}

/// Ends processes whose forms nobody has needed for so long, until their owner is gone.
fn end_unused(owner: &Weak<FormProcesses>, ended: &Receiver<()>, unused_for: Duration) {
    // `kept_for` may be as short as zero, in tests.
    let period = (unused_for / 2).max(Duration::from_millis(20));
    while ended.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
        let Some(owner) = owner.upgrade() else { return };
        owner.end_idle(unused_for, 0);
    }
}

/// Why a form was not compiled.
enum Fault {
    /// It is no usable form.
    OfForm(String),
    OfWork(Failure),
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Self::OfWork(failure)
    }
}

impl FormProcess {
    fn is_alive(&self) -> bool {
        self.process.is_alive()
    }

    fn ask(&self, ask: &Ask) -> Option<Pending> {
        let request = message::pack(ask).ok()?;
        Some(self.process.submit(request, self.limits.mask_time, CancelFlag::default()))
    }
}

/// A form that answers need.
pub(super) struct FormInUse {
    form: Arc<FormProcess>,
    owner: Arc<FormProcesses>,
}

impl Drop for FormInUse {
    fn drop(&mut self) {
        *lock(&self.form.last_used) = Instant::now();
        self.owner.end_idle(Duration::ZERO, KEPT);
    }
}

/// Constrains one answer by a form in a worker process.
pub(super) struct RemoteConstraint {
    form: Arc<FormInUse>,
    answer: u64,
    field: String,
    /// The reply that is waited for.
    pending: Option<Pending>,
}

impl RemoteConstraint {
    pub(super) fn new(form: Arc<FormInUse>, field: String) -> Self {
        let answer = form.form.next_answer.fetch_add(1, Ordering::Relaxed);
        Self { form, answer, field, pending: None }
    }

    /// The reply to the last request, if it comes within `patience`.
    fn reply(&mut self, patience: Duration) -> Option<Result<Reply>> {
        let reply = match &self.pending {
            Some(pending) => pending.within(patience)?,
            None => Err(Failure::Worker("nothing was asked".into())),
        };
        self.pending = None;
        let reply = reply.map_err(|failure| failure.to_string()).and_then(|reply| message::reply(&reply));
        Some(reply.map_err(|message| refused(&self.field, message)))
    }

    fn unexpected(&self) -> Error {
        refused(&self.field, "an unexpected reply of its worker".into())
    }
}

impl Constraint for RemoteConstraint {
    fn ask_masks(&mut self, draft: &[u32]) {
        self.pending = self.form.form.ask(&Ask::Masks { answer: self.answer, draft: draft.to_vec() });
    }

    fn masks(&mut self, patience: Duration) -> Option<Result<Vec<TokenMask>>> {
        let word = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
        let mask = |bytes: &ByteBuf| TokenMask::from_bits(bytes.as_chunks().0.iter().map(word).collect());
        Some(self.reply(patience)?.and_then(|reply| match reply {
            Reply::Masks(masks) => Ok(masks.iter().map(mask).collect()),
            Reply::Done | Reply::Taken(_) => Err(self.unexpected()),
        }))
    }

    fn take(&mut self, token: u32) {
        self.pending = self.form.form.ask(&Ask::Take { answer: self.answer, token });
    }

    fn is_complete(&mut self, patience: Duration) -> Option<Result<bool>> {
        Some(self.reply(patience)?.and_then(|reply| match reply {
            Reply::Taken(complete) => Ok(complete),
            Reply::Done | Reply::Masks(_) => Err(self.unexpected()),
        }))
    }
}

impl Drop for RemoteConstraint {
    fn drop(&mut self) {
        drop(self.form.form.ask(&Ask::Forget { answer: self.answer }));
    }
}

/// The service of a worker process for one form.
struct FormService {
    vocabulary: llguidance::ParserFactory,
    /// The beginning of an answer.
    begin: Option<Progress>,
    answers: HashMap<u64, Progress>,
}

impl FormService {
    fn reply(&mut self, request: &[u8]) -> Result<Reply, String> {
        match message::unpack(request)? {
            Ask::Compile(form) => {
                // What was there before must not take memory from it.
                (self.begin, self.answers) = (None, HashMap::new());
                braidinfer_kernels::return_freed();
                self.begin = Some(containment::without_hurry(|| Progress::begin(&self.vocabulary, &form))?);
                Ok(Reply::Done)
            }
            Ask::Masks { answer, draft } => {
                let masks = self.answer_to(answer)?.masks(&draft)?;
                Ok(Reply::Masks(masks.iter().map(|mask| ByteBuf::from(mask.to_le_bytes())).collect()))
            }
            Ask::Take { answer, token } => self.answer_to(answer)?.take(token).map(Reply::Taken),
            Ask::Forget { answer } => {
                self.answers.remove(&answer);
                Ok(Reply::Done)
            }
        }
    }

    fn answer_to(&mut self, answer: u64) -> Result<&mut Progress, String> {
        let begin = self.begin.as_ref().ok_or("no form was compiled")?;
        Ok(self.answers.entry(answer).or_insert_with(|| begin.fork()))
    }
}

impl Service for FormService {
    fn answer(&mut self, request: &[u8]) -> Vec<u8> {
        message::of_reply(&self.reply(request))
    }
}

/// The service of a worker process for a form over a vocabulary, and the reply whether the vocabulary can be used.
pub(crate) fn form_service(setup: &[u8]) -> (Option<Box<dyn Service>>, Vec<u8>) {
    let vocabulary = message::unpack::<Vocabulary>(setup);
    let (service, reply) = match vocabulary.and_then(|vocabulary| vocabulary.parsers()) {
        Ok(vocabulary) => {
            let service: Box<dyn Service> = Box::new(FormService { vocabulary, begin: None, answers: HashMap::new() });
            (Some(service), Ok(Reply::Done))
        }
        Err(error) => (None, Err(error)),
    };
    (service, message::of_reply(&reply))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_that_cannot_be_forgotten_keeps_its_place() {
        let slot = Slot::default();
        for state in [State::Building, State::Refused("no form".into()), State::Empty] {
            *lock(&slot.state) = state.clone();
            assert!(slot.take_idle(Duration::ZERO).is_none());
            let left = slot.state.try_lock().expect("nobody holds it");
            assert_eq!(std::mem::discriminant(&*left), std::mem::discriminant(&state));
        }
    }
}
