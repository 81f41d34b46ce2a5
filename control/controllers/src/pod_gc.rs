//! Removes pods whose node will never confirm their end: because the Node no longer exists, or because someone who knows
//! that the machine is out of service has put the taint [`OUT_OF_SERVICE`] on it.
//!
//! A node that is deleted may only be about to register again, so its pods are given [`QUARANTINE`]. A node out of service
//! is still sent the end of its pods, should it come back after all.

use std::time::Duration;

use jiff::Timestamp;
use lichen_api::k8s::api::core::v1::{Node, Pod};
use lichen_api::taints;
use lichen_api::view::{Change, Kind, Object, ObjectId, View};

use crate::meta::{id_of, is_deleting, regarding, uid, warning};
use crate::{Action, Interest, Outcome, Reconciler, Step, pods};

/// The taint, set by hand, of a node that is known to be shut down and stays so.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// How long pods of a missing node are left alone.
pub(crate) const QUARANTINE: Duration = Duration::from_secs(40);

/// See the module.
pub(crate) struct PodGarbageCollector;

impl Reconciler for PodGarbageCollector {
    fn name(&self) -> &'static str {
        "pod-garbage-collector"
    }

    fn interest(&self, view: &View, change: &Change) -> Vec<Interest> {
        let key =
            |node: &str, after: Duration| vec![Interest { id: ObjectId::new(Kind::NODE, "", node), after }];
        match change.object() {
            Some(Object::Node(node)) => match change.is_removal() {
                true => key(&change.id.key.name, QUARANTINE),
                false if is_out_of_service(node) => key(&change.id.key.name, Duration::ZERO),
                false => Vec::new(),
            },
            Some(Object::Pod(pod)) if !change.is_removal() => {
                let Some(node) = pods::node(pod) else { return Vec::new() };
                let was_bound = matches!(&change.old, Some(Object::Pod(old)) if pods::node(old).is_some());
                match view.nodes.get("", node) {
                    None if !was_bound => key(node, QUARANTINE),
                    Some(known) if is_deleting(&pod.metadata) && is_out_of_service(known) => {
                        key(node, Duration::ZERO)
                    }
                    _ => Vec::new(),
                }
            }
            _ => Vec::new(),
        }
    }

    fn reconcile(&self, view: &View, id: &ObjectId, _: Timestamp) -> Outcome {
        let node = &id.key.name;
        let mut outcome = Outcome::done();
        let known = view.nodes.by_key(&id.key);
        let lost = known.is_none();
        if !lost && !known.is_some_and(|node| is_out_of_service(node)) {
            return outcome;
        }
        let message = match lost {
            true => format!("Deleted, because its node {node} no longer exists"),
            false => format!("Deleted, because its node {node} is out of service"),
        };
        for pod in view.pods_on(node).filter(|pod| lost || is_deleting(&pod.metadata)) {
            outcome.steps.push(remove(pod, message.clone()));
        }
        outcome
    }
}

/// Whether a node is not ready and said to stay so.
fn is_out_of_service(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    !ready && taints::of(node).iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

/// Removes a pod without waiting for its node.
fn remove(pod: &Pod, message: String) -> Step {
    let action = Action::Delete {
        id: id_of(Kind::POD, &pod.metadata),
        uid: uid(&pod.metadata).to_owned(),
        resource_version: None,
        propagation: None,
        grace_seconds: Some(0),
    };
    let about = regarding(Kind::POD, &pod.metadata);
    Step { done: Some(warning(&about, "NodeGone", message)), ..Step::from(action) }
}
