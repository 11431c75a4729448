//! Low-rank adapters (LoRA: Hu et al. 2021, arXiv:2106.09685): to the output `W x` of some linear layers of a model they add
//! `scale B A x`, where `A` and `B` have few rows and columns.
//!
//! Two layouts are read: folders of peft ([`peft`]), and GGUF files of llama.cpp ([`gguf`]). Each names modules of the layout of the
//! base model that it was made for ([`places`]); the base may lie in the other one. What an adapter has besides such matrices is an
//! error that names it, never left out.

mod base_copies;
mod gguf;
mod peft;
mod places;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::dtype::TensorView;
use crate::format::Checkpoint;
use crate::layout::Slot;
use crate::look;
use crate::{ModelError, ModelSource, Result};

use self::base_copies::BaseCopy;
use self::places::{Layout, Place, Places};

/// Largest rank: above it, an adapter is as large as the weights that it changes.
const MOST_RANK: usize = 4096;

/// A low-rank adapter for a model.
#[derive(Debug, Clone)]
pub struct Adapter {
    label: String,
    modules: BTreeMap<Slot, LowRank>,
    notes: Vec<String>,
}

/// What is added to the output of a linear layer `[out, in]`: `scale B A x`.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    /// Rows of `A` and columns of `B`.
    pub rank: usize,
    /// Factor of the product.
    pub scale: f32,
    /// `A`, `[rank, in]`.
    pub a: Vec<f32>,
    /// `B`, `[out, rank]`.
    pub b: Vec<f32>,
}

/// The two matrices of a module, as they are stored, and how to scale them.
struct Pair<'a> {
    /// The module that they change, as the adapter names it.
    module: &'a str,
    a: TensorView<'a>,
    b: TensorView<'a>,
}

/// An adapter's files before it is known which linear layers they are for.
struct Files {
    label: String,
    layout: Layout,
    checkpoint: Arc<Checkpoint>,
    /// For each module, the names of its matrices A and B.
    modules: BTreeMap<String, [Option<String>; 2]>,
    base_copies: Vec<BaseCopy>,
    scaling: Scaling,
    notes: Vec<String>,
}

/// The values of a pair of matrices, for all experts if it is for several.
struct Values {
    rank: usize,
    scale: f32,
    a: Vec<f32>,
    b: Vec<f32>,
    /// Whether the matrices of an expert lie in one piece.
    is_apart: bool,
}

/// How the factor of a module follows from its rank.
enum Scaling {
    Peft(Box<peft::Scaling>),
    /// `alpha / rank`; 1 if it is zero.
    Gguf {
        alpha: f32,
    },
}

impl Adapter {
    /// Reads an adapter for the model `base`: a folder of peft, or a GGUF file. Its matrices may take at most so many bytes in f32.
    ///
    /// Fails if it is for another model, naming the tensor, and if it changes anything in a way that is not supported, naming it.
    pub fn open(path: &Path, base: &ModelSource, most_bytes: usize) -> Result<Self> {
        let files = match look::is_gguf(path) {
            true => gguf::open(path)?,
            false => peft::open(path)?,
        };
        files.check_size(most_bytes)?;
        let places = Places::new(base, &files)?;
        let (mut modules, mut notes) = (BTreeMap::new(), files.notes.clone());
        notes.extend(base_copies::check(base, &files, &places)?);
        for pair in files.pairs()? {
            let of_pair = places.of(&pair)?;
            if of_pair.is_empty() {
                notes.push(format!("{}: `{}` changes nothing: the model does not use it", files.label, pair.module));
            }
            // All places of a pair have the same shapes.
            let Some(values) = of_pair.first().map(|place| files.values(&pair, place)).transpose()? else { continue };
            for place in of_pair {
                if modules.insert(place.slot, values.of(&place)).is_some() {
                    let expected = "one pair of matrices for each linear layer";
                    return Err(pair.a.error(expected, format!("a second one for {:?}", place.slot)));
                }
            }
        }
        if modules.is_empty() {
            let (expected, found) = ("matrices of an adapter".to_owned(), "none".to_owned());
            return Err(ModelError::Missing { path: files.label, expected, found });
        }
        Ok(Self { label: files.label, modules, notes })
    }

    /// An adapter of these modules, for tests.
    pub fn of(label: &str, modules: BTreeMap<Slot, LowRank>) -> Self {
        Self { label: label.to_owned(), modules, notes: Vec::new() }
    }

    /// Its path, for messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// What of it has no effect, one line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What it adds, by linear layer.
    pub fn modules(&self) -> &BTreeMap<Slot, LowRank> {
        &self.modules
    }

    /// Number of values of all matrices.
    pub fn values(&self) -> usize {
        self.modules.values().map(|module| module.a.len() + module.b.len()).sum()
    }
}

impl Files {
    /// Fails if the matrices would take more than `most` bytes in f32, or more than can be counted.
    fn check_size(&self, most: usize) -> Result<()> {
        let mut bytes = 0_usize;
        for name in self.modules.values().flatten().flatten() {
            let Some(view) = self.checkpoint.tensor(name)? else { continue };
            bytes = bytes.saturating_add(view.len().saturating_mul(size_of::<f32>()));
            if bytes > most {
                let expected =
                    format!("matrices that take at most {most} bytes in f32, which is what there is memory for");
                return Err(ModelError::Malformed { path: self.label.clone(), expected, found: "larger ones".into() });
            }
        }
        Ok(())
    }

    fn pairs(&self) -> Result<Vec<Pair<'_>>> {
        let mut pairs = Vec::with_capacity(self.modules.len());
        for (module, names) in &self.modules {
            let [Some(a), Some(b)] = names else {
                let tensor = names.iter().flatten().next().cloned().unwrap_or_default();
                let expected = "both matrices of a module, A and B".into();
                return Err(ModelError::Tensor {
                    path: self.label.clone(),
                    tensor,
                    expected,
                    found: "only this one".into(),
                });
            };
            if let (Some(a), Some(b)) = (self.checkpoint.tensor(a)?, self.checkpoint.tensor(b)?) {
                pairs.push(Pair { module, a, b });
            }
        }
        Ok(pairs)
    }

    /// The values of a pair of matrices, one of whose places is this one.
    fn values(&self, pair: &Pair<'_>, place: &Place) -> Result<Values> {
        let Place { inputs, outputs, experts, .. } = *place;
        let shapes = (pair.a.shape.as_slice(), pair.b.shape.as_slice());
        let rank = match (shapes, experts) {
            (([rank, columns], [rows, other]), 1) if (*columns, *rows) == (inputs, outputs) && rank == other => *rank,
            // The matrices of all experts one after the other, as peft has them.
            (([ranks, columns], [rows, other]), experts)
                if (*columns, *rows) == (inputs, outputs) && ranks == other && ranks.is_multiple_of(experts) =>
            {
                ranks / experts
            }
            // As llama.cpp has them.
            (([count, rank, columns], [other_count, rows, other]), experts)
                if (*columns, *rows) == (inputs, outputs)
                    && rank == other
                    && [*count, *other_count] == [experts; 2] =>
            {
                *rank
            }
            _ => {
                let of = if experts > 1 { format!(" of {experts} experts each") } else { String::new() };
                let expected = format!("shapes [rank, {inputs}] and [{outputs}, rank]{of}");
                return Err(pair.a.error(expected, format!("{:?} and {:?}", pair.a.shape, pair.b.shape)));
            }
        };
        if rank == 0 || rank > MOST_RANK {
            return Err(pair.a.error(format!("a rank from 1 to {MOST_RANK}"), rank.to_string()));
        }
        let scale = match &self.scaling {
            Scaling::Peft(scaling) => scaling.of(pair.module, place.parameter, rank, &pair.a)?,
            Scaling::Gguf { alpha: 0.0 } => 1.0,
            Scaling::Gguf { alpha } => alpha / rank as f32,
        };
        if !scale.is_finite() {
            return Err(pair.a.error("a finite factor of the product", scale.to_string()));
        }
        let is_apart = pair.a.shape.len() == 3;
        Ok(Values { rank, scale, a: pair.a.read::<f32>()?, b: pair.b.read::<f32>()?, is_apart })
    }
}

impl Values {
    /// What they add to the output of one linear layer.
    fn of(&self, place: &Place) -> LowRank {
        let Self { rank, scale, a, b, is_apart } = self;
        let (rank, &Place { inputs, outputs, expert, experts, .. }) = (*rank, place);
        let value = |row: usize, column: usize| match is_apart {
            true => b[(expert * outputs + row) * rank + column],
            false => b[(row * rank + column) * experts + expert],
        };
        let own_b = place.rows().flat_map(|row| (0..rank).map(move |column| value(row, column)));
        LowRank { rank, scale: *scale, a: a[expert * rank * inputs..][..rank * inputs].to_vec(), b: own_b.collect() }
    }
}

/// The names of the matrices of each module, from those of all tensors. `split` returns module and which of both a tensor is.
///
/// Fails on a tensor that is neither, naming it.
fn modules_of<'a>(
    label: &str,
    tensors: impl Iterator<Item = &'a str>,
    split: impl Fn(&str) -> Option<(String, usize)>,
) -> Result<BTreeMap<String, [Option<String>; 2]>> {
    let mut modules: BTreeMap<String, [Option<String>; 2]> = BTreeMap::new();
    for name in tensors {
        let Some((module, which)) = split(name) else {
            return Err(ModelError::Tensor {
                path: label.to_owned(),
                tensor: name.to_owned(),
                expected: "matrices A and B of linear layers, and nothing else".into(),
                found: "a tensor of another kind, which is not supported".into(),
            });
        };
        let names = modules.entry(module).or_default();
        if let Some(earlier) = names[which].replace(name.to_owned()) {
            return Err(ModelError::Tensor {
                path: label.to_owned(),
                tensor: name.to_owned(),
                expected: "one matrix of a kind for each module".into(),
                found: format!("another one after `{earlier}`"),
            });
        }
    }
    Ok(modules)
}
