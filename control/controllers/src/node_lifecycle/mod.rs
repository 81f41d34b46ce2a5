//! What follows from a node's conditions: taints that keep new pods away, pods that no longer count as ready, and, where
//! it was asked for, the end of pods on a node that is out of reach.
//!
//! The conditions themselves are the gateway's to set. One key a node does what concerns that node alone; one key for all
//! of them, [`PASS`], decides which node is given a `NoExecute` taint next (see [`zones`]). What such a taint does to a
//! pod is its tolerations' to say, and by default a pod tolerates both of these for as long as it takes.

mod pods;
mod zones;

use std::time::Duration;

use jiff::Timestamp;
use lichen_api::k8s::api::core::v1::{Node, NodeCondition, Taint};
use lichen_api::taints::{self, NO_EXECUTE, NO_SCHEDULE, NOT_READY, UNREACHABLE, UNSCHEDULABLE};
use lichen_api::view::{Change, Kind, Object, ObjectId, View};

use crate::meta::{name, normal, regarding, time, value};
use crate::{Action, Interest, Outcome, Reconciler, Step};

/// The name of the key for all nodes: no node has it.
const PASS: &str = "";

/// Every `NoSchedule` taint of this controller, and whether a node should have it.
type Rule = (&'static str, fn(&Node) -> bool);

static RULES: [Rule; 7] = [
    (NOT_READY, |node| !matches!(status(node, "Ready"), Some("True" | "Unknown"))),
    (UNREACHABLE, |node| status(node, "Ready") == Some("Unknown")),
    ("node.kubernetes.io/memory-pressure", |node| status(node, "MemoryPressure") == Some("True")),
    ("node.kubernetes.io/disk-pressure", |node| status(node, "DiskPressure") == Some("True")),
    ("node.kubernetes.io/pid-pressure", |node| status(node, "PIDPressure") == Some("True")),
    ("node.kubernetes.io/network-unavailable", |node| status(node, "NetworkUnavailable") == Some("True")),
    (UNSCHEDULABLE, |node| node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true)),
];

/// See the module.
pub(crate) struct NodeLifecycleController;

impl Reconciler for NodeLifecycleController {
    fn name(&self) -> &'static str {
        "node-controller"
    }

    fn interest(&self, view: &View, change: &Change) -> Vec<Interest> {
        match change.object() {
            Some(Object::Node(_)) => {
                let facts = |object: &Option<Object>| match object {
                    Some(Object::Node(node)) => Some(zones::Facts::of(node)),
                    _ => None,
                };
                let own = (!change.is_removal()).then(|| change.id.clone());
                let pass = facts(&change.old) != facts(&change.new);
                let pass = pass.then(|| ObjectId::new(Kind::NODE, "", PASS));
                own.into_iter().chain(pass).map(Interest::from).collect()
            }
            Some(Object::Pod(pod)) if !change.is_removal() => pods::lost(view, pod)
                .map(|node| ObjectId::new(Kind::NODE, "", node).into())
                .into_iter()
                .collect(),
            _ => Vec::new(),
        }
    }

    fn reconcile(&self, view: &View, id: &ObjectId, now: Timestamp) -> Outcome {
        if id.key.name == PASS {
            return zones::pass(view, now);
        }
        let Some(node) = view.nodes.by_key(&id.key) else { return Outcome::done() };
        // Whoever sends requests to the node's pods is told before anybody else, and while the Node is what it is.
        let mut unready = pods::mark_unready(view, node, now);
        if !unready.steps.is_empty() {
            unready.requeue(Duration::ZERO);
            return unready;
        }
        follow(node, now)
    }
}

/// Makes a node's taints what its conditions say, but for the `NoExecute` taints that it is yet to be given.
fn follow(node: &Node, now: Timestamp) -> Outcome {
    let before = taints::of(node);
    let mut after = before.to_vec();
    for (key, wanted) in RULES {
        let ours = |taint: &Taint| taint.key == key && taint.effect == NO_SCHEDULE;
        match (wanted(node), after.iter().any(ours)) {
            (true, false) => after.push(taint(key, NO_SCHEDULE, now)),
            (false, true) => after.retain(|taint| !ours(taint)),
            _ => {}
        }
    }
    let wanted = no_execute_key(node);
    for taint in after.iter_mut().filter(|taint| taint.effect == NO_EXECUTE) {
        match wanted {
            Some(key) if is_lifecycle(taint) && taint.key != key => {
                *taint = self::taint(key, NO_EXECUTE, now)
            }
            // The time from which tolerations count; whoever set the taint may have left it out.
            _ if taint.time_added.is_none() => taint.time_added = Some(time(now)),
            _ => {}
        }
    }
    if wanted.is_none() {
        after.retain(|taint| !is_lifecycle(taint) || taint.effect != NO_EXECUTE);
    }
    let mut outcome = Outcome::done();
    if after != before {
        let was = before.iter().any(is_lifecycle);
        let is = after.iter().any(is_lifecycle);
        let state = match (was, is, condition(node, "Ready")) {
            (false, true, Some(_)) => Some("NodeNotReady"),
            (true, false, _) => Some("NodeReady"),
            _ => None,
        };
        outcome.steps.push(Step {
            done: state.map(|state| {
                let message = format!("Node {} status is now: {state}", name(&node.metadata));
                normal(&regarding(Kind::NODE, &node.metadata), state, message)
            }),
            ..Step::from(with_taints(node, after))
        });
    }
    outcome
}

/// Whether a taint says that a node is not ready or out of reach, with whatever effect.
fn is_lifecycle(taint: &Taint) -> bool {
    [NOT_READY, UNREACHABLE].contains(&taint.key.as_str())
}

/// Which `NoExecute` taint suits a node, if one does.
fn no_execute_key(node: &Node) -> Option<&'static str> {
    match status(node, "Ready")? {
        "True" => None,
        "Unknown" => Some(UNREACHABLE),
        _ => Some(NOT_READY),
    }
}

fn taint(key: &str, effect: &str, now: Timestamp) -> Taint {
    Taint { key: key.to_owned(), effect: effect.to_owned(), time_added: Some(time(now)), value: None }
}

/// The node with other taints.
fn with_taints(node: &Node, taints: Vec<Taint>) -> Action {
    let mut object = node.clone();
    object.spec.get_or_insert_default().taints = Some(taints).filter(|taints| !taints.is_empty());
    let id = ObjectId::new(Kind::NODE, "", name(&node.metadata));
    Action::Update { id, object: value(&object), subresource: None }
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_deref().unwrap_or_default();
    conditions.iter().find(|condition| condition.type_ == kind)
}

fn status<'a>(node: &'a Node, kind: &str) -> Option<&'a str> {
    condition(node, kind).map(|condition| condition.status.as_str())
}
