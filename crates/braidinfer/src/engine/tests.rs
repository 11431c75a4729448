//! Sequences for which there is no memory.

use std::path::PathBuf;

use braidinfer_model::ModelSource;

use crate::executor::Kernels;
use crate::memory::tests::pretend;
use crate::{Error, Event, KvCacheRoom, Llm, LoadOptions, Output, SamplingParams};

fn open(kernels: Kernels) -> Llm {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/llama");
    let options = LoadOptions {
        kernels,
        force: kernels == Kernels::Fused,
        threads: Some(1),
        context: Some(4096),
        kv_cache: KvCacheRoom::Tokens(8192),
        ..LoadOptions::default()
    };
    Llm::open(&ModelSource::Directory(folder), &options, &|_, _| {}).expect("the fixture opens")
}

fn prompt(tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|token| token * 7 % 250).collect()
}

/// Tokens of each request, and the errors.
fn answers(llm: &mut Llm, requests: usize) -> (Vec<usize>, Vec<(usize, Error)>) {
    let (mut tokens, mut errors) = (vec![0; requests], Vec::new());
    while llm.has_unfinished() {
        for Event { request, output, .. } in llm.step().expect("a step of the others goes on") {
            match output {
                Ok(Output::Token(_)) => tokens[request] += 1,
                Ok(Output::Embedding(_)) => panic!("no vector was asked for"),
                Err(error) => errors.push((request, error)),
            }
        }
    }
    (tokens, errors)
}

#[test]
fn a_sequence_without_memory_ends_alone_and_later_ones_have_room_again() {
    for kernels in [Kernels::Fused, Kernels::Standard] {
        let mut llm = open(kernels);
        let params = SamplingParams { max_tokens: Some(8), ignore_eos: true, ..SamplingParams::default() };
        // Its storage is there before memory runs out.
        llm.add(prompt(500), &params).expect("it is valid");
        assert_eq!(answers(&mut llm, 1).0, [8]);
        pretend(Some(1 << 20));
        let (short, long) = (prompt(400), prompt(3000));
        llm.add(short.clone(), &params).expect("it is valid");
        llm.add(long.clone(), &params).expect("it is valid");
        let (tokens, errors) = answers(&mut llm, 3);
        assert_eq!((tokens[1], tokens[2], errors.len()), (8, 0, 1), "{kernels:?}: {errors:?}");
        assert!(matches!(&errors[0], (2, Error::TooLittleMemory { .. })), "{errors:?}");
        pretend(None);
        llm.add(long, &params).expect("it is valid");
        let (tokens, errors) = answers(&mut llm, 4);
        assert_eq!((tokens[3], errors.len()), (8, 0), "{kernels:?}: {errors:?}");
    }
}
