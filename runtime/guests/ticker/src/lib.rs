//! Prints a line each second until it is asked to stop: `tick 1`, `tick 2`, ... and `stopping` at the end.
//!
//! `TICK_MS` changes the time between two lines.

use std::env;

wit_bindgen::generate!({ world: "lichen:workload/command", path: "../../../wit", generate_all });

use exports::wasi::cli::run::Guest;
use lichen::workload::lifecycle;
use wasi::clocks::monotonic_clock::subscribe_duration;
use wasi::io::poll::poll;

const TICK_MS_DEFAULT: u64 = 1000;

struct Ticker;

impl Guest for Ticker {
    fn run() -> Result<(), ()> {
        let tick_ms = env::var("TICK_MS").ok().and_then(|text| text.parse().ok()).unwrap_or(TICK_MS_DEFAULT);
        let stopping = lifecycle::stopping();
        for tick in 1_u64.. {
            println!("tick {tick}");
            let timer = subscribe_duration(tick_ms * 1_000_000);
            if poll(&[&timer, &stopping]).contains(&1) {
                break;
            }
        }
        println!("stopping");
        Ok(())
    }
}

export!(Ticker);
