//! What guessing from what was said before gains, and what it costs where nothing can be guessed.
//!
//! `cargo run --release -p braidinfer --example prompt_lookup -- MODEL.gguf` has a model say given tokens after a prompt:
//! with half of them standing in the prompt, in runs of some length with new ones between them, and with none.
#![allow(clippy::print_stdout, reason = "this prints a table")]

#[path = "../tests/support/forced.rs"]
mod forced;

use std::time::{Duration, Instant};

use braidinfer::executor::Kernels;
use braidinfer::model::ModelSource;
use braidinfer::{Event, Llm, LoadOptions, Output, Result, SamplingParams};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const PROMPT: usize = 400;
/// Lengths of runs that stand in the prompt.
const RUNS: [usize; 3] = [20, 40, 80];
const SAID: usize = 320;
const ROUNDS: usize = 5;

fn main() -> Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "crates/braidinfer-cli/demo-model".into());
    let source = ModelSource::open(path)?;
    let options = LoadOptions { kernels: Kernels::Fused, force: true, max_sequences: 1, ..LoadOptions::default() };
    // One model for both: another one's weights may lie in memory that is read at another speed.
    let mut llm = Llm::open(&source, &options, &|_, _| {})?;
    let mut rng = SmallRng::seed_from_u64(1);
    let vocab = llm.spec().vocab_size as u32;
    let mut random = |count: usize| -> Vec<u32> { (0..count).map(|_| rng.random_range(3..vocab)).collect() };
    let prompt = random(PROMPT);
    let mut half = |run: usize| -> (String, Vec<u32>) {
        let runs = prompt.chunks(run).flat_map(|run| [run.to_vec(), random(run.len())].concat());
        (format!("half, in runs of {run}"), runs.take(SAID).collect())
    };
    let mut cases: Vec<(String, Vec<u32>)> = RUNS.into_iter().map(&mut half).collect();
    cases.push(("nothing".to_owned(), random(SAID)));
    println!(
        "| can be looked up | plain, tok/s | guessing, tok/s | ratio | guesses | right |\n|---|---|---|---|---|---|"
    );
    for (name, tokens) in &cases {
        let before = llm.stats();
        let mut ratios: Vec<[f64; 2]> = Vec::new();
        for round in 0..ROUNDS {
            let mut rate = |guessing| {
                llm.set_prompt_lookup(guessing);
                Ok::<_, braidinfer::Error>(SAID as f64 / say(&mut llm, &prompt, tokens)?.as_secs_f64())
            };
            // Neither is always the second.
            let second_first = round % 2 == 1;
            let (first, second) = (rate(second_first)?, rate(!second_first)?);
            ratios.push(if second_first { [second, first] } else { [first, second] });
        }
        ratios.sort_by(|a, b| (a[1] / a[0]).total_cmp(&(b[1] / b[0])));
        let [without, with] = ratios[ROUNDS / 2];
        let after = llm.stats();
        let each = |before: usize, after: usize| (after - before) / ROUNDS;
        let guesses = each(before.draft_tokens, after.draft_tokens);
        let right = each(before.accepted_tokens, after.accepted_tokens);
        println!("| {name} | {without:.1} | {with:.1} | {:.2} | {guesses} | {right} |", with / without);
    }
    Ok(())
}

/// How long it takes to say `tokens`, from the first of them on.
fn say(llm: &mut Llm, prompt: &[u32], tokens: &[u32]) -> Result<Duration> {
    let params = SamplingParams { ignore_eos: true, ..SamplingParams::default() };
    llm.add_constrained(prompt.to_vec(), &params, Some(forced::forced(tokens, 0)))?;
    let mut first = None;
    while llm.has_unfinished() {
        for Event { output, .. } in llm.step()? {
            if let Output::Token(_) = output? {
                first.get_or_insert_with(Instant::now);
            }
        }
    }
    Ok(first.map_or(Duration::ZERO, |first| first.elapsed()))
}
