//! Structured outputs: the request fields that constrain the form of an answer.

use braidinfer::AnswerForm;
use serde::Deserialize;
use serde_json::{Value, json};

use super::sampling::SharedFields;
use crate::api::constraint::RequestedForm;
use crate::http::{ApiError, shown};

/// The field `response_format` of the OpenAI API.
#[derive(Debug, Clone, Deserialize)]
pub struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
    json_schema: Option<NamedSchema>,
}

#[derive(Debug, Clone, Deserialize)]
struct NamedSchema {
    schema: Option<Value>,
    /// Ignored; for human readers.
    #[serde(rename = "name")]
    _name: Option<String>,
    #[serde(rename = "description")]
    _description: Option<String>,
    /// Ignored: schemas are always enforced.
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

/// The field `structured_outputs` of vLLM; exactly one of its fields must be set.
#[derive(Debug, Clone, Deserialize)]
pub struct StructuredOutputs {
    json: Option<Value>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    grammar: Option<String>,
    json_object: Option<bool>,
}

impl ResponseFormat {
    fn form(&self) -> Result<Option<AnswerForm>, ApiError> {
        match (self.kind.as_str(), &self.json_schema) {
            ("text", None) => Ok(None),
            ("json_object", None) => Ok(Some(AnswerForm::JsonObject)),
            ("json_schema", Some(named)) => {
                let any = || json!({});
                Ok(Some(AnswerForm::JsonSchema(named.schema.clone().unwrap_or_else(any))))
            }
            ("json_schema", None) => Err(refused("response_format.json_schema", "a schema", "none")),
            ("text" | "json_object", Some(_)) => {
                Err(refused("response_format.json_schema", "nothing, or the type json_schema beside it", "a schema"))
            }
            (other, _) => Err(refused("response_format.type", "text, json_object or json_schema", other)),
        }
    }
}

impl StructuredOutputs {
    fn form(&self) -> Result<AnswerForm, ApiError> {
        let mut forms: Vec<AnswerForm> = Vec::new();
        forms.extend(self.json.clone().map(AnswerForm::JsonSchema));
        forms.extend(self.regex.clone().map(AnswerForm::Regex));
        forms.extend(self.choice.as_ref().map(|texts| one_of(texts, "structured_outputs.choice")).transpose()?);
        forms.extend(self.grammar.clone().map(AnswerForm::Lark));
        forms.extend(self.json_object.filter(|wanted| *wanted).map(|_| AnswerForm::JsonObject));
        match <[AnswerForm; 1]>::try_from(forms) {
            Ok([form]) => Ok(form),
            Err(forms) => {
                let expected = "one of json, json_object, regex, choice and grammar";
                Err(refused("structured_outputs", expected, &forms.len().to_string()))
            }
        }
    }
}

/// A grammar for exactly one of the texts of a field.
fn one_of(texts: &[String], field: &str) -> Result<AnswerForm, ApiError> {
    if texts.is_empty() {
        return Err(refused(field, "at least one text", "none"));
    }
    // Lark grammars quote strings like JSON.
    let texts: Vec<String> = texts.iter().map(|text| json!(text).to_string()).collect();
    Ok(AnswerForm::Lark(format!("start: {}", texts.join(" | "))))
}

fn refused(field: &str, expected: &str, found: &str) -> ApiError {
    ApiError::field(field, format!("{field}: expected {expected}, found {}", shown(found)))
}

/// The requested form of the answer.
pub fn requested(fields: &SharedFields) -> Result<Option<RequestedForm>, ApiError> {
    let mut forms = Vec::new();
    if let Some(format) = &fields.response_format {
        forms.extend(format.form()?.map(|form| (form, "response_format")));
    }
    if let Some(outputs) = &fields.structured_outputs {
        forms.push((outputs.form()?, "structured_outputs"));
    }
    let schema = |schema: &Option<Value>| schema.clone().map(AnswerForm::JsonSchema);
    forms.extend(schema(&fields.json_schema).map(|form| (form, "json_schema")));
    forms.extend(schema(&fields.guided_json).map(|form| (form, "guided_json")));
    forms.extend(fields.guided_regex.clone().map(|regex| (AnswerForm::Regex(regex), "guided_regex")));
    if let Some(texts) = &fields.guided_choice {
        forms.push((one_of(texts, "guided_choice")?, "guided_choice"));
    }
    forms.extend(fields.guided_grammar.clone().map(|grammar| (AnswerForm::Lark(grammar), "guided_grammar")));
    match forms.get(1) {
        Some((_, field)) => Err(refused(field, "one form for the answer", &format!("another one in {}", forms[0].1))),
        None => Ok(forms.pop()),
    }
}
