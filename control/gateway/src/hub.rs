//! Sorts what comes off the bus: frames to the tasks of their nodes, wills to the same, joins to whoever answers them.
//! Begins and ends those tasks as nodes join and go.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lichen_wire::keys::NodeKey;
use lichen_wire::session::{Config, GatewayConfig, Growable, Session};
use lichen_wire::topic::{Channel, PRESENCE_DOWN, Topic};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::Shared;
use crate::bus::{Arrival, Bus, Message};
use crate::node::{Handle, Input};
use crate::{join, members};

/// What became of a node.
pub(crate) enum Event {
    /// It has joined, maybe anew.
    Joined(String),
    /// It was given another key, which counts beside the one that it has until it uses it.
    Renewed(String, NodeKey),
    /// It has left.
    Gone(String),
}

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
        let member = match members::find(&shared.registry, node) {
            Ok(Some((member, _))) => member,
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
            key: member.key,
            epoch: shared.epoch,
            incarnation: shared.incarnation,
            limits: shared.limits,
            timing: shared.timing,
        });
        let mut session = Session::<Growable>::new(config, (shared.random)());
        if let Some(next) = member.next {
            session.offer_key(next.key);
        }
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

    /// Ends all that is carried for a node. When this returns, nothing of it is written any more.
    pub(crate) async fn end(&self, shared: &Shared, node: &str) {
        let handle = self.lock().remove(node);
        if let Some(handle) = handle {
            handle.stop().await;
        }
        shared.presence.forget(node);
        shared.publisher.disconnect(node);
    }

    /// Gives a node's task something to do, if there is one.
    pub(crate) async fn tell(&self, node: &str, input: Input) {
        if let Some(inputs) = self.inputs(node) {
            // A task that has ended needs no input.
            let _ = inputs.send(input).await;
        }
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
    mut events: mpsc::Receiver<Event>,
) {
    // Nodes that joined earlier are asked to say hello.
    match members::all(&shared.registry) {
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
            Some(event) = events.recv() => match event {
                Event::Joined(node) => {
                    nodes.start(&shared, &node);
                }
                Event::Renewed(node, key) => nodes.tell(&node, Input::Key(key)).await,
                Event::Gone(node) => nodes.end(&shared, &node).await,
            },
            arrival = bus.recv() => match arrival {
                Some(Arrival::Message(message)) => sort(&shared, &nodes, message),
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

fn sort(shared: &Arc<Shared>, nodes: &Nodes, message: Message) {
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
            let from = join::From::Topic(token_id.to_owned());
            if shared.joins.try_send(join::Request { from, payload: message.payload }).is_err() {
                tracing::warn!("a join request was dropped: too many wait");
            }
        }
        Some(Topic::Node { channel: Channel::Down, .. } | Topic::JoinDown { .. }) | None => {
            tracing::debug!(topic = &*message.topic, "a message that is not for the gateway");
        }
    }
}
