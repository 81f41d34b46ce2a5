//! Works for a chosen time, then exits with a chosen code.
//!
//! `--ms N` (or `WORK_MS`) is the time, `--code N` (or `EXIT_CODE`) the code; both are 0 by default. It says on stdout when
//! it begins and when it is done, and on stderr when the code is not 0.

use std::env;
use std::time::Duration;

wit_bindgen::generate!({
    world: "lichen:workload/command",
    path: "../../../wit",
    generate_all,
});

use exports::wasi::cli::run::Guest;
use wasi::cli::environment::get_arguments;
use wasi::cli::exit::exit_with_code;

struct Worker;

impl Guest for Worker {
    fn run() -> Result<(), ()> {
        let work_ms = number("--ms", "WORK_MS")?;
        let code = u8::try_from(number("--code", "EXIT_CODE")?).map_err(|_| eprintln!("an exit code is at most 255"))?;
        println!("working for {work_ms} ms");
        std::thread::sleep(Duration::from_millis(work_ms));
        if code == 0 {
            println!("done");
        } else {
            eprintln!("failed with code {code}");
        }
        exit_with_code(code);
        Ok(())
    }
}

/// The number after an argument, else in a variable of the environment, else 0.
fn number(argument: &str, variable: &str) -> Result<u64, ()> {
    let mut arguments = get_arguments().into_iter();
    let given = arguments.find(|text| text == argument).and_then(|_| arguments.next());
    match given.or_else(|| env::var(variable).ok()) {
        None => Ok(0),
        Some(text) => text.parse().map_err(|_| eprintln!("{argument}: {text:?} is not a number")),
    }
}

export!(Worker);
