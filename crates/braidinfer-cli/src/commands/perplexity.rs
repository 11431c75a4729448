//! `braidinfer perplexity`.

use std::path::PathBuf;

use braidinfer::compat::Precision;
use braidinfer::executor::Kernels;
use braidinfer::perplexity::{Against, Perplexity, Reading, perplexity};
use braidinfer::{LoadOptions, Prompt};
use comfy_table::Table;

use crate::args::{ComputingArgs, Ids, PerplexityArgs};
use crate::report::number;
use crate::side::Local;
use crate::{interrupt, model, output};

pub fn run(args: PerplexityArgs) -> anyhow::Result<()> {
    interrupt::install()?;
    if let Some(threads) = args.threads {
        braidinfer::executor::set_threads(threads)?;
    }
    let reading = match args.ids {
        Some(Ids(ids)) => Reading { prompt: Prompt::Ids(ids), context: args.context },
        None => reading(args.file.as_ref(), args.context)?,
    };
    let own = Local::parse(&args.model)?;
    let against = args.against.map(|against| own.other(&against)).transpose()?;
    print(measure(&own, against.as_ref(), &reading)?.as_ref(), args.json)
}

/// A text from a file, or the built-in one.
pub fn reading(file: Option<&PathBuf>, context: usize) -> anyhow::Result<Reading> {
    match file {
        Some(_) => Ok(Reading { prompt: Prompt::Text(model::read_text(file, "a text")?), context }),
        None => Ok(Reading::built_in(context)),
    }
}

/// What was written, beside where it comes from.
pub fn after_quantizing(source: &str, written: &str, file: Option<&PathBuf>) -> anyhow::Result<()> {
    const CONTEXT: usize = 512;
    let options = model::options(Kernels::Auto, &ComputingArgs::default())?;
    let exact = |model: &str| Local {
        model: model.to_owned(),
        options: LoadOptions { precision: Precision::Exact, ..options.clone() },
    };
    let found = measure(&exact(written), Some(&exact(source)), &reading(file, CONTEXT)?)?;
    print(found.as_ref(), false)
}

fn measure(own: &Local, against: Option<&Local>, reading: &Reading) -> anyhow::Result<Option<Perplexity>> {
    let mut llm = own.load()?;
    let mut other = against.map(Local::load).transpose()?;
    let bar = output::progress_bar("reading", "chunks");
    // Ctrl-C ends the measurement between two chunks, without a figure of less text than was asked for.
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

fn table(found: &Perplexity) -> Table {
    let mut table = Table::new();
    table.load_style(output::TABLE).set_header(["", ""]);
    let mut row = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    row("perplexity", format!("{:.4} ± {:.4}", found.perplexity, found.standard_error));
    row("loss", format!("{:.4} nats per token", found.loss));
    let Perplexity { tokens, context, chunks, positions, .. } = found;
    row("read", format!("{chunks} chunks of {context} tokens, of {tokens}; {positions} predictions counted"));
    if let Some(Against { perplexity, standard_error, divergence }) = &found.against {
        row("the other's perplexity", format!("{perplexity:.4} ± {standard_error:.4}"));
        let mean = format!("{} ± {}", number(divergence.kl_mean), number(divergence.kl_standard_error));
        row("mean KL from it", format!("{mean} nats"));
        row(
            "median, 99 %, largest",
            [divergence.kl_median, divergence.kl_p99, divergence.kl_max].map(number).join(", "),
        );
        let percent = |share: f64| format!("{:.2}", 100.0 * share);
        let (same, changed) = (percent(divergence.top1_agreement), divergence.changed());
        row("the same likeliest token", format!("{same} %"));
        let interval = format!("95 %: {} to {}", percent(changed.low), percent(changed.high));
        row("another one beyond near ties", format!("{} % ({interval})", percent(changed.share)));
    }
    table
}
