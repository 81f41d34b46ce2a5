//! `lichen agent`: a node, for those who have this program at hand; devices run the smaller `lichen-agent`.

use anyhow::Result;
use lichen_agent::Agent;

use crate::embedded::{interrupted, state_dir};

/// Runs a node until it is interrupted.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The MQTT broker of the cluster, `host:port`.
    #[arg(long, value_name = "HOST:PORT")]
    server: String,
    /// A join token; needed on the first start only.
    #[arg(long, env = "LICHEN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// The node's name.
    #[arg(long)]
    node_name: String,
    /// Where the node's state lies [default: a folder under the user's state directory].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<std::path::PathBuf>,
}

/// Runs the command.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let data_dir = match &arguments.data_dir {
        Some(folder) => folder.clone(),
        None => state_dir()?.join("agents").join(&arguments.node_name),
    };
    let mut config = lichen_agent::Config::new(&arguments.node_name, data_dir, &arguments.server);
    config.token = arguments.token.clone();
    let agent = Agent::start(config).await?;
    println!("node {} runs", agent.node_name());
    interrupted().await?;
    agent.shutdown().await;
    Ok(())
}
