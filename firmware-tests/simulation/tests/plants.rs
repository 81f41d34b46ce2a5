//! Bugs are planted, and found. A test program of its own: what is planted is planted in the whole process.

use std::collections::BTreeSet;
use std::time::Duration;

use lichen_simulation::{Assets, PLANTS, Size, run};

/// Within how many seeds each bug shows.
const SEEDS_MAX: u64 = 40;
/// Few nodes, and much trouble: some bugs need several things to go wrong at once.
const SIZE: Size =
    Size { servers: 3, nodes: 5, actions: 100, faults: 150, trouble: Duration::from_secs(600) };

#[test]
fn planted_bugs_are_found() {
    let assets = Assets::new().expect("a temporary directory");
    let mut found = BTreeSet::new();
    for plant in PLANTS {
        let planted = plant.plant();
        let mut others = Vec::new();
        let seed = (0..SEEDS_MAX).find(|seed| match run(*seed, Some(SIZE), &assets, false).violation {
            Some(violation) if violation.invariant == plant.breaks => true,
            other => {
                others.extend(other.map(|violation| violation.to_string()));
                false
            }
        });
        drop(planted);
        let seed =
            seed.unwrap_or_else(|| panic!("{} was not found in {SEEDS_MAX} seeds: {others:?}", plant.name));
        println!("{} is found by seed {seed}", plant.name);
        found.insert(seed);
    }
    for seed in found {
        let report = run(seed, Some(SIZE), &assets, false);
        assert_eq!(report.violation, None, "seed {seed} fails with nothing planted");
    }
}
