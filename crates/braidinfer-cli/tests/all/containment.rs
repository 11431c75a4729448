//! Untrusted templates, schemas, expressions and grammars in worker processes: whatever they say, they end in an error that
//! names them, and this process goes on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use braidinfer::model::ModelSource;
use braidinfer::text::{ChatMessage, ChatTemplate, TokenizerSettings};
use braidinfer::{
    AnswerForm, CancelFlag, Event, FinishReason, FormLimits, Llm, LoadOptions, Output, SamplingParams,
    StructuredOutput, WorkLimits, WorkerProgram,
};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

fn worker() -> WorkerProgram {
    WorkerProgram::new(env!("CARGO_BIN_EXE_braidinfer"), ["worker"])
}

fn demo_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo-model")
}

fn open(folder: PathBuf, worker: &WorkerProgram) -> braidinfer::Result<Llm> {
    let options = LoadOptions { worker: Some(worker.clone()), ..LoadOptions::default() };
    Llm::open(&ModelSource::Directory(folder), &options, &|_, _| {})
}

/// The demo model with another chat template.
fn with_template(template: &str, worker: &WorkerProgram) -> braidinfer::Result<Llm> {
    let folder = tempfile::tempdir().expect("a folder can be made");
    for file in std::fs::read_dir(demo_folder()).expect("the demo model is there") {
        let file = file.expect("its files can be listed");
        std::fs::copy(file.path(), folder.path().join(file.file_name())).expect("and copied");
    }
    std::fs::write(folder.path().join("chat_template.jinja"), template).expect("and another one added");
    open(folder.path().to_owned(), worker)
}

/// What the demo model says to a chat with a template: at load, or when it is rendered.
fn rendered(template: &str, worker: &WorkerProgram) -> Result<String, String> {
    let llm = with_template(template, worker).map_err(|error| error.to_string())?;
    let template = llm.text().require_chat_template().map_err(|error| error.to_string())?;
    template.render(&[ChatMessage::new("user", "Hello")], true).map_err(|error| error.to_string())
}

/// Templates that did harm when they were rendered in the process itself, and others of the same kinds.
fn hostile_templates() -> Vec<(&'static str, String)> {
    let doubling = |step: &str| {
        format!(
            "{{% set ns = namespace(x='ab') %}}{{% for i in range(60) %}}{{% set ns.x = {step} %}}{{% endfor %}}{{{{ ns.x | length }}}}"
        )
    };
    vec![
        ("nested not", format!("{{{{ {} true }}}}", "not ".repeat(15_000))),
        ("longer nested not", format!("{{{{ {} true }}}}", "not ".repeat(40_000))),
        ("a chain of +", format!("{{{{ 1 {} }}}}", "+ 1".repeat(20_000))),
        ("brackets", format!("{{{{ {}1{} }}}}", "[".repeat(20_000), "]".repeat(20_000))),
        ("parentheses", format!("{{{{ {}1{} }}}}", "(".repeat(30_000), ")".repeat(30_000))),
        ("filters", format!("{{{{ 1{} }}}}", "|string".repeat(9_000))),
        ("conditions", format!("{{{{ {}1 }}}}", "1 if true else ".repeat(4_000))),
        ("blocks", "{% if true %}".repeat(30_000) + &"{% endif %}".repeat(30_000)),
        ("loops", "{% for a in [1] %}".repeat(20_000)),
        ("an empty tag", "{%}".into()),
        ("an open tag", "{%".into()),
        ("a closed one", "%}{{".into()),
        ("texts that double", doubling("ns.x ~ ns.x")),
        ("sums that double", doubling("ns.x + ns.x")),
        ("lists that double", doubling("[ns.x, ns.x] | join")),
        ("a tree", doubling("[ns.x, ns.x]").replace("length", "tojson | length")),
        ("a tree as text", doubling("[ns.x, ns.x]").replace("length", "string | length")),
        ("a long join", "{{ range(99999) | join('x' * 100000) | length }}".into()),
        ("a wide number", "{{ '%1000000000d' % 1 }}".into()),
        ("an indent", "{{ 'a\nb' | indent(1000000000) }}".into()),
        ("a product", "{{ 'x' * 10000000000 }}".into()),
        ("a list product", "{{ ([1] * 10000000000) | length }}".into()),
        ("batches", "{{ [1] | batch(10000000000, 0) | list | length }}".into()),
        ("slices", "{{ [1] | slice(10000000000, 0) | list | length }}".into()),
        ("a range", "{{ range(0, 10000000000) | list | length }}".into()),
        ("replacements", "{{ ('a' * 100000).replace('a', 'b' * 100000) | length }}".into()),
        ("centred", "{{ 'a' | center(10000000000) | length }}".into()),
        ("just", "{{ 'a'.ljust(10000000000) | length }}".into()),
        ("a macro that calls itself", "{% macro m(x) %}{{ m(x + 1) }}{% endmacro %}{{ m(0) }}".into()),
        ("an endless loop", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}".into()),
        ("a deep list", "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% for j in range(9) %}{% set ns.x = [ns.x] %}{% endfor %}{% endfor %}{{ ns.x }}".into()),
        ("a power", "{{ 10 ** 10 ** 10 }}".into()),
        ("a clock", "{{ strftime_now('%Y' * 1000000) | length }}".into()),
    ]
}

#[test]
fn hostile_templates_end_in_an_error_or_a_text() {
    let worker = worker();
    let (mut refused, mut shown) = (0, 0);
    for (name, template) in hostile_templates() {
        match rendered(&template, &worker) {
            Ok(text) => {
                assert!(text.len() < 1 << 20, "{name}: {} bytes", text.len());
                shown += 1;
            }
            Err(error) => {
                assert!(error.contains("chat_template.jinja"), "{name}: {error:.300}");
                assert!(error.len() < 2000, "{name}: {error:.300}");
                refused += 1;
            }
        }
    }
    assert!(refused >= 20, "{refused} refused, {shown} shown");
    assert_eq!(rendered("{{ messages[0].content }}", &worker).as_deref(), Ok("Hello"));
}

#[test]
fn a_template_that_ends_its_process_ends_no_other_rendering() {
    let worker = worker();
    let template =
        "{% if messages[0].content == 'bomb' %}{{ 'x' * 10000000000 }}{% else %}{{ messages[0].content }}{% endif %}";
    let llm = with_template(template, &worker).expect("the model opens");
    let template = llm.chat_template().expect("there is a template");
    let render = |text: &str| template.render(&[ChatMessage::new("user", text)], true);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| (0..20).for_each(|_| assert_eq!(render("fine").ok().as_deref(), Some("fine"))));
        }
        for _ in 0..10 {
            let error = render("bomb").expect_err("it takes too much").to_string();
            assert!(error.contains("chat_template.jinja"), "{error}");
        }
    });
    assert_eq!(render("fine").ok().as_deref(), Some("fine"));
}

/// A model whose forms are held in worker processes, with limits that are soon reached.
struct Forms {
    llm: Mutex<Llm>,
    structured: StructuredOutput,
    worker: WorkerProgram,
}

impl Forms {
    fn new() -> Self {
        Self::with(FormLimits {
            compile: WorkLimits { time: Duration::from_secs(5), memory: 256 << 20 },
            ..FormLimits::default()
        })
    }

    fn with(limits: FormLimits) -> Self {
        let worker = worker();
        let llm = open(demo_folder(), &worker).expect("the model opens");
        let structured =
            StructuredOutput::new(llm.text(), llm.spec().vocab_size, limits).expect("there is a tokenizer");
        Self { llm: Mutex::new(llm), structured, worker }
    }

    /// The text of an answer of this form, and how it ended.
    fn answer(&self, form: &AnswerForm, seed: u64) -> Result<(String, Option<FinishReason>), String> {
        let constraint = self.structured.constraint(form, "response_format", &CancelFlag::default());
        let constraint = constraint.map_err(|error| error.to_string())?;
        let params =
            SamplingParams { temperature: 1.0, seed: Some(seed), max_tokens: Some(120), ..SamplingParams::default() };
        let mut llm = self.llm.lock().unwrap_or_else(PoisonError::into_inner);
        llm.add_constrained(vec![1, 2, 3], &params, Some(constraint)).map_err(|error| error.to_string())?;
        let (mut text, mut finished, mut failed) = (String::new(), None, None);
        while llm.has_unfinished() {
            for Event { output, .. } in llm.step().expect("the step runs") {
                match output {
                    Ok(Output::Token(token)) => {
                        text += &token.text;
                        finished = token.finished;
                    }
                    Ok(Output::Embedding(_)) => panic!("no vector was asked for"),
                    Err(error) => failed = Some(error.to_string()),
                }
            }
        }
        failed.map_or(Ok((text, finished)), Err)
    }
}

fn nested(levels: usize, wrap: impl Fn(Value) -> Value) -> Value {
    (0..levels).fold(json!({"type": "integer"}), |inner, _| wrap(inner))
}

/// Definitions that refer to one another in a chain, so that the schema is deep without being written so.
fn chain(links: usize, link: impl Fn(Value) -> Value) -> Value {
    let mut definitions = serde_json::Map::new();
    for index in 0..links {
        let next = json!({"$ref": format!("#/$defs/d{}", index + 1)});
        definitions.insert(format!("d{index}"), link(next));
    }
    definitions.insert(format!("d{links}"), json!({"type": "integer"}));
    json!({"$ref": "#/$defs/d0", "$defs": definitions})
}

/// Forms that ended the process, stalled it or took its memory when it held them itself, and others of the same kinds.
fn hostile_forms() -> Vec<(&'static str, AnswerForm)> {
    use AnswerForm::{JsonSchema, Lark, Regex};
    let object = |inner: Value| json!({"type": "object", "properties": {"a": inner}, "required": ["a"]});
    let list = |inner: Value| json!({"type": "array", "items": inner, "minItems": 1});
    let properties: serde_json::Map<String, Value> =
        (0..4_160).map(|index| (format!("p{index}"), json!({"type": "string"}))).collect();
    let rules = |count: usize, last: &str| {
        let mut text = "start: r0\n".to_owned();
        (0..count).for_each(|index| text += &format!("r{index}: \"a\" r{}\n", index + 1));
        text + &format!("r{count}: {last}\n")
    };
    let terminals = |count: usize| {
        let mut text = "start: T0\n".to_owned();
        (0..count).for_each(|index| text += &format!("T{index}: \"a\" T{}\n", index + 1));
        text + &format!("T{count}: \"b\"\n")
    };
    vec![
        ("deep objects through references", JsonSchema(chain(3_000, object))),
        ("deep lists through references", JsonSchema(chain(3_000, list))),
        ("a chain of references", JsonSchema(chain(10_000, |next| next))),
        ("a chain of allOf", JsonSchema(chain(3_000, |next| json!({"allOf": [next, {"minimum": 1}]})))),
        ("a chain of anyOf", JsonSchema(chain(3_000, |next| json!({"anyOf": [next, {"type": "string"}]})))),
        ("nested allOf", JsonSchema(nested(60, |inner| json!({"allOf": [inner]})))),
        ("many properties", JsonSchema(json!({"type": "object", "properties": properties}))),
        ("itself", JsonSchema(json!({"$ref": "#"}))),
        (
            "both patterns and names",
            JsonSchema(
                json!({"type": "object", "properties": {"ab": {"type": "string"}}, "patternProperties": {"^a": {"type": "integer"}}}),
            ),
        ),
        ("an empty intersection", JsonSchema(json!({"allOf": [{"type": "string"}, {"type": "integer"}]}))),
        ("no number", JsonSchema(json!({"type": "integer", "minimum": 5, "maximum": 4}))),
        ("many items", JsonSchema(json!({"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000_000}))),
        ("a long text", JsonSchema(json!({"type": "string", "minLength": 1_000_000_000}))),
        ("a pattern", JsonSchema(json!({"type": "string", "pattern": "(a{1,1000}){1,1000}"}))),
        ("a long enum", JsonSchema(json!({"enum": (0..40_000).collect::<Vec<_>>()}))),
        ("no character", Regex("[^\\s\\S]".into())),
        ("options before letters", Regex("a?".repeat(10_000) + &"a".repeat(10_000))),
        ("more of them", Regex("a?".repeat(60_000) + &"a".repeat(60_000))),
        ("counted", Regex("((a{100}){100}){100}".into())),
        ("groups", Regex("(".repeat(20_000) + "a" + &")".repeat(20_000))),
        ("alternatives", Regex("(a|aa)+".repeat(300))),
        ("a window", Regex("(.*)(a|b){30}c".into())),
        ("classes", Regex("[\\p{L}--\\p{Lu}]+".repeat(500))),
        ("rules", Lark(rules(8_000, "\"b\""))),
        ("terminals", Lark(terminals(8_000))),
        ("an ambiguous grammar", Lark("start: s\ns: s s s | s s | \"a\" | \"b\" |\n".into())),
        ("another one", Lark("start: s\ns: s s | x s | s x | \"a\"\nx: s | s s |\n".into())),
        ("left and right", Lark("start: e\ne: e \"+\" e | e \"*\" e | e e | /[a-z ]*/ |\n".into())),
        ("brackets in a grammar", Lark(format!("start: {}\"a\"{}\n", "(".repeat(30_000), ")".repeat(30_000)))),
        ("repetitions", Lark("start: (((\"a\"~100)~100)~100)~100\n".into())),
        ("an empty rule", Lark("start: start\n".into())),
    ]
}

#[test]
fn hostile_forms_end_in_an_error_or_an_answer() {
    let forms = Forms::new();
    let (mut refused, mut answered) = (0, 0);
    for (name, form) in hostile_forms() {
        match forms.answer(&form, 1) {
            Ok(_) => answered += 1,
            Err(error) => {
                assert!(error.starts_with("response_format: expected "), "{name}: {error:.300}");
                assert!(error.len() < 1000 && !error.contains("backtrace"), "{name}: {error:.1500}");
                refused += 1;
            }
        }
    }
    assert!(refused >= 8 && answered >= 5, "{refused} refused, {answered} answered");
    let schema = AnswerForm::JsonSchema(json!({"enum": ["fox", "hen"]}));
    let (text, finished) = forms.answer(&schema, 2).expect("a sound schema is as good as before");
    assert!(["\"fox\"", "\"hen\""].contains(&text.as_str()), "{text}");
    assert_eq!(finished, Some(FinishReason::Stop));
}

#[test]
fn answers_have_the_same_text_as_in_the_process_itself() {
    let forms = Forms::new();
    let mut llm = Llm::open(&ModelSource::Directory(demo_folder()), &LoadOptions::default(), &|_, _| {})
        .expect("the model opens");
    let here =
        StructuredOutput::new(llm.text(), llm.spec().vocab_size, FormLimits::default()).expect("there is a tokenizer");
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["kind", "count", "on"],
        "properties": {
            "kind": {"enum": ["fox", "hen"]},
            "count": {"type": "integer", "minimum": 3, "maximum": 40},
            "on": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 6},
        },
    });
    for form in [AnswerForm::JsonSchema(schema), AnswerForm::Regex("(ab|ba){5,9}".into()), AnswerForm::JsonObject] {
        for seed in 0..4 {
            let constraint = here.constraint(&form, "form", &CancelFlag::default()).expect("the form can be used");
            let params = SamplingParams {
                temperature: 1.0,
                seed: Some(seed),
                max_tokens: Some(120),
                ..SamplingParams::default()
            };
            llm.add_constrained(vec![1, 2, 3], &params, Some(constraint)).expect("the request is sound");
            let mut text = String::new();
            while llm.has_unfinished() {
                for event in llm.step().expect("the step runs") {
                    let Ok(Output::Token(token)) = event.output else { panic!("it is sampled") };
                    text += &token.text;
                }
            }
            assert_eq!(forms.answer(&form, seed).expect("it is answered").0, text);
        }
    }
}

#[test]
fn an_error_names_the_part_of_the_schema() {
    let forms = Forms::new();
    let schema = json!({
        "type": "object",
        "properties": {"sound": {"type": "string"}, "list": {"type": "array", "items": {"$ref": "#/$defs/bad"}}},
        "$defs": {"bad": {"type": "object", "properties": {"x": {"type": "wizard"}}}},
    });
    let error = forms.answer(&AnswerForm::JsonSchema(schema), 1).expect_err("there is no such type");
    assert!(error.ends_with("at /$defs/bad/properties/x"), "{error}");
    let limits = AnswerForm::JsonSchema(nested(70, |inner| json!({"items": inner})));
    let error = forms.answer(&limits, 1).expect_err("it is too deep");
    assert!(error.contains("at most 64 levels, found 72"), "{error}");
}

#[test]
fn forms_with_the_same_text_share_a_process_and_cancelled_ones_end_theirs() {
    let forms = Forms::new();
    let form = AnswerForm::Regex("[ab]{3}".into());
    for seed in 0..5 {
        forms.answer(&form, seed).expect("it is answered");
    }
    // One for the template, one for the form, and one that waits for the next.
    assert_eq!(forms.worker.stats().started, 3);
    // Others get the processes of forms that nobody needs, and what is no form leaves its process for the next one.
    for round in 0..20 {
        forms.answer(&AnswerForm::Regex(format!("[a-c]{{{}}}", round % 10 + 1)), 1).expect("it is answered");
        forms.answer(&AnswerForm::Regex(format!("[{round}")), 1).expect_err("it is no expression");
    }
    assert!(forms.worker.stats().started <= 8, "{:?}", forms.worker.stats());
    let cancel = CancelFlag::default();
    let slow = AnswerForm::Regex("a?".repeat(10_000) + &"a".repeat(10_000));
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| forms.structured.constraint(&slow, "form", &cancel).map(drop));
        cancel.cancel();
        assert!(asked.join().expect("it does not panic").is_err());
    });
    forms.answer(&form, 9).expect("others go on");
}

#[test]
fn processes_of_forms_end_when_nobody_has_needed_them_for_a_while() {
    let forms = Forms::with(FormLimits { kept_for: Duration::ZERO, ..FormLimits::default() });
    for count in 1..4 {
        forms.answer(&AnswerForm::Regex(format!("[ab]{{{count}}}")), 1).expect("it is answered");
    }
    // One for the template and one that waits for the next form are left.
    assert!(crate::support::wait_until(|| forms.worker.stats().alive <= 2), "{:?}", forms.worker.stats());
    forms.answer(&AnswerForm::Regex("[ab]{3}".into()), 1).expect("it is compiled again");
}

/// How many random templates are tried: few in every run, more by `BRAIDINFER_MUTATIONS`.
fn rounds() -> usize {
    std::env::var("BRAIDINFER_MUTATIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(150)
}

/// A number up to `most`, as often small as large.
fn size(rng: &mut SmallRng, most: usize) -> usize {
    2_f64.powf(rng.random_range(0.0..(most as f64).log2())) as usize
}

/// A hostile template of a random kind and size.
fn random_template(rng: &mut SmallRng) -> String {
    let pick = |rng: &mut SmallRng, choices: &[&'static str]| *choices.choose(rng).expect("there are some");
    let count = size(rng, 60_000);
    let shown =
        pick(rng, &["", "|tojson", "|string", "|length", "|join", "|list", "|upper", "|indent(9)", "|title", "|sort"]);
    match rng.random_range(0..6) {
        0 => {
            let (open, inner, close) = *[
                ("not ", "true", ""), ("(", "1", ")"), ("[", "1", "]"), ("-", "1", ""), ("1 + ", "1", ""),
                ("1 if 1 else ", "1", ""), ("{'a': ", "1", "}"), ("a|", "b", ""), ("x(", "", ")"), ("a.", "b", ""), ("1 ~ ", "1", ""),
                ("a[", "0", "]"), ("1 in ", "[]", ""), ("1 ** ", "2", ""), ("a and ", "b", ""), ("1 < ", "2", ""),
            ]
            .choose(rng)
            .expect("there are some");
            format!("{{{{ {}{inner}{} }}}}", open.repeat(count), close.repeat(count))
        }
        1 => {
            let step = pick(rng, &[
                "ns.x ~ ns.x", "ns.x + ns.x", "[ns.x, ns.x]", "ns.x|list + ns.x|list", "(ns.x, ns.x)", "ns.x|join(ns.x)",
                "ns.x.replace('a', ns.x)", "ns.x * 9", "{'a': ns.x, 'b': ns.x}", "(ns.x|string) ~ (ns.x|tojson)", "[ns.x]",
                "ns.x.split('a')", "namespace(x=ns.x)", "dict(a=ns.x)", "ns.x|map('string')", "ns.x|batch(2)|list",
            ]);
            let turns = size(rng, 50_000);
            format!("{{% set ns = namespace(x='ab') %}}{{% for i in range({turns}) %}}{{% set ns.x = {step} %}}{{% endfor %}}{{{{ ns.x{shown} }}}}")
        }
        2 => {
            let (open, close) = *[
                ("{% if 1 %}", "{% endif %}"), ("{% for a in [1] %}", "{% endfor %}"), ("{% set a %}", "{% endset %}"),
                ("{% filter upper %}", "{% endfilter %}"), ("{% macro m() %}", "{% endmacro %}"), ("{% call m() %}", "{% endcall %}"),
                ("{% with a=1 %}", "{% endwith %}"), ("{% if 1 %}{% else %}", ""), ("{% if 1 %}{% elif 1 %}", ""), ("{# ", "#}"),
            ]
            .choose(rng)
            .expect("there are some");
            open.repeat(count) + "x" + &close.repeat(count)
        }
        3 => {
            let parts = ["{%", "%}", "{{", "}}", "{#", "#}", "-", " ", "if", "for", "x", "raw", "'", "|", "(", "generation", "\u{e9}", "endif", "in", "\n", "0x", "1e", "."];
            (0..count.min(400)).map(|_| pick(rng, &parts)).collect()
        }
        4 => {
            let number = 10_u64.pow(rng.random_range(3..19)).to_string();
            let work = pick(rng, &[
                "'%{n}d' % 1", "'a' * {n}", "[1] * {n}", "[1]|batch({n}, 0)|list", "[1]|slice({n}, 0)|list", "'a'|indent({n})",
                "range({n})|list", "range({n})|join('x' * 99999)", "'a'.ljust({n})", "'a'|center({n})", "'%.{n}f' % 1.5",
                "'a'.zfill({n})", "10 ** {n}", "'{:>{n}}'.format(1)", "[3]|tojson(indent={n})", "'abc'|truncate({n})",
                "'a b'.split(' ', {n})", "'a'[{n}:]", "messages|map(attribute='x' * {n})|list", "'%c' % {n}", "{n}|filesizeformat",
            ]);
            format!("{{{{ ({}){shown} }}}}", work.replace("{n}", &number))
        }
        _ => "{% macro m(a) %}{{ m(a ~ a) }}{% endmacro %}{% for a in range(99999) %}{% for b in range(99999) %}{{ m('ab') }}{% endfor %}{% endfor %}".into(),
    }
}

#[test]
fn random_hostile_templates_end_in_an_error_or_a_text() {
    let worker = worker();
    let seed = 17;
    let mut rng = SmallRng::seed_from_u64(seed);
    for round in 0..rounds() {
        let template = random_template(&mut rng);
        let files = BTreeMap::from([("chat_template.jinja".to_owned(), Arc::from(template.clone().into_bytes()))]);
        let source = ModelSource::Memory { label: "hostile".into(), files: Arc::new(files) };
        let settings = TokenizerSettings::read(&source).expect("there are none");
        let read = ChatTemplate::read(&source, &settings, Some(&worker));
        let rendered =
            read.map(|template| template.expect("it is there").render(&[ChatMessage::new("user", "a")], true));
        if let Err(error) | Ok(Err(error)) = rendered {
            let error = error.to_string();
            assert!(
                error.contains("chat_template.jinja: "),
                "seed {seed}, round {round}: {error:.300} for {template:.200}"
            );
            assert!(!error.contains("panic") || error.len() < 2000, "seed {seed}, round {round}: {error:.300}");
        }
    }
    assert!(crate::support::wait_until(|| worker.stats().alive == 0), "a worker outlives its template");
}
