//! Keeps a connection with the broker, and carries frames while there is one.

use std::sync::Arc;

use bytes::Bytes;
use lichen_mqtt::packet::ConnectReturnCode;
use lichen_mqtt::{Backoff, Connection, Endpoint, MqttError, Receiver, Sender, StreamError};
use lichen_wire::topic::{PRESENCE_DOWN, PRESENCE_UP};
use rustls::ClientConfig;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

/// Most frames that wait in each direction.
const FRAMES_MAX: usize = 8;

/// What a carrier tells the session's driver.
#[derive(Debug)]
pub enum Carried {
    /// Connected and subscribed; frames go here.
    Up(mpsc::Sender<Vec<u8>>),
    /// A frame arrived.
    Frame(Bytes),
    /// The connection is gone.
    Down,
}

/// How to carry.
pub(crate) struct Carrier {
    pub(crate) endpoint: Endpoint,
    pub(crate) uplink: Arc<str>,
    pub(crate) presence: Arc<str>,
    pub(crate) backoff: Backoff,
    /// What to connect with; when it changes, the connection is made anew.
    pub(crate) tls: watch::Receiver<Arc<ClientConfig>>,
    /// Told whether the broker takes the node's certificate.
    pub(crate) refused: watch::Sender<bool>,
}

/// How carrying ended well.
enum Ended {
    /// The driver wants no more.
    Done,
    /// There is another certificate to connect with.
    Replaced,
}

impl Carrier {
    /// Connects again and again until the driver closes its end, or drops the sender of frames to say goodbye.
    pub(crate) async fn run(mut self, driver: mpsc::Sender<Carried>) {
        loop {
            let began = Instant::now();
            self.endpoint.tls = self.tls.borrow_and_update().clone();
            let opened = tokio::select! {
                opened = Connection::open(&self.endpoint) => opened,
                () = driver.closed() => return,
            };
            let mut replaced = false;
            match opened {
                Ok(connection) => {
                    self.refused.send_replace(false);
                    match self.carry(connection, &driver).await {
                        Ok(Ended::Done) => return,
                        Ok(Ended::Replaced) => replaced = true,
                        Err(error) => tracing::info!(%error, "the connection with the broker was lost"),
                    }
                }
                Err(error) if is_refusal(&error) => {
                    tracing::warn!(%error, broker = self.endpoint.broker, "the broker refuses this node");
                    self.refused.send_replace(true);
                }
                Err(error) => {
                    tracing::info!(%error, broker = self.endpoint.broker, "the broker can't be reached");
                }
            }
            if driver.is_closed() || driver.send(Carried::Down).await.is_err() {
                return;
            }
            if replaced {
                continue;
            }
            tokio::select! {
                // Another certificate may be what the broker takes.
                Ok(()) = self.tls.changed() => {}
                () = sleep(self.backoff.pause(began.elapsed(), rand::random())) => {}
                () = driver.closed() => return,
            }
        }
    }

    /// Carries frames until the connection is lost, or there is no use in it any more.
    async fn carry(
        &mut self,
        connection: Connection,
        driver: &mpsc::Sender<Carried>,
    ) -> Result<Ended, MqttError> {
        let Connection { mut sender, receiver } = connection;
        sender.publish(&self.presence, Bytes::from_static(PRESENCE_UP)).await?;
        let (frames, outgoing) = mpsc::channel::<Vec<u8>>(FRAMES_MAX);
        if driver.send(Carried::Up(frames)).await.is_err() {
            sender.close().await;
            return Ok(Ended::Done);
        }
        let mut tls = self.tls.clone();
        // Neither direction waits for the other, lest both sides only write.
        let ended = tokio::select! {
            published = self.publish(&mut sender, outgoing) => published.map(|()| Ended::Done)?,
            lost = receive(receiver, driver) => return Err(lost),
            Ok(()) = tls.changed() => Ended::Replaced,
        };
        sender.close().await;
        Ok(ended)
    }

    /// Publishes frames until the driver has no more, then says that the node leaves.
    async fn publish(
        &self,
        sender: &mut Sender,
        mut outgoing: mpsc::Receiver<Vec<u8>>,
    ) -> Result<(), MqttError> {
        loop {
            tokio::select! {
                frame = outgoing.recv() => match frame {
                    Some(frame) => sender.publish(&self.uplink, frame.into()).await?,
                    None => break,
                },
                () = sender.idle() => sender.ping().await?,
            }
        }
        sender.publish(&self.presence, Bytes::from_static(PRESENCE_DOWN)).await
    }
}

/// Whether a broker knows the node and lets it in no more, or not with this certificate.
fn is_refusal(error: &MqttError) -> bool {
    match error {
        MqttError::Refused(code) => *code == ConnectReturnCode::NotAuthorized,
        MqttError::Stream(StreamError::Io(error)) => {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            matches!(inner, Some(rustls::Error::AlertReceived(_)))
        }
        _ => false,
    }
}

/// Hands on what arrives until the connection is lost.
async fn receive(mut receiver: Receiver, driver: &mpsc::Sender<Carried>) -> MqttError {
    loop {
        let message = match receiver.next().await {
            Ok(message) => message,
            Err(error) => return error,
        };
        if driver.send(Carried::Frame(message.payload)).await.is_err() {
            // The driver is gone; what it said last is still being published.
            std::future::pending::<()>().await;
        }
    }
}
