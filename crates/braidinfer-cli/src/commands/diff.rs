//! `braidinfer diff`.

use std::process::ExitCode;

use anyhow::{Context, bail};
use braidinfer::difference::{Difference, PromptDifference, Side};
use braidinfer::executor::Kernels;
use braidinfer::validation::{IDS, PROMPTS};
use braidinfer::{LoadOptions, Prompt};
use clap::ValueEnum;

use crate::args::{ComputingArgs, DiffArgs, DtypeArg, KernelsArg};
use crate::report::{Delivery, Document, LinePlot, Mood, Series, Verdict, number};
use crate::{model, output};

pub fn run(args: DiffArgs) -> anyhow::Result<ExitCode> {
    let delivery = Delivery::of(&args.output)?;
    let (a, b) = (Named::parse(&args.a, &args.computing)?, Named::parse(&args.b, &args.computing)?);
    model::prepare(&args.computing)?;
    let first = a.run(&args, None)?;
    let second = b.run(&args, Some(&first))?;
    let difference = second.difference(&first);
    let document = document(&args, &difference);
    delivery.deliver(&document, &document, &difference)?;
    let same = difference.prompts.iter().all(|prompt| prompt.first_difference.is_none());
    Ok(ExitCode::from(u8::from(!same)))
}

/// A side as it was typed.
struct Named {
    model: String,
    options: LoadOptions,
}

impl Named {
    /// `MODEL[,NAME=VALUE]..`, over what holds for both sides.
    fn parse(text: &str, computing: &ComputingArgs) -> anyhow::Result<Self> {
        let mut parts = text.split(',');
        let model = parts.next().unwrap_or_default().to_owned();
        let (mut kernels, mut computing) = (KernelsArg::Auto, computing.clone());
        for part in parts {
            let value = |value: &str| format!("{text}: `{value}`");
            match part.split_once('=') {
                Some(("kernels", name)) => {
                    kernels =
                        KernelsArg::from_str(name, false).map_err(anyhow::Error::msg).with_context(|| value(name))?;
                }
                Some(("dtype", name)) => {
                    computing.dtype =
                        DtypeArg::from_str(name, false).map_err(anyhow::Error::msg).with_context(|| value(name))?;
                }
                Some(("quantize", name)) => {
                    computing.quantize = Some(name.parse().map_err(anyhow::Error::msg).with_context(|| value(name))?);
                }
                _ => bail!("{text}: expected kernels=, dtype= or quantize= after the model, found `{part}`"),
            }
        }
        let options = model::options(kernels.into(), &computing)?;
        // Whoever names fused kernels wants to see what they do.
        let options = LoadOptions { force: options.kernels == Kernels::Fused, ..options };
        Ok(Self { model, options })
    }

    fn run(&self, args: &DiffArgs, forced: Option<&Side>) -> anyhow::Result<Side> {
        let source = model::source(Some(&self.model))?;
        let mut llm = model::load(&source, &self.options)?;
        llm.notes().iter().for_each(output::note);
        let prompts: Vec<Prompt> = match (args.prompt.as_slice(), args.ids.as_slice()) {
            ([], []) if llm.tokenizer().is_some() => PROMPTS.map(|text| Prompt::Text(text.to_owned())).to_vec(),
            ([], []) => vec![Prompt::Ids(IDS[0].to_vec())],
            ([], ids) => ids.iter().map(|ids| Prompt::Ids(ids.0.clone())).collect(),
            (texts, _) => texts.iter().map(|text| Prompt::Text(text.clone())).collect(),
        };
        Ok(Side::of(&mut llm, &prompts, args.max_tokens, forced)?)
    }
}

fn document(args: &DiffArgs, difference: &Difference) -> Document {
    let differ = difference.prompts.iter().filter(|prompt| prompt.first_difference.is_some()).count();
    let (word, mood) = if differ == 0 { ("SAME", Mood::Good) } else { ("DIFFERENT", Mood::Doubtful) };
    let mut document = Document {
        title: format!("{} beside {}", args.b, args.a),
        verdict: Some(Verdict {
            word: word.to_owned(),
            mood,
            sentence: format!(
                "{differ} of {} greedy answers differ; mean KL {} nats, the same likeliest token at {:.1} % of positions.",
                difference.prompts.len(),
                number(difference.kl_mean),
                100.0 * difference.top1_agreement
            ),
        }),
        ..Document::default()
    };
    document.heading("Prompts");
    let row = |(index, prompt): (usize, &PromptDifference)| {
        let divergence = &prompt.divergence;
        [
            (index + 1).to_string(),
            divergence.positions.to_string(),
            number(divergence.kl_mean),
            number(divergence.kl_max),
            format!("{:.1} %", 100.0 * divergence.top1_agreement),
            prompt.first_difference.map_or_else(|| "-".into(), |token| token.to_string()),
        ]
    };
    let header = ["prompt", "positions", "mean KL", "largest", "same top token", "first other token"];
    document.table(header, difference.prompts.iter().enumerate().map(row));
    document.lines(LinePlot {
        title: "Divergence at each position".into(),
        x: "position".into(),
        y: "KL, nats".into(),
        series: difference.prompts.iter().enumerate().map(series).collect(),
    });
    document.heading("Answers");
    for prompt in &difference.prompts {
        let rows = [["prompt", &prompt.prompt], ["A", &prompt.a], ["B", &prompt.b]];
        document.table(["", ""], rows.map(|row| row.map(str::to_owned)));
    }
    document
}

fn series((index, prompt): (usize, &PromptDifference)) -> Series {
    Series { name: format!("prompt {}", index + 1), values: prompt.divergence.kl.clone() }
}
