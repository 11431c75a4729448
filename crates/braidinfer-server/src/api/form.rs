//! The form that an answer must have.

use std::sync::Arc;

use braidinfer::AnswerForm;
use braidinfer::engine::ConstraintFactory;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::http::ApiError;
use crate::served::Served;

/// As the OpenAI API has it.
#[derive(Debug, Clone, Deserialize)]
pub struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
    json_schema: Option<NamedSchema>,
}

#[derive(Debug, Clone, Deserialize)]
struct NamedSchema {
    schema: Option<Value>,
    /// For people.
    #[serde(rename = "name")]
    _name: Option<String>,
    #[serde(rename = "description")]
    _description: Option<String>,
    /// Schemas are always kept to.
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

/// As vLLM has it; one of them.
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
        forms.extend(self.choice.as_ref().map(|texts| one_of(texts)));
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

/// One of some texts, as it is.
fn one_of(texts: &[String]) -> AnswerForm {
    // The grammar quotes texts as JSON does.
    let texts: Vec<String> = texts.iter().map(|text| json!(text).to_string()).collect();
    AnswerForm::Lark(format!("start: {}", texts.join(" | ")))
}

fn refused(field: &str, expected: &str, found: &str) -> ApiError {
    ApiError::field(field, format!("{field}: expected {expected}, found {found}"))
}

/// The field that asks for a form, and the form.
pub fn asked_for(
    response_format: Option<&ResponseFormat>,
    structured_outputs: Option<&StructuredOutputs>,
) -> Result<Option<(AnswerForm, &'static str)>, ApiError> {
    let named = |form: AnswerForm, field| (form, field);
    let first = match response_format {
        Some(format) => format.form()?.map(|form| named(form, "response_format")),
        None => None,
    };
    match (first, structured_outputs) {
        (Some(_), Some(_)) => {
            Err(refused("structured_outputs", "one form for the answer", "another one in response_format"))
        }
        (None, Some(outputs)) => Ok(Some(named(outputs.form()?, "structured_outputs"))),
        (first, None) => Ok(first),
    }
}

/// What holds answers to a form. Large schemas take their time, which is not taken from other requests.
pub async fn constraint(
    served: &Arc<Served>,
    asked: Option<(AnswerForm, &'static str)>,
) -> Result<Option<ConstraintFactory>, ApiError> {
    let Some((form, field)) = asked else { return Ok(None) };
    served.aside(move |served| served.constraint(&form, field)).await.map(Some)
}
