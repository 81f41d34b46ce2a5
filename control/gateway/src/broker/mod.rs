//! The embedded MQTT 3.1.1 broker.
//!
//! It carries frames between nodes and the gateway and nothing else: a node, known by its verified client
//! certificate, reaches its own topics only, and only for as long as the gateway knows it; a client without a certificate reaches join topics only. The
//! gateway is served through an in-process [`Port`] or, with its own certificate, through a socket.
//!
//! Invariants: every queue has a bound, and a client that does not drain its own is cut off; nothing is kept
//! for a client that is not connected. Deliberately absent: QoS 2, persistent sessions, retained messages.

mod admission;
mod connection;
mod hub;
#[cfg(test)]
mod tests;
mod trie;

use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use admission::Admit;
use bytes::Bytes;
use hub::Hub;
use lichen_mqtt::Message;
use lichen_mqtt::packet::QoS;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

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
    /// TLS with client certificates asked for and not required.
    pub tls: Arc<rustls::ServerConfig>,
    /// The bounds.
    pub limits: Limits,
    /// Which nodes are let in.
    pub admit: Admit,
}

/// An address that is the broker's whether it runs or not. While it does not, connections are refused at once, so that
/// clients look elsewhere.
#[derive(Debug)]
pub struct Seat {
    socket: Socket,
    address: SocketAddr,
}

impl Seat {
    /// Takes an address; port 0 picks one.
    ///
    /// # Errors
    /// [`BrokerError::Bind`] if it can't be had, for instance since the port is in use.
    pub fn bind(address: SocketAddr) -> Result<Self, BrokerError> {
        let bind = |address: SocketAddr| {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            // Connections of an earlier run may linger on the port.
            socket.set_reuse_address(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            let bound = socket.local_addr()?.as_socket().unwrap_or(address);
            Ok(Self { socket, address: bound })
        };
        // A socket keeps its port after it has listened only if it asked for that very port.
        let bound = |seat: Self| if address.port() == 0 { bind(seat.address) } else { Ok(seat) };
        bind(address).and_then(bound).map_err(|source| BrokerError::Bind { address, source })
    }

    /// The address.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    fn listen(&self) -> Result<TcpListener, BrokerError> {
        let listen = || {
            self.socket.listen(BACKLOG_MAX)?;
            TcpListener::from_std(self.socket.try_clone()?.into())
        };
        listen().map_err(|source| BrokerError::Bind { address: self.address, source })
    }
}

/// A running broker. Dropping it ends its connections; [`Broker::shutdown`] also waits for them.
#[derive(Debug)]
pub struct Broker {
    address: SocketAddr,
    hub: Arc<Hub>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Broker {
    /// Listens and starts to serve. One at a time may have a seat.
    ///
    /// # Errors
    /// [`BrokerError::Bind`] if the address can't be listened on.
    pub fn start(seat: &Seat, config: Config) -> Result<Self, BrokerError> {
        let listener = seat.listen()?;
        let address = seat.local_addr();
        let hub = Hub::new(config.limits, config.admit);
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(accept(listener, TlsAcceptor::from(config.tls), Arc::clone(&hub), stopped));
        Ok(Self { address, hub, stop, task })
    }

    /// The address that the broker listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// A client inside this process that may publish and subscribe anywhere.
    pub fn port(&self) -> Port {
        let (sender, messages) = mpsc::channel(self.hub.limits.port_messages_max);
        let id = self.hub.attach(sender);
        Port { publisher: Publisher { hub: Arc::clone(&self.hub) }, id, messages }
    }

    /// Ends every connection and waits for it.
    pub async fn shutdown(self) {
        let _ = self.stop.send(true);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the broker did not end well");
        }
    }
}

/// Accepts connections until it is stopped, then ends them all.
async fn accept(listener: TcpListener, tls: TlsAcceptor, hub: Arc<Hub>, mut stopped: watch::Receiver<bool>) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) if clients.len() < hub.limits.clients_max => {
                    let (hub, tls) = (Arc::clone(&hub), tls.clone());
                    clients.spawn(async move {
                        match connection::serve(hub, tls, socket).await {
                            Ok(()) => tracing::debug!(%peer, "an MQTT client said goodbye"),
                            Err(why) => tracing::debug!(%peer, %why, "an MQTT client's connection ended"),
                        }
                    });
                }
                Ok((_, peer)) => tracing::warn!(%peer, "too many MQTT clients; a connection was refused"),
                Err(error) => {
                    tracing::warn!(%error, "an MQTT connection could not be accepted");
                    // Without descriptors accepting fails at once, again and again.
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = clients.join_next() => {}
            // An error means that the broker was dropped.
            _ = stopped.changed() => break,
        }
    }
    // The seat keeps the port, but takes no more connections. Closing alone would not end that.
    if let Err(error) = SockRef::from(&listener).shutdown(Shutdown::Read) {
        tracing::warn!(%error, "the broker's port still accepts connections");
    }
    drop(listener);
    hub.close();
    let _ = tokio::time::timeout(DRAIN_MAX, async { while clients.join_next().await.is_some() {} }).await;
    clients.shutdown().await;
}

/// Most connections that wait to be accepted.
const BACKLOG_MAX: i32 = 1024;
/// How long to wait after a failure to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long connections may take to end.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Publishes from inside the process. Clones publish to the same broker.
#[derive(Clone, Debug)]
pub struct Publisher {
    hub: Arc<Hub>,
}

impl Publisher {
    /// Hands a message to every subscriber. It does not wait: a subscriber that can't keep up is cut off.
    ///
    /// # Errors
    /// [`BrokerError::Topic`] if the topic is not valid.
    pub fn publish(&self, topic: &str, payload: Bytes) -> Result<(), BrokerError> {
        if !trie::valid_topic(topic) {
            return Err(BrokerError::Topic(topic.to_owned()));
        }
        self.hub.publish_now(Message { topic: topic.into(), payload });
        Ok(())
    }

    /// Ends the connection of the client that authenticated as this node, if there is one.
    pub fn disconnect_node(&self, node: &str) {
        self.hub.disconnect_node(node);
    }
}

/// A client inside this process.
#[derive(Debug)]
pub struct Port {
    publisher: Publisher,
    id: u64,
    messages: mpsc::Receiver<Message>,
}

impl Port {
    /// Subscribes to a filter.
    ///
    /// # Errors
    /// [`BrokerError::Topic`] if the filter is not valid, [`BrokerError::Closed`] if there are too many or the
    /// broker has been shut down.
    pub fn subscribe(&self, filter: &str) -> Result<(), BrokerError> {
        if !trie::valid_filter(filter) {
            return Err(BrokerError::Topic(filter.to_owned()));
        }
        let subscribed = self.publisher.hub.subscribe(self.id, filter, QoS::AtLeastOnce);
        if subscribed { Ok(()) } else { Err(BrokerError::Closed) }
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

impl Drop for Port {
    fn drop(&mut self) {
        self.publisher.hub.detach(self.id);
    }
}
