//! Bugs are planted in the store, and found. A test program of its own: what is planted is planted in the whole process.

mod common;

use lichen_simulation::{STORE_PLANTS, store};

use self::common::plants_are_found;

/// Within how many seeds each bug shows.
const SEEDS_MAX: u64 = 60;

#[test]
fn planted_bugs_are_found() {
    plants_are_found(STORE_PLANTS, SEEDS_MAX, |seed| store::run(seed, None, false).violation);
}
