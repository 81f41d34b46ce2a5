//! What is asked of both simulations.
#![allow(dead_code, reason = "each test uses what it needs")]

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use lichen_simulation::{Plant, Violation};

/// How many seeds are played at a time.
const THREADS: usize = 2;

/// Plays the first seeds, none of which may break an invariant. `replay` is how one is played again, before its number.
pub(crate) fn no_seed_fails(seeds: u64, replay: &str, run: impl Fn(u64) -> Option<Violation> + Sync) {
    let (next, failed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    if let Some(violation) = run(seed) {
                        let text = format!(
                            "{violation}\n    replay: cargo run -p lichen-simulation -- {replay} {seed} --trace"
                        );
                        failed.lock().expect("no panic").push(text);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic");
    assert!(failed.is_empty(), "{} of {seeds} seeds fail:\n{}", failed.len(), failed.join("\n"));
}

/// Plants one bug after the other; each must show within the first seeds, and nothing may without it.
pub(crate) fn plants_are_found(plants: &[Plant], seeds_max: u64, run: impl Fn(u64) -> Option<Violation>) {
    let mut found = BTreeSet::new();
    for plant in plants {
        let planted = plant.plant();
        let mut others = Vec::new();
        let seed = (0..seeds_max).find(|seed| match run(*seed) {
            Some(violation) if violation.invariant == plant.breaks => true,
            other => {
                others.extend(other.map(|violation| violation.to_string()));
                false
            }
        });
        drop(planted);
        let seed =
            seed.unwrap_or_else(|| panic!("{} was not found in {seeds_max} seeds: {others:?}", plant.name));
        println!("{} is found by seed {seed}", plant.name);
        found.insert(seed);
    }
    for seed in found {
        assert_eq!(run(seed), None, "seed {seed} fails with nothing planted");
    }
}
