//! A model on one kind of kernels that is timed, through the same engine as every other command.

use std::time::{Duration, Instant};

use anyhow::bail;
use braidinfer::executor::{ExecutorReport, ReadPattern};
use braidinfer::model::{DecoderSpec, ModelSource};
use braidinfer::{Llm, LoadOptions, SamplingParams};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::machine::PeakMemory;
use super::measure::Spread;
use super::plan::{Case, Phase, Plan};
use crate::{model, output};

/// Seed of the prompts: every kind of kernels gets the same tokens.
const SEED: u64 = 0;

/// A model on one kind of kernels, with the tokens of its prompts.
pub struct Contestant {
    /// Name of its kernels as in the arguments.
    name: String,
    llm: Llm,
    /// Generates prompts that are not in the prefix cache.
    rng: Pcg64,
    /// Tokens of every context, after a few tokens that differ between sequences.
    ids: Vec<u32>,
    load: Duration,
    first_token: Duration,
    peak_memory: Option<usize>,
    /// Rates of only reading the weights, in GB/s.
    read_rates: Vec<f64>,
    /// Rates of copying memory of the GPU that the model is on, in GB/s.
    copy_rates: Vec<f64>,
}

/// Description of a contestant, kept after its model is dropped.
pub struct Described {
    /// Name of its kernels as in the arguments.
    pub name: String,
    pub spec: DecoderSpec,
    pub executor: ExecutorReport,
    /// Most prompt tokens in one step.
    pub step_tokens: usize,
    pub load: Duration,
    pub first_token: Duration,
    pub peak_memory: Option<usize>,
    /// Bandwidth of reading its own weights, in GB/s, if that can be measured: the median of measurements between the runs.
    /// The same machine reads different memory at different speeds.
    pub read_gb_s: Option<f64>,
    /// Bandwidth of copying memory of the GPU that all of it is on, in GB/s, read and written together: the median, too.
    pub copy_gb_s: Option<f64>,
}

impl Contestant {
    /// Loads the model and computes one prompt and the contexts of all cases.
    pub fn open(source: &ModelSource, name: String, options: &LoadOptions, plan: &Plan) -> anyhow::Result<Self> {
        let memory = PeakMemory::begin();
        let started = Instant::now();
        let llm = model::load(source, options)?;
        let load = started.elapsed();
        check_room(&llm, plan)?;
        let mut rng = Pcg64::seed_from_u64(SEED);
        let ids = random_ids(&mut rng, llm.spec().vocab_size, plan.max_depth());
        let mut contestant = Self {
            name,
            llm,
            rng,
            ids,
            load,
            first_token: Duration::ZERO,
            peak_memory: None,
            read_rates: Vec::new(),
            copy_rates: Vec::new(),
        };
        contestant.first_token = load + contestant.prefill(plan.prompt_tokens)?;
        contestant.peak_memory = memory.and_then(PeakMemory::end);
        // What steps would do bit by bit: rates are those of a program that has run for a while.
        while contestant.llm.copy_some_weights() {}
        contestant.cache_contexts(plan)?;
        Ok(contestant)
    }

    pub fn llm(&self) -> &Llm {
        &self.llm
    }

    pub fn described(&self) -> Described {
        Described {
            name: self.name.clone(),
            spec: self.llm.spec().clone(),
            executor: self.llm.decoder().report(),
            step_tokens: self.llm.max_batched_tokens(),
            load: self.load,
            first_token: self.first_token,
            peak_memory: self.peak_memory,
            read_gb_s: median(&self.read_rates),
            copy_gb_s: median(&self.copy_rates),
        }
    }

    /// Measures how fast its memory is: that of its GPU, or else the weights, which are read once without computing.
    pub fn measure_memory(&mut self, pattern: Option<ReadPattern>) -> anyhow::Result<()> {
        if let Some(rate) = self.llm.copy_rate()? {
            self.copy_rates.push(rate / 1e9);
            return Ok(());
        }
        let started = Instant::now();
        if pattern.is_some_and(|pattern| self.llm.read_weights(pattern)) {
            let bytes = self.llm.decoder().report().weight_bytes as f64;
            self.read_rates.push(bytes / started.elapsed().as_secs_f64().max(1e-9) / 1e9);
        }
        Ok(())
    }

    /// Runs a case once; returns the time of its timed part.
    pub fn run(&mut self, case: Case) -> anyhow::Result<Duration> {
        match case.phase {
            Phase::Prefill => self.prefill(case.tokens),
            Phase::Decode => self.decode(case),
        }
    }

    /// Times a new prompt of `tokens` tokens, including its first generated token.
    fn prefill(&mut self, tokens: usize) -> anyhow::Result<Duration> {
        let prompt = random_ids(&mut self.rng, self.llm.spec().vocab_size, tokens);
        let started = Instant::now();
        self.ask(prompt, 1)?;
        self.finish()?;
        Ok(started.elapsed())
    }

    /// Times decoding for every sequence of the case, from its context on. The step with the first token is not timed.
    fn decode(&mut self, case: Case) -> anyhow::Result<Duration> {
        for sequence in 0..case.batch {
            let prompt = self.context(sequence, case.context);
            self.ask(prompt, 1 + case.tokens)?;
        }
        let mut written = 0;
        while written < case.batch {
            written += self.step()?;
        }
        let started = Instant::now();
        written += self.finish()?;
        let (took, expected) = (started.elapsed(), case.batch * (1 + case.tokens));
        if written != expected {
            bail!("{} sequences: expected {expected} tokens, found {written}", case.batch);
        }
        Ok(took)
    }

    /// Computes the longest context of every sequence, so that cases find their contexts in the prefix cache.
    fn cache_contexts(&mut self, plan: &Plan) -> anyhow::Result<()> {
        if plan.max_depth() == 0 {
            return Ok(());
        }
        let bar = output::progress_bar("filling contexts", "sequences");
        bar.set_length(plan.max_batch() as u64);
        for sequence in 0..plan.max_batch() {
            let context = self.context(sequence, plan.max_depth());
            self.ask(context, 1)?;
            self.finish()?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// The prompt of a sequence for a case: with the first generated token it has `depth` tokens, and at least two. Sequences
    /// have different first tokens, so that they share no cached blocks, and others at each position, so that they do not choose
    /// the same experts.
    fn context(&self, sequence: usize, depth: usize) -> Vec<u32> {
        let vocab_size = self.llm.spec().vocab_size;
        let own = [sequence % vocab_size, sequence / vocab_size % vocab_size].map(|id| id as u32);
        let turned = self.ids.iter().copied().cycle().skip(own.len() + sequence);
        own.into_iter().chain(turned).take(depth.saturating_sub(1).max(1)).collect()
    }

    fn ask(&mut self, prompt: Vec<u32>, max_tokens: usize) -> anyhow::Result<()> {
        let params = SamplingParams {
            temperature: self.temperature(),
            seed: prompt.first().copied().map(u64::from),
            max_tokens: Some(max_tokens),
            ignore_eos: true,
            ..SamplingParams::default()
        };
        self.llm.add(prompt, &params)?;
        Ok(())
    }

    /// Greedy, but for models with experts: there, sequences that end up saying the same, as those of random weights do, would
    /// choose the same experts, whose weights are then read once for all.
    fn temperature(&self) -> f64 {
        if self.llm.spec().has_experts() { 1.0 } else { 0.0 }
    }

    /// Runs steps until all requests are finished; returns the number of generated tokens.
    fn finish(&mut self) -> anyhow::Result<usize> {
        let mut written = 0;
        while self.llm.has_unfinished() {
            written += self.step()?;
        }
        Ok(written)
    }

    /// Runs a step; returns the number of generated tokens.
    fn step(&mut self) -> anyhow::Result<usize> {
        let events = self.llm.step()?;
        // What is measured from now on would be another device.
        if let Some(notice) = self.llm.take_notices().first() {
            bail!("{notice}");
        }
        let written = events.len();
        events.into_iter().try_for_each(|event| event.output.map(drop))?;
        Ok(written)
    }
}

fn median(rates: &[f64]) -> Option<f64> {
    Spread::of(rates).map(|spread| spread.median)
}

fn random_ids(rng: &mut Pcg64, vocab_size: usize, count: usize) -> Vec<u32> {
    (0..count).map(|_| rng.random_range(0..vocab_size) as u32).collect()
}

/// Fails if there are too few blocks for all sequences at once.
fn check_room(llm: &Llm, plan: &Plan) -> anyhow::Result<()> {
    let kv_cache = llm.decoder().kv_cache();
    let (blocks, batch) = (plan.context.div_ceil(kv_cache.block_size), plan.max_batch());
    let most = kv_cache.num_blocks / blocks;
    if batch > most {
        bail!("batch: expected at most {most} sequences of {} tokens, found {batch}", plan.context);
    }
    Ok(())
}
