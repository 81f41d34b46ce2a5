//! What is known of nodes without being written, and how it is shown.
//!
//! A node that stays connected costs no write, so what is stored of it is as old as its last transition. Its Lease in
//! [`NODE_LEASE_NAMESPACE`] and the heartbeats of its Node's conditions are answered from presence instead:
//! [`Registry::present`] puts the time into a copy of the record's bytes.
//!
//! Invariants: only what an object is now is shown with what is known now, so that an old revision is told as it was;
//! a time never goes back; the resourceVersion is that of the last write. A watch tells of writes alone: heartbeats wake
//! nobody up.

use std::borrow::Cow;

use jiff::Timestamp;
use lichen_api::kinds::node::AGENT_CONDITIONS;
use lichen_api::{Resource, kinds, names};
use lichen_store::Record;
use serde::Deserialize;

use crate::Registry;
use crate::registry::{key_of, name_of, namespace_of};

/// The namespace of the Leases that say which nodes are there.
pub const NODE_LEASE_NAMESPACE: &str = "kube-node-lease";

/// Knows which nodes are there.
///
/// Obligations: it answers at once and from memory; what it says of a node never goes back.
pub trait NodePresence: Send + Sync + 'static {
    /// When a node was last heard of. `None` if that is not known: what is stored then holds.
    fn last_heard(&self, node: &str) -> Option<Timestamp>;
}

/// Where a time stands in a body, as far as a node answers for it.
#[derive(Deserialize)]
struct NodeBody<'a> {
    #[serde(borrow)]
    status: Option<NodeStatus<'a>>,
}

#[derive(Deserialize)]
struct NodeStatus<'a> {
    #[serde(borrow, default)]
    conditions: Vec<Condition<'a>>,
}

#[derive(Deserialize)]
struct Condition<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow, rename = "lastHeartbeatTime")]
    heartbeat: Option<&'a str>,
}

#[derive(Deserialize)]
struct LeaseBody<'a> {
    #[serde(borrow)]
    spec: Option<LeaseSpec<'a>>,
}

#[derive(Deserialize)]
struct LeaseSpec<'a> {
    #[serde(borrow, rename = "holderIdentity")]
    holder: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "renewTime")]
    renewed: Option<&'a str>,
}

impl Registry {
    /// A record as it is to be shown to a client.
    #[must_use]
    pub fn present(&self, resource: &Resource, record: Record, nodes: &dyn NodePresence) -> Record {
        let (name, namespace) = (name_of(&record), namespace_of(&record));
        let node = is(resource, &kinds::node::RESOURCE);
        let lease = is(resource, &kinds::lease::RESOURCE) && namespace == Some(NODE_LEASE_NAMESPACE);
        if !node && !lease {
            return record;
        }
        let Some(heard) = nodes.last_heard(name) else { return record };
        let current = self.inner.store.get(&key_of(resource, namespace, name));
        if current.is_none_or(|current| current.revision() != record.revision()) {
            return record;
        }
        let (times, heard) = match node {
            true => (heartbeats(record.body()), names::rfc3339(heard)),
            false => (renewal(record.body(), name), names::rfc3339_micro(heard)),
        };
        // Times of one form are ordered as their texts are.
        let older = |time: &&str| time.len() == heard.len() && **time < *heard;
        let start = record.body().as_ptr().addr();
        let places: Vec<usize> =
            times.into_iter().filter(older).map(|time| time.as_ptr().addr() - start).collect();
        if places.is_empty() {
            return record;
        }
        record.with_body(|body| {
            for at in places {
                body[at..at + heard.len()].copy_from_slice(heard.as_bytes());
            }
        })
    }
}

fn is(resource: &Resource, other: &Resource) -> bool {
    (resource.group, resource.kind) == (other.group, other.kind)
}

/// The heartbeats of a Node's conditions. What cannot be read is shown as it is stored.
fn heartbeats(body: &[u8]) -> Vec<&str> {
    let node: Option<NodeBody<'_>> = serde_json::from_slice(body).ok();
    let conditions = node.and_then(|node| node.status).map(|status| status.conditions).unwrap_or_default();
    let own = conditions.into_iter().filter(|one| AGENT_CONDITIONS.contains(&&*one.kind));
    own.filter_map(|condition| condition.heartbeat).collect()
}

/// When a node's Lease was renewed, if the node itself holds it.
fn renewal<'a>(body: &'a [u8], node: &str) -> Vec<&'a str> {
    let lease: Option<LeaseBody<'a>> = serde_json::from_slice(body).ok();
    let spec = lease.and_then(|lease| lease.spec).filter(|spec| spec.holder.as_deref() == Some(node));
    spec.and_then(|spec| spec.renewed).into_iter().collect()
}
