//! Compiles forms with the grammar library, and follows answers through them.

use std::collections::BTreeMap;

use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Map, Value, json};

use super::AnswerForm;
use super::references::with_plain_references;
use crate::contained::contained;
use crate::engine::TokenMask;

/// White space between the parts of JSON: none, a space, or a new line with indentation. Without a limit, a model that
/// does not know how to continue may generate white space forever.
const WHITE_SPACE: &str = r" |\n {0,16}";
/// The schema key from which the library reads options.
const OPTIONS: &str = "x-guidance";
/// Most parts of a schema that are tried by themselves to find the one at fault.
const MOST_TRIED: usize = 200;
/// Keys under which a schema keeps other ones by name, in a list, or alone.
const BY_NAME: [&str; 5] = ["$defs", "definitions", "properties", "patternProperties", "dependentSchemas"];
const IN_LIST: [&str; 4] = ["prefixItems", "anyOf", "oneOf", "allOf"];
const ALONE: [&str; 6] = ["items", "additionalProperties", "additionalItems", "contains", "not", "if"];

/// Follows one answer through a form.
pub(super) struct Progress(Matcher);

impl Progress {
    /// At the beginning of `form`, which some text must match.
    ///
    /// Fails with what the form is instead of a usable one.
    pub(super) fn begin(parsers: &ParserFactory, form: &AnswerForm) -> Result<Self, String> {
        let mut copies = BTreeMap::new();
        let form = &match form {
            AnswerForm::JsonSchema(schema) => {
                let (plain, names) = with_plain_references(schema.clone());
                copies = names;
                AnswerForm::JsonSchema(plain)
            }
            form => form.clone(),
        };
        let begun = try_begin(parsers, form);
        match (begun, form) {
            (Err(message), AnswerForm::JsonSchema(schema)) => {
                let part =
                    part_at_fault(schema, &message, |part| try_begin(parsers, &AnswerForm::JsonSchema(part)).err());
                let part = original(&part, &copies);
                Err(if part.is_empty() { message } else { format!("{message} at {part}") })
            }
            (begun, _) => begun,
        }
    }

    /// Another answer at the same point.
    pub(super) fn fork(&self) -> Self {
        Self(self.0.deep_clone())
    }

    /// Which tokens may come next, and after each token of `draft`, up to the first that is not allowed.
    pub(super) fn masks(&mut self, draft: &[u32]) -> Result<Vec<TokenMask>, String> {
        let mut masks = vec![mask(&mut self.0)?];
        if draft.is_empty() {
            return Ok(masks);
        }
        let mut ahead = self.0.clone();
        for token in draft {
            let allowed = masks.last().is_some_and(|mask| mask.allows(*token));
            if !allowed || ahead.consume_token(*token).is_err() || ahead.is_stopped() {
                break;
            }
            masks.push(mask(&mut ahead)?);
        }
        Ok(masks)
    }

    /// Advances by a token. Returns whether nothing may come after it.
    pub(super) fn take(&mut self, token: u32) -> Result<bool, String> {
        run(|| self.0.consume_token(token).map_err(|error| plain(&error.to_string())))?;
        Ok(self.0.is_stopped())
    }
}

/// The place in the schema as it was given, of a place in one with copied definitions.
fn original(part: &str, copies: &BTreeMap<String, String>) -> String {
    let copied = part.strip_prefix("/$defs/").map(|rest| rest.split_once('/').unwrap_or((rest, "")));
    match copied.and_then(|(name, rest)| Some((copies.get(name)?, rest))) {
        Some((pointer, "")) => pointer.clone(),
        Some((pointer, rest)) => format!("{pointer}/{rest}"),
        None => part.to_owned(),
    }
}

fn try_begin(parsers: &ParserFactory, form: &AnswerForm) -> Result<Progress, String> {
    let grammar = grammar(form)?;
    let mut matcher = run(|| Ok(Matcher::new(parsers.create_parser(grammar))))?;
    if let Some(error) = matcher.get_error() {
        return Err(plain(&error));
    }
    // What no text matches is found out now, and not in the middle of an answer.
    mask(&mut matcher)?;
    Ok(Progress(matcher))
}

fn mask(matcher: &mut Matcher) -> Result<TokenMask, String> {
    let allowed = run(|| matcher.compute_mask_or_eos().map_err(|error| plain(&error.to_string())))?;
    if allowed.num_set() == 0 {
        return Err("one that no further text can match".into());
    }
    Ok(TokenMask::from_bits(allowed.as_slice().to_vec()))
}

/// Runs the library; a panic becomes an error.
fn run<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let panicked = |panic: String| Err(format!("one that its parser cannot take ({})", plain(&panic)));
    contained(work).unwrap_or_else(panicked)
}

/// The first line of an error of the library, which may go on with a backtrace or its state.
fn plain(error: &str) -> String {
    const LONGEST: usize = 300;
    let line = error.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given").trim();
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}... ({} bytes)", &line[..end], line.len()),
        None => line.to_owned(),
    }
}

fn grammar(form: &AnswerForm) -> Result<TopLevelGrammar, String> {
    match form {
        AnswerForm::JsonObject => Ok(TopLevelGrammar::from_json_schema(with_options(json!({"type": "object"}))?)),
        AnswerForm::JsonSchema(schema) => Ok(TopLevelGrammar::from_json_schema(with_options(schema.clone())?)),
        AnswerForm::Regex(expression) => Ok(TopLevelGrammar::from_regex(expression)),
        AnswerForm::Lark(grammar) => Ok(TopLevelGrammar::from_lark(grammar.clone())),
    }
}

fn with_options(mut schema: Value) -> Result<Value, String> {
    match &mut schema {
        Value::Object(fields) => {
            fields.insert(OPTIONS.into(), json!({"whitespace_pattern": WHITE_SPACE}));
            Ok(schema)
        }
        // The schema `true` allows any JSON.
        Value::Bool(true) => with_options(json!({})),
        other => Err(format!("{}, which is no schema", plain(&other.to_string()))),
    }
}

/// The JSON pointer of the smallest part of `schema` that fails with the same message by itself; empty if that is the whole.
fn part_at_fault(schema: &Value, message: &str, fails: impl Fn(Value) -> Option<String>) -> String {
    let (mut path, mut part, mut tried) = (String::new(), schema, 0);
    'down: loop {
        for (step, inner) in parts(part) {
            if tried == MOST_TRIED {
                break 'down;
            }
            tried += 1;
            if fails(with_definitions(inner, schema)).as_deref() == Some(message) {
                (path, part) = (path + &step, inner);
                continue 'down;
            }
        }
        break;
    }
    path
}

/// The schemas directly inside a schema, with their JSON pointers.
fn parts(schema: &Value) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    for key in BY_NAME {
        let named = schema.get(key).and_then(Value::as_object).into_iter().flatten();
        found
            .extend(named.map(|(name, part)| (format!("/{key}/{}", name.replace('~', "~0").replace('/', "~1")), part)));
    }
    for key in IN_LIST {
        let list = schema.get(key).and_then(Value::as_array).into_iter().flatten();
        found.extend(list.enumerate().map(|(index, part)| (format!("/{key}/{index}"), part)));
    }
    found.extend(ALONE.iter().filter_map(|key| Some((format!("/{key}"), schema.get(key)?))));
    found.retain(|(_, part)| part.is_object());
    found
}

/// A part of a schema with the definitions that it may refer to.
fn with_definitions(part: &Value, schema: &Value) -> Value {
    let mut fields = part.as_object().cloned().unwrap_or_else(Map::new);
    for key in ["$defs", "definitions"] {
        if let Some(definitions) = schema.get(key) {
            fields.entry(key).or_insert_with(|| definitions.clone());
        }
    }
    Value::Object(fields)
}
