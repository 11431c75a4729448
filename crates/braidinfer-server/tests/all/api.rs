//! What the server answers.

use std::time::Duration;

use crate::support::{self, Connection, Model, TestServer, config, demo, demo_with_template, greedy, wait_until, with};
use braidinfer::executor::{DeviceChoice, GpuChoice, Kernels};
use braidinfer::{LoadOptions, Prompt, SamplingParams};
use braidinfer_server::ServerConfig;
use serde_json::{Value, json};

const STORY: &str = "Once upon a time";

fn chat(content: &str) -> Value {
    json!({"messages": [{"role": "user", "content": content}], "temperature": 0})
}

#[test]
fn completions_are_what_the_library_writes() {
    let server = TestServer::shared();
    let mut llm = demo(&LoadOptions::default());
    let params = SamplingParams { max_tokens: Some(30), ignore_eos: true, ..SamplingParams::default() };
    let expected = llm.generate(&[Prompt::Text(STORY.into())], &params).expect("it runs").remove(0);
    let reply = server.post("/v1/completions", &greedy(STORY, 30));
    let answer = reply.json();
    assert_eq!((reply.status, &answer["choices"][0]["text"]), (200, &json!(expected.text)));
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let usage = &answer["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(4), &json!(30)));
    // As ids, several at once, and as a list of one.
    let ids = json!(expected.prompt_ids);
    for (prompt, count) in [(ids.clone(), 1), (json!([ids, STORY, "The dragon"]), 3), (json!([STORY]), 1)] {
        let answer = server.post("/v1/completions", &with(greedy("", 30), json!({"prompt": prompt}))).json();
        let choices = answer["choices"].as_array().expect("choices are a list");
        assert_eq!((choices.len(), &choices[0]["text"]), (count, &json!(expected.text)));
        assert_eq!(choices[count - 1]["index"], count - 1);
    }
}

#[test]
fn answers_end_at_tokens_that_were_named() {
    let server = TestServer::shared();
    let params = SamplingParams { max_tokens: Some(30), ignore_eos: true, ..SamplingParams::default() };
    let mut llm = demo(&LoadOptions::default());
    let whole = llm.generate(&[Prompt::Text(STORY.into())], &params).expect("it runs").remove(0);
    let stop = whole.ids[9];
    let end = whole.ids.iter().position(|id| *id == stop).expect("it is there");
    let answer = server.post("/v1/completions", &with(greedy(STORY, 30), json!({"stop_token_ids": [stop]}))).json();
    let (choice, usage) = (&answer["choices"][0], &answer["usage"]["completion_tokens"]);
    assert_eq!((&choice["finish_reason"], usage), (&json!("stop"), &json!(end + 1)));
    let text = llm.tokenizer().expect("it has one").decode(&whole.ids[..end], true).expect("they are tokens");
    assert_eq!(choice["text"].as_str().map(str::trim), Some(text.trim()), "without the token that ended it");
    for (ids, says) in [(json!([999_999]), "below the vocabulary size"), (json!("x"), "invalid type")] {
        let error = server.post("/v1/completions", &with(greedy(STORY, 1), json!({"stop_token_ids": ids}))).error().1;
        assert_eq!(error["param"], "stop_token_ids");
        assert!(error["message"].as_str().is_some_and(|message| message.contains(says)), "{error}");
    }
}

#[test]
fn streams_add_up_to_the_whole() {
    let server = TestServer::shared();
    for (path, body) in [
        ("/v1/completions", with(greedy(STORY, 40), json!({"stop": ["moon", "."], "logprobs": 1}))),
        ("/v1/chat/completions", with(chat("Tell me a story about a fox."), json!({"max_tokens": 40, "n": 2}))),
        ("/v1/completions", with(greedy(STORY, 6), json!({"echo": true, "logprobs": 2, "n": 2}))),
    ] {
        let whole = server.post(path, &body).json();
        let streamed = with(body, json!({"stream": true, "stream_options": {"include_usage": true}}));
        let reply = server.post(path, &streamed);
        assert_eq!(reply.header("content-type"), Some("text/event-stream"));
        let mut events = reply.events();
        let usage = events.pop().expect("the last part tells what was used");
        assert_eq!((&usage["choices"], &usage["usage"]["total_tokens"]), (&json!([]), &whole["usage"]["total_tokens"]));
        assert!(events.iter().all(|event| event["usage"].is_null() && event["id"] == events[0]["id"]));
        for choice in whole["choices"].as_array().expect("choices are a list") {
            let own: Vec<&Value> =
                events.iter().map(|event| &event["choices"][0]).filter(|own| own["index"] == choice["index"]).collect();
            let piece =
                |own: &&Value| own["text"].as_str().or(own["delta"]["content"].as_str()).unwrap_or("").to_owned();
            let text: String = own.iter().map(piece).collect();
            let expected = choice["text"].as_str().or(choice["message"]["content"].as_str());
            assert_eq!(Some(text.as_str()), expected);
            let reasons: Vec<&str> = own.iter().filter_map(|own| own["finish_reason"].as_str()).collect();
            assert_eq!(reasons, [choice["finish_reason"].as_str().expect("it ended")]);
            let tokens = |own: &&Value| own["logprobs"]["tokens"].as_array().cloned().unwrap_or_default();
            let told: Vec<Value> = own.iter().flat_map(tokens).collect();
            assert_eq!(told, tokens(&choice));
        }
    }
}

#[test]
fn prompts_are_repeated_and_scored() {
    let server = TestServer::shared();
    let body = with(greedy(STORY, 0), json!({"echo": true, "logprobs": 1}));
    let answer = server.post("/v1/completions", &body).json();
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &answer["usage"]["completion_tokens"]), (&json!(STORY), &json!(0)));
    let logprobs = &choice["logprobs"];
    let told = logprobs["token_logprobs"].as_array().expect("they are told");
    assert_eq!((told.len(), &told[0]), (4, &Value::Null));
    assert!(told[1..].iter().all(|logprob| logprob.as_f64().is_some_and(|logprob| logprob < 0.0)));
    assert_eq!((&logprobs["text_offset"], &logprobs["tokens"][1]), (&json!([0, 4, 9, 11]), &json!(" upon")));
    // Special tokens are not part of the text, in which the others have their places.
    let mut ids = server.post("/tokenize", &json!({"prompt": STORY})).json()["tokens"].clone();
    ids.as_array_mut().expect("a list").insert(0, json!(0));
    let answer = server.post("/v1/completions", &with(body, json!({"prompt": ids, "max_tokens": 1}))).json();
    let choice = &answer["choices"][0];
    assert!(choice["text"].as_str().is_some_and(|text| text.starts_with(STORY)), "{choice}");
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 0, 4, 9, 11, STORY.len()]));
}

#[test]
fn chats_tell_probabilities_by_bytes() {
    let server = TestServer::shared();
    let body = with(chat("Hello"), json!({"max_tokens": 5, "logprobs": true, "top_logprobs": 3}));
    let answer = server.post("/v1/chat/completions", &body).json();
    let content = answer["choices"][0]["logprobs"]["content"].as_array().expect("they are told").clone();
    let bytes: Vec<u8> = content
        .iter()
        .flat_map(|token| token["bytes"].as_array().expect("bytes are a list"))
        .map(|byte| byte.as_u64().and_then(|byte| byte.try_into().ok()).expect("a byte"))
        .collect();
    assert_eq!(Some(String::from_utf8_lossy(&bytes).as_ref()), answer["choices"][0]["message"]["content"].as_str());
    for token in content {
        let top = token["top_logprobs"].as_array().expect("they are told");
        assert_eq!((top.len(), &top[0]["token"]), (3, &token["token"]), "greedy takes the likeliest");
    }
}

#[test]
fn seeds_repeat_and_parts_of_messages_add_up() {
    let server = TestServer::shared();
    let ask = |fields: Value| {
        let body = with(chat("Tell me a story."), json!({"temperature": 1.0, "max_tokens": 24, "n": 2}));
        let answer = server.post("/v1/chat/completions", &with(body, fields)).json();
        [0, 1].map(|choice| answer["choices"][choice]["message"]["content"].clone())
    };
    let [first, second] = ask(json!({"seed": 5}));
    assert_ne!(first, second);
    assert_eq!(ask(json!({"seed": 5})), [first.clone(), second.clone()]);
    assert_eq!(ask(json!({"seed": 6}))[0], second, "each next answer has the next seed");
    assert_ne!(ask(json!({"seed": -5}))[0], first);
    let parts = json!([{"role": "developer", "content": "Be kind."}, {"role": "user", "content": [
        {"type": "text", "text": "Tell me "}, {"type": "text", "text": "a story."}]}]);
    let whole = json!([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Tell me a story."}]);
    assert_eq!(ask(json!({"seed": 5, "messages": parts})), ask(json!({"seed": 5, "messages": whole})));
}

#[test]
fn answers_can_be_sent_back_as_they_came() {
    let server = TestServer::shared();
    let first = server.post("/v1/chat/completions", &with(chat("Hello"), json!({"max_tokens": 8}))).json();
    let message = with(first["choices"][0]["message"].clone(), json!({"audio": null, "annotations": []}));
    let messages = json!([{"role": "user", "content": "Hello"}, message, {"role": "user", "content": "More."}]);
    let body = json!({"messages": messages, "max_tokens": 4, "tools": [], "store": false, "parallel_tool_calls": true});
    let reply = server.request(
        "POST",
        "/v1/chat/completions",
        &[("content-type", "application/json"), ("x-request-id", "mine")],
        body.to_string().as_bytes(),
    );
    assert_eq!((reply.status, &reply.json()["id"]), (200, &json!("chatcmpl-mine")), "{}", reply.text);
}

#[test]
fn tools_are_described_where_the_template_has_no_place_for_them() {
    let server = TestServer::shared();
    let tool = json!({"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {"zone": {"enum": ["UTC"]}},
        "required": ["zone"], "additionalProperties": false}}});
    let ask = |fields: Value| server.post("/v1/chat/completions", &with(chat("How late is it?"), fields)).json();
    let tokens = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().expect("it is counted");
    let plain = ask(json!({"max_tokens": 1}));
    let offered = ask(json!({"max_tokens": 1, "tools": [tool]}));
    assert!(tokens(&offered) > tokens(&plain) + 50, "{offered}");
    let forced = ask(json!({"max_tokens": 120, "tools": [tool], "tool_choice": "required"}));
    let call = &forced["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!(call["name"], "time", "{forced}");
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().expect("a text")).expect("of JSON");
    assert_eq!(arguments, json!({"zone": "UTC"}));
    let unused = ask(json!({"max_tokens": 1, "tools": [tool], "tool_choice": "none"}));
    assert_eq!(tokens(&unused), tokens(&plain));
}

const TOOL_TEMPLATE: &str = "\
{%- if tools %}{{ tools | tojson }} call with <tool_call>{% endif -%}
{%- for message in messages %}{{ message.role }}: {{ message.content or '' }}
{%- for call in message.tool_calls or [] %}{{ call.id }} {{ call.function.name }} {{ call.function.arguments.place }}{% endfor %}
{%- if message.tool_call_id %} answers {{ message.tool_call_id }}{% endif %}
{% endfor %}";

#[test]
fn tools_are_offered_called_and_answered() {
    let (_folder, llm) = demo_with_template(TOOL_TEMPLATE);
    let server = TestServer::start(config(), Model::Given(Box::new(llm)));
    let parameters = json!({"type": "object", "properties": {"place": {"$ref": "#/$defs/City"}}, "$defs": {"City": {"enum": ["Rome", "Oslo"]}},
        "required": ["place"], "additionalProperties": false});
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    let tools = json!([tool("weather"), tool("time")]);
    let ask = |fields: Value| {
        let body = with(chat("Is it cold?"), json!({"tools": tools, "max_tokens": 120, "temperature": 1, "seed": 2}));
        server.post("/v1/chat/completions", &with(body, fields))
    };
    let named = json!({"type": "function", "function": {"name": "time"}});
    for (choice, names) in [(json!("required"), ["weather", "time"]), (named, ["time", "time"])] {
        let whole = ask(json!({"tool_choice": choice})).json();
        let answer = &whole["choices"][0];
        let call = &answer["message"]["tool_calls"][0];
        assert_eq!((&answer["finish_reason"], &answer["message"]["content"]), (&json!("tool_calls"), &Value::Null));
        assert!(names.iter().any(|name| call["function"]["name"] == **name), "{whole}");
        let arguments: Value =
            serde_json::from_str(call["function"]["arguments"].as_str().expect("a text")).expect("of JSON");
        assert!(["Rome", "Oslo"].iter().any(|place| arguments["place"] == **place), "{arguments}");
        assert_eq!(call["id"].as_str().map(str::len), Some(9));
        let events = ask(json!({"tool_choice": choice, "stream": true})).events();
        let streamed: Vec<&Value> =
            events.iter().filter_map(|event| event["choices"][0]["delta"]["tool_calls"].get(0)).collect();
        let first = json!({"name": call["function"]["name"], "arguments": ""});
        assert_eq!((&streamed[0]["index"], &streamed[0]["function"]), (&json!(0), &first));
        assert_eq!(streamed[0]["id"].as_str().map(str::len), Some(9));
        let pieces: String = streamed.iter().filter_map(|call| call["function"]["arguments"].as_str()).collect();
        assert_eq!(call["function"]["arguments"], pieces);
        assert!(streamed.len() > 3 && streamed[1..].iter().all(|call| call["index"] == 0 && call["id"].is_null()));
        let reasons: Vec<&str> =
            events.iter().filter_map(|event| event["choices"][0]["finish_reason"].as_str()).collect();
        assert_eq!(reasons, ["tool_calls"]);
    }
    let bare = json!({"type": "function", "function": {"name": "time"}});
    let two = r#"(<tool_call>\{"name": "time", "arguments": \{"x": 1\.0\}\}</tool_call>){2}"#;
    for (parallel, expected) in [(true, 2), (false, 1)] {
        let form =
            json!({"structured_outputs": {"regex": two}, "parallel_tool_calls": parallel, "tool_choice": "auto"});
        let answer = ask(with(form, json!({"max_tokens": 300, "tools": [bare]}))).json()["choices"][0].clone();
        let calls = answer["message"]["tool_calls"].as_array().expect("it calls").clone();
        assert_eq!((calls.len(), &answer["finish_reason"]), (expected, &json!("tool_calls")), "{answer}");
        assert_eq!(calls[0]["function"]["arguments"], "{\"x\": 1.0}", "as it was written");
    }
    let tokens = |reply: support::Reply| reply.json()["usage"]["prompt_tokens"].as_u64().expect("a number");
    let (with_tools, without) = (tokens(ask(json!({}))), tokens(ask(json!({"tool_choice": "none"}))));
    assert!(with_tools > without + 20, "{with_tools} {without}");
    let call = json!({"id": "abcdefghi", "type": "function", "function": {"name": "time", "arguments": "{\"place\": \"Oslo\"}"}});
    let messages = json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "12"}]);
    let encoded = server.post("/tokenize", &json!({"messages": messages})).json();
    let text = server.post("/detokenize", &json!({"tokens": encoded["tokens"]})).json();
    assert_eq!(text["prompt"], "user: xassistant: abcdefghi time Oslotool: 12 answers abcdefghi");
    let unknown = json!({"type": "function", "function": {"name": "fly"}});
    assert_eq!(ask(json!({"tool_choice": unknown})).error().1["param"], "tool_choice");
    assert_eq!(ask(json!({"tool_choice": "required", "response_format": {"type": "json_object"}})).status, 400);
}

#[test]
fn what_means_nothing_here_is_refused_by_name() {
    let server = TestServer::shared();
    let long = "x ".repeat(3000);
    for (path, body, status, param, says) in [
        ("/v1/completions", with(greedy(STORY, 1), json!({"suffix": "x"})), 400, "suffix", "to fill in the middle"),
        ("/v1/completions", with(greedy(STORY, 1), json!({"best_of": 2})), 400, "best_of", "no such field"),
        ("/v1/completions", with(greedy(STORY, 1), json!({"top_p": 0})), 400, "top_p", "above 0"),
        (
            "/v1/completions",
            with(greedy(STORY, 1), json!({"temperature": "hot"})),
            400,
            "temperature",
            "expected a number",
        ),
        ("/v1/completions", with(greedy(STORY, 1), json!({"max_tokens": -2})), 400, "max_tokens", "-1 or more"),
        ("/v1/completions", with(greedy(STORY, 1), json!({"n": 1000})), 400, "n", "from 1 to"),
        ("/v1/completions", with(greedy(STORY, 1), json!({"max_tokens": 0})), 400, "max_tokens", "at least 1"),
        ("/v1/completions", with(greedy(STORY, 1), json!({"stop": "x".repeat(2000)})), 400, "stop", "1024 bytes"),
        ("/v1/completions", with(greedy(STORY, 1), json!({"stop": [""]})), 400, "stop", "at least one character"),
        ("/v1/completions", with(greedy(STORY, 1), json!({"logprobs": 21})), 400, "logprobs", "at most 20"),
        ("/v1/completions", with(greedy(STORY, 1), json!({"logit_bias": {"x": 1}})), 400, "logit_bias", "token ids"),
        ("/v1/completions", with(greedy(STORY, 1), json!({"logit_bias": {"99999": 1}})), 400, "logit_bias", "below"),
        ("/v1/completions", with(greedy(STORY, 1), json!({"prompt": [1, "a"]})), 400, "prompt", "found both"),
        ("/v1/completions", with(greedy(STORY, 1), json!({"prompt": []})), 400, "prompt", "at least one"),
        ("/v1/completions", with(greedy(STORY, 1), json!({"prompt": [999_999]})), 400, "prompt", "below"),
        ("/v1/completions", with(greedy(STORY, 1), json!({"prompt": [-1]})), 400, "prompt[0]", "invalid type"),
        ("/v1/completions", with(greedy(STORY, 1), json!({"model": "gpt"})), 404, "model", "expected `demo`"),
        ("/v1/completions", with(greedy(STORY, 1), json!({"stream_options": {}})), 400, "stream_options", "`stream`"),
        (
            "/v1/completions",
            with(greedy(STORY, 1), json!({"stream": true, "stream_options": {"usage": true}})),
            400,
            "stream_options.usage",
            "no such field",
        ),
        ("/v1/chat/completions", with(chat("x"), json!({"tool_choice": "required"})), 400, "tool_choice", "found none"),
        (
            "/v1/chat/completions",
            with(chat("x"), json!({"logprobs": true, "top_logprobs": 21})),
            400,
            "top_logprobs",
            "20",
        ),
        ("/v1/chat/completions", json!({"messages": []}), 400, "messages", "at least one"),
        ("/v1/completions", with(greedy(STORY, 1), json!({"guided_choice": []})), 400, "guided_choice", "at least one"),
        (
            "/v1/completions",
            with(greedy(STORY, 1), json!({"structured_outputs": {"choice": []}})),
            400,
            "structured_outputs.choice",
            "at least one",
        ),
        ("/v1/chat/completions", json!({}), 400, "", "missing field `messages`"),
        ("/v1/chat/completions", with(chat("x"), json!({"top_logprobs": 2})), 400, "top_logprobs", "`logprobs`"),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "wizard", "content": "x"}]}),
            400,
            "messages[0].role",
            "`wizard`",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
            400,
            "messages[0].content[0].image_url",
            "reads nothing else",
        ),
        ("/v1/chat/completions", with(chat(&long), json!({})), 400, "", "context"),
        ("/detokenize", json!({"tokens": [999_999]}), 400, "tokens", "below"),
        ("/tokenize", json!({}), 400, "prompt", "either"),
    ] {
        let (found, error) = server.post(path, &body).error();
        assert_eq!(found, status, "{body:.200}: {error}");
        assert_eq!(error["param"].as_str().unwrap_or_default(), param, "{error}");
        assert!(error["message"].as_str().is_some_and(|message| message.contains(says)), "{says}: {error}");
    }
    let too_long = server.post("/v1/chat/completions", &chat(&long)).error().1;
    assert_eq!(too_long["code"], "context_length_exceeded");
}

#[test]
fn who_asks_a_model_to_reason_that_does_not_is_told() {
    let server = TestServer::shared();
    for (fields, says) in [
        (json!({"reasoning_effort": "high"}), Some("reasoning")),
        (json!({"enable_thinking": true}), Some("reasoning")),
        (json!({"thinking_budget": 5}), Some("reasoning")),
        (json!({"reasoning_effort": "none"}), None),
        (json!({"enable_thinking": false}), None),
    ] {
        let reply =
            server.post("/v1/chat/completions", &with(chat("x"), with(json!({"max_tokens": 1}), fields.clone())));
        assert_eq!((reply.status, reply.header("x-braidinfer-ignored")), (200, says), "{fields}");
    }
}

#[test]
fn lenient_servers_ignore_and_say_so() {
    let server = TestServer::start(ServerConfig { lenient: true, ..config() }, Model::Demo(LoadOptions::default()));
    let body = with(greedy(STORY, 2), json!({"best_of": 2, "stream_options": {"usage": 1}, "stream": true}));
    let reply = server.post("/v1/completions", &body);
    assert_eq!((reply.status, reply.header("x-braidinfer-ignored")), (200, Some("best_of, stream_options.usage")));
}

#[test]
fn answers_have_the_form_that_was_asked_for() {
    let server = TestServer::shared();
    let schema = json!({"type": "object", "required": ["ok", "n"], "additionalProperties": false,
        "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 1, "maximum": 9}}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
    let asked = json!({"response_format": format, "temperature": 1, "seed": 3, "max_tokens": 100});
    let answer = server.post("/v1/chat/completions", &with(chat("Hello"), asked)).json();
    let text = answer["choices"][0]["message"]["content"].as_str().expect("it is a text").to_owned();
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(value["ok"].is_boolean() && value["n"].as_u64().is_some_and(|n| (1..=9).contains(&n)), "{text}");
    for (outputs, fits) in [
        (json!({"choice": ["yes", "n\"o"]}), (|text| ["yes", "n\"o"].contains(&text)) as fn(&str) -> bool),
        (json!({"regex": "[0-9]{4}"}), |text| text.len() == 4 && text.parse::<u16>().is_ok()),
        (json!({"grammar": "start: \"a\"+ \"b\""}), |text| text.trim_start_matches('a') == "b"),
    ] {
        let body = with(greedy(STORY, 60), json!({"structured_outputs": outputs, "ignore_eos": false}));
        let answer = server.post("/v1/completions", &body).json();
        let choice = &answer["choices"][0];
        assert!(choice["text"].as_str().is_some_and(fits) || choice["finish_reason"] == "length", "{answer}");
    }
    for (fields, param) in [
        (json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "wizard"}}}}),
            "response_format",
        ),
        (json!({"structured_outputs": {"regex": "a", "choice": ["b"]}}), "structured_outputs"),
        (json!({"structured_outputs": {"regex": "[a"}}), "structured_outputs"),
    ] {
        let (status, error) = server.post("/v1/completions", &with(greedy(STORY, 2), fields)).error();
        assert_eq!((status, &error["param"]), (400, &json!(param)), "{error}");
    }
}

#[test]
fn vectors_come_in_order_and_in_two_spellings() {
    let server = TestServer::shared();
    let ask = |fields: Value| server.post("/v1/embeddings", &fields).json();
    let one = ask(json!({"input": STORY}));
    let values: Vec<f64> =
        one["data"][0]["embedding"].as_array().expect("a list").iter().filter_map(Value::as_f64).collect();
    let length: f64 = values.iter().map(|value| value * value).sum();
    assert!((length - 1.0).abs() < 1e-5 && one["usage"]["prompt_tokens"] == 4, "{length}");
    let several = ask(json!({"input": ["The dragon", STORY, "Tom"]}));
    assert_eq!(
        (&several["data"][1]["embedding"], &several["data"][1]["index"]),
        (&one["data"][0]["embedding"], &json!(1))
    );
    assert_ne!(ask(json!({"input": STORY, "pooling": "mean"}))["data"], one["data"]);
    let text = ask(json!({"input": STORY, "encoding_format": "base64"}));
    let text = text["data"][0]["embedding"].as_str().expect("a text").to_owned();
    // 192 values of 4 bytes, 3 bytes in each 4 letters.
    assert_eq!(text.len(), values.len() * 4 / 3 * 4);
    let short = ask(json!({"input": STORY, "dimensions": 8}));
    let short: Vec<f64> =
        short["data"][0]["embedding"].as_array().expect("a list").iter().filter_map(Value::as_f64).collect();
    let first: f64 = values[..8].iter().map(|value| value * value).sum::<f64>().sqrt();
    assert_eq!(short.len(), 8);
    assert!(short.iter().zip(&values).all(|(short, whole)| (short - whole / first).abs() < 1e-6), "{short:?}");
    for (fields, param) in [
        (json!({"input": STORY, "pooling": "max"}), "pooling"),
        (json!({"input": STORY, "encoding_format": "hex"}), "encoding_format"),
        (json!({"input": STORY, "dimensions": 0}), "dimensions"),
        (json!({"input": STORY, "dimensions": 193}), "dimensions"),
        (json!({"input": []}), "input"),
        (json!({"input": [999_999]}), "input"),
    ] {
        assert_eq!(server.post("/v1/embeddings", &fields).error().1["param"], param);
    }
}

#[test]
fn tokens_go_both_ways() {
    let server = TestServer::shared();
    let tokens = server.post("/tokenize", &json!({"prompt": STORY})).json();
    assert_eq!((&tokens["count"], &tokens["max_model_len"]), (&json!(4), &json!(512)));
    let text = server.post("/detokenize", &json!({"tokens": tokens["tokens"], "model": "demo"})).json();
    assert_eq!(text["prompt"], STORY);
    let chat = server.post("/tokenize", &json!({"messages": [{"role": "user", "content": "Hello"}]})).json();
    assert!(chat["count"].as_u64().is_some_and(|count| count > 3), "{chat}");
}

#[test]
fn models_verdicts_and_states_are_told() {
    let server = TestServer::shared();
    let models = server.get("/v1/models").json();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("demo")));
    assert_eq!(server.get("/v1/models/demo").json()["id"], "demo");
    assert_eq!(server.get("/v1/models/other").error().0, 404);
    assert_eq!(server.get("/v1/compat").json()["status"], "COMPATIBLE");
    assert_eq!((server.get("/health").status, server.get("/ready").status), (200, 200));
    assert_eq!(server.get("/nothing/here").error().0, 404);
    assert_eq!(server.request("DELETE", "/v1/models", &[], b"").error().0, 405);
    let page = server.get("/");
    assert!(page.text.contains("<!doctype html>") || page.text.contains("<!DOCTYPE html>"), "{:.200}", page.text);
    assert!(page.header("content-security-policy").is_some_and(|policy| policy.contains("default-src 'none'")));
}

#[test]
fn a_server_without_a_model_is_healthy_and_not_ready() {
    let server = TestServer::start(config(), Model::None);
    assert_eq!((server.get("/health").status, server.get("/").status), (200, 200));
    for reply in [server.get("/ready"), server.post("/v1/completions", &greedy(STORY, 1)), server.get("/metrics")] {
        assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")), "{}", reply.text);
    }
}

#[test]
fn metrics_say_what_computes() {
    let text = TestServer::shared().get("/metrics").text;
    let of_device = |text: &str| text.lines().filter(|line| line.starts_with("braidinfer_device{")).count();
    assert!(text.contains("device=\"cpu\"} 1") && of_device(&text) == 1, "{text}");
    assert!(
        text.lines().any(|line| line.starts_with("braidinfer_gpu_memory_bytes{") && line.ends_with("} 0")),
        "{text}"
    );
    if std::env::var_os("BRAIDINFER_TEST_GPU").is_none() {
        return;
    }
    let device = DeviceChoice::Gpu(vec![GpuChoice::Best]);
    let options = LoadOptions { device, kernels: Kernels::Fused, force: true, ..LoadOptions::default() };
    let text = TestServer::start(config(), Model::Demo(options)).get("/metrics").text;
    assert!(!text.contains("device=\"cpu\"") && of_device(&text) == 1, "{text}");
    assert!(
        !text.lines().any(|line| line.starts_with("braidinfer_gpu_memory_bytes{") && line.ends_with("} 0")),
        "{text}"
    );
}

#[test]
fn keys_open_everything_but_the_page_and_the_state() {
    let keys = vec!["first".to_owned(), "second".to_owned()];
    let server = TestServer::start(ServerConfig { api_keys: keys, ..config() }, Model::Demo(LoadOptions::default()));
    let with_key = |header: &str| server.request("GET", "/v1/models", &[("authorization", header)], b"").status;
    assert_eq!([with_key("Bearer first"), with_key("bearer second")], [200, 200]);
    assert_eq!([with_key("Bearer firs"), with_key("Bearer "), with_key("first"), with_key("Basic first")], [401; 4]);
    let reply = server.get("/metrics");
    assert_eq!((reply.status, reply.header("www-authenticate")), (401, Some("Bearer")));
    assert_eq!(server.post("/v1/completions", &greedy(STORY, 1)).error().1["code"], "invalid_api_key");
    for path in ["/", "/health", "/ready", "/style.css"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
}

#[test]
fn pages_of_other_origins_may_ask_only_where_that_is_set() {
    let ask = |server: &TestServer, origin: &str| {
        let reply = server.request("GET", "/v1/models", &[("origin", origin)], b"");
        reply.header("access-control-allow-origin").map(str::to_owned)
    };
    assert_eq!(ask(TestServer::shared(), "https://a.example"), None);
    let origins = vec!["https://a.example".to_owned()];
    let keys = vec!["key".to_owned()];
    let config = ServerConfig { cors_origins: origins, api_keys: keys, ..config() };
    let server = TestServer::start(config, Model::Demo(LoadOptions::default()));
    assert_eq!(ask(&server, "https://a.example").as_deref(), Some("https://a.example"));
    assert_eq!(ask(&server, "https://b.example"), None);
    // What browsers ask first comes without a key.
    let headers = [
        ("origin", "https://a.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization"),
    ];
    assert_eq!(server.request("OPTIONS", "/v1/chat/completions", &headers, b"").status, 200);
}

#[test]
fn pages_that_pass_for_our_own_are_refused() {
    let ask = |server: &TestServer, host: &str, more: &str| {
        let mut connection = Connection::open(server.address);
        connection
            .send(format!("GET /v1/models HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{more}\r\n").as_bytes());
        connection.reply().expect("the server answers").status
    };
    let server = TestServer::shared();
    assert_eq!(
        [ask(server, "localhost:1", ""), ask(server, "127.0.0.1", ""), ask(server, "evil.example", "")],
        [200, 200, 403]
    );
    let keys = vec!["key".to_owned()];
    let server = TestServer::start(ServerConfig { api_keys: keys, ..config() }, Model::Demo(LoadOptions::default()));
    assert_eq!(ask(&server, "my.name", "authorization: Bearer key\r\n"), 200);
}

#[test]
fn requests_keep_their_names() {
    let server = TestServer::shared();
    let named = |name: &str| {
        let reply = server.request("GET", "/health", &[("x-request-id", name)], b"");
        reply.header("x-request-id").expect("every answer has one").to_owned()
    };
    assert_eq!(named("my-request-1"), "my-request-1");
    let own = [named(""), named(&"x".repeat(200)), named("two words"), named("")];
    assert!(own.iter().all(|name| name.len() == 16) && own[0] != own[3], "{own:?}");
}

#[test]
fn a_full_queue_is_429_and_says_when_to_try_again() {
    let options = LoadOptions { max_sequences: 1, max_waiting: 1, ..LoadOptions::default() };
    let server = TestServer::start(config(), Model::Demo(options));
    let long = with(greedy(STORY, 400), json!({"stream": true}));
    let open = || {
        let mut connection = Connection::open(server.address);
        let body = long.to_string();
        let head =
            "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length:";
        connection.send(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes());
        connection
    };
    let running = open();
    server.wait_for("vllm:num_requests_running", |running| running >= 1.0, "the first request never runs");
    let waiting: Vec<Connection> = (0..4).map(|_| open()).collect();
    let statuses: Vec<u16> = waiting
        .into_iter()
        .map(|mut connection| {
            let line = connection.line().expect("the server answers");
            if line.contains("429") {
                let lines: Vec<String> = std::iter::from_fn(|| connection.line()).take_while(|l| l != "\r\n").collect();
                assert!(lines.iter().any(|line| line.starts_with("retry-after: 1")), "{lines:?}");
            }
            line.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status")
        })
        .collect();
    assert!(statuses.contains(&429) && statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    drop(running);
}

#[test]
fn bodies_that_are_too_large_or_no_json_are_refused() {
    let server =
        TestServer::start(ServerConfig { max_body_bytes: 1000, ..config() }, Model::Demo(LoadOptions::default()));
    assert_eq!(server.post("/v1/completions", &greedy(&"x".repeat(2000), 1)).error().0, 413);
    let reply = server.request("POST", "/v1/completions", &[("content-type", "text/plain")], b"{}");
    assert_eq!(reply.error().0, 415);
    let charset = [("content-type", "application/json; charset=utf-8")];
    let body = greedy(STORY, 1).to_string();
    assert_eq!(server.request("POST", "/v1/completions", &charset, body.as_bytes()).status, 200);
}

#[test]
fn requests_that_never_arrive_are_ended() {
    let config = ServerConfig { read_timeout: Duration::from_millis(300), ..config() };
    let server = TestServer::start(config, Model::Demo(LoadOptions::default()));
    // A head without end, and a body without end.
    let mut head = Connection::open(server.address);
    head.send(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-slow: ");
    assert!(head.reply().is_none_or(|reply| reply.status == 408));
    let mut body = Connection::open(server.address);
    body.send(
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{",
    );
    assert_eq!(body.reply().expect("the server says so").status, 408);
}

#[test]
fn clients_that_read_nothing_lose_their_connection() {
    let config = ServerConfig { write_timeout: Duration::from_millis(200), ..config() };
    let server = TestServer::start(config, Model::Demo(LoadOptions::default()));
    // More than the system keeps of what nobody reads.
    let mut client = asking(&server, &with(greedy(STORY, 100), json!({"n": 100, "logprobs": 20, "stream": true})));
    let of_abort = |line: &&str| line.contains("finish_reason=\"abort\"");
    let was_ended = || server.get("/metrics").text.lines().find(of_abort).is_some_and(|line| !line.ends_with(" 0"));
    assert!(wait_until(was_ended), "the request goes on");
    assert!(client.reply().is_none(), "the connection ends before the answer does");
}

#[test]
fn answers_that_take_too_long_are_ended() {
    let config = ServerConfig { request_timeout: Duration::from_millis(400), ..config() };
    let server = TestServer::start(config, Model::Demo(LoadOptions::default()));
    let long = with(greedy(STORY, 400), json!({"n": 128, "logprobs": 20}));
    let (status, error) = server.post("/v1/completions", &long).error();
    assert_eq!((status, &error["code"]), (504, &json!("timeout")));
    let events = server.post("/v1/completions", &with(long, json!({"stream": true}))).events();
    assert_eq!(events.last().expect("there is one")["error"]["code"], "timeout");
}

#[test]
fn a_stream_that_fails_before_its_first_token_has_the_status_of_its_error() {
    let config = ServerConfig { request_timeout: Duration::from_millis(1), ..config() };
    let server = TestServer::start(config, Model::Demo(LoadOptions::default()));
    // To read it takes longer than that.
    let long = greedy(&STORY.repeat(60), 5);
    let (status, error) = server.post("/v1/completions", &with(long, json!({"stream": true}))).error();
    assert_eq!((status, &error["code"]), (504, &json!("timeout")));
}

/// Sends a request for completions and reads nothing.
fn asking(server: &TestServer, body: &Value) -> Connection {
    let mut connection = Connection::open(server.address);
    let body = body.to_string();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length:";
    connection.send(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes());
    connection
}

/// Sends a long streaming request and waits for its first words.
fn streaming(server: &TestServer) -> Connection {
    let mut connection = asking(server, &with(greedy(STORY, 480), json!({"stream": true})));
    while !connection.line().expect("the stream begins").starts_with("data: ") {}
    connection
}

#[test]
fn steps_are_checked_when_there_is_time() {
    let options = LoadOptions { shadow_check: 1.0, ..LoadOptions::default() };
    let server = TestServer::start(config(), Model::Demo(options));
    assert_eq!(server.post("/v1/completions", &greedy(STORY, 3)).status, 200);
    server.wait_for("braidinfer_shadow_kl_count", |count| count >= 3.0, "no step is checked");
    assert!(server.metric("braidinfer_shadow_kl_sum") < 1e-2);
    assert_eq!(server.metric("braidinfer_shadow_disagreements_total"), 0.0);
}

#[test]
fn clients_that_go_away_free_what_they_had() {
    let server = TestServer::start(config(), Model::Demo(LoadOptions::default()));
    for _ in 0..5 {
        drop(streaming(&server));
    }
    server.wait_for("vllm:num_requests_running", |running| running == 0.0, "a request that nobody reads goes on");
    assert_eq!(server.metric("vllm:kv_cache_usage_perc"), 0.0);
}

#[test]
fn a_server_that_stops_finishes_what_it_writes() {
    let server = TestServer::start(config(), Model::Demo(LoadOptions::default()));
    let mut running = streaming(&server);
    server.begin_to_stop();
    let rest: Vec<String> = std::iter::from_fn(|| running.line()).collect();
    assert!(rest.iter().any(|line| line.starts_with("data: [DONE]")), "the answer is complete");
    assert!(rest.iter().any(|line| line.contains("\"finish_reason\":\"length\"")), "and not cut");
    server.wait();
}

#[test]
fn a_server_that_must_stop_tells_those_it_cuts_off() {
    // Nothing is left for answers.
    let config = ServerConfig { shutdown_timeout: Duration::from_secs(2), ..config() };
    let server = TestServer::start(config, Model::Demo(LoadOptions::default()));
    let all: Vec<Connection> = (0..12).map(|_| streaming(&server)).collect();
    server.begin_to_stop();
    for mut running in all {
        let rest: Vec<String> = std::iter::from_fn(|| running.line()).collect();
        let told = |word: &str| rest.iter().any(|line| line.contains(word));
        assert!(told("[DONE]") && (told("the server stops") || told("\"finish_reason\":\"length\"")), "{rest:?}");
    }
    server.wait();
}
