//! Bugs are planted in the store, and found. A test program of its own: what is planted is planted in the whole process.

use std::collections::BTreeSet;

use lichen_simulation::{STORE_PLANTS, store};

/// Within how many seeds each bug shows.
const SEEDS_MAX: u64 = 60;

#[test]
fn planted_bugs_are_found() {
    let mut found = BTreeSet::new();
    for plant in STORE_PLANTS {
        let planted = plant.plant();
        let mut others = Vec::new();
        let seed = (0..SEEDS_MAX).find(|seed| match store::run(*seed, None, false).violation {
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
        let report = store::run(seed, None, false);
        assert_eq!(report.violation, None, "seed {seed} fails with nothing planted");
    }
}
