//! Parses and renders templates: in this process, or in worker processes that have limits.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::NaiveDateTime;
use minijinja::value::Serde;
use minijinja::{Environment, Value};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::{TemplateClock, describe, environment};
use crate::contained::{contained, contained_on_large_stack};
use crate::containment::{CancelFlag, Failure, Process, Service, WorkKind, WorkLimits, WorkerProgram, message};

/// Longest template, in bytes. Real ones have up to some 30,000.
const LONGEST_TEMPLATE: usize = 1 << 20;
/// Longest tag of a template, in bytes, which bounds how deep its expressions can be nested.
const LONGEST_TAG: usize = 1 << 16;
/// Deepest nesting of blocks.
const DEEPEST_BLOCKS: usize = 100;
/// Most worker processes for one template, which is also how many renderings can run at once.
const MOST_PROCESSES: usize = 2;
/// What one rendering may take in a worker process.
const LIMITS: WorkLimits = WorkLimits { time: Duration::from_secs(10), memory: 256 << 20 };

/// What a template is rendered with.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Context {
    pub(super) messages: Vec<Map<String, Json>>,
    pub(super) add_generation_prompt: bool,
    pub(super) special_tokens: BTreeMap<String, String>,
    /// Additional variables, which come last.
    pub(super) variables: Map<String, Json>,
}

/// Where a template is rendered.
#[derive(Debug)]
pub(super) enum Renderer {
    Here(Box<Parsed>),
    Workers(Workers),
}

impl Renderer {
    /// Parses a template; fails with a message that does not name its file.
    pub(super) fn new(source: &str, clock: TemplateClock, worker: Option<&WorkerProgram>) -> Result<Self, String> {
        check_size(source)?;
        match worker {
            None => run(|| Parsed::new(source, clock)).map(|parsed| Self::Here(Box::new(parsed))),
            Some(program) => Workers::start(source, clock, program.clone()).map(Self::Workers),
        }
    }

    pub(super) fn render(&self, context: Context) -> Result<String, String> {
        match self {
            Self::Here(parsed) => run(|| parsed.render(context)),
            Self::Workers(workers) => workers.render(&context),
        }
    }
}

/// Bounds the nesting of a template before it is parsed, which recurses.
fn check_size(source: &str) -> Result<(), String> {
    if source.len() > LONGEST_TEMPLATE {
        return Err(format!("expected at most {LONGEST_TEMPLATE} bytes, found {}", source.len()));
    }
    let (mut rest, mut blocks) = (source, 0_usize);
    while let Some(start) = rest.find(['{']) {
        let tag = &rest[start..];
        let end = match tag.as_bytes().get(1) {
            Some(b'%') => "%}",
            Some(b'{') => "}}",
            _ => {
                rest = &rest[start + 1..];
                continue;
            }
        };
        let len = tag[2..].find(end).map_or(tag.len(), |len| len + 4);
        if len > LONGEST_TAG {
            return Err(format!("expected tags of at most {LONGEST_TAG} bytes, found one of {len}"));
        }
        let word = tag[2..len.max(2)].trim_start_matches(['-', '+']).trim_start();
        if ["if", "for", "macro", "call", "filter", "block", "with", "autoescape"].iter().any(|name| {
            end == "%}" && word.strip_prefix(name).is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
        }) {
            blocks += 1;
        } else if end == "%}" && word.starts_with("end") {
            blocks = blocks.saturating_sub(1);
        }
        if blocks > DEEPEST_BLOCKS {
            return Err(format!("expected blocks at most {DEEPEST_BLOCKS} deep, found more"));
        }
        rest = &tag[len..];
    }
    Ok(())
}

/// Runs the library in this process; a panic becomes an error.
fn run<T: Send>(work: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    contained_on_large_stack(work).unwrap_or_else(panicked)
}

/// Runs the library on this thread, whose stack is large already.
fn in_worker<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    contained(work).unwrap_or_else(panicked)
}

fn panicked<T>(panic: String) -> Result<T, String> {
    Err(format!("expected a template that its parser can take, found one that it cannot ({panic})"))
}

/// A template that is rendered in this process.
#[derive(Debug)]
pub(super) struct Parsed(Environment<'static>);

impl Parsed {
    fn new(source: &str, clock: TemplateClock) -> Result<Self, String> {
        let parsed = environment(clock).and_then(|mut environment| {
            environment.add_template_owned("chat", source.to_owned())?;
            Ok(Self(environment))
        });
        parsed.map_err(|error| format!("expected a Jinja template, found {}", describe(&error)))
    }

    fn render(&self, context: Context) -> Result<String, String> {
        let Context { messages, add_generation_prompt, special_tokens, variables } = context;
        let mut values: BTreeMap<String, Value> = BTreeMap::from([
            ("messages".into(), Value::from(Serde(messages))),
            ("add_generation_prompt".into(), add_generation_prompt.into()),
            ("tools".into(), ().into()),
            ("documents".into(), ().into()),
        ]);
        values.extend(special_tokens.into_iter().map(|(name, token)| (name, token.into())));
        values.extend(variables.into_iter().map(|(name, value)| (name, Value::from(Serde(value)))));
        let rendered = self.0.get_template("chat").and_then(|template| template.render(values));
        rendered.map_err(|error| describe(&error))
    }
}

/// What a worker renders: the source, and the fixed time of its clock if it has one.
type TemplateSetup = (String, Option<NaiveDateTime>);

/// Renders in worker processes, which are started as they are needed.
#[derive(Debug)]
pub(super) struct Workers {
    program: WorkerProgram,
    setup: Vec<u8>,
    state: Mutex<State>,
    /// Signalled when a rendering is over.
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<Process>,
    /// Renderings that run now.
    running: usize,
}

impl Workers {
    fn start(source: &str, clock: TemplateClock, program: WorkerProgram) -> Result<Self, String> {
        let fixed = match clock {
            TemplateClock::Local => None,
            TemplateClock::Fixed(time) => Some(time),
        };
        let setup: TemplateSetup = (source.to_owned(), fixed);
        let setup = message::setup(WorkKind::Template, &setup)?;
        let workers = Self { program, setup, state: Mutex::default(), freed: Condvar::new() };
        // A template that cannot be parsed is an error now, and not of the first chat.
        let first = workers.process()?;
        workers.state().idle.push(first);
        Ok(workers)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process that has parsed the template.
    fn process(&self) -> Result<Process, String> {
        let started = Process::start(&self.program, self.setup.clone(), LIMITS, CancelFlag::default());
        let (process, ready) = started.map_err(|failure| found(&failure))?;
        let parsed = ready.wait().map_err(|failure| found(&failure))?;
        message::reply::<()>(&parsed)?;
        Ok(process)
    }

    fn render(&self, context: &Context) -> Result<String, String> {
        let request = message::pack(context)?;
        let mut state = self.state();
        while state.running >= MOST_PROCESSES {
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.running += 1;
        let idle = state.idle.pop();
        drop(state);
        let rendered = self.render_in(idle, request);
        let mut state = self.state();
        state.running -= 1;
        let rendered = rendered.map(|(process, rendered)| {
            state.idle.push(process);
            rendered
        });
        drop(state);
        self.freed.notify_one();
        rendered?
    }

    /// Renders in a process that is idle, or in a new one. A process that failed is lost.
    fn render_in(&self, idle: Option<Process>, request: Vec<u8>) -> Result<(Process, Result<String, String>), String> {
        let process = match idle {
            Some(process) => process,
            None => self.process()?,
        };
        let reply = process.submit(request, LIMITS.time, CancelFlag::default()).wait();
        Ok((process, message::reply(&reply.map_err(|failure| found(&failure))?)))
    }
}

fn found(failure: &Failure) -> String {
    format!("expected a template that can be parsed and rendered within limits, found {failure}")
}

/// The service of a worker process that renders one template.
struct Rendering(Parsed);

impl Service for Rendering {
    fn answer(&mut self, request: &[u8]) -> Vec<u8> {
        let context = message::unpack(request);
        message::of_reply(&context.and_then(|context| in_worker(|| self.0.render(context))))
    }
}

/// The service for a template, and the reply whether it could be parsed.
pub(crate) fn template_service(setup: &[u8]) -> (Option<Box<dyn Service>>, Vec<u8>) {
    let setup = message::unpack::<TemplateSetup>(setup);
    let parsed = setup
        .and_then(|(source, fixed)| Parsed::new(&source, fixed.map_or(TemplateClock::Local, TemplateClock::Fixed)));
    match parsed {
        Ok(parsed) => (Some(Box::new(Rendering(parsed))), message::of_reply(&Ok(()))),
        Err(error) => (None, message::of_reply::<()>(&Err(error))),
    }
}
