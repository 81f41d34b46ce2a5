//! What a ReplicaSet tells of its pods.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lichen_api::k8s::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use lichen_api::k8s::api::core::v1::Pod;
use lichen_api::view::Kind;

use crate::meta::{id_of, value};
use crate::{Action, Outcome, pods};

/// Adds the update of the status if it is not what it should be, and a later look if a pod becomes available by
/// time alone.
pub(super) fn update(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    terminating: usize,
    now: Timestamp,
    outcome: &mut Outcome,
) {
    let spec = set.spec.as_ref();
    let min_ready = spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let labels = spec.and_then(|s| s.template.as_ref()?.metadata.as_ref()?.labels.as_ref());
    let carries = |pod: &Pod| {
        let own = pod.metadata.labels.as_ref();
        labels.into_iter().flatten().all(|(key, value)| own.and_then(|own| own.get(key)) == Some(value))
    };
    let mut available = 0;
    for wait in active.iter().filter_map(|pod| pods::available_in(pod, min_ready, now)) {
        if wait == Duration::ZERO {
            available += 1;
        } else {
            outcome.requeue(wait);
        }
    }
    let before = set.status.clone().unwrap_or_default();
    let after = ReplicaSetStatus {
        available_replicas: Some(available),
        conditions: before.conditions.clone(),
        fully_labeled_replicas: Some(count(active.iter().filter(|pod| carries(pod)).count())),
        observed_generation: set.metadata.generation,
        ready_replicas: Some(count(active.iter().filter(|pod| pods::is_ready(pod)).count())),
        replicas: count(active.len()),
        terminating_replicas: Some(count(terminating)),
    };
    if tidy(before) != tidy(after.clone()) {
        let object = ReplicaSet { status: Some(tidy(after)), ..set.clone() };
        let id = id_of(Kind::REPLICA_SET, &set.metadata);
        outcome.push(Action::Update { id, object: value(&object), subresource: Some("status") });
    }
}

/// Leaves out zeros that Kubernetes leaves out, so that what was written and what was read compare equal.
fn tidy(status: ReplicaSetStatus) -> ReplicaSetStatus {
    let filled = |number: Option<i32>| number.filter(|number| *number != 0);
    ReplicaSetStatus {
        available_replicas: filled(status.available_replicas),
        fully_labeled_replicas: filled(status.fully_labeled_replicas),
        ready_replicas: filled(status.ready_replicas),
        terminating_replicas: Some(status.terminating_replicas.unwrap_or(0)),
        ..status
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
