//! A model on one kind of kernels, ready to be timed.

use std::time::{Duration, Instant};

use anyhow::bail;
use braidinfer::engine::argmax;
use braidinfer::executor::{Batch, ExecutorReport, Logits, NoProbe, SequenceSlice};
use braidinfer::model::{DecoderSpec, ModelSource};
use braidinfer::{Llm, LoadOptions};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::machine::PeakMemory;
use super::measure::Spread;
use super::plan::{Case, Phase, Plan, Step};
use crate::{model, output};

/// Every measurement reads the same tokens.
const SEED: u64 = 0;

/// A model and the tokens it reads. Sequence `s` has the `s`-th run of storage blocks.
pub struct Contestant {
    llm: Llm,
    /// Blocks of one sequence.
    blocks: usize,
    /// What every prompt and context begins with.
    ids: Vec<u32>,
    load: Duration,
    first_token: Duration,
    peak_memory: Option<usize>,
    /// How long it took each time to only read the weights.
    readings: Vec<Duration>,
}

/// What is left to say when the model is gone.
pub struct Described {
    pub spec: DecoderSpec,
    pub executor: ExecutorReport,
    /// Tokens of a prompt that one step has room for.
    pub step_tokens: usize,
    pub load: Duration,
    pub first_token: Duration,
    pub peak_memory: Option<usize>,
    /// How fast its own weights can be read, in GB/s, where that can be measured: the median of readings between the
    /// runs. The same machine reads different memory at different speed.
    pub read_gb_s: Option<f64>,
}

impl Contestant {
    /// Loads the model, reads one prompt, and fills the contexts that cases begin after.
    pub fn open(source: &ModelSource, options: &LoadOptions, plan: &Plan) -> anyhow::Result<Self> {
        let memory = PeakMemory::begin();
        let started = Instant::now();
        let llm = model::load(source, options)?;
        let load = started.elapsed();
        let blocks = blocks_per_sequence(&llm, plan)?;
        let ids = random_ids(llm.spec().vocab_size, plan.prompt_tokens.max(plan.max_depth()));
        let mut contestant =
            Self { llm, blocks, ids, load, first_token: Duration::ZERO, peak_memory: None, readings: Vec::new() };
        let prompt = Instant::now();
        contestant.prefill(plan.prompt_tokens)?;
        contestant.first_token = load + prompt.elapsed();
        contestant.peak_memory = memory.and_then(PeakMemory::end);
        contestant.fill(plan)?;
        Ok(contestant)
    }

    pub fn llm(&self) -> &Llm {
        &self.llm
    }

    pub fn described(&self) -> Described {
        Described {
            spec: self.llm.spec().clone(),
            executor: self.llm.executor().report(),
            step_tokens: self.llm.max_batched_tokens(),
            load: self.load,
            first_token: self.first_token,
            peak_memory: self.peak_memory,
            read_gb_s: self.read_gb_s(),
        }
    }

    fn read_gb_s(&self) -> Option<f64> {
        let bytes = self.llm.executor().report().weight_bytes as f64;
        let rates: Vec<f64> = self.readings.iter().map(|time| bytes / time.as_secs_f64().max(1e-9) / 1e9).collect();
        Spread::of(&rates).map(|spread| spread.median)
    }

    /// Reads the weights once and computes nothing.
    pub fn read_weights(&mut self) {
        let started = Instant::now();
        if self.llm.executor_mut().read_weights() {
            self.readings.push(started.elapsed());
        }
    }

    /// Runs a case once.
    pub fn run(&mut self, case: Case) -> anyhow::Result<Duration> {
        let started = Instant::now();
        match case.phase {
            Phase::Prefill => self.prefill(case.tokens)?,
            Phase::Decode => self.decode(case)?,
        }
        Ok(started.elapsed())
    }

    /// Reads a prompt of `tokens` tokens and chooses the token after it.
    fn prefill(&mut self, tokens: usize) -> anyhow::Result<()> {
        let case = Case { phase: Phase::Prefill, batch: 1, context: 0, tokens };
        for step in case.steps(self.llm.max_batched_tokens()) {
            let logits = self.read(0, step, tokens, usize::from(step.end() == tokens))?;
            greedy(&logits);
        }
        Ok(())
    }

    /// Generates for every sequence of the case, from its context on.
    fn decode(&mut self, case: Case) -> anyhow::Result<()> {
        let mut tokens: Vec<u32> = (0..case.batch).map(|sequence| self.ids[sequence % self.ids.len()]).collect();
        for step in case.steps(1) {
            let mut batch = Batch::default();
            for (sequence, token) in tokens.iter().enumerate() {
                batch.push(&[*token], self.slice(sequence, step, step.end()), 1);
            }
            tokens = greedy(&self.forward(&batch)?);
        }
        Ok(())
    }

    /// Stores the deepest context of every sequence.
    fn fill(&mut self, plan: &Plan) -> anyhow::Result<()> {
        let tokens = plan.max_depth();
        let context = Case { phase: Phase::Prefill, batch: 1, context: 0, tokens };
        let steps: Vec<Step> = context.steps(self.llm.max_batched_tokens()).collect();
        let bar = output::progress_bar("filling contexts", "steps");
        bar.set_length((steps.len() * plan.max_batch()) as u64);
        for sequence in 0..plan.max_batch() {
            for step in &steps {
                self.read(sequence, *step, tokens, 0)?;
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Reads a step of a sequence that is `len` tokens long in the end.
    fn read(&mut self, sequence: usize, step: Step, len: usize, wanted: usize) -> anyhow::Result<Logits> {
        let mut batch = Batch::default();
        batch.push(&self.ids[step.context..step.end()], self.slice(sequence, step, len), wanted);
        self.forward(&batch)
    }

    fn slice(&self, sequence: usize, step: Step, rope_len: usize) -> SequenceSlice {
        let first = sequence * self.blocks;
        SequenceSlice {
            query_len: step.tokens,
            context_len: step.context,
            rope_len,
            block_table: (first..first + self.blocks).map(|block| block as u32).collect(),
        }
    }

    fn forward(&mut self, batch: &Batch) -> anyhow::Result<Logits> {
        Ok(self.llm.executor_mut().forward(batch, &mut NoProbe)?)
    }
}

/// The likeliest token of every row.
fn greedy(logits: &Logits) -> Vec<u32> {
    (0..logits.rows()).map(|row| argmax(logits.row(row))).collect()
}

fn random_ids(vocab_size: usize, count: usize) -> Vec<u32> {
    let mut rng = Pcg64::seed_from_u64(SEED);
    (0..count).map(|_| rng.random_range(0..vocab_size) as u32).collect()
}

/// Blocks that hold the longest sequence.
fn blocks_per_sequence(llm: &Llm, plan: &Plan) -> anyhow::Result<usize> {
    let kv_cache = llm.executor().kv_cache();
    let blocks = plan.context.div_ceil(kv_cache.block_size);
    match blocks.checked_mul(plan.max_batch()) {
        Some(needed) if needed <= kv_cache.num_blocks => Ok(blocks),
        _ => bail!(
            "batch: expected at most {} sequences of {} tokens, found {}",
            kv_cache.num_blocks / blocks,
            plan.context,
            plan.max_batch()
        ),
    }
}
