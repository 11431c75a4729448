//! Reports for human readers: a document that is rendered as text, Markdown or HTML, with its data as JSON.

mod html;
mod markdown;
mod plot;
mod text;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;

use crate::args::OutputArgs;
use crate::{output, temporary_file};

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
    /// The same without what steers a terminal or breaks a line, since names and texts of models may contain anything. Cells
    /// keep their line breaks, except for the first of a row: nothing looks like a row but a row.
    fn harmless(&self) -> Self {
        let line = |text: &String| output::one_line(text).into_owned();
        let row = |cells: &Vec<String>| {
            let rest = cells.iter().skip(1).map(|cell| output::lines(cell).into_owned());
            cells.iter().take(1).map(line).chain(rest).collect()
        };
        let series = |series: &[Series]| {
            series.iter().map(|one| Series { name: line(&one.name), values: one.values.clone() }).collect()
        };
        let block = |block: &DocumentBlock| match block {
            DocumentBlock::Heading(text) => DocumentBlock::Heading(line(text)),
            DocumentBlock::Paragraph(text) => DocumentBlock::Paragraph(line(text)),
            DocumentBlock::List(items) => DocumentBlock::List(items.iter().map(line).collect()),
            DocumentBlock::Table(table) => DocumentBlock::Table(Table {
                header: table.header.iter().map(line).collect(),
                rows: table.rows.iter().map(row).collect(),
            }),
            DocumentBlock::Lines(plot) => {
                let (title, x, y) = (line(&plot.title), line(&plot.x), line(&plot.y));
                DocumentBlock::Lines(LinePlot { title, x, y, series: series(&plot.series) })
            }
            DocumentBlock::Bars(plot) => {
                let (title, unit) = (line(&plot.title), line(&plot.unit));
                let things = plot.things.iter().map(line).collect();
                DocumentBlock::Bars(BarPlot { title, unit, things, series: series(&plot.series) })
            }
        };
        Self {
            title: line(&self.title),
            verdict: self.verdict.as_ref().map(|verdict| Verdict {
                word: line(&verdict.word),
                rating: verdict.rating,
                sentence: line(&verdict.sentence),
            }),
            blocks: self.blocks.iter().map(block).collect(),
        }
    }

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
        self.table_of(header.to_vec(), rows.into_iter().map(Vec::from).collect());
    }

    /// A table of any number of columns. Every row has as many cells as the header.
    pub fn table_of(&mut self, header: Vec<&str>, rows: Vec<Vec<String>>) {
        let header = header.into_iter().map(str::to_owned).collect();
        self.blocks.push(DocumentBlock::Table(Table { header, rows }));
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
        let document = document.harmless();
        let text = match self.format {
            Format::Text => text::render(&document),
            Format::Markdown => markdown::render(&document),
            Format::Html => html::render(&document)?,
            Format::Json => serde_json::to_string_pretty(data)? + "\n",
        };
        let mut file = self.temporary()?;
        file.write_all(text.as_bytes()).with_context(|| self.path.display().to_string())?;
        file.persist(&self.path).with_context(|| self.path.display().to_string())?;
        Ok(())
    }

    fn temporary(&self) -> anyhow::Result<tempfile::NamedTempFile> {
        temporary_file::beside(&self.path).with_context(|| format!("--export {}", self.path.display()))
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

    /// Writes a report to the file, if one was asked for.
    pub fn export(&self, document: &Document, data: &impl Serialize) -> anyhow::Result<()> {
        self.export.as_ref().map_or(Ok(()), |export| export.write(document, data))
    }

    /// Writes the `whole` report to the file, and `short`, or the data as JSON, to stdout.
    pub fn deliver(&self, whole: &Document, short: &Document, data: &impl Serialize) -> anyhow::Result<()> {
        self.export(whole, data)?;
        if self.json { output::print_json(data) } else { output::print(&text::render(&short.harmless())) }
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

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "<script>alert(1)</script>\x1b[2J | ![x](http://y)\n| forged | row |\n# heading\u{202e}";

    /// A document with that text in each place that a model can reach.
    fn hostile() -> Document {
        let mut document = Document { title: HOSTILE.into(), ..Document::default() };
        document.verdict = Some(Verdict { word: "PASS".into(), rating: Rating::Good, sentence: HOSTILE.into() });
        document.heading(HOSTILE);
        document.paragraph(HOSTILE);
        document.list(vec![HOSTILE.into()]);
        document.table([HOSTILE, "b"], [[HOSTILE.into(), HOSTILE.into()]]);
        let series = || vec![Series { name: HOSTILE.into(), values: vec![1.0] }];
        document.lines(LinePlot { title: HOSTILE.into(), x: HOSTILE.into(), y: HOSTILE.into(), series: series() });
        let (title, unit) = (HOSTILE.into(), HOSTILE.into());
        document.bars(BarPlot { title, unit, things: vec![HOSTILE.into()], series: series() });
        document.harmless()
    }

    fn steers_nothing(rendered: &str) {
        assert!(!rendered.contains(['\x1b', '\u{202e}']), "{rendered}");
    }

    #[test]
    fn hostile_names_add_nothing_to_a_page() {
        let page = html::render(&hostile()).expect("it is rendered");
        steers_nothing(&page);
        assert!(!page.contains("<script>alert"), "{page}");
        assert!(page.contains("&lt;script&gt;alert"), "{page}");
    }

    #[test]
    fn hostile_names_add_nothing_to_markdown() {
        let page = markdown::render(&hostile());
        steers_nothing(&page);
        assert!(page.contains("\\<script\\>") && !page.replace("\\<", "").contains("<script"), "{page}");
        assert!(!page.replace("\\[", "").contains('['), "{page}");
        let lines: Vec<&str> = page.lines().collect();
        assert!(!lines.iter().any(|line| line.contains("forged") && line.starts_with("| forged")), "{page}");
        assert_eq!(lines.iter().filter(|line| line.starts_with('#')).count(), 2, "{page}");
        let bars = |line: &&&str| line.replace("\\|", "").matches('|').count();
        assert!(lines.iter().filter(|line| line.starts_with('|')).all(|line| bars(&line) == 3), "{page}");
    }

    #[test]
    fn hostile_names_add_no_lines_to_text() {
        let page = text::render(&hostile());
        steers_nothing(&page);
        let beginnings = |word: &str| page.lines().filter(|line| line.starts_with(word)).count();
        assert_eq!((beginnings("# heading"), beginnings("| forged")), (0, 0), "{page}");
    }
}
