//! The OpenAI Responses API.

use serde_json::{Value, json};

use crate::support::{Connection, Model, TestServer, config, demo_with_template, with};

const TEMPLATE: &str = "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}";

fn templated() -> (tempfile::TempDir, TestServer) {
    let (folder, llm) = demo_with_template(TEMPLATE);
    (folder, TestServer::start(config(), Model::Given(Box::new(llm))))
}

fn ask(fields: Value) -> Value {
    with(json!({"model": "demo", "input": "Hi", "temperature": 0, "max_output_tokens": 8}), fields)
}

fn text(response: &Value) -> &str {
    response["output"][0]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("no text: {response}"))
}

#[test]
fn responses_have_the_text_of_chat_completions_whole_and_streamed() {
    let (_folder, server) = templated();
    let chat = json!({"max_tokens": 8, "temperature": 0, "messages": [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]});
    let expected = server.post("/v1/chat/completions", &chat).json();
    let content = expected["choices"][0]["message"]["content"].as_str().expect("a text");
    let body = ask(json!({"instructions": "Be kind.", "metadata": {"a": "b"}}));
    let response = server.post("/v1/responses", &body).json();
    assert_eq!(text(&response), content);
    assert_eq!(
        (&response["status"], &response["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
    assert_eq!(response["usage"]["input_tokens"], expected["usage"]["prompt_tokens"]);
    assert_eq!((&response["usage"]["output_tokens"], &response["metadata"]["a"]), (&json!(8), &json!("b")));
    let events = server.post("/v1/responses", &with(body, json!({"stream": true}))).named_events();
    let kinds: Vec<&str> =
        events.iter().map(|(kind, _)| kind.as_str()).filter(|kind| !kind.ends_with(".delta")).collect();
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ];
    assert_eq!(kinds, expected);
    let streamed: String = events.iter().filter_map(|(_, event)| event["delta"].as_str()).collect();
    assert_eq!(streamed, content);
    assert_eq!(text(&events.last().expect("there is one").1["response"]), content);
}

#[test]
fn a_response_goes_on_from_another_one() {
    let (_folder, server) = templated();
    let first = server.post("/v1/responses", &ask(json!({"instructions": "Be kind."}))).json();
    let id = first["id"].as_str().expect("an id");
    assert_eq!(first["output"][0]["status"], "incomplete", "it was cut");
    let second = server.post("/v1/responses", &ask(json!({"input": "More", "previous_response_id": id}))).json();
    // Instructions are not taken over.
    let whole = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text(&first)}, {"role": "user", "content": "More"}]);
    let expected = server.post("/v1/responses", &ask(json!({"input": whole}))).json();
    assert_eq!(text(&second), text(&expected));
    assert_eq!(second["usage"]["input_tokens"], expected["usage"]["input_tokens"]);
    // What was streamed is stored, too.
    let body = ask(json!({"input": "More", "previous_response_id": id, "stream": true}));
    let events = server.post("/v1/responses", &body).named_events();
    let streamed = &events.last().expect("there is one").1["response"];
    let stored = server.get(&format!("/v1/responses/{}", streamed["id"].as_str().expect("an id"))).json();
    assert_eq!(stored, *streamed);
}

#[test]
fn responses_are_read_and_deleted_by_those_who_asked_for_them() {
    let (_folder, server) = templated();
    let response = server.post("/v1/responses", &ask(json!({}))).json();
    let path = format!("/v1/responses/{}", response["id"].as_str().expect("an id"));
    assert_eq!(server.get(&path).json(), response);
    #[cfg(target_os = "linux")]
    {
        let other = Connection::open_from([127, 0, 0, 2].into(), server.address);
        assert_eq!(other.request("GET", &path, &[], b"").status, 404, "it is another client's");
    }
    assert_eq!(server.request("DELETE", &path, &[], b"").json()["deleted"], true);
    assert_eq!((server.get(&path).status, server.request("DELETE", &path, &[], b"").status), (404, 404));
    // A client cannot choose the id of a response.
    let named = |body: &Value| {
        let headers = [("content-type", "application/json"), ("x-request-id", "mine")];
        server.request("POST", "/v1/responses", &headers, body.to_string().as_bytes()).json()["id"].clone()
    };
    assert_ne!(named(&ask(json!({}))), named(&ask(json!({}))));
    assert_eq!(server.get(&format!("{path}?stream=true")).status, 400);
    let unstored = server.post("/v1/responses", &ask(json!({"store": false}))).json();
    let id = unstored["id"].as_str().expect("an id");
    assert_eq!(server.get(&format!("/v1/responses/{id}")).status, 404);
    let refused = server.post("/v1/responses", &ask(json!({"previous_response_id": id}))).error();
    assert_eq!((refused.0, &refused.1["param"]), (400, &json!("previous_response_id")));
}

#[test]
fn answers_have_the_form_that_is_asked_for() {
    let (_folder, server) = templated();
    let schema = json!({"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "name": "f", "schema": schema, "strict": true});
    let response =
        server.post("/v1/responses", &ask(json!({"text": {"format": format}, "max_output_tokens": 60}))).json();
    let answer: Value = serde_json::from_str(text(&response)).expect("it is JSON");
    assert!(answer["a"] == "x" || answer["a"] == "y", "{response}");
    assert_eq!((&response["status"], &response["text"]["format"]["name"]), (&json!("completed"), &json!("f")));
}

#[test]
fn errors_name_the_field() {
    let (_folder, server) = templated();
    for (fields, status, param, says) in [
        (json!({"input": []}), 400, "input", "expected at least one message"),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}),
            400,
            "input[0].content[0].image_url",
            "knows no such field",
        ),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
            400,
            "input[0].content[0].type",
            "text",
        ),
        (json!({"input": [{"type": "item_reference", "id": "x"}]}), 400, "input[0].type", "function_call_output"),
        (json!({"tools": [{"type": "web_search"}]}), 400, "tools", "web_search"),
        (json!({"model": "other"}), 404, "model", "expected `demo`"),
        (json!({"max_output_tokens": 0}), 400, "max_output_tokens", "max_output_tokens"),
        (json!({"metadata": {"a": "x".repeat(600)}}), 400, "metadata", "at most 16 texts"),
        (json!({"background": true}), 400, "background", "knows no such field"),
        (json!({"include": ["file_search_call.results"]}), 400, "include", "file_search_call.results"),
        (json!({"text": {"format": {"type": "json_schema", "name": "x"}}}), 400, "text.format", "expected a schema"),
    ] {
        let (found, error) = server.post("/v1/responses", &ask(fields)).error();
        assert_eq!((found, &error["param"]), (status, &json!(param)), "{error}");
        assert!(error["message"].as_str().is_some_and(|message| message.contains(says)), "{error} instead of {says}");
    }
}
