//! The filter `tojson` as in `transformers`: Python's `json.dumps`, without HTML escaping.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, Value};

use super::python::{DEEPEST, float, invalid};

struct Writer {
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
    out: String,
}

/// The filter: `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn to_json(
    value: &Value,
    ensure_ascii: Option<bool>,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let indent = options.get::<Option<Value>>("indent")?.or(indent).filter(|indent| !indent.is_none());
    let indent = match indent {
        Some(indent) => Some(indent_text(&indent)?),
        None => None,
    };
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let (item_separator, key_separator) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("tojson: expected two separators")),
        None => ((if indent.is_some() { "," } else { ", " }).to_owned(), ": ".to_owned()),
    };
    let ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.or(ensure_ascii).unwrap_or(false);
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let mut writer = Writer { ensure_ascii, indent, item_separator, key_separator, sort_keys, out: String::new() };
    writer.value(value, 0)?;
    Ok(writer.out)
}

/// Indentation per level: a string, or a number of spaces.
fn indent_text(indent: &Value) -> Result<String, Error> {
    const WIDEST: i64 = 64;
    match (indent.as_str(), indent.as_i64()) {
        (Some(text), _) => Ok(text.to_owned()),
        (None, Some(spaces)) if spaces <= WIDEST => Ok(" ".repeat(usize::try_from(spaces).unwrap_or(0))),
        _ => Err(invalid(format!("tojson: expected an indent of at most {WIDEST} spaces"))),
    }
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEEPEST {
            return Err(invalid(format!("tojson: expected at most {DEEPEST} levels")));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&float(value).unwrap_or_else(|| value.to_string())),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => self.list(value, depth)?,
            ValueKind::Map => self.map(value, depth)?,
            other => return Err(invalid(format!("tojson: {other} has no JSON form"))),
        }
        Ok(())
    }

    fn list(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let items: Vec<Value> = value.try_iter()?.collect();
        self.group('[', ']', &items, depth, |writer, item| writer.value(item, depth + 1))
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.sort_keys {
            keys.sort();
        }
        self.group('{', '}', &keys, depth, |writer, key| {
            match key.kind() {
                ValueKind::String => writer.string(key.as_str().unwrap_or_default()),
                ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                    writer.out.push('"');
                    writer.value(key, depth)?;
                    writer.out.push('"');
                }
                other => return Err(invalid(format!("tojson: {other} is no JSON key"))),
            }
            writer.out.push_str(&writer.key_separator.clone());
            writer.value(&value.get_item(key)?, depth + 1)
        })
    }

    fn group(
        &mut self,
        open: char,
        close: char,
        items: &[Value],
        depth: usize,
        mut write: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.out.push_str(&self.item_separator.clone());
            }
            self.line_break(depth + 1);
            write(self, item)?;
        }
        if !items.is_empty() {
            self.line_break(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn line_break(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.ensure_ascii && (!c.is_ascii() || c == '\u{7f}')) => self.escape(c),
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    fn escape(&mut self, c: char) {
        let mut units = [0; 2];
        for unit in c.encode_utf16(&mut units) {
            self.out.push_str(&format!("\\u{unit:04x}"));
        }
    }
}
