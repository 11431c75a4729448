//! A server at saturation, with clients that go away, read slowly or are killed. `BRAIDINFER_SOAK_SECONDS` says for how
//! long; if it is not set, nothing is run. CI takes a minute.

#![allow(clippy::print_stdout, reason = "figures of a long run are for its reader")]

mod support;

use std::env;
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use braidinfer::LoadOptions;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use support::{Connection, Model, TestServer, config, greedy, wait_until, with};

const CLIENTS: usize = 24;

/// What happened to requests.
#[derive(Default)]
struct Counts {
    finished: AtomicUsize,
    left: AtomicUsize,
    refused: AtomicUsize,
}

/// Memory of this process that is not shared, in bytes.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<usize>().ok()).unwrap_or(0) << 10
}

/// One request, by a client of some kind.
fn visit(server: &TestServer, rng: &mut SmallRng, counts: &Counts) {
    let prompt = ["Once upon a time", "The dragon", "Tom had a"][rng.random_range(0..3)];
    let repeated = prompt.repeat(rng.random_range(1..12));
    let stream = rng.random_bool(0.8);
    let body =
        with(greedy(&repeated, rng.random_range(1..200)), json!({"stream": stream, "n": rng.random_range(1..3)}));
    let text = body.to_string();
    let mut connection = Connection::open(server.address);
    let head =
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json";
    connection.send(format!("{head}\r\ncontent-length: {}\r\n\r\n{text}", text.len()).as_bytes());
    let leaves_after = rng.random_bool(0.3).then(|| rng.random_range(0..40));
    let is_slow = rng.random_bool(0.1);
    let status = connection.line().expect("every request is answered");
    if status.contains(" 429 ") {
        counts.refused.fetch_add(1, Ordering::Relaxed);
        return;
    }
    assert!(status.contains(" 200 "), "{status}");
    for line in 0.. {
        if leaves_after.is_some_and(|after| line >= after) {
            counts.left.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if is_slow {
            // Something else in between.
            server.get("/health");
        }
        if connection.line().is_none() {
            break;
        }
    }
    counts.finished.fetch_add(1, Ordering::Relaxed);
}

/// How long to go on.
fn length() -> Option<Duration> {
    let text = env::var("BRAIDINFER_SOAK_SECONDS").ok()?;
    Some(Duration::from_secs(text.parse().expect("BRAIDINFER_SOAK_SECONDS is a number of seconds")))
}

#[test]
fn nothing_leaks_and_nothing_hangs() {
    let Some(length) = length() else {
        // Not `println`, which the test harness captures.
        let _ = writeln!(
            std::io::stderr(),
            "skipped, since BRAIDINFER_SOAK_SECONDS is not set: nothing_leaks_and_nothing_hangs"
        );
        return;
    };
    let options = LoadOptions { max_sequences: 6, max_waiting: 10, ..LoadOptions::default() };
    let server = TestServer::start(config(), Model::Demo(options));
    let (counts, warm) = (Counts::default(), OnceLock::new());
    let begun = Instant::now();
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (server, counts, warm) = (&server, &counts, &warm);
            scope.spawn(move || {
                let mut rng = SmallRng::seed_from_u64(client as u64);
                while begun.elapsed() < length {
                    visit(server, &mut rng, counts);
                    // Half of the time is for everything to have its size.
                    if begun.elapsed() > length / 2 {
                        warm.get_or_init(memory);
                    }
                }
            });
        }
    });
    let (warm, now) = (*warm.get().expect("some client came in the second half"), memory());
    let [finished, left, refused] =
        [&counts.finished, &counts.left, &counts.refused].map(|count| count.load(Ordering::Relaxed));
    println!("{length:?}: {finished} finished, {left} left, {refused} refused; {warm} bytes, then {now}");
    assert!(finished > 0 && left > 0 && refused > 0, "{finished} finished, {left} left, {refused} refused");
    assert!(now < warm + warm / 10 + (16 << 20), "memory grew from {warm} to {now} bytes");
    let unfinished = || server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting");
    assert!(wait_until(|| unfinished() == 0.0), "a request hangs");
    assert_eq!(server.metric("vllm:kv_cache_usage_perc"), 0.0, "a block is not given back");
}
