//! Devices: their memory and commands, what they were used for, and what they say when something goes wrong.

use std::iter::zip;

use crate::support::{self, gpu, own_gpu, values, words, words_of};
use braidinfer_gpu::{Adapters, Buffer, Gpu, GpuError, Kernel, Usage};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Adds to every word of a buffer.
const ADD: &str = "
var<immediate> added: u32;
@group(0) @binding(0) var<storage, read_write> words: array<u32>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < arrayLength(&words) {
        words[id.x] += added;
    }
}
";

fn add(gpu: &mut Gpu) -> Kernel {
    gpu.kernel("add", ADD.to_owned(), 1, 1).unwrap()
}

/// Records it.
fn record(gpu: &mut Gpu, kernel: &Kernel, buffer: &Buffer, added: u32) {
    let words = buffer.bytes() as usize / 4;
    gpu.dispatch(kernel, &[buffer], &[added], [words.div_ceil(64) as u32, 1, 1]);
}

/// What was counted since.
fn since(gpu: &Gpu, before: Usage) -> [u64; 4] {
    let now = gpu.usage();
    [
        now.dispatches - before.dispatches,
        now.submissions - before.submissions,
        now.bytes_read - before.bytes_read,
        now.bytes_written - before.bytes_written,
    ]
}

fn message_of<T>(result: Result<T, GpuError>) -> String {
    result.err().expect("an error").to_string()
}

/// Fails unless this says that the device is lost.
fn assert_lost<T>(result: Result<T, GpuError>, what: &str) {
    match result {
        Err(error @ GpuError::Lost { .. }) => assert!(error.ends_device(), "{what}"),
        Err(error) => panic!("{what}: {error}"),
        Ok(_) => panic!("{what}: no error"),
    }
}

#[test]
fn buffers_are_zeros_at_first_also_where_others_were() {
    let Some(mut gpu) = gpu() else { return };
    for round in 0..3 {
        for count in [1, 5, 1000, 300_000] {
            let buffer = gpu.buffer("zeros", count * 4).unwrap();
            assert_eq!(words_of(&mut gpu, &buffer), vec![0; count], "round {round}");
            gpu.write(&buffer, 0, &vec![u32::MAX; count]);
            gpu.flush_writes().unwrap();
            drop(buffer);
            gpu.forget_buffers();
        }
    }
}

#[test]
fn buffers_have_whole_words_and_never_none() {
    let Some(mut gpu) = gpu() else { return };
    for (asked, given) in [(0, 4), (1, 4), (4, 4), (5, 8), (1023, 1024)] {
        assert_eq!(gpu.buffer("odd", asked).unwrap().bytes(), given);
    }
}

#[test]
fn what_is_written_is_read() {
    let Some(mut gpu) = gpu() else { return };
    let mut rng = StdRng::seed_from_u64(60);
    let buffer = gpu.buffer("words", 1000 * 4).unwrap();
    let mut expected = vec![0; 1000];
    for _ in 0..30 {
        let count = rng.random_range(0..200);
        let first = rng.random_range(0..=1000 - count);
        let written: Vec<u32> = (0..count).map(|_| rng.random()).collect();
        expected[first..first + count].copy_from_slice(&written);
        gpu.write(&buffer, first, &written);
        let range = rng.random_range(0..500)..rng.random_range(500..=1000);
        assert_eq!(gpu.read(&[(&buffer, range.clone())]).unwrap(), expected[range]);
    }
    let bits: Vec<u32> = (0..1000).map(|_| rng.random()).collect();
    let floats: Vec<f32> = bits.iter().map(|bits| f32::from_bits(*bits)).collect();
    gpu.write_f32(&buffer, 0, &floats);
    let read = gpu.read_f32(&[(&buffer, 0..1000)]).unwrap();
    assert_eq!(support::bits(&read), bits);
}

#[test]
fn parts_of_several_buffers_are_read_one_after_the_other() {
    let Some(mut gpu) = gpu() else { return };
    let (first, second) = (words(&mut gpu, &[1, 2, 3, 4]), words(&mut gpu, &[5, 6, 7]));
    let parts = [(&second, 1..3), (&first, 2..2), (&first, 0..3), (&second, 0..1), (&first, 1..2)];
    assert_eq!(gpu.read(&parts).unwrap(), [6, 7, 1, 2, 3, 5, 2]);
    assert!(gpu.read(&[]).unwrap().is_empty());
    // More than before, and then less again.
    let many: Vec<u32> = (0..100_000).collect();
    let large = words(&mut gpu, &many);
    assert_eq!(words_of(&mut gpu, &large), many);
    assert_eq!(gpu.read(&parts[..1]).unwrap(), [6, 7]);
}

#[test]
fn commands_run_in_their_order_after_what_was_written() {
    let Some(mut gpu) = gpu() else { return };
    let kernel = add(&mut gpu);
    let [first, second] = [0; 2].map(|_| words(&mut gpu, &[1, 2, 3, 4]));
    record(&mut gpu, &kernel, &first, 10);
    gpu.copy((&first, 1), (&second, 2), 2);
    gpu.copy((&first, 0), (&second, 0), 0);
    record(&mut gpu, &kernel, &second, 100);
    record(&mut gpu, &kernel, &first, 1000);
    // Writes come before the commands that were not submitted.
    gpu.write(&first, 0, &[5]);
    assert_eq!(gpu.read(&[(&first, 0..4), (&second, 0..4)]).unwrap(), [1015, 1012, 1013, 1014, 101, 102, 112, 113]);
    record(&mut gpu, &kernel, &first, 1);
    gpu.submit().unwrap();
    gpu.write(&first, 0, &[7]);
    record(&mut gpu, &kernel, &first, 1);
    assert_eq!(words_of(&mut gpu, &first), [8, 1014, 1015, 1016]);
}

#[test]
fn discarded_commands_do_not_run() {
    let Some(mut gpu) = gpu() else { return };
    let kernel = add(&mut gpu);
    let buffer = words(&mut gpu, &[1, 2]);
    record(&mut gpu, &kernel, &buffer, 10);
    gpu.copy((&buffer, 0), (&buffer, 1), 1);
    gpu.discard();
    record(&mut gpu, &kernel, &buffer, 100);
    assert_eq!(words_of(&mut gpu, &buffer), [101, 102]);
}

#[test]
fn kernels_are_compiled_once() {
    let Some(mut gpu) = gpu() else { return };
    let [first, second] = [0; 2].map(|_| add(&mut gpu));
    let buffer = words(&mut gpu, &[0]);
    record(&mut gpu, &first, &buffer, 1);
    record(&mut gpu, &second, &buffer, 2);
    assert_eq!(words_of(&mut gpu, &buffer), [3]);
    assert_eq!(format!("{first:?}"), format!("{second:?}"));
}

#[test]
fn dispatches_without_workgroups_do_nothing() {
    let Some(mut gpu) = gpu() else { return };
    let kernel = add(&mut gpu);
    let buffer = words(&mut gpu, &[4]);
    let before = gpu.usage();
    for groups in [[0, 1, 1], [1, 0, 1], [1, 1, 0], [0, u32::MAX, 1]] {
        gpu.dispatch(&kernel, &[&buffer], &[1], groups);
    }
    assert_eq!(since(&gpu, before), [0; 4]);
    assert_eq!(words_of(&mut gpu, &buffer), [4]);
}

#[test]
fn what_a_device_is_used_for_is_counted() {
    let Some(mut gpu) = gpu() else { return };
    let kernel = add(&mut gpu);
    let buffer = gpu.buffer("counted", 400).unwrap();
    words_of(&mut gpu, &buffer);
    let before = gpu.usage();
    gpu.write(&buffer, 0, &[0; 30]);
    gpu.write_f32(&buffer, 0, &[0.0; 5]);
    gpu.write(&buffer, 0, &[]);
    assert_eq!(since(&gpu, before), [0, 0, 0, 140]);
    (0..3).for_each(|_| record(&mut gpu, &kernel, &buffer, 1));
    gpu.submit().unwrap();
    assert_eq!(since(&gpu, before), [3, 1, 0, 140]);
    // There is nothing to submit.
    gpu.submit().unwrap();
    assert_eq!(since(&gpu, before), [3, 1, 0, 140]);
    record(&mut gpu, &kernel, &buffer, 1);
    gpu.read(&[(&buffer, 0..10), (&buffer, 50..51)]).unwrap();
    // With the kernel that says that this is an answer.
    assert_eq!(since(&gpu, before), [5, 2, 44, 140]);
    assert_eq!(gpu.read(&[(&buffer, 0..1)]).unwrap(), [4]);
}

#[test]
fn memory_is_counted_as_long_as_its_buffers_exist() {
    let Some(mut gpu) = gpu() else { return };
    let kernel = add(&mut gpu);
    let kept = words(&mut gpu, &[0; 50_000]);
    // What results are read into is kept.
    words_of(&mut gpu, &kept);
    let before = gpu.allocated_bytes();
    let (first, second) = (gpu.buffer("first", 100_000).unwrap(), gpu.buffer("second", 6).unwrap());
    assert_eq!(gpu.allocated_bytes(), before + 100_008);
    // Kernels remember the buffers that they were given.
    record(&mut gpu, &kernel, &first, 1);
    record(&mut gpu, &kernel, &second, 1);
    assert_eq!(words_of(&mut gpu, &first), vec![1; 25_000]);
    drop(second);
    assert_eq!(gpu.allocated_bytes(), before + 100_000);
    drop(first);
    assert_eq!(gpu.allocated_bytes(), before);
    gpu.forget_buffers();
    assert_eq!(gpu.allocated_bytes(), before);
    record(&mut gpu, &kernel, &kept, 1);
    assert_eq!(words_of(&mut gpu, &kept), vec![1; 50_000]);
    assert_eq!(gpu.allocated_bytes(), before);
}

#[test]
fn too_large_buffers_are_refused_and_the_device_goes_on() {
    let Some(mut gpu) = gpu() else { return };
    let buffer = words(&mut gpu, &[1, 2, 3]);
    let allocated = gpu.allocated_bytes();
    let largest = gpu.max_binding_bytes() as usize;
    for bytes in [largest + 4, largest * 100, usize::MAX / 2 + 1, usize::MAX - 3, usize::MAX] {
        let error = gpu.buffer("everything", bytes).expect_err("too large");
        assert!(matches!(&error, GpuError::OutOfMemory { what, .. } if what == "everything"), "{bytes}: {error}");
        assert!(!error.ends_device());
        let message = error.to_string();
        for part in [gpu.adapter().name.clone(), "everything".to_owned(), bytes.to_string(), largest.to_string()] {
            assert!(message.contains(&part), "`{message}` does not name {part}");
        }
    }
    assert_eq!(gpu.allocated_bytes(), allocated);
    gpu.check().unwrap();
    let kernel = add(&mut gpu);
    record(&mut gpu, &kernel, &buffer, 1);
    assert_eq!(words_of(&mut gpu, &buffer), [2, 3, 4]);
}

#[test]
fn kernels_that_are_no_programs_are_refused_and_the_device_goes_on() {
    let Some(mut gpu) = gpu() else { return };
    let syntax = "fn main( {".to_owned();
    let names = ADD.replace("added;", "nothing;");
    let entry = ADD.replace("main", "other");
    let read_only = ADD.replace("read_write", "read");
    for (source, buffers) in [(syntax, 1), (names, 1), (entry, 1), (read_only, 1), (ADD.replace("main", "main "), 0)] {
        let error = gpu.kernel("broken", source.clone(), buffers, 1).expect_err(&source);
        assert!(matches!(&error, GpuError::Refused { what, .. } if what == "kernel broken"), "{error}");
        let message = error.to_string();
        assert!(message.contains("broken") && message.contains(&gpu.adapter().name), "{message}");
        // It is asked again, and says the same.
        assert_eq!(message_of(gpu.kernel("broken", source, buffers, 1)), message);
    }
    gpu.check().unwrap();
    let (kernel, buffer) = (add(&mut gpu), words(&mut gpu, &[1]));
    record(&mut gpu, &kernel, &buffer, 1);
    assert_eq!(words_of(&mut gpu, &buffer), [2]);
}

#[test]
fn unknown_adapters_are_answered_with_those_that_exist() {
    let adapters = Adapters::find();
    let known: Vec<_> = adapters.descriptions().collect();
    for (index, description) in known.iter().enumerate() {
        assert_eq!(description.index, index);
        assert_eq!(adapters.numbered(index).unwrap(), *description);
    }
    let number = known.len();
    let errors = [
        (message_of(adapters.numbered(number)), format!("number {number}")),
        (message_of(adapters.numbered(usize::MAX)), usize::MAX.to_string()),
        (message_of(adapters.named("no such processor")), "`no such processor`".to_owned()),
        (message_of(Gpu::open(&adapters, number)), format!("number {number}")),
    ];
    for (message, asked) in errors {
        assert!(message.contains(&asked), "`{message}` does not say what was asked for");
        for description in &known {
            let found = format!("gpu:{} is {description}", description.index);
            assert!(message.contains(&found), "`{message}` does not list {found}");
        }
        assert!(!known.is_empty() || message.contains("no driver"), "{message}");
    }
}

#[test]
fn adapters_are_found_by_a_part_of_their_name() {
    let adapters = Adapters::find();
    let names: Vec<String> = adapters.descriptions().map(|description| description.name.to_lowercase()).collect();
    for (description, name) in zip(adapters.descriptions(), &names) {
        let fitting = names.iter().filter(|other| other.contains(name.as_str())).count();
        for asked in [description.name.clone(), name.clone(), name.to_uppercase()] {
            match adapters.named(&asked) {
                Ok(found) => assert_eq!((found, fitting), (description, 1)),
                Err(error) => assert!(fitting > 1 && error.to_string().contains("only"), "{error}"),
            }
        }
    }
    // Every name contains what is empty.
    assert_eq!(adapters.named("").is_ok(), names.len() == 1);
}

#[test]
fn programs_are_never_chosen_but_may_be_the_first_of_all() {
    let adapters = Adapters::find();
    if let Ok(best) = adapters.best() {
        assert!(best.kind.name() != "software" && best.lacks.is_empty());
        assert_eq!(adapters.first().unwrap(), best);
    }
    assert_eq!(adapters.first().is_ok(), adapters.descriptions().next().is_some());
}

#[test]
fn a_device_that_was_given_up_answers_everything_with_that() {
    let Some(mut gpu) = own_gpu() else { return };
    let (kernel, buffer) = (add(&mut gpu), words(&mut gpu, &[1, 2]));
    assert_eq!(words_of(&mut gpu, &buffer), [1, 2]);
    gpu.destroy();
    assert_lost(gpu.check(), "check");
    assert_lost(gpu.buffer("more", 64), "buffer");
    assert_lost(gpu.kernel("new", ADD.replace("+=", "-="), 1, 1), "kernel");
    record(&mut gpu, &kernel, &buffer, 1);
    gpu.write(&buffer, 0, &[5]);
    gpu.copy((&buffer, 0), (&buffer, 1), 1);
    assert_lost(gpu.submit(), "submit");
    assert_lost(gpu.flush_writes(), "flush");
    record(&mut gpu, &kernel, &buffer, 1);
    for words in [0..2, 0..1] {
        assert_lost(gpu.read(&[(&buffer, words)]), "read");
    }
    gpu.discard();
    gpu.forget_buffers();
    gpu.destroy();
    assert_lost(gpu.check(), "check");
    drop(buffer);
    assert!(message_of(gpu.check()).contains(&gpu.adapter().name));
}

#[test]
fn a_device_may_be_given_up_before_anything_was_read() {
    let Some(mut gpu) = own_gpu() else { return };
    let buffer = gpu.buffer("unread", 64).unwrap();
    gpu.destroy();
    assert_lost(gpu.read(&[(&buffer, 0..16)]), "read");
    drop(gpu);
    // Buffers may outlive their device.
    assert_eq!(buffer.bytes(), 64);
}

#[test]
fn what_was_recorded_before_a_device_was_given_up_is_lost_with_it() {
    for submits in [false, true] {
        let Some(mut gpu) = own_gpu() else { return };
        let kernel = add(&mut gpu);
        let buffer = words(&mut gpu, &[0; 100_000]);
        (0..20).for_each(|_| record(&mut gpu, &kernel, &buffer, 1));
        if submits {
            gpu.submit().unwrap();
        }
        gpu.write(&buffer, 0, &[5]);
        gpu.destroy();
        assert_lost(gpu.read(&[(&buffer, 0..1)]), "read");
        assert_lost(gpu.submit(), "submit");
    }
}

#[test]
fn other_devices_go_on_where_one_was_given_up() {
    let Some(given_up) = own_gpu() else { return };
    let Some(mut other) = own_gpu() else { return };
    let (kernel, buffer) = (add(&mut other), words(&mut other, &[1]));
    record(&mut other, &kernel, &buffer, 1);
    given_up.destroy();
    drop(given_up);
    record(&mut other, &kernel, &buffer, 1);
    assert_eq!(words_of(&mut other, &buffer), [3]);
}

#[test]
fn commands_beyond_the_end_of_a_buffer_are_refused() {
    type Command = fn(&mut Gpu, &Buffer) -> Result<(), GpuError>;
    let commands: [Command; 4] = [
        |gpu, buffer| gpu.read(&[(buffer, 3..5)]).map(|_| ()),
        |gpu, buffer| {
            gpu.write(buffer, 4, &[1]);
            gpu.submit()
        },
        |gpu, buffer| {
            gpu.copy((buffer, 2), (buffer, 0), 3);
            gpu.submit()
        },
        |gpu, buffer| {
            // A kernel of one buffer, which is given two.
            let kernel = add(gpu);
            gpu.dispatch(&kernel, &[buffer, buffer], &[1], [1, 1, 1]);
            gpu.submit()
        },
    ];
    for (index, command) in commands.into_iter().enumerate() {
        let Some(mut gpu) = own_gpu() else { return };
        let buffer = values(&mut gpu, &[0.0; 4]);
        let error = command(&mut gpu, &buffer).expect_err("a refusal");
        assert!(matches!(error, GpuError::Refused { .. }), "command {index}: {error}");
        // Nothing that follows can be trusted.
        assert_eq!(gpu.check(), Err(error));
        assert!(gpu.read(&[(&buffer, 0..4)]).is_err());
    }
}
