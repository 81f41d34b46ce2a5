//! Which pods go first when there are too many: those whose loss costs least.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use lichen_api::k8s::api::apps::v1::ReplicaSet;
use lichen_api::k8s::api::core::v1::Pod;
use lichen_api::view::{View, controller_of};

use crate::meta::{annotation, created, uid};
use crate::pods;

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The `count` pods to delete first, in Kubernetes' order: without a node before those with one, pending before
/// running, not ready before ready, lower deletion cost first, those with more siblings on their node, the youngest
/// by orders of magnitude, more restarts, and at last by UID.
pub(super) fn first_to_go(
    view: &View,
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    count: usize,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    let siblings = siblings_by_node(view, set);
    let mut ranked: Vec<(Rank<'_>, &Arc<Pod>)> =
        active.iter().map(|pod| (rank(pod, &siblings, now), pod)).collect();
    ranked.sort_by(|(a, _), (b, _)| a.cmp(b));
    ranked.into_iter().take(count).map(|(_, pod)| pod.clone()).collect()
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank<'a> {
    has_node: bool,
    phase: u8,
    is_ready: bool,
    deletion_cost: i32,
    siblings: Reverse<usize>,
    ready_for: u32,
    restarts: Reverse<i32>,
    age: u32,
    uid: &'a str,
}

fn rank<'a>(pod: &'a Pod, siblings: &BTreeMap<&str, usize>, now: Timestamp) -> Rank<'a> {
    let ready = pods::ready_condition(pod);
    let since = ready.and_then(|condition| condition.last_transition_time.as_ref());
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    Rank {
        has_node: pods::node(pod).is_some(),
        phase: match pods::phase(pod) {
            "Running" => 2,
            "Unknown" => 1,
            _ => 0,
        },
        is_ready: ready.is_some(),
        deletion_cost: annotation(&pod.metadata, DELETION_COST)
            .and_then(|cost| cost.parse().ok())
            .unwrap_or(0),
        siblings: Reverse(pods::node(pod).and_then(|node| siblings.get(node).copied()).unwrap_or(0)),
        ready_for: since.map_or(0, |time| magnitude(time.0, now)),
        restarts: Reverse(statuses.map(|status| status.restart_count).max().unwrap_or(0)),
        age: magnitude(created(&pod.metadata), now),
        uid: uid(&pod.metadata),
    }
}

/// The order of magnitude of an age, so that pods of about the same age are chosen among by chance, not by seconds.
fn magnitude(since: Timestamp, now: Timestamp) -> u32 {
    let nanos = now.duration_since(since).as_nanos().max(1);
    nanos.unsigned_abs().ilog2()
}

/// Active pods by node, over all ReplicaSets of the same controller: what matters is the spread of the whole.
fn siblings_by_node<'a>(view: &'a View, set: &'a ReplicaSet) -> BTreeMap<&'a str, usize> {
    let family: Vec<&Arc<ReplicaSet>> = match controller_of(&set.metadata) {
        Some(owner) => view.replica_sets_of(&owner.uid).collect(),
        None => Vec::new(),
    };
    let mut uids: Vec<&str> = family.iter().map(|sibling| uid(&sibling.metadata)).collect();
    if uids.is_empty() {
        uids.push(uid(&set.metadata));
    }
    let mut counts = BTreeMap::new();
    for node in uids.into_iter().flat_map(|uid| view.pods_of(uid)).filter(|pod| pods::is_active(pod)) {
        if let Some(node) = pods::node(node) {
            *counts.entry(node).or_default() += 1;
        }
    }
    counts
}
