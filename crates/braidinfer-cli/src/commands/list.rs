//! `braidinfer list`.

use braidinfer::{Aliases, LocalModel, Places};
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

use crate::args::ListArgs;
use crate::output;
use crate::output::{counted, size};

#[derive(Serialize)]
struct Row {
    name: String,
    /// Short names that stand for it.
    aliases: Vec<String>,
    place: String,
    path: String,
    bytes: u64,
}

pub fn run(args: &ListArgs) -> anyhow::Result<()> {
    let places = Places::from_env();
    for folder in places.missing_folders() {
        output::note(format!("BRAIDINFER_MODELS: {} is no folder that can be looked into", folder.display()));
    }
    let aliases = Aliases::from_env()?;
    let rows: Vec<Row> = places.models().into_iter().map(|model| row(model, aliases.as_ref())).collect();
    if args.json {
        return output::print_json(&rows);
    }
    if !rows.is_empty() {
        output::print_line(table(&rows))?;
    }
    output::print_line(format!("{} on this machine", counted(rows.len(), "model")))
}

fn row(model: LocalModel, aliases: Option<&Aliases>) -> Row {
    let LocalModel { name, place, path, bytes } = model;
    let stands_for = |target: &str| target == name || path.to_str() == Some(target);
    let aliases = aliases.into_iter().flat_map(Aliases::iter).filter(|(_, target)| stands_for(target));
    let aliases = aliases.map(|(alias, _)| alias.to_owned()).collect();
    Row { aliases, place: place.to_string(), name, path: path.to_string_lossy().into_owned(), bytes }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(output::TABLE).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["name", "size", "found in", "alias"]);
    for row in rows {
        let is_double = rows.iter().filter(|other| other.name == row.name).count() > 1;
        let place = if is_double { format!("{}: {}", row.place, row.path) } else { row.place.clone() };
        let cells = [&row.name, &size(row.bytes), &place, &row.aliases.join(", ")];
        table.add_row(cells.map(|cell| output::one_line(cell).into_owned()));
    }
    table
}
