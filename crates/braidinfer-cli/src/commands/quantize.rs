//! `braidinfer quantize`.

use std::ops::ControlFlow;

use braidinfer::{QuantizeOptions, QuantizeReport, Threads};

use super::perplexity;
use crate::args::QuantizeArgs;
use crate::{interrupt, model, output};

pub fn run(args: QuantizeArgs) -> anyhow::Result<()> {
    interrupt::install()?;
    let threads = Threads::new(args.threads)?;
    let source = model::source(Some(&args.source))?;
    let reading = match args.perplexity {
        true => Some(perplexity::before_quantizing(&source, args.file.as_ref())?),
        false => None,
    };
    let bar = output::progress_bar(&format!("quantizing {}", source.label()), "tensors");
    // A signal ends the work between two tensors, so that no incomplete file is left.
    let working = interrupt::Working::begin();
    let options =
        QuantizeOptions { file_type: args.file_type, overwrite: args.force, imatrix: args.imatrix.as_deref() };
    let report = braidinfer::quantize_with(&source, &args.destination, options, &threads, &mut |done, tensors| {
        bar.set_length(tensors as u64);
        bar.set_position(done as u64);
        if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    drop(working);
    bar.finish_and_clear();
    let report = match report {
        Err(braidinfer::Error::Cancelled) => {
            output::note(braidinfer::Error::Cancelled);
            return Ok(());
        }
        report => report?,
    };
    report.notes.iter().for_each(output::note);
    output::print_line(output::one_line(&summary(&args, &report)))?;
    reading.map_or(Ok(()), |reading| {
        perplexity::after_quantizing(&args.source, args.destination.as_os_str(), &reading, args.threads)
    })
}

/// A summary of the written file, in one line.
fn summary(args: &QuantizeArgs, report: &QuantizeReport) -> String {
    let tensors: Vec<String> = report.tensors.iter().map(|(dtype, count)| format!("{count} {dtype}")).collect();
    format!(
        "{}: {} ({} of weights before), tensors: {}",
        args.destination.display(),
        output::size(report.file_bytes),
        output::size(report.source_bytes),
        tensors.join(", ")
    )
}
