//! What the gateway asks of a carrier of messages: publish without waiting, and one stream of what arrives.
//!
//! The embedded broker's in-process port is one; a client of an external broker is another; tests have a third.
//! Nothing is expected of a bus beyond MQTT's least: it may lose, repeat and reorder messages.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use lichen_wire::topic;

pub use crate::broker::Message;
use crate::broker::{BrokerError, Port, Publisher};

/// The bus did not take a message. Sessions send what was lost again.
#[derive(Debug, thiserror::Error)]
#[error("the bus did not take the message: {0}")]
pub struct BusError(pub String);

/// Publishes on a bus.
pub trait Publish: Send + Sync + 'static {
    /// Hands over a message. It never waits: a bus that cannot take the message now drops it.
    fn publish(&self, topic: &str, payload: Bytes) -> Result<(), BusError>;
}

/// A bus, subscribed to what nodes and joining machines send (see [`FILTERS`]).
pub trait Bus: Send + 'static {
    /// What publishes; it may be shared and outlive the bus.
    fn publisher(&self) -> Arc<dyn Publish>;
    /// The next message; none once the bus has ended for good.
    fn recv(&mut self) -> BoxFuture<'_, Option<Message>>;
}

/// What a gateway's bus is subscribed to.
pub const FILTERS: [&str; 3] = [topic::ALL_UP, topic::ALL_PRESENCE, topic::ALL_JOIN_UP];

/// The embedded broker's port as a bus.
#[derive(Debug)]
pub struct EmbeddedBus(Port);

impl EmbeddedBus {
    /// Subscribes a port of the embedded broker.
    pub fn new(port: Port) -> Result<EmbeddedBus, BrokerError> {
        for filter in FILTERS {
            port.subscribe(filter)?;
        }
        Ok(EmbeddedBus(port))
    }
}

impl Bus for EmbeddedBus {
    fn publisher(&self) -> Arc<dyn Publish> {
        Arc::new(self.0.publisher())
    }

    fn recv(&mut self) -> BoxFuture<'_, Option<Message>> {
        Box::pin(self.0.recv())
    }
}

impl Publish for Publisher {
    fn publish(&self, topic: &str, payload: Bytes) -> Result<(), BusError> {
        Publisher::publish(self, topic, payload).map_err(|e| BusError(e.to_string()))
    }
}
