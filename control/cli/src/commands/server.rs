//! `lichen server`: the control plane.

use anyhow::Result;

use crate::embedded::{ServerArguments, interrupted};

/// Runs the control plane until it is interrupted.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: ServerArguments,
}

/// Runs the command.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let data_dir = arguments.server.data_dir("server")?;
    let (server, kubeconfig) = arguments.server.start(&data_dir).await?;
    println!("API server    https://{}", server.api_addr());
    println!("MQTT broker   {}", arguments.server.meeting_point(&server));
    println!("kubeconfig    {}", kubeconfig.display());
    println!("A node joins with a token: lichen token create --kubeconfig {}", kubeconfig.display());
    interrupted().await?;
    server.shutdown().await;
    Ok(())
}
