//! Sorts what comes off the bus: frames to the tasks of their nodes, wills to the same, joins to whoever answers them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lichen_wire::session::{Config, GatewayConfig, Growable, Session};
use lichen_wire::topic::{Channel, PRESENCE_DOWN, Topic};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::Shared;
use crate::bus::{Arrival, Bus, Message};
use crate::join;
use crate::node::{Handle, Input};
use crate::ownership;

/// The tasks of all nodes that have joined.
#[derive(Default)]
pub(crate) struct Nodes(Mutex<BTreeMap<String, Handle>>);

impl Nodes {
    /// Where a node's task takes wishes; none if there is no such node.
    pub(crate) fn inputs(&self, node: &str) -> Option<mpsc::Sender<Input>> {
        self.lock().get(node).map(Handle::inputs)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Handle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a node's task, or gives a node that joined anew a task with its new key.
    fn start(&self, shared: &Arc<Shared>, node: &str) -> bool {
        let entry = match ownership::node_key(&shared.registry, node) {
            Ok(Some(entry)) => entry,
            Ok(None) => return false,
            Err(error) => {
                tracing::error!(node, %error, "a node can't be served");
                return false;
            }
        };
        let (Ok(name), Some(topic)) =
            (node.try_into(), (Topic::Node { node, channel: Channel::Down }).name())
        else {
            return false;
        };
        let config = Config::Gateway(GatewayConfig {
            node: name,
            key: entry.key,
            epoch: shared.epoch,
            incarnation: shared.incarnation,
            limits: shared.limits,
            timing: shared.timing,
        });
        let session = Session::<Growable>::new(config, (shared.random)());
        if self.lock().remove(node).is_some() {
            // The session under the old key ends without a word.
            shared.desired.lock().unwrap_or_else(PoisonError::into_inner).detach(node);
            shared.presence.set(node, false, Instant::now());
        }
        let handle = Handle::spawn(shared.clone(), node, topic.as_str().to_owned(), session);
        self.lock().insert(node.to_owned(), handle);
        true
    }

    /// Tells every task that the bus is linked.
    fn linked(&self) {
        self.lock().values().for_each(Handle::linked);
    }

    /// Ends every task after a goodbye to its node.
    pub(crate) async fn stop(&self) {
        let all = std::mem::take(&mut *self.lock());
        futures_util::future::join_all(all.into_values().map(Handle::stop)).await;
    }
}

/// Serves the bus until it ends or this is dropped.
pub(crate) async fn run(
    shared: Arc<Shared>,
    nodes: Arc<Nodes>,
    mut bus: Box<dyn Bus>,
    joins: mpsc::Sender<join::Request>,
    mut joined: mpsc::Receiver<String>,
) {
    // Nodes that joined earlier are asked to say hello.
    match ownership::joined_nodes(&shared.registry) {
        Ok(known) => {
            for node in known {
                nodes.start(&shared, &node);
            }
        }
        Err(error) => tracing::error!(%error, "nodes are served as they show themselves"),
    }
    loop {
        tokio::select! {
            biased;
            Some(node) = joined.recv() => {
                nodes.start(&shared, &node);
            }
            arrival = bus.recv() => match arrival {
                Some(Arrival::Message(message)) => sort(&shared, &nodes, &joins, message),
                Some(Arrival::Linked) => {
                    shared.presence.set_linked(true, Instant::now());
                    nodes.linked();
                }
                Some(Arrival::Lost) => shared.presence.set_linked(false, Instant::now()),
                None => break,
            },
        }
    }
    tracing::info!("the bus has ended");
}

fn sort(shared: &Arc<Shared>, nodes: &Nodes, joins: &mpsc::Sender<join::Request>, message: Message) {
    match Topic::parse(&message.topic) {
        Some(Topic::Node { node, channel: Channel::Up }) => {
            let known = nodes.lock().contains_key(node);
            if !known && !nodes.start(shared, node) {
                tracing::debug!(node, "a frame of a node that has not joined");
                return;
            }
            if let Some(handle) = nodes.lock().get(node) {
                handle.frame(message.payload);
            }
        }
        Some(Topic::Node { node, channel: Channel::Presence }) => {
            // A will is a hint that anyone on the bus could have made up: the node is asked.
            if message.payload == PRESENCE_DOWN
                && let Some(handle) = nodes.lock().get(node)
            {
                handle.probe();
            }
        }
        Some(Topic::JoinUp { token_id }) => {
            let request = join::Request { token_id: token_id.to_owned(), payload: message.payload };
            if joins.try_send(request).is_err() {
                tracing::warn!("a join request was dropped: too many wait");
            }
        }
        Some(Topic::Node { channel: Channel::Down, .. } | Topic::JoinDown { .. }) | None => {
            tracing::debug!(topic = &*message.topic, "a message that is not for the gateway");
        }
    }
}
