//! Three hundred clusters, two at a time, and the same seed twice.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use lichen_simulation::{Assets, Size, run};

const SEEDS: u64 = 300;
const THREADS: usize = 2;

#[test]
fn every_invariant_holds() {
    let assets = Assets::new().expect("a temporary directory");
    let (next, failed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS {
                        return;
                    }
                    if let Some(violation) = run(seed, None, &assets, false).violation {
                        let replay = format!("cargo run -p lichen-simulation -- --seed {seed} --trace");
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
fn two_hundred_nodes_get_through_it_too() {
    let assets = Assets::new().expect("a temporary directory");
    let size = Size { nodes: 200, ..Size::of(0) };
    let replay = "cargo run -p lichen-simulation -- --seed 0 --nodes 200 --trace";
    assert_eq!(run(0, Some(size), &assets, false).violation, None, "replay: {replay}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    let assets = Assets::new().expect("a temporary directory");
    for seed in [3, 7, 17, 22] {
        let (first, second) = (run(seed, None, &assets, false), run(seed, None, &assets, false));
        assert_eq!(first, second);
        assert_ne!(first.hash, run(seed + 1000, None, &assets, false).hash);
    }
}
