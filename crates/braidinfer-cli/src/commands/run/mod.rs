//! `braidinfer run`.

mod asked;

use std::borrow::Cow;
use std::fs;
use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use braidinfer::engine::TokenLogprobs;
use braidinfer::{
    Completion, FinishReason, GenerateRequest, Llm, Prompt, SamplingParams, SavedPrefixes, StreamEvent, Timings,
};
use serde::Serialize;

use self::asked::{Asked, Request};
use super::printer::{AnswerPrinter, CUT};
use crate::args::RunArgs;
use crate::output::counted;
use crate::{interrupt, model, output, stderr};

#[derive(Serialize)]
struct RunJson<'a> {
    prompt_ids: &'a [u32],
    ids: &'a [u32],
    text: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reasoning: &'a str,
    finish_reason: &'static str,
    kernels: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<LogprobsJson>>,
    guesses: GuessesJson,
    timings: TimingsJson,
}

/// Tokens that were guessed, by a draft model or by prompt lookup.
#[derive(Serialize)]
struct GuessesJson {
    made: usize,
    right: usize,
}

#[derive(Serialize)]
struct LogprobsJson {
    #[serde(flatten)]
    token: LikelyJson,
    /// The likeliest tokens at its place.
    top: Vec<LikelyJson>,
}

#[derive(Serialize)]
struct LikelyJson {
    id: u32,
    /// Its spelling; `null` if the model has no tokenizer.
    token: Option<String>,
    logprob: f32,
}

#[derive(Serialize)]
struct TimingsJson {
    load_ms: f64,
    prefill_ms: f64,
    decode_ms: f64,
    prefill_tok_s: f64,
    decode_tok_s: f64,
}

pub fn run(mut args: RunArgs) -> anyhow::Result<()> {
    let elsewhere = args.ids.is_some() || args.file.is_some();
    let (model_arg, text) = model::split_positional(std::mem::take(&mut args.positional), elsewhere)?;
    // As other programs have it.
    let is_piped = text.as_deref() == Some("-");
    if is_piped && elsewhere {
        bail!("expected one source of text, found `-`, which is standard input, beside --ids or --file");
    }
    let text = text.filter(|_| !is_piped);
    if is_piped {
        args.file = Some("-".into());
    }
    let asked = Asked::read(&args, text)?;
    if let Some(path) = &mut args.prompt_cache {
        *path = prompt_cache(path, args.prompt_cache_ro)?;
    }
    if model_arg.is_none() {
        output::note(match asked.word() {
            Some(word) => {
                format!("no model is called `{}`: the built-in demo model answers it", output::one_line(word))
            }
            None => "no MODEL given: the built-in demo model answers".to_owned(),
        });
    }
    let saved_prefixes = args.prompt_cache.as_ref().map(|_| SavedPrefixes::Files);
    let adapter = model::only_adapter(&args.load)?;
    let (mut llm, load) = model::open_with(model_arg.as_deref(), &args.load, saved_prefixes)?;
    let params = args.sampling.override_defaults(llm.default_sampling());
    let params = SamplingParams { logprobs: args.logprobs, ..params };
    let has_text = llm.tokenizer().is_some();
    if !has_text {
        output::note("the model has no tokenizer: the answer is token ids");
    }
    let Request { prompt, format, constraint, continued } = asked.of(&llm)?;
    // A text that is completed has no end of its own.
    let must_end = constraint.is_some() || (continued.is_none() && args.ids.is_none());
    if let Some(text) = continued.filter(|_| !args.json && io::stdout().is_terminal()) {
        output::print_dim(&text)?;
    }
    let prompt = match &args.prompt_cache {
        Some(path) => restored(&mut llm, path, args.prompt_cache_ro, prompt, adapter)?,
        None => prompt,
    };
    // Notes come before the answer also where both go to one file.
    stderr::flush();
    let mut printer =
        Printer { silent: args.json, has_text, started: false, answer: AnswerPrinter::default(), result: Ok(()) };
    let wanted = GenerateRequest { params, constraint, format, adapter };
    let streaming = interrupt::Working::begin();
    let answered = llm.stream_request(&[prompt], &wanted, &mut |event| printer.show(&event));
    drop(streaming);
    llm.take_notices().iter().for_each(output::note);
    let (completions, timings) = answered?;
    printer.result?;
    let completion = &completions[0];
    if let Some(path) = args.prompt_cache.as_ref().filter(|_| !args.prompt_cache_ro) {
        llm.save_prompt(path, &[&*completion.prompt_ids, &completion.ids].concat(), adapter)?;
    }
    if args.ids.is_none() {
        model::note_unread_input();
    }
    if args.json {
        return print_json(completion, &llm, load, timings);
    }
    output::print("\n")?;
    printer.answer.note_hidden();
    if must_end && completion.finish_reason == FinishReason::Length {
        output::note(CUT);
    }
    Ok(())
}

/// The file of a saved prompt, which a link may lead to. Fails before anything is computed if it could not be written.
fn prompt_cache(path: &Path, is_read_only: bool) -> anyhow::Result<PathBuf> {
    let shown = path.display();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        bail!(
            "--prompt-cache {shown}: expected a file in a folder that is there, found no folder {}",
            folder.display()
        );
    }
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if !is_read_only && fs::metadata(&path).is_ok_and(|metadata| metadata.permissions().readonly()) {
        bail!(
            "--prompt-cache {shown}: expected a file that may be written, or --prompt-cache-ro, found a read-only file"
        );
    }
    Ok(path)
}

/// Takes what a prompt begins with from a file, and returns its tokens.
fn restored(
    llm: &mut Llm,
    path: &Path,
    is_read_only: bool,
    prompt: Prompt,
    adapter: Option<u32>,
) -> anyhow::Result<Prompt> {
    let ids = llm.encode(&prompt)?;
    let (saved, known) = (llm.saved_prompt(path, adapter)?, llm.restore_prompt(path, &ids, adapter)?);
    output::note(format!("{known} of {} of the prompt are from {}", counted(ids.len(), "token"), path.display()));
    // More is lost than this prompt is worth.
    if saved - known > ids.len() && !is_read_only {
        output::note(format!(
            "{} of {} that are saved there make room for this prompt; --prompt-cache-ro would keep them",
            saved - known,
            counted(saved, "token")
        ));
    }
    Ok(Prompt::Ids(ids))
}

/// Prints an answer while it is generated; stops it if printing fails or a signal asks for the end.
struct Printer {
    silent: bool,
    /// Whether the model has a tokenizer; otherwise token ids are printed.
    has_text: bool,
    started: bool,
    answer: AnswerPrinter,
    result: anyhow::Result<()>,
}

impl Printer {
    fn show(&mut self, event: &StreamEvent) -> ControlFlow<()> {
        if interrupt::requested() {
            return ControlFlow::Break(());
        }
        if !self.silent {
            self.result = match self.has_text {
                true => self.answer.print(event),
                false => output::print(&format!("{}{}", if self.started { "," } else { "" }, event.token)),
            };
        }
        self.started = true;
        if self.result.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

fn print_json(completion: &Completion, llm: &Llm, load: Duration, timings: Timings) -> anyhow::Result<()> {
    let spelled = |id: u32| llm.tokenizer().and_then(|tokenizer| tokenizer.id_to_token(id)).map(Cow::into_owned);
    let likely = |(id, logprob): (u32, f32)| LikelyJson { id, token: spelled(id), logprob };
    let logprobs = |found: &TokenLogprobs| LogprobsJson {
        token: likely((found.token, found.logprob)),
        top: found.top.iter().copied().map(likely).collect(),
    };
    let logprobs: Option<Vec<LogprobsJson>> =
        completion.logprobs.as_ref().map(|all| all.iter().map(logprobs).collect());
    output::print_json(&RunJson {
        prompt_ids: &completion.prompt_ids,
        ids: &completion.ids,
        text: &completion.text,
        reasoning: &completion.reasoning,
        finish_reason: completion.finish_reason.as_str(),
        kernels: llm.kernels().as_str(),
        logprobs,
        guesses: GuessesJson { made: llm.stats().draft_tokens, right: llm.stats().accepted_tokens },
        timings: TimingsJson {
            load_ms: milliseconds(load),
            prefill_ms: milliseconds(timings.prefill),
            decode_ms: milliseconds(timings.decode),
            prefill_tok_s: rate(timings.prefill_tokens, timings.prefill),
            decode_tok_s: rate(timings.decode_tokens, timings.decode),
        },
    })
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// Tokens per second; 0 if there are no tokens.
fn rate(tokens: usize, duration: Duration) -> f64 {
    if tokens == 0 || duration.is_zero() { 0.0 } else { (tokens as f64 / duration.as_secs_f64() * 1e3).round() / 1e3 }
}
