//! A connection with the broker: TLS by us, MQTT by rumqttc.
//!
//! rumqttc speaks plain MQTT to a socket in a folder that only this user may enter; one task copies between it
//! and the TLS connection. The socket takes one connection and is then removed.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rumqttc::{
    AsyncClient, Event, EventLoop, LastWill, MqttOptions, Outgoing, Packet, QoS, SubscribeReasonCode,
    Transport,
};
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use thiserror::Error;
use tokio::net::{TcpStream, UnixListener};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Largest MQTT packet: a frame and its topic.
const PACKET_BYTES_MAX: usize = lichen_wire::FRAME_BYTES_MAX + 1024;
/// Most requests that wait for rumqttc's event loop.
const REQUESTS_MAX: usize = 8;
/// How long a goodbye may take.
const GOODBYE_MAX: Duration = Duration::from_secs(1);

/// Why there is no connection, or no longer one.
#[derive(Debug, Error)]
pub(crate) enum MqttError {
    /// The network or TLS failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// MQTT failed.
    #[error("{0}")]
    Mqtt(#[from] rumqttc::ConnectionError),
    /// The event loop is gone.
    #[error("{0}")]
    Client(#[from] rumqttc::ClientError),
    /// It took too long.
    #[error("the broker did not answer in time")]
    Timeout,
    /// The broker refused the subscription.
    #[error("the broker refused the subscription to {0:?}")]
    Subscription(String),
    /// The broker's name is not usable.
    #[error("{0:?} is not a host and a port")]
    Address(String),
}

/// Where and how to connect.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) broker: String,
    pub(crate) server_name: Option<String>,
    pub(crate) tls: Arc<rustls::ClientConfig>,
    pub(crate) client_id: String,
    pub(crate) keepalive: Duration,
    pub(crate) timeout: Duration,
    pub(crate) will: Option<(String, &'static [u8])>,
    pub(crate) subscribe: String,
}

/// A connection that is subscribed.
pub(crate) struct Connection {
    pub(crate) client: AsyncClient,
    events: EventLoop,
    pump: JoinHandle<()>,
}

impl Connection {
    /// Connects and subscribes.
    pub(crate) async fn open(endpoint: &Endpoint) -> Result<Self, MqttError> {
        timeout(endpoint.timeout, Self::connect(endpoint)).await.map_err(|_| MqttError::Timeout)?
    }

    async fn connect(endpoint: &Endpoint) -> Result<Self, MqttError> {
        let stream = tls(endpoint).await?;
        let folder = tempfile::Builder::new()
            .prefix("lichen-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .tempdir()?;
        let path = folder.path().join("mqtt");
        let listener = UnixListener::bind(&path)?;
        let options = options(endpoint, &path);
        let pump = tokio::spawn(pump(listener, folder, stream));
        let (client, events) = AsyncClient::new(options, REQUESTS_MAX);
        let mut connection = Self { client, events, pump };
        connection.client.subscribe(&endpoint.subscribe, QoS::AtLeastOnce).await?;
        loop {
            if let Event::Incoming(Packet::SubAck(ack)) = connection.events.poll().await? {
                return match ack.return_codes.first() {
                    Some(SubscribeReasonCode::Success(_)) => Ok(connection),
                    _ => Err(MqttError::Subscription(endpoint.subscribe.clone())),
                };
            }
        }
    }

    /// The payload of the next message. Requests make progress only while this is polled.
    pub(crate) async fn next(&mut self) -> Result<Bytes, MqttError> {
        loop {
            if let Event::Incoming(Packet::Publish(publish)) = self.events.poll().await? {
                return Ok(publish.payload);
            }
        }
    }

    /// Says goodbye, so that the broker drops the will.
    pub(crate) async fn close(mut self) {
        let goodbye = async {
            self.client.disconnect().await?;
            loop {
                if let Event::Outgoing(Outgoing::Disconnect) = self.events.poll().await? {
                    return Ok::<(), MqttError>(());
                }
            }
        };
        if let Err(error) = timeout(GOODBYE_MAX, goodbye).await.map_err(|_| MqttError::Timeout).flatten() {
            tracing::debug!(%error, "the goodbye to the broker failed");
        }
        // Once this end is closed the pump passes on what is left and ends.
        let Self { client, events, pump } = &mut self;
        events.network = None;
        let _ = client;
        let _ = timeout(GOODBYE_MAX, pump).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

async fn tls(endpoint: &Endpoint) -> Result<TlsStream<TcpStream>, MqttError> {
    let address = || MqttError::Address(endpoint.broker.clone());
    let (host, _) = endpoint.broker.rsplit_once(':').ok_or_else(address)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = endpoint.server_name.as_deref().unwrap_or(host).to_owned();
    let name = ServerName::try_from(name).map_err(|_| address())?;
    let socket = TcpStream::connect(&endpoint.broker).await?;
    // Without it a round trip takes as long as a delayed acknowledgement.
    socket.set_nodelay(true)?;
    Ok(TlsConnector::from(Arc::clone(&endpoint.tls)).connect(name, socket).await?)
}

fn options(endpoint: &Endpoint, path: &Path) -> MqttOptions {
    let mut options = MqttOptions::new(&endpoint.client_id, path.to_string_lossy(), 0);
    options
        .set_transport(Transport::Unix)
        .set_clean_session(true)
        .set_keep_alive(endpoint.keepalive)
        .set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX);
    if let Some((topic, payload)) = &endpoint.will {
        options.set_last_will(LastWill::new(topic, *payload, QoS::AtLeastOnce, false));
    }
    options
}

async fn pump(listener: UnixListener, folder: TempDir, mut stream: TlsStream<TcpStream>) {
    let accepted = listener.accept().await;
    drop((listener, folder));
    let copied = match accepted {
        Ok((mut local, _)) => tokio::io::copy_bidirectional(&mut local, &mut stream).await,
        Err(error) => Err(error),
    };
    // rumqttc sees no more than the end of its stream; the reason is known only here.
    if let Err(error) = copied {
        tracing::debug!(%error, "the TLS connection with the broker ended");
    }
}
