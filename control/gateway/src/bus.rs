//! What the gateway asks of a carrier of messages: publish without waiting, and one stream of what arrives.
//!
//! The embedded broker's in-process port is one; the client of another broker (see [`crate::external`]) is the second;
//! tests have a third. Nothing is expected of a bus beyond MQTT's least: it may lose, repeat and reorder messages.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use lichen_wire::topic;

pub use lichen_mqtt::Message;

use crate::broker::{BrokerError, Port, Publisher};

/// The bus did not take a message. Sessions send what was lost again.
#[derive(Debug, thiserror::Error)]
#[error("the bus did not take the message: {0}")]
pub struct BusError(pub String);

/// Publishes on a bus.
pub trait Publish: Send + Sync + 'static {
    /// Hands over a message. It never waits: a bus that cannot take the message now drops it.
    fn publish(&self, topic: &str, payload: Bytes) -> Result<(), BusError>;

    /// A node counts no more: a broker of the gateway's own ends its connection. With another's broker its frames are
    /// simply not opened any more.
    fn disconnect(&self, _node: &str) {}
}

/// What a bus brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// A message of a subscription.
    Message(Message),
    /// The bus is linked: connected and subscribed. Messages may have been lost before.
    Linked,
    /// The bus is no longer linked, and links itself again as soon as it can.
    Lost,
}

/// A bus, subscribed to what nodes and joining machines send (see [`FILTERS`]).
pub trait Bus: Send + 'static {
    /// What publishes; it may be shared and outlive the bus.
    fn publisher(&self) -> Arc<dyn Publish>;
    /// What comes next; none once the bus has ended for good. A bus is not linked before it says so.
    fn recv(&mut self) -> BoxFuture<'_, Option<Arrival>>;
}

/// What a gateway's bus is subscribed to.
pub const FILTERS: [&str; 3] = [topic::ALL_UP, topic::ALL_PRESENCE, topic::ALL_JOIN_UP];

/// The embedded broker's port as a bus. It is linked from the start and for good.
#[derive(Debug)]
pub struct EmbeddedBus {
    port: Port,
    told: bool,
}

impl EmbeddedBus {
    /// Subscribes a port of the embedded broker.
    pub fn new(port: Port) -> Result<EmbeddedBus, BrokerError> {
        for filter in FILTERS {
            port.subscribe(filter)?;
        }
        Ok(EmbeddedBus { port, told: false })
    }
}

impl Bus for EmbeddedBus {
    fn publisher(&self) -> Arc<dyn Publish> {
        Arc::new(self.port.publisher())
    }

    fn recv(&mut self) -> BoxFuture<'_, Option<Arrival>> {
        Box::pin(async {
            if !std::mem::replace(&mut self.told, true) {
                return Some(Arrival::Linked);
            }
            self.port.recv().await.map(Arrival::Message)
        })
    }
}

impl Publish for Publisher {
    fn publish(&self, topic: &str, payload: Bytes) -> Result<(), BusError> {
        Publisher::publish(self, topic, payload).map_err(|e| BusError(e.to_string()))
    }

    fn disconnect(&self, node: &str) {
        self.disconnect_node(node);
    }
}
