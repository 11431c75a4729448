//! Another engine behind an OpenAI-compatible endpoint.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use braidinfer::Prompt;
use braidinfer::difference::{NamedToken, SpokenToken, Transcript, spelled};
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::Agent;

/// Number of top log-probabilities requested per position, the maximum of the completions API.
const TOP: usize = 5;
const CONNECT: Duration = Duration::from_secs(10);
/// Timeout for one complete answer of an engine that may be slow.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);
/// Environment variable with the key, the same as for the official clients of the API.
const API_KEY: &str = "OPENAI_API_KEY";

/// An endpoint that generates answers.
pub struct Endpoint {
    agent: Agent,
    /// Base URL without a trailing slash.
    url: String,
    authorization: Option<String>,
    model: String,
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
}

#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<usize>,
}

#[derive(Deserialize)]
struct Choice {
    text: String,
    logprobs: Option<Logprobs>,
}

/// Log-probabilities of a completion: some engines use the format of completions, others that of chats.
#[derive(Deserialize)]
#[serde(untagged)]
enum Logprobs {
    OfCompletion {
        tokens: Vec<String>,
        token_logprobs: Vec<Option<f64>>,
        top_logprobs: Option<Vec<Option<BTreeMap<String, f64>>>>,
    },
    OfChat {
        content: Vec<ChatToken>,
    },
}

#[derive(Deserialize)]
struct ChatToken {
    token: String,
    id: Option<u32>,
    logprob: f64,
    #[serde(default)]
    top_logprobs: Vec<ChatToken>,
}

impl Endpoint {
    /// Whether a side is a URL and not a model.
    pub fn is_url(side: &str) -> bool {
        side.starts_with("http://") || side.starts_with("https://")
    }

    /// Parses `URL[,model=NAME]`; without a name the endpoint must serve a single model.
    pub fn open(side: &str) -> anyhow::Result<Self> {
        let (url, model) = match side.split_once(',') {
            None => (side, None),
            Some((url, option)) => match option.split_once('=') {
                Some(("model", name)) => (url, Some(name.to_owned())),
                _ => bail!("{side}: expected model= after the address, found `{option}`"),
            },
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_global(Some(ANSWER_TIMEOUT))
            .build();
        let key = std::env::var(API_KEY).ok().filter(|key| !key.is_empty());
        let mut endpoint = Self {
            agent: config.into(),
            url: url.trim_end_matches('/').to_owned(),
            authorization: key.map(|key| format!("Bearer {key}")),
            model: String::new(),
        };
        endpoint.model = model.map_or_else(|| endpoint.only_model(), Ok)?;
        Ok(endpoint)
    }

    fn only_model(&self) -> anyhow::Result<String> {
        let models: Models = self.ask("models", None)?;
        let names: Vec<String> = models.data.into_iter().map(|model| model.id).collect();
        match names.as_slice() {
            [only] => Ok(only.clone()),
            _ => bail!("{}: expected ,model=NAME after the address, one of: {}", self.url, names.join(", ")),
        }
    }

    /// The greedy answer to a prompt.
    pub fn answer(&self, prompt: &Prompt, max_tokens: usize) -> anyhow::Result<Transcript> {
        let asked = match prompt {
            Prompt::Ids(ids) => json!(ids),
            Prompt::Text(_) | Prompt::Chat(_) => json!(spelled(prompt)),
        };
        let body = json!({
            "model": self.model, "prompt": asked, "max_tokens": max_tokens, "temperature": 0, "logprobs": TOP,
        });
        transcript(self.ask("completions", Some(&body))?, prompt, &self.url)
    }

    fn ask<T: for<'de> Deserialize<'de>>(&self, path: &str, body: Option<&Value>) -> anyhow::Result<T> {
        let url = format!("{}/{path}", self.url);
        let answer = match body {
            None => {
                let request = self.agent.get(&url);
                self.authorize(request).call()
            }
            Some(body) => {
                let request = self.agent.post(&url).content_type("application/json");
                self.authorize(request).send(body.to_string())
            }
        };
        let mut answer = answer.with_context(|| url.clone())?;
        let text = answer.body_mut().read_to_string().with_context(|| url.clone())?;
        if !answer.status().is_success() {
            bail!("{url}: {}: {}", answer.status(), message(&text));
        }
        serde_json::from_str(&text).with_context(|| format!("{url}: not the answer of an OpenAI-compatible endpoint"))
    }

    fn authorize<T>(&self, request: ureq::RequestBuilder<T>) -> ureq::RequestBuilder<T> {
        match &self.authorization {
            Some(authorization) => request.header("authorization", authorization),
            None => request,
        }
    }
}

fn transcript(completion: Completion, prompt: &Prompt, url: &str) -> anyhow::Result<Transcript> {
    let Some(choice) = completion.choices.into_iter().next() else {
        bail!("{url}: expected an answer, found none");
    };
    let Some(logprobs) = choice.logprobs else {
        bail!("{url}: expected `logprobs` beside the answer, found none: the engine does not tell");
    };
    Ok(Transcript {
        prompt: spelled(prompt),
        prompt_tokens: completion.usage.and_then(|usage| usage.prompt_tokens),
        tokens: without_end(logprobs.into_tokens(), &choice.text),
        text: choice.text,
    })
}

/// The message of an error response, or the beginning of the text if it is not in the API's format.
fn message(text: &str) -> String {
    const SHOWN: usize = 200;
    let parsed: Option<Value> = serde_json::from_str(text).ok();
    let said = parsed.as_ref().and_then(|value| value.pointer("/error/message")).and_then(Value::as_str);
    said.unwrap_or(text).chars().take(SHOWN).collect()
}

impl Logprobs {
    fn into_tokens(self) -> Vec<SpokenToken> {
        match self {
            Self::OfChat { content } => content.into_iter().map(ChatToken::into_spoken).collect(),
            Self::OfCompletion { tokens, token_logprobs, top_logprobs } => {
                let named = |text: String| NamedToken { text, id: None };
                let mut top = top_logprobs.unwrap_or_default().into_iter();
                let likely = move || {
                    let top = top.next().flatten().unwrap_or_default();
                    top.into_iter().map(|(text, logprob)| (named(text), logprob)).collect()
                };
                let pairs = tokens.into_iter().zip(token_logprobs).zip(std::iter::repeat_with(likely));
                let spoken = |((text, logprob), top): ((_, Option<f64>), _)| SpokenToken {
                    token: named(text),
                    logprob: logprob.unwrap_or(f64::NAN),
                    top,
                };
                pairs.map(spoken).collect()
            }
        }
    }
}

impl ChatToken {
    fn named(&self) -> (NamedToken, f64) {
        (NamedToken { text: self.token.clone(), id: self.id }, self.logprob)
    }

    fn into_spoken(self) -> SpokenToken {
        let (token, logprob) = self.named();
        SpokenToken { token, logprob, top: self.top_logprobs.iter().map(Self::named).collect() }
    }
}

/// Removes the end token, which some engines list although it is not part of the text.
fn without_end(mut tokens: Vec<SpokenToken>, text: &str) -> Vec<SpokenToken> {
    if let Some((_, before)) = tokens.split_last() {
        let spoken: String = before.iter().map(|spoken| spoken.token.text.as_str()).collect();
        if spoken == text {
            tokens.pop();
        }
    }
    tokens
}

#[cfg(test)]
mod tests {
    use braidinfer::difference::TranscriptDifference;

    use super::*;
    use crate::mutations::{changed_json, check_all, json_changes};

    fn transcript_of(completion: Value) -> Option<Transcript> {
        let completion = serde_json::from_value(completion).ok()?;
        transcript(completion, &Prompt::Text("Once".into()), "http://engine/v1").ok()
    }

    #[test]
    fn changed_answers_of_an_engine_never_panic() {
        let of_completion = json!({
            "tokens": [" upon", " a", ""], "token_logprobs": [-0.5, -1.0, null],
            "top_logprobs": [{" upon": -0.5, " in": -2.0}, null, {}],
        });
        let token = |text: &str| json!({"token": text, "id": 7, "logprob": -0.5, "top_logprobs": []});
        let of_chat = json!({"content": [token(" upon"), token(" a"), token("</s>")]});
        for logprobs in [of_completion, of_chat] {
            let choice = json!({"text": " upon a", "logprobs": logprobs});
            let answer = json!({"choices": [choice], "usage": {"prompt_tokens": 1}});
            let unchanged = || vec![transcript_of(answer.clone()).expect("the unchanged answer is one")];
            assert_eq!(unchanged()[0].tokens.len(), 2 + usize::from(unchanged()[0].text != " upon a"));
            check_all(300, json_changes(), |changes| {
                let Some(changed) = transcript_of(changed_json(&answer, changes)) else { return Ok(()) };
                let difference = TranscriptDifference::of(&unchanged(), &[changed]);
                serde_json::to_string(&difference).map(|_| ()).map_err(|error| error.to_string())
            });
        }
    }
}
