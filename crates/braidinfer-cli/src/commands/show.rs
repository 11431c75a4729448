//! `braidinfer show`.

use braidinfer::conversation::{ReasoningFormat, ToolCallFormat};
use braidinfer::text::InfillTokens;
use braidinfer::{Aliases, LoadOptions, ModelName, ModelText, Outline, Places, ResolveOptions};
use braidinfer_hub::Settings;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde::Serialize;

use crate::args::ShowArgs;
use crate::output::size;
use crate::{model, output};

#[derive(Serialize)]
struct Shown {
    name: String,
    /// Who put it there; `null` for a path that was given.
    place: Option<String>,
    path: String,
    /// Short names that stand for it.
    aliases: Vec<String>,
    model_type: String,
    parameters: usize,
    bytes: usize,
    dtype: &'static str,
    context_length: usize,
    vocab_size: usize,
    hidden_size: usize,
    /// What it can do besides completing a text: `chat`, `tools`, `reasoning`, `infill`.
    can: Vec<&'static str>,
    reasoning_format: Option<&'static str>,
    tool_call_format: Option<&'static str>,
}

pub fn run(args: &ShowArgs) -> anyhow::Result<()> {
    let shown = shown(args)?;
    if args.json {
        return output::print_json(&shown);
    }
    let mut table = Table::new();
    table.load_style(NOTHING);
    let in_words = |formats: Option<&str>| formats.unwrap_or("none").to_owned();
    for (name, value) in [
        ("name", shown.name),
        ("found in", shown.place.unwrap_or_else(|| "path".into())),
        ("path", shown.path),
        ("aliases", if shown.aliases.is_empty() { "none".into() } else { shown.aliases.join(", ") }),
        ("architecture", shown.model_type),
        ("parameters", format!("{:.1} M", shown.parameters as f64 / 1e6)),
        ("weights", format!("{}, mostly {}", size(shown.bytes as u64), shown.dtype)),
        ("context", format!("{} tokens", shown.context_length)),
        ("can", [&["complete"], &*shown.can].concat().join(", ")),
        ("reasoning format", in_words(shown.reasoning_format)),
        ("tool call format", in_words(shown.tool_call_format)),
    ] {
        table.add_row([name, &*output::one_line(&value)]);
    }
    output::print_line(table)
}

fn shown(args: &ShowArgs) -> anyhow::Result<Shown> {
    let name = ModelName::parse_argument(&args.model)?;
    if let ModelName::Path(path) = &name {
        model::require_path(path)?;
    }
    // To look at a model does not fetch it.
    let hub = Settings { offline: true, ..Settings::from_env()? };
    let source = name.resolve(&ResolveOptions { hub: Some(hub) }, &mut ())?;
    let options = LoadOptions { worker: Some(model::worker()?), ..LoadOptions::default() };
    let Outline { model_type, context, hidden_size, vocab_size, weights, text } = Outline::read(&source, &options)?;
    let path = source.label();
    let found = match &name {
        ModelName::Local(found) => Some(found.clone()),
        _ => Places::from_env().models().into_iter().find(|model| model.path.to_str() == Some(&path)),
    };
    let called = found.as_ref().map_or_else(|| path.clone(), |found| found.name.clone());
    let stands_for = |target: &str| target == called || target == path;
    let aliases = Aliases::from_env()?;
    let aliases = aliases.iter().flat_map(Aliases::iter).filter(|(_, target)| stands_for(target));
    let template = text.chat_template();
    let takes_tools = template.is_some_and(|template| template.has_place_for_tools().unwrap_or(false));
    let for_tools = template.and_then(|template| template.for_tools().ok()).filter(|_| takes_tools);
    let reasoning = template.and_then(ReasoningFormat::of);
    Ok(Shown {
        aliases: aliases.map(|(alias, _)| alias.to_owned()).collect(),
        place: found.map(|found| found.place.to_string()),
        name: called,
        path,
        model_type,
        parameters: weights.parameters,
        bytes: weights.bytes,
        dtype: weights.dtype,
        context_length: context,
        vocab_size,
        hidden_size,
        can: can(&text, takes_tools, reasoning.is_some()),
        reasoning_format: reasoning.map(|format| format.name),
        tool_call_format: for_tools.map(|template| ToolCallFormat::of(template).name),
    })
}

fn can(text: &ModelText, takes_tools: bool, reasons: bool) -> Vec<&'static str> {
    let fills_in = text.tokenizer().and_then(InfillTokens::of).is_some();
    let has_template = text.chat_template().is_some();
    [("chat", has_template), ("tools", takes_tools), ("reasoning", reasons), ("infill", fills_in)]
        .into_iter()
        .filter_map(|(name, can)| can.then_some(name))
        .collect()
}
