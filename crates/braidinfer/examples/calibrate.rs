//! Does the check keep its promises on models it has never seen? Makes models from seeds, opens each as `auto` does, and
//! compares what it runs with standard kernels in f32: greedy answers, and the likeliest token at every position of them.
//!
//!     cargo run --release -p braidinfer --example calibrate -- amplifying 300 SEED
//!     cargo run --release -p braidinfer --example calibrate -- healthy 1000 SEED exact
//!
//! Prints a line for each promise that is broken, and a Markdown table row at the end. `docs/numerics.md` has results.

#![allow(clippy::print_stdout, reason = "the results are what it is for")]

#[path = "calibrate/model.rs"]
mod model;

use std::env;

use braidinfer::compat::{Precision, Status};
use braidinfer::divergence::{NEAR_TIE, Rate, Tally};
use braidinfer::executor::Kernels;
use braidinfer::model::ModelSource;
use braidinfer::{Error, Llm, LoadOptions, Prompt, SamplingParams};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use self::model::{Family, Recipe};

const PROMPTS: usize = 3;
const PROMPT_TOKENS: usize = 12;
const ANSWER_TOKENS: usize = 48;

/// What was promised and what was kept, over all models.
#[derive(Default)]
struct Totals {
    models: usize,
    /// Told that answers are the same.
    told_the_same: usize,
    /// Of these, with an answer that differs from f32 where that is no near tie.
    told_wrongly: usize,
    /// Models with such an answer, whatever they were told.
    with_changes: usize,
    warned: usize,
    /// Positions that are no near tie, and those of them with another likeliest token.
    decided: usize,
    changed: usize,
    kl_mean: Vec<f64>,
    /// Seconds of the checks.
    seconds: f64,
}

fn main() -> Result<(), Error> {
    let args: Vec<String> = env::args().skip(1).collect();
    let asked = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [family, count, first] => Asked::parse(family, count, first, "auto"),
        [family, count, first, precision] => Asked::parse(family, count, first, precision),
        _ => None,
    };
    let Some(Asked { family, count, first, precision }) = asked else {
        println!("expected: calibrate amplifying|healthy MODELS FIRST-SEED [auto|exact|fast], found: {args:?}");
        return Ok(());
    };
    let mut totals = Totals::default();
    for seed in first..first + count {
        judge(&Recipe::draw(family, seed), precision, &mut totals)?;
    }
    print(family, precision, &totals);
    Ok(())
}

/// What was typed.
struct Asked {
    family: Family,
    count: u64,
    first: u64,
    precision: Precision,
}

impl Asked {
    fn parse(family: &str, count: &str, first: &str, precision: &str) -> Option<Self> {
        let known = [Precision::Auto, Precision::Exact, Precision::Fast];
        Some(Self {
            family: family.parse().ok()?,
            count: count.parse().ok()?,
            first: first.parse().ok()?,
            precision: known.into_iter().find(|known| known.as_str() == precision)?,
        })
    }
}

fn judge(recipe: &Recipe, precision: Precision, totals: &mut Totals) -> Result<(), Error> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    recipe.write(folder.path());
    let source = ModelSource::open(folder.path())?;
    let open = |kernels| {
        let options = LoadOptions { kernels, precision, quantize: recipe.quantize, ..LoadOptions::default() };
        Llm::open(&source, &options, &|_, _| {})
    };
    let (mut truth, mut own) = (open(Kernels::Standard)?, open(Kernels::Auto)?);
    let report = own.compat().expect("auto makes a verdict").clone();
    let mut tally = Tally::default();
    let mut differs = false;
    for ids in prompts(recipe) {
        differs |= differs_clearly(&mut truth, &mut own, &ids, &mut tally)?;
    }
    let found = tally.divergence();
    let told_the_same = report.same_answers;
    totals.models += 1;
    totals.told_the_same += usize::from(told_the_same);
    totals.told_wrongly += usize::from(told_the_same && differs);
    totals.with_changes += usize::from(differs);
    totals.warned += usize::from(report.status != Status::Compatible);
    totals.decided += found.decided;
    totals.changed += found.disagreements;
    totals.kl_mean.push(found.kl_mean);
    totals.seconds += report.measured.as_ref().map_or(0.0, |measured| measured.seconds);
    if differs || report.status != Status::Compatible {
        println!(
            "{recipe}: {}, KL {:.1e}, told: {}",
            if differs { "CHANGED" } else { "warned" },
            found.kl_mean,
            report.reason
        );
    }
    Ok(())
}

fn prompts(recipe: &Recipe) -> Vec<Vec<u32>> {
    let mut rng = Pcg64::seed_from_u64(recipe.seed ^ 0x9e37_79b9);
    let mut prompt = |_| (0..PROMPT_TOKENS).map(|_| rng.random_range(0..recipe.vocab_size as u32)).collect();
    (0..PROMPTS).map(&mut prompt).collect()
}

/// Whether the greedy answer departs from that of the truth at a position that is no near tie there.
fn differs_clearly(truth: &mut Llm, own: &mut Llm, ids: &[u32], tally: &mut Tally) -> Result<bool, Error> {
    let params = SamplingParams {
        temperature: 0.0,
        max_tokens: Some(ANSWER_TOKENS),
        ignore_eos: true,
        ..SamplingParams::default()
    };
    let prompt = [Prompt::Ids(ids.to_vec())];
    let (expected, found) =
        (truth.generate(&prompt, &params)?.remove(0).ids, own.generate(&prompt, &params)?.remove(0).ids);
    let mut read = ids.to_vec();
    read.extend_from_slice(&expected[..expected.len() - 1]);
    let (expected_logits, own_logits) = (truth.logits(&read, true)?, own.logits(&read, true)?);
    let vocab_size = expected_logits[0].len();
    tally.add(&expected_logits.concat(), &own_logits.concat(), vocab_size, &[]);
    let parting = expected.iter().zip(&found).position(|(a, b)| a != b);
    Ok(parting.is_some_and(|at| {
        let row = &expected_logits[ids.len() - 1 + at];
        row[expected[at] as usize] - row[found[at] as usize] > NEAR_TIE as f32
    }))
}

fn print(family: Family, precision: Precision, totals: &Totals) {
    let percent =
        |rate: Rate| format!("{:.2} % ({:.2} to {:.2})", 100.0 * rate.share, 100.0 * rate.low, 100.0 * rate.high);
    let mut kl = totals.kl_mean.clone();
    kl.sort_by(f64::total_cmp);
    let at = |share: f64| kl.get(((kl.len() as f64 - 1.0) * share) as usize).copied().unwrap_or(0.0);
    println!(
        "| family | precision | models | told \"the same\" | of these wrongly | models with a changed answer | warned | positions changed | median and largest mean KL | seconds of a check |"
    );
    println!(
        "| {family} | {} | {} | {} | {} | {} | {} | {} of {}: {} | {:.1e}, {:.1e} | {:.2} |",
        precision.as_str(),
        totals.models,
        totals.told_the_same,
        percent(Rate::of(totals.told_wrongly, totals.told_the_same)),
        totals.with_changes,
        percent(Rate::of(totals.warned, totals.models)),
        totals.changed,
        totals.decided,
        percent(Rate::of(totals.changed, totals.decided)),
        at(0.5),
        at(1.0),
        totals.seconds / totals.models.max(1) as f64,
    );
}
