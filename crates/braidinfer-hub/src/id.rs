//! Identifiers of models on the Hub.

use std::fmt;
use std::str::FromStr;

use crate::{HubError, Result};

/// A model on the Hub: `org/name`, optionally with a revision, and optionally with the quantization of a GGUF file.
///
/// Parsed from `org/name`, `org/name@revision`, `org/name:QUANT` or `org/name@revision:QUANT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    repo: String,
    revision: Option<String>,
    quant: Option<String>,
}

impl HubId {
    /// The repository, `org/name`.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// Branch, tag or commit; `None` means `main`.
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// The requested quantization of the GGUF file, as the user wrote it.
    pub fn quant(&self) -> Option<&str> {
        self.quant.as_deref()
    }

    /// Whether `text` has the form of a Hub id, even if an invalid one: two parts with one slash between them, and
    /// nothing that marks a path. A relative path `a/b` has that form too, so check for a file first.
    pub fn looks_like(text: &str) -> bool {
        let repo = text.split(['@', ':']).next().unwrap_or_default();
        let Some((org, name)) = repo.split_once('/') else { return false };
        !org.is_empty()
            && !name.is_empty()
            && !org.starts_with(['.', '~'])
            && !name.contains('/')
            && !repo.contains('\\')
    }
}

impl FromStr for HubId {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self> {
        let (rest, quant) = split(text, ':');
        // A whole file name is also accepted.
        let quant = quant.map(|quant| quant.strip_suffix(".gguf").unwrap_or(quant));
        let (repo, revision) = split(rest, '@');
        check_repo(repo)
            .and_then(|()| revision.map_or(Ok(()), check_revision))
            .and_then(|()| quant.map_or(Ok(()), check_quant))
            .map_err(|found| HubError::Id { text: text.escape_debug().to_string(), found })?;
        Ok(Self { repo: repo.to_owned(), revision: revision.map(str::to_owned), quant: quant.map(str::to_owned) })
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        self.quant.as_ref().map_or(Ok(()), |quant| write!(f, ":{quant}"))
    }
}

fn split(text: &str, at: char) -> (&str, Option<&str>) {
    text.split_once(at).map_or((text, None), |(head, tail)| (head, Some(tail)))
}

/// The Hub's rules for names, which also make the names of cache folders unambiguous.
fn check_repo(repo: &str) -> Result<(), String> {
    const LONGEST: usize = 96;
    let parts: Vec<&str> = repo.split('/').collect();
    let [org, name] = parts[..] else {
        return Err(format!("found {} part(s) where an organization and a name should be", parts.len()));
    };
    for (kind, part) in [("organization", org), ("name", name)] {
        if part.is_empty() {
            return Err(format!("the {kind} is empty"));
        }
        check_characters(kind, part, "-_.")?;
        if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) {
            return Err(format!("the {kind} `{part}` begins or ends with `-` or `.`"));
        }
        if part.contains("--") || part.contains("..") {
            return Err(format!("the {kind} `{part}` contains `--` or `..`"));
        }
    }
    if name.ends_with(".git") {
        return Err(format!("the name `{name}` ends with `.git`; leave that out"));
    }
    if repo.len() > LONGEST {
        return Err(format!("it has {} characters, and {LONGEST} is the limit", repo.len()));
    }
    Ok(())
}

/// A subset of git's rules, which ensures that the revision is no path out of the cache's `refs` folder.
fn check_revision(revision: &str) -> Result<(), String> {
    const LONGEST: usize = 200;
    check_characters("revision", revision, "-_./")?;
    let bad = |part: &str| part.is_empty() || part.starts_with('.') || part.ends_with('.') || part.contains("..");
    if revision.split('/').any(bad) {
        return Err(format!("the revision `{revision}` has an empty part, or dots where git allows none"));
    }
    if revision.len() > LONGEST {
        return Err(format!("its revision has {} characters, and {LONGEST} is the limit", revision.len()));
    }
    Ok(())
}

fn check_quant(quant: &str) -> Result<(), String> {
    if quant.contains('@') {
        return Err("the revision comes before the quantization: org/name@revision:QUANT".into());
    }
    if quant.is_empty() {
        return Err("nothing follows the `:`".into());
    }
    check_characters("quantization", quant, "-_.")
}

fn check_characters(kind: &str, part: &str, extra: &str) -> Result<(), String> {
    match part.chars().find(|c| !c.is_ascii_alphanumeric() && !extra.contains(*c)) {
        Some(c) => Err(format!("the {kind} contains `{}`", c.escape_debug())),
        None => Ok(()),
    }
}

/// Whether `text` is a full commit hash, which always means the same commit.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (String, Option<String>, Option<String>) {
        let id: HubId = text.parse().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(id.to_string(), text);
        (id.repo, id.revision, id.quant)
    }

    #[test]
    fn ids_have_four_forms() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(parts("Qwen/Qwen3-0.6B"), ("Qwen/Qwen3-0.6B".into(), None, None));
        assert_eq!(parts("a_b/c.d@refs/pr/4"), ("a_b/c.d".into(), some("refs/pr/4"), None));
        assert_eq!(parts("a/b:Q4_K_M"), ("a/b".into(), None, some("Q4_K_M")));
        assert_eq!(parts("a/b@v1.0:UD-Q4_K_XL"), ("a/b".into(), some("v1.0"), some("UD-Q4_K_XL")));
    }

    #[test]
    fn invalid_ids_are_rejected_with_a_reason() {
        for (text, why) in [
            ("gpt2", "1 part(s)"),
            ("a/b/c", "3 part(s)"),
            ("", "1 part(s)"),
            ("/b", "organization is empty"),
            ("a/", "name is empty"),
            ("a/..", "begins or ends"),
            ("../b", "begins or ends"),
            ("a/b..c", "`--` or `..`"),
            ("a--b/c", "`--` or `..`"),
            ("a/b c", "contains ` `"),
            ("a/b\u{1b}[31m", r"contains `\u{1b}`"),
            ("a/ä", "contains `ä`"),
            ("a/b.git", "`.git`"),
            ("a/b@", "empty part"),
            ("a/b@../../x", "empty part, or dots"),
            ("a/b@/etc", "empty part"),
            ("a/b@x/.y", "dots where git allows none"),
            ("a/b@main~1", "revision contains `~`"),
            ("a/b:", "nothing follows"),
            ("a/b:Q4_0@main", "comes before"),
            ("a/b:Q4/0", "quantization contains `/`"),
            (&format!("a/{}", "x".repeat(95)), "97 characters"),
        ] {
            let error = text.parse::<HubId>().expect_err(text).to_string();
            assert!(error.contains(why), "{error}");
            assert!(!error.contains('\u{1b}'));
        }
    }

    #[test]
    fn ids_are_distinguished_from_paths() {
        for text in ["a/b", "a/b@main", "a/b:Q4_0", "a/b c", "org/name@refs/pr/1"] {
            assert!(HubId::looks_like(text), "{text}");
        }
        for text in ["", "a", "./a/b", "../b", "~/b", "/a/b", "a/b/c", "a/b/", "C:/models/x", r"a\b/c", "a/"] {
            assert!(!HubId::looks_like(text), "{text}");
        }
    }

    #[test]
    fn only_a_full_lower_case_hash_is_a_commit() {
        assert!(is_commit(&"0a".repeat(20)));
        for text in ["main", &"0a".repeat(19), &"0A".repeat(20), &"0g".repeat(20)] {
            assert!(!is_commit(text), "{text}");
        }
    }
}
