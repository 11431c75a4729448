//! Structured output: outputs that follow a JSON schema, a regular expression or a grammar.

use std::any::Any;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::engine::{Constraint, ConstraintFactory};
use crate::llm::ModelText;
use crate::{Error, Result};

/// White space between the parts of JSON: none, a space, or a new line with indentation. Without a limit, a model that
/// does not know how to continue may generate white space forever.
const WHITE_SPACE: &str = r" |\n {0,16}";
/// Limit for untrusted expressions: each lexer state takes one to two kilobytes.
const MAX_LEXER_STATES: usize = 50_000;
/// The schema key from which the library reads options.
const OPTIONS: &str = "x-guidance";

/// The required form of an output.
#[derive(Debug, Clone, PartialEq)]
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
pub struct StructuredOutput {
    parsers: ParserFactory,
}

impl StructuredOutput {
    /// A factory for a model with `vocab_size` logits.
    ///
    /// Fails without a tokenizer.
    pub fn new(text: &ModelText, vocab_size: usize) -> Result<Self> {
        let tokenizer = text.require_tokenizer()?;
        let ends: Vec<u32> =
            text.generation().eos_token_id.iter().copied().filter(|id| (*id as usize) < vocab_size).collect();
        let word = |id: u32| {
            let bytes = tokenizer.token_bytes(id).unwrap_or_default();
            // The spelling of a special token is not output text.
            if tokenizer.is_special(id) || ends.contains(&id) {
                [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes.as_slice()].concat()
            } else {
                bytes
            }
        };
        let words: Vec<Vec<u8>> = (0..vocab_size as u32).map(word).collect();
        // Without an end token, an output ends when the grammar allows no further token.
        let end = ends.first().copied().unwrap_or(u32::MAX);
        let mut trie = TokTrie::from(&TokRxInfo::new(vocab_size as u32, end), &words);
        if !ends.is_empty() {
            trie = trie.with_eos_tokens(&ends);
        }
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let failed =
            |error| Error::Unsupported(format!("the vocabulary cannot be used for structured answers: {error}"));
        let mut parsers = ParserFactory::new_simple(&environment).map_err(failed)?;
        parsers.quiet();
        parsers.limits_mut().max_lexer_states = MAX_LEXER_STATES;
        Ok(Self { parsers })
    }

    /// A constraint for outputs of this form; `field` is the request field for error messages.
    ///
    /// Fails on an invalid schema, expression or grammar, with the reason.
    pub fn constraint(&self, form: &AnswerForm, field: &str) -> Result<ConstraintFactory> {
        let refused = |message: String| Error::bad_request(field, "a form that answers can be held to", message);
        let grammar = grammar(form).map_err(refused)?;
        // An untrusted grammar must not end the program, even if the parser panics.
        let made = catch_unwind(AssertUnwindSafe(|| Matcher::new(self.parsers.create_parser(grammar))));
        let matcher = made.map_err(|panic| refused(describe(&*panic)))?;
        if let Some(error) = matcher.get_error() {
            return Err(refused(error));
        }
        let matcher = Mutex::new(matcher);
        Ok(ConstraintFactory::new(move || {
            let matcher = matcher.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
            Ok(Box::new(GrammarConstraint { matcher }))
        }))
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
        other => Err(format!("{other}, which is no schema")),
    }
}

fn describe(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    format!("one that its parser cannot take ({})", text.unwrap_or("no reason given"))
}

/// Constrains one output.
struct GrammarConstraint {
    matcher: Matcher,
}

fn failed(error: impl Display) -> Error {
    Error::Internal(format!("the form of the answer: {error}"))
}

impl Constraint for GrammarConstraint {
    fn restrict(&mut self, logits: &mut [f32]) -> Result<()> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(failed)?;
        let mut any = false;
        for (id, logit) in (0..).zip(logits) {
            if id < allowed.len() as u32 && allowed.is_allowed(id) {
                any = true;
            } else {
                *logit = f32::NEG_INFINITY;
            }
        }
        if any { Ok(()) } else { Err(failed("no token of the vocabulary may come next")) }
    }

    fn take(&mut self, token: u32) -> Result<()> {
        self.matcher.consume_token(token).map_err(failed)
    }

    fn is_complete(&self) -> bool {
        self.matcher.is_stopped()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use braidinfer_model::ModelSource;

    use super::*;
    use crate::{Event, FinishReason, Llm, LoadOptions, Output, SamplingParams};

    fn demo() -> Llm {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../braidinfer-cli/demo-model");
        Llm::open(&ModelSource::Directory(folder), &LoadOptions::default(), &|_, _| {}).expect("the model opens")
    }

    fn answer(llm: &mut Llm, form: &AnswerForm, seed: u64) -> (String, Option<FinishReason>) {
        let structured = StructuredOutput::new(llm.text(), llm.spec().vocab_size).expect("there is a tokenizer");
        let constraint = structured.constraint(form, "form").expect("the form can be used");
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
        let structured = StructuredOutput::new(llm.text(), llm.spec().vocab_size).expect("there is a tokenizer");
        for form in [
            AnswerForm::JsonSchema(json!({"type": "wizard"})),
            AnswerForm::JsonSchema(json!({"$ref": "#/$defs/absent"})),
            AnswerForm::JsonSchema(json!([1])),
            AnswerForm::JsonSchema(json!(false)),
            AnswerForm::Regex("[a".into()),
            AnswerForm::Lark("start: absent".into()),
        ] {
            let error = structured.constraint(&form, "response_format").expect_err("it is no form").to_string();
            assert!(error.starts_with("response_format: expected a form"), "{error}");
        }
    }
}
