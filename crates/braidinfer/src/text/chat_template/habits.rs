//! What a chat template expects, found by trying it: templates read the same history in different ways.

use serde_json::{Map, Value as Json, json};

use super::as_text;

/// How a template reads tools and calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Habits {
    pub(super) tools: ToolsPlace,
    /// Whether a message without content says so by null, where other templates want an empty text.
    pub(super) null_content: bool,
    /// Whether the arguments of a call are a text with JSON, where other templates want the object.
    pub(super) text_arguments: bool,
    /// Whether it says something of its own where there is no message of the system, which one would take the place of.
    has_own_system: bool,
    /// Whether it leaves out calls or their results, or refuses them, so that they become text.
    calls_as_text: bool,
}

/// Where a template looks for the tools of a chat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ToolsPlace {
    /// Nowhere: they become text of the system message.
    SystemText,
    /// Nowhere, and system messages are left out or refused: they become text of the first message of the user.
    UserText,
    /// In its variable `tools`.
    Variable,
    /// In the field `tools` of the system message, as a text with JSON (Phi-4-mini).
    SystemMessage,
}

/// Words of a chat that is tried, which are looked for in the prompt.
const NAME: &str = "name_of_a_tool";
const ARGUMENT: &str = "an_argument";
const RESULT: &str = "result_of_the_tool";
/// Mistral's templates take ids of nine letters and digits only.
const ID: &str = "callid001";

pub(super) type Messages = Vec<Map<String, Json>>;

impl ToolsPlace {
    /// Whether the template itself knows tools.
    pub(super) fn is_of_template(self) -> bool {
        match self {
            Self::Variable | Self::SystemMessage => true,
            Self::SystemText | Self::UserText => false,
        }
    }
}

impl Habits {
    /// Finds out by `render`, which renders messages with variables; `None` where the template fails.
    pub(super) fn of(render: impl Fn(Messages, Map<String, Json>) -> Option<String>) -> Self {
        let mut habits = Self {
            tools: ToolsPlace::UserText,
            null_content: false,
            text_arguments: false,
            has_own_system: has_own_system(&render),
            calls_as_text: false,
        };
        let offers = |habits: &Self| {
            let (mut messages, mut variables) =
                (vec![message("user", "x")], Map::from_iter([("tools".to_owned(), json!([tool()]))]));
            habits.place_tools(&mut messages, &mut variables);
            render(messages, variables).is_some_and(|prompt| prompt.contains(NAME))
        };
        for place in [ToolsPlace::Variable, ToolsPlace::SystemMessage, ToolsPlace::SystemText] {
            if offers(&(Self { tools: place, ..habits })) {
                habits.tools = place;
                break;
            }
        }
        // The first of the ways that says most.
        let ways = [(false, false), (true, false), (false, true), (true, true)];
        let tried = ways.map(|(null_content, text_arguments)| {
            let tried = Self { null_content, text_arguments, ..habits };
            let prompt = render(tried.history(), Map::new()).unwrap_or_default();
            ([NAME, ARGUMENT, RESULT].iter().filter(|word| prompt.contains(**word)).count(), tried)
        });
        let most = tried.iter().map(|(said, _)| *said).max();
        let found = tried.into_iter().find(|(said, _)| Some(*said) == most).map_or(habits, |(_, tried)| tried);
        Self { calls_as_text: !habits.tools.is_of_template() && most < Some(3), ..found }
    }

    /// A chat with a call and its result.
    fn history(self) -> Messages {
        let call = json!({"id": ID, "type": "function", "function": {"name": NAME, "arguments": {ARGUMENT: 1}}});
        let mut calls = message("assistant", "");
        calls.insert("content".to_owned(), Json::Null);
        calls.insert("tool_calls".to_owned(), json!([call]));
        let mut result = message("tool", RESULT);
        result.extend([("name".to_owned(), json!(NAME)), ("tool_call_id".to_owned(), json!(ID))]);
        let messages = vec![message("user", "x"), calls, result];
        messages.into_iter().map(|message| self.adapted(message)).collect()
    }

    /// A message in the way in which the template reads it.
    pub(super) fn adapted(self, mut message: Map<String, Json>) -> Map<String, Json> {
        let content = message.get("content").and_then(Json::as_str).unwrap_or_default();
        if content.is_empty() {
            let is_call = message.contains_key("tool_calls");
            let content = if self.null_content && is_call { Json::Null } else { json!("") };
            message.insert("content".to_owned(), content);
        }
        for arguments in arguments_of(&mut message) {
            if self.text_arguments && !arguments.is_string() {
                *arguments = json!(arguments.to_string());
            }
        }
        message
    }

    /// All messages in the way in which the template reads them.
    pub(super) fn all_adapted(self, messages: Messages) -> Messages {
        let messages = if self.calls_as_text { as_text::with_calls_as_text(messages) } else { messages };
        messages.into_iter().map(|message| self.adapted(message)).collect()
    }

    /// Moves the variable `tools` to where the template looks for it, or makes text of it.
    pub(super) fn place_tools(self, messages: &mut Messages, variables: &mut Map<String, Json>) {
        if self.tools == ToolsPlace::Variable {
            return;
        }
        let Some(tools) = variables.remove("tools") else { return };
        let has_system = messages.first().is_some_and(|first| has_role(first, "system"));
        let place = match self.tools {
            ToolsPlace::SystemText if self.has_own_system && !has_system => ToolsPlace::UserText,
            place => place,
        };
        match place {
            ToolsPlace::Variable => {}
            ToolsPlace::SystemMessage => {
                system_message(messages).insert("tools".to_owned(), json!(tools.to_string()));
            }
            ToolsPlace::SystemText => {
                as_text::append(system_message(messages), "\n\n", &as_text::described(&tools));
            }
            ToolsPlace::UserText => match messages.iter_mut().find(|message| has_role(message, "user")) {
                Some(first) => as_text::prepend(first, "\n\n", &as_text::described(&tools)),
                None => messages.insert(0, message("user", &as_text::described(&tools))),
            },
        }
    }
}

/// Whether a template shows a message of the system, and writes more without one than it writes around one.
fn has_own_system(render: impl Fn(Messages, Map<String, Json>) -> Option<String>) -> bool {
    let without = render(vec![message("user", "x")], Map::new());
    let with = render(vec![message("system", NAME), message("user", "x")], Map::new());
    let with = with.filter(|with| with.contains(NAME));
    without.zip(with).is_some_and(|(without, with)| without.len() + NAME.len() > with.len())
}

/// The message of the system at the beginning, which is made if there is none.
fn system_message(messages: &mut Messages) -> &mut Map<String, Json> {
    if messages.first().is_none_or(|first| !has_role(first, "system")) {
        messages.insert(0, message("system", ""));
    }
    &mut messages[0]
}

/// Whether a message is one of this role.
pub(super) fn has_role(message: &Map<String, Json>, role: &str) -> bool {
    message.get("role").is_some_and(|own| own == role)
}

pub(super) fn message(role: &str, content: &str) -> Map<String, Json> {
    Map::from_iter([("role".to_owned(), json!(role)), ("content".to_owned(), json!(content))])
}

fn tool() -> Json {
    json!({"type": "function", "function": {"name": NAME, "description": "", "parameters": {"type": "object", "properties": {}}}})
}

/// The arguments of the calls in a message.
fn arguments_of(message: &mut Map<String, Json>) -> impl Iterator<Item = &mut Json> {
    let calls = message.get_mut("tool_calls").and_then(Json::as_array_mut).into_iter().flatten();
    calls.filter_map(|call| call.get_mut("function")?.get_mut("arguments"))
}

/// The messages with arguments that are no object as the only value of one, for templates that need an object; `None` if all are
/// objects.
pub(super) fn with_wrapped_arguments(messages: &[Map<String, Json>]) -> Option<Messages> {
    let mut messages = messages.to_vec();
    let mut is_changed = false;
    for arguments in messages.iter_mut().flat_map(arguments_of).filter(|arguments| !arguments.is_object()) {
        *arguments = json!({"arguments": arguments.take()});
        is_changed = true;
    }
    is_changed.then_some(messages)
}
