//! Keeps a connection with the broker, and carries frames while there is one.

use std::time::Duration;

use bytes::Bytes;
use lichen_wire::topic::{PRESENCE_DOWN, PRESENCE_UP};
use rumqttc::QoS;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::mqtt::{Connection, Endpoint, MqttError};

/// Most frames that wait in each direction.
const FRAMES_MAX: usize = 8;
/// A connection that held this long counts as good: the next pause is short again.
const STABLE: Duration = Duration::from_secs(30);

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
    pub(crate) uplink: String,
    pub(crate) presence: String,
    pub(crate) retry_min: Duration,
    pub(crate) retry_max: Duration,
}

impl Carrier {
    /// Connects again and again until the driver closes its end, or drops the sender of frames to say goodbye.
    pub(crate) async fn run(self, driver: mpsc::Sender<Carried>) {
        let mut pause = self.retry_min;
        loop {
            let began = Instant::now();
            let opened = tokio::select! {
                opened = Connection::open(&self.endpoint) => opened,
                () = driver.closed() => return,
            };
            match opened {
                Ok(connection) => match self.carry(connection, &driver).await {
                    Ok(()) => return,
                    Err(error) => tracing::info!(%error, "the connection with the broker was lost"),
                },
                Err(error) => {
                    tracing::info!(%error, broker = self.endpoint.broker, "the broker can't be reached");
                }
            }
            if driver.is_closed() || driver.send(Carried::Down).await.is_err() {
                return;
            }
            if began.elapsed() >= STABLE {
                pause = self.retry_min;
            }
            // Between half and all of it, so that a fleet does not come back in step.
            tokio::select! {
                () = sleep(pause.mul_f64(rand::random_range(0.5..1.0))) => {}
                () = driver.closed() => return,
            }
            pause = (pause * 2).min(self.retry_max);
        }
    }

    /// Carries frames until the connection is lost; `Ok` if the driver wants no more.
    async fn carry(
        &self,
        mut connection: Connection,
        driver: &mpsc::Sender<Carried>,
    ) -> Result<(), MqttError> {
        let client = connection.client.clone();
        client.try_publish(&self.presence, QoS::AtLeastOnce, false, PRESENCE_UP)?;
        let (frames, mut outgoing) = mpsc::channel::<Vec<u8>>(FRAMES_MAX);
        if driver.send(Carried::Up(frames)).await.is_err() {
            connection.close().await;
            return Ok(());
        }
        // Publishing waits for the event loop and the event loop for the network, so the two run side by side.
        let publish = async {
            while let Some(frame) = outgoing.recv().await {
                // The session repeats what is lost, so that QoS 0 suffices and halves the packets.
                client.publish(&self.uplink, QoS::AtMostOnce, false, frame).await?;
            }
            client.publish(&self.presence, QoS::AtMostOnce, false, PRESENCE_DOWN).await?;
            Ok::<(), MqttError>(())
        };
        let receive = async {
            loop {
                let frame = connection.next().await?;
                if driver.send(Carried::Frame(frame)).await.is_err() {
                    // The driver is gone; what it said last is still being published.
                    std::future::pending::<()>().await;
                }
            }
        };
        let ended: Result<(), MqttError> = tokio::select! {
            ended = publish => ended,
            ended = receive => ended,
        };
        ended?;
        connection.close().await;
        Ok(())
    }
}
