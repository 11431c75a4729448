//! Structured output: outputs that follow a JSON schema, a regular expression or a grammar.

mod compile;
mod limits;
mod processes;
mod references;
mod vocabulary;

pub use self::references::DATA_KEYS;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use llguidance::ParserFactory;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::contained::contained_on_large_stack;
use crate::containment::CancelFlag;
use crate::engine::{Constraint, ConstraintFactory, TokenMask};
use crate::llm::ModelText;
use crate::{Error, Result};

pub use self::limits::FormLimits;
pub(crate) use self::processes::form_service;

use self::compile::Progress;
use self::processes::{FormProcesses, RemoteConstraint};
use self::vocabulary::Vocabulary;

/// The required form of an output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AnswerForm {
    /// Any JSON object.
    JsonObject,
    /// JSON that matches a schema.
    JsonSchema(Value),
    /// Text that matches a regular expression as a whole.
    Regex(String),
    /// Text that matches a grammar in the Lark dialect of `llguidance`.
    Lark(String),
}

/// Creates constraints for the outputs of one model.
///
/// If the model was opened with a [`WorkerProgram`](crate::WorkerProgram), each form is compiled and followed in a worker
/// process of its own, which has limits of time and memory; forms with the same text share it. Otherwise this process does the
/// work, in which time and memory are bounded only by the size of the form and by the steps that the grammar library counts.
pub struct StructuredOutput {
    limits: FormLimits,
    place: Place,
}

/// Where forms are compiled.
enum Place {
    Here(Box<ParserFactory>),
    Workers(Arc<FormProcesses>),
}

impl StructuredOutput {
    /// A factory for a model with `vocab_size` logits.
    ///
    /// Fails without a tokenizer.
    pub fn new(text: &ModelText, vocab_size: usize, limits: FormLimits) -> Result<Self> {
        let vocabulary = Vocabulary::new(text, vocab_size)?;
        let place = match text.worker() {
            Some(program) => Place::Workers(FormProcesses::new(program.clone(), &vocabulary, limits)?),
            None => Place::Here(Box::new(vocabulary.parsers().map_err(Error::Unsupported)?)),
        };
        Ok(Self { limits, place })
    }

    /// Whether a form can be used without another worker process.
    pub fn is_compiled(&self, form: &AnswerForm) -> bool {
        match &self.place {
            Place::Here(_) => true,
            Place::Workers(workers) => workers.is_compiled(form),
        }
    }

    /// A constraint for outputs of this form; `field` is the request field for error messages. A large form takes seconds;
    /// `cancel` ends that if a worker process does it.
    ///
    /// Fails on an invalid schema, expression or grammar, with the reason, and on one beyond the limits.
    pub fn constraint(&self, form: &AnswerForm, field: &str, cancel: &CancelFlag) -> Result<ConstraintFactory> {
        self.limits.check(form).map_err(|(expected, found)| Error::bad_request(field, expected, found))?;
        let field = field.to_owned();
        match &self.place {
            Place::Here(parsers) => {
                let begin = contained_on_large_stack(|| Progress::begin(parsers, form)).unwrap_or_else(Err);
                let begin = begin.map_err(|message| refused(&field, message))?;
                let begin = Mutex::new(begin);
                Ok(ConstraintFactory::new(move || {
                    let progress = begin.lock().unwrap_or_else(PoisonError::into_inner).fork();
                    Ok(Box::new(LocalConstraint {
                        progress,
                        field: field.clone(),
                        draft: Vec::new(),
                        taken: Ok(false),
                    }))
                }))
            }
            Place::Workers(workers) => {
                let process = Arc::new(workers.compiled(form, &field, cancel)?);
                Ok(ConstraintFactory::new(move || {
                    Ok(Box::new(RemoteConstraint::new(Arc::clone(&process), field.clone())))
                }))
            }
        }
    }
}

/// The error for a form that cannot be used, with what it is instead.
fn refused(field: &str, found: String) -> Error {
    Error::bad_request(field, "a form that answers can be held to", found)
}

/// Constrains one output in this process.
struct LocalConstraint {
    progress: Progress,
    field: String,
    draft: Vec<u32>,
    /// Whether the output is complete, after the last token.
    taken: Result<bool, String>,
}

impl Constraint for LocalConstraint {
    fn ask_masks(&mut self, draft: &[u32]) {
        self.draft = draft.to_vec();
    }

    fn masks(&mut self, _patience: Duration) -> Option<Result<Vec<TokenMask>>> {
        Some(self.progress.masks(&self.draft).map_err(|message| refused(&self.field, message)))
    }

    fn take(&mut self, token: u32) {
        self.taken = self.progress.take(token);
    }

    fn is_complete(&mut self, _patience: Duration) -> Option<Result<bool>> {
        Some(self.taken.clone().map_err(|message| refused(&self.field, message)))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use braidinfer_model::ModelSource;
    use serde_json::json;

    use super::*;
    use crate::{Event, FinishReason, Llm, LoadOptions, Output, SamplingParams};

    fn demo() -> Llm {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../braidinfer-cli/demo-model");
        Llm::open(&ModelSource::Directory(folder), &LoadOptions::default(), &|_, _| {}).expect("the model opens")
    }

    fn answer(llm: &mut Llm, form: &AnswerForm, seed: u64) -> (String, Option<FinishReason>) {
        let structured = StructuredOutput::new(llm.text(), llm.spec().vocab_size, FormLimits::default())
            .expect("there is a tokenizer");
        let constraint = structured.constraint(form, "form", &CancelFlag::default()).expect("the form can be used");
        let params =
            SamplingParams { temperature: 1.0, seed: Some(seed), max_tokens: Some(200), ..SamplingParams::default() };
        llm.add_constrained(vec![1, 2, 3], &params, Some(constraint)).expect("the request is sound");
        let (mut text, mut finished) = (String::new(), None);
        while llm.has_unfinished() {
            for Event { output, .. } in llm.step().expect("the step runs") {
                let Output::Token(token) = output.expect("it is sampled") else { panic!("no vector was asked for") };
                text += &token.text;
                finished = token.finished;
            }
        }
        (text, finished)
    }

    #[test]
    fn outputs_have_the_requested_form() {
        let mut llm = demo();
        let schema = json!({
            "type": "object", "additionalProperties": false, "required": ["kind", "count", "on"],
            "properties": {
                "kind": {"enum": ["fox", "hen"]},
                "count": {"type": "integer", "minimum": 3, "maximum": 40},
                "on": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
            },
        });
        for seed in 0..10 {
            let (text, finished) = answer(&mut llm, &AnswerForm::JsonSchema(schema.clone()), seed);
            assert_eq!(finished, Some(FinishReason::Stop), "{text}");
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert!(["fox", "hen"].iter().any(|kind| value["kind"] == **kind), "{text}");
            assert!(value["count"].as_u64().is_some_and(|count| (3..=40).contains(&count)), "{text}");
            let list = value["on"].as_array().expect("it is a list");
            assert!((1..=3).contains(&list.len()) && list.iter().all(Value::is_boolean), "{text}");
            let (text, _) = answer(&mut llm, &AnswerForm::Regex("[a-c]{2}-[0-9]{3}".into()), seed);
            let (letters, digits) = text.split_once('-').unwrap_or_else(|| panic!("{text}"));
            assert!(letters.len() == 2 && letters.bytes().all(|letter| (b'a'..=b'c').contains(&letter)), "{text}");
            assert!(digits.len() == 3 && digits.bytes().all(|digit| digit.is_ascii_digit()), "{text}");
            let (text, _) = answer(&mut llm, &AnswerForm::Lark("start: \"yes\" | \"no\"".into()), seed);
            assert!(["yes", "no"].contains(&text.as_str()), "{text}");
        }
    }

    #[test]
    fn invalid_forms_are_rejected() {
        let llm = demo();
        let structured = StructuredOutput::new(llm.text(), llm.spec().vocab_size, FormLimits::default())
            .expect("there is a tokenizer");
        for form in [
            AnswerForm::JsonSchema(json!({"type": "wizard"})),
            AnswerForm::JsonSchema(json!({"$ref": "#/$defs/absent"})),
            AnswerForm::JsonSchema(json!([1])),
            AnswerForm::JsonSchema(json!(false)),
            AnswerForm::Regex("[a".into()),
            AnswerForm::Lark("start: absent".into()),
        ] {
            let error = structured
                .constraint(&form, "response_format", &CancelFlag::default())
                .expect_err("it is no form")
                .to_string();
            assert!(error.starts_with("response_format: expected a form"), "{error}");
        }
    }
}
