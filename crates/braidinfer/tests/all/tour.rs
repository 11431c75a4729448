//! Every stop of `docs/tour.md` is in the file that it links to.

use std::fs;
use std::path::{Path, PathBuf};

/// Names in backticks with the file that each one links to: ``[`name`](file)``.
fn stops(page: &str) -> Vec<(String, String)> {
    let links = page.split("[`").skip(1);
    let stop = |link: &str| {
        let (name, rest) = link.split_once("`](")?;
        Some((name.to_owned(), rest.split_once(')')?.0.to_owned()))
    };
    links.map(|link| stop(link).unwrap_or_else(|| panic!("a link that has no file: {link:.60}"))).collect()
}

/// Whether a source defines the last part of a path such as `Engine::step`.
fn defines(source: &str, name: &str) -> bool {
    let name = name.rsplit("::").next().unwrap_or(name);
    let kinds = ["fn", "struct", "enum", "trait", "const", "type"];
    kinds.iter().any(|kind| {
        let ends = |rest: &str| !rest.starts_with(|next: char| next.is_alphanumeric() || next == '_');
        source.split(&format!("{kind} {name}")).skip(1).any(ends)
    })
}

#[test]
fn every_stop_of_the_tour_is_where_it_says() {
    let docs: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let page = fs::read_to_string(docs.join("tour.md")).expect("the page is there");
    let stops = stops(&page);
    assert!(stops.len() > 30, "{} stops", stops.len());
    for (name, file) in stops {
        let source = fs::read_to_string(docs.join(&file)).unwrap_or_else(|error| panic!("{name} in {file}: {error}"));
        assert!(defines(&source, &name), "{file} does not define {name}");
    }
}
