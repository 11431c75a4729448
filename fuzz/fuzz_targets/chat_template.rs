//! A chat template, a NUL byte, and the history of a chat as JSON: the template is parsed, and writes the prompt.

#![no_main]

use std::collections::BTreeMap;

use braidinfer::Error;
use braidinfer::text::{ChatTemplate, TemplateClock};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};

const LABEL: &str = "fuzzed.jinja";

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (template, history) = text.split_once('\0').unwrap_or((text, ""));
    if let Err(error) = render(template, history) {
        assert!(error.to_string().starts_with(LABEL), "{error}");
    }
});

fn render(template: &str, history: &str) -> Result<(), Error> {
    let tokens = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    let template = ChatTemplate::parse(LABEL.to_owned(), template, tokens, TemplateClock::Fixed(Default::default()))?;
    let plain = || match json!({"role": "user", "content": "Hello"}) {
        Value::Object(message) => vec![message],
        _ => Vec::new(),
    };
    let history: Vec<Map<String, Value>> = serde_json::from_str(history).unwrap_or_else(|_| plain());
    template.render_fields(&history, true, &Map::new())?;
    Ok(())
}
