//! A benchmark as a document that can be sent to others: what was measured, on what, and how.

use super::report::{self, Compared, Options, Report};
use crate::output;
use crate::report::Document;

/// Everything in the report, with what a reader on another machine needs to measure the same.
pub fn document(compared: &Compared<'_>) -> Document {
    let Compared { report, baseline } = *compared;
    let mut document = Document { title: format!("Speed of {}", report.model), ..Document::default() };
    document.table(["", ""], machine(report));
    document.heading("Tokens per second");
    document.paragraph(
        "Medians with the slowest and the fastest run; several sequences count together. The share is that of the ceiling that \
         limits the case: how fast the weights of the model were read between the runs, or how fast products can be computed \
         (in prefill and, if it is the larger share, for several sequences); on a GPU, how fast its memory was copied between the \
         runs, bytes that are read and written together.",
    );
    let (header, rows) = report::results_cells(report);
    document.table_of(header, rows);
    document.heading("Kernels");
    let (header, rows) = report::executors_cells(report);
    document.table_of(header, rows);
    document.list(report.notes.clone());
    if let Some(baseline) = baseline {
        document.heading(format!("Compared with {}", baseline.file));
        let (header, rows) = baseline.cells();
        document.table_of(header, rows);
        document.list(baseline.notes.clone());
    }
    document
}

fn machine(report: &Report) -> Vec<[String; 2]> {
    let (machine, options) = (&report.machine, &report.options);
    let unknown = || "unknown".to_owned();
    let mut rows = vec![
        ("processor", machine.cpu.clone().unwrap_or_else(unknown)),
        ("instruction set", machine.isa.clone()),
        ("threads", machine.threads.to_string()),
        ("memory", report.memory_bytes.map_or_else(unknown, output::size)),
        ("system", machine.os.clone()),
        ("braidinfer", report.version.clone()),
        ("model", format!("{}, {} weights", report.model, report.weights)),
        ("measured", flags(options)),
    ];
    rows.extend(report.ceilings.as_ref().map(|ceilings| ("ceilings", report::ceilings(ceilings))));
    rows.into_iter().map(|(name, value)| [name.to_owned(), value]).collect()
}

/// The flags that measure the same.
fn flags(options: &Options) -> String {
    let listed = |values: &[usize]| values.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let mut flags = vec![
        ("kernels", options.kernels.join(",")),
        ("prompt-tokens", options.prompt_tokens.to_string()),
        ("gen-tokens", options.gen_tokens.to_string()),
        ("batch", listed(&options.batch)),
        ("depth", listed(&options.depth)),
        ("repetitions", options.repetitions.to_string()),
        ("dtype", options.dtype.clone()),
        ("device", options.device.clone()),
    ];
    flags.extend(options.kv_dtype.clone().map(|kv_dtype| ("kv-dtype", kv_dtype)));
    flags.extend(options.quantize.clone().map(|quantize| ("quantize", quantize)));
    flags.extend(options.context.map(|context| ("context", context.to_string())));
    flags.iter().map(|(flag, value)| format!("--{flag} {value}")).collect::<Vec<_>>().join(" ")
}
