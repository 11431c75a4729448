//! Comparison with an earlier report.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::measure::Spread;
use super::plan::{Case, Plan};
use super::report::{CASE_HEADER, Options, Report, ResultRow, case_cells, number, spelled};

/// Largest report file that is read; reports have a few kilobytes.
const MOST_BYTES: u64 = 16 << 20;

/// Relative difference of medians that still counts as the same, however small the spread of the runs is.
const MARGIN: f64 = 0.03;

/// An earlier report.
#[derive(Debug)]
pub struct Baseline {
    file: String,
    saved: Saved,
}

/// The fields of its JSON that the comparison needs.
#[derive(Debug, Deserialize)]
struct Saved {
    machine: Machine,
    model: String,
    weights: String,
    options: Options,
    results: Vec<ResultRow>,
}

impl Baseline {
    /// Fails if the file is not a report or has no row in common with the plan.
    pub fn read(path: &Path, plan: &Plan) -> anyhow::Result<Self> {
        let file = path.display().to_string();
        let saved = parse(path).with_context(|| file.clone())?;
        let planned = |row: &ResultRow| {
            plan.cases.contains(&row.case) && plan.kernels.iter().any(|kernels| spelled(kernels) == row.kernels)
        };
        if !saved.results.iter().any(planned) {
            bail!("{file}: expected a result with the same kernels, batch, depth and tokens as now, found none");
        }
        Ok(Self { file, saved })
    }

    /// Compares the rows that both reports have.
    pub fn compare(self, report: &Report) -> Comparison {
        let then = |row: &ResultRow| self.saved.results.iter().find(|then| same_run(row, then));
        let row = |row: &ResultRow| Some(ComparedRow::new(row, then(row)?));
        let rows: Vec<ComparedRow> = report.results.iter().filter_map(row).collect();
        let notes = self.notes(report, rows.len());
        Comparison { file: self.file, rows, notes }
    }

    /// Notes on differences that make the comparison less meaningful.
    fn notes(&self, report: &Report, common: usize) -> Vec<String> {
        let (then, file) = (&self.saved, &self.file);
        let mut notes = Vec::new();
        let mut differs = |what: &str, now: String, then: String| {
            if now != then {
                notes.push(format!("{what}: {now} now, {then} in {file}"));
            }
        };
        differs("model", report.model.clone(), then.model.clone());
        differs("weights", report.weights.clone(), then.weights.clone());
        differs("machine", machine(&report.machine), machine(&then.machine));
        let (now_options, then_options) = (&report.options, &then.options);
        differs("dtype", now_options.dtype.clone(), then_options.dtype.clone());
        let kv_dtype = |options: &Options| options.kv_dtype.clone().unwrap_or_else(|| "auto".into());
        differs("kv_dtype", kv_dtype(now_options), kv_dtype(then_options));
        differs("device", now_options.device.clone(), then_options.device.clone());
        let share = |options: &Options| format!("layers {:?}, memory {:?}", options.gpu_layers, options.gpu_memory);
        differs("shares of GPUs", share(now_options), share(then_options));
        let missing = then.results.len().saturating_sub(common);
        if missing > 0 {
            notes.push(format!("{missing} of the {} results in {file} were not measured now", then.results.len()));
        }
        let new = report.results.len().saturating_sub(common);
        if new > 0 {
            notes.push(format!("{new} of {} results have nothing to compare with in {file}", report.results.len()));
        }
        notes
    }
}

fn parse(path: &Path) -> anyhow::Result<Saved> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() || metadata.len() > MOST_BYTES {
        let found = if metadata.is_file() { format!("{} bytes", metadata.len()) } else { "something else".into() };
        bail!("expected a file of `braidinfer bench --save`, at most {MOST_BYTES} bytes, found {found}");
    }
    saved_in(&fs::read(path)?)
}

fn saved_in(bytes: &[u8]) -> anyhow::Result<Saved> {
    let saved: Saved = serde_json::from_slice(bytes)
        .map_err(|error| anyhow::anyhow!("expected a file of `braidinfer bench --save`, found: {error}"))?;
    for (index, row) in saved.results.iter().enumerate() {
        let Spread { median, min, max } = row.tok_s;
        if !(0.0 < min && min <= median && median <= max) {
            let found = format!("min {min}, median {median}, max {max}");
            bail!("field `results[{index}].tok_s`: expected 0 < min <= median <= max, found {found}");
        }
    }
    Ok(saved)
}

fn machine(machine: &Machine) -> String {
    let Machine { cpu, isa, threads, os } = machine;
    format!("{}, {isa}, {threads} threads, {os}", cpu.as_deref().unwrap_or("unknown processor"))
}

fn same_run(a: &ResultRow, b: &ResultRow) -> bool {
    (&a.kernels, a.case) == (&b.kernels, b.case)
}

/// The comparison of all common rows.
#[derive(Debug, Serialize)]
pub struct Comparison {
    pub file: String,
    rows: Vec<ComparedRow>,
    pub notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ComparedRow {
    kernels: String,
    #[serde(flatten)]
    case: Case,
    now: Spread,
    then: Spread,
    /// Current median divided by the earlier median.
    ratio: f64,
    verdict: Verdict,
}

/// Whether a rate changed by more than the spread of the runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Regression,
    Same,
    Faster,
}

impl Verdict {
    fn of(now: &Spread, then: &Spread) -> Self {
        if now.median < then.median * (1.0 - MARGIN) && now.max < then.min {
            Self::Regression
        } else if now.median > then.median * (1.0 + MARGIN) && now.min > then.max {
            Self::Faster
        } else {
            Self::Same
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Regression => "regression",
            Self::Same => "same",
            Self::Faster => "faster",
        }
    }
}

impl ComparedRow {
    fn new(now: &ResultRow, then: &ResultRow) -> Self {
        Self {
            kernels: now.kernels.clone(),
            case: now.case,
            now: now.tok_s,
            then: then.tok_s,
            ratio: now.tok_s.median / then.tok_s.median,
            verdict: Verdict::of(&now.tok_s, &then.tok_s),
        }
    }
}

impl Comparison {
    /// Number of rows that became slower.
    pub fn regressions(&self) -> usize {
        self.rows.iter().filter(|row| row.verdict == Verdict::Regression).count()
    }

    /// Header and rows of what both reports have.
    pub fn cells(&self) -> (Vec<&'static str>, Vec<Vec<String>>) {
        let mut header = CASE_HEADER.to_vec();
        header.extend(["tok/s now", "then", "now/then", "verdict"]);
        let cells = |row: &ComparedRow| {
            let mut cells = case_cells(&row.case, &row.kernels);
            let ratio = format!("{:.3}", row.ratio);
            cells.extend([number(row.now.median), number(row.then.median), ratio, row.verdict.name().into()]);
            cells
        };
        (header, self.rows.iter().map(cells).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::report::table;
    use super::*;
    use crate::mutations::{File, changed_json, changes, check_all, json_changes};

    #[test]
    fn changed_baselines_never_panic() {
        let row = |kernels: &str| {
            json!({
                "kernels": kernels, "phase": "decode", "batch": 1, "context": 0, "tokens": 64,
                "tok_s": {"median": 2.0, "min": 1.0, "max": 3.0}, "gb_s": 1.5, "share_of_ceiling": 0.5, "ceiling": "read",
            })
        };
        let options = json!({
            "prompt_tokens": 512, "gen_tokens": 64, "batch": [1, 8], "depth": [0], "kernels": ["fused"],
            "repetitions": 5, "dtype": "auto", "quantize": null, "device": "cpu", "context": null,
        });
        let machine = json!({"cpu": null, "isa": "avx2", "threads": 2, "os": "linux"});
        let results = [row("fused"), row("standard")];
        let saved = json!({
            "machine": machine, "model": "m", "weights": "BF16", "options": options, "results": results,
        });
        let text = saved.to_string().into_bytes();
        let own = saved_in(&text).expect("the unchanged baseline is one");
        let read = |bytes: &[u8]| {
            let Ok(then) = saved_in(bytes) else { return Ok(()) };
            let rows: Vec<ComparedRow> =
                own.results.iter().zip(&then.results).map(|(now, then)| ComparedRow::new(now, then)).collect();
            let comparison =
                Comparison { file: "before.json".into(), rows, notes: vec![super::machine(&then.machine)] };
            let _ = table(comparison.cells(), &[]).to_string();
            serde_json::to_string(&comparison).map(|_| ()).map_err(|error| error.to_string())
        };
        check_all(500, json_changes(), |changes| read(changed_json(&saved, changes).to_string().as_bytes()));
        let file = File::json("before.json", text.clone());
        check_all(500, changes(), |changes| read(&file.changed(changes)));
    }

    fn verdict(now: [f64; 3], then: [f64; 3]) -> Verdict {
        let spread = |[min, median, max]: [f64; 3]| Spread { min, median, max };
        Verdict::of(&spread(now), &spread(then))
    }

    #[test]
    fn a_regression_is_slower_than_all_earlier_runs_and_beyond_the_margin() {
        assert_eq!(verdict([90.0, 92.0, 94.0], [98.0, 100.0, 102.0]), Verdict::Regression);
        assert_eq!(verdict([90.0, 92.0, 98.0], [98.0, 100.0, 102.0]), Verdict::Same, "one run was as fast");
        assert_eq!(verdict([98.0, 98.0, 98.0], [100.0, 100.0, 100.0]), Verdict::Same, "within the margin");
        assert_eq!(verdict([100.0; 3], [100.0; 3]), Verdict::Same);
        assert_eq!(verdict([110.0, 111.0, 112.0], [98.0, 100.0, 102.0]), Verdict::Faster);
        assert_eq!(verdict([101.0, 111.0, 112.0], [98.0, 100.0, 102.0]), Verdict::Same, "one run was as slow");
    }
}
