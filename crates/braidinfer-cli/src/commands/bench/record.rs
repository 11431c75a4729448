//! A benchmark as a document that can be sent to others: what was measured, on what, and how.

use super::report::{self, Report};
use crate::output;
use crate::report::Document;

/// Everything in the report, with what a reader on another machine needs to measure the same.
pub fn document(report: &Report) -> Document {
    let mut document = Document { title: format!("Speed of {}", report.model), ..Document::default() };
    document.table(["", ""], machine(report));
    document.heading("Tokens per second");
    document.paragraph(
        "Medians with the slowest and the fastest run; several sequences count together. The share is that of the ceiling that \
         limits the case: how fast the weights of the model were read between the runs, or how fast products can be computed \
         (in prefill and, if it is the larger share, for several sequences).",
    );
    let (header, rows) = report::results_cells(report);
    document.table_of(header, rows);
    document.heading("Kernels");
    let (header, rows) = report::executors_cells(report);
    document.table_of(header, rows);
    document.list(report.notes.clone());
    document
}

fn machine(report: &Report) -> Vec<[String; 2]> {
    let (machine, options) = (&report.machine, &report.options);
    let unknown = || "unknown".to_owned();
    let listed = |values: &[usize]| values.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let mut rows = vec![
        ("processor", machine.cpu.clone().unwrap_or_else(unknown)),
        ("instruction set", machine.isa.clone()),
        ("threads", machine.threads.to_string()),
        ("memory", report.memory_bytes.map_or_else(unknown, output::size)),
        ("system", machine.os.clone()),
        ("braidinfer", report.version.clone()),
        ("model", format!("{}, {} weights", report.model, report.weights)),
        (
            "measured",
            format!(
                "--kernels {} --prompt-tokens {} --gen-tokens {} --batch {} --depth {} --repetitions {} --dtype {}",
                options.kernels.join(","),
                options.prompt_tokens,
                options.gen_tokens,
                listed(&options.batch),
                listed(&options.depth),
                options.repetitions,
                options.dtype,
            ),
        ),
    ];
    rows.extend(report.ceilings.as_ref().map(|ceilings| ("ceilings", report::ceilings(ceilings))));
    rows.into_iter().map(|(name, value)| [name.to_owned(), value]).collect()
}
