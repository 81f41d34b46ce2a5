//! Pods of a node that is not ready are not ready either, whatever they last said: nobody knows it better.
//!
//! Nothing else of their status changes. A pod becomes ready again when its node reports it so, which a node does once it
//! is back; therefore each pod is written only while its Node says what it said here.

use jiff::Timestamp;
use lichen_api::k8s::api::core::v1::{Node, Pod};
use lichen_api::view::{Kind, View};

use super::status;
use crate::meta::{id_of, name, regarding, time, value, warning};
use crate::pods::{is_ready, node as node_of};
use crate::{Action, Outcome, Step};

/// The node of a pod that counts as ready while its node does not.
pub(super) fn lost<'p>(view: &View, pod: &'p Pod) -> Option<&'p str> {
    let node = node_of(pod).filter(|_| is_ready(pod))?;
    is_lost(view.nodes.get("", node)?).then_some(node)
}

/// Makes the pods of a node that is not ready say so.
pub(super) fn mark_unready(view: &View, node: &Node, now: Timestamp) -> Outcome {
    let mut outcome = Outcome::done();
    if !is_lost(node) {
        return outcome;
    }
    for pod in view.pods_on(name(&node.metadata)).filter(|pod| is_ready(pod)) {
        let mut object = (**pod).clone();
        let conditions = object.status.as_mut().and_then(|status| status.conditions.as_mut());
        for condition in conditions.into_iter().flatten().filter(|condition| condition.type_ == "Ready") {
            condition.status = "False".to_owned();
            condition.last_transition_time = Some(time(now));
        }
        let about = regarding(Kind::POD, &pod.metadata);
        outcome.steps.push(Step {
            given: Some(regarding(Kind::NODE, &node.metadata)),
            done: Some(warning(&about, "NodeNotReady", "Node is not ready".to_owned())),
            ..Step::from(Action::Update {
                id: id_of(Kind::POD, &pod.metadata),
                object: value(&object),
                subresource: Some("status"),
            })
        });
    }
    outcome
}

/// Whether a node says of itself that it is not ready. One that says nothing yet is only new.
fn is_lost(node: &Node) -> bool {
    status(node, "Ready").is_some_and(|status| status != "True")
}
