//! A broker that is not the gateway's own, as its bus: Mosquitto, EMQX, or a service somewhere.
//!
//! One task keeps the connection, with pauses between attempts. It never makes the gateway wait: what is published while
//! there is no connection, or faster than the broker takes it, is dropped, and the sessions send it again. What arrives
//! faster than the gateway takes it waits in the broker, which drops it when it likes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use lichen_mqtt::packet::QoS;
use lichen_mqtt::{
    Backoff, Connection, Endpoint, Login, Message, MqttError, Outbox, Outgoing, Receiver, Sender,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::bus::{Arrival, Bus, BusError, FILTERS, Publish};
use crate::wait::AbortOnDrop;

/// Most bytes that wait for the broker: the windows of some hundred nodes.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Most arrivals that wait for the gateway.
const ARRIVALS_MAX: usize = 1024;
/// Largest MQTT packet: a frame and its topic.
const PACKET_BYTES_MAX: usize = lichen_wire::FRAME_BYTES_MAX + 1024;
/// MQTT keepalive.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// First and longest pause before connecting again. All nodes wait for this one connection.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Which broker, and who the gateway is to it.
#[derive(Clone, Debug)]
pub struct Config {
    /// The broker, `host:port`.
    pub broker: String,
    /// Whom to believe and what to show.
    pub tls: Arc<rustls::ClientConfig>,
    /// User and password, for a broker that wants them.
    pub login: Option<Login>,
}

/// The client of another broker as a bus. Dropping it ends the connection.
pub struct ExternalBus {
    outbox: Publisher,
    arrivals: mpsc::Receiver<Arrival>,
    _task: AbortOnDrop,
}

impl ExternalBus {
    /// Begins to connect. It goes on until it is dropped, so that a gateway starts without its broker, too.
    pub fn spawn(config: Config) -> ExternalBus {
        let (arrive, arrivals) = mpsc::channel(ARRIVALS_MAX);
        let linked = watch::Sender::new(false);
        let outbox = Publisher { outbox: Outbox::new(QUEUE_BYTES_MAX), linked: linked.subscribe() };
        let carrier = Carrier {
            endpoint: Endpoint {
                broker: config.broker,
                server_name: None,
                tls: config.tls,
                login: config.login,
                // Two gateways under one name would take the broker from each other, again and again.
                client_id: format!("lichen-gateway-{:016x}", rand::random::<u64>()),
                keepalive: KEEPALIVE,
                timeout: CONNECT_TIMEOUT,
                will: None,
                subscribe: FILTERS.map(str::to_owned).into(),
                packet_bytes_max: PACKET_BYTES_MAX,
            },
            outbox: outbox.outbox.clone(),
            linked,
            arrive,
        };
        let task: JoinHandle<()> = tokio::spawn(carrier.run());
        ExternalBus { outbox, arrivals, _task: AbortOnDrop(task.abort_handle()) }
    }
}

impl Bus for ExternalBus {
    fn publisher(&self) -> Arc<dyn Publish> {
        Arc::new(self.outbox.clone())
    }

    fn recv(&mut self) -> BoxFuture<'_, Option<Arrival>> {
        Box::pin(self.arrivals.recv())
    }
}

#[derive(Clone, Debug)]
struct Publisher {
    outbox: Arc<Outbox>,
    linked: watch::Receiver<bool>,
}

impl Publish for Publisher {
    fn publish(&self, topic: &str, payload: Bytes) -> Result<(), BusError> {
        if !*self.linked.borrow() {
            return Err(BusError("the broker is not connected".to_owned()));
        }
        let message = Message { topic: topic.into(), payload };
        let queued = self.outbox.push(Outgoing::Publish(message, QoS::AtMostOnce));
        queued.map_err(|full| BusError(full.to_string()))
    }
}

/// Keeps the connection.
struct Carrier {
    endpoint: Endpoint,
    outbox: Arc<Outbox>,
    linked: watch::Sender<bool>,
    arrive: mpsc::Sender<Arrival>,
}

impl Carrier {
    async fn run(self) {
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        loop {
            let began = Instant::now();
            match Connection::open(&self.endpoint).await {
                Ok(connection) => {
                    tracing::info!(broker = self.endpoint.broker, "connected with the broker");
                    self.linked.send_replace(true);
                    let Err(error) = self.carry(connection).await else { return };
                    self.linked.send_replace(false);
                    // What was meant for the lost connection would be stale in the next one.
                    self.outbox.clear();
                    tracing::warn!(%error, broker = self.endpoint.broker, "the connection with the broker was lost");
                    if self.arrive.send(Arrival::Lost).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, broker = self.endpoint.broker, "the broker can't be reached");
                }
            }
            sleep(backoff.pause(began.elapsed(), rand::random())).await;
        }
    }

    /// Carries messages until the connection is lost; `Ok` if the gateway wants no more.
    async fn carry(&self, connection: Connection) -> Result<(), MqttError> {
        if self.arrive.send(Arrival::Linked).await.is_err() {
            return Ok(());
        }
        let Connection { sender, receiver } = connection;
        tokio::select! {
            published = self.publish(sender) => published,
            received = self.receive(receiver) => received,
        }
    }

    async fn publish(&self, mut sender: Sender) -> Result<(), MqttError> {
        loop {
            tokio::select! {
                waiting = self.outbox.take() => match waiting {
                    Ok(waiting) => sender.send(waiting).await?,
                    Err(_) => return Ok(()),
                },
                () = sender.idle() => sender.ping().await?,
            }
        }
    }

    async fn receive(&self, mut receiver: Receiver) -> Result<(), MqttError> {
        loop {
            let message = receiver.next().await?;
            if self.arrive.send(Arrival::Message(message)).await.is_err() {
                return Ok(());
            }
        }
    }
}
