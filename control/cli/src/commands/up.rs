//! `lichen up`: a whole cluster in one process.

use anyhow::Result;

use crate::embedded::{Cluster, ServerArguments, interrupted};

/// Runs a whole cluster, server and agents, in one process until it is interrupted.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: ServerArguments,
    /// A node's name. May be given several times.
    #[arg(long = "node", value_name = "NAME", default_value = "edge-1")]
    nodes: Vec<String>,
}

/// Runs the command.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let data_dir = arguments.server.data_dir("up")?;
    let cluster = Cluster::start(&arguments.server, &data_dir, &arguments.nodes).await?;
    println!("API server    https://{}", cluster.server.api_addr());
    println!("MQTT broker   {}", arguments.server.meeting_point(&cluster.server));
    println!("nodes         {}", arguments.nodes.join(", "));
    println!("To use it:    export KUBECONFIG={}", cluster.kubeconfig.display());
    interrupted().await?;
    cluster.shutdown().await;
    Ok(())
}
