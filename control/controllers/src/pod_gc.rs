//! Removes pods that are bound to a node which no longer exists.
//!
//! A node that is deleted may only be about to register again, so its pods are given [`QUARANTINE`].

use std::time::Duration;

use jiff::Timestamp;
use lichen_api::view::{Change, Kind, Object, ObjectId, View};

use crate::meta::{id_of, regarding, uid, warning};
use crate::{Action, Interest, Outcome, Reconciler, Step, pods};

/// How long pods of a missing node are left alone.
pub(crate) const QUARANTINE: Duration = Duration::from_secs(40);

/// See the module.
pub(crate) struct PodGarbageCollector;

impl Reconciler for PodGarbageCollector {
    fn name(&self) -> &'static str {
        "pod-garbage-collector"
    }

    fn interest(&self, view: &View, change: &Change) -> Vec<Interest> {
        let node = match change.new.as_ref().or(change.old.as_ref()) {
            Some(Object::Node(_)) if change.is_removal() => change.id.key.name.clone(),
            Some(Object::Pod(pod)) if !change.is_removal() => {
                let was_bound = matches!(&change.old, Some(Object::Pod(old)) if pods::node(old).is_some());
                match pods::node(pod) {
                    Some(node) if !was_bound && view.nodes.get("", node).is_none() => node.to_owned(),
                    _ => return Vec::new(),
                }
            }
            _ => return Vec::new(),
        };
        vec![Interest { id: ObjectId::new(Kind::NODE, "", node), after: QUARANTINE }]
    }

    fn reconcile(&self, view: &View, id: &ObjectId, _: Timestamp) -> Outcome {
        let node = &id.key.name;
        let mut outcome = Outcome::done();
        if view.nodes.by_key(&id.key).is_some() {
            return outcome;
        }
        for pod in view.pods_on(node) {
            let about = regarding(Kind::POD, &pod.metadata);
            outcome.steps.push(Step {
                action: Action::Delete {
                    id: id_of(Kind::POD, &pod.metadata),
                    uid: uid(&pod.metadata).to_owned(),
                    resource_version: None,
                    propagation: None,
                    grace_seconds: Some(0),
                },
                given: None,
                done: Some(warning(
                    &about,
                    "NodeGone",
                    format!("Deleted, because its node {node} no longer exists"),
                )),
                failed: None,
            });
        }
        outcome
    }
}
