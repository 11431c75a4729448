//! `braidinfer alias`.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use braidinfer::{Aliases, ModelName};
use comfy_table::{ContentArrangement, Table};

use crate::args::AliasArgs;
use crate::output;

pub fn run(args: &AliasArgs) -> anyhow::Result<()> {
    let aliases = Aliases::from_env()?;
    let mut aliases = aliases.context("this system has no folder for settings: set BRAIDINFER_CONFIG to one")?;
    if let Some(name) = &args.remove {
        if !aliases.remove(name)? {
            bail!("--remove {name}: expected a name that was given, found none");
        }
        return Ok(());
    }
    if let (Some(name), Some(model)) = (&args.name, &args.model) {
        // Whether it is there shows when it is used; but what it is must be clear.
        ModelName::parse(model)?;
        return Ok(aliases.set(name, model)?);
    }
    let all: BTreeMap<&str, &str> = aliases.iter().collect();
    if args.json {
        return output::print_json(&all);
    }
    if all.is_empty() {
        return output::print_line("no aliases");
    }
    let mut table = Table::new();
    table.load_style(output::TABLE).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["alias", "model"]);
    for (name, model) in all {
        table.add_row([name, model].map(|cell| output::one_line(cell).into_owned()));
    }
    output::print_line(table)
}
