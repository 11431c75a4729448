//! `braidinfer validate`.

use braidinfer::LoadOptions;
use braidinfer::executor::Kernels;
use braidinfer::validation::{Finding, Outcome, Sample, ValidationReport, validate};

use super::check::document as compat_document;
use crate::args::ValidateArgs;
use crate::report::{Delivery, Document, DocumentBlock, Rating, Verdict};
use crate::{interrupt, model, wording};

pub fn run(args: ValidateArgs) -> anyhow::Result<u8> {
    let delivery = Delivery::of(&args.report.output)?;
    interrupt::install()?;
    let source = model::source(args.model.as_deref())?;
    let options =
        LoadOptions { precision: args.precision.precision.into(), ..model::options(Kernels::Auto, &args.computing)? };
    let thoroughness = args.report.thoroughness();
    let report =
        model::with_progress("validating", &source, |progress| validate(&source, &options, thoroughness, progress))?;
    let report = wording::validation(report);
    delivery.deliver(&document(&report, true), &document(&report, false), &report)?;
    Ok(exit_code(report.outcome))
}

pub fn exit_code(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Pass => 0,
        Outcome::Warn => 1,
        Outcome::Fail => 2,
    }
}

/// The full report, or without `detail` a summary that fits a terminal.
fn document(report: &ValidationReport, detail: bool) -> Document {
    let count = |outcome| report.findings.iter().filter(|finding| finding.outcome == outcome).count();
    let mut document = Document {
        title: format!("Is {} ready?", report.model),
        verdict: Some(Verdict {
            word: report.outcome.as_str().to_owned(),
            rating: match report.outcome {
                Outcome::Pass => Rating::Good,
                Outcome::Warn => Rating::Doubtful,
                Outcome::Fail => Rating::Bad,
            },
            sentence: format!(
                "{} passed, {} to look at, {} failed.",
                count(Outcome::Pass),
                count(Outcome::Warn),
                count(Outcome::Fail)
            ),
        }),
        ..Document::default()
    };
    let row = |finding: &Finding| {
        let area = format!("{}: {}", finding.area, finding.what);
        [area, finding.outcome.as_str().to_owned(), finding.found.clone()]
    };
    document.table(["what", "outcome", "found"], report.findings.iter().map(row));
    let fixes: Vec<String> = report.findings.iter().filter_map(fix).collect();
    if !fixes.is_empty() {
        document.heading("What to do");
        document.list(fixes);
    }
    if !report.samples.is_empty() {
        document.heading("Answers on both kernels");
        report.samples.iter().for_each(|sample| add_sample(&mut document, sample));
    }
    if let Some(compat) = report.compat.as_ref().filter(|_| detail) {
        let compat = compat_document::of(compat, true);
        document.heading(compat.title);
        document.blocks.extend(compat.verdict.map(|verdict| DocumentBlock::Paragraph(verdict.sentence)));
        document.blocks.extend(compat.blocks);
    }
    document
}

fn fix(finding: &Finding) -> Option<String> {
    let fix = finding.fix.as_ref()?;
    Some(format!("{} ({}: {}): {fix}", finding.outcome.as_str(), finding.area, finding.what))
}

fn add_sample(document: &mut Document, sample: &Sample) {
    let kernels = match sample.first_difference {
        None => vec![["both".to_owned(), sample.standard.clone()]],
        Some(token) => vec![
            ["standard".to_owned(), sample.standard.clone()],
            [format!("fused, other from token {token} on"), sample.fused.clone()],
        ],
    };
    let prompt = [["prompt".to_owned(), sample.prompt.clone()]];
    document.table(["", ""], prompt.into_iter().chain(kernels));
}
