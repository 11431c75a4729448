use std::sync::atomic::AtomicU32;

use proptest::prelude::*;

use super::*;
use crate::samples::cases;

const THREADS: [usize; 3] = [1, 2, 4];

/// Fewer rounds under Miri, which interprets every access.
const STRESS: u32 = if cfg!(miri) { 20 } else { 100_000 };

const CASES: u32 = if cfg!(miri) { 2 } else { 64 };

fn pool(threads: usize) -> Pool {
    Pool::new(threads).unwrap()
}

fn message(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => (*panic.downcast::<&str>().unwrap()).to_owned(),
    }
}

fn panic_of(run: impl FnOnce()) -> String {
    message(catch_unwind(AssertUnwindSafe(run)).unwrap_err())
}

#[test]
fn every_index_runs_exactly_once_under_a_thread_of_the_pool() {
    for threads in THREADS {
        let mut pool = pool(threads);
        assert_eq!(pool.threads(), threads);
        let counts = (0..40).chain([100, 257, 1000]);
        for tasks in counts.filter(|tasks| !cfg!(miri) || tasks % 13 == 1) {
            let runs: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
            pool.run(tasks, &|index, thread| {
                assert!(thread < threads);
                runs[index].fetch_add(1, Ordering::Relaxed);
            });
            assert!(runs.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{tasks} tasks, {threads} threads");
        }
    }
}

#[test]
fn a_thread_index_belongs_to_one_task_at_a_time() {
    let mut pool = pool(4);
    let busy: [AtomicBool; 4] = Default::default();
    for _ in 0..if cfg!(miri) { 3 } else { 1000 } {
        pool.run(20, &|_, thread| {
            assert!(!busy[thread].swap(true, Ordering::Relaxed));
            std::hint::spin_loop();
            busy[thread].store(false, Ordering::Relaxed);
        });
    }
}

/// The caller must see plain writes of the tasks, and the tasks those of the caller; each round has another closure.
fn stress(mut pool: Pool, rounds: u32, tasks: usize) {
    let mut sums = vec![0u32; tasks];
    let mut expected = 0;
    for round in 0..rounds {
        pool.for_each(Chunks::new(&mut sums, 1), |_, sum, _| sum[0] += round);
        expected += round;
        assert!(sums.iter().all(|&sum| sum == expected), "round {round}: {sums:?}");
        if expected > u32::MAX / 2 {
            sums.fill(0);
            expected = 0;
        }
    }
}

#[test]
fn many_tiny_runs_on_two_threads() {
    stress(pool(2), STRESS, 2);
}

#[test]
fn many_tiny_runs_on_more_threads_than_cores() {
    stress(pool(4), STRESS, 7);
}

#[test]
fn workers_that_always_go_to_sleep_miss_no_run() {
    for threads in [2, 4] {
        stress(Pool::with_spin(threads, Duration::ZERO).unwrap(), STRESS / 5, 3);
    }
}

/// The first task ends only when another thread has run the second one.
fn run_tasks_on_two_threads(pool: &mut Pool) {
    let met = AtomicBool::new(false);
    pool.run(2, &|_, thread| {
        if thread == 0 {
            while !met.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
        } else {
            met.store(true, Ordering::Relaxed);
        }
    });
}

/// Comes back so much later, in order to meet a worker at another point of its way to sleep.
fn later(microseconds: u64) {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_micros(microseconds) {
        std::hint::spin_loop();
    }
}

/// Comes back when a worker has gone to sleep since the last ring, which the worker says itself.
fn wait_until_asleep(pool: &Pool) {
    while !pool.state.wakeup.0.sleeping.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
}

#[test]
fn workers_that_sleep_wake_up() {
    for threads in [2, 4] {
        let mut pool = pool(threads);
        for pause in [0, 50, 100, 150, 1_000] {
            later(pause);
            run_tasks_on_two_threads(&mut pool);
        }
        for _ in 0..3 {
            wait_until_asleep(&pool);
            run_tasks_on_two_threads(&mut pool);
        }
    }
}

/// Notifies at every point of a worker's way to sleep: the test would hang if a notification were missed.
#[test]
fn no_notification_is_missed() {
    for (threads, rounds) in [(2, STRESS / 5), (4, STRESS / 20)] {
        let mut pool = Pool::with_spin(threads, Duration::from_micros(1)).unwrap();
        for round in 0..rounds {
            for _ in 0..round % 97 {
                std::hint::spin_loop();
            }
            run_tasks_on_two_threads(&mut pool);
        }
    }
}

#[test]
fn idle_workers_go_to_sleep() {
    let mut pool = pool(2);
    pool.run(4, &|_, _| ());
    assert_eq!(pool.workers[0].thread().name(), Some("braidinfer-1"));
    wait_until_asleep(&pool);
}

#[test]
fn a_panic_resumes_on_the_caller_and_the_pool_stays_usable() {
    for threads in THREADS {
        let mut pool = pool(threads);
        for bad in [0, 1, 7, 19] {
            let found = panic_of(|| pool.run(20, &|index, _| assert!(index != bad, "task {index}")));
            assert_eq!(found, format!("task {bad}"));
            let runs = AtomicU32::new(0);
            pool.run(20, &|_, _| {
                runs.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(runs.into_inner(), 20);
        }
    }
}

#[test]
fn only_one_of_many_panics_resumes() {
    /// A payload that panics when it is dropped.
    struct Awkward;
    impl Drop for Awkward {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    let mut pool = pool(4);
    for _ in 0..10 {
        let outcome = catch_unwind(AssertUnwindSafe(|| pool.run(9, &|_, _| std::panic::panic_any(Awkward))));
        let payload = outcome.unwrap_err().downcast::<Awkward>();
        std::mem::forget(payload);
    }
    run_tasks_on_two_threads(&mut pool);
}

#[test]
fn no_thread_is_in_the_closure_when_a_panic_resumes() {
    let mut pool = pool(4);
    let (inside, panics) = (AtomicU32::new(0), AtomicBool::new(false));
    let wait_for = |is_so: &dyn Fn() -> bool| {
        while !is_so() {
            std::thread::yield_now();
        }
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        pool.run(8, &|index, _| {
            inside.fetch_add(1, Ordering::Relaxed);
            // The first task is the caller's. It panics while another one runs, which goes on for a while.
            if index == 0 {
                wait_for(&|| inside.load(Ordering::Relaxed) > 1);
                panics.store(true, Ordering::Relaxed);
            } else {
                wait_for(&|| panics.load(Ordering::Relaxed));
                later(2_000);
            }
            inside.fetch_sub(1, Ordering::Relaxed);
            assert!(index > 0);
        });
    }));
    assert!(outcome.is_err());
    assert_eq!(inside.into_inner(), 0);
}

#[test]
fn pools_without_threads_are_rejected_and_pools_can_be_dropped_at_any_time() {
    assert_eq!(Pool::new(0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    for pause in [0, 10, 100, 300] {
        for threads in THREADS {
            let mut pool = pool(threads);
            pool.run(3, &|_, _| ());
            later(pause);
        }
    }
    assert!(default_threads() >= 1);
}

#[test]
fn a_pool_moves_between_threads() {
    let mut pool = pool(2);
    run_tasks_on_two_threads(&mut pool);
    let mut pool = std::thread::spawn(move || {
        run_tasks_on_two_threads(&mut pool);
        pool
    })
    .join()
    .unwrap();
    run_tasks_on_two_threads(&mut pool);
}

#[test]
fn chunks_cover_the_slice() {
    for threads in THREADS {
        let mut pool = pool(threads);
        for (len, chunk) in [(0, 3), (1, 3), (3, 3), (4, 3), (100, 7), (100, 1), (5, usize::MAX)] {
            let mut data = vec![usize::MAX; len];
            pool.for_each(Chunks::new(&mut data, chunk), |index, part, _| {
                assert_eq!(part.len(), chunk.min(len - index * chunk));
                part.fill(index);
            });
            assert!(data.iter().enumerate().all(|(at, &index)| index == at / chunk), "{data:?}");
        }
    }
}

#[test]
fn slices_are_split_together() {
    let mut pool = pool(2);
    let (mut left, mut right, mut third) = (vec![0; 10], vec![0; 5], vec![0; 15]);
    pool.for_each((Chunks::new(&mut left, 4), Chunks::new(&mut right, 2)), |index, (left, right), _| {
        left.fill(index);
        right.fill(index);
    });
    assert_eq!((&left[..], &right[..]), (&[0, 0, 0, 0, 1, 1, 1, 1, 2, 2][..], &[0, 0, 1, 1, 2][..]));
    let parts = (Chunks::new(&mut left, 4), Ranges::new(&mut third, &[1, 2, 9]), Items::new(&mut right, &[0, 3, 4]));
    pool.for_each(parts, |index, (left, third, right), _| {
        left.fill(index + 10);
        third.fill(index + 20);
        *right = index + 30;
    });
    assert_eq!(left, [10, 10, 10, 10, 11, 11, 11, 11, 12, 12]);
    assert_eq!(third, [0, 20, 21, 21, 21, 21, 21, 21, 21, 22, 22, 22, 22, 22, 22]);
    assert_eq!(right, [30, 0, 1, 31, 32]);
}

#[test]
fn each_thread_has_its_own_value() {
    for threads in THREADS {
        let mut pool = pool(threads);
        let mut seen = PerThread::new(threads, Vec::new);
        let mut data = vec![0; 100];
        pool.for_each_with(&mut seen, Chunks::new(&mut data, 1), |index, part, seen| {
            part[0] = index;
            seen.push(index);
        });
        let mut indices: Vec<usize> = seen.iter_mut().flat_map(|seen| seen.drain(..)).collect();
        indices.sort_unstable();
        assert_eq!(indices, data);
    }
}

#[test]
fn invalid_splits_panic() {
    let mut data = [0; 8];
    let mut other = [0; 8];
    let starts = "the starts of ranges";
    let indices = "the indices of items";
    assert_eq!(panic_of(|| _ = Chunks::new(&mut data, 0)), "a chunk has at least one element");
    for (offsets, problem) in [
        (&[1, 1][..], "must increase strictly, but 1 comes after 1"),
        (&[0, 3, 2], "must increase strictly, but 2 comes after 3"),
        (&[0, 8], "must be less than the length 8, but the last one is 8"),
        (&[9], "must be less than the length 8, but the last one is 9"),
    ] {
        assert_eq!(panic_of(|| _ = Ranges::new(&mut data, offsets)), format!("{starts} {problem}"));
        assert_eq!(panic_of(|| _ = Items::new(&mut data, offsets)), format!("{indices} {problem}"));
    }
    let mut pool = pool(2);
    let unequal = (Chunks::new(&mut data, 4), Chunks::new(&mut other, 3));
    assert!(panic_of(|| pool.for_each(unequal, |_, _, _| ())).contains("equally many parts"));
    let mut few = PerThread::new(1, || 0);
    let found = panic_of(|| pool.for_each_with(&mut few, Chunks::new(&mut data, 4), |_, _, _| ()));
    assert_eq!(found, "1 values for 2 threads");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..cases(CASES) })]

    #[test]
    fn ranges_and_items_match_a_sequential_loop(
        chosen in prop::collection::btree_set(0usize..60, 0..30),
        tail in 1usize..10,
        threads in prop::sample::select(&THREADS[..]),
    ) {
        let offsets: Vec<usize> = chosen.into_iter().collect();
        let len = offsets.last().map_or(0, |last| last + tail);
        let (mut ranges, mut items) = (vec![0; len], vec![0; len]);
        let mut pool = pool(threads);
        pool.for_each(Ranges::new(&mut ranges, &offsets), |index, part, _| {
            part.iter_mut().for_each(|item| *item += index + 1);
        });
        pool.for_each(Items::new(&mut items, &offsets), |index, item, _| *item += index + 1);
        for at in 0..len {
            prop_assert_eq!(ranges[at], offsets.partition_point(|&start| start <= at));
            prop_assert_eq!(items[at], offsets.binary_search(&at).map_or(0, |index| index + 1));
        }
    }
}
