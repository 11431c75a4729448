//! What a form may cost.

use std::time::Duration;

use serde_json::Value;

use super::AnswerForm;
use crate::containment::WorkLimits;

/// Limits for the forms of answers: schemas, expressions and grammars.
///
/// Size and depth are checked before a form is compiled. Time and memory bound what a form takes whatever it says; memory, and
/// the end of work that takes too long, need worker processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FormLimits {
    /// Longest form, in bytes (of a schema: as JSON without white space).
    pub max_bytes: usize,
    /// Deepest nesting of a schema as it is written. References may nest it deeper.
    pub max_depth: usize,
    /// Most JSON values of a schema, or lines of a grammar.
    pub max_parts: usize,
    /// What compiling may take.
    pub compile: WorkLimits,
    /// Longest time to find which tokens may come next.
    pub mask_time: Duration,
    /// How long a compiled form is kept at least that no answer needs; one and a half times as long at most.
    pub kept_for: Duration,
}

impl Default for FormLimits {
    fn default() -> Self {
        Self {
            max_bytes: 512 << 10,
            max_depth: 64,
            max_parts: 50_000,
            compile: WorkLimits { time: Duration::from_secs(10), memory: 512 << 20 },
            mask_time: Duration::from_secs(1),
            kept_for: Duration::from_secs(30),
        }
    }
}

impl FormLimits {
    /// Fails with what was expected and found if a form is beyond the limits that can be seen in its text.
    pub(super) fn check(&self, form: &AnswerForm) -> Result<(), (String, String)> {
        let at_most = |what: &str, most: usize, found: usize| match found > most {
            true => Err((format!("at most {most} {what}"), found.to_string())),
            false => Ok(()),
        };
        match form {
            AnswerForm::JsonObject => Ok(()),
            AnswerForm::JsonSchema(schema) => {
                let (depth, parts) = depth_and_parts(schema);
                at_most("levels", self.max_depth, depth)?;
                at_most("values", self.max_parts, parts)?;
                at_most("bytes", self.max_bytes, schema.to_string().len())
            }
            AnswerForm::Regex(expression) => at_most("bytes", self.max_bytes, expression.len()),
            AnswerForm::Lark(grammar) => {
                at_most("bytes", self.max_bytes, grammar.len())?;
                at_most("lines", self.max_parts, grammar.lines().count())
            }
        }
    }
}

/// Levels of nesting and number of values of JSON. Does not recurse: the depth of a value that is made by a program has no bound.
fn depth_and_parts(root: &Value) -> (usize, usize) {
    let (mut deepest, mut parts, mut pending) = (0, 0, vec![(1, root)]);
    while let Some((depth, value)) = pending.pop() {
        deepest = deepest.max(depth);
        parts += 1;
        match value {
            Value::Array(items) => pending.extend(items.iter().map(|item| (depth + 1, item))),
            Value::Object(fields) => pending.extend(fields.values().map(|field| (depth + 1, field))),
            _ => {}
        }
    }
    (deepest, parts)
}
