//! `lichen compile-worker`: compiles one component and ends. The server runs it, limited, for whoever needs code.

use std::io::{Read, Write};

use anyhow::{Context, Result};
use lichen_engine::ProfileId;

/// Compiles the component on standard input for a profile; the code goes to standard output.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The engine profile to compile for.
    #[arg(long)]
    profile: String,
}

/// Runs the command. Its errors end up in a pod's status.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let profile: ProfileId =
        arguments.profile.parse().context("the node's lichen-agent is not of the server's version")?;
    let mut component = Vec::new();
    let limit = lichen_engine::COMPONENT_BYTES_MAX as u64 + 1;
    std::io::stdin().lock().take(limit).read_to_end(&mut component).context("reading the component")?;
    let code = lichen_engine::compile(&component, &profile)?;
    let mut out = std::io::stdout().lock();
    out.write_all(&code).and_then(|()| out.flush()).context("writing the code")
}
