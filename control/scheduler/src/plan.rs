//! From pods to a plan: filter the nodes, score those that remain, take the best.

use std::collections::BTreeMap;
use std::sync::Arc;

use lichen_api::view::{ObjectKey, View};

use crate::plugin::{Reason, SCORES, refusal};
use crate::{Cluster, NodeInfo, PodInfo};

/// A pod and the node it should run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The pod's namespace and name.
    pub pod: ObjectKey,
    /// The incarnation of the pod; the binding is only for it.
    pub uid: String,
    /// The version of the pod that was looked at; a pod that changed since is looked at again.
    pub resource_version: String,
    /// The node.
    pub node: String,
}

/// A pod that fits on no node.
#[derive(Clone, Debug)]
pub struct Unschedulable {
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// Why, in Kubernetes' words, with the reasons counted over the nodes.
    pub message: String,
}

/// What becomes of the pods that were to be placed.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Those that have a node, in the order in which they were placed.
    pub bindings: Vec<Binding>,
    /// Those that have none.
    pub unschedulable: Vec<Unschedulable>,
}

impl Plan {
    /// Whether the plan says nothing.
    pub fn is_empty(&self) -> bool {
        self.bindings.is_empty() && self.unschedulable.is_empty()
    }
}

/// Places pods one after the other. Each binding is assumed in `cluster`, so that the next pod reckons with it.
pub fn plan(cluster: &mut Cluster, view: &View, pods: impl IntoIterator<Item = Arc<PodInfo>>) -> Plan {
    let mut plan = Plan::default();
    for pod in pods {
        match select(cluster, view, &pod) {
            Ok(node) => {
                plan.bindings.push(Binding {
                    pod: pod.key.clone(),
                    uid: pod.uid().to_owned(),
                    resource_version: pod.pod.metadata.resource_version.clone().unwrap_or_default(),
                    node: node.clone(),
                });
                #[cfg(feature = "plant")]
                if crate::plant::IN_FLIGHT.load(std::sync::atomic::Ordering::Relaxed) {
                    continue;
                }
                cluster.assume(pod, &node);
            }
            Err(message) => plan.unschedulable.push(Unschedulable { pod, message }),
        }
    }
    plan
}

fn select(cluster: &Cluster, view: &View, pod: &PodInfo) -> Result<String, String> {
    let mut counts: BTreeMap<Reason, usize> = BTreeMap::new();
    let mut feasible: Vec<&NodeInfo> = Vec::new();
    let mut total = 0;
    for node in cluster.nodes() {
        total += 1;
        let reasons = refusal(pod, node);
        if reasons.is_empty() {
            feasible.push(node);
        }
        for reason in reasons {
            *counts.entry(reason).or_default() += 1;
        }
    }
    match feasible.as_slice() {
        [] => Err(message(total, &counts)),
        [only] => Ok(only.name().to_owned()),
        nodes => Ok(best(view, pod, nodes)),
    }
}

/// The node with the highest sum of weighted scores; among equals the first by name.
fn best(view: &View, pod: &PodInfo, nodes: &[&NodeInfo]) -> String {
    let mut sums = vec![0_i64; nodes.len()];
    for plugin in SCORES {
        for (sum, score) in sums.iter_mut().zip(plugin.score(view, pod, nodes)) {
            *sum += plugin.weight() * score;
        }
    }
    let mut winner = 0;
    for index in 1..nodes.len() {
        if sums[index] > sums[winner] {
            winner = index;
        }
    }
    nodes[winner].name().to_owned()
}

fn message(nodes: usize, counts: &BTreeMap<Reason, usize>) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let mut reasons: Vec<String> = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    reasons.sort();
    format!("0/{nodes} nodes are available: {}.", reasons.join(", "))
}
