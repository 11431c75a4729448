//! Cached verdicts.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use braidinfer_model::TensorData;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::passages::Passages;
use super::report::CompatReport;
use super::{Precision, Subject, Thoroughness, batches, judge};
use crate::digest::{field, hex, of_adapter};
use crate::executor::{Decoder, KernelPlan, KvCacheConfig};

/// Incremented whenever the meaning of reports changes.
const FORMAT: u32 = 3;

/// Largest file that is read; verdicts on models of many layers have some hundred kilobytes.
const MOST_BYTES: u64 = 64 << 20;

/// Of larger tensors, this many evenly spaced samples of [`SAMPLE_BYTES`] are hashed.
const SAMPLES: usize = 8;
const SAMPLE_BYTES: usize = 4096;

/// The cache file of the verdict about one model, for one build and one kind of machine.
pub(crate) struct VerdictCache {
    path: Option<PathBuf>,
    subject: String,
    key: String,
}

/// Fused kernels that a verdict is about.
pub(crate) struct CheckedKernels<'a> {
    pub(crate) isa: String,
    pub(crate) plan: &'a KernelPlan,
    pub(crate) kv_cache: KvCacheConfig,
    /// Whether layers keep a state of each sequence.
    pub(crate) keeps_states: bool,
}

impl<'a> CheckedKernels<'a> {
    pub(crate) fn of(decoder: &'a Decoder<'_>) -> Self {
        Self {
            isa: decoder.report().isa,
            plan: decoder.plan(),
            kv_cache: decoder.kv_cache(),
            keeps_states: decoder.state().bytes_per_sequence > 0,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Entry {
    format: u32,
    key: String,
    /// SHA-256 of `report`.
    checksum: String,
    /// The report as JSON.
    report: String,
}

impl VerdictCache {
    /// The key covers weights, test tokens, precision, numeric levels, instruction set and build of the engine.
    pub(crate) fn new(
        folder: Option<&Path>,
        subject: &Subject,
        fused: &CheckedKernels<'_>,
        precision: Precision,
    ) -> crate::Result<Self> {
        let Subject { spec, weights, adapters, adapter, .. } = subject;
        let mut hash = Sha256::new();
        field(&mut hash, fused.isa.as_bytes());
        field(&mut hash, precision.as_str().as_bytes());
        field(&mut hash, format!("{spec:?}").as_bytes());
        field(&mut hash, format!("{:?}", fused.plan).as_bytes());
        for (slot, param, view) in weights.iter() {
            field(&mut hash, format!("{slot:?} {param} {} {:?}", view.dtype, view.shape).as_bytes());
            sample(&mut hash, &view.data)?;
        }
        if let Some(adapter) = adapter.and_then(|adapter| adapters.get(adapter as usize)) {
            field(&mut hash, &of_adapter(adapter));
        }
        // Another tokenizer or chat template yields other test tokens. If it fails, the check fails, too.
        let passages = subject.passages().ok();
        field(&mut hash, &passages.as_ref().map(Passages::fingerprint).unwrap_or_default());
        // A small context leaves room for few test tokens and no far positions.
        let (storage, with_far) = (fused.kv_cache, !fused.keeps_states);
        let first = passages.map(|read| batches::first(&read, spec, storage, Thoroughness::Brief, with_far));
        field(&mut hash, format!("{:?}", first.unwrap_or_default()).as_bytes());
        let subject = hex(&hash.clone().finalize());
        field(&mut hash, &FORMAT.to_le_bytes());
        field(&mut hash, build().as_bytes());
        // The build is part of the key and not of the name: a new build overwrites the verdict of the previous one.
        let path = folder.map(|folder| folder.join(format!("{subject}.json")));
        Ok(Self { path, subject, key: hex(&hash.finalize()) })
    }

    /// What the verdict is about, and the build of the engine, as a checksum.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// What the verdict is about, whatever build of the engine measured it, as a checksum.
    pub(crate) fn subject(&self) -> &str {
        &self.subject
    }

    /// The cached verdict. `None` if there is none, or if its file is corrupt, has another format, or has another key.
    pub(crate) fn read(&self) -> Option<CompatReport> {
        let path = self.path.as_ref()?;
        let file = fs::metadata(path).ok()?;
        // Nobody may ever write to a pipe in its place.
        if !file.is_file() || file.len() > MOST_BYTES {
            return None;
        }
        verdict(&fs::read(path).ok()?, &self.key)
    }

    /// Writes a verdict atomically, unless a more thorough one is cached. The error is one line for the user; nothing
    /// else depends on the file.
    pub(crate) fn write(&self, report: &CompatReport) -> Result<(), String> {
        let Some(path) = &self.path else { return Ok(()) };
        if self.read().is_some_and(|kept| kept.thoroughness > report.thoroughness) {
            return Ok(());
        }
        self.try_write(path, report).map_err(|error| {
            format!("{}: the verdict could not be kept and will be measured again: {error}", path.display())
        })
    }

    fn try_write(&self, path: &Path, report: &CompatReport) -> std::io::Result<()> {
        let entry = entry(serde_json::to_string(report)?, &self.key)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(entry.as_bytes())?;
        file.persist(path)?;
        Ok(())
    }
}

/// The contents of a cache file, for a report as JSON.
pub(super) fn entry(report: String, key: &str) -> serde_json::Result<String> {
    let checksum = hex(&Sha256::digest(report.as_bytes()));
    serde_json::to_string(&Entry { format: FORMAT, key: key.to_owned(), checksum, report })
}

/// The verdict in a cache file, if it is whole and about what `key` stands for.
pub(super) fn verdict(file: &[u8], key: &str) -> Option<CompatReport> {
    let entry: Entry = serde_json::from_slice(file).ok()?;
    let whole = entry.checksum == hex(&Sha256::digest(entry.report.as_bytes()));
    if !whole || entry.format != FORMAT || entry.key != key {
        return None;
    }
    let mut report: CompatReport = serde_json::from_str(&entry.report).ok()?;
    judge::recommend(&mut report);
    Some(report)
}

/// Version of the engine, and size and time of the running program: a new build may compute differently.
fn build() -> String {
    let program = std::env::current_exe().and_then(fs::metadata).ok().map(|file| {
        let modified = file.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        (file.len(), modified.map(|time| time.as_nanos()))
    });
    format!("{} {program:?}", env!("CARGO_PKG_VERSION"))
}

/// Hashes small tensors completely, and samples of larger ones.
fn sample(hash: &mut Sha256, data: &TensorData) -> crate::Result<()> {
    if data.len() <= 2 * SAMPLES * SAMPLE_BYTES {
        field(hash, &data.read()?);
        return Ok(());
    }
    let last = data.len() - SAMPLE_BYTES;
    for part in 0..SAMPLES {
        let start = last / (SAMPLES - 1) * part;
        field(hash, &data.read_part(start..start + SAMPLE_BYTES)?);
    }
    Ok(())
}
