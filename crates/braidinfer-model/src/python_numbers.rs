//! Numbers that Python writes into JSON files, although JSON does not have them.

/// The field by which newer versions of `transformers` write such numbers, in an object of their own.
pub(crate) const FLOAT: &str = "__float__";

const NUMBERS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// The text with every bare `Infinity`, `-Infinity` and `NaN` as an object `{"__float__": name}`; `None` if it has none.
pub(crate) fn as_objects(json: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(json.len());
    let (mut rest, mut in_text, mut found) = (json, false, false);
    while let Some((first, after)) = rest.split_first() {
        let number = NUMBERS.iter().find(|number| !in_text && rest.starts_with(number.as_bytes()));
        if let Some(number) = number {
            out.extend(format!("{{\"{FLOAT}\":\"{number}\"}}").bytes());
            (rest, found) = (&rest[number.len()..], true);
            continue;
        }
        if *first == b'"' {
            in_text = !in_text;
        }
        // What follows a backslash does not end a text.
        let len = if in_text && *first == b'\\' { rest.len().min(2) } else { 1 };
        out.extend(&rest[..len]);
        rest = if len == 1 { after } else { &rest[len..] };
    }
    found.then_some(out)
}

/// The text with such objects as the numbers that they stand for, as they are in the file.
pub(crate) fn as_written(text: &str) -> String {
    let replaced = |text: String, number: &&str| text.replace(&format!("{{\"{FLOAT}\":\"{number}\"}}"), number);
    NUMBERS.iter().fold(text.to_owned(), replaced)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bare_numbers_are_replaced() {
        let text = |json: &str| as_objects(json.as_bytes()).map(|json| String::from_utf8(json).expect("it was UTF-8"));
        assert_eq!(
            text(r#"{"a": [0.0, Infinity], "b": -Infinity, "c": NaN}"#).as_deref(),
            Some(r#"{"a": [0.0, {"__float__":"Infinity"}], "b": {"__float__":"-Infinity"}, "c": {"__float__":"NaN"}}"#)
        );
        assert_eq!(text(r#"{"Infinity": "NaN \" NaN", "\\": 1}"#), None);
        assert_eq!(text(r#""\"#), None);
    }

    #[test]
    fn messages_have_numbers_as_they_are_in_the_file() {
        let found = r#"[{"__float__":"-Infinity"},{"__float__":"NaN"},1.0]"#;
        assert_eq!(as_written(found), "[-Infinity,NaN,1.0]");
    }
}
