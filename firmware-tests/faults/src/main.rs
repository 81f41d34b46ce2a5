//! Plays a schedule of faults against a control plane of real processes.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use lichen_faults::{Options, run};
use lichen_firmware_tests::mounts;

/// Tells the second process that it is in namespaces of its own.
const DIR: &str = "LICHEN_FAULTS_DIR";

/// Plays a schedule of faults against a control plane of real processes, and checks what clients see of it. Needs root's
/// rights, since each member gets a network and a disk of its own.
#[derive(Parser)]
struct Arguments {
    /// How long faults come.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// What determines which.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many members there are.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=7))]
    members: u8,
    /// The program to be tried [default: the one beside this one].
    #[arg(long, value_name = "FILE")]
    lichen: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let own = std::env::current_exe()?;
    if let Some(dir) = std::env::var_os(DIR) {
        let lichen = arguments.lichen.unwrap_or_else(|| own.with_file_name("lichen"));
        let options = Options {
            lichen: lichen
                .canonicalize()
                .with_context(|| format!("{}: build it, or name another with --lichen", lichen.display()))?,
            members: usize::from(arguments.members),
            length: Duration::from_secs(arguments.minutes * 60),
            seed: arguments.seed,
        };
        ensure!(run(&options, dir.as_ref())?, "it can't be played here");
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(mounts::available(), "it takes root's rights and `unshare` of util-linux");
    let dir = tempfile::Builder::new().prefix("lichen-faults-").tempdir()?;
    let status = mounts::machine(&own).args(std::env::args_os().skip(1)).env(DIR, dir.path()).status()?;
    if status.success() {
        return Ok(ExitCode::SUCCESS);
    }
    let kept = dir.keep();
    eprintln!(
        "replay: cargo run -p lichen-faults -- {}",
        std::env::args().skip(1).collect::<Vec<_>>().join(" ")
    );
    eprintln!("logs, disks and histories are in {}", kept.display());
    Ok(ExitCode::FAILURE)
}
