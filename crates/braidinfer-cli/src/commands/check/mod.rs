//! `braidinfer check`.

pub mod document;

use braidinfer::compat::{CompatReport, Status};
use braidinfer::executor::Kernels;
use braidinfer::{CheckDepth, LoadOptions};

use crate::args::CheckArgs;
use crate::report::Delivery;
use crate::{interrupt, model, output, wording};

pub fn run(args: CheckArgs) -> anyhow::Result<u8> {
    let delivery = Delivery::of(&args.report.output)?;
    interrupt::install()?;
    let source = model::source(args.model.as_deref())?;
    let options = LoadOptions {
        precision: args.precision.precision.into(),
        adapters: model::adapters(args.lora.as_slice()),
        ..model::options(Kernels::Auto, &args.computing)?
    };
    let measured = CheckDepth::Measured(args.report.thoroughness());
    let depth = if args.static_only { CheckDepth::Static } else { measured };
    let (report, notes) =
        model::with_progress("checking", &source, |progress| braidinfer::check(&source, &options, depth, progress))?;
    notes.iter().for_each(output::note);
    let report = wording::compat(report);
    delivery.deliver(&document::of(&report, true), &document::of(&report, args.verbose), &report)?;
    Ok(exit_code(&report))
}

fn exit_code(report: &CompatReport) -> u8 {
    match report.status {
        Status::Compatible => 0,
        Status::Warning => 1,
        Status::Incompatible => 2,
    }
}
