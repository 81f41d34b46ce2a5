//! Ends pods that do not tolerate a `NoExecute` taint of their node, or no longer do.
//!
//! As in Kubernetes, a toleration without `tolerationSeconds` holds for as long as the taint does, and of several that
//! name seconds the shortest counts. The seconds run from when both the taint and the pod were there. Nothing is
//! remembered: the times are in the objects, and a taint that goes in time leaves no trace.
//!
//! A pod on a node that is out of reach stays, with the time of its deletion on it, until the node confirms its end or the
//! Node goes.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lichen_api::k8s::api::core::v1::{Node, Pod, PodCondition, Taint, Toleration};
use lichen_api::taints::{self, NO_EXECUTE, covers};
use lichen_api::view::{Change, Kind, Object, ObjectId, View};

use crate::meta::{created, id_of, is_deleting, name, namespace, normal, regarding, time, uid, value};
use crate::{Action, Interest, Outcome, Reconciler, Step, pods};

/// The condition that says why a pod is ended, for whoever replaces it.
const DISRUPTION_TARGET: &str = "DisruptionTarget";
/// Its reason.
const BY_TAINT: &str = "DeletionByTaintManager";

/// See the module.
pub(crate) struct TaintEvictionController;

impl Reconciler for TaintEvictionController {
    fn name(&self) -> &'static str {
        "taint-eviction-controller"
    }

    fn interest(&self, view: &View, change: &Change) -> Vec<Interest> {
        let executing = |object: &Option<Object>| match object {
            Some(Object::Node(node)) => evicting(node).cloned().collect(),
            _ => Vec::new(),
        };
        match change.object() {
            Some(Object::Node(node)) if executing(&change.old) != executing(&change.new) => {
                let pods = view.pods_on(name(&node.metadata));
                pods.map(|pod| id_of(Kind::POD, &pod.metadata).into()).collect()
            }
            Some(Object::Pod(pod)) if !change.is_removal() && node_of(view, pod).is_some_and(is_evicting) => {
                vec![change.id.clone().into()]
            }
            _ => Vec::new(),
        }
    }

    fn reconcile(&self, view: &View, id: &ObjectId, now: Timestamp) -> Outcome {
        let mut outcome = Outcome::done();
        let Some(pod) = view.pods.by_key(&id.key) else { return outcome };
        let Some(node) = node_of(view, pod).filter(|_| !is_deleting(&pod.metadata)) else { return outcome };
        let Some(end) = end(pod, node) else { return outcome };
        match Duration::try_from(end.duration_since(now)) {
            Ok(wait) if !wait.is_zero() => outcome.requeue(wait),
            _ => outcome.steps.push(evict(pod, now)),
        }
        outcome
    }
}

fn node_of<'v>(view: &'v View, pod: &Pod) -> Option<&'v Node> {
    view.nodes.get("", pods::node(pod)?).map(|node| &**node)
}

fn evicting(node: &Node) -> impl Iterator<Item = &Taint> {
    taints::of(node).iter().filter(|taint| taint.effect == NO_EXECUTE)
}

fn is_evicting(node: &Node) -> bool {
    evicting(node).next().is_some()
}

/// When a pod has to leave its node; none if it may stay for as long as the node's taints are what they are.
fn end(pod: &Pod, node: &Node) -> Option<Timestamp> {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let bound = bound_at(pod);
    evicting(node)
        .filter_map(|taint| match tolerations.iter().find(|toleration| covers(toleration, taint)) {
            None => Some(Timestamp::MIN),
            Some(Toleration { toleration_seconds: None, .. }) => None,
            Some(Toleration { toleration_seconds: Some(seconds), .. }) => {
                let added = taint.time_added.as_ref().map_or(bound, |time| time.0.max(bound));
                added.checked_add(SignedDuration::from_secs((*seconds).max(0))).ok()
            }
        })
        .min()
}

/// When a pod came to its node.
fn bound_at(pod: &Pod) -> Timestamp {
    let scheduled = pods::condition(pod, "PodScheduled").and_then(|one| one.last_transition_time.as_ref());
    scheduled.map_or_else(|| created(&pod.metadata), |time| time.0)
}

/// The next step towards the end of a pod: first it says why, then it is deleted.
fn evict(pod: &Pod, now: Timestamp) -> Step {
    let (id, about) = (id_of(Kind::POD, &pod.metadata), regarding(Kind::POD, &pod.metadata));
    if pods::condition(pod, DISRUPTION_TARGET).is_some_and(|known| known.status == "True") {
        let message =
            format!("Marking for deletion Pod {}/{}", namespace(&pod.metadata), name(&pod.metadata));
        let action = Action::Delete {
            id,
            uid: uid(&pod.metadata).to_owned(),
            resource_version: pod.metadata.resource_version.clone(),
            propagation: None,
            grace_seconds: None,
        };
        return Step { done: Some(normal(&about, "TaintManagerEviction", message)), ..Step::from(action) };
    }
    let mut object = pod.clone();
    let conditions = object.status.get_or_insert_default().conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != DISRUPTION_TARGET);
    conditions.push(PodCondition {
        type_: DISRUPTION_TARGET.to_owned(),
        status: "True".to_owned(),
        reason: Some(BY_TAINT.to_owned()),
        message: Some("Taint manager: deleting due to NoExecute taint".to_owned()),
        last_transition_time: Some(time(now)),
        ..PodCondition::default()
    });
    Action::Update { id, object: value(&object), subresource: Some("status") }.into()
}
