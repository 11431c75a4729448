//! HTML: one self-contained page with a light and a dark theme.

use std::collections::BTreeMap;

use minijinja::Environment;
use minijinja::value::Serde;
use plotters::style::RGBColor;
use serde::Serialize;

use super::plot::{SERIES_COLOURS, svg};
use super::{BarPlot, Document, DocumentBlock, Rating, number};

/// Tables with more rows are collapsed.
const LONG: usize = 12;

const PAGE: &str = include_str!("page.html");

/// A block of the document as the template `page.html` takes it.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum HtmlBlock<'a> {
    Heading { text: &'a str },
    Paragraph { text: &'a str },
    List { items: &'a [String] },
    Table { header: Option<&'a [String]>, rows: &'a [Vec<String>], prose: Vec<bool>, long: bool },
    Lines { title: &'a str, svg: String, legend: Vec<&'a str> },
    Bars { title: String, legend: Vec<&'a str>, groups: Vec<Group<'a>> },
}

/// The bars of one group, one for each series.
#[derive(Serialize)]
struct Group<'a> {
    thing: &'a str,
    bars: Vec<Bar>,
}

#[derive(Serialize)]
struct Bar {
    value: String,
    /// Width relative to the largest bar, in per cent.
    width: f64,
}

#[derive(Serialize)]
struct Headline<'a> {
    word: &'a str,
    sentence: &'a str,
    mood: Rating,
}

#[derive(Serialize)]
struct Page<'a> {
    title: &'a str,
    verdict: Option<Headline<'a>>,
    parts: Vec<HtmlBlock<'a>>,
    colours: Vec<String>,
    /// Ratings by the text of a table cell, which set its colour.
    moods: BTreeMap<&'static str, Rating>,
    version: &'static str,
}

pub fn render(document: &Document) -> anyhow::Result<String> {
    let colour = |c: &RGBColor| format!("#{:02X}{:02X}{:02X}", c.0, c.1, c.2);
    let page = Page {
        title: &document.title,
        verdict: document.verdict.as_ref().map(|verdict| Headline {
            word: &verdict.word,
            sentence: &verdict.sentence,
            mood: verdict.rating,
        }),
        parts: document.blocks.iter().map(html_block).collect::<anyhow::Result<_>>()?,
        colours: SERIES_COLOURS.iter().map(colour).collect(),
        moods: BTreeMap::from([("PASS", Rating::Good), ("WARN", Rating::Doubtful), ("FAIL", Rating::Bad)]),
        version: env!("CARGO_PKG_VERSION"),
    };
    let mut environment = Environment::new();
    environment.add_template("page.html", PAGE)?;
    Ok(environment.get_template("page.html")?.render(Serde(&page))?)
}

fn html_block(block: &DocumentBlock) -> anyhow::Result<HtmlBlock<'_>> {
    Ok(match block {
        DocumentBlock::Heading(text) => HtmlBlock::Heading { text },
        DocumentBlock::Paragraph(text) => HtmlBlock::Paragraph { text },
        DocumentBlock::List(items) => HtmlBlock::List { items },
        DocumentBlock::Table(table) => HtmlBlock::Table {
            header: table.has_header().then_some(&table.header),
            rows: &table.rows,
            prose: (0..table.header.len()).map(|column| table.is_prose(column)).collect(),
            long: table.rows.len() > LONG,
        },
        DocumentBlock::Lines(plot) => HtmlBlock::Lines {
            title: &plot.title,
            svg: svg(plot)?,
            legend: plot.series.iter().map(|series| series.name.as_str()).collect(),
        },
        DocumentBlock::Bars(plot) => HtmlBlock::Bars {
            title: format!("{}, {}", plot.title, plot.unit),
            legend: plot.series.iter().map(|series| series.name.as_str()).collect(),
            groups: groups(plot),
        },
    })
}

fn groups(plot: &BarPlot) -> Vec<Group<'_>> {
    let largest = plot.largest().max(f64::MIN_POSITIVE);
    let bar = |value: &f64| Bar { value: number(*value), width: 100.0 * value / largest };
    let bars =
        |index: usize| plot.series.iter().filter_map(|series| series.values.get(index)).map(bar).collect::<Vec<_>>();
    plot.things.iter().enumerate().map(|(index, thing)| Group { thing, bars: bars(index) }).collect()
}
