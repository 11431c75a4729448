//! The form of an answer: the first byte says whether a JSON schema, a regular expression or a grammar follows.

#![no_main]

use std::sync::OnceLock;

use braidinfer::executor::Kernels;
use braidinfer::model::ModelSource;
use braidinfer::{AnswerForm, CancelFlag, FormLimits, Llm, LoadOptions, StructuredOutput};
use libfuzzer_sys::fuzz_target;

const FIELD: &str = "response_format";

fuzz_target!(|bytes: &[u8]| {
    static FORMS: OnceLock<StructuredOutput> = OnceLock::new();
    let forms = FORMS.get_or_init(forms);
    let Some((kind, rest)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let form = match kind % 3 {
        0 => match serde_json::from_str(text) {
            Ok(schema) => AnswerForm::JsonSchema(schema),
            Err(_) => return,
        },
        1 => AnswerForm::Regex(text.to_owned()),
        _ => AnswerForm::Lark(text.to_owned()),
    };
    if let Err(error) = forms.constraint(&form, FIELD, &CancelFlag::default()) {
        assert!(error.to_string().starts_with(FIELD), "{error}");
    }
});

/// Forms over the vocabulary of the built-in model.
fn forms() -> StructuredOutput {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/braidinfer-cli/demo-model");
    let source = ModelSource::open(path).expect("the model is in the repository");
    let options = LoadOptions { kernels: Kernels::Standard, threads: Some(1), ..LoadOptions::default() };
    let llm = Llm::open(&source, &options, &|_, _| {}).expect("the model can be loaded");
    let size = llm.text().tokenizer().map_or(0, |tokenizer| tokenizer.vocab_size());
    StructuredOutput::new(llm.text(), size, FormLimits::default()).expect("the model has a tokenizer")
}
