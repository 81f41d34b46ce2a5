//! `lichen oci-shim`: stands between an OCI container and the agents that come and go. An agent runs it.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// Attends to the container of a directory until it has ended.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The container's directory.
    dir: PathBuf,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    lichen_agent::oci_shim(&arguments.dir).context("attending to a container")
}
