//! Keeps new pods away from nodes that cannot run them, by taints that follow the node's conditions.
//!
//! Deliberately absent: `NoExecute` taints. A node that is out of reach keeps its pods; evicting is a choice.

use jiff::Timestamp;
use lichen_api::k8s::api::core::v1::{Node, Taint};
use lichen_api::view::{Change, Kind, ObjectId, View};

use crate::meta::{time, value};
use crate::{Action, Interest, Outcome, Reconciler};

const NO_SCHEDULE: &str = "NoSchedule";

/// Every taint of this controller, and whether a node should have it.
type Rule = (&'static str, fn(&Node) -> bool);

static RULES: [Rule; 7] = [
    ("node.kubernetes.io/not-ready", |node| !matches!(condition(node, "Ready"), Some("True" | "Unknown"))),
    ("node.kubernetes.io/unreachable", |node| condition(node, "Ready") == Some("Unknown")),
    ("node.kubernetes.io/memory-pressure", |node| condition(node, "MemoryPressure") == Some("True")),
    ("node.kubernetes.io/disk-pressure", |node| condition(node, "DiskPressure") == Some("True")),
    ("node.kubernetes.io/pid-pressure", |node| condition(node, "PIDPressure") == Some("True")),
    ("node.kubernetes.io/network-unavailable", |node| condition(node, "NetworkUnavailable") == Some("True")),
    ("node.kubernetes.io/unschedulable", |node| {
        node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true)
    }),
];

/// See the module.
pub(crate) struct NodeLifecycleController;

impl Reconciler for NodeLifecycleController {
    fn name(&self) -> &'static str {
        "node-controller"
    }

    fn interest(&self, _: &View, change: &Change) -> Vec<Interest> {
        let node = change.id.kind == Kind::NODE && !change.is_removal();
        if node { vec![change.id.clone().into()] } else { Vec::new() }
    }

    fn reconcile(&self, view: &View, id: &ObjectId, now: Timestamp) -> Outcome {
        let Some(node) = view.nodes.by_key(&id.key) else { return Outcome::done() };
        let before = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        let mut taints = before.to_vec();
        for (key, wanted) in RULES {
            let ours = |taint: &Taint| taint.key == key && taint.effect == NO_SCHEDULE;
            match (wanted(node), taints.iter().any(ours)) {
                (true, false) => taints.push(Taint {
                    key: key.to_owned(),
                    effect: NO_SCHEDULE.to_owned(),
                    time_added: Some(time(now)),
                    value: None,
                }),
                (false, true) => taints.retain(|taint| !ours(taint)),
                _ => {}
            }
        }
        if taints == before {
            return Outcome::done();
        }
        let mut object = (**node).clone();
        object.spec.get_or_insert_default().taints = Some(taints).filter(|taints| !taints.is_empty());
        Outcome::of(Action::Update { id: id.clone(), object: value(&object), subresource: None })
    }
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a str> {
    let conditions = node.status.as_ref()?.conditions.as_deref().unwrap_or_default();
    conditions.iter().find(|condition| condition.type_ == kind).map(|condition| condition.status.as_str())
}
