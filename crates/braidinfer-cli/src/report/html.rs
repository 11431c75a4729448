//! One self-contained page, light and dark.

use std::collections::BTreeMap;

use minijinja::Environment;
use minijinja::value::Serde;
use plotters::style::RGBColor;
use serde::Serialize;

use super::plot::{SERIES_COLOURS, svg};
use super::{BarPlot, Block, Document, Mood, number};

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
    Bars { title: String, legend: Vec<&'a str>, groups: Vec<Group<'a>> },
}

/// The bars of one thing.
#[derive(Serialize)]
struct Group<'a> {
    thing: &'a str,
    bars: Vec<Bar>,
}

#[derive(Serialize)]
struct Bar {
    value: String,
    /// Of the largest, in per cent.
    width: f64,
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
        Block::Bars(plot) => Part::Bars {
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
