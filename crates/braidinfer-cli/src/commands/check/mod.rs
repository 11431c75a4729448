//! `braidinfer check`.

pub mod document;

use std::process::ExitCode;

use braidinfer::CheckDepth;
use braidinfer::compat::{CompatReport, Status, Thoroughness};
use braidinfer::executor::Kernels;

use crate::args::CheckArgs;
use crate::report::{self, Export};
use crate::{model, output};

pub fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let export = args.export.as_deref().map(Export::to).transpose()?;
    model::prepare(&args.computing)?;
    let source = model::source(args.model.as_deref())?;
    let options = model::options(Kernels::Auto, &args.computing)?;
    let depth = if args.static_only { CheckDepth::Static } else { CheckDepth::Measured(thoroughness(args.full)) };
    let (report, notes) =
        model::with_progress("checking", &source, |progress| braidinfer::check(&source, &options, depth, progress))?;
    notes.iter().for_each(output::note);
    if let Some(export) = export {
        export.write(&document::of(&report, true), &report)?;
    }
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print(&report::as_text(&document::of(&report, args.verbose)))?;
    }
    Ok(exit_code(&report))
}

/// How thorough a check is that someone waits for.
pub fn thoroughness(full: bool) -> Thoroughness {
    if full { Thoroughness::Full } else { Thoroughness::Normal }
}

fn exit_code(report: &CompatReport) -> ExitCode {
    ExitCode::from(match report.status {
        Status::Compatible => 0,
        Status::Warning => 1,
        Status::Incompatible => 2,
    })
}
