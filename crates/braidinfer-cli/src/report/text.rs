//! Plain text, for terminals and files.

use comfy_table::{CellAlignment, ContentArrangement};

use super::{Document, DocumentBlock, LinePlot, Table, number};
use crate::output;

pub fn render(document: &Document) -> String {
    let mut text = format!("{}\n", document.title);
    if let Some(verdict) = &document.verdict {
        text += &format!("{}: {}\n", verdict.word, verdict.sentence);
    }
    for block in &document.blocks {
        text += &match block {
            DocumentBlock::Heading(heading) => format!("\n{heading}\n"),
            DocumentBlock::Paragraph(paragraph) => format!("{paragraph}\n"),
            DocumentBlock::List(items) => items.iter().map(|item| format!("- {item}\n")).collect(),
            DocumentBlock::Table(rows) => table(rows),
            DocumentBlock::Lines(plot) => lines(plot),
            DocumentBlock::Bars(plot) => format!("\n{}", table(&plot.as_table())),
        };
    }
    text
}

fn table(rows: &Table) -> String {
    let mut table = comfy_table::Table::new();
    if rows.has_header() {
        table.set_header(&rows.header);
    }
    // Long cells are wrapped at the width of the terminal.
    table.load_style(output::TABLE).set_content_arrangement(ContentArrangement::Dynamic).add_rows(&rows.rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_cell_alignment(if rows.is_prose(index) { CellAlignment::Left } else { CellAlignment::Right });
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// One line for each series: smallest, largest and last value.
fn lines(plot: &LinePlot) -> String {
    let mut rows = Table {
        header: vec![plot.title.clone(), "smallest".into(), "largest".into(), "last".into()],
        rows: Vec::new(),
    };
    for series in &plot.series {
        let all = || series.values.iter().copied();
        let [smallest, largest, last] = [all().reduce(f64::min), all().reduce(f64::max), all().last()]
            .map(|value| value.map_or_else(|| "-".into(), number));
        rows.rows.push(vec![series.name.clone(), smallest, largest, last]);
    }
    format!("\n{}", table(&rows))
}
