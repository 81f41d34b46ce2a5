//! `lichen agent`: a node, for those who have this program at hand; devices run the smaller `lichen-agent`.

use anyhow::Result;

use crate::embedded::interrupted;

/// Runs a node until it is interrupted.
#[derive(clap::Args, Clone)]
pub(crate) struct Arguments {
    #[command(flatten)]
    node: lichen_agent::Arguments,
}

/// Runs the command.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    arguments.node.clone().run(interrupted()).await
}
