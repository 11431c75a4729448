//! Tokenizers and chat templates against the Python packages that define them.

use std::collections::BTreeMap;

use crate::support::{fixtures, json_files, read_json};
use braidinfer::model::ModelSource;
use braidinfer::text::{
    ChatMessage, ChatTemplate, SentencePiece, StreamDecoder, TemplateClock, Tokenizer, TokenizerSettings,
};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
struct SentencePieceGoldens {
    cases: Vec<SentencePieceCase>,
    decode_cases: Vec<DecodeCase>,
}

#[derive(Deserialize)]
struct SentencePieceCase {
    text: String,
    ids: Vec<u32>,
    pieces: Vec<String>,
    decoded: String,
}

#[derive(Deserialize)]
struct DecodeCase {
    ids: Vec<u32>,
    decoded: String,
}

#[test]
fn sentencepiece_equals_the_python_package() {
    for model in ["bpe", "bpe-gemma", "bpe-suffix", "unigram", "unigram-identity"] {
        let dir = fixtures().join("text/sentencepiece").join(model);
        let path = dir.join("tokenizer.model");
        let bytes = std::fs::read(&path).expect("the fixture has a model");
        let tokenizer = SentencePiece::parse(&path.display().to_string(), &bytes).expect("the model parses");
        let goldens: SentencePieceGoldens = read_json(dir.join("goldens.json"));
        assert!(goldens.cases.len() >= 120);
        for case in &goldens.cases {
            let ids = tokenizer.encode(&case.text, false);
            assert_eq!(ids, case.ids, "{model}: {:?} should be {:?}", case.text, case.pieces);
            assert_eq!(tokenizer.decode(&ids, true), case.decoded, "{model}: decoding {:?}", case.text);
        }
        for case in &goldens.decode_cases {
            assert_eq!(tokenizer.decode(&case.ids, true), case.decoded, "{model}: decoding {:?}", case.ids);
        }
    }
}

fn settings(source: &ModelSource) -> TokenizerSettings {
    TokenizerSettings::read(source).expect("the settings read")
}

fn read_tokenizer(source: &ModelSource) -> Tokenizer {
    let tokenizer = Tokenizer::read(source, &settings(source)).expect("the tokenizer reads");
    tokenizer.expect("there is a tokenizer")
}

fn tokenizer(name: &str) -> (Tokenizer, ModelSource) {
    let source = ModelSource::Directory(fixtures().join("text/tokenizers").join(name));
    (read_tokenizer(&source), source)
}

#[derive(Deserialize)]
struct TokenizerGoldens {
    cases: Vec<TokenizerCase>,
    chat: Vec<ChatCase>,
}

#[derive(Deserialize)]
struct TokenizerCase {
    text: String,
    ids: Vec<u32>,
    ids_without_special: Vec<u32>,
    decoded: String,
    #[serde(default)]
    differs_from_sentencepiece: bool,
}

#[derive(Deserialize)]
struct ChatCase {
    messages: Vec<Map<String, Value>>,
    add_generation_prompt: bool,
    rendered: String,
    ids: Vec<u32>,
}

#[test]
fn byte_level_tokenizer_equals_transformers() {
    let (tokenizer, source) = tokenizer("bytelevel");
    let goldens: TokenizerGoldens = read_json(fixtures().join("text/tokenizers/bytelevel/goldens.json"));
    for case in &goldens.cases {
        assert_eq!(tokenizer.encode(&case.text, true).expect("text encodes"), case.ids, "{:?}", case.text);
        let ids = tokenizer.encode(&case.text, false).expect("text encodes");
        assert_eq!(ids, case.ids_without_special, "{:?}", case.text);
        assert_eq!(tokenizer.decode(&ids, true).expect("ids decode"), case.decoded, "{:?}", case.text);
    }
    check_chats(&tokenizer, &source, &goldens.chat);
}

/// `transformers` and the SentencePiece package differ where a text begins with a space, and in how they decode
/// broken bytes; there we follow the package.
#[test]
fn sentencepiece_model_alone_equals_transformers_where_that_equals_sentencepiece() {
    for (name, least) in
        [("sentencepiece-only", 180), ("sentencepiece-only-undeclared", 50), ("sentencepiece-only-legacy", 50)]
    {
        let (tokenizer, source) = tokenizer(name);
        let goldens: TokenizerGoldens = read_json(fixtures().join("text/tokenizers").join(name).join("goldens.json"));
        let same: Vec<&TokenizerCase> = goldens.cases.iter().filter(|case| !case.differs_from_sentencepiece).collect();
        assert!(same.len() >= least, "{name}: only {} comparable cases", same.len());
        for case in same {
            assert_eq!(tokenizer.encode(&case.text, true).expect("text encodes"), case.ids, "{name}: {:?}", case.text);
        }
        check_chats(&tokenizer, &source, &goldens.chat);
    }
}

/// A folder with the `bpe` model and the given files beside it.
fn beside_bpe(files: &[(&str, Value)]) -> (tempfile::TempDir, Tokenizer) {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let model = fixtures().join("text/sentencepiece/bpe/tokenizer.model");
    std::fs::copy(model, dir.path().join("tokenizer.model")).expect("the model can be copied");
    for (name, contents) in files {
        std::fs::write(dir.path().join(name), contents.to_string()).expect("the file can be written");
    }
    let source = ModelSource::Directory(dir.path().to_owned());
    let tokenizer = read_tokenizer(&source);
    (dir, tokenizer)
}

#[test]
fn special_tokens_are_found_wherever_they_are_named() {
    let encode = |files: &[(&str, Value)], text: &str| beside_bpe(files).1.encode(text, false).expect("text encodes");
    let config = |value: Value| [("tokenizer_config.json", value)];
    let listed = json!({"additional_special_tokens": ["<em"], "cls_token": "<|ctrl|>"});
    assert_eq!(encode(&config(listed), "<|ctrl|>"), [3], "a control piece that is named");
    let unlisted = json!({"additional_special_tokens": ["<em"]});
    assert!(encode(&config(unlisted), "<|ctrl|>").len() > 1, "a control piece that a full list leaves out");
    assert_eq!(encode(&[], "<|ctrl|>"), [3], "a control piece where nothing is listed");
    let object = json!({"pad_token": {"content": "[PAD]"}});
    assert_eq!(
        encode(&[("added_tokens.json", json!({"[PAD]": 600})), ("special_tokens_map.json", object)], "[PAD]"),
        [600]
    );
    let strips = |side: &str| json!({"added_tokens_decoder": {"600": {"content": "[X]", "special": true, side: true}}});
    let (a, b) = (encode(&config(strips("rstrip")), "[X]"), encode(&config(strips("rstrip")), "[X]  \n"));
    assert_eq!((a.as_slice(), b.as_slice()), (&[600][..], &[600][..]), "white space after the token is swallowed");
    let before = encode(&config(strips("lstrip")), "a  [X]");
    assert_eq!(before, encode(&config(strips("lstrip")), "a[X]"), "white space before the token is swallowed");
    assert_ne!(before, encode(&config(strips("rstrip")), "a  [X]"));
    let (_dir, plain) = beside_bpe(&[("tokenizer_config.json", json!({"bos_token": ""}))]);
    assert_eq!(
        plain.encode_prompt("<s>a").expect("text encodes")[..1],
        plain.encode("<s>", false).expect("text encodes")[..]
    );
    assert_eq!(plain.encode_prompt("<s>a").expect("text encodes").iter().filter(|id| **id == 1).count(), 1);
}

#[test]
fn many_special_tokens_and_long_texts_take_no_time_to_speak_of() {
    let tokens: Map<String, Value> = (0..5000).map(|i| (format!("<unused{i}>"), json!(1000 + i))).collect();
    let (_dir, tokenizer) = beside_bpe(&[("added_tokens.json", Value::Object(tokens))]);
    let text = "Once upon a time <unused4999>. ".repeat(10_000);
    // One pass takes well under a second; a pass per token would take minutes.
    let ids = tokenizer.encode(&text, false).expect("text encodes");
    assert_eq!(ids.iter().filter(|id| **id == 5999).count(), 10_000);
}

fn check_chats(tokenizer: &Tokenizer, source: &ModelSource, chats: &[ChatCase]) {
    let template =
        ChatTemplate::read(source, &settings(source), None).expect("the template reads").expect("there is a template");
    for case in chats {
        let rendered = template.render_fields(&case.messages, case.add_generation_prompt, &Map::new());
        let rendered = rendered.expect("the chat renders");
        assert_eq!(rendered, case.rendered);
        let ids = tokenizer.encode_chat(&rendered).expect("the chat encodes");
        assert_eq!(ids, case.ids, "{rendered:?}");
        let bos = tokenizer.bos_token().and_then(|token| tokenizer.token_to_id(token)).expect("there is a first token");
        assert!(ids[0] == bos && ids[1] != bos, "{rendered:?} should begin with one first token: {ids:?}");
        // A prompt that spells the first token gets no second one.
        assert_eq!(tokenizer.encode_prompt(&rendered).expect("the chat encodes")[..2], ids[..2]);
    }
}

#[derive(Deserialize)]
struct TemplateFixture {
    template: String,
    special_tokens_map: BTreeMap<String, Value>,
    cases: Vec<TemplateCase>,
}

#[derive(Deserialize)]
struct TemplateCase {
    name: String,
    #[serde(default)]
    messages: Vec<Map<String, Value>>,
    #[serde(default)]
    add_generation_prompt: bool,
    kwargs: Map<String, Value>,
    expected: Option<String>,
    error: Option<String>,
    error_type: Option<String>,
}

/// The time at which the goldens were rendered.
fn clock() -> TemplateClock {
    let date = chrono::NaiveDate::from_ymd_opt(2025, 3, 7).expect("a real date");
    TemplateClock::Fixed(date.and_hms_opt(9, 5, 3).expect("a real time"))
}

/// What is wrong with how `template` renders `case`, or nothing.
fn fault(template: &ChatTemplate, messages: &[Map<String, Value>], case: &TemplateCase) -> Option<String> {
    let rendered = template.render_fields(messages, case.add_generation_prompt, &case.kwargs);
    match (rendered, &case.expected, &case.error) {
        (Ok(text), Some(expected), _) if text == *expected => None,
        (Err(error), None, Some(message)) => {
            let raised = case.error_type.as_deref() == Some("TemplateError");
            let missing = raised && !error.to_string().contains(message.as_str());
            missing.then(|| format!("{}: expected the error `{message}`, got `{error}`", case.name))
        }
        (result, expected, error) => Some(format!("{}: expected {expected:?} or {error:?}, got {result:?}", case.name)),
    }
}

#[test]
fn chat_templates_equal_transformers() {
    let fixtures: BTreeMap<String, TemplateFixture> = json_files("text/chat_templates");
    assert!(fixtures.len() >= 6);
    let mut faults = Vec::new();
    for (style, fixture) in &fixtures {
        let tokens = fixture
            .special_tokens_map
            .iter()
            .filter_map(|(name, token)| Some((name.clone(), token.as_str()?.to_owned())));
        let template = ChatTemplate::parse(style.clone(), &fixture.template, tokens.collect(), clock());
        let template = template.unwrap_or_else(|error| panic!("{style}: {error}"));
        let wrong = fixture.cases.iter().filter_map(|case| fault(&template, &case.messages, case));
        faults.extend(wrong.map(|fault| format!("{style}: {fault}")));
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[derive(Deserialize)]
struct FeatureFixture {
    messages: Vec<Map<String, Value>>,
    cases: Vec<FeatureCase>,
}

#[derive(Deserialize)]
struct FeatureCase {
    template: String,
    #[serde(flatten)]
    case: TemplateCase,
}

/// Features of Jinja and Python that minijinja lacks. Most are refused by name; a tuple prints as a list, `none`
/// loops as an empty list, and a namespace takes names that begin with an underscore.
const NOT_SUPPORTED: [&str; 16] = [
    "print_tuple",
    "partition",
    "case",
    "startswith_endswith",
    "format",
    "zfill_center",
    "wordcount_truncate",
    "escape_filters",
    "dict_key_shadows_method",
    "dictsort",
    "list_index_method",
    "tests",
    "loop_over_none",
    "namespace_underscore",
    "macro_varargs",
    "joiner_cycler",
];

#[test]
fn jinja_features_equal_transformers() {
    let fixture: FeatureFixture = read_json(fixtures().join("text/jinja_features.json"));
    let tokens =
        BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned()), ("eos_token".to_owned(), "</s>".to_owned())]);
    let mut faults = Vec::new();
    assert!(fixture.cases.len() >= 140);
    for FeatureCase { template, case } in &fixture.cases {
        if NOT_SUPPORTED.contains(&case.name.as_str()) {
            continue;
        }
        match ChatTemplate::parse(case.name.clone(), template, tokens.clone(), clock()) {
            Ok(template) => faults.extend(fault(&template, &fixture.messages, case)),
            Err(error) if case.expected.is_some() => faults.push(error.to_string()),
            Err(_) => {}
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn a_template_with_a_syntax_error_names_file_and_line() {
    let error = ChatTemplate::parse("dir/chat_template.jinja".into(), "a\n{% if %}", BTreeMap::new(), clock());
    let message = error.expect_err("the template is broken").to_string();
    assert!(message.starts_with("dir/chat_template.jinja: expected a Jinja template, found syntax error"), "{message}");
    assert!(message.ends_with("in line 2"), "{message}");
}

#[test]
fn messages_of_a_chat_render_like_fields() {
    let template = "{% for m in messages %}[{{ m.role }}|{{ m['content'] }}]{% endfor %}{{ add_generation_prompt }}";
    let template = ChatTemplate::parse("t".into(), template, BTreeMap::new(), clock()).expect("the template parses");
    let messages = [ChatMessage::new("user", "a <b>"), ChatMessage::new("assistant", "c")];
    assert_eq!(template.render(&messages, true).expect("the chat renders"), "[user|a <b>][assistant|c]True");
}

#[test]
fn streamed_text_is_the_text_of_all_tokens_and_never_splits_a_character() {
    for name in ["bytelevel", "sentencepiece-only"] {
        let (tokenizer, _) = tokenizer(name);
        let goldens: TokenizerGoldens = read_json(fixtures().join("text/tokenizers").join(name).join("goldens.json"));
        for case in &goldens.cases {
            for cut in [0, 1, case.ids_without_special.len() / 2] {
                check_stream(name, &tokenizer, &case.ids_without_special, cut.min(case.ids_without_special.len()));
            }
        }
    }
}

proptest! {
    #[test]
    fn streamed_ids_of_any_kind_add_up(ids in prop::collection::vec(0u32..500, 0..24), cut in 0usize..24) {
        for model in ["bpe", "bpe-gemma", "bpe-suffix", "unigram", "unigram-identity"] {
            let path = fixtures().join("text/sentencepiece").join(model).join("tokenizer.model");
            let tokenizer = Tokenizer::read_file(&path).expect("the tokenizer reads");
            check_stream(model, &tokenizer, &ids, cut.min(ids.len()));
        }
    }

    #[test]
    fn mutated_models_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), text in ".{0,20}") {
        for model in ["bpe", "unigram"] {
            let path = fixtures().join("text/sentencepiece").join(model).join("tokenizer.model");
            let mut bytes = std::fs::read(path).expect("the fixture has a model");
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            if let Ok(tokenizer) = SentencePiece::parse("mutated", &bytes) {
                let ids = tokenizer.encode(&text, true);
                tokenizer.decode(&ids, false);
            }
        }
    }
}

#[test]
fn tools_become_text_where_a_template_has_no_place_for_them() {
    let turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    let only_users = "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}\
                      {% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    let deaf = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    let call = json!({"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}});
    let history = [
        message("user", "x"),
        json!({"role": "assistant", "content": null, "tool_calls": [call]}),
        json!({"role": "tool", "tool_call_id": "1", "content": "2"}),
    ];
    let fields = |messages: &[Value]| -> Vec<_> { messages.iter().filter_map(Value::as_object).cloned().collect() };
    let tool = json!({"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}});
    let variables = json!({"tools": [tool]}).as_object().cloned().expect("it is an object");
    let asked = "<assistant>{\"name\":\"add\",\"arguments\":{\"a\":1}}<user>Result of add:\n2";
    for (template, begins, ends) in [
        (turns, "<system>These functions", "answer in plain words.<user>x"),
        (only_users, "<user>These functions", "answer in plain words.\n\nx"),
        (deaf, "<user>These functions", "answer in plain words.\n\nx"),
    ] {
        let template =
            ChatTemplate::parse("t".into(), template, BTreeMap::new(), clock()).expect("the template parses");
        assert!(!template.has_place_for_tools().expect("it can be tried"));
        let prompt = template.render_conversation(&fields(&history), false, &variables).expect("it renders");
        assert!(prompt.starts_with(begins) && prompt.ends_with(&format!("{ends}{asked}")), "{prompt}");
        assert!(prompt.contains(r#"{"name":"add","parameters":{"type":"object"}}"#), "{prompt}");
        // Of a chat without tools nothing changes.
        let plain = template.render_conversation(&fields(&history[..1]), false, &Map::new());
        assert_eq!(plain.expect("it renders"), "<user>x");
    }
    // Results are not lost where nothing else is said of tools.
    let template = ChatTemplate::parse("t".into(), deaf, BTreeMap::new(), clock()).expect("the template parses");
    let alone = [history[0].clone(), json!({"role": "tool", "content": "3"})];
    let prompt = template.render_conversation(&fields(&alone), false, &Map::new()).expect("it renders");
    assert_eq!(prompt, "<user>x\n\nResult:\n3");
    // A template that says something of its own goes on to say it.
    let own = "{% if messages[0].role != 'system' %}<system>I am Ada.{% endif %}\
               {% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    let template = ChatTemplate::parse("t".into(), own, BTreeMap::new(), clock()).expect("the template parses");
    let prompt = template.render_conversation(&fields(&history), false, &variables).expect("it renders");
    assert!(prompt.starts_with("<system>I am Ada.<user>These functions"), "{prompt}");
    // What the system says comes first.
    let with_system = [&[message("system", "Be brief.")], &history[..1]].concat();
    let template = ChatTemplate::parse("t".into(), deaf, BTreeMap::new(), clock()).expect("the template parses");
    let prompt = template.render_conversation(&fields(&with_system), false, &variables).expect("it renders");
    assert!(prompt.starts_with("<user>These functions"), "what it leaves out is no place for tools: {prompt}");
    let template = ChatTemplate::parse("t".into(), turns, BTreeMap::new(), clock()).expect("the template parses");
    let prompt = template.render_conversation(&fields(&with_system), false, &variables).expect("it renders");
    assert!(prompt.starts_with("<system>Be brief.\n\nThese functions"), "{prompt}");
    // A template that shows calls keeps its own way.
    let shows =
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}{% endfor %}";
    let template = ChatTemplate::parse("t".into(), shows, BTreeMap::new(), clock()).expect("the template parses");
    let prompt = template.render_conversation(&fields(&history), false, &variables).expect("it renders");
    assert!(prompt.ends_with("<tool>2") && prompt.starts_with("<system>These functions"), "{prompt}");
}

#[test]
fn hostile_templates_end_with_an_error() {
    for template in [
        "{{ messages | tojson(indent=9000000000000000000) }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(3000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    ] {
        let template =
            ChatTemplate::parse("t".into(), template, BTreeMap::new(), clock()).expect("the template parses");
        template.render(&[ChatMessage::new("user", "a")], true).expect_err("the template goes too far");
    }
}

/// Streams `ids[cut..]` after `ids[..cut]`.
fn check_stream(name: &str, tokenizer: &Tokenizer, ids: &[u32], cut: usize) {
    let decode = |ids: &[u32]| tokenizer.decode(ids, true).expect("ids decode");
    let whole = decode(ids);
    let before = decode(&ids[..cut]);
    if before.ends_with(char::REPLACEMENT_CHARACTER) {
        return;
    }
    let mut decoder = StreamDecoder::after(&ids[..cut]);
    let mut text = String::new();
    for id in &ids[cut..] {
        let piece = decoder.push(*id, tokenizer).expect("ids decode");
        let broken = |text: &str| text.matches(char::REPLACEMENT_CHARACTER).count();
        assert!(broken(&piece) <= broken(&whole), "{name}: {piece:?} splits a character of {whole:?}");
        text += &piece;
    }
    text += &decoder.finish(tokenizer).expect("ids decode");
    assert_eq!(format!("{before}{text}"), whole, "{name}: {ids:?} cut at {cut}");
}

#[test]
fn what_never_becomes_text_is_not_waited_for() {
    for name in ["bytelevel", "sentencepiece-only"] {
        let (tokenizer, _) = tokenizer(name);
        let ids = 0..tokenizer.vocab_size() as u32;
        let broken = ids.clone().find(|id| tokenizer.token_bytes(*id).is_some_and(|bytes| bytes == [0x80]));
        let special = ids.clone().find(|id| tokenizer.is_special(*id)).expect("there are special tokens");
        let word = ids.clone().find(|id| tokenizer.decode(&[*id], true).is_ok_and(|text| text == "a"));
        let mut decoder = StreamDecoder::default();
        let mut push =
            |id: Option<u32>| decoder.push(id.expect("there is such a token"), &tokenizer).expect("ids decode");
        let shown: Vec<String> = (0..200).map(|_| push(broken)).collect();
        let text = shown.concat();
        assert!(text.chars().all(|character| character == char::REPLACEMENT_CHARACTER), "{name}: {text}");
        assert!((150..=200).contains(&text.chars().count()), "{name}: {text}");
        // Nor do these grow what is decoded again with each of them.
        assert!((0..200).map(|_| push(Some(special))).all(|text| text.chars().count() <= 50), "{name}");
        assert!(push(word).ends_with('a'), "{name}");
    }
}

#[test]
fn bytes_of_tokens_add_up_to_the_text() {
    for name in ["bytelevel", "sentencepiece-only", "sentencepiece-only-legacy"] {
        let (tokenizer, _) = tokenizer(name);
        let goldens: TokenizerGoldens = read_json(fixtures().join("text/tokenizers").join(name).join("goldens.json"));
        for ids in goldens.cases.iter().map(|case| &case.ids_without_special) {
            let bytes: Vec<u8> =
                ids.iter().flat_map(|id| tokenizer.token_bytes(*id).expect("the id is its own")).collect();
            let decoded = tokenizer.decode(ids, false).expect("the ids can be decoded");
            let text = String::from_utf8_lossy(&bytes);
            // SentencePiece puts a space before a text, which its decoder takes away.
            assert!(text == decoded || text.strip_prefix(' ') == Some(&decoded), "{name}: {text:?} {decoded:?}");
        }
        assert_eq!(tokenizer.token_bytes(u32::MAX), None, "{name}");
    }
}
