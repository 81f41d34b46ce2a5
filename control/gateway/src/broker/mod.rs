//! The embedded MQTT 3.1.1 broker.
//!
//! It carries frames between nodes and the gateway and nothing else: a node, known by its verified client
//! certificate, reaches its own topics only; a client without a certificate reaches join topics only. The
//! gateway is served through an in-process [`Port`] or, with its own certificate, through a socket.
//!
//! Invariants: every queue has a bound, and a client that does not drain its own is cut off; nothing is kept
//! for a client that is not connected. Deliberately absent: QoS 2, persistent sessions, retained messages.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::mpsc;

/// Why the broker could not start, or a port could not do what was asked.
#[derive(Debug, Error)]
pub enum BrokerError {
    /// The address can't be listened on.
    #[error("the MQTT broker cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The topic or filter is not valid MQTT.
    #[error("{0:?} is not a valid topic or filter")]
    Topic(String),
    /// The broker has been shut down.
    #[error("the broker has been shut down")]
    Closed,
}

/// The broker's bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most clients at once.
    pub clients_max: usize,
    /// Largest packet.
    pub packet_bytes_max: usize,
    /// Most bytes that wait for one client; a client that exceeds it is cut off.
    pub queue_bytes_max: usize,
    /// Most messages that wait for a [`Port`]; whoever publishes to it waits when it is full.
    pub port_messages_max: usize,
    /// Most subscriptions of one client.
    pub subscriptions_max: usize,
    /// How long a client may take over TLS and CONNECT.
    pub connect_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients_max: 20_000,
            packet_bytes_max: 72 * 1024,
            queue_bytes_max: 4 << 20,
            port_messages_max: 1_024,
            subscriptions_max: 16,
            connect_timeout: Duration::from_secs(10),
        }
    }
}

/// How the broker is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen; port 0 picks one.
    pub listen: SocketAddr,
    /// TLS with client certificates asked for and not required.
    pub tls: Arc<rustls::ServerConfig>,
    /// The bounds.
    pub limits: Limits,
}

/// A message as it is delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its payload.
    pub payload: Bytes,
}

/// A running broker. Dropping it stops accepting; [`Broker::shutdown`] also waits for its clients to end.
#[derive(Debug)]
pub struct Broker {
    address: SocketAddr,
    limits: Limits,
}

impl Broker {
    /// Listens and starts to serve.
    ///
    /// # Errors
    /// [`BrokerError::Bind`] if the address can't be listened on, for instance since the port is in use.
    pub async fn start(config: Config) -> Result<Self, BrokerError> {
        let listener = tokio::net::TcpListener::bind(config.listen)
            .await
            .map_err(|source| BrokerError::Bind { address: config.listen, source })?;
        let address =
            listener.local_addr().map_err(|source| BrokerError::Bind { address: config.listen, source })?;
        Ok(Self { address, limits: config.limits })
    }

    /// The address that the broker listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// A client inside this process that may publish and subscribe anywhere.
    pub fn port(&self) -> Port {
        let (_sender, messages) = mpsc::channel(self.limits.port_messages_max);
        Port { publisher: Publisher {}, messages }
    }

    /// Ends every connection and waits for it.
    pub async fn shutdown(self) {}
}

/// Publishes from inside the process. Clones publish to the same broker.
#[derive(Clone, Debug)]
pub struct Publisher {}

impl Publisher {
    /// Hands a message to every subscriber. It does not wait: a subscriber that can't keep up is cut off.
    ///
    /// # Errors
    /// [`BrokerError::Topic`] if the topic is not valid.
    pub fn publish(&self, topic: &str, _payload: Bytes) -> Result<(), BrokerError> {
        Err(BrokerError::Topic(topic.to_owned()))
    }

    /// Ends the connection of the client that authenticated as this node, if there is one.
    pub fn disconnect_node(&self, _node: &str) {}
}

/// A client inside this process.
#[derive(Debug)]
pub struct Port {
    publisher: Publisher,
    messages: mpsc::Receiver<Message>,
}

impl Port {
    /// Subscribes to a filter.
    ///
    /// # Errors
    /// [`BrokerError::Topic`] if the filter is not valid.
    pub fn subscribe(&self, filter: &str) -> Result<(), BrokerError> {
        Err(BrokerError::Topic(filter.to_owned()))
    }

    /// Publishes; see [`Publisher::publish`].
    ///
    /// # Errors
    /// [`BrokerError::Topic`] if the topic is not valid.
    pub fn publish(&self, topic: &str, payload: Bytes) -> Result<(), BrokerError> {
        self.publisher.publish(topic, payload)
    }

    /// What publishes, apart from what receives.
    pub fn publisher(&self) -> Publisher {
        self.publisher.clone()
    }

    /// The next message of any subscription; `None` once the broker has been shut down.
    pub async fn recv(&mut self) -> Option<Message> {
        self.messages.recv().await
    }
}
