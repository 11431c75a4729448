//! Markdown, as GitHub shows it.

use super::{Document, DocumentBlock, LinePlot, Table, number};

pub fn render(document: &Document) -> String {
    let mut text = format!("# {}\n", plain(&document.title));
    if let Some(verdict) = &document.verdict {
        text += &format!("\n**{}**: {}\n", plain(&verdict.word), plain(&verdict.sentence));
    }
    for block in &document.blocks {
        text.push('\n');
        text += &match block {
            DocumentBlock::Heading(heading) => format!("## {}\n", plain(heading)),
            DocumentBlock::Paragraph(paragraph) => format!("{}\n", plain(paragraph)),
            DocumentBlock::List(items) => items.iter().map(|item| format!("- {}\n", plain(item))).collect(),
            DocumentBlock::Table(rows) => table(rows),
            DocumentBlock::Lines(plot) => lines(plot),
            DocumentBlock::Bars(plot) => table(&plot.as_table()),
        };
    }
    text
}

/// `text` without HTML, links and images, which names and texts of models may contain.
fn plain(text: &str) -> String {
    let escaped = |c: char| match c {
        '\\' | '<' | '>' | '[' | ']' | '|' | '*' | '&' => format!("\\{c}"),
        c => c.to_string(),
    };
    let text: String = text.chars().map(escaped).collect();
    // At its beginning it would be a heading.
    if text.starts_with('#') { format!("\\{text}") } else { text }
}

fn table(table: &Table) -> String {
    let row = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| plain(cell).replace('\n', " ")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rule = (0..table.header.len()).map(|column| if table.is_prose(column) { "---" } else { "---:" });
    let rule: Vec<&str> = rule.collect();
    let rows: String = table.rows.iter().map(|cells| row(cells)).collect();
    format!("{}|{}|\n{rows}", row(&table.header), rule.join("|"))
}

/// The values of a plot: a column for each series.
fn lines(plot: &LinePlot) -> String {
    let longest = plot.series.iter().map(|series| series.values.len()).max().unwrap_or(0);
    let cell = |values: &[f64], index: usize| values.get(index).copied().map_or_else(String::new, number);
    let header = [plot.x.clone()].into_iter().chain(plot.series.iter().map(|series| series.name.clone())).collect();
    let row = |index: usize| {
        let cells = plot.series.iter().map(|series| cell(&series.values, index));
        [index.to_string()].into_iter().chain(cells).collect()
    };
    let (title, y) = (plain(&plot.title), plain(&plot.y));
    format!("{title} ({y})\n\n{}", table(&Table { header, rows: (0..longest).map(row).collect() }))
}
