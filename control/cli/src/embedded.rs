//! Server and agents in this process: what `up` and `demo` start.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jiff::{Span, SpanRelativeTo};
use lichen_agent::{Agent, BrokerArguments};
use lichen_control::{Access, Broker, Join, Pace, Patience, Server};

use crate::limits::raise_descriptors;

/// How long the token lives with which an embedded agent joins; it joins at once.
const TOKEN_TTL: Duration = Duration::from_secs(10 * 60);
const KUBECONFIG_FILE: &str = "admin.kubeconfig";
/// The folder of a server within its data directory.
pub(crate) const SERVER_DIR: &str = "server";

/// Where a server listens and keeps its state.
#[derive(clap::Args, Clone)]
pub(crate) struct ServerArguments {
    /// Where the cluster's state lies [default: a folder under the user's state directory].
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where the API server listens.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:6443")]
    pub(crate) api_addr: SocketAddr,
    /// Where the server's own MQTT broker listens.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8883")]
    pub(crate) mqtt_addr: SocketAddr,
    /// Meet the nodes at this MQTT broker, mqtts://HOST:PORT, and start none of the server's own.
    #[arg(long, value_name = "URL", conflicts_with = "mqtt_addr")]
    pub(crate) mqtt_broker: Option<String>,
    #[command(flatten)]
    pub(crate) broker: BrokerArguments,
    /// A further host name or address that clients and nodes reach this server by. May be given several times.
    #[arg(long = "name", value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// How many seconds pods stay on a node that is not ready, unless they say so themselves [default: for good;
    /// Kubernetes has 300].
    #[arg(long, value_name = "SECONDS")]
    pub(crate) default_not_ready_toleration_seconds: Option<u32>,
    /// How many seconds pods stay on a node that is out of reach, unless they say so themselves [default: for good;
    /// Kubernetes has 300].
    #[arg(long, value_name = "SECONDS")]
    pub(crate) default_unreachable_toleration_seconds: Option<u32>,
    /// Where the key is that encrypts Secrets in the server's files [default: encryption.key in its data directory, made
    /// on the first start].
    #[arg(long, value_name = "FILE")]
    pub(crate) encryption_key_file: Option<PathBuf>,
    /// How long a node's certificate holds; it is renewed by itself when most of that has passed.
    #[arg(long, value_name = "DURATION", default_value = "90d", value_parser = duration)]
    pub(crate) node_certificate_ttl: Duration,
}

impl ServerArguments {
    /// Where nodes and server meet, to be shown.
    pub(crate) fn meeting_point(&self, server: &Server) -> String {
        match (&self.mqtt_broker, server.mqtt_addr()) {
            (Some(broker), _) => broker.clone(),
            (None, address) => address.unwrap_or(self.mqtt_addr).to_string(),
        }
    }

    /// The data directory: as given, or `what` under the user's state directory.
    pub(crate) fn data_dir(&self, what: &str) -> Result<PathBuf> {
        match &self.data_dir {
            Some(folder) => Ok(folder.clone()),
            None => Ok(state_dir()?.join(what)),
        }
    }

    /// The broker, and how embedded agents reach it if it is another's.
    fn broker(&self) -> Result<Broker> {
        match &self.mqtt_broker {
            Some(broker) => Ok(Broker::External(self.broker.access(broker)?)),
            None if self.broker.is_empty() => Ok(Broker::Embedded(self.mqtt_addr)),
            None => bail!("--mqtt-* says how to reach a broker: say which with --mqtt-broker"),
        }
    }

    /// Starts the server and leaves a kubeconfig in its data directory.
    pub(crate) async fn start(&self, data_dir: &Path, membership: Membership) -> Result<(Server, PathBuf)> {
        raise_descriptors();
        let own = std::env::current_exe().context("finding this program's own file")?;
        let kubeconfig = data_dir.join(KUBECONFIG_FILE);
        let config = lichen_control::Config {
            kubeconfig: Some(kubeconfig.clone()),
            api_addr: self.api_addr,
            broker: self.broker()?,
            hostname: hostname(),
            names: self.names.clone(),
            encryption_key_file: self.encryption_key_file.clone(),
            node_certificate_ttl: self.node_certificate_ttl,
            patience: Patience {
                not_ready_seconds: self.default_not_ready_toleration_seconds,
                unreachable_seconds: self.default_unreachable_toleration_seconds,
            },
            peer_addr: membership.peer_addr,
            cluster_init: membership.cluster_init,
            join: membership.join,
            pace: membership.pace,
            compile_worker: vec![own.to_string_lossy().into_owned(), "compile-worker".into()],
            ..lichen_control::Config::new(data_dir.join(SERVER_DIR))
        };
        Ok((Server::start(config).await?, kubeconfig))
    }
}

/// What a server is to be to others.
#[derive(Default)]
pub(crate) struct Membership {
    pub(crate) cluster_init: bool,
    pub(crate) join: Option<Join>,
    pub(crate) peer_addr: Option<SocketAddr>,
    pub(crate) pace: Pace,
}

/// A server and its agents in one process.
pub(crate) struct Cluster {
    /// The server.
    pub(crate) server: Server,
    /// The administrator's kubeconfig.
    pub(crate) kubeconfig: PathBuf,
    agents: Vec<Agent>,
}

impl Cluster {
    /// Starts a server and one agent for each name, which joins on its first start.
    pub(crate) async fn start(
        arguments: &ServerArguments,
        data_dir: &Path,
        nodes: &[String],
    ) -> Result<Self> {
        let (server, kubeconfig) = arguments.start(data_dir, Membership::default()).await?;
        let mut cluster = Self { server, kubeconfig, agents: Vec::new() };
        for node in nodes {
            match cluster.start_agent(arguments, data_dir, node).await {
                Ok(agent) => cluster.agents.push(agent),
                Err(error) => {
                    cluster.shutdown().await;
                    return Err(error.context(format!("starting the agent {node}")));
                }
            }
        }
        Ok(cluster)
    }

    async fn start_agent(&self, arguments: &ServerArguments, data_dir: &Path, node: &str) -> Result<Agent> {
        let broker = match (arguments.broker()?, self.server.mqtt_addr()) {
            (Broker::External(access), _) => access,
            (Broker::Embedded(address), bound) => {
                let mut address = bound.unwrap_or(address);
                if address.ip().is_unspecified() {
                    address.set_ip([127, 0, 0, 1].into());
                }
                Access::new(address.to_string())
            }
        };
        let mut config = lichen_agent::Config::new(node, data_dir.join(node), "");
        config.broker = Some(broker);
        config.token = Some(self.server.create_token(TOKEN_TTL).await?);
        Ok(Agent::start(config).await?)
    }

    /// Stops the agents, then the server.
    pub(crate) async fn shutdown(self) {
        for agent in self.agents {
            agent.shutdown().await;
        }
        self.server.shutdown().await;
    }
}

/// A duration as people write it: `90d`, `24h`, `30m`.
pub(crate) fn duration(text: &str) -> Result<Duration> {
    let parsed: Span = text.parse().with_context(|| format!("{text:?} is no duration such as 24h"))?;
    let parsed = parsed.to_duration(SpanRelativeTo::days_are_24_hours())?;
    match Duration::try_from(parsed) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => bail!("a duration must be more than nothing"),
    }
}

/// Waits for Ctrl-C or a request to terminate.
pub(crate) async fn interrupted() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        done = tokio::signal::ctrl_c() => done?,
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// `$XDG_STATE_HOME/lichen`, or `~/.local/state/lichen`.
pub(crate) fn state_dir() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_STATE_HOME").filter(|path| !path.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(
            std::env::var_os("HOME").context("neither XDG_STATE_HOME nor HOME is set; use --data-dir")?,
        )
        .join(".local/state"),
    };
    Ok(base.join("lichen"))
}

/// The machine's name.
fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "lichen".to_owned() } else { name.trim().to_owned() }
}
