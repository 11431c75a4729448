//! Weights files that are cut short or written to while they are read: an error that names the file, and no signal.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::support::fixtures;
use braidinfer::executor::Kernels;
use braidinfer::model::ModelSource;
use braidinfer::model::quantization::FileType;
use braidinfer::{Error, Llm, LoadOptions, Prompt, SamplingParams, Threads, quantize};
use tempfile::TempDir;

/// A copy of a model, as a folder and as a GGUF file.
struct Copies {
    folder: TempDir,
}

impl Copies {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        for entry in fs::read_dir(fixtures().join("models/llama")).expect("the fixture exists") {
            let path = entry.expect("the folder can be listed").path();
            fs::copy(&path, folder.path().join(path.file_name().expect("files have names"))).expect("it can be copied");
        }
        let source = ModelSource::open(folder.path()).expect("the model opens");
        let to = folder.path().join("model.gguf");
        let threads = Threads::new(Some(1)).expect("there are threads");
        quantize(&source, &to, FileType::Q8_0, false, &threads, &mut |_, _| ControlFlow::Continue(()))
            .expect("the model can be quantized");
        Self { folder }
    }

    /// What a model is opened by, and the file with its weights.
    fn both(&self) -> [(PathBuf, PathBuf); 2] {
        let file = |name: &str| self.folder.path().join(name);
        [(self.folder.path().to_owned(), file("model.safetensors")), (file("model.gguf"), file("model.gguf"))]
    }
}

fn cut(path: &Path) {
    let file = File::options().write(true).open(path).expect("the file can be opened");
    let len = file.metadata().expect("it has a length").len();
    file.set_len(len / 3).expect("it can be cut");
}

/// The same length, other bytes.
fn overwrite(path: &Path) {
    let bytes = fs::read(path).expect("the file can be read");
    let file = File::options().write(true).open(path).expect("the file can be opened");
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
    std::io::Write::write_all(&mut &file, &vec![0; bytes.len()]).expect("it can be written");
    file.set_modified(later).expect("its time can be set");
}

fn check_named(outcome: Result<(), Error>, path: &Path) {
    let error = outcome.expect_err("the file has changed").to_string();
    let name = path.file_name().expect("it has a name").to_string_lossy();
    assert!(error.contains(&*name) && error.contains("written to since"), "{error}");
}

fn options(kernels: Kernels) -> LoadOptions {
    LoadOptions { kernels, force: kernels == Kernels::Fused, threads: Some(2), ..LoadOptions::default() }
}

#[test]
fn files_that_change_while_they_are_loaded() {
    for kernels in [Kernels::Fused, Kernels::Standard, Kernels::Auto] {
        for change in [cut, overwrite] {
            for index in 0..2 {
                let copies = Copies::new();
                let (model, file) = copies.both()[index].clone();
                let source = ModelSource::open(&model).expect("the model opens");
                let during = |done: usize, _: usize| {
                    if done == 1 {
                        change(&file);
                    }
                };
                check_named(Llm::open(&source, &options(kernels), &during).map(drop), &file);
            }
        }
    }
}

#[test]
fn a_gguf_file_that_changes_between_opening_and_loading() {
    let copies = Copies::new();
    let [_, (model, file)] = copies.both();
    let source = ModelSource::open(&model).expect("the model opens");
    cut(&file);
    check_named(Llm::open(&source, &options(Kernels::Fused), &|_, _| {}).map(drop), &file);
}

#[test]
fn files_that_change_while_they_are_quantized() {
    for index in 0..2 {
        let copies = Copies::new();
        let (model, file) = copies.both()[index].clone();
        let source = ModelSource::open(&model).expect("the model opens");
        let threads = Threads::new(Some(2)).expect("there are threads");
        let to = copies.folder.path().join("other.gguf");
        let outcome = quantize(&source, &to, FileType::Q4_0, false, &threads, &mut |done, _| {
            if done == 1 {
                cut(&file);
            }
            ControlFlow::Continue(())
        });
        check_named(outcome.map(drop), &file);
        assert!(!to.exists(), "nothing half is left");
    }
}

#[test]
fn a_file_that_is_cut_under_the_shadow_check() {
    for index in 0..2 {
        let copies = Copies::new();
        let (model, file) = copies.both()[index].clone();
        let source = ModelSource::open(&model).expect("the model opens");
        let asked = LoadOptions { shadow_check: 1.0, ..options(Kernels::Fused) };
        let mut llm = Llm::open(&source, &asked, &|_, _| {}).expect("the model loads");
        let params = SamplingParams { max_tokens: Some(2), ignore_eos: true, ..SamplingParams::default() };
        let prompt = Prompt::Ids(vec![1, 2, 3]);
        llm.stream(&[prompt], &params, &mut |_| ControlFlow::Continue(())).expect("it answers");
        cut(&file);
        check_named(llm.shadow_check(&mut || true).map(drop), &file);
    }
}
