//! Conversations as clients have them: reasoning, tool calls of every family, and what they send back.

use crate::support::{Model, TestServer, config, demo_with_template, demo_with_templates, streamed_message, with};
use braidinfer::model::ModelSource;
use braidinfer::{Llm, LoadOptions};
use braidinfer_server::{FormatChoice, ModelNames, ReasoningFields, ServerConfig};
use serde_json::{Value, json};

/// A server whose model has this chat template.
fn served(template: &str, config: ServerConfig) -> (tempfile::TempDir, TestServer) {
    let (folder, llm) = demo_with_template(template);
    (folder, TestServer::start(config, Model::Given(Box::new(llm))))
}

fn ask(server: &TestServer, fields: Value) -> Value {
    let body = json!({"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 60});
    let reply = server.post("/v1/chat/completions", &with(body, fields));
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()
}

/// The parts of a streamed message, put together.
fn streamed(server: &TestServer, fields: Value) -> (Value, Value) {
    let body =
        json!({"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 60, "stream": true});
    streamed_message(server, &with(body, fields))
}

const PLAIN: &str = "{%- for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}";

#[test]
fn reasoning_is_told_from_the_answer() {
    let template = format!("{PLAIN}{{%- if add_generation_prompt %}}<think>{{% endif %}}{{# </think> #}}");
    let (_folder, server) = served(&template, config());
    let whole = ask(&server, json!({"thinking_budget": 6}));
    let message = &whole["choices"][0]["message"];
    let (reasoning, content) =
        (message["reasoning_content"].as_str().expect("it thinks"), message["content"].as_str().expect("it answers"));
    assert!(!reasoning.is_empty() && !content.is_empty() && message["reasoning"] == message["reasoning_content"]);
    assert!(!content.contains("think>") && !reasoning.contains("think>"), "{message}");
    let counted = whole["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().expect("they are counted");
    assert!((6..40).contains(&counted), "{whole}");
    let (parts, reason) = streamed(&server, json!({"thinking_budget": 6}));
    assert_eq!((&parts["content"], &parts["reasoning"]), (&json!(content), &json!(reasoning)));
    assert_eq!(reason, whole["choices"][0]["finish_reason"]);
    // Stop texts and forms are about the answer.
    let word = reasoning.split_whitespace().next().expect("there is a word");
    let stopped = ask(&server, json!({"thinking_budget": 6, "stop": [word]}));
    assert_eq!(stopped["choices"][0]["message"]["reasoning_content"], reasoning);
    let schema = json!({"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": false});
    let form = json!({"type": "json_schema", "json_schema": {"name": "f", "schema": schema}});
    let formed = ask(&server, json!({"thinking_budget": 6, "response_format": form}));
    let message = &formed["choices"][0]["message"];
    assert_eq!(message["reasoning_content"], reasoning);
    let answer: Value = serde_json::from_str(message["content"].as_str().expect("a text")).expect("of JSON");
    assert!(answer["a"] == "x" || answer["a"] == "y", "{formed}");
    // What was thought may come back; a template that does not know it drops it.
    let history = json!([{"role": "user", "content": "Hello"}, message, {"role": "user", "content": "And?"}]);
    ask(&server, json!({"messages": history, "thinking_budget": 2}));
    // Without a budget it may think as long as it may write.
    let cut = ask(&server, json!({"max_tokens": 5}));
    assert_eq!(
        (&cut["choices"][0]["message"]["content"], &cut["choices"][0]["finish_reason"]),
        (&json!(""), &json!("length"))
    );
}

#[test]
fn reasoning_can_be_left_in_the_text_and_switched_off() {
    let template = format!(
        "{PLAIN}{{%- if add_generation_prompt and enable_thinking is not false %}}<think>{{% endif %}}{{# </think> #}}"
    );
    let (_folder, server) = served(&template, config());
    for switch in [
        json!({"enable_thinking": false}),
        json!({"reasoning_effort": "none"}),
        json!({"chat_template_kwargs": {"enable_thinking": false}}),
    ] {
        let message = ask(&server, switch)["choices"][0]["message"].clone();
        assert!(message["reasoning_content"].is_null() && message["content"] != "", "{message}");
    }
    // A template that opens the reasoning all the same gets it closed before a form.
    let always = format!("{PLAIN}{{%- if add_generation_prompt %}}<think>{{% endif %}}{{# </think> #}}");
    let (_folder, server) = served(&always, config());
    let form = json!({"type": "json_schema", "json_schema": {"name": "f", "schema": {"enum": ["x", "y"]}}});
    let formed = ask(&server, json!({"enable_thinking": false, "thinking_budget": 2, "response_format": form}));
    let content = formed["choices"][0]["message"]["content"].as_str().expect("a text");
    assert!([r#""x""#, r#""y""#].contains(&content), "{formed}");
    let (_folder, server) = served(&template, ServerConfig { reasoning_format: FormatChoice::None, ..config() });
    assert!(ask(&server, json!({}))["choices"][0]["message"]["reasoning_content"].is_null());
    let fields = ReasoningFields::ReasoningContent;
    let (_folder, server) = served(&template, ServerConfig { reasoning_fields: fields, ..config() });
    let message = ask(&server, json!({}))["choices"][0]["message"].clone();
    assert!(message["reasoning_content"].is_string() && message.get("reasoning").is_none(), "{message}");
}

/// A template that writes tools and calls as most do, and mentions the marks of a family.
fn template_of(marks: &str) -> String {
    format!(
        "{{%- if tools %}}{{{{ tools | tojson }}}}{{% endif -%}}{{# {marks} #}}\
         {{%- for message in messages %}}{{{{ message.role + ': ' + message.content }}}}\
         {{%- for call in message.tool_calls or [] %}}{{{{ call.function.name }}}} {{{{ call.function.arguments | tojson }}}}{{% endfor %}}\n{{% endfor %}}"
    )
}

/// An expression that only this text matches.
fn exactly(text: &str) -> String {
    let escaped =
        |next: char| if r"\.+*?()|[]{}^$#&-~".contains(next) { format!("\\{next}") } else { next.to_string() };
    text.chars().map(escaped).collect()
}

const TOOLS: &str = r#"[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}}, {"type": "function", "function": {"name": "time"}}]"#;

/// Names and arguments of calls.
type Calls = Vec<(&'static str, &'static str)>;

/// What a model of each family writes, with what its template mentions, and the calls that it means.
fn families() -> Vec<(&'static str, String, Calls)> {
    let args = r#"{"city": "Oslo", "days": 2}"#;
    let object = format!(r#"{{"name": "weather", "arguments": {args}}}"#);
    let other = r#"{"name": "time", "parameters": {}}"#;
    let both = vec![("weather", args), ("time", "{}")];
    let mut families = vec![
        (
            "<tool_call>",
            format!("<tool_call>\n{object}\n</tool_call>\n<tool_call>\n{other}\n</tool_call>"),
            both.clone(),
        ),
        ("<tool_call>", format!("```json\n[{object}, {other}]\n```"), both.clone()),
        ("<|python_tag|>", format!("{object}; {other}"), both.clone()),
        ("<|python_tag|>", format!("{object}\n{other}"), both.clone()),
        ("[TOOL_CALLS]", format!("[TOOL_CALLS] [{object}, {other}]"), both.clone()),
        ("[TOOL_CALLS]", format!("[TOOL_CALLS]weather[ARGS]{args}[TOOL_CALLS]time[ARGS]{{}}"), both.clone()),
        ("<|tool_call|>", format!("<|tool_call|>[{object}, {other}]<|/tool_call|>"), both.clone()),
        ("functools", format!("functools[{object}, {other}]"), both.clone()),
        ("<function=", format!("<function=weather>{args}</function>\n<function=time>{{}}</function>"), both.clone()),
        ("", format!("{object}\n{other}"), both.clone()),
    ];
    let elements = "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>";
    families.push(("<tool_call>", elements.into(), vec![("weather", r#"{"city":"Oslo","days":2}"#)]));
    families
}

#[test]
fn every_family_calls_tools_and_reads_what_it_wrote() {
    let tools: Value = serde_json::from_str(TOOLS).expect("it is JSON");
    for (marks, written, calls) in families() {
        let (_folder, server) = served(&template_of(marks), config());
        let fields = json!({"tools": tools, "max_tokens": 400, "structured_outputs": {"regex": exactly(&written)}});
        let answer = ask(&server, fields.clone())["choices"][0].clone();
        let message = &answer["message"];
        let expected: Vec<Value> =
            calls.iter().map(|(name, arguments)| json!({"name": name, "arguments": arguments})).collect();
        let found: Vec<Value> =
            message["tool_calls"].as_array().into_iter().flatten().map(|call| call["function"].clone()).collect();
        assert_eq!(found, expected, "{written}: {message}");
        assert_eq!((&answer["finish_reason"], &message["content"]), (&json!("tool_calls"), &Value::Null), "{written}");
        assert_eq!(
            streamed(&server, fields).0,
            json!({"content": "", "reasoning": "", "calls": expected}),
            "{written}"
        );
        // The calls go back, with their results, in several manners.
        let call = &message["tool_calls"][0];
        let bare = json!({"role": "assistant", "content": null, "tool_calls": [{"function": call["function"]}]});
        let odd = |arguments: Value| {
            json!({"role": "assistant", "tool_calls": [with(call.clone(),
            json!({"index": 0, "id": null, "type": null, "function": {"name": "time", "arguments": arguments}}))]})
        };
        for message in [
            message.clone(),
            bare,
            odd(json!("not JSON {")),
            odd(json!({"a": 1})),
            odd(json!("")),
            odd(json!("[1]")),
            odd(Value::Null),
        ] {
            for result in [
                json!({"role": "tool", "tool_call_id": call["id"], "content": "12"}),
                json!({"role": "tool", "content": [{"type": "text", "text": "12"}], "name": "time"}),
                json!({"role": "tool", "tool_call_id": "x", "content": null}),
            ] {
                let history = json!([{"role": "user", "content": "Hello"}, message, result]);
                ask(&server, json!({"messages": history, "tools": tools, "max_tokens": 2}));
            }
        }
    }
}

#[test]
fn what_only_looks_like_a_call_is_text() {
    let tools: Value = serde_json::from_str(TOOLS).expect("it is JSON");
    let (_folder, server) = served(&template_of("<tool_call>"), config());
    for written in [
        "<tool_call>{\"name\": \"time\", \"arguments\": {\"a\"</tool_call>",
        "<tool_call>{\"name\": \"time\", \"arguments\": {\"a\": tru}}</tool_call>",
        "{\"name\": \"Ada\", \"age\": 36}",
        "<tool_call> is how calls begin",
    ] {
        let fields = json!({"tools": tools, "max_tokens": 400, "structured_outputs": {"regex": exactly(written)}});
        let answer = ask(&server, fields)["choices"][0].clone();
        let message = &answer["message"];
        assert!(message["tool_calls"].is_null(), "{answer}");
        assert_eq!((&message["content"], &answer["finish_reason"]), (&json!(written), &json!("stop")));
    }
}

#[test]
fn templates_are_taken_as_they_are_meant() {
    // Phi-4-mini: tools are a field of the system message.
    let phi = "{%- for message in messages %}{{ message.role }}: {{ message.content }}{% if message['tools'] %}<|tool|>{{ message['tools'] }}<|/tool|>{% endif %}\n{% endfor %}";
    // One for which arguments are a text, and one that asks for null.
    let text = "{%- if tools %}{{ tools | tojson }}{% endif %}{%- for message in messages %}{% if message.tool_calls %}{{ message.tool_calls[0].function.name + message.tool_calls[0].function.arguments }}{% else %}{{ message.role + message.content }}{% endif %}{% endfor %}";
    let null = "{%- if tools %}{{ tools | tojson }}{% endif %}{%- for message in messages %}{% if message.content is none %}{{ message.tool_calls[0].function.name }}{{ message.tool_calls[0].function.arguments }}{% else %}{{ message.role + message.content }}{% endif %}{% endfor %}";
    let tools: Value = serde_json::from_str(TOOLS).expect("it is JSON");
    let call = json!({"id": "a", "type": "function", "function": {"name": "time", "arguments": "{\"zone\": \"UTC\"}"}});
    let history = json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": null, "tool_calls": [call]}, {"role": "tool", "content": "12"}]);
    for (template, is_history_known) in [(phi, false), (text, true), (null, true)] {
        let (_folder, server) = served(template, config());
        let tokens = |body: Value| {
            let reply = server.post("/tokenize", &body);
            assert_eq!(reply.status, 200, "{}", reply.text);
            server.post("/detokenize", &json!({"tokens": reply.json()["tokens"]})).json()["prompt"]
                .as_str()
                .expect("a text")
                .to_owned()
        };
        let prompt = tokens(json!({"messages": [{"role": "user", "content": "x"}], "tools": tools}));
        assert!(prompt.contains("weather") && prompt.contains("properties"), "{prompt}");
        let prompt = tokens(json!({"messages": history}));
        assert_eq!(prompt.contains("UTC"), is_history_known, "{prompt}");
    }
}

#[test]
fn an_answer_may_continue_the_last_message() {
    let (_folder, server) =
        served(&format!("{PLAIN}{{%- if add_generation_prompt %}}assistant:{{% endif %}}"), config());
    let prompt = |fields: Value| {
        let messages = json!([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Once upon"}]);
        let tokens = server.post("/tokenize", &with(json!({"messages": messages}), fields)).json()["tokens"].clone();
        server.post("/detokenize", &json!({"tokens": tokens})).json()["prompt"].as_str().expect("a text").to_owned()
    };
    assert!(prompt(json!({"continue_final_message": true, "add_generation_prompt": false})).ends_with("Once upon"));
    assert!(prompt(json!({"continue_final_message": true})).ends_with("Once upon"));
    assert!(!prompt(json!({"add_generation_prompt": false})).ends_with("assistant:"));
    assert!(prompt(json!({})).ends_with("assistant:"));
}

#[test]
fn hints_are_taken_and_named() {
    let (_folder, server) = served(PLAIN, config());
    let body = json!({"messages": [{"role": "user", "content": "Hello", "name": "Ada"}], "max_tokens": 2, "store": true, "user": "u",
        "metadata": {"a": "b"}, "verbosity": "low", "no_stop_trim": false, "return_hidden_states": false, "stream": true,
        "stream_options": {"include_usage": true, "continuous_usage_stats": false}});
    let reply = server.post("/v1/chat/completions", &body);
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(
        reply.header("x-braidinfer-ignored"),
        Some("metadata, store, stream_options.continuous_usage_stats, verbosity")
    );
    // What the official client adds to messages that it parsed.
    let call =
        json!({"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}", "parsed_arguments": {}}});
    let messages = json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": null, "parsed": {"a": 1}, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "1"}]);
    ask(&server, json!({"messages": messages, "max_tokens": 1, "suffix": ""}));
}

#[test]
fn a_model_may_have_several_names() {
    let names = ModelNames { listed: vec!["gpt-4o".into()], unlisted: Some("demo.gguf".into()), any: false };
    let (_folder, server) = served(PLAIN, ServerConfig { model_names: names, ..config() });
    for name in ["demo", "gpt-4o", "demo.gguf"] {
        ask(&server, json!({"model": name, "max_tokens": 1}));
    }
    let ids: Vec<Value> = server.get("/v1/models").json()["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|model| model["id"].clone())
        .collect();
    assert_eq!(ids, ["demo", "gpt-4o"]);
    let body = json!({"messages": [{"role": "user", "content": "x"}], "model": "other"});
    assert_eq!(server.post("/v1/chat/completions", &body).status, 404);
    let names = ModelNames { any: true, ..ModelNames::default() };
    let (_folder, server) = served(PLAIN, ServerConfig { model_names: names, ..config() });
    assert_eq!(server.post("/v1/chat/completions", &body).status, 200);
    let info = server.get("/tokenizer_info").json();
    assert!(info["vocab_size"].as_u64().is_some_and(|size| size > 100) && info["chat_template"] == PLAIN, "{info}");
}

#[test]
fn an_answer_has_at_least_so_many_tokens() {
    let (_folder, server) = served(PLAIN, config());
    // The demo model's stories end by themselves.
    let tokens = |fields: Value| {
        let body = with(json!({"prompt": "Once upon a time", "temperature": 0, "max_tokens": 300}), fields);
        let answer = server.post("/v1/completions", &body).json();
        (
            answer["usage"]["completion_tokens"].as_u64().expect("a number"),
            answer["choices"][0]["finish_reason"].clone(),
        )
    };
    let (usual, reason) = tokens(json!({}));
    assert_eq!(reason, "stop");
    let (longer, _) = tokens(json!({"min_tokens": usual + 20}));
    assert!(longer >= usual + 20, "{longer} of {usual}");
    let refused = server.post("/v1/completions", &json!({"prompt": "x", "min_tokens": 9, "max_tokens": 3})).error();
    assert_eq!((refused.0, &refused.1["param"]), (400, &json!("min_tokens")));
}

#[test]
fn named_templates_are_used_for_what_they_are() {
    let tools: Value = serde_json::from_str(TOOLS).expect("it is JSON");
    let with_tools = "{%- if tools %}{{ tools | tojson }}{% endif %}TOOLS:";
    let prompt = |server: &TestServer, fields: Value| {
        let body = with(json!({"messages": [{"role": "user", "content": "x"}]}), fields);
        let reply = server.post("/tokenize", &body);
        let text = || server.post("/detokenize", &json!({"tokens": reply.json()["tokens"]})).json()["prompt"].clone();
        if reply.status == 200 { Ok(text().as_str().expect("a text").to_owned()) } else { Err(reply.error().1) }
    };
    let folder = tempfile::tempdir().expect("a folder can be made");
    let serve = |templates: &[(&str, &str)], options: &LoadOptions| {
        let llm = demo_with_templates(&folder, templates, options);
        TestServer::start(config(), Model::Given(Box::new(llm)))
    };
    let (plain, named) = ("chat_template.jinja", "additional_chat_templates/tool_use.jinja");
    let original = format!("{PLAIN}{{% generation %}}\r\n{{% endgeneration %}}");
    let server = serve(&[(plain, &original), (named, with_tools)], &LoadOptions::default());
    assert!(prompt(&server, json!({})).expect("it is a prompt").starts_with("user: x"));
    assert!(prompt(&server, json!({"tools": tools})).expect("it is a prompt").ends_with("TOOLS:"));
    assert_eq!(server.get("/tokenizer_info").json()["chat_template"], original);
    // One that cannot be used stops only what needs it.
    let server = serve(&[(plain, PLAIN), (named, "{% if")], &LoadOptions::default());
    assert!(prompt(&server, json!({})).is_ok());
    let refused = prompt(&server, json!({"tools": tools})).expect_err("the template has no end");
    assert!(refused["message"].as_str().is_some_and(|message| message.contains("tool_use")), "{refused}");
    std::fs::write(folder.path().join(named), [0xff, 0xfe]).expect("it can be written");
    let options = LoadOptions::default();
    let source = ModelSource::Directory(folder.path().to_owned());
    let llm = Llm::open(&source, &options, &|_, _| {}).expect("the model opens");
    let server = TestServer::start(config(), Model::Given(Box::new(llm)));
    assert!(prompt(&server, json!({})).is_ok());
    assert!(prompt(&server, json!({"tools": tools})).is_err());
    // Another one is chosen by name.
    let options = LoadOptions { chat_template: Some("tool_use".into()), ..LoadOptions::default() };
    let server = serve(&[(plain, PLAIN), (named, with_tools)], &options);
    assert!(prompt(&server, json!({})).expect("it is a prompt").ends_with("TOOLS:"));
}
