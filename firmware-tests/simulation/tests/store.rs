//! Two hundred replicated stores, two at a time, and the same seed twice.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use lichen_simulation::store::run;

const SEEDS: u64 = 200;
const THREADS: usize = 2;

#[test]
fn no_fault_shows() {
    let (next, failed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS {
                        return;
                    }
                    if let Some(violation) = run(seed, None, false).violation {
                        let replay =
                            format!("cargo run -p lichen-simulation -- --store --seed {seed} --trace");
                        failed.lock().expect("no panic").push(format!("{violation}\n    replay: {replay}"));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic");
    assert!(failed.is_empty(), "{} of {SEEDS} seeds fail:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [3, 13, 22] {
        let (first, second) = (run(seed, None, false), run(seed, None, false));
        assert_eq!(first, second);
        assert_ne!(first.hash, run(seed + 1000, None, false).hash);
    }
}
