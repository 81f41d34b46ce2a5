//! Bugs are planted, and found. A test program of its own: what is planted is planted in the whole process.

mod common;

use std::time::Duration;

use lichen_simulation::{Assets, PLANTS, Size, run};

use self::common::plants_are_found;

/// Within how many seeds each bug shows.
const SEEDS_MAX: u64 = 40;
/// Few nodes, and much trouble: some bugs need several things to go wrong at once.
const SIZE: Size =
    Size { servers: 3, nodes: 5, actions: 100, faults: 150, trouble: Duration::from_secs(600) };

#[test]
fn planted_bugs_are_found() {
    let assets = Assets::new().expect("a temporary directory");
    plants_are_found(PLANTS, SEEDS_MAX, |seed| run(seed, Some(SIZE), &assets, false).violation);
}
