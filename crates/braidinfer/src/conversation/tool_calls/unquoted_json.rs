//! Arguments of FunctionGemma and Gemma 4: JSON without quotes, whose texts stand between marks:
//! `{key:<escape>text<escape>,other:[1,2]}`.

use serde_json::{Map, Value};

/// What texts stand between: FunctionGemma's marks, and Gemma 4's.
const ESCAPES: [&str; 2] = ["<escape>", "<|\"|>"];
/// Deepest nesting of arguments.
const DEEPEST: usize = 128;

/// Reads an object after its opening brace, one character at a time.
#[derive(Debug, Default)]
pub(super) struct UnquotedJson {
    /// Objects and lists that are open within the outer object, from the outside.
    open: Vec<Open>,
    outer: Object,
    /// The word or text that is read.
    word: String,
    /// The mark that ends the text that is read.
    text_ends_with: Option<&'static str>,
    /// A whole value that was read.
    value: Option<Value>,
}

#[derive(Debug, Default)]
struct Object {
    fields: Map<String, Value>,
    key: Option<String>,
}

#[derive(Debug)]
enum Open {
    Object(Object),
    List(Vec<Value>),
}

impl UnquotedJson {
    /// Takes the next character. Returns `None` as long as more belongs to the object; then the object, or `None` within if it is
    /// none.
    pub(super) fn push(&mut self, next: char) -> Option<Option<Map<String, Value>>> {
        if let Some(end) = self.text_ends_with {
            self.word.push(next);
            if let Some(text) = self.word.strip_suffix(end) {
                self.value = Some(Value::from(text));
                (self.text_ends_with, self.word) = (None, String::new());
            }
            return None;
        }
        let is_good = match next {
            '{' => self.begin(Open::Object(Object::default())),
            '[' => self.begin(Open::List(Vec::new())),
            ':' => self.end_key(),
            ',' => self.end_value(),
            '}' if self.open.is_empty() => {
                let is_good = self.end_value();
                return Some(is_good.then(|| std::mem::take(&mut self.outer.fields)));
            }
            '}' | ']' => self.end(next),
            next => {
                self.word.push(next);
                let mark = ESCAPES.into_iter().find(|mark| self.word.ends_with(mark))?;
                let is_at_start = self.word.trim_start() == mark;
                (self.text_ends_with, self.word) = (Some(mark), String::new());
                is_at_start
            }
        };
        (!is_good).then_some(None)
    }

    fn object(&mut self) -> Option<&mut Object> {
        match self.open.last_mut() {
            None => Some(&mut self.outer),
            Some(Open::Object(object)) => Some(object),
            Some(Open::List(_)) => None,
        }
    }

    fn begin(&mut self, open: Open) -> bool {
        self.open.push(open);
        self.word.trim().is_empty() && self.value.is_none() && self.open.len() < DEEPEST
    }

    fn end_key(&mut self) -> bool {
        let word = std::mem::take(&mut self.word);
        let key = match self.value.take() {
            Some(Value::String(text)) => text,
            _ => word.trim().to_owned(),
        };
        let Some(object) = self.object().filter(|object| object.key.is_none()) else { return false };
        object.key = Some(key);
        true
    }

    /// Ends a value, if there is one: nothing needs to stand before a bracket.
    fn end_value(&mut self) -> bool {
        let word = std::mem::take(&mut self.word);
        let word = word.trim();
        // Words beside a whole value would be lost.
        if self.value.is_some() && !word.is_empty() {
            return false;
        }
        let of_word = || serde_json::from_str(word).unwrap_or(Value::from(word));
        let value = self.value.take().or_else(|| (!word.is_empty()).then(of_word));
        match (self.open.last_mut(), value) {
            (Some(Open::List(items)), value) => {
                items.extend(value);
                true
            }
            (_, value) => {
                let Some(object) = self.object() else { return false };
                match (object.key.take(), value) {
                    (Some(key), value) => {
                        object.fields.insert(key, value.unwrap_or(Value::from("")));
                        true
                    }
                    (None, value) => value.is_none(),
                }
            }
        }
    }

    fn end(&mut self, bracket: char) -> bool {
        if !self.end_value() {
            return false;
        }
        self.value = match (self.open.pop(), bracket) {
            (Some(Open::Object(object)), '}') => Some(Value::Object(object.fields)),
            (Some(Open::List(items)), ']') => Some(Value::Array(items)),
            _ => None,
        };
        self.value.is_some()
    }
}
