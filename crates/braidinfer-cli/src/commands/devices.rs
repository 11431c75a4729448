//! `braidinfer devices`: what models can be computed on.

use braidinfer::Threads;
#[cfg(feature = "gpu")]
use braidinfer::gpu::{AdapterDescription, Adapters};
use braidinfer::kernels::Isa;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

use crate::args::DevicesArgs;
use crate::output;

/// One line of the list, and one object of the JSON list.
#[derive(Serialize)]
struct Row {
    /// What `--device` takes.
    device: String,
    name: String,
    kind: &'static str,
    /// The interface of a GPU.
    backend: Option<String>,
    driver: Option<String>,
    /// Largest buffer of a GPU that can be read as a whole, in bytes. How much memory there is, its interfaces do not say.
    max_binding_bytes: Option<u64>,
    features: Vec<&'static str>,
    /// Whether there are kernels that it can run.
    usable: bool,
    /// What it lacks for that.
    lacks: Vec<String>,
}

pub fn run(args: DevicesArgs) -> anyhow::Result<()> {
    let mut rows = vec![cpu()?];
    rows.extend(gpus());
    if args.json {
        return output::print_json(&rows);
    }
    let mut table = Table::new();
    table.load_style(output::TABLE).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["device", "name", "kind", "interface", "driver", "largest buffer", "features", "usable"]);
    for row in &rows {
        let usable = if row.usable { "yes".to_owned() } else { format!("no: it lacks {}", row.lacks.join(", ")) };
        let largest = row.max_binding_bytes.map_or(String::new(), braidinfer::size);
        table.add_row([
            &row.device,
            &row.name,
            row.kind,
            row.backend.as_deref().unwrap_or(""),
            row.driver.as_deref().unwrap_or(""),
            &largest,
            &row.features.join(", "),
            &usable,
        ]);
    }
    output::print_line(table)?;
    if rows.len() == 1 {
        output::note(nothing_found());
    }
    Ok(())
}

fn cpu() -> anyhow::Result<Row> {
    let isa = Isa::detect()?;
    let threads = Threads::new(None)?.count();
    Ok(Row {
        device: "cpu".into(),
        name: output::counted(threads, "thread"),
        kind: "processor",
        backend: None,
        driver: None,
        max_binding_bytes: None,
        features: vec![isa.name()],
        usable: true,
        lacks: Vec::new(),
    })
}

#[cfg(feature = "gpu")]
fn gpus() -> Vec<Row> {
    Adapters::find().descriptions().map(gpu).collect()
}

#[cfg(not(feature = "gpu"))]
fn gpus() -> Vec<Row> {
    Vec::new()
}

#[cfg(feature = "gpu")]
fn gpu(adapter: &AdapterDescription) -> Row {
    Row {
        device: format!("gpu:{}", adapter.index),
        name: adapter.name.clone(),
        kind: adapter.kind.name(),
        backend: Some(adapter.backend.clone()),
        driver: Some(format!("{} {}", adapter.driver, adapter.driver_info)),
        max_binding_bytes: Some(adapter.max_binding_bytes),
        features: adapter.features.clone(),
        usable: adapter.lacks.is_empty(),
        lacks: adapter.lacks.clone(),
    }
}

/// Why there is nothing but the CPU.
fn nothing_found() -> &'static str {
    if cfg!(feature = "gpu") {
        "no driver for Vulkan, Metal or DirectX 12 was found that answers"
    } else {
        "this build has no kernels for GPUs"
    }
}
