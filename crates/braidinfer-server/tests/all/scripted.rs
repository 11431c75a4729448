//! Conversations with models of all families that reason, call tools and answer by a script: what clients get, whole and streamed,
//! and that what they send back is taken.

use crate::support::scripted_model::{Script, ScriptedAnswer};
use crate::support::{Model, TestServer, config, streamed_message, with};
use braidinfer::model::ModelSource;
use braidinfer::{Llm, LoadOptions};
use braidinfer_server::ServerConfig;
use serde_json::{Value, json};

/// What a family writes.
pub struct Family {
    pub name: &'static str,
    /// What its chat template mentions.
    hints: &'static str,
    special: &'static [&'static str],
    /// Marks around reasoning; none if it does not reason.
    pub reasoning: Option<(&'static str, &'static str)>,
    /// Two calls, and their arguments.
    calls: &'static str,
    pub arguments: [&'static str; 2],
}

const PARIS: &str = r#"{"city": "Paris \"}]\" \\ {é}", "days": 2}"#;
pub const THOUGHT: &str = "The user asks for \"{the}\" weather; I call tools.";
pub const ANSWER: &str = "It is 18 degrees, and sunny {there}.";

pub fn families() -> Vec<Family> {
    let think = Some(("<think>\n", "\n</think>\n\n"));
    let json = [PARIS, "{}"];
    vec![
        Family {
            name: "qwen3",
            hints: "<think> </think> <tool_call>",
            special: &["<think>", "</think>", "<tool_call>", "</tool_call>"],
            reasoning: think,
            calls: "<tool_call>\n{\"name\": \"weather\", \"arguments\": PARIS}\n</tool_call>\n<tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>",
            arguments: json,
        },
        Family {
            name: "qwen3-coder",
            hints: "<tool_call> <function=",
            special: &["<tool_call>"],
            reasoning: None,
            calls: "<tool_call>\n<function=weather>\n<parameter=city>\nParis \"}]\" {é}\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=time>\n</function>\n</tool_call>",
            arguments: [r#"{"city":"Paris \"}]\" {é}","days":2}"#, "{}"],
        },
        Family {
            name: "glm",
            hints: "<think> </think> <tool_call> <arg_key>",
            special: &["<think>", "</think>"],
            reasoning: Some(("\n<think>", "</think>\n")),
            calls: "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>\n<tool_call>time\n</tool_call>",
            arguments: [r#"{"city":"Paris","days":2}"#, "{}"],
        },
        Family {
            name: "llama-3",
            hints: "<|python_tag|>",
            special: &["<|python_tag|>", "<|eom_id|>"],
            reasoning: None,
            calls: "<|python_tag|>{\"name\": \"weather\", \"parameters\": PARIS}; {\"name\": \"time\", \"parameters\": {}}<|eom_id|>",
            arguments: json,
        },
        Family {
            name: "mistral",
            hints: "[TOOL_CALLS]",
            special: &["[TOOL_CALLS]"],
            reasoning: None,
            calls: "[TOOL_CALLS] [{\"name\": \"weather\", \"arguments\": PARIS}, {\"name\": \"time\", \"arguments\": {}}]",
            arguments: json,
        },
        Family {
            name: "magistral",
            hints: "[TOOL_CALLS] [ARGS] [THINK] [/THINK]",
            special: &["[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"],
            reasoning: Some(("[THINK]", "[/THINK]")),
            calls: "[TOOL_CALLS]weather[ARGS]PARIS[TOOL_CALLS]time[ARGS]{}",
            arguments: json,
        },
        Family {
            name: "phi-4-mini",
            hints: "<|tool_call|>",
            special: &["<|tool_call|>", "<|/tool_call|>"],
            reasoning: None,
            calls: "<|tool_call|>[{\"name\": \"weather\", \"arguments\": PARIS}, {\"name\": \"time\", \"arguments\": {}}]<|/tool_call|>",
            arguments: json,
        },
        Family {
            name: "granite-3.3",
            hints: "<|tool_call|> <think></think> <response></response>",
            special: &["<|tool_call|>"],
            reasoning: Some(("<think>", "</think><response>")),
            calls: "<|tool_call|>[{\"name\": \"weather\", \"arguments\": PARIS}, {\"name\": \"time\", \"arguments\": {}}]",
            arguments: json,
        },
        Family {
            name: "functiongemma",
            hints: "<start_function_call>",
            special: &["<start_function_call>", "<end_function_call>", "<escape>"],
            reasoning: None,
            calls: "<start_function_call>call:weather{city:<escape>Paris}<escape>,days:2}<end_function_call><start_function_call>call:time{}<end_function_call>",
            arguments: [r#"{"city":"Paris}","days":2}"#, "{}"],
        },
        Family {
            name: "gemma-4",
            hints: "<|channel>thought <channel|> <|tool_call>call",
            special: &["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|\"|>"],
            reasoning: Some(("<|channel>thought\n", "<channel|>")),
            calls: "<|tool_call>call:weather{city:<|\"|>Paris}, {é}<|\"|>,days:2}<tool_call|><|tool_call>call:time{}<tool_call|>",
            arguments: [r#"{"city":"Paris}, {é}","days":2}"#, "{}"],
        },
        Family {
            name: "deepseek",
            hints: "<think> </think> <｜tool▁call▁begin｜>",
            special: &["<think>", "</think>", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"],
            reasoning: think,
            calls: "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\nPARIS\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            arguments: json,
        },
        Family {
            name: "kimi",
            hints: "◁think▷ ◁/think▷ <|tool_call_begin|>",
            special: &["<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>"],
            reasoning: Some(("◁think▷", "◁/think▷")),
            calls: "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>PARIS<|tool_call_end|><|tool_call_begin|>functions.time:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
            arguments: json,
        },
        Family {
            name: "command",
            hints: "<|START_THINKING|> <|END_THINKING|> <|START_ACTION|>",
            special: &["<|START_THINKING|>", "<|END_THINKING|>", "<|START_ACTION|>", "<|END_ACTION|>"],
            reasoning: Some(("<|START_THINKING|>", "<|END_THINKING|>")),
            calls: "<|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"weather\", \"parameters\": PARIS},\n    {\"tool_call_id\": \"1\", \"tool_name\": \"time\", \"parameters\": {}}\n]<|END_ACTION|>",
            arguments: json,
        },
        Family {
            name: "gpt-oss",
            hints: "<|channel|>analysis <|channel|>commentary",
            special: &["<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|constrain|>", "<|call|>"],
            reasoning: Some(("<|channel|>analysis<|message|>", "<|end|><|start|>assistant")),
            calls: "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>PARIS<|call|><|start|>assistant<|channel|>commentary to=functions.time <|constrain|>json<|message|>{}<|call|>",
            arguments: json,
        },
        Family {
            name: "ernie",
            hints: "<think> </think> <tool_call>",
            special: &["<think>", "</think>"],
            reasoning: think,
            calls: "<tool_call>\n{\"name\": \"weather\", \"arguments\": PARIS}\n</tool_call>\n\n<tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>\n",
            arguments: json,
        },
        Family {
            name: "llama-3 functions",
            hints: "<function=",
            special: &[],
            reasoning: None,
            calls: "<function=weather>PARIS</function><function=time>{}</function>",
            arguments: json,
        },
        Family {
            name: "unmarked",
            hints: "",
            special: &[],
            reasoning: None,
            calls: "```json\n[{\"name\": \"weather\", \"arguments\": PARIS}, {\"name\": \"time\", \"arguments\": {}}]\n```",
            arguments: json,
        },
    ]
}

impl Family {
    /// What it writes before its answer.
    fn reasoned(&self, answer: &str) -> String {
        match self.reasoning {
            Some((open, close)) => format!("{open}{THOUGHT}{close}{answer}"),
            None => answer.to_owned(),
        }
    }

    pub fn script(&self, seed: u64) -> Script {
        let is_in_channels = self.name == "gpt-oss";
        let last = if is_in_channels { format!("<|channel|>final<|message|>{ANSWER}") } else { ANSWER.to_owned() };
        let answer = |cue: &str, text: String| ScriptedAnswer { cue: cue.to_owned(), text };
        Script {
            template: format!(
                "{{%- if tools %}}{{{{ tools | tojson }}}}{{% endif -%}}{{# {} #}}\
                 {{%- for message in messages %}}{{{{ message.role + ': ' + message.content }}}}\
                 {{%- for call in message.tool_calls or [] %}}{{{{ call.function.name }}}} {{{{ call.function.arguments | tojson }}}}{{% endfor %}}\n{{% endfor -%}}\
                 {{%- if messages[-1].role == 'tool' %}}<after_result>{{% else %}}<turn>{{% endif %}}",
                self.hints
            ),
            special_tokens: self.special.iter().map(|mark| (*mark).to_owned()).collect(),
            answers: vec![
                answer("<turn>", self.reasoned(&self.calls.replace("PARIS", PARIS))),
                answer("<after_result>", self.reasoned(&last)),
            ],
            seed,
        }
    }
}

pub fn served(script: &Script, config: ServerConfig) -> (tempfile::TempDir, TestServer) {
    let folder = tempfile::tempdir().expect("a folder can be made");
    script.write(folder.path());
    let source = ModelSource::Directory(folder.path().to_owned());
    let llm = Llm::open(&source, &LoadOptions::default(), &|_, _| {}).expect("the model opens");
    (folder, TestServer::start(config, Model::Given(Box::new(llm))))
}

fn chat(server: &TestServer, fields: Value) -> Value {
    let reply = server.post("/v1/chat/completions", &with(json!({"max_tokens": 900, "temperature": 0}), fields));
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()["choices"][0].clone()
}

fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}});
    json!([{"type": "function", "function": {"name": "weather", "parameters": parameters}},
        {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}])
}

/// The calls of a message, without their ids.
fn calls_of(message: &Value) -> Vec<Value> {
    let calls = message["tool_calls"].as_array().into_iter().flatten();
    calls.map(|call| json!({"name": call["function"]["name"], "arguments": call["function"]["arguments"]})).collect()
}

#[test]
fn every_family_reasons_calls_tools_and_answers_after_the_results() {
    for (seed, family) in (0..3).flat_map(|seed| families().into_iter().map(move |family| (seed, family))) {
        let name = family.name;
        let (_folder, server) = served(&family.script(seed), config());
        let asked = json!([{"role": "user", "content": "How is the weather in Paris?"}]);
        let choice = chat(&server, json!({"messages": asked, "tools": tools()}));
        let message = &choice["message"];
        let thought = family.reasoning.map_or(Value::Null, |_| json!(THOUGHT));
        assert_eq!(message["reasoning_content"], thought, "{name}: {message}");
        assert_eq!(
            (&choice["finish_reason"], &message["content"]),
            (&json!("tool_calls"), &Value::Null),
            "{name}: {message}"
        );
        let expected: Vec<Value> = ["weather", "time"]
            .into_iter()
            .zip(family.arguments)
            .map(|(tool, arguments)| json!({"name": tool, "arguments": arguments}))
            .collect();
        assert_eq!(calls_of(message), expected, "{name}: {message}");
        let body = json!({"messages": asked, "tools": tools(), "max_tokens": 900, "temperature": 0, "stream": true});
        let (parts, _) = streamed_message(&server, &body);
        let thought = if family.reasoning.is_some() { THOUGHT } else { "" };
        assert_eq!(parts, json!({"content": "", "reasoning": thought, "calls": expected}), "{name}");
        let pieces = server.post("/v1/chat/completions", &body).events();
        let has_arguments = |event: &&Value| {
            let call = &event["choices"][0]["delta"]["tool_calls"][0];
            call["index"] == 0 && call["function"]["arguments"] != ""
        };
        let pieces = pieces.iter().filter(has_arguments).count();
        assert_eq!(pieces > 3, family.arguments[0] == PARIS, "{name}: {pieces} pieces of arguments");
        // Everything goes back, with the results.
        let result = |call: &Value| json!({"role": "tool", "tool_call_id": call["id"], "content": "18 degrees"});
        let results: Vec<Value> = message["tool_calls"].as_array().into_iter().flatten().map(result).collect();
        let history: Vec<Value> =
            asked.as_array().into_iter().flatten().cloned().chain([message.clone()]).chain(results).collect();
        let choice = chat(&server, json!({"messages": history, "tools": tools()}));
        assert_eq!(
            (&choice["message"]["content"], &choice["finish_reason"]),
            (&json!(ANSWER), &json!("stop")),
            "{name}: {choice}"
        );
        assert!(choice["message"]["tool_calls"].is_null(), "{name}");
        let off = chat(&server, json!({"messages": history, "tools": tools(), "enable_thinking": false}));
        assert_eq!(off["message"]["content"], ANSWER, "{name}: {off}");
        let one = chat(&server, json!({"messages": asked, "tools": tools(), "parallel_tool_calls": false}));
        assert_eq!(calls_of(&one["message"]), expected[..1], "{name}: {one}");
        // And the whole turn, as the beginning of the next.
        let longer: Vec<Value> = history.iter().cloned().chain([choice["message"].clone(), asked[0].clone()]).collect();
        chat(&server, json!({"messages": longer, "tools": tools(), "max_tokens": 3}));
    }
}

#[test]
fn the_families_are_those_of_the_documentation() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/server.md");
    let page = std::fs::read_to_string(page).expect("the page is there");
    let rows: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("| ")?.split('|').next()).collect();
    for family in families() {
        let is_named = |row: &&str| row.split([',', ';', ':']).any(|name| name.trim() == family.name);
        assert!(rows.iter().any(is_named), "{} is not in the table", family.name);
    }
}

#[test]
fn every_family_reasons_before_a_form() {
    let schema = json!({"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": false});
    let form = json!({"type": "json_schema", "json_schema": {"name": "f", "schema": schema}});
    let asked = json!([{"role": "user", "content": "How is the weather in Paris?"}]);
    for family in families().into_iter().filter(|family| family.reasoning.is_some()) {
        let name = family.name;
        let (_folder, server) = served(&family.script(7), config());
        for (fields, is_call) in
            [(json!({"response_format": form}), false), (json!({"tools": tools(), "tool_choice": "required"}), true)]
        {
            for budget in [None, Some(0), Some(3), Some(500)] {
                let body = with(json!({"messages": asked, "thinking_budget": budget}), fields.clone());
                let choice = chat(&server, body);
                let message = &choice["message"];
                if is_call {
                    assert_eq!(calls_of(message).len(), 1, "{name} {budget:?}: {choice}");
                } else {
                    let answer: Value =
                        serde_json::from_str(message["content"].as_str().unwrap_or_default()).unwrap_or_default();
                    assert!(answer["a"] == "x" || answer["a"] == "y", "{name} {budget:?}: {choice}");
                }
                // A mark of several tokens cannot stand beside the beginning of the answer.
                let is_marked_by_one = family.special.iter().any(|mark| {
                    family.reasoning.is_some_and(|(open, _)| open.trim() == *mark || family.name == "gpt-oss")
                });
                if is_marked_by_one {
                    let thought = message["reasoning_content"].as_str().unwrap_or_default();
                    let expected = match budget {
                        None | Some(500) => THOUGHT,
                        _ => &THOUGHT[..thought.len()],
                    };
                    assert_eq!(thought, expected, "{name} {budget:?}: {choice}");
                    assert_eq!(thought.is_empty(), budget == Some(0), "{name} {budget:?}");
                }
            }
        }
    }
}

#[test]
fn a_suffix_is_filled_in_by_models_that_have_tokens_for_it() {
    let special = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_pad|>"].map(str::to_owned).to_vec();
    let answer = ScriptedAnswer { cue: "<|fim_middle|>".into(), text: "a + b<|fim_pad|>more".into() };
    let template = "{{ messages[0].content }}".to_owned();
    let (_folder, server) =
        served(&Script { template, special_tokens: special, answers: vec![answer], seed: 1 }, config());
    let complete =
        |fields: Value| server.post("/v1/completions", &with(json!({"prompt": "return ", "max_tokens": 40}), fields));
    let filled = complete(json!({"suffix": ";\n}"})).json();
    assert_eq!(filled["choices"][0]["text"], "a + b", "{filled}");
    // The bytes of both texts, and three tokens.
    assert_eq!(filled["usage"]["prompt_tokens"], 7 + 3 + 3);
    assert_eq!(complete(json!({"suffix": "x", "echo": true})).error().0, 400);
    assert_eq!(complete(json!({"suffix": "x", "prompt": [1]})).error().0, 400);
    assert_eq!(complete(json!({"suffix": ""})).status, 200);
    // The suffix is read once, and refused before it is copied for every prompt.
    let many = json!({"prompt": vec!["hi"; 500], "suffix": "ab ".repeat(30_000)});
    let refused = server.post("/v1/completions", &many).error();
    assert_eq!((refused.0, &refused.1["param"]), (400, &json!("suffix")), "{}", refused.1);
    let plain = TestServer::shared().post("/v1/completions", &json!({"prompt": "x", "suffix": "y"})).error();
    assert_eq!((plain.0, &plain.1["param"]), (400, &json!("suffix")));
}

#[test]
fn a_call_that_must_come_says_which_tool_cannot_be_held_to_its_schema() {
    let (_folder, server) = served(&families()[0].script(2), config());
    // Text that looks like a call is none where another form was asked for.
    let schema = json!({"properties": {"name": {"const": "time"}, "arguments": {"const": {"$ref": "#/a~1b"}}}, "required": ["name", "arguments"],
        "additionalProperties": false, "type": "object"});
    let form = json!({"type": "json_schema", "json_schema": {"name": "f", "schema": schema}});
    let choice = chat(
        &server,
        json!({"messages": [{"role": "user", "content": "x"}], "tools": tools(), "response_format": form}),
    );
    let written: Value =
        serde_json::from_str(choice["message"]["content"].as_str().unwrap_or_default()).unwrap_or_default();
    assert_eq!(written, json!({"name": "time", "arguments": {"$ref": "#/a~1b"}}), "{choice}");
    let ask = |parameters: Value, choice: Value| {
        let tools = json!([{"type": "function", "function": {"name": "good"}},
            {"type": "function", "function": {"name": "weather", "parameters": parameters}}]);
        let body = json!({"messages": [{"role": "user", "content": "x"}], "tools": tools, "tool_choice": choice, "max_tokens": 300});
        server.post("/v1/chat/completions", &body)
    };
    let named = json!({"type": "function", "function": {"name": "weather"}});
    for choice in [json!("required"), named.clone()] {
        let (status, error) = ask(json!({"properties": {"city": {"not": {"type": "string"}}}}), choice.clone()).error();
        let message = error["message"].as_str().expect("a text");
        assert_eq!((status, &error["param"]), (400, &json!("tools[1].function.parameters")), "{error}");
        assert!(
            ["\"not\"", "tools[1].function.parameters (weather)/properties/city"]
                .iter()
                .all(|part| message.contains(part)),
            "{message}"
        );
        let behind = json!({"properties": {"city": {"$ref": "#/$defs/a~1b"}}, "$defs": {"a/b": {"uniqueItems": true, "type": "array"}}});
        let (status, error) = ask(behind, choice.clone()).error();
        let message = error["message"].as_str().expect("a text");
        assert_eq!((status, &error["param"]), (400, &json!("tools[1].function.parameters")), "{error}");
        assert!(message.contains("(weather)") && !message.contains("reference-"), "{message}");
        let (status, error) = ask(json!({"type": "string"}), choice).error();
        assert!(status == 400 && error["message"].as_str().expect("a text").contains("weather"), "{error}");
    }
    // Escapes in references are read.
    let schema = json!({"type": "object", "properties": {"city": {"$ref": "#/$defs/a~1b%20c"}}, "required": ["city"],
        "additionalProperties": false, "$defs": {"a/b c": {"enum": ["Oslo"]}}});
    let reply = ask(schema, named).json();
    let arguments = &calls_of(&reply["choices"][0]["message"])[0]["arguments"];
    let arguments: Value = serde_json::from_str(arguments.as_str().expect("a text")).expect("it is JSON");
    assert_eq!(arguments, json!({"city": "Oslo"}), "{reply}");
}

#[test]
fn a_cut_call_that_must_come_is_no_text() {
    let (_folder, server) = served(&families()[4].script(2), config());
    for most in 1..12 {
        let choice = chat(
            &server,
            json!({"messages": [{"role": "user", "content": "x"}], "tools": tools(), "tool_choice": "required", "max_tokens": most}),
        );
        let content = choice["message"]["content"].as_str().unwrap_or_default();
        assert_eq!((content, &choice["finish_reason"]), ("", &json!("length")), "{choice}");
    }
}
