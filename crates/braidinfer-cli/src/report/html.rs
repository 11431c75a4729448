//! One self-contained page, light and dark.

use std::collections::BTreeMap;

use minijinja::Environment;
use minijinja::value::Serde;
use plotters::style::RGBColor;
use serde::Serialize;

use super::plot::{SERIES_COLOURS, svg};
use super::{Block, Document, Mood};

/// Tables with more rows are shown when they are asked for.
const LONG: usize = 12;

const PAGE: &str = include_str!("page.html");

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Part<'a> {
    Heading { text: &'a str },
    Paragraph { text: &'a str },
    List { items: &'a [String] },
    Table { header: Option<&'a [String]>, rows: &'a [Vec<String>], prose: Vec<bool>, long: bool },
    Lines { title: &'a str, svg: String, legend: Vec<&'a str> },
}

#[derive(Serialize)]
struct Headline<'a> {
    word: &'a str,
    sentence: &'a str,
    mood: Mood,
}

#[derive(Serialize)]
struct Page<'a> {
    title: &'a str,
    verdict: Option<Headline<'a>>,
    parts: Vec<Part<'a>>,
    colours: Vec<String>,
    /// Cells that are shown in the colour of a mood.
    moods: BTreeMap<&'static str, Mood>,
    version: &'static str,
}

pub fn render(document: &Document) -> anyhow::Result<String> {
    let colour = |c: &RGBColor| format!("#{:02X}{:02X}{:02X}", c.0, c.1, c.2);
    let page = Page {
        title: &document.title,
        verdict: document.verdict.as_ref().map(|verdict| Headline {
            word: &verdict.word,
            sentence: &verdict.sentence,
            mood: verdict.mood,
        }),
        parts: document.blocks.iter().map(part).collect::<anyhow::Result<_>>()?,
        colours: SERIES_COLOURS.iter().map(colour).collect(),
        moods: BTreeMap::from([("PASS", Mood::Good), ("WARN", Mood::Doubtful), ("FAIL", Mood::Bad)]),
        version: env!("CARGO_PKG_VERSION"),
    };
    let mut environment = Environment::new();
    environment.add_template("page.html", PAGE)?;
    Ok(environment.get_template("page.html")?.render(Serde(&page))?)
}

fn part(block: &Block) -> anyhow::Result<Part<'_>> {
    Ok(match block {
        Block::Heading(text) => Part::Heading { text },
        Block::Paragraph(text) => Part::Paragraph { text },
        Block::List(items) => Part::List { items },
        Block::Table(table) => Part::Table {
            header: table.has_header().then_some(&table.header),
            rows: &table.rows,
            prose: (0..table.header.len()).map(|column| table.is_prose(column)).collect(),
            long: table.rows.len() > LONG,
        },
        Block::Lines(plot) => Part::Lines {
            title: &plot.title,
            svg: svg(plot)?,
            legend: plot.series.iter().map(|series| series.name.as_str()).collect(),
        },
    })
}
