//! The report of a benchmark: JSON fields and tables.

use std::time::Duration;

use braidinfer::executor::{ExecutorReport, KvDtype, LevelCount};
use clap::ValueEnum;
use comfy_table::{CellAlignment, Table};
use serde::{Deserialize, Serialize};

use super::baseline::Comparison;
use super::contestant::Described;
use super::machine::{Ceilings, Machine};
use super::measure::{Sample, Spread};
use super::plan::{Case, Phase};
use super::roofline::{Bound, Workload};
use crate::args::{BenchArgs, KvDtypeArg};
use crate::output;

/// The whole report, as `--json` prints it and `--save` writes it.
#[derive(Debug, Serialize)]
pub struct Report {
    pub machine: Machine,
    /// Memory of the machine; `None` where the system does not tell it.
    pub memory_bytes: Option<usize>,
    pub version: String,
    pub model: String,
    /// The type of most weights.
    pub weights: String,
    pub options: Options,
    /// Those of the CPU; `None` if nothing was to be computed there.
    pub ceilings: Option<Ceilings>,
    pub executors: Vec<ExecutorRow>,
    pub results: Vec<ResultRow>,
    /// What was said when the models were loaded: which kernels run, why, and what would run otherwise.
    pub notes: Vec<String>,
}

/// The options of the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    pub prompt_tokens: usize,
    pub gen_tokens: usize,
    pub batch: Vec<usize>,
    pub depth: Vec<usize>,
    pub kernels: Vec<String>,
    pub repetitions: usize,
    pub dtype: String,
    /// Reports from before there was a choice have none.
    #[serde(default)]
    pub kv_dtype: Option<String>,
    pub quantize: Option<String>,
    pub device: String,
    /// Reports from before there was a choice have none.
    #[serde(default)]
    pub gpu_layers: Vec<usize>,
    #[serde(default)]
    pub gpu_memory: Option<u64>,
    pub context: Option<usize>,
}

impl Options {
    pub fn new(args: &BenchArgs) -> Self {
        Self {
            prompt_tokens: args.prompt_tokens,
            gen_tokens: args.gen_tokens,
            batch: args.batch.clone(),
            depth: args.depth.clone(),
            kernels: args.kernels.iter().map(spelled).collect(),
            repetitions: args.repetitions,
            dtype: spelled(&args.computing.dtype),
            kv_dtype: (args.computing.kv_dtype != KvDtypeArg::Auto).then(|| spelled(&args.computing.kv_dtype)),
            quantize: args.computing.quantize.map(|file_type| file_type.to_string()),
            device: args.computing.device.clone(),
            gpu_layers: args.computing.gpu_layers.0.clone(),
            gpu_memory: args.computing.gpu_memory,
            context: args.computing.context,
        }
    }
}

/// The name of a value on the command line.
pub fn spelled(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Results for one kind of kernels, apart from cases.
#[derive(Debug, Serialize)]
pub struct ExecutorRow {
    pub kernels: String,
    pub isa: String,
    pub levels: Vec<LevelCount>,
    /// The types of keys and values that layers have, each once, from fine to coarse.
    pub kv_dtypes: Vec<&'static str>,
    pub load_ms: f64,
    pub pack_ms: Option<f64>,
    pub time_to_first_token_ms: f64,
    pub peak_memory_bytes: Option<usize>,
    pub weight_bytes: usize,
    /// Bandwidth of reading these weights, in GB/s, if that can be measured.
    pub read_gb_s: Option<f64>,
    /// The GPU that computes, and its driver.
    pub device: Option<String>,
    /// Bandwidth of copying memory of the GPU, in GB/s, read and written together.
    pub copy_gb_s: Option<f64>,
    /// Memory in use there: weights, keys and values, activations.
    pub gpu_memory_bytes: Option<u64>,
}

impl ExecutorRow {
    pub fn new(described: &Described) -> Self {
        let executor = &described.executor;
        Self {
            kernels: described.name.clone(),
            isa: executor.isa.clone(),
            levels: executor.levels.clone(),
            kv_dtypes: kv_dtypes(executor),
            load_ms: milliseconds(described.load),
            pack_ms: executor.pack_time.map(milliseconds),
            gpu_memory_bytes: executor.device.as_ref().map(|device| device.allocated_bytes),
            time_to_first_token_ms: milliseconds(described.first_token),
            peak_memory_bytes: described.peak_memory,
            weight_bytes: executor.weight_bytes,
            read_gb_s: described.read_gb_s,
            device: executor.device.as_ref().map(|device| device.name.clone()),
            copy_gb_s: described.copy_gb_s,
        }
    }
}

fn kv_dtypes(executor: &ExecutorReport) -> Vec<&'static str> {
    let used = KvDtype::ALL.into_iter().filter(|dtype| executor.kv_dtypes.contains(dtype));
    used.map(KvDtype::name).collect()
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// One case on one kind of kernels.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ResultRow {
    pub kernels: String,
    #[serde(flatten)]
    pub case: Case,
    /// Tokens per second of all sequences together.
    pub tok_s: Spread,
    pub gb_s: f64,
    /// Bytes of weights, keys and values that have to be read for a token. Reports from before it was counted have none.
    #[serde(default)]
    pub bytes_per_token: f64,
    /// Share of the ceiling that limits the case; `None` without ceilings, and in prefill on a GPU.
    pub share_of_ceiling: Option<f64>,
    pub ceiling: Option<Bound>,
}

/// Rows in the order of the samples.
pub fn results(samples: &[Sample], described: &[Described], ceilings: Option<&Ceilings>) -> Vec<ResultRow> {
    samples.iter().map(|sample| result(sample, &described[sample.contestant], ceilings)).collect()
}

fn result(sample: &Sample, described: &Described, ceilings: Option<&Ceilings>) -> ResultRow {
    let (case, executor) = (sample.case, &described.executor);
    let seconds = (case.batch * case.tokens) as f64 / sample.rate.median;
    let work = Workload::of(case, described);
    let own =
        |ceilings: &Ceilings| Ceilings { read_gb_s: described.read_gb_s.unwrap_or(ceilings.read_gb_s), ..*ceilings };
    let share = match (described.copy_gb_s, &executor.device) {
        (Some(rate), _) => (case.phase == Phase::Decode).then(|| work.share_of_copy(seconds, rate)),
        (None, Some(_)) => None,
        (None, None) => ceilings.map(|ceilings| work.share(case, seconds, executor.main_level, &own(ceilings))),
    };
    ResultRow {
        kernels: described.name.clone(),
        case,
        tok_s: sample.rate,
        gb_s: work.bytes / seconds / 1e9,
        bytes_per_token: work.bytes / (case.batch * case.tokens) as f64,
        share_of_ceiling: share.map(|(share, _)| share),
        ceiling: share.map(|(_, bound)| bound),
    }
}

/// The report and, with `--baseline`, the comparison: one JSON object.
#[derive(Serialize)]
pub struct Compared<'a> {
    #[serde(flatten)]
    pub report: &'a Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<&'a Comparison>,
}

/// Prints the report to stdout, and explanations as notes on stderr.
pub fn print(compared: &Compared<'_>, json: bool) -> anyhow::Result<()> {
    let Compared { report, baseline } = *compared;
    if report.ceilings.is_none() && report.executors.iter().any(|row| row.device.is_none()) {
        output::note("ceilings of the CPU were not measured: a GPU was asked for");
    }
    if report.results.iter().any(|row| row.share_of_ceiling.is_some_and(|share| share > 1.0)) {
        output::note("shares above 100 %: caches held a part of the weights, or the machine was busier at other times");
    }
    baseline.map_or(&[][..], |baseline| &baseline.notes).iter().for_each(output::note);
    if json {
        return output::print_json(compared);
    }
    output::print_line(heading(report))?;
    print_table(&table(results_cells(report), &[1, 2, 3, 5, 6, 7, 8, 9, 10]))?;
    print_table(&table(executors_cells(report), &[4, 5, 6, 7, 8, 9]))?;
    baseline.map_or(Ok(()), |baseline| print_table(&table(baseline.cells(), &[1, 2, 3, 5, 6, 7])))
}

fn print_table(table: &Table) -> anyhow::Result<()> {
    output::print_line("")?;
    table.lines().try_for_each(|line| output::print_line(line.trim_end()))
}

/// Machine, model and ceilings.
fn heading(report: &Report) -> String {
    let Machine { cpu, isa, threads, os } = &report.machine;
    let cpu = cpu.as_deref().unwrap_or("unknown processor");
    let threads = output::counted(*threads, "thread");
    let machine = format!("{cpu}, {isa}, {threads}, {os}; braidinfer {}", report.version);
    let model = format!("{}, {} weights", output::one_line(&report.model), report.weights);
    let ceilings = report.ceilings.as_ref().map(|found| format!("\nceilings of the CPU: {}", ceilings(found)));
    format!("{machine}\n{model}{}", ceilings.unwrap_or_default())
}

/// The limits of the machine in words.
pub fn ceilings(ceilings: &Ceilings) -> String {
    let [read, int8, bf16, f32] =
        [ceilings.read_gb_s, ceilings.int8_gop_s, ceilings.bf16_gflop_s, ceilings.f32_gflop_s].map(number);
    let pattern = ceilings.read_pattern;
    format!("read {read} GB/s ({pattern}); multiply int8 {int8}, bf16 {bf16}, f32 {f32} GOP/s")
}

/// Header and rows of the results.
pub fn results_cells(report: &Report) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let mut header = CASE_HEADER.to_vec();
    header.extend(["tok/s", "slowest to fastest", "read per token", "GB/s", "of ceiling"]);
    let ratios: Vec<Option<f64>> = report.results.iter().map(|row| over_standard(row, &report.results)).collect();
    let compared = ratios.iter().any(Option::is_some);
    header.extend(compared.then_some("fused/standard"));
    let cells = |(row, ratio): (&ResultRow, Option<f64>)| {
        let mut cells = case_cells(&row.case, &row.kernels);
        let read = output::size(row.bytes_per_token.round() as usize);
        cells.extend([number(row.tok_s.median), spread(&row.tok_s), read, number(row.gb_s), share(row)]);
        cells.extend(compared.then(|| ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"))));
        cells
    };
    (header, report.results.iter().zip(ratios).map(cells).collect())
}

/// The ratio of another row to the standard row of the same case.
fn over_standard(row: &ResultRow, rows: &[ResultRow]) -> Option<f64> {
    let standard = rows.iter().find(|other| other.case == row.case && other.kernels == "standard")?;
    (row.kernels != "standard").then(|| row.tok_s.median / standard.tok_s.median)
}

fn share(row: &ResultRow) -> String {
    match (row.share_of_ceiling, row.ceiling) {
        (Some(share), Some(bound)) => format!("{} % {}", number(share * 100.0), bound.name()),
        _ => "-".into(),
    }
}

/// Header and rows of what holds for all cases.
pub fn executors_cells(report: &Report) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let header = [
        "kernels",
        "isa",
        "levels",
        "K/V",
        "weights",
        "read at",
        "load",
        "of which packing",
        "first token",
        "peak memory",
    ];
    let cells = |row: &ExecutorRow| {
        let levels = row.levels.iter().map(|count| format!("{} {}", count.projections, count.level));
        let levels = levels.collect::<Vec<_>>().join(", ");
        vec![
            row.kernels.clone(),
            row.isa.clone(),
            if levels.is_empty() { "-".into() } else { levels },
            row.kv_dtypes.join(", "),
            output::size(row.weight_bytes),
            memory_rate(row),
            time(row.load_ms),
            row.pack_ms.map_or("-".into(), time),
            time(row.time_to_first_token_ms),
            memory(row),
        ]
    };
    (header.to_vec(), report.executors.iter().map(cells).collect())
}

/// Memory of the process and of a GPU.
fn memory(row: &ExecutorRow) -> String {
    let process = row.peak_memory_bytes.map(output::size);
    let gpu = row.gpu_memory_bytes.map(|bytes| format!("{} in use on the GPU", output::size(bytes as usize)));
    let both: Vec<String> = process.into_iter().chain(gpu).collect();
    if both.is_empty() { "-".into() } else { both.join(", ") }
}

/// How fast its weights are read, or the memory of its GPU is copied.
fn memory_rate(row: &ExecutorRow) -> String {
    match (row.read_gb_s, row.copy_gb_s) {
        (Some(read), _) => format!("{} GB/s", number(read)),
        (None, Some(copy)) => format!("copied at {} GB/s", number(copy)),
        (None, None) => "-".into(),
    }
}

/// A table of cells in the style of this program, with these columns, as far as there are so many, aligned to the right.
pub fn table((header, rows): (Vec<&str>, Vec<Vec<String>>), right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(output::TABLE).set_header(&header).add_rows(rows);
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Header of the columns that identify a case.
pub const CASE_HEADER: [&str; 5] = ["phase", "batch", "context", "tokens", "kernels"];

/// The cells below [`CASE_HEADER`].
pub fn case_cells(case: &Case, kernels: &str) -> Vec<String> {
    let Case { phase, batch, context, tokens } = case;
    vec![phase.name().into(), batch.to_string(), context.to_string(), tokens.to_string(), kernels.into()]
}

/// The range of the rates.
fn spread(rate: &Spread) -> String {
    format!("{} to {}", number(rate.min), number(rate.max))
}

/// A number with three digits, or more if its integer part has more.
pub fn number(value: f64) -> String {
    let decimals = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.decimals$}")
}

fn time(milliseconds: f64) -> String {
    if milliseconds < 1000.0 {
        format!("{} ms", number(milliseconds))
    } else {
        format!("{} s", number(milliseconds / 1000.0))
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::Phase;
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        let texts = [0.0, 1.234, 12.34, 123.4, 12345.6].map(number);
        assert_eq!(texts, ["0.00", "1.23", "12.3", "123", "12346"]);
    }

    #[test]
    fn a_row_survives_a_json_round_trip() {
        let case = Case { phase: Phase::Decode, batch: 8, context: 1024, tokens: 64 };
        let tok_s = Spread { median: 2.0, min: 1.0, max: 3.0 };
        let ceiling = Some(Bound::Read);
        let row = ResultRow {
            kernels: "fused".into(),
            case,
            tok_s,
            gb_s: 1.5,
            bytes_per_token: 2e6,
            share_of_ceiling: Some(0.5),
            ceiling,
        };
        let text = serde_json::to_string(&row).expect("rows are JSON");
        assert!(
            text.starts_with(r#"{"kernels":"fused","phase":"decode","batch":8,"context":1024,"tokens":64,"#),
            "{text}"
        );
        let back: ResultRow = serde_json::from_str(&text).expect("rows are read back");
        assert_eq!((back.case, back.tok_s), (row.case, row.tok_s));
    }
}
