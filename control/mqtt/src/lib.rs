//! MQTT 3.1.1 over TLS: what the embedded broker, its clients and the clients of other brokers share.
//!
//! The packets are rumqttc's. Around them are a reader and a writer for streams of them, the bounded queue of what
//! waits for a peer, and a client: one connection that is either whole (TLS, CONNECT and every subscription done) or
//! none. Who uses it connects again by itself, with the pauses of a [`Backoff`].
//!
//! Invariants: a peer makes nobody keep more than a named bound of bytes; a connection whose other end is gone is found
//! out within two keepalives, whether or not anything is said. Subscriptions and messages are of QoS 0: the sessions
//! carried here acknowledge and repeat by themselves. Deliberately absent: sessions that outlive a connection, retained
//! messages, QoS 2, and MQTT without TLS.

mod access;
mod backoff;
mod client;
mod outbox;
mod stream;

use std::sync::Arc;

use bytes::Bytes;

pub use access::{Access, AddressError, Login, address};
pub use backoff::Backoff;
pub use client::{Connection, Endpoint, MqttError, Receiver, Sender};
pub use outbox::{Closed, Full, Outbox, Outgoing};
pub use stream::{PacketReader, PacketWriter, StreamError};

/// The packets of MQTT 3.1.1, and how they are read and written.
pub mod packet {
    pub use rumqttc::mqttbytes::v4::{
        ConnAck, Connect, ConnectReturnCode, LastWill, Login, Packet, PubAck, Publish, SubAck, Subscribe,
        SubscribeFilter, SubscribeReasonCode, UnsubAck, Unsubscribe,
    };
    pub use rumqttc::mqttbytes::{Error, QoS};
}

/// A message as it is delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its payload.
    pub payload: Bytes,
}
