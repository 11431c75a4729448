//! The compatibility report as a document.

use braidinfer::compat::{
    CompatReport, LayerReport, Measured, NormStatistics, OpError, PlanEntry, Predicted, RunReport, Status,
};

use braidinfer::divergence::Divergence;
use braidinfer::executor::ActiveKernels;

use crate::report::{Document, DocumentBlock, LinePlot, Rating, Series, Verdict, number};

/// What a check within one engine cannot detect.
const LIMITS: &str = "All runs share one reading of the architecture: what they have in common, such as a wrong RoPE base, \
no comparison of kernels can show; nor what happens beyond the tokens that were read. The tests of the engine compare every architecture with transformers for that, and the \
loss on plain text, which such faults raise far above what a trained model has, stands above.";

/// The full report, or without `detail` a summary that fits a terminal.
pub fn of(report: &CompatReport, detail: bool) -> Document {
    let mut document = Document {
        title: match &report.adapter {
            None => format!("Do fused kernels change the answers of {}?", report.model),
            Some(adapter) => format!("Do fused kernels change the answers of {} with {adapter}?", report.model),
        },
        verdict: Some(Verdict {
            word: match report.measured {
                Some(_) => report.status.as_str().to_owned(),
                None => format!("PREDICTED {}", report.status.as_str()),
            },
            rating: rating(report.status),
            sentence: format!("{}.", capitalised(&report.reason)),
        }),
        ..Document::default()
    };
    add_summary(&mut document, report);
    if let Some(measured) = &report.measured {
        add_runs(&mut document, measured, detail);
        add_layers(&mut document, report, detail);
    }
    add_weights(&mut document, &report.predicted, detail);
    document.heading("What to do");
    document.list(report.recommendations.iter().map(|line| capitalised(&line.to_string())).collect());
    if detail && report.measured.is_some() {
        document.heading("What this cannot show");
        document.paragraph(LIMITS);
    }
    document
}

fn rating(status: Status) -> Rating {
    match status {
        Status::Compatible => Rating::Good,
        Status::Warning => Rating::Doubtful,
        Status::Incompatible => Rating::Bad,
    }
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn add_summary(document: &mut Document, report: &CompatReport) {
    let predicted = &report.predicted;
    let or_none = |value: Option<f64>| value.map_or_else(|| "no such norm".into(), number);
    let mut rows = vec![
        ["predicted from the weights".into(), format!("{}, score {:.2}", predicted.status.as_str(), predicted.score)],
        ["largest weight of a norm on keys".into(), or_none(predicted.max_weight)],
        ["largest ratio to its median".into(), or_none(predicted.max_ratio)],
    ];
    if let Some(measured) = &report.measured {
        let what = if measured.text { "tokens of text" } else { "random token ids" };
        rows.insert(0, ["measured".into(), format!("{}, score {:.2}", report.status.as_str(), report.score)]);
        let more = if measured.more_than_usual { ", more than usual" } else { "" };
        rows.push(["read".into(), format!("{} {what}{more}, in {:.1} s", measured.tokens, measured.seconds)]);
        rows.push(["beyond the first ones, compared with".into(), measured.beyond_first.clone()]);
        rows.push([
            "loss".into(),
            if measured.text { measured.loss_in_words() } else { "says nothing on random ids".into() },
        ]);
    }
    if let Some(speed) = report.measured.as_ref().and_then(|measured| measured.speed) {
        let kept = |what: &str, plan: f64, fastest: f64| {
            let (share, plan, fastest) = (100.0 * plan / fastest, number(plan), number(fastest));
            format!("{plan} of {fastest} tok/s {what} ({share:.0} %)")
        };
        let decoding = kept("decoding", speed.plan_tok_s, speed.fastest_tok_s);
        let prompts = kept("of a prompt", speed.plan_prefill_tok_s, speed.fastest_prefill_tok_s);
        rows.push(["speed that the plan keeps".into(), format!("{decoding}, {prompts}")]);
    }
    if let Some(precision) = report.precision {
        rows.push(["precision".into(), precision.as_str().into()]);
    }
    if let Some(asked) = &report.kv_dtype {
        rows.push(["keys and values, as asked".into(), asked.clone()]);
    }
    rows.push(["engine".into(), format!("braidinfer {}, {}", report.version, report.isa)]);
    document.table(["", ""], rows);
}

fn add_runs(document: &mut Document, measured: &Measured, detail: bool) {
    document.heading("Runs, compared with standard kernels in f32");
    let row = |run: &RunReport| {
        let divergence = &run.divergence;
        [
            run.name.clone(),
            divergence.positions.to_string(),
            changed(divergence),
            divergence.near_ties.to_string(),
            number(divergence.shift_max),
            format!("{} ± {}", number(divergence.kl_mean), number(divergence.kl_standard_error)),
            number(divergence.kl_p99),
            number(divergence.kl_max),
        ]
    };
    let header = ["run", "positions", "changed", "near ties", "margins moved", "mean KL", "99 %", "largest"];
    document.table(header, measured.runs.iter().map(row));
    if detail {
        let series = |values: fn(&RunReport) -> &Vec<f64>| {
            let one = |run: &RunReport| Series { name: run.name.clone(), values: values(run).clone() };
            measured.runs.iter().map(one).collect()
        };
        document.lines(LinePlot {
            title: "Divergence at each position".into(),
            x: "position".into(),
            y: "KL, nats".into(),
            series: series(|run| &run.divergence.kl),
        });
        document.lines(LinePlot {
            title: "Error of the residual stream after each layer, as it adds up".into(),
            x: "layer".into(),
            y: "relative error".into(),
            series: series(|run| &run.drift),
        });
    }
}

/// How many likeliest tokens changed, apart from near ties, and the rate of changes with its confidence interval.
fn changed(divergence: &Divergence) -> String {
    let rate = divergence.changed();
    let percent = |share: f64| format!("{:.1}", 100.0 * share);
    let count = divergence.disagreements;
    format!("{count} ({} %, {} to {})", percent(rate.share), percent(rate.low), percent(rate.high))
}

fn add_layers(document: &mut Document, report: &CompatReport, detail: bool) {
    let changed = report.layers.iter().filter(|layer| layer.raised.is_some() || layer.fault.is_some()).count();
    document.heading("Layers, each on the true input");
    document.paragraph(format!(
        "Plan: {}.{}",
        plan_in_short(report),
        if changed > 0 {
            format!(" {changed} of {} layers depart from the fastest one.", report.layers.len())
        } else {
            String::new()
        }
    ));
    if detail {
        let largest = |ops: fn(&LayerReport) -> &Vec<OpError>| {
            report.layers.iter().map(|layer| OpError::worst(ops(layer)).map_or(0.0, |op| op.error)).collect()
        };
        document.lines(LinePlot {
            title: "Largest error that each layer makes by itself".into(),
            x: "layer".into(),
            y: "relative error".into(),
            series: vec![
                Series { name: "nothing rounded but sums".into(), values: largest(|layer| &layer.exact) },
                Series { name: "fastest level".into(), values: largest(|layer| &layer.fastest) },
            ],
        });
    }
    let shown = report.layers.iter().filter(|layer| detail || layer.fault.is_some());
    let rows: Vec<_> = shown.map(|layer| layer_row(layer, report.plan.get(layer.layer))).collect();
    if !rows.is_empty() {
        document.table(["layer", "error of sums", "at", "error at fastest", "at", "levels", "K/V", "note"], rows);
    }
}

fn layer_row(layer: &LayerReport, plan: Option<&PlanEntry>) -> [String; 8] {
    let error =
        |ops| OpError::worst(ops).map_or_else(|| ["-".into(), "-".into()], |op| [number(op.error), op.op.clone()]);
    let ([exact, exact_op], [fastest, fastest_op]) = (error(&layer.exact), error(&layer.fastest));
    let fault = layer.fault.as_ref().map(|op| format!("wrong from {op} on"));
    let note = fault.or_else(|| layer.raised.clone()).unwrap_or_default();
    let kv = plan.and_then(|entry| entry.kv.clone()).unwrap_or_default();
    [layer.layer.to_string(), exact, exact_op, fastest, fastest_op, plan.map(levels).unwrap_or_default(), kv, note]
}

/// The distinct levels of a plan entry.
fn levels(entry: &PlanEntry) -> String {
    let mut levels: Vec<&str> = entry.levels.values().map(String::as_str).collect();
    levels.sort_unstable();
    levels.dedup();
    if entry.kernels == "fused" { levels.join(", ") } else { entry.kernels.clone() }
}

/// A summary of the plan: how most of the model is computed.
fn plan_in_short(report: &CompatReport) -> String {
    if report.kernels() == ActiveKernels::Standard {
        return "standard kernels throughout".into();
    }
    let mut kinds: Vec<(String, usize)> = Vec::new();
    for entry in report.plan.iter().filter(|entry| entry.layer.is_some()) {
        let kind = format!("{} with K/V in {}", levels(entry), entry.kv.as_deref().unwrap_or("-"));
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => kinds.push((kind, 1)),
        }
    }
    let kinds: Vec<String> = kinds.into_iter().map(|(kind, count)| format!("{count} layers {kind}")).collect();
    format!("{} kernels, {}", report.kernels().as_str(), kinds.join("; "))
}

fn add_weights(document: &mut Document, predicted: &Predicted, detail: bool) {
    if !detail {
        return;
    }
    document.heading("Weights of norms");
    let mut names: Vec<&str> = predicted.norms.iter().map(|norm| norm.norm.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let row = |name: &str| {
        let norms: Vec<_> = predicted.norms.iter().filter(|norm| norm.norm == name).collect();
        let largest = norms.iter().map(|norm| norm.max).fold(0.0, f64::max);
        let ratio = norms.iter().map(|norm| norm.ratio).fold(0.0, f64::max);
        let mut medians: Vec<f64> = norms.iter().map(|norm| norm.median).collect();
        medians.sort_by(f64::total_cmp);
        [name.to_owned(), number(largest), number(medians[medians.len() / 2]), number(ratio)]
    };
    document.table(["norm", "largest", "median", "largest ratio in a layer"], names.iter().copied().map(row));
    names.iter().for_each(|name| document.blocks.extend(distribution(predicted, name)));
}

/// A plot of the weight magnitudes of one norm over all layers, if more than one layer has it.
fn distribution(predicted: &Predicted, name: &str) -> Option<DocumentBlock> {
    let layers: Vec<_> = predicted.norms.iter().filter(|norm| norm.norm == name && norm.layer.is_some()).collect();
    let series = |what: &str, of: fn(&NormStatistics) -> f64| Series {
        name: what.to_owned(),
        values: layers.iter().map(|norm| of(norm)).collect(),
    };
    (layers.len() > 1).then(|| {
        DocumentBlock::Lines(LinePlot {
            title: format!("Weights of {name} in each layer"),
            x: "layer".into(),
            y: "magnitude".into(),
            series: vec![
                series("largest", |norm| norm.max),
                series("95 % are below", |norm| norm.high),
                series("median", |norm| norm.median),
                series("5 % are below", |norm| norm.low),
            ],
        })
    })
}
