//! `braidinfer remove`.

use std::io::{self, BufRead, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::bail;
use braidinfer::{Aliases, LocalModel, Places, Removal};

use crate::args::RemoveArgs;
use crate::output::{self, counted, size};

pub fn run(args: &RemoveArgs) -> anyhow::Result<()> {
    let name = &args.model;
    let aliases = Aliases::from_env()?;
    if let Some(target) = aliases.as_ref().and_then(|aliases| aliases.get(name)) {
        bail!(
            "{name}: expected the name of a model, found an alias of {target}; `braidinfer alias --remove {name}` removes that"
        );
    }
    let places = Places::from_env();
    // A path tells models of one name apart.
    let by_path = || places.models().into_iter().find(|model| is_same(&model.path, Path::new(name)));
    let Some(model) = by_path().map_or_else(|| places.find(name), |model| Ok(Some(model)))? else {
        bail!("{name}: expected the name or path of a model that `braidinfer list` shows, found none of this name");
    };
    let removal = model.removal()?;
    if !args.yes && !is_confirmed(&model, &removal)? {
        output::note("nothing was deleted");
        return Ok(());
    }
    removal.delete()?;
    let left = aliases.iter().flat_map(Aliases::iter).filter(|(_, target)| *target == model.name);
    for (alias, _) in left {
        output::note(format!(
            "the alias {alias} stands for nothing now: `braidinfer alias --remove {alias}` removes it"
        ));
    }
    if !removal.left.is_empty() {
        output::note(format!("left where they are: {}", listed(&removal.left)));
    }
    output::print_line(match &removal.linked {
        Some(target) => format!("deleted {}, a link to {}, which stays", model.name, target.display()),
        None => format!("deleted {}, {}", model.name, size(removal.bytes)),
    })
}

fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Whether both lead to one place, of which the last part may be a link.
fn is_same(model: &Path, named: &Path) -> bool {
    let absolute = |path: &Path| std::path::absolute(path).ok();
    model == named || absolute(model).is_some_and(|model| absolute(named) == Some(model))
}

/// Shows what will be deleted, and asks.
///
/// Fails where nobody can be asked.
fn is_confirmed(model: &LocalModel, removal: &Removal) -> anyhow::Result<bool> {
    let what = match &removal.whole_folder {
        Some(folder) => format!("{} with everything in it", folder.display()),
        None => listed(&removal.files),
    };
    let files = if removal.whole_folder.is_some() { 0 } else { removal.files.len() };
    let count = if files > 1 { format!(", {}", counted(files, "file")) } else { String::new() };
    let link = removal.linked.iter().map(|target| format!(", a link to {}, which stays", target.display()));
    let link = link.collect::<String>();
    let left = if removal.left.is_empty() { String::new() } else { format!(", and leave {}", listed(&removal.left)) };
    let question = format!("delete {}, {}{count}{link}: {what}{left}?", model.name, size(removal.bytes));
    if !io::stdin().is_terminal() {
        bail!("--yes: expected it where nobody can be asked; it would {question}");
    }
    output::ask(&format!("{question} [y/N] "));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
