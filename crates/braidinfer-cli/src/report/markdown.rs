//! Markdown, as GitHub shows it.

use super::{Document, DocumentBlock, LinePlot, Table, number};

pub fn render(document: &Document) -> String {
    let mut text = format!("# {}\n", document.title);
    if let Some(verdict) = &document.verdict {
        text += &format!("\n**{}**: {}\n", verdict.word, verdict.sentence);
    }
    for block in &document.blocks {
        text.push('\n');
        text += &match block {
            DocumentBlock::Heading(heading) => format!("## {heading}\n"),
            DocumentBlock::Paragraph(paragraph) => format!("{paragraph}\n"),
            DocumentBlock::List(items) => items.iter().map(|item| format!("- {item}\n")).collect(),
            DocumentBlock::Table(rows) => table(rows),
            DocumentBlock::Lines(plot) => lines(plot),
            DocumentBlock::Bars(plot) => table(&plot.as_table()),
        };
    }
    text
}

fn table(table: &Table) -> String {
    let row = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|").replace('\n', " ")).collect();
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
    format!("{} ({})\n\n{}", plot.title, plot.y, table(&Table { header, rows: (0..longest).map(row).collect() }))
}
