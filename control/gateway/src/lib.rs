//! MQTT to sessions to registry, through the embedded broker or another one.
//!
//! The gateway owns one wire session a node. Down it sends the node's desired state, from one watch for all nodes; up
//! come reports, each written under the node's own identity after it was judged; streams carry logs and artifacts.
//!
//! Invariants:
//! - nothing a bus delivers is believed unless the session's seal proves it; a bus can delay and lose, no more;
//! - a node changes its own Node, the status of pods bound to it, and events about those, whatever it sends;
//! - each start of a gateway is granted an owner epoch higher than any before: agents refuse a stale one, the store takes
//!   none of its writes, and it ends when it hears of the newer;
//! - presence is memory: a node that stays connected costs no write;
//! - who was removed or revoked stays out: its key is gone before anything else of it is, and no join that was under way
//!   brings it back.
//!
//! Deliberately absent: which broker carries the messages (see [`bus`]), and forwarding between gateways.

pub mod broker;
pub mod bus;
pub mod external;

mod conditions;
mod desired;
mod feed;
mod happened;
mod hub;
mod item;
mod join;
mod lease;
mod logs;
mod members;
mod node;
mod ownership;
#[cfg(feature = "plant")]
pub mod plant;
mod presence;
mod removal;
mod reports;
mod serve;
mod settle;
mod token;
mod wait;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use lichen_api::{Status, kinds};
use lichen_artifacts::Artifacts;
use lichen_pki::Authority;
use lichen_registry::{ListOptions, LogRequest, LogStream, NodePresence, NodeStreams, Registry, name_of};
use lichen_store::Watch;
use lichen_wire::session::{Limits, Timing};
use rand::RngExt;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use ownership::{INCARNATION, OwnershipError};
pub use removal::{ORDER_ANNOTATION, Order, RESULT_ANNOTATION};
pub use token::{
    Purpose, TOKEN_NAMESPACE, TOKEN_SECRET_TYPE, TokenError, create_token, find_token, new_token, token_of,
    token_secret_name,
};

use crate::bus::{Bus, Publish};
use crate::desired::Desired;
use crate::hub::Nodes;
use crate::node::Input;
use crate::presence::Presence;
use crate::removal::Orders;
use crate::reports::Reporter;

/// How long a node may be without a session until its Ready condition becomes Unknown.
pub const SILENCE_GRACE: Duration = Duration::from_secs(40);

/// How long a node's certificate holds.
pub const NODE_CERTIFICATE_TTL: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// Most news of nodes that wait for the hub.
const EVENTS_QUEUED_MAX: usize = 64;

/// What a gateway is made of.
pub struct Config {
    /// Where objects are read and written.
    pub registry: Registry,
    /// Where nodes' artifacts come from.
    pub artifacts: Artifacts,
    /// The CA that certifies nodes.
    pub authority: Arc<Authority>,
    /// What carries messages.
    pub bus: Box<dyn Bus>,
    /// How long a node may be without a session until it counts as silent.
    pub silence_grace: Duration,
    /// How long a node's certificate holds. It is renewed long before its end.
    pub node_certificate_ttl: Duration,
    /// The bounds of each session.
    pub limits: Limits,
    /// The times of each session.
    pub timing: Timing,
    /// Where fresh random bytes come from.
    pub random: Arc<dyn Fn() -> [u8; 32] + Send + Sync>,
}

impl Config {
    /// A gateway with the usual bounds and times.
    pub fn new(
        registry: Registry,
        artifacts: Artifacts,
        authority: Arc<Authority>,
        bus: Box<dyn Bus>,
    ) -> Config {
        Config {
            registry,
            artifacts,
            authority,
            bus,
            silence_grace: SILENCE_GRACE,
            node_certificate_ttl: NODE_CERTIFICATE_TTL,
            limits: Limits::SERVER,
            timing: Timing::DEFAULT,
            random: Arc::new(|| rand::rng().random()),
        }
    }
}

/// Lets those nodes into the embedded broker that have joined and were not removed.
pub fn admit_members(registry: Registry) -> broker::Admit {
    broker::Admit::by(move |node, public_key| members::admits(&registry, node, public_key))
}

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It could not take over from whoever was the gateway before.
    #[error("cannot become the gateway")]
    Ownership(#[from] OwnershipError),
    /// The nodes could not be read.
    #[error("cannot read the nodes: {0}")]
    Read(#[from] Status),
}

/// What the parts of a gateway share.
pub(crate) struct Shared {
    registry: Registry,
    artifacts: Artifacts,
    publisher: Arc<dyn Publish>,
    reporter: Reporter,
    presence: Arc<Presence>,
    desired: Mutex<Desired>,
    epoch: u64,
    incarnation: u64,
    limits: Limits,
    timing: Timing,
    random: Arc<dyn Fn() -> [u8; 32] + Send + Sync>,
    start: Instant,
    joins: mpsc::Sender<join::Request>,
    orders: Arc<Orders>,
}

impl Shared {
    /// Milliseconds since the gateway's start, by a clock that never goes back.
    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// A running gateway.
pub struct Gateway {
    links: NodeLinks,
    tasks: JoinSet<()>,
}

impl Gateway {
    /// Takes over the nodes and begins to serve them. When this returns, the gateway listens.
    pub async fn start(config: Config) -> Result<Gateway, StartError> {
        let Config {
            registry,
            artifacts,
            authority,
            bus,
            silence_grace,
            node_certificate_ttl,
            limits,
            timing,
            random,
        } = config;
        let (epoch, registry) = ownership::take_over(&registry).await?;
        let fresh = u64::from_be_bytes(*random().first_chunk().unwrap_or(&[0; 8]));
        let incarnation = ownership::incarnation(&registry, fresh).await?;
        let start = Instant::now();
        let presence = Arc::new(Presence::default());
        for node in registry.list(&kinds::node::RESOURCE, None, &ListOptions::default()).await?.items {
            presence.expect(name_of(&node), conditions::last_heard(&node), start);
        }
        let (joins, joins_in) = mpsc::channel(join::JOINS_QUEUED_MAX);
        let (hub, events) = mpsc::channel(EVENTS_QUEUED_MAX);
        let shared = Arc::new(Shared {
            reporter: Reporter::new(registry.clone(), presence.clone(), silence_grace, hub.clone()),
            publisher: bus.publisher(),
            registry: registry.clone(),
            artifacts,
            presence: presence.clone(),
            desired: Mutex::default(),
            epoch,
            incarnation,
            limits,
            timing,
            random,
            start,
            joins,
            orders: Arc::default(),
        });
        tracing::info!(epoch, "the gateway takes over");
        let watch = feed::begin(&shared).await;
        let nodes = Arc::new(Nodes::default());
        let joiner = join::Joiner {
            registry: registry.clone(),
            authority,
            publisher: shared.publisher.clone(),
            certificate_ttl: node_certificate_ttl,
            hub,
        };
        let remover =
            removal::Remover { shared: shared.clone(), nodes: nodes.clone(), told_for: node_certificate_ttl };
        let mut parts = JoinSet::new();
        parts.spawn(presence.clone().run(registry, silence_grace, epoch));
        parts.spawn(joiner.run(joins_in));
        parts.spawn(remover.run());
        parts.spawn(hub::run(shared.clone(), nodes.clone(), bus, events));
        let mut tasks = JoinSet::new();
        tasks.spawn(until_taken_over(shared, watch, parts, nodes.clone()));
        Ok(Gateway { links: NodeLinks { nodes, presence }, tasks })
    }

    /// The way to the nodes, for the API server.
    pub fn links(&self) -> NodeLinks {
        self.links.clone()
    }

    /// Says goodbye to every node and ends every task.
    pub async fn shutdown(mut self) {
        self.tasks.shutdown().await;
        self.links.nodes.stop().await;
    }
}

/// Feeds the parts of a gateway until another one takes over; then says goodbye to every node, so that it turns there.
async fn until_taken_over(shared: Arc<Shared>, watch: Watch, mut parts: JoinSet<()>, nodes: Arc<Nodes>) {
    match feed::run(shared, watch).await {
        feed::End::TakenOver => {
            tracing::info!("another gateway has taken over; this one ends");
            parts.shutdown().await;
            nodes.stop().await;
        }
        feed::End::Closed => while parts.join_next().await.is_some() {},
    }
}

/// The way to the nodes. Cheap to clone.
#[derive(Clone)]
pub struct NodeLinks {
    nodes: Arc<Nodes>,
    presence: Arc<Presence>,
}

impl NodePresence for NodeLinks {
    fn last_heard(&self, node: &str) -> Option<Timestamp> {
        self.presence.last_heard(node)
    }
}

impl NodeStreams for NodeLinks {
    fn logs<'a>(&'a self, node: &'a str, request: LogRequest) -> BoxFuture<'a, Result<LogStream, Status>> {
        Box::pin(async move {
            let gone = || Status::service_unavailable(format!("node {node} is not connected"));
            let inputs = self.nodes.inputs(node).ok_or_else(gone)?;
            let request = logs::encode(&request)?;
            let (reply, answer) = oneshot::channel();
            inputs.send(Input::Logs { request, reply }).await.map_err(|_| gone())?;
            logs::begin(answer.await.map_err(|_| gone())??).await
        })
    }
}
