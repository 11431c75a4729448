//! Reports for people: one document, shown on a terminal or written as text, Markdown, HTML or JSON.

mod html;
mod markdown;
mod plot;
mod text;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;

use crate::args::OutputArgs;
use crate::output;

pub use plot::{BarPlot, LinePlot, Series};

/// What a report says, in order.
#[derive(Debug, Default)]
pub struct Document {
    pub title: String,
    /// What the reader wants to know first.
    pub verdict: Option<Verdict>,
    pub blocks: Vec<Block>,
}

/// One word and one sentence.
#[derive(Debug)]
pub struct Verdict {
    pub word: String,
    pub mood: Mood,
    pub sentence: String,
}

/// How a verdict or a cell looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mood {
    Good,
    Doubtful,
    Bad,
}

#[derive(Debug)]
pub enum Block {
    Heading(String),
    Paragraph(String),
    List(Vec<String>),
    Table(Table),
    Lines(LinePlot),
    Bars(BarPlot),
}

/// Cells by row; every row is as long as the header, whose cells may all be empty.
#[derive(Debug, Default)]
pub struct Table {
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// Whether there is a header.
    fn has_header(&self) -> bool {
        self.header.iter().any(|cell| !cell.is_empty())
    }

    /// Whether a column is to be read, and not compared as numbers are: the first, and those with long cells.
    fn is_prose(&self, column: usize) -> bool {
        const LONG: usize = 20;
        column == 0 || !self.has_header() || self.rows.iter().any(|row| row[column].chars().count() > LONG)
    }
}

impl Document {
    pub fn heading(&mut self, text: impl Into<String>) {
        self.blocks.push(Block::Heading(text.into()));
    }

    pub fn paragraph(&mut self, text: impl Into<String>) {
        self.blocks.push(Block::Paragraph(text.into()));
    }

    pub fn list(&mut self, items: Vec<String>) {
        self.blocks.push(Block::List(items));
    }

    pub fn table<const N: usize>(&mut self, header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) {
        let header = header.map(str::to_owned).to_vec();
        self.blocks.push(Block::Table(Table { header, rows: rows.into_iter().map(Vec::from).collect() }));
    }

    pub fn bars(&mut self, plot: BarPlot) {
        self.blocks.push(Block::Bars(plot));
    }

    pub fn lines(&mut self, plot: LinePlot) {
        self.blocks.push(Block::Lines(plot));
    }
}

impl BarPlot {
    /// The same as text: a column for each series.
    fn as_table(&self) -> Table {
        let title = format!("{}, {}", self.title, self.unit);
        let header = [title].into_iter().chain(self.series.iter().map(|series| series.name.clone())).collect();
        let row = |(index, thing): (usize, &String)| {
            let cells = self.series.iter().map(|series| series.values.get(index).copied().map_or("-".into(), number));
            [thing.clone()].into_iter().chain(cells).collect()
        };
        Table { header, rows: self.things.iter().enumerate().map(row).collect() }
    }
}

/// What a report is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    Markdown,
    Html,
    Json,
}

/// A file to write a report to.
#[derive(Debug, Clone)]
struct Export {
    path: PathBuf,
    format: Format,
}

impl Export {
    /// The format that the name of the file ends in; known before hours of measuring begin, as is whether its folder
    /// takes files.
    fn to(path: &Path) -> anyhow::Result<Self> {
        let format = match path.extension().and_then(|extension| extension.to_str()) {
            Some("txt") => Format::Text,
            Some("md") => Format::Markdown,
            Some("html") => Format::Html,
            Some("json") => Format::Json,
            _ => bail!("--export: expected a name that ends in .txt, .md, .html or .json, found {}", path.display()),
        };
        let export = Self { path: path.to_owned(), format };
        drop(export.temporary()?);
        if path.is_dir() {
            bail!("--export: expected a file, found the folder {}", path.display());
        }
        Ok(export)
    }

    /// Writes the whole report or nothing. `data` is what JSON holds.
    fn write(&self, document: &Document, data: &impl Serialize) -> anyhow::Result<()> {
        let text = match self.format {
            Format::Text => text::render(document),
            Format::Markdown => markdown::render(document),
            Format::Html => html::render(document)?,
            Format::Json => serde_json::to_string_pretty(data)? + "\n",
        };
        let mut file = self.temporary()?;
        file.write_all(text.as_bytes()).with_context(|| self.path.display().to_string())?;
        file.persist(&self.path).with_context(|| self.path.display().to_string())?;
        Ok(())
    }

    fn temporary(&self) -> anyhow::Result<tempfile::NamedTempFile> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        // What anybody may read is what a report is for; tempfile's own choice is the owner alone.
        #[cfg(unix)]
        builder.permissions(<fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o644));
        builder.tempfile_in(folder).with_context(|| format!("--export {}", self.path.display()))
    }
}

/// Where a report goes: to a file, and to stdout as tables or JSON.
#[derive(Debug)]
pub struct Delivery {
    export: Option<Export>,
    json: bool,
}

impl Delivery {
    /// Fails where a file cannot be written; so before anything is measured.
    pub fn of(args: &OutputArgs) -> anyhow::Result<Self> {
        Ok(Self { export: args.export.as_deref().map(Export::to).transpose()?, json: args.json })
    }

    /// Writes the `whole` report to the file, and `short`, or the data as JSON, to stdout.
    pub fn deliver(&self, whole: &Document, short: &Document, data: &impl Serialize) -> anyhow::Result<()> {
        if let Some(export) = &self.export {
            export.write(whole, data)?;
        }
        if self.json { output::print_json(data) } else { output::print(&text::render(short)) }
    }
}

/// A number in as few characters as say enough: small and large ones with an exponent.
pub fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        magnitude if magnitude < 1e-2 => format!("{value:.1e}"),
        magnitude if magnitude < 10.0 => format!("{value:.2}"),
        magnitude if magnitude < 1e5 => format!("{value:.1}"),
        _ => format!("{value:.1e}"),
    }
}
