//! `braidinfer compare`.

use braidinfer::LoadOptions;
use braidinfer::compat::{CompatReport, RunKind};
use braidinfer::executor::{ActiveKernels, Kernels};
use braidinfer::validation::{Outcome, Size, Speed, Speeds, ValidationReport, validate};

use super::validate::exit_code;
use crate::args::CompareArgs;
use crate::report::{BarPlot, Delivery, Document, LinePlot, Series, number};
use crate::{interrupt, model, output, wording};

pub fn run(args: CompareArgs) -> anyhow::Result<u8> {
    let delivery = Delivery::of(&args.report.output)?;
    interrupt::install()?;
    let options =
        LoadOptions { precision: args.precision.precision.into(), ..model::options(Kernels::Auto, &args.computing)? };
    let thoroughness = args.report.thoroughness();
    // Resolve all names first, so that a missing model does not show only after an hour.
    let sources = args.models.iter().map(|name| model::source(Some(name))).collect::<anyhow::Result<Vec<_>>>()?;
    let mut reports = Vec::new();
    for source in &sources {
        let report =
            model::with_progress("validating", source, |progress| validate(source, &options, thoroughness, progress))?;
        reports.push(wording::validation(report));
    }
    let document = document(&reports);
    delivery.deliver(&document, &document, &reports)?;
    Ok(exit_code(reports.iter().map(|report| report.outcome).max().unwrap_or(Outcome::Pass)))
}

fn document(reports: &[ValidationReport]) -> Document {
    let mut document = Document { title: format!("{} models side by side", reports.len()), ..Document::default() };
    let row = |report: &ValidationReport| {
        let size = |of: fn(&Size) -> String| report.size.as_ref().map_or("-".into(), of);
        [
            report.model.clone(),
            report.outcome.as_str().to_owned(),
            size(|size| format!("{:.1} M", size.parameters as f64 / 1e6)),
            size(|size| output::size(size.weight_bytes)),
            size(|size| output::size(size.kv_bytes_per_token)),
        ]
    };
    document.table(["model", "outcome", "parameters", "weights", "K/V per token"], reports.iter().map(row));
    add_findings(&mut document, reports);
    document.heading("Do fused kernels change the answers?");
    let compats: Vec<&CompatReport> = reports.iter().filter_map(|report| report.compat.as_ref()).collect();
    let header = ["model", "predicted", "measured", "mean KL", "checkpoint's own type", "largest key norm", "loss"];
    document.table(header, compats.iter().map(|compat| compat_row(compat)));
    add_speeds(&mut document, reports);
    document.lines(LinePlot {
        title: "Divergence of fused kernels, by the plan, at each position".into(),
        x: "position".into(),
        y: "KL, nats".into(),
        series: compats.iter().filter_map(|compat| divergence(compat)).collect(),
    });
    add_answers(&mut document, reports);
    document
}

/// Why a model did not pass.
fn add_findings(document: &mut Document, reports: &[ValidationReport]) {
    let mut rows = Vec::new();
    for report in reports {
        let noticed = report.findings.iter().filter(|finding| finding.outcome != Outcome::Pass);
        rows.extend(noticed.map(|finding| {
            let what = format!("{}: {}", finding.area, finding.what);
            let fix = finding.fix.as_ref().map_or_else(String::new, |fix| format!("; {fix}"));
            [report.model.clone(), finding.outcome.as_str().to_owned(), what, finding.found.clone() + &fix]
        }));
    }
    if !rows.is_empty() {
        document.heading("What to look at");
        document.table(["model", "outcome", "what", "found"], rows);
    }
}

fn compat_row(compat: &CompatReport) -> [String; 7] {
    let kl = |kind| compat.run(kind).map(|run| run.divergence.kl_mean);
    let or_none = |value: Option<f64>| value.map_or("-".into(), number);
    [
        compat.model.clone(),
        format!("{} {:.2}", compat.predicted.status.as_str(), compat.predicted.score),
        format!("{} {:.2}", compat.status.as_str(), compat.score),
        or_none(kl(RunKind::Plan).or(kl(RunKind::Fastest))),
        or_none(kl(RunKind::Checkpoint)),
        or_none(compat.predicted.max_weight),
        or_none(compat.measured.as_ref().filter(|measured| measured.text).map(|measured| measured.loss)),
    ]
}

fn divergence(compat: &CompatReport) -> Option<Series> {
    let run = compat.run(RunKind::Plan).or(compat.run(RunKind::Fastest))?;
    Some(Series { name: compat.model.clone(), values: run.divergence.kl.clone() })
}

fn add_speeds(document: &mut Document, reports: &[ValidationReport]) {
    document.heading("Speed of one sequence");
    document.bars(bars(reports, "Reading a prompt", |speed| speed.prefill_tok_s));
    document.bars(bars(reports, "Answering", |speed| speed.decode_tok_s));
}

/// A bar chart of one rate of every measured model, on both kinds of kernels.
fn bars(reports: &[ValidationReport], title: &str, rate: fn(&Speed) -> f64) -> BarPlot {
    let measured: Vec<(&String, Speeds)> =
        reports.iter().filter_map(|report| Some((&report.model, report.speeds?))).collect();
    let series = |name: &str, of: fn(&Speeds) -> &Speed| Series {
        name: name.to_owned(),
        values: measured.iter().map(|(_, speeds)| rate(of(speeds))).collect(),
    };
    BarPlot {
        title: title.to_owned(),
        unit: "tokens per second".to_owned(),
        things: measured.iter().map(|(model, _)| (*model).clone()).collect(),
        series: vec![series("fused", |speeds| &speeds.fused), series("standard", |speeds| &speeds.standard)],
    }
}

fn add_answers(document: &mut Document, reports: &[ValidationReport]) {
    document.heading("Answers of what auto runs");
    let mut rows = Vec::new();
    for report in reports {
        let fused = report.compat.as_ref().is_none_or(|compat| compat.kernels() == ActiveKernels::Fused);
        for sample in &report.samples {
            let answer = if fused { &sample.fused } else { &sample.standard };
            rows.push([report.model.clone(), sample.prompt.clone(), answer.clone()]);
        }
    }
    rows.sort_by(|a, b| a[1].cmp(&b[1]));
    document.table(["model", "prompt", "answer"], rows);
}
