//! `braidinfer models`: the support matrix, from the registry.

use braidinfer::executor::DeviceChoice;
use braidinfer::model::arch::{Architecture, REFUSED, REGISTRY};
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

use crate::args::ModelsArgs;
use crate::output;

const KERNELS: [&str; 2] = ["standard", "fused"];

#[derive(Serialize)]
struct Row {
    architecture: &'static str,
    aliases: &'static [&'static str],
    models: &'static str,
    /// What the class's defaults have beside the usual.
    features: Vec<&'static str>,
    formats: Vec<&'static str>,
    kernels: [&'static str; 2],
    devices: Vec<&'static str>,
    verified: Verified,
}

#[derive(Serialize)]
struct Verified {
    against: &'static str,
    fixtures: &'static [&'static str],
}

pub fn run(args: ModelsArgs) -> anyhow::Result<()> {
    let rows: Vec<Row> = REGISTRY.iter().map(row).collect();
    if args.json {
        return output::print_json(&rows);
    }
    let mut table = Table::new();
    table.load_style(output::TABLE).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header([
        "architecture",
        "models",
        "beside the usual",
        "formats",
        "kernels",
        "devices",
        "verified against transformers",
    ]);
    for row in &rows {
        let fixtures = row.verified.fixtures;
        let count = if fixtures.len() == 1 { "1 fixture".to_owned() } else { format!("{} fixtures", fixtures.len()) };
        let verified = format!("logits, greedy text: {count}");
        let devices = row.devices.join(", ");
        table.add_row([
            row.architecture,
            row.models,
            &row.features.join(", "),
            &row.formats.join(", "),
            &row.kernels.join(", "),
            &devices,
            &verified,
        ]);
    }
    output::print_line(table)?;
    let refused = REFUSED.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    output::print_line(format!("known and refused, for now: {refused}"))
}

/// The file formats of an architecture. `quantize` can write those with GGUF.
fn formats(architecture: &Architecture) -> Vec<&'static str> {
    let gguf = architecture.gguf.is_some().then_some("GGUF");
    ["safetensors"].into_iter().chain(gguf).collect()
}

fn row(architecture: &Architecture) -> Row {
    Row {
        architecture: architecture.model_type,
        aliases: architecture.aliases,
        models: architecture.models,
        features: architecture.features(),
        formats: formats(architecture),
        kernels: KERNELS,
        devices: architecture.default_spec().map_or_else(Vec::new, |spec| DeviceChoice::available_for(&spec)),
        verified: Verified { against: "transformers", fixtures: architecture.fixtures },
    }
}
