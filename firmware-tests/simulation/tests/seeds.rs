//! Three hundred clusters, two at a time, and the same seed twice.

mod common;

use lichen_simulation::{Assets, Size, run};

use self::common::no_seed_fails;

const SEEDS: u64 = 300;

#[test]
fn every_invariant_holds() {
    let assets = Assets::new().expect("a temporary directory");
    no_seed_fails(SEEDS, "--seed", |seed| run(seed, None, &assets, false).violation);
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
