//! Adapters beside a model, and the verdicts about them.

use std::path::PathBuf;
use std::sync::Arc;

use braidinfer_kernels::LANES;
use braidinfer_model::{Adapter, ModelSource};

use super::{LoadOptions, ModelParts, decision};
use crate::compat::{self, Checked, CheckedKernels, CompatReport, Thoroughness};
use crate::executor::{ActiveKernels, Decoder, KernelPlan};
use crate::{Error, Result};

/// Copies of the matrices that there may be at once.
const COPIES: usize = 3;

/// How often the plan of all is looked at again because one of them needs a finer one, before nothing is rounded any more.
const MOST_ROUNDS: usize = 3;

/// A low-rank adapter (LoRA) to load beside a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterOptions {
    /// What requests call it.
    pub name: String,
    /// A folder of peft, or a GGUF file.
    pub path: PathBuf,
}

/// An adapter that is loaded beside a model.
#[derive(Debug, Clone)]
pub struct LoadedAdapter {
    /// What requests call it.
    pub name: String,
    /// Where it came from.
    pub label: String,
    /// The verdict on the model with this adapter, if there was a check.
    pub compat: Option<CompatReport>,
}

/// Adapters with their names.
#[derive(Debug, Default)]
pub(super) struct Adapters {
    names: Vec<String>,
    all: Vec<Arc<Adapter>>,
}

/// The verdicts by which kernels are chosen, and the plan that all of them are about.
pub(super) struct Verdicts {
    pub(super) base: CompatReport,
    pub(super) adapters: Vec<CompatReport>,
    pub(super) plan: KernelPlan,
    /// What users should know, one line each.
    pub(super) notes: Vec<String>,
}

impl Adapters {
    /// Reads those that the options name, with what users should know about them. There is memory for `room` bytes.
    pub(super) fn open(source: &ModelSource, options: &[AdapterOptions], room: usize) -> Result<(Self, Vec<String>)> {
        let (mut found, mut notes) = (Self::default(), Vec::new());
        for AdapterOptions { name, path } in options {
            if name.is_empty() || found.names.contains(name) {
                return Err(Error::bad_request("adapter", "a name of its own for each adapter", format!("`{name}`")));
            }
            let left = (room / COPIES).saturating_sub(found.bytes() / COPIES);
            let adapter = Adapter::open(path, source, left)?;
            notes.extend(adapter.notes().iter().cloned());
            found.names.push(name.clone());
            found.all.push(Arc::new(adapter));
        }
        Ok((found, notes))
    }

    pub(super) fn all(&self) -> &[Arc<Adapter>] {
        &self.all
    }

    /// Bytes of their matrices: as they were read, as kernels read them, and as the check reads them.
    pub(super) fn bytes(&self) -> usize {
        let modules = self.all.iter().flat_map(|adapter| adapter.modules().values());
        // Kernels read the rows of A in panels.
        let values =
            modules.map(|module| module.a.len() / module.rank * module.rank.next_multiple_of(LANES) + module.b.len());
        values.fold(0, usize::saturating_add).saturating_mul(COPIES * size_of::<f32>())
    }

    /// Each with the verdict about it, if there are any.
    pub(super) fn with_verdicts(&self, verdicts: Vec<CompatReport>) -> Vec<LoadedAdapter> {
        let mut verdicts = verdicts.into_iter();
        let adapter = |(name, adapter): (&String, &Arc<Adapter>)| LoadedAdapter {
            name: name.clone(),
            label: adapter.label().to_owned(),
            compat: verdicts.next(),
        };
        self.names.iter().zip(&self.all).map(adapter).collect()
    }
}

impl Verdicts {
    /// The kernels that run, and the verdict that decides it. Where there are adapters, some layers on other kernels would be a mix
    /// that not every verdict is about: then the standard ones compute everything.
    pub(super) fn decisive(&self) -> (ActiveKernels, &CompatReport) {
        let all = std::iter::once(&self.base).chain(&self.adapters);
        match all.into_iter().find(|report| report.kernels() != ActiveKernels::Fused) {
            None => (ActiveKernels::Fused, &self.base),
            Some(report) if self.adapters.is_empty() => (report.kernels(), report),
            Some(report) => (ActiveKernels::Standard, report),
        }
    }
}

impl ModelParts {
    /// The verdicts on a model alone and with each adapter, all about one plan: each check begins with the plan of those before it, and
    /// where one needs a finer one, the others are made anew.
    pub(super) fn verdicts(&self, fused: &mut Decoder<'_>, options: &LoadOptions) -> Result<Verdicts> {
        let (base, plan, note) = self.checked(fused, options, None)?;
        self.refuse_useless_kv_dtype(&base)?;
        let mut verdicts = Verdicts { base, adapters: Vec::new(), plan, notes: vec![note] };
        for round in 1.. {
            let before = verdicts.plan.clone();
            verdicts.adapters.clear();
            verdicts.notes.truncate(1);
            for (index, name) in self.adapters.names.iter().enumerate() {
                let mut planned = fused.under_plan(verdicts.plan.clone());
                let (report, plan, note) = self.checked(&mut planned, options, Some(index as u32))?;
                // A later check begins with what this one found, and would not know what was asked for.
                self.refuse_useless_kv_dtype(&report)?;
                verdicts.adapters.push(report);
                verdicts.notes.push(format!("with adapter {name}: {note}"));
                verdicts.plan = plan;
            }
            if verdicts.plan == before {
                break;
            }
            if round == MOST_ROUNDS {
                verdicts.plan = verdicts.plan.exact();
            }
            let mut planned = fused.under_plan(verdicts.plan.clone());
            let (base, plan, note) = self.checked(&mut planned, options, None)?;
            (verdicts.base, verdicts.plan, verdicts.notes[0]) = (base, plan, note);
        }
        Ok(verdicts)
    }

    /// The verdict on the model alone, or with an adapter, from the cache or measured now; its plan; and both in a line.
    fn checked(
        &self,
        fused: &mut Decoder<'_>,
        options: &LoadOptions,
        adapter: Option<u32>,
    ) -> Result<(CompatReport, KernelPlan, String)> {
        let cache = self.verdict_cache(options, &CheckedKernels::of(fused), adapter)?;
        // A cached plan for other projections is ignored.
        let known = cache.read().and_then(|report| Some((compat::plan_of(&report, fused.plan())?, report)));
        if let Some((plan, report)) = known {
            // The same model and adapter may have lain elsewhere.
            let report =
                CompatReport { model: self.label.clone(), adapter: self.subject(adapter).adapter_label(), ..report };
            let note = decision(&report, true);
            return Ok((report, plan, note));
        }
        let Checked { report, plan } = self.subject(adapter).check(fused, Thoroughness::Brief, options.precision)?;
        let kept = cache.write(&report).err().map(|error| format!(" ({error})"));
        let note = decision(&report, false) + &kept.unwrap_or_default();
        Ok((report, plan, note))
    }
}
