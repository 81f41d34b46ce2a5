//! The `lichen-agent` command: one node.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use lichen_agent::Arguments;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// A node of a Lichen cluster.
#[derive(Parser)]
#[command(name = "lichen-agent", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the node until it is interrupted.
    Run(Box<Arguments>),
    /// Stands between a container and the agents that come and go.
    #[command(hide = true)]
    OciShim {
        /// The container's directory.
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(node) => run(*node),
        Command::OciShim { dir } => match lichen_agent::oci_shim(&dir) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("lichen-agent: attending to a container: {error}");
                ExitCode::FAILURE
            }
        },
    }
}

#[tokio::main]
async fn run(node: Arguments) -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(terminal).with_writer(std::io::stderr).init();
    match node.run(interrupted()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lichen-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn interrupted() -> anyhow::Result<()> {
    let mut terminated = signal(SignalKind::terminate()).context("listening for signals")?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted.context("listening for signals"),
        _ = terminated.recv() => Ok(()),
    }
}
