//! `braidinfer imatrix`.

use std::ops::ControlFlow;

use braidinfer::{Calibration, Prompt};

use crate::args::{ImatrixArgs, MOST_TOKENS, check_count};
use crate::{interrupt, model, output};

pub fn run(args: ImatrixArgs) -> anyhow::Result<()> {
    interrupt::install()?;
    check_count("chunk", args.chunk, 1..=MOST_TOKENS)?;
    let text = model::read_text_in(&args.text)?;
    let source = model::source(Some(&args.model))?;
    let name = args.text.display().to_string();
    let prompt = Prompt::Text(text);
    let reading = Calibration { prompt: &prompt, name: &name, chunk: args.chunk, chunks: args.chunks };
    let bar = output::progress_bar(&format!("reading {name}"), "chunks");
    // A signal ends the work between two chunks, so that no incomplete file is left.
    let working = interrupt::Working::begin();
    let report =
        braidinfer::write_imatrix(&source, &args.out, reading, args.force, args.threads, &mut |done, chunks| {
            bar.set_length(chunks as u64);
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
    let (chunks, tensors) = (report.chunks, report.tensors);
    let file = output::size(report.file_bytes);
    let line = format!("{}: {file}, {tensors} tensors, {chunks} chunks of {} tokens", args.out.display(), args.chunk);
    output::print_line(output::one_line(&line))
}
