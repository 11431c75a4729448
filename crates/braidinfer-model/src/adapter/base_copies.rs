//! Weights of the base model that an adapter repeats: peft saves those of an adapted output head beside the matrices, unless it is
//! told `save_embedding_layers=False`. They change nothing if they are what the base has, which is compared.

use std::ops::Range;

use super::Files;
use super::places::Places;
use crate::dtype::TensorView;
use crate::layout::Param;
use crate::{ModelSource, Result, Weights, describe};

/// Values that are compared at a time.
const GROUP: usize = 1 << 20;
/// Largest relative difference of a value that was rounded to bf16, with its 8 bits, once here or there.
const ROUNDING: f32 = 1.0 / 256.0;
/// The same of values so small that f16 keeps few of their bits.
const SMALLEST: f32 = 1e-7;

/// A tensor that repeats a parameter of the base model.
pub(super) struct BaseCopy {
    pub(super) tensor: String,
    /// The module whose parameter it is, as the adapter names it.
    pub(super) module: String,
    pub(super) param: Param,
}

impl BaseCopy {
    /// What a tensor of peft repeats, if it does.
    pub(super) fn of(tensor: &str) -> Option<Self> {
        let suffixes = [(".base_layer.weight", Param::Weight), (".base_layer.bias", Param::Bias)];
        let of = |(suffix, param)| Some((tensor.strip_suffix(suffix)?, param));
        let (module, param) = suffixes.into_iter().find_map(of)?;
        Some(Self { tensor: tensor.to_owned(), module: module.to_owned(), param })
    }
}

/// Fails if a copy is not what the base model has, naming it. Returns notes, one line each, of those that cannot be compared.
pub(super) fn check(base: &ModelSource, files: &Files, places: &Places) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    if files.base_copies.is_empty() {
        return Ok(notes);
    }
    let (description, _) = describe(base)?;
    let weights = Weights::open(base, &description.spec, &description.names)?;
    for BaseCopy { tensor, module, param } in &files.base_copies {
        let Some(copy) = files.checkpoint.tensor(tensor)? else { continue };
        let own = places.whole(module).and_then(|slot| weights.get(slot, *param));
        let Some(own) = own.filter(|_| files.modules.contains_key(module)) else {
            let expected =
                "copies of what the base model has of adapted modules, and nothing else beside matrices A and B";
            return Err(copy.error(expected, "a tensor of another module, which is not supported"));
        };
        if own.shape != copy.shape {
            let expected = format!("a copy of `{}` of the base model, of the shape {:?}", own.name, own.shape);
            return Err(copy.error(expected, format!("{:?}: the vocabulary may have been changed", copy.shape)));
        }
        if own.dtype.is_quantized() || copy.dtype.is_quantized() {
            let path = &files.label;
            notes.push(format!(
                "{path}: `{tensor}` is taken for a copy of what the base model has: quantized, that cannot be compared"
            ));
            continue;
        }
        compare(&own, &copy)?;
    }
    Ok(notes)
}

fn compare(own: &TensorView<'_>, copy: &TensorView<'_>) -> Result<()> {
    let rows = own.shape[0];
    let columns = own.shape[1..].iter().product::<usize>().max(1);
    let group = (GROUP / columns).max(1);
    let groups = (0..rows).step_by(group).map(|start| start..(start + group).min(rows));
    for rows in groups {
        let values = |view: &TensorView<'_>, rows: Range<usize>| view.read_rows::<f32>(rows);
        let (first, owns, copies) = (rows.start, values(own, rows.clone())?, values(copy, rows)?);
        let differ = |(own, copy): (&f32, &f32)| {
            let most = own.abs().max(copy.abs()) * ROUNDING + SMALLEST;
            // What is no number is near nothing.
            let is_near = (own - copy).abs() <= most;
            !is_near
        };
        if let Some(at) = owns.iter().zip(&copies).position(differ) {
            let expected = format!("what the base model has as `{}`, of which peft saves a copy", own.name);
            let found = format!(
                "another value in row {}: it is for another base model, or was trained as a whole, which is not supported",
                first + at / columns
            );
            return Err(copy.error(expected, found));
        }
    }
    Ok(())
}
