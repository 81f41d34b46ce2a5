//! Two minutes of the schedule of faults, over real processes: `cargo run -p lichen-faults` plays it for as long as one
//! likes.

use std::path::Path;
use std::time::Duration;

use lichen_faults::{Options, run};
use lichen_firmware_tests::mounts;

const LICHEN: &str = env!("CARGO_BIN_EXE_lichen");

#[test]
fn two_minutes_of_faults() {
    mounts::in_own_machine("two_minutes_of_faults", |dir| {
        let options = Options {
            lichen: Path::new(LICHEN).into(),
            members: 3,
            length: Duration::from_secs(120),
            seed: 1,
        };
        // Where it can't be played that has been said, and is a failure in CI.
        run(&options, dir).unwrap();
    });
}
