//! What all connections share: who is connected, who subscribes to what, and the queues in between.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lichen_mqtt::packet::{LastWill, QoS};
use lichen_mqtt::{Full, Message, Outbox, Outgoing};
use tokio::sync::mpsc;

use super::Limits;
use super::admission::{Admit, Principal};
use super::trie::{SubscriberId, Trie};

/// Why a client whose queue is full is cut off.
const SLOW: &str = "it does not read what is sent to it";

#[derive(Debug)]
enum Subscriber {
    Client(Arc<Outbox>),
    Port(mpsc::Sender<Message>),
}

#[derive(Debug)]
struct Client {
    id: SubscriberId,
    outbox: Arc<Outbox>,
    will: Option<LastWill>,
}

/// Names a client: an id counts only among the connections of the same principal, so that nobody can take over
/// another's connection.
type ClientKey = (Principal, String);

#[derive(Debug, Default)]
struct State {
    last_id: SubscriberId,
    clients: BTreeMap<ClientKey, Client>,
    subscribers: HashMap<SubscriberId, Subscriber>,
    filters: HashMap<SubscriberId, HashSet<String>>,
    trie: Trie,
    closed: bool,
}

impl State {
    fn forget(&mut self, id: SubscriberId) {
        self.subscribers.remove(&id);
        for filter in self.filters.remove(&id).unwrap_or_default() {
            self.trie.remove(&filter, id);
        }
    }
}

/// What all connections share.
#[derive(Debug)]
pub(super) struct Hub {
    state: Mutex<State>,
    pub(super) limits: Limits,
    pub(super) admit: Admit,
}

impl Hub {
    pub(super) fn new(limits: Limits, admit: Admit) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), limits, admit })
    }

    /// Goes on with what is there should another task have panicked meanwhile: every critical section below leaves its
    /// data whole at each step.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a client that has authenticated. One that is connected under the same name is cut off, and its will
    /// is returned, to be published before the newcomer is told that it is in.
    pub(super) fn connect(
        &self,
        key: ClientKey,
        outbox: Arc<Outbox>,
        will: Option<LastWill>,
    ) -> (SubscriberId, Option<LastWill>) {
        let mut state = self.state();
        state.last_id += 1;
        let id = state.last_id;
        if state.closed {
            outbox.close("the broker shuts down");
        }
        state.subscribers.insert(id, Subscriber::Client(Arc::clone(&outbox)));
        let old = state.clients.insert(key, Client { id, outbox, will });
        let will = old.and_then(|mut old| {
            old.outbox.close("another connection took over its client id");
            state.forget(old.id);
            old.will.take()
        });
        (id, will)
    }

    /// Removes a client. Its will is returned unless it said goodbye or was taken over.
    pub(super) fn disconnect(&self, key: &ClientKey, id: SubscriberId) -> Option<LastWill> {
        let mut state = self.state();
        state.forget(id);
        let current = state.clients.get(key).is_some_and(|client| client.id == id);
        if current { state.clients.remove(key).and_then(|client| client.will) } else { None }
    }

    /// Drops a client's will, since it said goodbye.
    pub(super) fn drop_will(&self, key: &ClientKey, id: SubscriberId) {
        if let Some(client) = self.state().clients.get_mut(key).filter(|client| client.id == id) {
            client.will = None;
        }
    }

    /// Cuts off every connection of a node.
    pub(super) fn disconnect_node(&self, node: &str) {
        let principal = Principal::Node(node.to_owned());
        let state = self.state();
        let from = (principal.clone(), String::new());
        for (_, client) in state.clients.range(from..).take_while(|((who, _), _)| *who == principal) {
            client.outbox.close("its node was removed");
        }
    }

    /// Adds a client inside the process.
    pub(super) fn attach(&self, messages: mpsc::Sender<Message>) -> SubscriberId {
        let mut state = self.state();
        state.last_id += 1;
        let id = state.last_id;
        if !state.closed {
            state.subscribers.insert(id, Subscriber::Port(messages));
        }
        id
    }

    /// Removes a client inside the process.
    pub(super) fn detach(&self, id: SubscriberId) {
        self.state().forget(id);
    }

    /// Adds a subscription; false if the client has too many.
    pub(super) fn subscribe(&self, id: SubscriberId, filter: &str, qos: QoS) -> bool {
        let mut state = self.state();
        if !state.subscribers.contains_key(&id) {
            return false;
        }
        let filters = state.filters.entry(id).or_default();
        if filters.len() >= self.limits.subscriptions_max && !filters.contains(filter) {
            return false;
        }
        filters.insert(filter.to_owned());
        state.trie.insert(filter, id, qos);
        true
    }

    /// Takes a subscription back.
    pub(super) fn unsubscribe(&self, id: SubscriberId, filter: &str) {
        let mut state = self.state();
        if state.filters.get_mut(&id).is_some_and(|filters| filters.remove(filter)) {
            state.trie.remove(filter, id);
        }
    }

    /// Queues a message for every client that wants it, and returns the ports that do.
    fn route(&self, message: &Message, qos: QoS) -> Vec<mpsc::Sender<Message>> {
        let state = self.state();
        let mut ports = Vec::new();
        for (id, best) in state.trie.matches(&message.topic) {
            match state.subscribers.get(&id) {
                Some(Subscriber::Client(outbox)) => {
                    let qos = if (best as u8) < (qos as u8) { best } else { qos };
                    send(outbox, Outgoing::Publish(message.clone(), qos));
                }
                Some(Subscriber::Port(port)) => ports.push(port.clone()),
                None => {}
            }
        }
        ports
    }

    /// Publishes for a client, which waits while a port is full.
    pub(super) async fn publish(&self, message: Message, qos: QoS) {
        for port in self.route(&message, qos) {
            // A port that was dropped meanwhile wants nothing any more.
            let _ = port.send(message.clone()).await;
        }
    }

    /// Publishes from inside the process, without waiting.
    pub(super) fn publish_now(&self, message: Message) {
        for port in self.route(&message, QoS::AtMostOnce) {
            if port.try_send(message.clone()).is_err() {
                tracing::warn!(topic = %message.topic, "a port inside the process is full; a message is lost");
            }
        }
    }

    /// Publishes a will.
    pub(super) async fn publish_will(&self, will: Option<LastWill>) {
        if let Some(LastWill { topic, message, qos, .. }) = will {
            self.publish(Message { topic: topic.into(), payload: Bytes::from(message.to_vec()) }, qos).await;
        }
    }

    /// Cuts everybody off and lets ports end.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        for client in state.clients.values() {
            client.outbox.close("the broker shuts down");
        }
        state.subscribers.clear();
    }
}

/// Queues for a client; one that lets too much wait is cut off.
pub(super) fn send(outbox: &Outbox, outgoing: Outgoing) {
    if let Err(Full) = outbox.push(outgoing) {
        outbox.close(SLOW);
    }
}
