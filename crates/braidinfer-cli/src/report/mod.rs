//! Reports for human readers: a document that is rendered as text, Markdown or HTML, with its data as JSON.

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

/// The contents of a report.
#[derive(Debug, Default)]
pub struct Document {
    pub title: String,
    /// The overall result, shown first.
    pub verdict: Option<Verdict>,
    pub blocks: Vec<DocumentBlock>,
}

/// An overall result: one word and one sentence.
#[derive(Debug)]
pub struct Verdict {
    pub word: String,
    pub rating: Rating,
    pub sentence: String,
}

/// How good a result is; sets the colour of a verdict or a table cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rating {
    Good,
    Doubtful,
    Bad,
}

/// A block of a document.
#[derive(Debug)]
pub enum DocumentBlock {
    Heading(String),
    Paragraph(String),
    List(Vec<String>),
    Table(Table),
    Lines(LinePlot),
    Bars(BarPlot),
}

/// A table. Every row has as many cells as the header; without a header its cells are all empty.
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

    /// Whether a column holds prose, which is not aligned like numbers: the first column, and those with long cells.
    fn is_prose(&self, column: usize) -> bool {
        const LONG: usize = 20;
        column == 0 || !self.has_header() || self.rows.iter().any(|row| row[column].chars().count() > LONG)
    }
}

impl Document {
    pub fn heading(&mut self, text: impl Into<String>) {
        self.blocks.push(DocumentBlock::Heading(text.into()));
    }

    pub fn paragraph(&mut self, text: impl Into<String>) {
        self.blocks.push(DocumentBlock::Paragraph(text.into()));
    }

    pub fn list(&mut self, items: Vec<String>) {
        self.blocks.push(DocumentBlock::List(items));
    }

    pub fn table<const N: usize>(&mut self, header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) {
        let header = header.map(str::to_owned).to_vec();
        self.blocks.push(DocumentBlock::Table(Table { header, rows: rows.into_iter().map(Vec::from).collect() }));
    }

    pub fn bars(&mut self, plot: BarPlot) {
        self.blocks.push(DocumentBlock::Bars(plot));
    }

    pub fn lines(&mut self, plot: LinePlot) {
        self.blocks.push(DocumentBlock::Lines(plot));
    }
}

impl BarPlot {
    /// The plot as a table with a column for each series.
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

/// File format of a report.
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
    /// Takes the format from the file extension. Fails if that is unknown or the folder is not writable, so that this shows
    /// before hours of measuring.
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

    /// Writes the report atomically: completely or not at all. `data` is what a JSON file contains.
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
        // Reports are readable by everybody; tempfile's default is readable by the owner only.
        #[cfg(unix)]
        builder.permissions(<fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o644));
        builder.tempfile_in(folder).with_context(|| format!("--export {}", self.path.display()))
    }
}

/// Where a report is written: to a file, if requested, and to stdout as tables or JSON.
#[derive(Debug)]
pub struct Delivery {
    export: Option<Export>,
    json: bool,
}

impl Delivery {
    /// Fails if the file cannot be written. Called before anything is measured.
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

/// A number with two or three digits, with an exponent if it is small or large.
pub fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        magnitude if magnitude < 1e-2 => format!("{value:.1e}"),
        magnitude if magnitude < 10.0 => format!("{value:.2}"),
        magnitude if magnitude < 1e5 => format!("{value:.1}"),
        _ => format!("{value:.1e}"),
    }
}
