//! Python's behaviour where it differs from this Jinja engine's.

use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, Output, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

pub(super) fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Printed levels of nesting; deeper values are printed as dots.
pub(super) const DEEPEST: usize = 100;

/// Prints `{{ value }}` as Python's `str` would.
pub(super) fn format(out: &mut Output, _state: &mut State, value: &Value) -> Result<(), Error> {
    out.write_str(&to_string(value)).map_err(|_| Error::from(ErrorKind::WriteFailure))
}

/// Python's `str`.
pub(super) fn to_string(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.to_string(),
        _ => repr(value, 0),
    }
}

/// Python's `repr`.
fn repr(value: &Value, depth: usize) -> String {
    if depth > DEEPEST {
        return "...".into();
    }
    let repr = |value: &Value| repr(value, depth + 1);
    let list = |value: &Value| -> String {
        let items = value.try_iter().map(|items| items.map(|item| repr(&item)).collect::<Vec<_>>());
        items.unwrap_or_default().join(", ")
    };
    match value.kind() {
        ValueKind::None => "None".into(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.into(),
        ValueKind::Number => float(value).unwrap_or_else(|| value.to_string()),
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Seq => format!("[{}]", list(value)),
        ValueKind::Map => {
            let entry = |key: Value| {
                format!("{}: {}", repr(&key), value.get_item(&key).map_or_else(|_| String::new(), |v| repr(&v)))
            };
            let entries = value.try_iter().map(|keys| keys.map(entry).collect::<Vec<_>>());
            format!("{{{}}}", entries.unwrap_or_default().join(", "))
        }
        _ => value.to_string(),
    }
}

fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// A float as Python prints it; `None` if the value is no float.
pub(super) fn float(value: &Value) -> Option<String> {
    if value.is_integer() {
        return None;
    }
    let number = f64::try_from(value.clone()).ok()?;
    let scientific = format!("{number:e}");
    let exponent: i32 = scientific.split_once('e')?.1.parse().ok()?;
    if number != 0.0 && !(-4..16).contains(&exponent) {
        let mantissa = scientific.split_once('e')?.0;
        let sign = if exponent < 0 { '-' } else { '+' };
        return Some(format!("{mantissa}e{sign}{:02}", exponent.abs()));
    }
    let plain = number.to_string();
    Some(if plain.contains('.') { plain } else { format!("{plain}.0") })
}

/// Methods of Python values that templates call.
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        match name {
            "strip" | "lstrip" | "rstrip" if args.iter().all(Value::is_none) => {
                return Ok(Value::from(strip(text, name)));
            }
            "rsplit" => return rsplit(text, args),
            "index" => {
                let found = unknown_method_callback(state, value, "find", args)?;
                return if found == Value::from(-1) { Err(invalid("substring not found")) } else { Ok(found) };
            }
            "removeprefix" => {
                let (prefix,): (&str,) = from_args(args)?;
                return Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)));
            }
            "removesuffix" => {
                let (suffix,): (&str,) = from_args(args)?;
                return Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)));
            }
            "title" => return Ok(Value::from(title(text, |c| c.is_alphabetic()))),
            _ => {}
        }
    }
    unknown_method_callback(state, value, name, args)
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, limit): (Option<&str>, Option<usize>) = from_args(args)?;
    let limit = limit.map_or(usize::MAX, |limit| limit.saturating_add(1));
    let mut parts: Vec<&str> = match separator {
        Some("") => return Err(invalid("rsplit: expected a separator, found an empty text")),
        Some(separator) => text.rsplitn(limit, separator).collect(),
        None if limit == usize::MAX => text.split_whitespace().rev().collect(),
        None => return Err(invalid("rsplit: expected a separator beside a limit")),
    };
    parts.reverse();
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Jinja's `trim` filter.
pub(super) fn trim_filter(value: &Value, characters: Option<&str>) -> String {
    let text = to_string(value);
    match characters {
        Some(characters) => text.trim_matches(|c| characters.contains(c)).to_owned(),
        None => strip(&text, "strip").to_owned(),
    }
}

/// Python's `str.strip`, which counts the information separators as white space.
fn strip<'a>(text: &'a str, side: &str) -> &'a str {
    let space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    match side {
        "lstrip" => text.trim_start_matches(space),
        "rstrip" => text.trim_end_matches(space),
        _ => text.trim_matches(space),
    }
}

/// Jinja's `title` filter: a word begins after white space or an opening bracket or hyphen.
pub(super) fn title_filter(text: &str) -> String {
    title(text, |c| !(c.is_whitespace() || "-({[<".contains(c)))
}

/// Upper-cases the first letter of each word, and lower-cases the others.
fn title(text: &str, inside_word: impl Fn(char) -> bool) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = inside_word(c);
    }
    out
}
/// The test `sequence`: Python takes texts and maps for sequences, too.
pub(super) fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Iterable)
}
