//! Does one thing after the other, as its arguments say: what tests need of a command.
//!
//! `print TEXT`, `warn TEXT` (a line on stdout, on stderr), `env NAME` (prints it), `read FILE`, `write FILE` (prints the
//! content or the error), `allocate MIB`, `connect ADDRESS`, `lines N` (prints that many), `spin`, `panic`, `stop` (waits
//! until it is asked to stop), `exit CODE`.

use std::env;

wit_bindgen::generate!({ world: "lichen:workload/command", path: "../../../wit", generate_all });

use exports::wasi::cli::run::Guest;
use lichen::workload::lifecycle;
use wasi::cli::environment::get_arguments;
use wasi::cli::exit::exit_with_code;

struct Probe;

impl Guest for Probe {
    fn run() -> Result<(), ()> {
        let mut arguments = get_arguments().into_iter().skip(1);
        while let Some(action) = arguments.next() {
            match action.as_str() {
                "spin" => loop {
                    std::hint::black_box(());
                },
                "panic" => panic!("as asked"),
                "stop" => lifecycle::stopping().block(),
                _ => act(&action, &arguments.next().unwrap_or_default())?,
            }
        }
        Ok(())
    }
}

fn act(action: &str, value: &str) -> Result<(), ()> {
    match action {
        "print" => println!("{value}"),
        "warn" => eprintln!("{value}"),
        "env" => println!("{}", env::var(value).unwrap_or_else(|error| error.to_string())),
        "read" => match std::fs::read_to_string(value) {
            Ok(text) => println!("{text}"),
            Err(error) => println!("error: {}", error.kind()),
        },
        "write" => match std::fs::write(value, "written") {
            Ok(()) => println!("written"),
            Err(error) => println!("error: {}", error.kind()),
        },
        "allocate" => {
            let mib: usize = value.parse().map_err(drop)?;
            println!("{}", std::hint::black_box(vec![1_u8; mib << 20]).len());
        }
        "connect" => match std::net::TcpStream::connect(value) {
            Ok(_) => println!("connected"),
            Err(error) => println!("error: {}", error.kind()),
        },
        "lines" => (0..value.parse::<u64>().map_err(drop)?).for_each(|line| println!("line {line}")),
        "exit" => exit_with_code(value.parse().map_err(drop)?),
        _ => return Err(eprintln!("no such action: {action}")),
    }
    Ok(())
}

export!(Probe);
