//! Chat templates: Jinja with the extensions of `transformers`, and with Python's behaviour.

mod as_text;
mod habits;
mod json;
mod python;
mod renderer;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::OnceLock;

use braidinfer_model::{JsonFile, ModelSource};
use chrono::{DateTime, Local, NaiveDateTime};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};
use serde_json::{Map, Value as Json};

use self::habits::{Habits, has_role};
use self::renderer::{Context, Renderer};
use super::settings::{SPECIAL_TOKENS, TokenizerSettings};
use crate::containment::WorkerProgram;
use crate::{Error, Result};

pub(crate) use self::renderer::template_service;

const TEMPLATE_FILE: &str = "chat_template.jinja";
/// The name of templates for chats with tools.
const WITH_TOOLS: &str = "tool_use";
/// The folder of named templates.
const OTHER_TEMPLATES: &str = "additional_chat_templates";
const TEMPLATE_JSON: &str = "chat_template.json";
const TEMPLATE_FIELD: &str = "chat_template";
/// Limit of steps per rendering, against endless loops; long chats need some ten thousand.
const FUEL: u64 = 20_000_000;

/// One message of a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Text of the message.
    pub content: String,
}

impl ChatMessage {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }

    fn fields(&self) -> Map<String, Json> {
        let field = |name: &str, text: &str| (name.to_owned(), Json::from(text));
        Map::from_iter([field("role", &self.role), field("content", &self.content)])
    }
}

/// The clock that `strftime_now` reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TemplateClock {
    /// Local time.
    #[default]
    Local,
    /// A fixed time, for reproducible prompts.
    Fixed(NaiveDateTime),
}

/// A chat template, with the special tokens that it may use.
#[derive(Debug)]
pub struct ChatTemplate {
    path: String,
    source: String,
    renderer: Renderer,
    special_tokens: BTreeMap<String, String>,
    habits: OnceLock<Habits>,
    /// Another template of the model, for chats that offer tools; a message if it cannot be used.
    with_tools: Option<Result<Box<Self>, Fault>>,
}

/// Why a template cannot be used.
#[derive(Debug, Clone)]
struct Fault {
    path: String,
    message: String,
}

impl From<Fault> for Error {
    fn from(Fault { path, message }: Fault) -> Self {
        Self::Text { path, message }
    }
}

impl ChatTemplate {
    /// Reads `chat_template.jinja`, `chat_template.json`, or the template in `tokenizer_config.json`; `None` if the
    /// model has no template. `settings` are the model's. Templates are programs by the model's maker: with a
    /// `worker`, they run in processes of their own, with limits of time and memory; without one, only their size,
    /// nesting and number of steps are limited.
    pub fn read(
        source: &ModelSource,
        settings: &TokenizerSettings,
        worker: Option<&WorkerProgram>,
    ) -> Result<Option<Self>> {
        let special_tokens = special_tokens(settings)?;
        let parse =
            |path, template: &str| Self::new(path, template, special_tokens.clone(), TemplateClock::Local, worker);
        let unreadable = |error: Error| Fault { path: source.label(), message: error.to_string() };
        let with_tools = find_named_template(source, settings, WITH_TOOLS).map_err(unreadable).transpose();
        let parse_found =
            |found: Result<(String, String), Fault>| found.and_then(|(path, template)| parse(path, &template));
        let with_tools = with_tools.map(parse_found);
        let Some((path, template)) = find_template(source, settings)? else {
            // One for chats with tools alone is for all chats.
            return Ok(with_tools.transpose()?);
        };
        let main = parse(path, &template)?;
        Ok(Some(Self { with_tools: with_tools.map(|template| template.map(Box::new)), ..main }))
    }

    /// Reads the template with this name among those of the model, or the one in a file of its own, in place of the model's.
    pub fn read_other(
        name: &Path,
        source: &ModelSource,
        settings: &TokenizerSettings,
        worker: Option<&WorkerProgram>,
    ) -> Result<Self> {
        let shown = name.display().to_string();
        let new = |path, template: &str| {
            Self::new(path, template, special_tokens(settings)?, TemplateClock::Local, worker).map_err(Error::from)
        };
        if !name.is_file()
            && let Some((path, template)) = find_named_template(source, settings, &shown)?
        {
            return new(path, &template);
        }
        match std::fs::read_to_string(name) {
            Ok(template) => new(shown, &template),
            Err(error) => {
                let message = format!(
                    "expected a file with a chat template, or the name of one of the model's, found neither: {error}"
                );
                Err(Fault { path: shown, message }.into())
            }
        }
    }

    /// Parses a template that is rendered in this process; `path` is for messages.
    pub fn parse(
        path: String,
        template: &str,
        special_tokens: BTreeMap<String, String>,
        clock: TemplateClock,
    ) -> Result<Self> {
        Ok(Self::new(path, template, special_tokens, clock, None)?)
    }

    fn new(
        path: String,
        template: &str,
        special_tokens: BTreeMap<String, String>,
        clock: TemplateClock,
        worker: Option<&WorkerProgram>,
    ) -> Result<Self, Fault> {
        let source = template.to_owned();
        match Renderer::new(&adapted(template), clock, worker) {
            Ok(renderer) => {
                Ok(Self { path, source, renderer, special_tokens, habits: OnceLock::new(), with_tools: None })
            }
            Err(message) => Err(Fault { path, message }),
        }
    }

    /// The template.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template's source contains `text`, which hints at the output format that the model was trained on.
    pub fn mentions(&self, text: &str) -> bool {
        self.source.contains(text)
    }

    /// Renders `messages`; with `add_generation_prompt`, the text ends where the model's output begins.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        let messages: Vec<Map<String, Json>> = messages.iter().map(ChatMessage::fields).collect();
        self.render_fields(&messages, add_generation_prompt, &Map::new())
    }

    /// The template for chats that offer tools. Fails if the model has one for them that cannot be used.
    pub fn for_tools(&self) -> Result<&Self> {
        match &self.with_tools {
            None => Ok(self),
            Some(Ok(template)) => Ok(template),
            Some(Err(fault)) => Err(fault.clone().into()),
        }
    }

    /// Whether the template itself knows tools. Otherwise [`ChatTemplate::render_conversation`] describes them in a text. The first
    /// call tries the template. Fails like [`ChatTemplate::for_tools`].
    pub fn has_place_for_tools(&self) -> Result<bool> {
        Ok(self.for_tools()?.habits().tools.is_of_template())
    }

    /// Like [`ChatTemplate::render`], for messages with any fields, and with additional template variables, as `transformers`
    /// renders them.
    pub fn render_fields(
        &self,
        messages: &[Map<String, Json>],
        add_generation_prompt: bool,
        variables: &Map<String, Json>,
    ) -> Result<String> {
        let messages = messages.iter().map(prepared).collect();
        let rendered = self.render_as_it_is(messages, add_generation_prompt, variables.clone());
        rendered.map_err(|message| Error::Text { path: self.path.clone(), message })
    }

    /// Like [`ChatTemplate::render_fields`], for a conversation with tools as clients send it: messages and tools are put as the
    /// template reads them, or as text where it has no place for them. With the variable `tools`, the model's template for chats with
    /// tools is taken, if it has one.
    pub fn render_conversation(
        &self,
        messages: &[Map<String, Json>],
        add_generation_prompt: bool,
        variables: &Map<String, Json>,
    ) -> Result<String> {
        let template = if variables.contains_key("tools") { self.for_tools()? } else { self };
        let render = |messages: &[_]| template.render_adapted(messages, add_generation_prompt, variables);
        let again = || habits::with_wrapped_arguments(messages).map(|messages| render(&messages));
        let rendered = render(messages).or_else(|error| again().unwrap_or(Err(error)));
        rendered.map_err(|message| Error::Text { path: template.path.clone(), message })
    }

    fn render_adapted(
        &self,
        messages: &[Map<String, Json>],
        add_generation_prompt: bool,
        variables: &Map<String, Json>,
    ) -> Result<String, String> {
        let mut messages: Vec<_> = messages.iter().map(prepared).collect();
        let mut variables = variables.clone();
        let is_plain = |message: &Map<String, Json>| {
            message.contains_key("content") && !message.contains_key("tool_calls") && !has_role(message, "tool")
        };
        if variables.contains_key("tools") || !messages.iter().all(is_plain) {
            let habits = self.habits();
            messages = habits.all_adapted(messages);
            habits.place_tools(&mut messages, &mut variables);
        }
        self.render_as_it_is(messages, add_generation_prompt, variables)
    }

    fn render_as_it_is(
        &self,
        messages: Vec<Map<String, Json>>,
        add_generation_prompt: bool,
        variables: Map<String, Json>,
    ) -> Result<String, String> {
        let special_tokens = self.special_tokens.clone();
        self.renderer.render(Context { messages, add_generation_prompt, special_tokens, variables })
    }

    fn habits(&self) -> Habits {
        if let Some(habits) = self.habits.get() {
            return *habits;
        }
        let render = |messages, variables| self.render_as_it_is(messages, true, variables).ok();
        let habits = Habits::of(render);
        // What was found by a process that was short of time is found again.
        let works = render(vec![ChatMessage::new("user", "x").fields()], Map::new()).is_some();
        if works { *self.habits.get_or_init(|| habits) } else { habits }
    }
}

/// The special tokens that templates may use, by name.
fn special_tokens(settings: &TokenizerSettings) -> Result<BTreeMap<String, String>> {
    let mut special_tokens = BTreeMap::new();
    for name in SPECIAL_TOKENS {
        special_tokens.extend(settings.special_token(name)?.map(|token| (name.to_owned(), token)));
    }
    Ok(special_tokens)
}

/// A message as templates expect it: null fields are removed, and reasoning content is in `reasoning_content`,
/// whichever field name was used.
fn prepared(message: &Map<String, Json>) -> Map<String, Json> {
    const REASONING: &str = "reasoning_content";
    let present = message.iter().filter(|(_, value)| !value.is_null());
    let mut message: Map<String, Json> = present.map(|(name, value)| (name.clone(), value.clone())).collect();
    let thought = ["thinking", "reasoning"].iter().find_map(|name| message.get(*name)).cloned();
    if let Some(thought) = thought {
        message.entry(REASONING).or_insert(thought);
    }
    message
}

/// The model's template, and the path of its file.
pub(super) fn find_template(source: &ModelSource, settings: &TokenizerSettings) -> Result<Option<(String, String)>> {
    let found = find(source, settings, Some(TEMPLATE_FILE), template_in)?;
    Ok(found.map(|(path, template, _)| (path, template)))
}

/// A template of the model by its name, and the path of its file.
fn find_named_template(
    source: &ModelSource,
    settings: &TokenizerSettings,
    name: &str,
) -> Result<Option<(String, String)>> {
    // Names become paths within the model's folder.
    let is_file_name = !name.starts_with('.') && !name.contains(['/', '\\']);
    let own_file = is_file_name.then(|| format!("{OTHER_TEMPLATES}/{name}.jinja"));
    let found = find(source, settings, own_file.as_deref(), |file| Ok(named_template(file, name)))?;
    let in_list = |path: String, is_field: bool| if is_field { format!("{path} `{name}`") } else { path };
    Ok(found.map(|(path, template, is_field)| (in_list(path, is_field), template)))
}

/// The templates beside the default one, with their names.
pub(super) fn other_templates(source: &ModelSource, settings: &TokenizerSettings) -> Result<Vec<(String, String)>> {
    let listed = settings.config().and_then(|file| file.value(TEMPLATE_FIELD)?.as_array()).into_iter().flatten();
    let mut names: BTreeSet<String> =
        listed.filter_map(|template| Some(template["name"].as_str()?.to_owned())).collect();
    names.extend(
        source.names_in(OTHER_TEMPLATES).iter().filter_map(|file| Some(file.strip_suffix(".jinja")?.to_owned())),
    );
    names.remove("default");
    let mut templates = Vec::new();
    for name in names {
        templates.extend(find_named_template(source, settings, &name)?.map(|(_, template)| (name, template)));
    }
    Ok(templates)
}

/// A template in a file of its own, or in the field of a JSON file, where `pick` finds it; with its path, and whether it is in a
/// field.
fn find(
    source: &ModelSource,
    settings: &TokenizerSettings,
    own_file: Option<&str>,
    pick: impl Fn(&JsonFile) -> Result<Option<String>>,
) -> Result<Option<(String, String, bool)>> {
    if let Some(own_file) = own_file
        && let Some(template) = source.read_text(own_file)?
    {
        return Ok(Some((source.path_of(own_file), template, false)));
    }
    let json = JsonFile::read(source, TEMPLATE_JSON)?;
    for file in json.iter().chain(settings.config()) {
        if let Some(template) = pick(file)? {
            return Ok(Some((format!("{}: {TEMPLATE_FIELD}", file.path()), template, true)));
        }
    }
    Ok(None)
}

/// The template in a JSON file: a string, or a list of named templates, of which `default` is for plain chats.
fn template_in(file: &JsonFile) -> Result<Option<String>> {
    match file.value(TEMPLATE_FIELD) {
        Some(Json::Array(_)) => Ok(named_template(file, "default")),
        _ => Ok(file.text(TEMPLATE_FIELD)?.map(str::to_owned)),
    }
}

/// A template by its name, in a list of them.
fn named_template(file: &JsonFile, name: &str) -> Option<String> {
    let templates = file.value(TEMPLATE_FIELD)?.as_array()?;
    let named = templates.iter().find(|template| template["name"] == name)?;
    named["template"].as_str().map(str::to_owned)
}

/// The Jinja environment of `transformers`.
fn environment(clock: TemplateClock) -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(FUEL));
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_formatter(python::format);
    environment.set_unknown_method_callback(python::method);
    environment.add_filter("tojson", json::to_json);
    environment.add_filter("string", python::to_string);
    environment.add_filter("title", python::title_filter);
    environment.add_filter("trim", python::trim_filter);
    environment.add_test("sequence", python::is_sequence);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", move |format: String| strftime(clock, &format));
    Ok(environment)
}

/// Marks an error that the template raised itself.
#[derive(Debug)]
struct Raised;

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("raised by the template")
    }
}

impl std::error::Error for Raised {}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message).with_source(Raised))
}

fn strftime(clock: TemplateClock, format: &str) -> Result<String, minijinja::Error> {
    use std::fmt::Write;
    // Python's naive local time has no time zone, so these print nothing.
    let format = &format.replace("%Z", "").replace("%z", "");
    let mut text = String::new();
    let written = match clock {
        TemplateClock::Local => {
            let now: DateTime<Local> = Local::now();
            write!(text, "{}", now.format(format))
        }
        TemplateClock::Fixed(now) => write!(text, "{}", now.format(format)),
    };
    let error = |_| minijinja::Error::new(ErrorKind::InvalidOperation, format!("`{format}` is not a time format"));
    written.map(|()| text).map_err(error)
}

/// `template` in this Jinja engine's dialect: blocks that only mark training text become plain ones.
fn adapted(template: &str) -> String {
    let template = &template.replace("\r\n", "\n");
    let mut adapted = String::with_capacity(template.len());
    let mut rest = template.as_str();
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start + 2..].find("%}") else { break };
        let (tag, after) = rest[start..].split_at(len + 4);
        adapted.push_str(&rest[..start]);
        match tag[2..tag.len() - 2].trim_matches(['-', '+']).trim() {
            "generation" => adapted.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => adapted.push_str(&tag.replace("endgeneration", "endif")),
            _ => adapted.push_str(tag),
        }
        rest = after;
    }
    adapted.push_str(rest);
    adapted
}

/// Describes an error in one line.
fn describe(error: &minijinja::Error) -> String {
    let detail = error.detail().unwrap_or_default();
    if std::error::Error::source(error).is_some_and(|source| source.is::<Raised>()) {
        return format!("the chat template refuses these messages: {detail}");
    }
    let line = error.line().map_or_else(String::new, |line| format!(" in line {line}"));
    let colon = if detail.is_empty() { "" } else { ": " };
    format!("{}{colon}{detail}{line}", error.kind()).replace('\n', " ")
}
