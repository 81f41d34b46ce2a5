//! `lichen server`: the control plane.

use std::net::SocketAddr;

use anyhow::{Result, bail};
use lichen_control::{Join, Pace};

use crate::embedded::{Membership, ServerArguments, duration, interrupted};

/// Runs the control plane until it is interrupted.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: ServerArguments,
    /// Let other servers join this one, as members of one control plane.
    #[arg(long, conflicts_with = "join")]
    cluster_init: bool,
    /// Join the control plane that this server belongs to, with a token made by `lichen token create --member`. Neither
    /// is needed again once the server has joined.
    #[arg(long, value_name = "URL", requires = "token")]
    join: Option<String>,
    /// A token for members.
    #[arg(
        long,
        value_name = "TOKEN",
        requires = "join",
        env = "LICHEN_MEMBER_TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,
    /// Where other members reach this one; kept for later starts [default: 0.0.0.0:6444 with --cluster-init or --join].
    #[arg(long, value_name = "IP:PORT")]
    peer_addr: Option<SocketAddr>,
    /// How often the member that leads lets the others hear from it, 50ms to 1s: the same for all. They look for another
    /// leader after six to seven of these. Longer ones are for slow machines and links.
    #[arg(long, value_name = "DURATION", default_value = "125ms", value_parser = pace)]
    heartbeat_interval: Pace,
}

fn pace(text: &str) -> Result<Pace> {
    let interval = duration(text)?;
    let [shortest, longest] = Pace::BOUNDS;
    if !(shortest..=longest).contains(&interval) {
        bail!("an interval must be from {shortest:?} to {longest:?}");
    }
    Ok(Pace::new(interval))
}

/// Runs the command.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let data_dir = arguments.server.data_dir("server")?;
    let join = arguments.join.clone().zip(arguments.token.clone());
    let membership = Membership {
        cluster_init: arguments.cluster_init,
        join: join.map(|(server, token)| Join { server, token }),
        peer_addr: arguments.peer_addr,
        pace: arguments.heartbeat_interval,
    };
    let (mut server, kubeconfig) = arguments.server.start(&data_dir, membership).await?;
    println!("API server    https://{}", server.api_addr());
    println!("MQTT broker   {}", arguments.server.meeting_point(&server));
    if let Some(address) = server.peer_address() {
        println!("Members       {address}");
    }
    println!("kubeconfig    {}", kubeconfig.display());
    println!("A node joins with a token: lichen token create --kubeconfig {}", kubeconfig.display());
    let failed = tokio::select! {
        interrupted = interrupted() => {
            interrupted?;
            None
        }
        why = server.failed() => Some(why),
    };
    server.shutdown().await;
    match failed {
        Some(why) => bail!(why),
        None => Ok(()),
    }
}
