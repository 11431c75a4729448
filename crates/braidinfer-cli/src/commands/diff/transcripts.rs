//! The report on the differences between two lists of transcripts.

use braidinfer::difference::{PromptTranscripts, TranscriptDifference};

use super::{answers, headline};
use crate::args::DiffArgs;
use crate::report::{Document, LinePlot, Series, number};

pub fn document(args: &DiffArgs, difference: &TranscriptDifference) -> Document {
    let prompts = &difference.prompts;
    let differ = prompts.iter().filter(|prompt| prompt.first_difference.is_some()).count();
    let distance = format!(
        "log-probabilities of the {} tokens in common differ by {} nats in the mean, by {} at most",
        difference.tokens,
        number(difference.logprob_difference_mean),
        number(difference.logprob_difference_max)
    );
    let mut document = headline(args, differ, prompts.len(), &distance);
    document.heading("Prompts");
    let header = ["prompt", "tokens read", "tokens in common", "mean", "largest", "first other token", "margin"];
    document.table(header, prompts.iter().enumerate().map(row));
    if prompts.iter().any(|prompt| matches!(prompt.prompt_tokens, [Some(a), Some(b)] if a != b)) {
        document.paragraph(
            "The two sides read different numbers of tokens for the same text: their tokenizers differ, or one of them \
             puts a special token before it.",
        );
    }
    document.lines(LinePlot {
        title: "Difference of log-probabilities at each common token".into(),
        x: "token".into(),
        y: "nats".into(),
        series: prompts.iter().enumerate().map(series).collect(),
    });
    answers(&mut document, prompts.iter().map(|prompt| [&prompt.prompt, &prompt.a, &prompt.b]));
    document
}

fn row((index, prompt): (usize, &PromptTranscripts)) -> [String; 7] {
    let differences = &prompt.logprob_differences;
    let mean = differences.iter().sum::<f64>() / differences.len().max(1) as f64;
    let known = |tokens: Option<usize>| tokens.map_or_else(|| "?".into(), |tokens: usize| tokens.to_string());
    let margin = |margin: Option<f64>| margin.map_or_else(|| "?".into(), number);
    [
        (index + 1).to_string(),
        prompt.prompt_tokens.map(known).join(" / "),
        differences.len().to_string(),
        number(mean),
        number(differences.iter().copied().fold(0.0, f64::max)),
        match (&prompt.parting, prompt.first_difference) {
            (Some(parting), Some(token)) => format!("{token}: {:?}, {:?}", parting.a, parting.b),
            (None, Some(token)) => format!("{token}: one has ended"),
            (_, None) => "-".into(),
        },
        prompt.parting.as_ref().map_or_else(
            || "-".into(),
            |parting| format!("{} / {}", margin(parting.a_margin), margin(parting.b_margin)),
        ),
    ]
}

fn series((index, prompt): (usize, &PromptTranscripts)) -> Series {
    Series { name: format!("prompt {}", index + 1), values: prompt.logprob_differences.clone() }
}
