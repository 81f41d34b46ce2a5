//! A client's connection with a broker.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{
    Connect, ConnectReturnCode, LastWill, Packet, Subscribe, SubscribeFilter, SubscribeReasonCode,
};
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::io::{ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::access::{addresses, host};
use crate::outbox::Outgoing;
use crate::stream::{PacketReader, PacketWriter, StreamError};
use crate::{Login, Message};

/// How long a goodbye may take.
const GOODBYE_MAX: Duration = Duration::from_secs(1);
/// How long a broker may keep silent until the next one of several is tried as well.
const NEXT_ADDRESS: Duration = Duration::from_millis(300);
/// Most messages that come before the subscription is confirmed.
const EARLY_MAX: usize = 64;
/// The packet identifier of the one SUBSCRIBE.
const SUBSCRIBE_ID: u16 = 1;

/// Why there is no connection, or no longer one.
#[derive(Debug, Error)]
pub enum MqttError {
    /// The network, TLS or the broker's packets failed.
    #[error("{0}")]
    Stream(#[from] StreamError),
    /// It took too long.
    #[error("the broker did not answer in time")]
    Timeout,
    /// The broker refused the client.
    #[error("the broker refused the connection: {}", refusal(*.0))]
    Refused(ConnectReturnCode),
    /// The broker refused the subscription.
    #[error("the broker refused the subscription to {0:?}")]
    Subscription(String),
    /// The broker's name is not usable.
    #[error("{0:?} is not a host and a port")]
    Address(String),
    /// The broker broke the protocol.
    #[error("the broker sent a packet that does not belong here")]
    Protocol,
}

impl From<std::io::Error> for MqttError {
    fn from(error: std::io::Error) -> Self {
        StreamError::Io(error).into()
    }
}

fn refusal(code: ConnectReturnCode) -> &'static str {
    match code {
        ConnectReturnCode::BadUserNamePassword => "wrong user name or password",
        ConnectReturnCode::NotAuthorized => "not authorized",
        ConnectReturnCode::BadClientId => "it does not accept the client id",
        ConnectReturnCode::RefusedProtocolVersion => "it does not speak MQTT 3.1.1",
        ConnectReturnCode::ServiceUnavailable => "it is unavailable",
        ConnectReturnCode::Success => "for no reason",
    }
}

/// Where and how to connect.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The broker, `host:port`; or several, with commas in between, of which whichever answers is taken.
    pub broker: String,
    /// The name that the broker's certificate must have; the host of its address unless told otherwise.
    pub server_name: Option<String>,
    /// Whom to believe and what to show.
    pub tls: Arc<rustls::ClientConfig>,
    /// User and password, for a broker that wants them.
    pub login: Option<Login>,
    /// The client's name. A broker knows one connection under each.
    pub client_id: String,
    /// After so long without a packet the other side is asked for one; after twice as long it is given up.
    pub keepalive: Duration,
    /// How long connecting may take.
    pub timeout: Duration,
    /// What the broker publishes when the connection ends without a goodbye: topic and payload.
    pub will: Option<(String, Bytes)>,
    /// What to subscribe to.
    pub subscribe: Vec<String>,
    /// Largest packet that the broker may send.
    pub packet_bytes_max: usize,
}

/// A connection that is subscribed. Its two halves are used side by side, so that neither direction waits for the other.
#[derive(Debug)]
pub struct Connection {
    /// What goes to the broker.
    pub sender: Sender,
    /// What comes from it.
    pub receiver: Receiver,
}

impl Connection {
    /// Connects and subscribes.
    ///
    /// # Errors
    /// See [`MqttError`].
    pub async fn open(endpoint: &Endpoint) -> Result<Self, MqttError> {
        timeout(endpoint.timeout, Self::connect(endpoint)).await.map_err(|_| MqttError::Timeout)?
    }

    async fn connect(endpoint: &Endpoint) -> Result<Self, MqttError> {
        let (reading, writing) = split(tls(endpoint).await?);
        let mut reader = PacketReader::new(reading, endpoint.packet_bytes_max);
        let mut writer = PacketWriter::new(writing);
        writer.write(connect_packet(endpoint)).await?;
        match reader.next().await? {
            Packet::ConnAck(ack) if ack.code == ConnectReturnCode::Success => {}
            Packet::ConnAck(ack) => return Err(MqttError::Refused(ack.code)),
            _ => return Err(MqttError::Protocol),
        }
        let clock = Clock::new(endpoint.keepalive);
        let mut receiver = Receiver { reader, clock: clock.clone(), early: VecDeque::new() };
        let filters = endpoint.subscribe.iter();
        let filters = filters.map(|filter| SubscribeFilter::new(filter.clone(), QoS::AtMostOnce));
        let subscribe = Subscribe { pkid: SUBSCRIBE_ID, filters: filters.collect() };
        if !subscribe.filters.is_empty() {
            writer.write(Packet::Subscribe(subscribe)).await?;
            receiver.subscribed(&endpoint.subscribe).await?;
        }
        let sender = Sender { writer, sent: clock.now(), pinged: Duration::ZERO, clock };
        Ok(Self { sender, receiver })
    }
}

/// Connects with whichever broker answers. The next one is tried when one fails, or takes its time.
async fn tls(endpoint: &Endpoint) -> Result<TlsStream<TcpStream>, MqttError> {
    let mut untried = addresses(&endpoint.broker);
    let mut trying = JoinSet::new();
    let mut failed = None;
    loop {
        if let Some(address) = untried.next() {
            trying.spawn(tls_with(endpoint.clone(), address.to_owned()));
        }
        tokio::select! {
            biased;
            Some(tried) = trying.join_next() => match tried.map_err(std::io::Error::other)? {
                Ok(stream) => return Ok(stream),
                // That nobody listens is what all but one of several brokers say: another failure tells more.
                Err(error) if failed.is_none() || !is_deaf(&error) => failed = Some(error),
                Err(_) => {}
            },
            () = sleep(NEXT_ADDRESS), if untried.len() > 0 => {}
        }
        if trying.is_empty() && untried.len() == 0 {
            return Err(failed.unwrap_or_else(|| MqttError::Address(endpoint.broker.clone())));
        }
    }
}

fn is_deaf(error: &MqttError) -> bool {
    matches!(error, MqttError::Stream(StreamError::Io(error)) if error.kind() == ErrorKind::ConnectionRefused)
}

async fn tls_with(endpoint: Endpoint, broker: String) -> Result<TlsStream<TcpStream>, MqttError> {
    let address = || MqttError::Address(broker.clone());
    let host = host(&broker).ok_or_else(address)?;
    let name = endpoint.server_name.as_deref().unwrap_or(host).to_owned();
    let name = ServerName::try_from(name).map_err(|_| address())?;
    let socket = TcpStream::connect(&broker).await?;
    // Without it a round trip takes as long as a delayed acknowledgement.
    socket.set_nodelay(true)?;
    Ok(TlsConnector::from(Arc::clone(&endpoint.tls)).connect(name, socket).await?)
}

fn connect_packet(endpoint: &Endpoint) -> Packet {
    let mut connect = Connect::new(&endpoint.client_id);
    // A broker gives a client one and a half times this long; a client asks in good time.
    connect.keep_alive = u16::try_from(endpoint.keepalive.as_secs().max(1)).unwrap_or(u16::MAX);
    if let Some((topic, payload)) = &endpoint.will {
        connect.last_will = Some(LastWill::new(topic, payload.to_vec(), QoS::AtMostOnce, false));
    }
    if let Some(login) = &endpoint.login {
        connect.set_login(&login.username, &login.password);
    }
    Packet::Connect(connect)
}

/// When the broker was last heard, for both halves.
#[derive(Clone, Debug)]
struct Clock {
    began: Instant,
    heard_ms: Arc<AtomicU64>,
    keepalive: Duration,
}

impl Clock {
    fn new(keepalive: Duration) -> Self {
        Self { began: Instant::now(), heard_ms: Arc::default(), keepalive }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn hear(&self) {
        let now_ms = u64::try_from(self.now().as_millis()).unwrap_or(u64::MAX);
        self.heard_ms.store(now_ms, Ordering::Relaxed);
    }

    fn heard(&self) -> Duration {
        Duration::from_millis(self.heard_ms.load(Ordering::Relaxed))
    }
}

/// What goes to the broker.
#[derive(Debug)]
pub struct Sender {
    writer: PacketWriter<WriteHalf<TlsStream<TcpStream>>>,
    sent: Duration,
    pinged: Duration,
    clock: Clock,
}

impl Sender {
    /// Publishes a message at QoS 0.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn publish(&mut self, topic: &Arc<str>, payload: Bytes) -> Result<(), MqttError> {
        let message = Message { topic: topic.clone(), payload };
        self.send([Outgoing::Publish(message, QoS::AtMostOnce)].into()).await
    }

    /// Writes everything that waits.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn send(&mut self, waiting: VecDeque<Outgoing>) -> Result<(), MqttError> {
        self.writer.write_all(waiting).await?;
        self.sent = self.clock.now();
        Ok(())
    }

    /// Waits until the keepalive wants a packet: nothing was said, or nothing heard, for so long. Can be cancelled.
    pub async fn idle(&self) {
        loop {
            let due = self.sent.min(self.clock.heard().max(self.pinged)) + self.clock.keepalive;
            if due <= self.clock.now() {
                return;
            }
            sleep_until(self.clock.began + due).await;
        }
    }

    /// Asks the broker for a sign of life.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn ping(&mut self) -> Result<(), MqttError> {
        self.send([Outgoing::Packet(Packet::PingReq)].into()).await?;
        self.pinged = self.sent;
        Ok(())
    }

    /// Says goodbye, so that the broker drops the will.
    pub async fn close(mut self) {
        let goodbye = async {
            self.writer.write(Packet::Disconnect).await?;
            self.writer.shutdown().await
        };
        match timeout(GOODBYE_MAX, goodbye).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the goodbye to the broker failed"),
            Err(_) => tracing::debug!("the goodbye to the broker took too long"),
        }
    }
}

/// What comes from the broker.
#[derive(Debug)]
pub struct Receiver {
    reader: PacketReader<ReadHalf<TlsStream<TcpStream>>>,
    clock: Clock,
    /// Messages that came before the subscription was confirmed, which MQTT allows.
    early: VecDeque<Message>,
}

impl Receiver {
    /// The next message. Can be cancelled.
    ///
    /// # Errors
    /// When the connection ends, or nothing was heard for twice the keepalive.
    pub async fn next(&mut self) -> Result<Message, MqttError> {
        if let Some(message) = self.early.pop_front() {
            return Ok(message);
        }
        loop {
            if let Packet::Publish(publish) = self.packet().await? {
                return Ok(Message { topic: publish.topic.into(), payload: publish.payload });
            }
        }
    }

    async fn packet(&mut self) -> Result<Packet, MqttError> {
        let packet = timeout(self.clock.keepalive * 2, self.reader.next()).await;
        let packet = packet.map_err(|_| MqttError::Timeout)??;
        self.clock.hear();
        Ok(packet)
    }

    async fn subscribed(&mut self, filters: &[String]) -> Result<(), MqttError> {
        loop {
            match self.packet().await? {
                Packet::SubAck(ack) => {
                    let refused = ack.return_codes.iter().position(|c| *c == SubscribeReasonCode::Failure);
                    return match refused.and_then(|index| filters.get(index)) {
                        Some(filter) => Err(MqttError::Subscription(filter.clone())),
                        None => Ok(()),
                    };
                }
                Packet::Publish(_) if self.early.len() >= EARLY_MAX => return Err(MqttError::Protocol),
                Packet::Publish(publish) => {
                    self.early.push_back(Message { topic: publish.topic.into(), payload: publish.payload });
                }
                _ => {}
            }
        }
    }
}
