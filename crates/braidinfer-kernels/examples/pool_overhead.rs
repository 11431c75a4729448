//! What a job costs: `cargo run --release -p braidinfer-kernels --example pool_overhead [threads]`.

#![allow(clippy::print_stdout, reason = "the output of an example")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use braidinfer_kernels::Pool;

const ROUNDS: usize = 200_000;

fn main() -> std::io::Result<()> {
    let threads = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(2);
    let mut pool = Pool::new(threads)?;
    println!("{threads} threads");
    report("empty tasks, one per thread", times(ROUNDS, || pool.run(threads, &|_, _| ())));
    report("the same, each waits until all have begun", times(ROUNDS, || together(&mut pool)));
    for micros in [1, 5, 20] {
        let length = Duration::from_micros(micros);
        let inline = median(times(ROUNDS / 20, || busy(length)));
        let mut over = times(ROUNDS / 20, || pool.run(threads, &|_, _| busy(length)));
        over.iter_mut().for_each(|nanos| *nanos -= inline);
        report(&format!("tasks of {micros} us, one per thread, beyond one such task"), over);
    }
    report("the wake-up of a worker that sleeps", wake_ups(&mut pool));
    Ok(())
}

/// The duration of each of so many calls, in nanoseconds.
fn times(rounds: usize, mut call: impl FnMut()) -> Vec<f64> {
    let mut timed = || {
        let start = Instant::now();
        call();
        start.elapsed().as_nanos() as f64
    };
    (0..rounds).map(|_| timed()).collect()
}

/// A job in which every thread takes part.
fn together(pool: &mut Pool) {
    let begun = AtomicUsize::new(0);
    let threads = pool.threads();
    pool.run(threads, &|_, _| {
        begun.fetch_add(1, Ordering::Relaxed);
        let mut looks = 0;
        while begun.load(Ordering::Relaxed) < threads {
            looks += 1;
            if looks % 256 == 0 {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
    });
}

fn busy(length: Duration) {
    let start = Instant::now();
    while start.elapsed() < length {
        std::hint::spin_loop();
    }
}

/// From the call of `run` until a worker that was asleep runs a task.
fn wake_ups(pool: &mut Pool) -> Vec<f64> {
    let mut all = Vec::new();
    for _ in 0..300 {
        std::thread::sleep(Duration::from_millis(2));
        let awake = AtomicBool::new(false);
        all.extend(times(1, || {
            pool.run(2, &|_, thread| {
                awake.fetch_or(thread > 0, Ordering::Relaxed);
                while !awake.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
            });
        }));
    }
    all
}

fn median(mut nanos: Vec<f64>) -> f64 {
    nanos.sort_by(f64::total_cmp);
    nanos[nanos.len() / 2]
}

fn report(what: &str, nanos: Vec<f64>) {
    let least = nanos.iter().copied().fold(f64::INFINITY, f64::min);
    let mean = nanos.iter().sum::<f64>() / nanos.len() as f64;
    println!("{what}: {least:.0} ns at least, {:.0} ns median, {mean:.0} ns mean", median(nanos));
}
