//! What clients sent, as messages show it: never the whole of a long text.

use std::borrow::Cow;

/// Most characters of one value in a message.
const MOST_OF_VALUE: usize = 200;

/// A value as messages show it: whole if it is short, else its beginning and its length.
pub fn shown(value: &str) -> Cow<'_, str> {
    cut(value, MOST_OF_VALUE)
}

/// A text of at most about `most` characters, which says how long it was.
pub fn cut(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}... ({} characters)", &text[..end], text.chars().count())),
    }
}

/// The name of the file at the end of a path.
pub fn file_name(path: &str) -> &str {
    path.trim_end_matches('/').rsplit(['/', '\\']).next().unwrap_or(path)
}

/// A message that may begin with the path of a file and a colon, with only the file's name.
pub fn without_folder(message: &str) -> Cow<'_, str> {
    match message.split_once(": ") {
        Some((path, rest)) if path.contains('/') => Cow::Owned(format!("{}: {rest}", file_name(path))),
        _ => Cow::Borrowed(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shown("short"), "short");
        assert_eq!(shown(&"é".repeat(200)), "é".repeat(200));
        assert_eq!(shown(&"é".repeat(70_000)), format!("{}... (70000 characters)", "é".repeat(200)));
    }

    #[test]
    fn folders_are_left_out() {
        assert_eq!(file_name("/home/me/models/a/chat_template.jinja"), "chat_template.jinja");
        assert_eq!(without_folder("/srv/a b/model: no chat template"), "model: no chat template");
        assert_eq!(without_folder("top_p: expected 1/2"), "top_p: expected 1/2");
    }
}
