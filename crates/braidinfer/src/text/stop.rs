//! Stop strings in streamed text.

/// Passes text on until a stop string appears. Text that may be the beginning of a stop string is held back.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    /// The stop string that appeared.
    found: Option<String>,
}

impl StopMatcher {
    /// A matcher for `stops`, which must not be empty strings.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new(), found: None }
    }

    /// Takes the next text, and returns the text that may be shown.
    pub fn push(&mut self, text: &str) -> String {
        if self.found.is_some() {
            return String::new();
        }
        self.held.push_str(text);
        let places = self.stops.iter().filter_map(|stop| Some((self.held.find(stop)?, stop)));
        if let Some((at, stop)) = places.min_by_key(|(at, _)| *at) {
            self.found = Some(stop.clone());
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let kept = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        std::mem::replace(&mut self.held, rest)
    }

    /// The stop string that has appeared, if one has.
    pub fn found(&self) -> Option<&str> {
        self.found.as_deref()
    }

    /// Ends the text: returns text that was held back and is no stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest proper prefix of `stop` that `text` ends with.
pub fn overlap(text: &str, stop: &str) -> usize {
    let ends = stop.char_indices().map(|(index, _)| index).skip(1).take_while(|end| *end <= text.len());
    ends.filter(|end| text.ends_with(&stop[..*end])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn feed(stops: &[&str], chunks: &[&str]) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops.iter().map(ToString::to_string).collect());
        let mut shown: String = chunks.iter().map(|chunk| matcher.push(chunk)).collect();
        shown += &matcher.finish();
        (shown, matcher.found().is_some())
    }

    #[test]
    fn a_stop_string_split_over_chunks_is_never_shown() {
        assert_eq!(feed(&["</end>"], &["one <", "/e", "nd> two"]), ("one ".into(), true));
        assert_eq!(feed(&["</end>"], &["one </e", "x"]), ("one </ex".into(), false));
        assert_eq!(feed(&["ab", "b"], &["xa", "b"]), ("x".into(), true));
        assert_eq!(feed(&["éa"], &["é", "b"]), ("éb".into(), false));
        assert_eq!(feed(&[], &["a", "b"]), ("ab".into(), false));
    }

    proptest! {
        #[test]
        fn chunking_changes_nothing(text in "[abé]{0,40}", stop in "[abé]{1,4}", cuts in prop::collection::vec(0usize..40, 0..8)) {
            let mut bounds: Vec<usize> = cuts.into_iter().filter(|cut| text.is_char_boundary(*cut)).collect();
            bounds.extend([0, text.len()]);
            bounds.sort_unstable();
            let chunks: Vec<&str> = bounds.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            let whole = text.split(&stop).next().unwrap_or_default();
            prop_assert_eq!(feed(&[&stop], &chunks), (whole.to_owned(), text.contains(&stop)));
        }
    }
}
