//! `braidinfer tokenize`.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Context, bail};
use braidinfer::text::{Piece, Tokenizer, TokenizerSettings};
use serde::Serialize;

use crate::args::TokenizeArgs;
use crate::{model, output};

#[derive(Serialize)]
struct TokenizeJson {
    ids: Vec<u32>,
    pieces: Vec<String>,
}

pub fn run(args: TokenizeArgs) -> anyhow::Result<()> {
    let (model_arg, text) = model::split_positional(args.positional, args.file.is_some())?;
    let tokenizer = open(model_arg.as_deref())?;
    tokenizer.notes().iter().for_each(output::note);
    let text = match text {
        Some(text) if args.file.is_some() => bail!("--file: expected one source of text, found the argument `{text}`"),
        Some(text) if text == "-" => model::read_text(Some(&text.into()), "a text")?,
        Some(text) => text,
        None => model::read_text(args.file.as_ref(), "a text")?,
    };
    let ids = if args.no_special { tokenizer.encode(&text, false)? } else { tokenizer.encode_prompt(&text)? };
    let pieces = tokenizer.pieces(&ids);
    if args.json {
        return output::print_json(&TokenizeJson {
            ids,
            pieces: pieces.into_iter().map(|piece| piece.piece).collect(),
        });
    }
    pieces.iter().try_for_each(|Piece { id, piece }| output::print_line(format!("{id:>8}  {piece:?}")))
}

/// The tokenizer of a model, or of a separate tokenizer file.
fn open(model_arg: Option<&OsStr>) -> anyhow::Result<Tokenizer> {
    let path = model_arg.map(Path::new).filter(|path| path.is_file());
    if let Some(path) = path.filter(|path| path.extension().is_some_and(|kind| kind == "json" || kind == "model")) {
        return Ok(Tokenizer::read_file(path)?);
    }
    let source = model::source(model_arg)?;
    let missing = || format!("{}: expected `tokenizer.json` or `tokenizer.model`, found neither", source.label());
    Tokenizer::read(&source, &TokenizerSettings::read(&source)?)?.with_context(missing)
}
