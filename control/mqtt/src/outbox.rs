//! What waits to be written to a peer.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::Packet;
use thiserror::Error;
use tokio::sync::Notify;

use crate::Message;

/// What a message costs beside its topic and payload.
const OVERHEAD_BYTES: usize = 16;

/// There is no room, and nothing was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("too much waits to be sent already")]
pub struct Full;

/// The queue was closed for this reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Closed(pub &'static str);

/// Something that waits to be written.
#[derive(Debug)]
pub enum Outgoing {
    /// A control packet.
    Packet(Packet),
    /// A message.
    Publish(Message, QoS),
}

impl Outgoing {
    fn bytes(&self) -> usize {
        match self {
            Outgoing::Packet(_) => OVERHEAD_BYTES,
            Outgoing::Publish(message, _) => message.payload.len() + message.topic.len() + OVERHEAD_BYTES,
        }
    }
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Outgoing>,
    bytes: usize,
    closed: Option<Closed>,
}

/// A queue of bounded bytes: any number of writers, one reader that takes all there is.
#[derive(Debug)]
pub struct Outbox {
    queue: Mutex<Queue>,
    changed: Notify,
    bytes_max: usize,
}

impl Outbox {
    /// An empty queue.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { queue: Mutex::default(), changed: Notify::new(), bytes_max })
    }

    /// Appends. A queue that was closed takes everything, and nobody will see it.
    ///
    /// # Errors
    /// When there is no room.
    pub fn push(&self, outgoing: Outgoing) -> Result<(), Full> {
        let mut queue = self.lock();
        if queue.closed.is_some() {
            return Ok(());
        }
        let bytes = queue.bytes + outgoing.bytes();
        if bytes > self.bytes_max {
            return Err(Full);
        }
        queue.bytes = bytes;
        queue.waiting.push_back(outgoing);
        drop(queue);
        self.changed.notify_one();
        Ok(())
    }

    /// Drops what waits and takes no more; the first reason counts.
    pub fn close(&self, why: &'static str) {
        let mut queue = self.lock();
        let closed = queue.closed.or(Some(Closed(why)));
        *queue = Queue { closed, ..Queue::default() };
        drop(queue);
        self.changed.notify_one();
    }

    /// Drops what waits.
    pub fn clear(&self) {
        let mut queue = self.lock();
        queue.waiting = VecDeque::new();
        queue.bytes = 0;
    }

    /// Everything that waits, once there is something. Can be cancelled.
    ///
    /// # Errors
    /// Once the queue was closed.
    pub async fn take(&self) -> Result<VecDeque<Outgoing>, Closed> {
        loop {
            {
                let mut queue = self.lock();
                if let Some(why) = queue.closed {
                    return Err(why);
                }
                if !queue.waiting.is_empty() {
                    queue.bytes = 0;
                    return Ok(mem::take(&mut queue.waiting));
                }
            }
            self.changed.notified().await;
        }
    }

    /// Goes on with what is there should another task have panicked: each critical section leaves the queue whole.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn message(len: usize) -> Outgoing {
        Outgoing::Publish(Message { topic: "t".into(), payload: Bytes::from(vec![0; len]) }, QoS::AtMostOnce)
    }

    #[tokio::test]
    async fn what_waits_is_bounded_by_its_bytes() {
        let outbox = Outbox::new(100);
        outbox.push(message(60)).unwrap();
        assert_eq!(outbox.push(message(60)), Err(Full));
        outbox.push(Outgoing::Packet(Packet::PingReq)).unwrap();
        assert_eq!(outbox.take().await.unwrap().len(), 2);
        outbox.push(message(60)).unwrap();
        outbox.clear();
        outbox.push(message(60)).unwrap();
        outbox.close("first");
        outbox.close("second");
        assert_eq!(outbox.push(message(60)), Ok(()));
        assert_eq!(outbox.take().await.unwrap_err(), Closed("first"));
    }
}
