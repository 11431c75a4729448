//! What each quantization type changes: file size, divergence from f32, and how often the likeliest token stays the
//! same, on stories that the model itself tells. Prints a Markdown table.
//!
//!     cargo run --release -p braidinfer --example quantization_error -- MODEL [PROMPT]

#![allow(clippy::print_stdout, reason = "the table is what it is for")]

use std::env;
use std::fs;
use std::ops::ControlFlow;

use braidinfer::divergence::{Divergence, Tally};
use braidinfer::model::ModelSource;
use braidinfer::model::quantization::FileType;
use braidinfer::{Error, Llm, LoadOptions, Prompt, SamplingParams, Threads, quantize};

const STORIES: u64 = 16;
const TOKENS: usize = 200;

fn main() -> Result<(), Error> {
    let mut args = env::args().skip(1);
    let model = args.next().unwrap_or_else(|| "crates/braidinfer-cli/demo-model".into());
    let prompt = args.next().unwrap_or_else(|| "Once upon a time".into());
    let source = ModelSource::open(model)?;
    let mut reference = open(&source)?;
    let stories = stories(&mut reference, &prompt)?;
    let expected = stories.iter().map(|ids| reference.logits(ids, true)).collect::<Result<Vec<_>, _>>()?;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    println!("| type | file | mean KL | largest KL | same likeliest token |");
    println!("|---|---|---|---|---|");
    for file_type in FileType::ALL {
        let path = folder.path().join("model.gguf");
        quantize(&source, &path, file_type, true, &Threads::new(None)?, &mut |_, _| ControlFlow::Continue(()))?;
        let bytes = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        let mut quantized = open(&ModelSource::open(&path)?)?;
        let mut tally = Tally::default();
        for (ids, expected) in stories.iter().zip(&expected) {
            let found = quantized.logits(ids, true)?.concat();
            tally.add(&expected.concat(), &found, quantized.spec().vocab_size, &[]);
        }
        println!("{}", row(file_type, bytes, &tally.divergence()));
    }
    println!(
        "\n{} positions of {STORIES} stories that begin with {prompt:?}",
        expected.iter().map(Vec::len).sum::<usize>()
    );
    Ok(())
}

fn open(source: &ModelSource) -> Result<Llm, Error> {
    Llm::open(source, &LoadOptions::default(), &|_, _| {})
}

/// Ids of stories the model tells with different seeds, prompts included.
fn stories(llm: &mut Llm, prompt: &str) -> Result<Vec<Vec<u32>>, Error> {
    let story = |seed| {
        let params = SamplingParams {
            temperature: 1.0,
            seed: Some(seed),
            max_tokens: Some(TOKENS),
            ..SamplingParams::default()
        };
        let completion = llm.generate(&[Prompt::Text(prompt.to_owned())], &params)?.remove(0);
        Ok([completion.prompt_ids, completion.ids].concat())
    };
    (0..STORIES).map(story).collect()
}

fn row(file_type: FileType, bytes: u64, found: &Divergence) -> String {
    let (mean, largest, agreement) = (found.kl_mean, found.kl_max, 100.0 * found.top1_agreement);
    format!("| {file_type} | {:.2} MB | {mean:.1e} | {largest:.1e} | {agreement:.2} % |", bytes as f64 / 1e6)
}
