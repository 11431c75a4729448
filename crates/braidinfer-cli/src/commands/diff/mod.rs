//! `braidinfer diff`.

mod endpoint;
mod transcripts;

use braidinfer::Prompt;
use braidinfer::difference::{Difference, PromptDifference, Side, Transcript, TranscriptDifference};
use braidinfer::validation::{IDS, PROMPTS};

use self::endpoint::Endpoint;
use crate::args::{ComputingArgs, DiffArgs, MOST_TOKENS, check_count};
use crate::interrupt;
use crate::report::{Delivery, Document, LinePlot, Rating, Series, Verdict, number};
use crate::side::LocalModel;

pub fn run(args: DiffArgs) -> anyhow::Result<u8> {
    check_count("max-tokens", args.max_tokens, 1..=MOST_TOKENS)?;
    let delivery = Delivery::of(&args.output)?;
    let (a, b) = (SideArg::parse(&args.a, &args.computing)?, SideArg::parse(&args.b, &args.computing)?);
    interrupt::install()?;
    let same = match (a, b) {
        (SideArg::Local(a), SideArg::Local(b)) => {
            let first = ask(&a, &args, None)?;
            let second = ask(&b, &args, Some(&first))?;
            let difference = second.difference(&first);
            let document = document(&args, &difference);
            delivery.deliver(&document, &document, &difference)?;
            difference.prompts.iter().all(|prompt| prompt.first_difference.is_none())
        }
        (a, b) => {
            let (first, second) = (a.transcripts(&args)?, b.transcripts(&args)?);
            let difference = TranscriptDifference::of(&first, &second);
            let document = transcripts::document(&args, &difference);
            delivery.deliver(&document, &document, &difference)?;
            difference.prompts.iter().all(|prompt| prompt.first_difference.is_none())
        }
    };
    Ok(u8::from(!same))
}

/// One side of the comparison.
enum SideArg {
    Local(Box<LocalModel>),
    Endpoint(Endpoint),
}

impl SideArg {
    fn parse(text: &str, computing: &ComputingArgs) -> anyhow::Result<Self> {
        if Endpoint::is_url(text) {
            return Endpoint::open(text).map(Self::Endpoint);
        }
        LocalModel::parse_over(text, computing).map(|local| Self::Local(Box::new(local)))
    }

    /// Greedy answers with log-probabilities, which endpoints can provide as well.
    fn transcripts(&self, args: &DiffArgs) -> anyhow::Result<Vec<Transcript>> {
        let prompts = prompts(args, true);
        match self {
            Self::Endpoint(endpoint) => prompts.iter().map(|prompt| endpoint.answer(prompt, args.max_tokens)).collect(),
            Self::Local(local) => {
                let mut llm = local.load()?;
                prompts.iter().map(|prompt| Ok(Transcript::of(&mut llm, prompt, args.max_tokens)?)).collect()
            }
        }
    }
}

/// The prompts: those given by the user, or the built-in ones.
fn prompts(args: &DiffArgs, has_text: bool) -> Vec<Prompt> {
    match (args.prompt.as_slice(), args.ids.as_slice()) {
        ([], []) if has_text => PROMPTS.map(|text| Prompt::Text(text.to_owned())).to_vec(),
        ([], []) => vec![Prompt::Ids(IDS[0].to_vec())],
        ([], ids) => ids.iter().map(|ids| Prompt::Ids(ids.0.clone())).collect(),
        (texts, _) => texts.iter().map(|text| Prompt::Text(text.clone())).collect(),
    }
}

fn ask(local: &LocalModel, args: &DiffArgs, forced: Option<&Side>) -> anyhow::Result<Side> {
    let mut llm = local.load()?;
    let prompts = prompts(args, llm.tokenizer().is_some());
    Ok(Side::of(&mut llm, &prompts, args.max_tokens, forced)?)
}

fn document(args: &DiffArgs, difference: &Difference) -> Document {
    let differ = difference.prompts.iter().filter(|prompt| prompt.first_difference.is_some()).count();
    let mut document = headline(
        args,
        differ,
        difference.prompts.len(),
        &format!(
            "mean KL {} nats, the same likeliest token at {:.1} % of positions",
            number(difference.kl_mean),
            100.0 * difference.top1_agreement
        ),
    );
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
    answers(&mut document, difference.prompts.iter().map(|prompt| [&prompt.prompt, &prompt.a, &prompt.b]));
    document
}

/// A document with title and verdict; `distance` is a sentence on how far the sides are apart.
fn headline(args: &DiffArgs, differ: usize, prompts: usize, distance: &str) -> Document {
    let (word, rating) = if differ == 0 { ("SAME", Rating::Good) } else { ("DIFFERENT", Rating::Doubtful) };
    Document {
        title: format!("{} beside {}", args.b, args.a),
        verdict: Some(Verdict {
            word: word.to_owned(),
            rating,
            sentence: format!("{differ} of {prompts} greedy answers differ; {distance}."),
        }),
        ..Document::default()
    }
}

/// Each prompt with both answers.
fn answers<'a>(document: &mut Document, prompts: impl Iterator<Item = [&'a String; 3]>) {
    document.heading("Answers");
    for texts in prompts {
        let rows = ["prompt", "A", "B"].into_iter().zip(texts);
        document.table(["", ""], rows.map(|(name, text)| [name.to_owned(), text.clone()]));
    }
}

fn series((index, prompt): (usize, &PromptDifference)) -> Series {
    Series { name: format!("prompt {}", index + 1), values: prompt.divergence.kl.clone() }
}
