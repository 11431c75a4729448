//! Settings from the environment variables of the Hugging Face tools, with the same meaning.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{HubError, Result};

const PUBLIC_HUB: &str = "https://huggingface.co";

/// Access to the Hub, and the location of the cache.
#[derive(Debug, Clone)]
pub struct Settings {
    /// URL of the Hub, `https://huggingface.co` or that of a compatible server.
    pub endpoint: String,
    /// The cache directory, which contains `models--org--name` folders.
    pub cache: PathBuf,
    /// Sent only to the endpoint, never to another host.
    pub token: Option<Token>,
    /// Send no requests at all.
    pub offline: bool,
    /// Memory in bytes for a model, by which a quantization is chosen where a repository has several and none was asked for; with
    /// `None`, that is an error.
    pub memory: Option<u64>,
    /// Retries after transient errors.
    pub retry: Retry,
    /// Timeouts of requests.
    pub timeouts: Timeouts,
}

/// When to retry.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Maximum number of consecutive failures of a request. Received bytes reset the count.
    pub attempts: u32,
    /// Delay after the first failure; doubled after each further one.
    pub first_delay: Duration,
    /// Maximum delay. If a server asks for a longer one, the error is returned.
    pub longest_delay: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 5, first_delay: Duration::from_secs(1), longest_delay: Duration::from_secs(60) }
    }
}

/// Timeouts of requests.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For the DNS lookup, and again for the connection including TLS.
    pub connect: Duration,
    /// For the next bytes of a response.
    pub stall: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(15), stall: Duration::from_secs(30) }
    }
}

/// A secret that is never shown in messages.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Checks that `text`, which comes from `name`, is a possible token. Surrounding white space is removed; an empty
    /// token is `None`.
    pub fn new(name: &str, text: &str) -> Result<Option<Self>> {
        let text = text.trim();
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            let expected = "a token of letters, digits and signs".to_owned();
            let found = "white space, control characters or letters beyond ASCII in it".to_owned();
            return Err(HubError::Setting { name: name.to_owned(), expected, found });
        }
        Ok(Some(text).filter(|text| !text.is_empty()).map(|text| Self(text.to_owned())))
    }

    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Settings {
    /// The public Hub without a token, with `cache` as cache directory.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: PUBLIC_HUB.into(),
            cache: cache.into(),
            token: None,
            offline: false,
            memory: None,
            retry: Retry::default(),
            timeouts: Timeouts::default(),
        }
    }

    /// Settings from the environment:
    ///
    /// - cache: `HF_HUB_CACHE` (or the older `HUGGINGFACE_HUB_CACHE`), else `hub` in `HF_HOME`, else
    ///   `huggingface/hub` in `XDG_CACHE_HOME`, else in `~/.cache`;
    /// - token: `HF_TOKEN`, else `HUGGING_FACE_HUB_TOKEN`, else the file `HF_TOKEN_PATH`, else `token` in `HF_HOME`;
    /// - endpoint: `HF_ENDPOINT`;
    /// - offline: `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`, as `1`, `true`, `yes` or `on`.
    ///
    /// Fails on an invalid variable, or if the token file exists but cannot be read.
    pub fn from_env() -> Result<Self> {
        Self::from_variables(&|name| env::var_os(name), env::home_dir())
    }

    fn from_variables(variable: &dyn Fn(&str) -> Option<OsString>, user_home: Option<PathBuf>) -> Result<Self> {
        let variables = Variables { variable, user_home };
        let home = variables.hugging_face_home()?;
        let cache = match variables.path(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])? {
            Some(cache) => cache,
            None => home.join("hub"),
        };
        let mut settings = Self::new(cache);
        settings.offline = variables.flag(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])?;
        if let Some((_, endpoint)) = variables.text(&["HF_ENDPOINT"])? {
            settings.endpoint = endpoint;
        }
        // Offline, no token is needed, so an invalid one must not be an error.
        if !settings.offline {
            settings.token = variables.token(&home)?;
        }
        Ok(settings)
    }
}

struct Variables<'a> {
    variable: &'a dyn Fn(&str) -> Option<OsString>,
    user_home: Option<PathBuf>,
}

impl Variables<'_> {
    /// The first of `names` that is set and not empty, with its name.
    fn text(&self, names: &[&str]) -> Result<Option<(String, String)>> {
        let Some((name, value)) = self.first(names) else { return Ok(None) };
        match value.into_string() {
            Ok(text) => Ok(Some((name, text))),
            Err(_) => Err(HubError::Setting { name, expected: "UTF-8 text".into(), found: "other bytes".into() }),
        }
    }

    /// The first of `names` that is set and not empty, as a path with a leading `~` expanded.
    fn path(&self, names: &[&str]) -> Result<Option<PathBuf>> {
        let Some((name, value)) = self.first(names) else { return Ok(None) };
        let path = PathBuf::from(value);
        match path.strip_prefix("~") {
            Ok(below) => Ok(Some(self.home_for(&name)?.join(below))),
            Err(_) => Ok(Some(path)),
        }
    }

    fn flag(&self, names: &[&str]) -> Result<bool> {
        let Some((name, text)) = self.text(names)? else { return Ok(false) };
        match text.to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Ok(true),
            "0" | "false" | "no" | "off" => Ok(false),
            _ => {
                Err(HubError::Setting { name, expected: "1 or 0".into(), found: format!("`{}`", text.escape_debug()) })
            }
        }
    }

    fn hugging_face_home(&self) -> Result<PathBuf> {
        if let Some(home) = self.path(&["HF_HOME"])? {
            return Ok(home);
        }
        let caches = match self.path(&["XDG_CACHE_HOME"])? {
            Some(caches) => caches,
            None => self.home_for("HF_HOME")?.join(".cache"),
        };
        Ok(caches.join("huggingface"))
    }

    fn token(&self, home: &Path) -> Result<Option<Token>> {
        if let Some((name, text)) = self.text(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])? {
            return Token::new(&name, &text);
        }
        let path = self.path(&["HF_TOKEN_PATH"])?.unwrap_or_else(|| home.join("token"));
        match fs::read_to_string(&path) {
            Ok(text) => Token::new(&path.display().to_string(), &text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(HubError::Setting {
                name: path.display().to_string(),
                expected: "a readable file with a token, or none".into(),
                found: error.to_string(),
            }),
        }
    }

    fn home_for(&self, name: &str) -> Result<&Path> {
        self.user_home.as_deref().ok_or_else(|| HubError::Setting {
            name: name.to_owned(),
            expected: "a directory, since the user has no home directory".into(),
            found: "nothing".into(),
        })
    }

    fn first(&self, names: &[&str]) -> Option<(String, OsString)> {
        let set =
            |name: &&str| (self.variable)(name).filter(|value| !value.is_empty()).map(|v| ((*name).to_owned(), v));
        names.iter().find_map(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Result<Settings> {
        let find = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        Settings::from_variables(&find, Some("/home/u".into()))
    }

    fn cache(pairs: &[(&str, &str)]) -> PathBuf {
        settings(pairs).expect("settings").cache
    }

    #[test]
    fn the_cache_is_where_python_looks() {
        assert_eq!(cache(&[]), Path::new("/home/u/.cache/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(cache(&[("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Path::new("/h/hub"));
        assert_eq!(cache(&[("HF_HOME", "~/h")]), Path::new("/home/u/h/hub"));
        assert_eq!(cache(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")]), Path::new("/c"));
        assert_eq!(cache(&[("HUGGINGFACE_HUB_CACHE", "/old")]), Path::new("/old"));
        assert_eq!(cache(&[("HF_HUB_CACHE", ""), ("HF_HOME", "/h")]), Path::new("/h/hub"));
        let error = Settings::from_variables(&|_| None, None).expect_err("no home").to_string();
        assert!(error.contains("HF_HOME"), "{error}");
    }

    #[test]
    fn offline_flags_are_parsed() {
        for (value, offline) in [("1", true), ("TRUE", true), ("on", true), ("Yes", true), ("0", false), ("off", false)]
        {
            assert_eq!(settings(&[("HF_HUB_OFFLINE", value)]).expect("settings").offline, offline, "{value}");
        }
        assert!(settings(&[("TRANSFORMERS_OFFLINE", "1")]).expect("settings").offline);
        let error = settings(&[("HF_HUB_OFFLINE", "maybe")]).expect_err("neither").to_string();
        assert!(error.contains("HF_HUB_OFFLINE") && error.contains("`maybe`"), "{error}");
    }

    #[test]
    fn the_token_comes_from_the_environment_or_a_file_and_is_never_shown() {
        let folder = tempfile::tempdir().expect("a folder");
        let home = folder.path().to_str().expect("UTF-8");
        assert_eq!(settings(&[("HF_HOME", home)]).expect("no token").token, None);
        fs::write(folder.path().join("token"), "hf_file\n").expect("written");
        fs::write(folder.path().join("other"), "hf_other").expect("written");
        let other = folder.path().join("other").display().to_string();
        for (pairs, expected) in [
            (vec![("HF_HOME", home)], "hf_file"),
            (vec![("HF_HOME", home), ("HF_TOKEN_PATH", &other)], "hf_other"),
            (vec![("HF_HOME", home), ("HUGGING_FACE_HUB_TOKEN", "hf_old")], "hf_old"),
            (vec![("HF_HOME", home), ("HUGGING_FACE_HUB_TOKEN", "hf_old"), ("HF_TOKEN", " hf_env ")], "hf_env"),
        ] {
            let settings = settings(&pairs).expect("settings");
            assert_eq!(settings.token.as_ref().map(Token::secret), Some(expected));
            assert!(!format!("{settings:?}").contains(expected));
        }
    }

    #[test]
    fn an_invalid_token_is_not_shown_in_the_error() {
        let error = settings(&[("HF_TOKEN", "hf_a\nb")]).expect_err("a line break").to_string();
        assert!(error.contains("HF_TOKEN") && !error.contains("hf_a"), "{error}");
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("token")).expect("a folder in its place");
        let home = folder.path().to_str().expect("UTF-8");
        let error = settings(&[("HF_HOME", home)]).expect_err("a folder").to_string();
        assert!(error.contains("token"), "{error}");
        assert!(settings(&[("HF_HOME", home), ("HF_HUB_OFFLINE", "1")]).is_ok());
    }
}
