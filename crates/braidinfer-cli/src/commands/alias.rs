//! `braidinfer alias`.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use braidinfer::{Aliases, ModelName, Places};
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
        // One of another alias is that of its model.
        let model = aliases.get(model).unwrap_or(model).to_owned();
        if let ModelName::Path(path) = ModelName::parse(&model)?
            && !path.exists()
        {
            bail!("{model}: expected a path, a Hub id, or the name of a model on this machine, found nothing there");
        }
        let before = aliases.get(name).map(str::to_owned);
        aliases.set(name, &model)?;
        if let Some(before) = before {
            output::note(format!("{name} was {before}"));
        }
        if Places::from_env().find(name).is_ok_and(|found| found.is_some()) {
            output::note(format!("a model on this machine is called {name}, too: the alias goes before it"));
        }
        return output::print_line(format!("{name} is {model}"));
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
