//! `braidinfer bench`: speed, compared with the limits of the machine.

mod baseline;
mod contestant;
mod machine;
mod measure;
mod plan;
mod record;
mod report;
mod roofline;
mod save;

use anyhow::bail;
use braidinfer::compat::Precision;
use braidinfer::executor::{DeviceChoice, Kernels, ReadPattern};
use braidinfer::model::{ModelSource, Weights, describe};
use braidinfer::{Llm, LoadOptions, Threads};

use self::baseline::{Baseline, Comparison};
use self::contestant::{Contestant, Described};
use self::machine::{Ceilings, Machine};
use self::measure::{Sample, measure};
use self::plan::Plan;
use self::report::{Compared, ExecutorRow, Options, Report, spelled};
use crate::args::{BenchArgs, BenchKernels};
use crate::report::Delivery;
use crate::{SUCCESS, interrupt, model, output};

/// Exit code if a rate is lower than in the baseline.
const REGRESSION: u8 = 1;

pub fn run(args: BenchArgs) -> anyhow::Result<u8> {
    let plan = Plan::new(&args)?;
    // Check the arguments first, so that errors do not show only after minutes of measuring.
    let baseline = args.baseline.as_deref().map(|path| Baseline::read(path, &plan)).transpose()?;
    if let Some(path) = args.save.as_ref().filter(|path| args.output.export.as_ref() == Some(path)) {
        bail!("--export: expected another file than that of --save, found {} for both", path.display());
    }
    args.save.as_deref().map_or(Ok(()), save::check)?;
    let delivery = Delivery::of(&args.output)?;
    interrupt::install()?;
    let report = run_plan(&args, &plan)?;
    if let Some(path) = &args.save {
        save::write(path, &report)?;
    }
    let baseline = baseline.map(|baseline| baseline.compare(&report));
    let slower = baseline.as_ref().map_or(0, Comparison::regressions);
    let compared = Compared { report: &report, baseline: baseline.as_ref() };
    delivery.export(&record::document(&compared), &compared)?;
    report::print(&compared, args.output.json)?;
    Ok(if slower > 0 { REGRESSION } else { SUCCESS })
}

/// Runs all measurements of the plan.
fn run_plan(args: &BenchArgs, plan: &Plan) -> anyhow::Result<Report> {
    let source = model::source(args.model.as_deref())?;
    let weights = weights_name(&source, args)?;
    let options = plan.kernels.iter().map(|kernels| load_options(*kernels, args, plan));
    let options = options.collect::<anyhow::Result<Vec<_>>>()?;
    // Measuring takes memory, too, and time.
    options.iter().try_for_each(|options| braidinfer::check_memory(&source, options))?;
    let threads = Threads::new(args.computing.threads)?.count();
    let on_cpu = options.iter().any(|options| matches!(options.device, DeviceChoice::Cpu | DeviceChoice::Auto));
    let before = on_cpu.then(|| Ceilings::measure(threads)).transpose()?;
    let pattern = before.as_ref().map(|ceilings| ceilings.read_pattern);
    let (samples, described, notes) = measure_all(&source, &options, plan, pattern)?;
    // Measure ceilings twice and keep the higher value, since disturbances of the machine only lower them.
    let after = on_cpu.then(|| Ceilings::measure(threads)).transpose()?;
    let ceilings = before.zip(after).map(|(before, after)| before.or_better(&after));
    Ok(Report {
        machine: Machine::this(threads)?,
        memory_bytes: machine::memory_bytes(),
        version: env!("CARGO_PKG_VERSION").into(),
        model: source.label(),
        weights,
        options: Options::new(args),
        results: report::results(&samples, &described, ceilings.as_ref()),
        executors: described.iter().map(ExecutorRow::new).collect(),
        ceilings,
        notes,
    })
}

/// Opens the model on every kind of kernels and times them in turn.
fn measure_all(
    source: &ModelSource,
    options: &[LoadOptions],
    plan: &Plan,
    pattern: Option<ReadPattern>,
) -> anyhow::Result<(Vec<Sample>, Vec<Described>, Vec<String>)> {
    let mut contestants = Vec::new();
    for (options, kernels) in options.iter().zip(&plan.kernels) {
        contestants.push(Contestant::open(source, spelled(kernels), options, plan)?);
    }
    let mut notes = distinct_notes(contestants.iter().map(Contestant::llm));
    let on_gpu = contestants.iter().any(|contestant| contestant.llm().decoder().report().device.is_some());
    let has_standard = plan.kernels.contains(&BenchKernels::Standard);
    notes.extend((on_gpu && has_standard).then(|| "standard kernels run on the CPU".to_owned()));
    notes.iter().for_each(output::note);
    let samples = measure(&mut contestants, plan, pattern)?;
    Ok((samples, contestants.iter().map(Contestant::described).collect(), notes))
}

/// The notes of all models, each one once.
fn distinct_notes<'a>(models: impl Iterator<Item = &'a Llm>) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    for note in models.flat_map(Llm::notes) {
        if !notes.contains(note) {
            notes.push(note.clone());
        }
    }
    notes
}

/// The type of most weights, after quantization if that is requested.
fn weights_name(source: &ModelSource, args: &BenchArgs) -> anyhow::Result<String> {
    if let Some(file_type) = args.computing.quantize {
        return Ok(file_type.to_string());
    }
    let (description, _) = describe(source)?;
    let weights = Weights::open(source, &description.spec, &description.names)?;
    Ok(weights.dtype().to_string())
}

/// Whether these are standard kernels that are measured on the CPU, as the reference for others on a GPU.
fn runs_beside_a_gpu(measured: BenchKernels, device: &DeviceChoice, plan: &Plan) -> bool {
    let has_others = plan.kernels.iter().any(|kernels| *kernels != BenchKernels::Standard);
    measured == BenchKernels::Standard && has_others && matches!(device, DeviceChoice::Gpu(_) | DeviceChoice::Auto)
}

fn load_options(measured: BenchKernels, args: &BenchArgs, plan: &Plan) -> anyhow::Result<LoadOptions> {
    let (kernels, precision) = match measured {
        BenchKernels::Standard => (Kernels::Standard, Precision::Auto),
        // Forced below, so that the precision is that of the check which `auto` would make.
        BenchKernels::Fused => (Kernels::Fused, Precision::Auto),
        BenchKernels::Auto => (Kernels::Auto, Precision::Auto),
        BenchKernels::Exact => (Kernels::Auto, Precision::Exact),
    };
    let options = model::options(kernels, &args.computing)?;
    let options = if runs_beside_a_gpu(measured, &options.device, plan) { options.on_cpu() } else { options };
    Ok(LoadOptions {
        precision,
        // Standard kernels have a type of their own, beside which the others are measured.
        kv_dtype: options.kv_dtype.filter(|_| measured != BenchKernels::Standard),
        context: Some(plan.context),
        // One more, so that prefill cases do not evict the cached contexts of the sequences.
        max_sequences: plan.max_batch() + 1,
        // All sequences must have finished their prefill, so that decoding is timed at the right depth.
        prompts_first: true,
        // Drafts would measure how repetitive the text is and not how fast the kernels are.
        prompt_lookup: false,
        // Fused kernels are measured whatever the compatibility check says.
        force: measured == BenchKernels::Fused,
        ..options
    })
}
