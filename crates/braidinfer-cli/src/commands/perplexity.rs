//! `braidinfer perplexity`.

use std::ffi::OsStr;
use std::path::PathBuf;

use anyhow::bail;
use braidinfer::compat::Precision;
use braidinfer::executor::Kernels;
use braidinfer::model::{ModelSource, describe};
use braidinfer::perplexity::{Perplexity, Reading, SHORTEST, perplexity};
use braidinfer::text::{Tokenizer, TokenizerSettings};
use braidinfer::{LoadOptions, Prompt};
use comfy_table::Table;

use crate::args::{ComputingArgs, Ids, MOST_TOKENS, PerplexityArgs, check_count};
use crate::report::number;
use crate::side::LocalModel;
use crate::{interrupt, model, output};

pub fn run(args: PerplexityArgs) -> anyhow::Result<()> {
    interrupt::install()?;
    if args.context < SHORTEST {
        bail!("--context: expected at least {SHORTEST} tokens, found {}", args.context);
    }
    check_count("context", args.context, SHORTEST..=MOST_TOKENS)?;
    let reading = match args.ids {
        Some(Ids(ids)) => Reading { prompt: Prompt::Ids(ids), context: args.context },
        None => reading(args.file.as_ref(), args.context)?,
    };
    let own = LocalModel::parse_over(&args.model, &computing(args.threads))?;
    let against = args.against.map(|against| own.other(&against)).transpose()?;
    print(measure(&own, against.as_ref(), &reading)?.as_ref(), args.json)
}

/// The text to measure: from a file, or the built-in text.
pub fn reading(file: Option<&PathBuf>, context: usize) -> anyhow::Result<Reading> {
    match file {
        Some(path) => Ok(Reading { prompt: Prompt::Text(model::read_text_in(path)?), context }),
        None => Ok(Reading::built_in(context)),
    }
}

/// Default number of tokens per chunk, as in llama.cpp's tool.
pub const CONTEXT: usize = 512;

/// The text to measure on a file that is yet to be written. Called first, so that errors show before quantizing.
pub fn before_quantizing(source: &ModelSource, file: Option<&PathBuf>) -> anyhow::Result<Reading> {
    let (description, _) = describe(source)?;
    let settings = TokenizerSettings::read(source)?;
    if Tokenizer::read(source, &settings)?.is_none() {
        bail!("--perplexity: expected a model with a tokenizer, found none in {}", source.label());
    }
    reading(file, CONTEXT.min(description.spec.context_length()))
}

/// Measures the quantized file against its source.
pub fn after_quantizing(
    source: &OsStr,
    written: &OsStr,
    reading: &Reading,
    threads: Option<usize>,
) -> anyhow::Result<()> {
    let options = model::options(Kernels::Auto, &computing(threads))?;
    let exact = |model: &OsStr| LocalModel {
        model: model.to_owned(),
        options: LoadOptions { precision: Precision::Exact, ..options.clone() },
    };
    let found = measure(&exact(written), Some(&exact(source)), reading)?;
    print(found.as_ref(), false)
}

fn computing(threads: Option<usize>) -> ComputingArgs {
    ComputingArgs { threads, ..ComputingArgs::default() }
}

fn measure(own: &LocalModel, against: Option<&LocalModel>, reading: &Reading) -> anyhow::Result<Option<Perplexity>> {
    let mut llm = own.load()?;
    let mut other = against.map(LocalModel::load).transpose()?;
    let bar = output::progress_bar("reading", "chunks");
    // A signal ends the measurement between two chunks, without a result for only part of the text.
    let working = interrupt::Working::begin();
    let found = perplexity(&mut llm, other.as_mut(), reading, &mut |so_far| {
        bar.set_length(so_far.all_chunks as u64);
        bar.set_position(so_far.chunks as u64);
        bar.set_message(format!("perplexity {}", number(so_far.perplexity)));
        !interrupt::requested()
    });
    drop(working);
    bar.finish_and_clear();
    Ok(found?)
}

fn print(found: Option<&Perplexity>, json: bool) -> anyhow::Result<()> {
    let Some(found) = found else {
        output::note("cancelled: nothing was measured");
        return Ok(());
    };
    if json { output::print_json(found) } else { output::print_line(table(found)) }
}

/// A mean with its standard error, which is undefined for a single prediction.
fn mean(value: f64, standard_error: f64, number: fn(f64) -> String) -> String {
    let error = if standard_error.is_finite() { number(standard_error) } else { "unknown".to_owned() };
    format!("{} ± {error}", number(value))
}

fn table(found: &Perplexity) -> Table {
    let mut table = Table::new();
    table.load_style(output::TABLE).set_header(["", ""]);
    let mut row = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    let plain = |value: f64| format!("{value:.4}");
    row("perplexity", mean(found.perplexity, found.standard_error, plain));
    row("loss", format!("{:.4} nats per token", found.loss));
    let Perplexity { tokens, context, chunks, positions, .. } = found;
    row("read", format!("{chunks} chunks of {context} tokens, of {tokens}; {positions} predictions counted"));
    if let Some(against) = &found.against {
        row("the other's perplexity", mean(against.perplexity, against.standard_error, plain));
        row("mean KL from it", format!("{} nats", mean(against.kl_mean, against.kl_standard_error, number)));
        row("median, 99 %, largest", [against.kl_median, against.kl_p99, against.kl_max].map(number).join(", "));
        let percent = |share: f64| format!("{:.2}", 100.0 * share);
        let (same, changed) = (percent(against.top1_agreement), against.changed);
        row("the same likeliest token", format!("{same} %"));
        let interval = format!("95 %: {} to {}", percent(changed.low), percent(changed.high));
        row("another one beyond near ties", format!("{} % ({interval})", percent(changed.share)));
    }
    table
}
