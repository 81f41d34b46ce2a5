//! A broker and the links to it: messages are lost, repeated, delayed and so overtaken; whoever is not connected hears
//! nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lichen_gateway::bus::{Arrival, Bus, BusError, Message, Publish};
use tokio::sync::mpsc;

use crate::dice::Dice;
use crate::knobs::Knobs;
use crate::trace::{Trace, note};

/// The network. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Net {
    inner: Arc<Mutex<Inner>>,
    dice: Dice,
    knobs: Knobs,
    trace: Trace,
}

#[derive(Default)]
struct Inner {
    /// The gateways that are connected.
    gateways: BTreeMap<u64, mpsc::UnboundedSender<Arrival>>,
    /// Whether gateways have no way to the broker.
    cut: bool,
    /// Who is subscribed to a topic, and which of its subscriptions it is.
    nodes: BTreeMap<String, (u64, mpsc::UnboundedSender<Bytes>)>,
    count: u64,
}

/// A subscription to one topic, which ends when it is dropped.
pub(crate) struct Subscription {
    net: Net,
    topic: String,
    number: u64,
    messages: mpsc::UnboundedReceiver<Bytes>,
}

impl Subscription {
    pub(crate) async fn recv(&mut self) -> Option<Bytes> {
        self.messages.recv().await
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut inner = self.net.lock();
        if inner.nodes.get(&self.topic).is_some_and(|(number, _)| *number == self.number) {
            inner.nodes.remove(&self.topic);
        }
    }
}

impl Net {
    pub(crate) fn new(dice: Dice, knobs: Knobs, trace: Trace) -> Self {
        Self { inner: Arc::default(), dice, knobs, trace }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A gateway connects.
    pub(crate) fn gateway(&self) -> GatewayEnd {
        let (sender, messages) = mpsc::unbounded_channel();
        let mut inner = self.lock();
        inner.count += 1;
        let number = inner.count;
        if !inner.cut {
            // The receiver is right here.
            let _ = sender.send(Arrival::Linked);
        }
        inner.gateways.insert(number, sender);
        GatewayEnd { net: self.clone(), number, messages }
    }

    /// A node connects and subscribes. A client of the same topic is taken over.
    pub(crate) fn subscribe(&self, topic: &str) -> Subscription {
        let (sender, messages) = mpsc::unbounded_channel();
        let mut inner = self.lock();
        inner.count += 1;
        let number = inner.count;
        inner.nodes.insert(topic.to_owned(), (number, sender));
        Subscription { net: self.clone(), topic: topic.to_owned(), number, messages }
    }

    /// Sends to every gateway.
    pub(crate) fn up(&self, topic: &str, payload: Bytes) {
        let gateways: Vec<u64> = self.lock().gateways.keys().copied().collect();
        for gateway in gateways {
            let (net, topic, payload) = (self.clone(), topic.to_owned(), payload.clone());
            self.carry(move || {
                let message = Message { topic: topic.as_str().into(), payload: payload.clone() };
                let inner = net.lock();
                if let Some(to) = inner.gateways.get(&gateway).filter(|_| !inner.cut) {
                    // A gateway that is ending does not listen any more.
                    let _ = to.send(Arrival::Message(message));
                }
            });
        }
    }

    /// Takes or gives all gateways their way to the broker.
    pub(crate) fn cut(&self, cut: bool) {
        let mut inner = self.lock();
        if std::mem::replace(&mut inner.cut, cut) == cut {
            return;
        }
        note!(self.trace, "gateways are cut off: {cut}");
        for gateway in inner.gateways.values() {
            // A gateway that is ending does not listen any more.
            let _ = gateway.send(if cut { Arrival::Lost } else { Arrival::Linked });
        }
    }

    fn down(&self, topic: &str, payload: Bytes) {
        // What is under way to one connection does not reach the next.
        let inner = self.lock();
        let Some(number) = inner.nodes.get(topic).map(|(number, _)| *number).filter(|_| !inner.cut) else {
            return;
        };
        drop(inner);
        let (net, topic) = (self.clone(), topic.to_owned());
        self.carry(move || {
            if let Some((_, to)) = net.lock().nodes.get(&topic).filter(|(now, _)| *now == number) {
                // A node that is ending does not listen any more.
                let _ = to.send(payload.clone());
            }
        });
    }

    /// Delivers after a while, perhaps twice, perhaps not at all.
    fn carry(&self, deliver: impl Fn() + Send + Sync + 'static) {
        let levels = self.knobs.get();
        if self.dice.chance(levels.loss) {
            return note!(self.trace, "a message is lost");
        }
        let deliver = Arc::new(deliver);
        for _ in 0..if self.dice.chance(levels.repeat) { 2 } else { 1 } {
            let (deliver, wait) = (deliver.clone(), self.dice.between(1, levels.delay_ms));
            let trace = self.trace.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(wait)).await;
                trace.step();
                deliver();
            });
        }
    }
}

/// A gateway's connection, which ends when it is dropped.
pub(crate) struct GatewayEnd {
    net: Net,
    number: u64,
    messages: mpsc::UnboundedReceiver<Arrival>,
}

struct Publisher(Net);

impl Publish for Publisher {
    fn publish(&self, topic: &str, payload: Bytes) -> Result<(), BusError> {
        self.0.down(topic, payload);
        Ok(())
    }
}

impl Bus for GatewayEnd {
    fn publisher(&self) -> Arc<dyn Publish> {
        Arc::new(Publisher(self.net.clone()))
    }

    fn recv(&mut self) -> BoxFuture<'_, Option<Arrival>> {
        self.messages.recv().boxed()
    }
}

impl Drop for GatewayEnd {
    fn drop(&mut self) {
        self.net.lock().gateways.remove(&self.number);
    }
}
