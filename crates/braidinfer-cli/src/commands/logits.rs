//! `braidinfer logits`.

use anyhow::bail;
use braidinfer::{Llm, Prompt};
use comfy_table::Table;
use serde::Serialize;

use crate::args::{Ids, LogitsArgs};
use crate::{model, output};

/// Number of tokens shown per position.
const SHOWN: usize = 10;

#[derive(Serialize)]
struct LogitsJson {
    ids: Vec<u32>,
    positions: Vec<usize>,
    logits: Vec<Vec<f32>>,
}

pub fn run(args: LogitsArgs) -> anyhow::Result<()> {
    let adapter = model::only_adapter(&args.load)?;
    let (mut llm, _) = model::open(args.model.as_deref(), &args.load)?;
    let prompt = match (args.ids, args.prompt) {
        (Some(Ids(ids)), _) => Prompt::Ids(ids),
        (None, Some(text)) => Prompt::Text(text),
        (None, None) => bail!("expected --ids or --prompt"),
    };
    let ids = llm.encode(&prompt)?;
    let logits = llm.logits_with(&ids, args.all, adapter)?;
    let positions: Vec<usize> = (ids.len() - logits.len()..ids.len()).collect();
    if args.json {
        return output::print_json(&LogitsJson { ids, positions, logits });
    }
    positions.into_iter().zip(&logits).try_for_each(|(position, row)| {
        output::print_line(format!("position {position}, after token {}", shown(&llm, ids[position])))?;
        output::print_line(table(&llm, row))
    })
}

/// The likeliest tokens of one position.
fn table(llm: &Llm, logits: &[f32]) -> Table {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
    let largest = f64::from(logits[order[0] as usize]);
    let total: f64 = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum();
    let mut table = Table::new();
    table.load_style(output::TABLE).set_header(["token", "logit", "probability"]);
    for id in order.into_iter().take(SHOWN) {
        let logit = logits[id as usize];
        let probability = (f64::from(logit) - largest).exp() / total;
        table.add_row([shown(llm, id), format!("{logit:.4}"), format!("{:.2} %", probability * 100.0)]);
    }
    table
}

fn shown(llm: &Llm, id: u32) -> String {
    match llm.tokenizer().and_then(|tokenizer| tokenizer.id_to_token(id)) {
        Some(piece) => format!("{id} {piece:?}"),
        None => id.to_string(),
    }
}
