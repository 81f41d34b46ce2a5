//! Which nodes are there, and the Ready conditions that follow from it.
//!
//! Presence lives in memory. It becomes a write on a transition only: at once when a node's session stands, and after
//! the grace period when it has none any more. A node that was Ready when this gateway started has the whole grace
//! period, counted from the start, to show itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lichen_api::{Status, kinds};
use lichen_registry::{Identity, Registry, WriteOptions};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::conditions::{Link, set_link};

/// The pause before a condition is written again that could not be.
const RETRY: Duration = Duration::from_secs(1);
/// Times that a write is tried again when the Node changed meanwhile.
const ATTEMPTS: usize = 10;

#[derive(Debug)]
struct NodeLink {
    up: bool,
    since: Instant,
    /// What the Node says, as far as this gateway has written it.
    written: Option<Link>,
}

/// Which nodes have a session.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    nodes: Mutex<BTreeMap<String, NodeLink>>,
    /// Since when the gateway can hear nodes; none while its own bus is down.
    linked_since: Mutex<Option<Instant>>,
    changed: Notify,
}

impl Presence {
    /// A node's session stands, or stands no more.
    pub(crate) fn set(&self, node: &str, up: bool, now: Instant) {
        let mut nodes = self.lock();
        match nodes.get_mut(node) {
            Some(link) if link.up == up => {}
            Some(link) => {
                link.up = up;
                link.since = now;
            }
            None => drop(nodes.insert(node.to_owned(), NodeLink { up, since: now, written: None })),
        }
        drop(nodes);
        self.changed.notify_one();
    }

    /// The gateway's own bus is up, or down.
    pub(crate) fn set_linked(&self, linked: bool, now: Instant) {
        let mut since = self.linked_since.lock().unwrap_or_else(PoisonError::into_inner);
        *since = linked.then(|| since.unwrap_or(now));
        drop(since);
        self.changed.notify_one();
    }

    /// Whether a node's session stands.
    pub(crate) fn is_up(&self, node: &str) -> bool {
        self.lock().get(node).is_some_and(|link| link.up)
    }

    /// What is due to be written, and when to look again.
    fn due(&self, now: Instant, grace: Duration) -> (Vec<(String, Link)>, Option<Instant>) {
        let (mut due, mut next) = (Vec::new(), None);
        let linked_since = *self.linked_since.lock().unwrap_or_else(PoisonError::into_inner);
        for (node, link) in self.lock().iter() {
            let (want, at) = match link.up {
                true => (Link::Up, link.since),
                // A gateway that could not hear a node has no verdict on it.
                false => match linked_since {
                    Some(linked) => (Link::Silent, link.since.max(linked) + grace),
                    None => continue,
                },
            };
            if link.written == Some(want) {
                continue;
            }
            if at <= now {
                due.push((node.clone(), want));
            } else if next.is_none_or(|next| at < next) {
                next = Some(at);
            }
        }
        (due, next)
    }

    fn written(&self, node: &str, link: Link) {
        if let Some(entry) = self.lock().get_mut(node) {
            entry.written = Some(link);
        }
    }

    /// Writes conditions for as long as the gateway runs.
    pub(crate) async fn run(self: Arc<Self>, registry: Registry, grace: Duration) {
        loop {
            let (due, mut next) = self.due(Instant::now(), grace);
            for (node, link) in due {
                match write(&registry, &node, link).await {
                    Ok(()) => {
                        tracing::info!(node, ?link, "a node's link changed");
                        self.written(&node, link);
                    }
                    Err(status) => {
                        tracing::warn!(node, %status, "a node's Ready condition waits to be written");
                        let again = Instant::now() + RETRY;
                        next = Some(next.map_or(again, |next| next.min(again)));
                    }
                }
            }
            let sleep = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = sleep => {}
                () = self.changed.notified() => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, NodeLink>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes what is known of a node's link into its Node, if there is one.
async fn write(registry: &Registry, node: &str, link: Link) -> Result<(), Status> {
    let identity = Identity::component("system:gateway");
    let (resource, now) = (&kinds::node::RESOURCE, registry.now());
    let mut attempt = 0;
    loop {
        attempt += 1;
        let record = match registry.get(resource, None, node).await {
            Ok(record) => record,
            Err(status) if status.code == 404 => return Ok(()),
            Err(status) => return Err(status),
        };
        let mut object = record.value().map_err(Status::internal)?;
        set_link(&mut object["status"], link, now);
        let options = WriteOptions::default();
        match registry.update(&identity, resource, None, node, object, Some("status"), &options).await {
            Ok(_) => return Ok(()),
            Err(status) if status.code == 404 => return Ok(()),
            Err(status) if status.reason == "Conflict" && attempt < ATTEMPTS => {}
            Err(status) => return Err(status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(40);

    #[test]
    fn silence_counts_after_the_grace_period_only() {
        let presence = Presence::default();
        let start = Instant::now();
        presence.set_linked(true, start);
        presence.set("a", true, start);
        assert_eq!(presence.due(start, GRACE).0, [("a".to_owned(), Link::Up)]);
        presence.written("a", Link::Up);
        presence.set("a", false, start);
        assert_eq!(presence.due(start, GRACE), (Vec::new(), Some(start + GRACE)));
        assert_eq!(presence.due(start + GRACE, GRACE).0, [("a".to_owned(), Link::Silent)]);
        presence.set("a", true, start + GRACE / 2);
        assert_eq!(
            presence.due(start + GRACE, GRACE),
            (Vec::new(), None),
            "back in time: nothing is written"
        );
        presence.set("a", false, start);
        presence.set_linked(false, start);
        assert_eq!(presence.due(start + GRACE, GRACE), (Vec::new(), None), "no bus, no verdict");
        presence.set_linked(true, start + GRACE);
        assert_eq!(presence.due(start + GRACE, GRACE), (Vec::new(), Some(start + GRACE * 2)));
    }
}
