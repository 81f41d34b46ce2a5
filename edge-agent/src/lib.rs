//! Composition of a node, and what the binary `lichen-agent` runs.
//!
//! [`Agent::start`] takes a plain [`Config`], joins the cluster if the data directory holds no identity yet,
//! registers the node and keeps its pods running, with or without the control plane, until
//! [`Agent::shutdown`].
//!
//! One task, the core, decides: it feeds what happens to the pods' machines and makes their state durable before
//! it lets anything start. Everything that waits runs beside it.

mod actions;
mod addresses;
mod arguments;
mod artifacts;
mod broker;
mod clock;
mod config;
mod core;
mod env;
mod events;
mod exit;
mod facts;
mod host;
mod identity;
mod images;
mod leave;
mod logs;
mod node;
mod objects;
mod probe;
mod process;
mod renewal;
mod spec;
mod sync;
#[cfg(test)]
mod testing;
mod uplink;
mod volumes;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

pub use arguments::Arguments;
pub use artifacts::{Failure, Images, Prepared};
pub use broker::BrokerArguments;
pub use config::{Config, StartError};
pub use core::Parts;
pub use host::Host;
use lichen_engine::ProfileId;
use lichen_link::{Link, LinkEvent};
pub use lichen_net::AddressMode;
use lichen_net::{Proxy, ProxyConfig};
use lichen_state::{Change, Checkpoint, Contents, Identity, Space};
use lichen_wire::body::SyncPoint;
use lichen_wire::heapless;
use lichen_wire::keys::NodeKey;
use lichen_wire::session::{AgentConfig, Limits, Timing};
pub use lichen_workload::oci::shim::run as oci_shim;
use lichen_workload::{OciConfig, Runtime, Runtimes, WasmConfig};
pub use node::Machine;
use rand::RngExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tracing::warn;
pub use uplink::{ByteStream, Uplink};

use crate::artifacts::{Artifacts, State};
use crate::core::Core;
use crate::host::Local;
use crate::renewal::Renewal;
use crate::uplink::Outbox;

/// Most answers of tasks that wait for the core; tasks wait when there are more.
const MESSAGES_MAX: usize = 1024;

/// A running node.
pub struct Agent {
    node_name: String,
    running: Running,
    link: Link,
    renewing: JoinSet<()>,
}

impl Agent {
    /// Starts a node with the runtimes for components and for OCI containers. The program that calls this has the hidden
    /// command `oci-shim DIR`, which is [`oci_shim`]. Returns once its local parts stand: pods out of the
    /// checkpoint come up and the node registers in the background. Without an identity in the data directory
    /// the join is awaited first.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: Config) -> Result<Self, StartError> {
        config.validate()?;
        let oci = OciConfig::new(config.data_dir.join("oci"));
        let runtime = Runtimes::new(&WasmConfig::default(), oci, || clock::now().into())?;
        Self::start_with(config, Arc::new(runtime)).await
    }

    /// Starts a node with a runtime of the caller's.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start_with(config: Config, runtime: Arc<dyn Runtime>) -> Result<Self, StartError> {
        config.validate()?;
        let (checkpoint, mut contents) = open(&config).await?;
        let broker = match (&config.broker, contents.broker.take()) {
            (Some(told), _) => told.clone(),
            (None, Some(kept)) => broker::kept(kept),
            (None, None) => return Err(StartError::NoBroker),
        };
        let identity = match contents.identity.take() {
            Some(identity) if identity.node_name == config.node_name => identity,
            Some(identity) => {
                return Err(StartError::OtherNode {
                    dir: config.data_dir,
                    found: identity.node_name,
                    wanted: config.node_name,
                });
            }
            None => {
                let identity = identity::obtain(&config, &broker).await?;
                let (checkpoint, change) = (checkpoint.clone(), Change::Identity(identity.clone()));
                blocking(&config.data_dir, move || Ok(checkpoint.commit(&[change])?)).await?;
                identity
            }
        };
        let (kept, change) = (checkpoint.clone(), Change::Broker(broker::keep(&broker)));
        blocking(&config.data_dir, move || Ok(kept.commit(&[change])?)).await?;
        let tls = identity::tls(&broker, &identity)?;
        let session = session(&config, &identity, &contents);
        let mut link = lichen_link::Config::new(broker.address.clone(), tls, session);
        link.login = broker.login.clone();
        link.retry_max = config.retry_max;
        let (link, events) = Link::spawn(link);
        let (node_name, ca_pem) = (config.node_name.clone(), identity.ca_pem.clone());
        let build = Build { config, runtime, checkpoint: checkpoint.clone(), contents, ca_pem };
        let running = build.run(Arc::new(link.handle()), events).await;
        let connected = running.connected.clone();
        let renewal = Renewal { identity, broker, checkpoint, link: link.handle(), connected };
        let mut renewing = JoinSet::new();
        renewing.spawn(renewal.run());
        Ok(Self { node_name, running, link, renewing })
    }

    /// The node's name.
    pub fn node_name(&self) -> &str {
        &self.node_name
    }

    /// Stops every component with a grace, says goodbye to the control plane and closes the checkpoint. Pods are
    /// not deleted: the next start brings them back under the same names and UIDs.
    pub async fn shutdown(mut self) {
        self.renewing.shutdown().await;
        self.running.stop().await;
        self.link.shutdown().await;
    }

    /// Completes when the control plane has told the node to leave and it did: nothing of it runs, and what made it a node
    /// is wiped. Can be cancelled.
    pub async fn left(&mut self) {
        if self.running.left.wait_for(|left| *left).await.is_err() {
            // A core that has ended otherwise has not left.
            std::future::pending::<()>().await;
        }
    }
}

/// A core and what hands on its reports, running.
pub struct Running {
    stop: Option<oneshot::Sender<()>>,
    core: JoinHandle<()>,
    outbox: JoinHandle<()>,
    /// Whether a session stands.
    connected: watch::Receiver<bool>,
    /// Whether the node has left the cluster.
    left: watch::Receiver<bool>,
}

impl Running {
    /// Stops every component with a grace and writes what is known.
    pub async fn stop(mut self) {
        // A core that is gone has stopped.
        let _ = self.stop.take().map(|stop| stop.send(()));
        if let Err(error) = (&mut self.core).await {
            warn!(%error, "the agent's core did not end well");
        }
    }
}

impl Drop for Running {
    /// As a crash ends them: nothing is said and nothing more is written.
    fn drop(&mut self) {
        self.core.abort();
        self.outbox.abort();
    }
}

impl Parts {
    /// Starts a core that knows what the checkpoint does. `uplink` takes its reports, `events` is what the session says.
    pub fn start(
        self,
        contents: &Contents,
        uplink: Arc<dyn Uplink>,
        events: mpsc::Receiver<LinkEvent>,
    ) -> Running {
        let (messages, inbox) = mpsc::channel(MESSAGES_MAX);
        let outbox = Outbox::default();
        let reporter = tokio::spawn(outbox.clone().run(uplink));
        let (stop, stopped) = oneshot::channel();
        let (connected, left) = (self.connected.subscribe(), watch::Sender::new(false));
        let leaves = left.subscribe();
        let core = Core::new(self, contents, outbox, messages).run(events, inbox, stopped, left);
        Running { stop: Some(stop), core: tokio::spawn(core), outbox: reporter, connected, left: leaves }
    }
}

/// What a node is built from, once it knows who it is.
struct Build {
    config: Config,
    runtime: Arc<dyn Runtime>,
    checkpoint: Arc<Checkpoint>,
    contents: Contents,
    ca_pem: String,
}

impl Build {
    async fn run(self, uplink: Arc<dyn Uplink>, events: mpsc::Receiver<LinkEvent>) -> Running {
        let Self { config, runtime, checkpoint, contents, ca_pem } = self;
        if let Err(error) = runtime.adopt().await {
            warn!(%error, "what ran before cannot be taken back");
        }
        sweep(&config.data_dir, &contents).await;
        let (connected_to, connected) = watch::channel(false);
        let artifacts = Artifacts {
            dir: config.data_dir.join("artifacts"),
            profile: ProfileId::host().to_string(),
            ca_pem,
            uplink: uplink.clone(),
            connected,
            runtime: runtime.clone(),
            checkpoint: checkpoint.clone(),
            state: State::restore(contents.space(Space::Image)).into(),
        };
        let proxy = ProxyConfig::new(config.address_mode, rand::rng().random::<u32>() as usize);
        let parts = Parts {
            config: Arc::new(config),
            host: Arc::new(Local),
            runtime,
            images: Arc::new(artifacts),
            proxy: Some(Proxy::new(proxy)),
            checkpoint,
            connected: connected_to,
        };
        parts.start(&contents, uplink, events)
    }
}

async fn open(config: &Config) -> Result<(Arc<Checkpoint>, Contents), StartError> {
    let dir = config.data_dir.clone();
    blocking(&config.data_dir, move || {
        let (checkpoint, contents) = Checkpoint::open(&dir)?;
        Ok((Arc::new(checkpoint), contents))
    })
    .await
}

/// Runs what blocks on the disk.
async fn blocking<T: Send + 'static>(
    dir: &Path,
    work: impl FnOnce() -> Result<T, StartError> + Send + 'static,
) -> Result<T, StartError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(StartError::Io { path: dir.to_owned(), source: std::io::Error::other(error) }),
    }
}

fn session(config: &Config, identity: &Identity, contents: &Contents) -> AgentConfig {
    AgentConfig {
        node: fit(&config.node_name),
        key: NodeKey::from_bytes(identity.session_key),
        boot_id: rand::rng().random(),
        agent_version: fit(env!("CARGO_PKG_VERSION")),
        profile: fit(&ProfileId::host().to_string()),
        epoch_seen: contents.sync.epoch,
        synced: contents.sync.synced.map(|(incarnation, version)| SyncPoint { incarnation, version }),
        limits: Limits::SERVER,
        timing: Timing::DEFAULT,
    }
}

/// As much of a text as fits; the names and versions given here do.
fn fit<const N: usize>(text: &str) -> heapless::String<N> {
    let mut out = heapless::String::new();
    for character in text.chars() {
        if out.push(character).is_err() {
            break;
        }
    }
    out
}

/// Removes what pods left behind that the checkpoint no longer knows.
async fn sweep(dir: &Path, contents: &Contents) {
    let known: BTreeSet<String> = contents.space(Space::Pod).map(|(uid, _)| uid.to_owned()).collect();
    let pods = dir.join("pods");
    let swept = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        let entries = match std::fs::read_dir(&pods) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            if !known.contains(&*entry.file_name().to_string_lossy()) {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    });
    if !matches!(swept.await, Ok(Ok(()))) {
        warn!(dir = %dir.display(), "what earlier pods left could not be removed");
    }
}

#[cfg(test)]
mod tests;
