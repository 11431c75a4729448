//! `braidinfer cache`: what is kept of packed weights.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use braidinfer::KeptWeights;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

use crate::args::CacheArgs;
use crate::output::{counted, size};
use crate::{model, output};

#[derive(Serialize)]
struct Listing {
    folder: PathBuf,
    /// Whether `files` are those that were removed, and not those that are there.
    removed: bool,
    files: Vec<Row>,
    /// Those that are there after others were removed: they are in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    left: Option<Vec<Row>>,
}

#[derive(Serialize)]
struct Row {
    path: PathBuf,
    bytes: u64,
    seconds_since_used: Option<u64>,
    in_use: bool,
}

pub fn run(args: &CacheArgs) -> anyhow::Result<()> {
    let Some(cache) = model::packed_cache(&args.packed)? else {
        bail!("expected a folder with packed weights, found none: it is off, or this system has no folder for caches")
    };
    let files = rows(if args.clear { cache.clear()? } else { cache.list()? });
    let left = if args.clear { Some(rows(cache.list()?)) } else { None };
    if args.json {
        return output::print_json(&Listing { folder: cache.folder, removed: args.clear, files, left });
    }
    let all = size(files.iter().map(|file| file.bytes).sum::<u64>());
    let folder = cache.folder.display();
    if let Some(left) = left {
        let left = if left.is_empty() { String::new() } else { format!("; {} in use are left", left.len()) };
        return output::print_line(format!("removed {}, {all}, from {folder}{left}", counted(files.len(), "file")));
    }
    if !files.is_empty() {
        output::print_line(table(&files))?;
    }
    output::print_line(format!("{}, {all}, in {folder}", counted(files.len(), "file")))
}

fn rows(files: Vec<KeptWeights>) -> Vec<Row> {
    files.into_iter().map(row).collect()
}

fn row(file: KeptWeights) -> Row {
    let seconds_since_used = file.used.and_then(|used| Some(used.elapsed().ok()?.as_secs()));
    Row { path: file.path, bytes: file.bytes, seconds_since_used, in_use: file.in_use }
}

fn table(files: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(output::TABLE).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["file", "size", "used"]);
    for file in files {
        let name = file.path.file_name().unwrap_or_default().to_string_lossy();
        let used = match (file.in_use, file.seconds_since_used) {
            (true, _) => "now".to_owned(),
            (false, Some(seconds)) => ago(Duration::from_secs(seconds)),
            (false, None) => "unknown".to_owned(),
        };
        table.add_row([name.as_ref(), &size(file.bytes), &used]);
    }
    table
}

/// How long ago something was, in its largest unit.
fn ago(time: Duration) -> String {
    let minutes = (time.as_secs() / 60) as usize;
    let (number, unit) = match minutes {
        0 => return "less than a minute ago".into(),
        1..60 => (minutes, "minute"),
        60..1440 => (minutes / 60, "hour"),
        _ => (minutes / 1440, "day"),
    };
    format!("{} ago", counted(number, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_their_largest_unit() {
        let of = |seconds| ago(Duration::from_secs(seconds));
        assert_eq!(of(59), "less than a minute ago");
        assert_eq!((of(60), of(3599), of(3600)), ("1 minute ago".into(), "59 minutes ago".into(), "1 hour ago".into()));
        assert_eq!((of(86_399), of(172_800)), ("23 hours ago".into(), "2 days ago".into()));
    }
}
