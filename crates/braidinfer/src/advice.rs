//! What to do about something, as a value that each face words in its own way.

use std::fmt;

use serde::{Serialize, Serializer};

/// A setting that advice speaks of: a field of [`crate::LoadOptions`] or of [`crate::SamplingParams`], or an argument of the
/// function that was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// Its name in snake_case, such as `precision`.
    pub name: &'static str,
    /// What to set it to; `None` if the advice only points to it.
    pub value: Option<&'static str>,
}

/// What to do about something: a sentence that begins in lower case, and the settings in it.
///
/// The library names settings neutrally: `precision=exact`. A face words them as its users do ([`Advice::worded`]): the command
/// line as `--precision exact`, for example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Setting(Setting),
}

impl Advice {
    /// Advice that begins with this setting at this value.
    pub fn set(name: &'static str, value: &'static str) -> Self {
        Self(Vec::new()).then_set(name, value)
    }

    /// Goes on with a text.
    pub fn then(mut self, text: impl Into<String>) -> Self {
        self.0.push(Part::Text(text.into()));
        self
    }

    /// Goes on with a setting at a value.
    pub fn then_set(mut self, name: &'static str, value: &'static str) -> Self {
        self.0.push(Part::Setting(Setting { name, value: Some(value) }));
        self
    }

    /// Goes on with the name of a setting.
    pub fn then_name(mut self, name: &'static str) -> Self {
        self.0.push(Part::Setting(Setting { name, value: None }));
        self
    }

    /// The settings in it, in order.
    pub fn settings(&self) -> impl Iterator<Item = Setting> {
        self.0.iter().filter_map(|part| match part {
            Part::Setting(setting) => Some(*setting),
            Part::Text(_) => None,
        })
    }

    /// The sentence, with each setting in the words of a face.
    pub fn worded(&self, word: impl Fn(Setting) -> String) -> String {
        let part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Setting(setting) => word(*setting),
        };
        self.0.iter().map(part).collect()
    }
}

/// Advice without settings, or its beginning.
impl<T: Into<String>> From<T> for Advice {
    fn from(text: T) -> Self {
        Self(vec![Part::Text(text.into())])
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.value {
            Some(value) => write!(f, "{}={value}", self.name),
            None => f.write_str(self.name),
        }
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.worded(|setting| setting.to_string()))
    }
}

/// As text: in reports, advice is for people.
impl Serialize for Advice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_neutral_unless_a_face_words_them() {
        let advice = Advice::from("use ").then_set("kernels", "auto").then(", or raise ").then_name("max_tokens");
        assert_eq!(advice.to_string(), "use kernels=auto, or raise max_tokens");
        assert_eq!(advice.worded(|setting| format!("<{}>", setting.name)), "use <kernels>, or raise <max_tokens>");
        let first = advice.settings().next().expect("it has settings");
        assert_eq!((first.name, first.value), ("kernels", Some("auto")));
        assert_eq!(serde_json::to_string(&advice).expect("it is text"), "\"use kernels=auto, or raise max_tokens\"");
    }
}
