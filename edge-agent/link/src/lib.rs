//! The MQTT adapter for a wire session: it keeps a node linked with its gateway through any broker.
//!
//! One task owns the session and every stream, another the connection. It reconnects with a jittered back-off, and
//! hands out what arrives as [`LinkEvent`]s. Frames go at QoS 0, since the session acknowledges and repeats
//! them by itself.
//!
//! Deliberately absent: what an item or a report means, and any state on disk.

mod carrier;
mod driver;
mod join;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
pub use carrier::Carried;
use carrier::Carrier;
use driver::{Command, Driver, Ends, Report};
pub use join::{JoinConfig, JoinError, JoinOutcome, Venue, join, renew};
pub use lichen_mqtt::Login;
use lichen_mqtt::{Backoff, Endpoint};
use lichen_wire::keys::NodeKey;
use lichen_wire::session::{AgentConfig, Config as SessionConfig, LostReason, Session};
use lichen_wire::topic::{Channel, PRESENCE_DOWN, Topic};
use rustls::ClientConfig;
pub use stream::{LinkStream, StreamError};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// Most events that wait for the agent; when there are more, the link takes nothing from the broker.
pub const EVENTS_MAX: usize = 256;
/// Most commands that wait for the link's task.
const COMMANDS_MAX: usize = 64;
/// Most things that the carrier has brought and the driver has not taken.
const CARRIED_MAX: usize = 16;
/// Largest MQTT packet: a frame and its topic.
const PACKET_BYTES_MAX: usize = lichen_wire::FRAME_BYTES_MAX + 1024;
/// How long a shutdown may take.
const SHUTDOWN_MAX: Duration = Duration::from_secs(5);

/// How a link is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// The broker, `host:port`.
    pub broker: String,
    /// The name that the broker's certificate must have; the host of `broker` unless told otherwise.
    pub server_name: Option<String>,
    /// Whom to believe and what to show: the cluster's CA and the node's certificate, unless the broker is another's.
    pub tls: Arc<rustls::ClientConfig>,
    /// User and password, for a broker that wants them.
    pub login: Option<Login>,
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
            login: None,
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
    /// The node is no longer of the cluster: it should end its pods, forget who it was, and report that it did.
    Leave,
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
    driver: JoinHandle<()>,
    carrier: JoinHandle<()>,
}

impl Link {
    /// Starts a link and returns it with its events. It ends when it is shut down or its events are dropped.
    pub fn spawn(config: Config) -> (Self, mpsc::Receiver<LinkEvent>) {
        let node = config.session.node.clone();
        let (tls, refused) = (watch::Sender::new(config.tls.clone()), watch::Sender::new(false));
        // A node whose name is not valid could not have joined; its topics are refused by every broker.
        let topic = |channel| Topic::Node { node: &node, channel }.to_string();
        let carrier = Carrier {
            endpoint: Endpoint {
                broker: config.broker,
                server_name: config.server_name,
                tls: config.tls,
                login: config.login,
                client_id: node.to_string(),
                keepalive: config.keepalive,
                timeout: config.connect_timeout,
                will: Some((topic(Channel::Presence), Bytes::from_static(PRESENCE_DOWN))),
                subscribe: vec![topic(Channel::Down)],
                packet_bytes_max: PACKET_BYTES_MAX,
            },
            uplink: topic(Channel::Up).into(),
            presence: topic(Channel::Presence).into(),
            backoff: Backoff::new(config.retry_min, config.retry_max),
            tls: tls.subscribe(),
            refused: refused.clone(),
        };
        let (mut link, events) = Self::over(config.session, rand::random(), |driver| carrier.run(driver));
        link.handle.tls = Some(tls.into());
        link.handle.refused = refused;
        (link, events)
    }

    /// Starts a link over a carrier of the caller's, which carries until the receiver of what it brings is closed.
    /// `seed` is fresh random bytes for the session.
    pub fn over<C>(
        session: AgentConfig,
        seed: [u8; 32],
        carrier: impl FnOnce(mpsc::Sender<Carried>) -> C,
    ) -> (Self, mpsc::Receiver<LinkEvent>)
    where
        C: Future<Output = ()> + Send + 'static,
    {
        let (commands, command_end) = mpsc::channel(COMMANDS_MAX);
        let (event_end, events) = mpsc::channel(EVENTS_MAX);
        let (carried_end, carried) = mpsc::channel(CARRIED_MAX);
        let session = Session::new(SessionConfig::Agent(session), seed);
        let (driver, controls) = Driver::new(session, commands.downgrade());
        let ends = Ends { commands: command_end, carried, events: event_end };
        let link = Self {
            handle: LinkHandle { commands, tls: None, refused: watch::Sender::new(false) },
            driver: tokio::spawn(driver.run(ends, controls)),
            carrier: tokio::spawn(carrier(carried_end)),
        };
        (link, events)
    }

    /// What reports and opens streams.
    pub fn handle(&self) -> LinkHandle {
        self.handle.clone()
    }

    /// Says goodbye, closes the connection and waits for both tasks to end.
    pub async fn shutdown(mut self) {
        // If the driver has ended already there is nobody to tell.
        let _ = self.handle.commands.send(Command::Shutdown).await;
        let ending = async {
            let _ = (&mut self.driver).await;
            let _ = (&mut self.carrier).await;
        };
        let _ = tokio::time::timeout(SHUTDOWN_MAX, ending).await;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
        self.carrier.abort();
    }
}

/// Reports and opens streams. Clones act on the same link.
#[derive(Clone, Debug)]
pub struct LinkHandle {
    commands: mpsc::Sender<Command>,
    /// What the carrier connects with; none if it is the caller's.
    tls: Option<Arc<watch::Sender<Arc<ClientConfig>>>>,
    refused: watch::Sender<bool>,
}

impl LinkHandle {
    /// Queues a report until the gateway has made it durable, connected or not. A report of the same kind, key
    /// and UID that still waits is replaced. It waits while the outbox is full.
    ///
    /// # Errors
    /// If the link has been shut down or the report is too large.
    pub async fn report(&self, kind: &str, key: &str, uid: &str, body: Vec<u8>) -> Result<(), LinkError> {
        let (reply, queued) = oneshot::channel();
        let [kind, key, uid] = [kind, key, uid].map(str::to_owned);
        self.send(Command::Report(Report { kind, key, uid, body, reply })).await?;
        queued.await.map_err(|_| LinkError::Closed)?
    }

    /// Opens a stream to the gateway, for instance to pull an artifact.
    ///
    /// # Errors
    /// If there is no session, or no room for another stream.
    pub async fn open_stream(&self, request: Vec<u8>) -> Result<LinkStream, LinkError> {
        let (reply, opened) = oneshot::channel();
        self.send(Command::Open(request, reply)).await?;
        opened.await.map_err(|_| LinkError::Closed)?
    }

    /// From now on the node uses this key, and shows another certificate if there is one to show. The session is made
    /// anew; reports that are not settled are kept.
    ///
    /// # Errors
    /// If the link has been shut down.
    pub async fn replace(&self, key: NodeKey, tls: Option<Arc<ClientConfig>>) -> Result<(), LinkError> {
        let (done, replaced) = oneshot::channel();
        self.send(Command::Replace(key, done)).await?;
        replaced.await.map_err(|_| LinkError::Closed)?;
        if let (Some(carrier), Some(tls)) = (&self.tls, tls) {
            // Whether the broker takes this one is yet to be seen.
            self.refused.send_replace(false);
            carrier.send_replace(tls);
        }
        Ok(())
    }

    /// Whether the broker did not take the node's certificate when it was last shown. Only a hint: it may be the broker's
    /// fault.
    pub fn refused(&self) -> watch::Receiver<bool> {
        self.refused.subscribe()
    }

    async fn send(&self, command: Command) -> Result<(), LinkError> {
        self.commands.send(command).await.map_err(|_| LinkError::Closed)
    }
}
