//! Packed weights from a file, which is made if there is none.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use braidinfer_kernels::{Pages, Pool};
use braidinfer_model::{DecoderSpec, Weights};

use super::packed::{PackedDecoder, packed_elsewhere, sections};
use super::packed_file::{CHUNK, KeptFile, PackedWriter, file_bytes};
use super::packing::{Destination, Packable};
use super::weight_memory::{Sections, WeightMemory};
use crate::executor::KernelPlan;
use crate::executor::standard::LoadProgress;
use crate::packed_cache::{PackedCache, Unfinished, WeightsKey};
use crate::{Error, Result, memory};

/// About how many panels are packed anew and compared when a file is opened.
const COMPARED: usize = 256;

/// How packed weights are kept.
#[derive(Debug, Clone)]
pub(crate) struct Keeping {
    pub(crate) cache: PackedCache,
    pub(crate) key: WeightsKey,
    /// If there is too little memory for all weights: how much of what every step reads is in it, in bytes. The rest, rows of
    /// embeddings and experts are then read from the file whenever they are used.
    pub(crate) scarce_bytes: Option<usize>,
}

/// A file that cannot be had, and why.
enum Unkept {
    /// Another process is making it.
    Elsewhere,
    /// In words.
    Because(String),
    /// The weights themselves cannot be packed.
    Failed(Error),
}

impl From<io::Error> for Unkept {
    fn from(error: io::Error) -> Self {
        Self::Because(error.to_string())
    }
}

/// What is needed to load packed weights.
struct Loading<'a> {
    spec: &'a DecoderSpec,
    weights: &'a Weights,
    plan: &'a KernelPlan,
    keeping: &'a Keeping,
    sections: Sections,
    path: PathBuf,
}

/// Loads packed weights from their file, which is made first if there is none, or none that can be used. Where it cannot be made,
/// they are packed into memory if they fit. What the user should know is added to `notes`.
pub(super) fn load(
    (spec, weights, plan): (&DecoderSpec, &Weights, &KernelPlan),
    keeping: &Keeping,
    pool: &mut Pool,
    progress: LoadProgress,
    notes: &mut Vec<String>,
) -> Result<PackedDecoder> {
    let path = keeping.cache.path(&keeping.key.name);
    let loading = Loading { spec, weights, plan, keeping, sections: sections(weights), path };
    if let Some(decoder) = loading.open(pool, progress, notes)? {
        return Ok(decoder);
    }
    let shown = loading.path.display();
    match loading.make(pool, progress, notes) {
        Ok(decoder) => Ok(decoder),
        Err(Unkept::Failed(error)) => Err(error),
        Err(unkept) if keeping.scarce_bytes.is_none() => {
            notes.push(match unkept {
                Unkept::Because(reason) => {
                    format!("{shown}: packed weights could not be kept, and will be packed at every start: {reason}")
                }
                _ => {
                    format!("{shown}: another process is making this file; meanwhile, weights were packed into memory")
                }
            });
            PackedDecoder::load(spec, weights, plan, pool, progress)
        }
        Err(Unkept::Because(reason)) => {
            Err(too_little(loading.sections, format!("{shown}, is not possible: {reason}")))
        }
        Err(_) => Err(too_little(loading.sections, format!("{shown}, is made by another process"))),
    }
}

/// That there is too little memory, and no file either.
fn too_little(sections: Sections, file: String) -> Error {
    memory::exhausted(sections.bytes(), format!("packed weights; to keep them in a file instead, {file}"))
}

/// The size of the file of packed weights, and how much of it every step reads.
pub(crate) fn kept_bytes(weights: &Weights) -> (u64, usize) {
    let sections = sections(weights);
    (file_bytes(sections), sections.dense())
}

impl<'a> Loading<'a> {
    /// The decoder, if there is a file that can be used. One that cannot is told of.
    fn open(&self, pool: &mut Pool, progress: LoadProgress, notes: &mut Vec<String>) -> Result<Option<PackedDecoder>> {
        let kept = match KeptFile::open(&self.path, &self.keeping.key, self.sections) {
            Ok(None) => return Ok(None),
            Ok(Some(kept)) => self.read(kept, pool, progress)?,
            Err(reason) => Err(reason),
        };
        match kept {
            Ok(decoder) => Ok(Some(decoder)),
            Err(reason) => {
                // Whether it is made anew is said when that is known.
                notes.push(format!("{}: cannot be used: {reason}", self.path.display()));
                Ok(None)
            }
        }
    }

    /// Reads what is to be in memory, and compares samples with the weights. The inner error says why the file cannot be used.
    fn read(
        &self,
        kept: KeptFile,
        pool: &mut Pool,
        progress: LoadProgress,
    ) -> Result<std::result::Result<PackedDecoder, String>> {
        let memory = match self.keeping.scarce_bytes {
            // Untouched, they take no memory. Without them, everything is read from the file.
            None => WeightMemory::mapped(kept, Pages::zeroed(self.sections.bytes()).ok()),
            Some(bytes) => {
                let own = bytes.min(self.sections.dense()) / CHUNK * CHUNK;
                let mut pages = Pages::zeroed(own).map_err(|_| memory::exhausted(own, "packed weights".into()))?;
                if let Err(reason) = kept.copy(&mut pages, pool) {
                    return Ok(Err(reason));
                }
                WeightMemory::scarce(kept, pages)
            }
        };
        let to = Destination::Kept(Vec::new());
        let (decoder, to) = PackedDecoder::pack(self.spec, self.weights, self.plan, to, pool, progress)?;
        let Destination::Kept(parameters) = to else { return Err(packed_elsewhere()) };
        let same = self.compare(&parameters, &memory, pool)?;
        if !same || memory.check().is_err() {
            return Ok(Err("it has other weights than the model, or is damaged".into()));
        }
        Ok(Ok(decoder.with_memory(memory)))
    }

    /// Packs one unit of every parameter, or of evenly spaced ones, and compares it with what the file has.
    fn compare(&self, parameters: &[(Packable<'_>, usize)], memory: &WeightMemory, pool: &mut Pool) -> Result<bool> {
        let step = parameters.len().div_ceil(COMPARED).max(1);
        let digest = self.keeping.key.digest;
        let (same, failed) = (AtomicBool::new(true), Mutex::new(None));
        pool.run(parameters.len().div_ceil(step), &|task, _| {
            let index = (task * step + usize::from(digest[task % 32]) % step).min(parameters.len() - 1);
            let (parameter, start) = &parameters[index];
            // Others for other models, and always the same for one, so that a fault is no matter of chance.
            let unit = index.wrapping_mul(usize::from(digest[index % 32]) + 1) % parameter.units();
            let place = parameter.place(unit);
            match parameter.is(unit, memory.bytes(start + place.start..start + place.end)) {
                Ok(true) => {}
                Ok(false) => same.store(false, Ordering::Relaxed),
                Err(error) => *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error),
            }
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(same.into_inner()),
        }
    }

    /// Makes the file, and opens it.
    fn make(
        &self,
        pool: &mut Pool,
        progress: LoadProgress,
        notes: &mut Vec<String>,
    ) -> std::result::Result<PackedDecoder, Unkept> {
        let Keeping { cache, key, scarce_bytes } = self.keeping;
        // Without the file there is nothing that this process could do meanwhile.
        let unfinished = cache.begin(&key.name, scarce_bytes.is_some())?.ok_or(Unkept::Elsewhere)?;
        // Another process may have made it between the first look and the lock.
        if let Ok(Some(kept)) = KeptFile::open(&self.path, key, self.sections)
            && let Ok(decoder) = self.read(kept, pool, progress).map_err(Unkept::Failed)?
        {
            return Ok(decoder);
        }
        let bytes = file_bytes(self.sections);
        cache.make_room(bytes, &self.path).map_err(Unkept::Because)?;
        self.write(&unfinished, pool, progress)?;
        if !key.still_holds(self.weights).map_err(Unkept::Failed)? {
            return Err(Unkept::Because("the model's files were written to meanwhile".into()));
        }
        unfinished.publish()?;
        let kept = KeptFile::open(&self.path, key, self.sections).map_err(Unkept::Because)?;
        let kept = kept.ok_or_else(|| Unkept::Because("it was removed at once".into()))?;
        let decoder = self.read(kept, pool, &|_, _| {}).map_err(Unkept::Failed)?.map_err(Unkept::Because)?;
        notes.push(format!(
            "packed weights are kept in {} ({}), so that the next start reads them instead of packing",
            self.path.display(),
            memory::size(bytes)
        ));
        Ok(decoder)
    }

    /// Packs all weights into the file.
    fn write(
        &self,
        unfinished: &Unfinished,
        pool: &mut Pool,
        progress: LoadProgress,
    ) -> std::result::Result<(), Unkept> {
        let writer = PackedWriter::new(unfinished.file(), self.sections)?;
        let to = Destination::File { writer, path: &self.path, buffer: Vec::new() };
        let packed = PackedDecoder::pack(self.spec, self.weights, self.plan, to, pool, progress);
        match packed {
            Ok((_, Destination::File { writer, .. })) => Ok(writer.finish(&self.keeping.key)?),
            Ok(_) => Err(Unkept::Failed(packed_elsewhere())),
            Err(Error::File { source, .. }) => Err(source.into()),
            Err(error) => Err(Unkept::Failed(error)),
        }
    }
}
