//! Faults planted in the description of each fixture: a fixture on which a wrong rule still passes is no fixture.
//!
//! Each fault breaks one rule of the architecture; every fixture to which it applies must notice. The table in
//! `docs/fixtures.md` is this test's output: `BRAIDINFER_BLESS=1 cargo test -p braidinfer --test all faults::` writes it.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::support::planted::{FAULTS, SWAPS, swapped};
use crate::support::{self, Fixture, distance, feed};
use braidinfer::executor::Decoder;
use braidinfer::executor::standard::ComputeDtype;
use braidinfer::model::{DecoderSpec, LayerSlot};

/// Twice the tolerance of the comparison with `transformers`, so that a caught fault cannot pass there.
const NOTICED: f32 = 1e-3;

/// Largest change of a logit over the prompts.
fn change(fixture: &Fixture, executor: &mut Decoder<'_>) -> f32 {
    let prompts = fixture.prompts.iter().enumerate();
    let changes = prompts.map(|(prompt, expected)| {
        let rows = feed(executor, prompt, &expected.ids, 128);
        let pairs = fixture.beside_expected(prompt, &rows);
        pairs.iter().map(|(_, row, expected)| distance(row, expected)).fold(0.0, f32::max)
    });
    changes.fold(0.0, f32::max)
}

/// The effect of a fault in the spec, or `None` if it does not apply.
fn spec_fault(fixture: &Fixture, plant: fn(&mut DecoderSpec)) -> Option<f32> {
    let (spec, mut faulty) = (fixture.spec(), fixture.spec());
    plant(&mut faulty);
    (faulty != spec).then(|| change(fixture, &mut fixture.standard_with(ComputeDtype::F32, plant)))
}

/// The effect of swapping two modules, or `None` if the architecture lacks one or stores both in one tensor.
fn swap_fault(fixture: &Fixture, a: LayerSlot, b: LayerSlot) -> Option<f32> {
    let names = swapped(fixture, a, b)?;
    Some(change(fixture, &mut fixture.standard_from(&names, ComputeDtype::F32, |_| {})))
}

#[test]
fn every_planted_fault_is_caught() {
    let mut table: BTreeMap<&str, Vec<(f32, String)>> = BTreeMap::new();
    for fixture in Fixture::all() {
        let spec_faults = FAULTS.iter().map(|(fault, plant)| (*fault, spec_fault(&fixture, *plant)));
        let swaps = SWAPS.iter().map(|(fault, a, b)| (*fault, swap_fault(&fixture, *a, *b)));
        for (fault, change) in spec_faults.chain(swaps) {
            let row = table.entry(fault).or_default();
            row.extend(change.map(|change| (change, fixture.name.clone())));
        }
    }
    if std::env::var_os("BRAIDINFER_BLESS").is_some() {
        write_table(&table);
    }
    let missed = |(fault, row): (&&str, &Vec<(f32, String)>)| {
        let quiet: Vec<&(f32, String)> = row.iter().filter(|(change, _)| *change <= NOTICED).collect();
        (row.is_empty() || !quiet.is_empty()).then(|| format!("{fault}: {quiet:?} of {} fixtures", row.len()))
    };
    let missed: Vec<String> = table.iter().filter_map(missed).collect();
    assert!(missed.is_empty(), "not noticed:\n{}", missed.join("\n"));
}

/// Writes the table between the markers of `docs/fixtures.md`.
fn write_table(caught: &BTreeMap<&str, Vec<(f32, String)>>) {
    let mut table = String::from("| fault | smallest and largest change of a logit | caught by |\n|---|---|---|\n");
    let order = FAULTS.iter().map(|(fault, _)| *fault).chain(SWAPS.iter().map(|(fault, ..)| *fault));
    for fault in order {
        let mut by = caught[fault].clone();
        by.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (smallest, largest) = (by[0].0, by[by.len() - 1].0);
        by.sort_by(|a, b| a.1.cmp(&b.1));
        let names = if by.len() > 12 {
            format!("{} fixtures", by.len())
        } else {
            by.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(", ")
        };
        writeln!(table, "| {fault} | {smallest:.4} to {largest:.2} | {names} |").expect("a string takes text");
    }
    let path = support::fixtures().join("../../docs/fixtures.md");
    let page = std::fs::read_to_string(&path).expect("the page exists");
    let (before, rest) = page.split_once("<!-- faults -->\n").expect("the page has a start marker");
    let (_, after) = rest.split_once("<!-- end of faults -->").expect("the page has an end marker");
    let page = format!("{before}<!-- faults -->\n{table}<!-- end of faults -->{after}");
    std::fs::write(&path, page).expect("the page can be written");
}
