//! Two hundred replicated stores, two at a time, and the same seed twice.

mod common;

use lichen_simulation::store::run;

use self::common::no_seed_fails;

const SEEDS: u64 = 200;

#[test]
fn no_fault_shows() {
    no_seed_fails(SEEDS, "--store --seed", |seed| run(seed, None, false).violation);
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [3, 13, 22] {
        let (first, second) = (run(seed, None, false), run(seed, None, false));
        assert_eq!(first, second);
        assert_ne!(first.hash, run(seed + 1000, None, false).hash);
    }
}
