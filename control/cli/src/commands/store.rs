//! `lichen store`: what can be done with the files of a server that does not run.

use std::path::PathBuf;

use anyhow::{Result, bail};

/// The folder of the store within a server's data directory.
const STORE: &str = "server/store";

/// Looks after the files of a server that does not run.
#[derive(clap::Subcommand)]
pub(crate) enum Store {
    /// Read everything a store holds and say whether it is whole. Changes nothing.
    Check {
        /// The data directory of the server, or the store's own.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

/// Runs the command.
pub(crate) async fn run(command: &Store) -> Result<()> {
    let Store::Check { dir } = command;
    let within = dir.join(STORE);
    let dir = if within.is_dir() { within } else { dir.clone() };
    let report = tokio::task::spawn_blocking(move || lichen_store::check(&dir)).await??;
    println!("{report}");
    if !report.problems.is_empty() {
        bail!("the store is damaged");
    }
    Ok(())
}
