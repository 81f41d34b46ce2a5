//! Which nodes are there, and the Ready conditions that follow from it.
//!
//! Presence lives in memory. It becomes a write on a transition only: when a node's session stands, and when a node
//! without one was not heard of for the grace period. Until then it is answered to whoever reads a node or its Lease.
//!
//! Invariants:
//! - no node is called silent before this gateway itself could have heard of it for the whole grace period: after a start
//!   and after a loss of the bus, every node has that time to show itself;
//! - a gateway whose nodes another one has taken over calls none of them silent;
//! - a node's Ready condition is true before anything that it reports is written.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use jiff::Timestamp;
use lichen_api::{Status, kinds};
use lichen_registry::{Identity, NodePresence, Registry, WriteOptions};
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::time::Instant;

use crate::conditions::{Link, set_link};
use crate::ownership;

/// The pause before a condition is written again that could not be.
const RETRY: Duration = Duration::from_secs(1);
/// Times that a write is tried again when the Node changed meanwhile.
const ATTEMPTS: usize = 10;
/// Conditions that are written at the same time.
const WRITES_MAX: usize = 32;

#[derive(Debug)]
struct NodeLink {
    up: bool,
    /// When the node was last heard of, or since when it could have been.
    heard: Instant,
    /// The same by the registry's clock, as far as it is known.
    heard_at: Option<Timestamp>,
    /// What the Node says, as far as this gateway has written it.
    written: Option<Link>,
    /// Held by whoever writes the Node's Ready condition.
    verdict: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Default)]
struct Nodes {
    links: BTreeMap<String, NodeLink>,
    /// Since when the gateway can hear nodes; none while its own bus is down.
    linked_since: Option<Instant>,
}

/// Which nodes have a session.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    nodes: Mutex<Nodes>,
    changed: Notify,
}

impl Presence {
    /// A node that is known from before. `heard_at` is what its Node says.
    pub(crate) fn expect(&self, node: &str, heard_at: Option<Timestamp>, now: Instant) {
        self.lock().links.entry(node.to_owned()).or_insert_with(|| NodeLink::new(now)).heard_at = heard_at;
        self.changed.notify_one();
    }

    /// A node is gone for good.
    pub(crate) fn forget(&self, node: &str) {
        self.lock().links.remove(node);
    }

    /// The gateway's own bus is up, or down.
    pub(crate) fn set_linked(&self, linked: bool, now: Instant) {
        let mut nodes = self.lock();
        nodes.linked_since = linked.then(|| nodes.linked_since.unwrap_or(now));
        drop(nodes);
        self.changed.notify_one();
    }

    /// A node's session stands, or stands no more.
    pub(crate) fn set(&self, node: &str, up: bool, now: Instant) {
        let mut nodes = self.lock();
        nodes.links.entry(node.to_owned()).or_insert_with(|| NodeLink::new(now)).up = up;
        drop(nodes);
        self.changed.notify_one();
    }

    /// A node has proved in its session that it is there.
    pub(crate) fn heard(&self, node: &str, now: Instant, at: Timestamp) {
        if let Some(link) = self.lock().links.get_mut(node) {
            link.heard = now;
            // A clock that was set back does not make a node older.
            link.heard_at = link.heard_at.max(Some(at));
        }
    }

    /// Whether a node's session stands.
    pub(crate) fn is_up(&self, node: &str) -> bool {
        self.lock().links.get(node).is_some_and(|link| link.up)
    }

    /// Waits until nobody else writes the node's Ready condition, and keeps it so.
    pub(crate) async fn verdict(&self, node: &str) -> Option<OwnedMutexGuard<()>> {
        let verdict = self.lock().links.get(node)?.verdict.clone();
        Some(verdict.lock_owned().await)
    }

    /// The Node says what is known of the link.
    pub(crate) fn written(&self, node: &str, link: Link) {
        if let Some(entry) = self.lock().links.get_mut(node) {
            entry.written = Some(link);
        }
    }

    /// Makes a Node whose node has a session say so, unless it does.
    pub(crate) async fn confirm(&self, registry: &Registry, node: &str) -> Result<(), Status> {
        let wanting = |link: &NodeLink| link.up && link.written != Some(Link::Up);
        if !self.lock().links.get(node).is_some_and(wanting) {
            return Ok(());
        }
        let _verdict = self.verdict(node).await;
        if self.lock().links.get(node).is_some_and(wanting) {
            write(registry, node, Link::Up, None).await?;
            self.written(node, Link::Up);
        }
        Ok(())
    }

    /// What is due to be written, and when to look again.
    fn due(&self, now: Instant, grace: Duration) -> (Vec<(String, Link)>, Option<Instant>) {
        let (mut due, mut next) = (Vec::new(), None);
        let nodes = self.lock();
        for (node, link) in &nodes.links {
            let Some((want, at)) = nodes.verdict(link, now, grace) else { continue };
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

    /// What is to be written of a node now, and when it was last heard of.
    fn want(&self, node: &str, now: Instant, grace: Duration) -> Option<(Link, Option<Timestamp>)> {
        let nodes = self.lock();
        let link = nodes.links.get(node)?;
        let (want, at) = nodes.verdict(link, now, grace)?;
        (at <= now && link.written != Some(want)).then_some((want, link.heard_at))
    }

    /// Writes conditions for as long as the gateway of this epoch runs.
    pub(crate) async fn run(self: Arc<Self>, registry: Registry, grace: Duration, epoch: u64) {
        loop {
            let (due, mut next) = self.due(Instant::now(), grace);
            let judge = |(node, link): (String, Link)| {
                let (presence, registry) = (&self, &registry);
                async move { presence.judge(registry, &node, link, grace, epoch).await }
            };
            let mut all = stream::iter(due).map(judge).buffer_unordered(WRITES_MAX);
            while let Some(done) = all.next().await {
                if !done {
                    let again = Instant::now() + RETRY;
                    next = Some(next.map_or(again, |next| next.min(again)));
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

    /// Writes what a Node is to say, if that still holds when its turn comes. Says whether that is done.
    async fn judge(&self, registry: &Registry, node: &str, link: Link, grace: Duration, epoch: u64) -> bool {
        let _verdict = self.verdict(node).await;
        let Some((want, heard)) = self.want(node, Instant::now(), grace).filter(|(want, _)| *want == link)
        else {
            return true;
        };
        if want == Link::Silent && !ownership::is_current(registry, epoch) {
            tracing::info!(node, "another gateway has taken over: it judges whether the node is silent");
            self.written(node, want);
            return true;
        }
        match write(registry, node, want, heard).await {
            Ok(()) => {
                tracing::info!(node, link = ?want, "a node's link changed");
                self.written(node, want);
                true
            }
            Err(status) => {
                tracing::warn!(node, %status, "a node's Ready condition waits to be written");
                false
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NodePresence for Presence {
    fn last_heard(&self, node: &str) -> Option<Timestamp> {
        self.lock().links.get(node)?.heard_at
    }
}

impl NodeLink {
    fn new(now: Instant) -> NodeLink {
        NodeLink { up: false, heard: now, heard_at: None, written: None, verdict: Arc::default() }
    }
}

impl Nodes {
    /// What a Node is to say, and from when on. None while that cannot be judged.
    fn verdict(&self, link: &NodeLink, now: Instant, grace: Duration) -> Option<(Link, Instant)> {
        if link.up {
            return Some((Link::Up, now));
        }
        Some((Link::Silent, self.linked_since?.max(link.heard) + grace))
    }
}

/// Writes what is known of a node's link into its Node, if there is one.
async fn write(registry: &Registry, node: &str, link: Link, heard: Option<Timestamp>) -> Result<(), Status> {
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
        set_link(&mut object, link, heard, now);
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

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn silence_counts_after_the_grace_period_only() {
        let presence = Presence::default();
        let start = Instant::now();
        presence.set_linked(true, start);
        presence.set("a", true, start);
        assert_eq!(presence.due(start, GRACE).0, [("a".to_owned(), Link::Up)]);
        presence.written("a", Link::Up);
        let heard = start + GRACE;
        presence.heard("a", heard, at(100));
        presence.set("a", false, heard + GRACE / 2);
        assert_eq!(
            presence.due(heard + GRACE / 2, GRACE),
            (Vec::new(), Some(heard + GRACE)),
            "counted from when the node was last heard of"
        );
        assert_eq!(presence.due(heard + GRACE, GRACE).0, [("a".to_owned(), Link::Silent)]);
        assert_eq!(presence.last_heard("a"), Some(at(100)));
        presence.set("a", true, heard + GRACE / 2);
        assert_eq!(
            presence.due(heard + GRACE, GRACE),
            (Vec::new(), None),
            "back in time: nothing is written"
        );
        presence.heard("a", heard + GRACE, at(90));
        assert_eq!(presence.last_heard("a"), Some(at(100)), "a time never goes back");
    }

    #[test]
    fn a_gateway_that_cannot_hear_judges_nobody() {
        let presence = Presence::default();
        let start = Instant::now();
        presence.expect("a", Some(at(7)), start);
        assert_eq!(presence.due(start + GRACE * 9, GRACE), (Vec::new(), None), "it was never linked");
        assert_eq!(presence.last_heard("a"), Some(at(7)), "what the Node says holds until more is known");

        let up = start + GRACE;
        presence.set_linked(true, up);
        presence.set_linked(true, up + GRACE / 2);
        assert_eq!(presence.due(up + GRACE / 2, GRACE), (Vec::new(), Some(up + GRACE)));
        presence.set_linked(false, up + GRACE / 2);
        assert_eq!(presence.due(up + GRACE, GRACE), (Vec::new(), None), "the bus is down");
        let again = up + GRACE * 3;
        presence.set_linked(true, again);
        assert_eq!(presence.due(again, GRACE), (Vec::new(), Some(again + GRACE)));
        assert_eq!(presence.due(again + GRACE, GRACE).0, [("a".to_owned(), Link::Silent)]);
    }
}
