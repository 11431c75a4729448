//! Packed weights in files: the same bits as without, for every fixture, and never those of other weights.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{self, Fixture};
use braidinfer::executor::{Batch, Kernels, NoProbe, SequenceSlice};
use braidinfer::model::ModelSource;
use braidinfer::{Error, Llm, LoadOptions, PackedCache};
use tempfile::TempDir;

/// Fused kernels at the fastest level, with packed weights of any size in a folder, or in none.
fn options(folder: Option<&Path>) -> LoadOptions {
    LoadOptions {
        kernels: Kernels::Fused,
        force: true,
        threads: Some(2),
        max_sequences: 1,
        packed: folder.map(|folder| PackedCache { least_bytes: 0, ..PackedCache::new(folder) }),
        ..LoadOptions::default()
    }
}

fn open(source: &ModelSource, folder: Option<&Path>) -> Llm {
    Llm::open(source, &options(folder), &|_, _| {}).unwrap_or_else(|error| panic!("{}: {error}", source.label()))
}

/// The bits of the logits of every position of some tokens.
fn logits(llm: &mut Llm, ids: &[u32]) -> Result<Vec<u32>, Error> {
    let mut batch = Batch::default();
    let blocks = (0..ids.len().div_ceil(16) as u32).collect();
    batch.push(ids, SequenceSlice::new(0, ids.len(), blocks), ids.len());
    let logits = llm.decoder_mut()?.forward(&batch, &mut NoProbe)?.logits;
    Ok((0..logits.rows()).flat_map(|row| logits.row(row).iter().map(|logit| logit.to_bits())).collect())
}

fn bits(source: &ModelSource, folder: Option<&Path>, ids: &[u32]) -> Vec<u32> {
    logits(&mut open(source, folder), ids).unwrap_or_else(|error| panic!("{}: {error}", source.label()))
}

/// The files in a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let kept = PackedCache::new(folder).list().expect("it can be listed");
    kept.into_iter().map(|file| file.path).collect()
}

fn only_file(folder: &Path) -> PathBuf {
    let files = files(folder);
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(files[0].extension().and_then(|extension| extension.to_str()), Some("packed"));
    files[0].clone()
}

/// Puts other bytes in the place of a file that nobody may write to.
fn replace(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).expect("it is ours");
    fs::write(path, bytes).expect("it can be written");
    let mut permissions = fs::metadata(path).expect("it is there").permissions();
    permissions.set_readonly(true);
    fs::set_permissions(path, permissions).expect("it is ours");
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder can be made")
}

/// A copy of a fixture in a folder of its own.
fn copy_of(name: &str) -> TempDir {
    let copy = folder();
    for entry in fs::read_dir(support::fixtures().join("models").join(name)).expect("the fixture is there") {
        let path = entry.expect("it can be listed").path();
        fs::copy(&path, copy.path().join(path.file_name().expect("it has a name"))).expect("it can be copied");
    }
    copy
}

fn source(folder: &TempDir) -> ModelSource {
    ModelSource::open(folder.path()).expect("it is a model")
}

#[test]
fn the_bits_are_those_without_a_file() {
    for fixture in Fixture::all() {
        let (folder, ids) = (folder(), &fixture.prompts[0].ids);
        let expected = bits(&fixture.source, None, ids);
        for start in ["first", "second"] {
            let mut llm = open(&fixture.source, Some(folder.path()));
            // What one step used is copied to memory before the next.
            for step in 0..3 {
                let found = logits(&mut llm, ids).unwrap_or_else(|error| panic!("{}: {error}", fixture.name));
                assert!(found == expected, "{} {start} start, step {step}", fixture.name);
            }
            only_file(folder.path());
        }
    }
}

#[test]
fn the_first_start_says_what_it_keeps_and_the_second_nothing() {
    let (fixture, folder) = (Fixture::open("llama"), folder());
    let notes = |llm: Llm| llm.notes().join("\n");
    let first = notes(open(&fixture.source, Some(folder.path())));
    let path = only_file(folder.path());
    assert!(first.contains(&format!("packed weights are kept in {}", path.display())), "{first}");
    let made = fs::metadata(&path).expect("it is there");
    let second = notes(open(&fixture.source, Some(folder.path())));
    assert!(!second.contains("packed"), "{second}");
    assert_eq!(fs::metadata(&path).expect("it is there").len(), made.len());
    // Models that are small are packed faster than anybody notices.
    let usual = LoadOptions { packed: Some(PackedCache::new(folder.path().join("usual"))), ..options(None) };
    Llm::open(&fixture.source, &usual, &|_, _| {}).expect("the fixture opens");
    assert!(files(&folder.path().join("usual")).is_empty());
}

/// Weights of a copy are changed in place, with the old time of writing: only the time of the change betrays it.
#[test]
fn other_weights_at_the_same_path_are_packed_anew() {
    for name in ["llama", "llama-tied", "qwen3_moe"] {
        let (copy, folder) = (copy_of(name), folder());
        let ids = &Fixture::open(name).prompts[0].ids;
        let before = bits(&source(&copy), Some(folder.path()), ids);
        let file = copy.path().join("model.safetensors");
        let written = fs::metadata(&file).and_then(|file| file.modified()).expect("it is known");
        negate(&file);
        fs::File::options().write(true).open(&file).and_then(|file| file.set_modified(written)).expect("it is ours");
        let expected = bits(&source(&copy), None, ids);
        assert!(before != expected, "{name}: the change shows");
        let mut llm = open(&source(&copy), Some(folder.path()));
        assert!(llm.notes().iter().any(|note| note.contains("cannot be used: ")), "{name}: {:?}", llm.notes());
        assert!(logits(&mut llm, ids).expect("it runs") == expected, "{name}");
        drop(llm);
        assert!(bits(&source(&copy), Some(folder.path()), ids) == expected, "{name}: the new file is right");
        only_file(folder.path());
    }
}

/// Flips the highest bit of the last byte of every value: of floats, the sign.
fn negate(file: &Path) {
    let mut bytes = fs::read(file).expect("it can be read");
    let start = 8 + u64::from_le_bytes(*bytes.first_chunk().expect("it has a header")) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..start]).expect("the header is JSON");
    let size = if header.to_string().contains("BF16") { 2 } else { 4 };
    bytes[start..].chunks_exact_mut(size).for_each(|value| value[size - 1] ^= 0x80);
    fs::write(file, bytes).expect("it can be written");
}

/// Where the digest of the weights lies in the head of a file.
const DIGEST: std::ops::Range<usize> = 48..80;

/// Even a file with the right head is not used if it was made of other weights: samples tell.
#[test]
fn a_file_of_other_weights_with_the_right_head_is_not_used() {
    for name in ["llama", "qwen3_moe"] {
        let (copy, folder) = (copy_of(name), folder());
        let ids = &Fixture::open(name).prompts[0].ids;
        bits(&source(&copy), Some(folder.path()), ids);
        let path = only_file(folder.path());
        let of_others = fs::read(&path).expect("it can be read");
        negate(&copy.path().join("model.safetensors"));
        let expected = bits(&source(&copy), Some(folder.path()), ids);
        let right = fs::read(&path).expect("it can be read");
        assert_eq!(of_others.len(), right.len());
        assert_ne!(of_others[DIGEST], right[DIGEST]);
        assert_eq!(of_others[..DIGEST.start], right[..DIGEST.start]);
        replace(&path, &[&right[..DIGEST.end], &of_others[DIGEST.end..]].concat());
        assert!(bits(&source(&copy), Some(folder.path()), ids) == expected, "{name}");
        assert!(fs::read(&path).expect("it can be read") == right, "{name}: it was made anew");
    }
}

#[test]
fn damaged_files_are_made_anew_or_stop_the_step() {
    for name in ["llama", "qwen3_moe", "gemma4"] {
        let fixture = Fixture::open(name);
        let (folder, ids) = (folder(), &fixture.prompts[0].ids);
        let expected = bits(&fixture.source, Some(folder.path()), ids);
        let path = only_file(folder.path());
        let whole = fs::read(&path).expect("it can be read");
        let mut changed: Vec<Vec<u8>> = Vec::new();
        for len in [0, 1, 79, 4096, whole.len() / 2, whole.len() - 1] {
            changed.push(whole[..len].to_vec());
        }
        changed.push([&whole[..], &[0; 4096]].concat());
        changed.push(vec![0; whole.len()]);
        changed.push(vec![0xff; whole.len()]);
        // Magic, format, chunk size, sizes of sections, digest, checksums, and data of every kind.
        let places = [0, 16, 20, 24, 31, 39, 47, 50, 85, 4100].into_iter();
        for at in places.chain((1..40).map(|part| 65_536 + (whole.len() - 65_537) * part / 39)) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            changed.push(bytes);
        }
        for (index, bytes) in changed.iter().enumerate() {
            if path.exists() {
                replace(&path, bytes);
            } else {
                fs::write(&path, bytes).expect("it can be written");
            }
            let mut llm = open(&fixture.source, Some(folder.path()));
            match logits(&mut llm, ids) {
                Ok(found) => assert!(found == expected, "{name}, change {index}"),
                // Experts and rows are looked at when they are first used; what nobody used may be damaged.
                Err(error) => {
                    assert!(
                        error.to_string().contains("are not those that were written"),
                        "{name}, change {index}: {error}"
                    );
                    assert!(logits(&mut llm, ids).is_err(), "{name}, change {index}: it stays unusable");
                    assert!(!path.exists(), "{name}, change {index}: the next start makes it anew");
                    drop(llm);
                    assert!(bits(&fixture.source, Some(folder.path()), ids) == expected, "{name}, change {index}");
                }
            }
        }
    }
}

/// A pipe would be waited for, and a link may lead to anybody's file.
#[cfg(unix)]
#[test]
fn what_is_no_plain_file_is_replaced_and_never_opened() {
    let (fixture, folder) = (Fixture::open("llama"), folder());
    let ids = &fixture.prompts[0].ids;
    let expected = bits(&fixture.source, Some(folder.path()), ids);
    let path = only_file(folder.path());
    let other = folder.path().join("other");
    fs::write(&other, "mine").expect("it can be written");
    let pipe = |path: &Path| {
        let made = std::process::Command::new("mkfifo").arg(path).status().expect("the system has pipes");
        assert!(made.success());
    };
    let link = |path: &Path| std::os::unix::fs::symlink(&other, path).expect("a link can be made");
    for put in [&pipe as &dyn Fn(&Path), &link] {
        fs::remove_file(&path).expect("it is ours");
        put(&path);
        assert!(bits(&fixture.source, Some(folder.path()), ids) == expected);
        assert_eq!(only_file(folder.path()), path);
        assert_eq!(fs::read_to_string(&other).expect("it is there"), "mine");
    }
}

#[test]
fn starts_at_once_agree_and_leave_one_file() {
    for name in ["llama", "qwen3_moe"] {
        let fixture = Fixture::open(name);
        let (folder, ids) = (folder(), &fixture.prompts[0].ids);
        let expected = bits(&fixture.source, None, ids);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| assert!(bits(&fixture.source, Some(folder.path()), ids) == expected, "{name}"));
            }
        });
        only_file(folder.path());
    }
}

#[test]
fn the_bound_holds_and_files_in_use_stay() {
    let (folder, names) = (folder(), ["llama", "llama-bias", "llama-yarn"]);
    let fixtures = names.map(Fixture::open);
    let of = |fixture: &Fixture, most_bytes| {
        let cache = PackedCache { most_bytes: Some(most_bytes), least_bytes: 0, ..PackedCache::new(folder.path()) };
        let options = LoadOptions { packed: Some(cache), ..options(None) };
        Llm::open(&fixture.source, &options, &|_, _| {}).expect("the fixture opens")
    };
    let first = of(&fixtures[0], u64::MAX);
    let size = fs::metadata(only_file(folder.path())).expect("it is there").len();
    // Names end in a fingerprint.
    let is_of = |path: &PathBuf, name: &str| {
        let stem = path.file_stem().expect("it has a name").to_string_lossy().into_owned();
        stem.rsplit_once('-').is_some_and(|(model, _)| model == name)
    };
    let kept = |name: &str| files(folder.path()).iter().any(|path| is_of(path, name));
    drop(of(&fixtures[1], u64::MAX));
    // The first is older, but in use.
    drop(of(&fixtures[2], 2 * size + size / 2));
    assert_eq!(names.map(kept), [true, false, true]);
    drop(first);
    drop(of(&fixtures[1], 2 * size + size / 2));
    assert_eq!(names.map(kept), [false, true, true]);
    // One that is larger than the bound is packed into memory, which is said.
    let llm = of(&fixtures[0], size - 1);
    assert!(llm.notes().iter().any(|note| note.contains("packed weights are not kept")), "{:?}", llm.notes());
    assert_eq!(names.map(kept), [false, true, true]);
}

#[test]
fn weights_that_are_quantized_while_they_are_loaded_are_not_kept() {
    let (fixture, folder) = (Fixture::open("llama"), folder());
    let quantize = Some("q8_0".parse().expect("it is a type"));
    let options = LoadOptions { quantize, ..options(Some(folder.path())) };
    let llm = Llm::open(&fixture.source, &options, &|_, _| {}).expect("the fixture opens");
    assert!(llm.notes().iter().any(|note| note.contains("packed weights are not kept")), "{:?}", llm.notes());
    assert!(files(folder.path()).is_empty());
}
