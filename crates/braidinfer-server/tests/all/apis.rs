//! Conversations with models of all families through the APIs beside OpenAI's chat completions: they say the same, whole and
//! streamed, and take back what they said.

use serde_json::{Value, json};

use crate::scripted::{ANSWER, Family, THOUGHT, families, served};
use crate::support::{Reply, config};

/// What an answer consists of.
#[derive(Debug, Default, PartialEq)]
struct Turn {
    reasoning: String,
    text: String,
    /// Names and arguments.
    calls: Vec<(String, Value)>,
    /// Whether the API says that it ends with calls.
    ends_with_calls: bool,
}

/// How an API is spoken.
struct Api {
    path: &'static str,
    /// A request about a conversation.
    body: fn(&[Value], bool) -> Value,
    /// Reads a response that is not streamed.
    whole: fn(&Value) -> Turn,
    /// Reads a stream.
    streamed: fn(&Reply) -> Turn,
    /// What a client adds to the conversation after a response: its answer, and what the tools returned.
    back: fn(&Value) -> Vec<Value>,
}

const SCHEMA: &str = r#"{"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}"#;

fn schemas() -> [(&'static str, Value); 2] {
    let of_weather = serde_json::from_str(SCHEMA).expect("it is JSON");
    [("weather", of_weather), ("time", json!({"type": "object", "properties": {}}))]
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn parsed(arguments: &str) -> Value {
    serde_json::from_str(arguments).expect("arguments are JSON")
}

const ANTHROPIC: Api = Api {
    path: "/v1/messages",
    body: |messages, stream| {
        let tools = schemas().map(|(name, schema)| json!({"name": name, "description": "d", "input_schema": schema}));
        json!({"model": "demo", "max_tokens": 900, "temperature": 0, "messages": messages, "tools": tools, "stream": stream})
    },
    whole: |message| {
        let mut turn = Turn { ends_with_calls: message["stop_reason"] == "tool_use", ..Turn::default() };
        for block in items(&message["content"]) {
            match text(&block["type"]) {
                "thinking" => turn.reasoning += text(&block["thinking"]),
                "text" => turn.text += text(&block["text"]),
                "tool_use" => turn.calls.push((text(&block["name"]).to_owned(), block["input"].clone())),
                other => panic!("a block {other}"),
            }
        }
        turn
    },
    streamed: |reply| {
        let mut turn = Turn::default();
        let mut arguments = String::new();
        let mut open = None;
        let events = reply.named_events();
        let kinds: Vec<&str> = events.iter().map(|(kind, _)| kind.as_str()).collect();
        assert_eq!((kinds[0], kinds[kinds.len() - 1]), ("message_start", "message_stop"));
        for (kind, event) in &events {
            assert_eq!(kind, text(&event["type"]));
            match kind.as_str() {
                "content_block_start" => {
                    assert_eq!(open, None, "one block at a time");
                    open = event["index"].as_u64();
                    let block = &event["content_block"];
                    if block["type"] == "tool_use" {
                        turn.calls.push((text(&block["name"]).to_owned(), json!({})));
                        arguments.clear();
                    }
                }
                "content_block_delta" => {
                    assert_eq!(open, event["index"].as_u64());
                    turn.reasoning += text(&event["delta"]["thinking"]);
                    turn.text += text(&event["delta"]["text"]);
                    arguments += text(&event["delta"]["partial_json"]);
                }
                "content_block_stop" => {
                    assert_eq!(open.take(), event["index"].as_u64());
                    if let (Some(call), false) = (turn.calls.last_mut(), arguments.is_empty()) {
                        call.1 = parsed(&std::mem::take(&mut arguments));
                    }
                }
                "message_delta" => turn.ends_with_calls = event["delta"]["stop_reason"] == "tool_use",
                _ => {}
            }
        }
        turn
    },
    back: |message| {
        let calls = items(&message["content"]).filter(|block| block["type"] == "tool_use");
        let result = |call: &Value| json!({"type": "tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": "18 degrees"}]});
        let results: Vec<Value> = calls.map(result).collect();
        vec![json!({"role": "assistant", "content": message["content"]}), json!({"role": "user", "content": results})]
    },
};

const OLLAMA: Api = Api {
    path: "/api/chat",
    body: |messages, stream| {
        let tools = schemas().map(|(name, schema)| {
            json!({"type": "function", "function": {"name": name, "description": "d", "parameters": schema}})
        });
        let options = json!({"temperature": 0, "num_predict": 900});
        json!({"model": "demo", "messages": messages, "tools": tools, "stream": stream, "options": options})
    },
    whole: |answer| {
        let mut turn = Turn::default();
        add_line(&mut turn, answer);
        turn
    },
    streamed: |reply| {
        let mut turn = Turn::default();
        let lines = reply.lines();
        let (last, parts) = lines.split_last().expect("there is a last line");
        assert!(last["done"] == true && parts.iter().all(|part| part["done"] == false));
        lines.iter().for_each(|line| add_line(&mut turn, line));
        turn
    },
    back: |answer| {
        let result =
            |call: &Value| json!({"role": "tool", "tool_name": call["function"]["name"], "content": "18 degrees"});
        let results = items(&answer["message"]["tool_calls"]).map(result);
        std::iter::once(answer["message"].clone()).chain(results).collect()
    },
};

fn add_line(turn: &mut Turn, line: &Value) {
    let message = &line["message"];
    turn.reasoning += text(&message["thinking"]);
    turn.text += text(&message["content"]);
    for call in items(&message["tool_calls"]) {
        turn.calls.push((text(&call["function"]["name"]).to_owned(), call["function"]["arguments"].clone()));
    }
    // This API has no word for it.
    turn.ends_with_calls = !turn.calls.is_empty();
}

const RESPONSES: Api = Api {
    path: "/v1/responses",
    body: |input, stream| {
        let tools = schemas()
            .map(|(name, schema)| json!({"type": "function", "name": name, "parameters": schema, "strict": false}));
        json!({"model": "demo", "max_output_tokens": 900, "temperature": 0, "input": input, "tools": tools, "stream": stream})
    },
    whole: response_turn,
    streamed: |reply| {
        let mut turn = Turn::default();
        let mut arguments = Vec::<String>::new();
        let events = reply.named_events();
        let numbers: Vec<u64> =
            events.iter().map(|(_, event)| event["sequence_number"].as_u64().expect("events are numbered")).collect();
        assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
        for (kind, event) in &events {
            match kind.as_str() {
                "response.reasoning_text.delta" => turn.reasoning += text(&event["delta"]),
                "response.output_text.delta" => turn.text += text(&event["delta"]),
                "response.output_item.added" if event["item"]["type"] == "function_call" => {
                    turn.calls.push((text(&event["item"]["name"]).to_owned(), Value::Null));
                    arguments.push(String::new());
                }
                "response.function_call_arguments.delta" => {
                    *arguments.last_mut().expect("a call has begun") += text(&event["delta"]);
                }
                _ => {}
            }
        }
        turn.calls.iter_mut().zip(&arguments).for_each(|(call, arguments)| call.1 = parsed(arguments));
        turn.ends_with_calls = !turn.calls.is_empty();
        let (kind, last) = events.last().expect("there is a last event");
        assert_eq!((kind.as_str(), &turn), ("response.completed", &response_turn(&last["response"])));
        turn
    },
    back: |response| {
        let result =
            |call: &Value| json!({"type": "function_call_output", "call_id": call["call_id"], "output": "18 degrees"});
        let calls = items(&response["output"]).filter(|item| item["type"] == "function_call");
        items(&response["output"]).cloned().chain(calls.map(result)).collect()
    },
};

fn response_turn(response: &Value) -> Turn {
    let mut turn = Turn::default();
    for item in items(&response["output"]) {
        assert_eq!(item["status"], "completed", "{item}");
        match text(&item["type"]) {
            "reasoning" => turn.reasoning += text(&item["content"][0]["text"]),
            "message" => turn.text += text(&item["content"][0]["text"]),
            "function_call" => turn.calls.push((text(&item["name"]).to_owned(), parsed(text(&item["arguments"])))),
            other => panic!("an item {other}"),
        }
    }
    turn.ends_with_calls = !turn.calls.is_empty();
    turn
}

fn check(api: &Api, family: &Family, seed: u64) {
    let name = format!("{} at {}", family.name, api.path);
    let (_folder, server) = served(&family.script(seed), config());
    let mut history = vec![json!({"role": "user", "content": "How is the weather in Paris?"})];
    let reply = server.post(api.path, &(api.body)(&history, false));
    assert_eq!(reply.status, 200, "{name}: {}", reply.text);
    let thought = if family.reasoning.is_some() { THOUGHT } else { "" };
    let calls = ["weather", "time"].into_iter().zip(family.arguments);
    let calls = calls.map(|(tool, arguments)| (tool.to_owned(), parsed(arguments))).collect();
    let expected = Turn { reasoning: thought.into(), text: String::new(), calls, ends_with_calls: true };
    assert_eq!((api.whole)(&reply.json()), expected, "{name}: {}", reply.text);
    let stream = server.post(api.path, &(api.body)(&history, true));
    assert_eq!((api.streamed)(&stream), expected, "{name}: {}", stream.text);
    // Everything goes back, with the results.
    history.extend((api.back)(&reply.json()));
    let last = Turn { reasoning: thought.into(), text: ANSWER.into(), ..Turn::default() };
    let reply = server.post(api.path, &(api.body)(&history, false));
    assert_eq!((api.whole)(&reply.json()), last, "{name}: {}", reply.text);
    let stream = server.post(api.path, &(api.body)(&history, true));
    assert_eq!((api.streamed)(&stream), last, "{name}: {}", stream.text);
}

#[test]
fn every_family_says_the_same_through_every_api() {
    for (seed, family) in families().iter().enumerate() {
        [ANTHROPIC, OLLAMA, RESPONSES].iter().for_each(|api| check(api, family, seed as u64));
    }
}
