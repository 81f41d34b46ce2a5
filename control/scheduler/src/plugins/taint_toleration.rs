//! Taints keep pods away that do not tolerate them.

use lichen_api::k8s::api::core::v1::{Taint, Toleration};
use lichen_api::view::View;

use crate::plugin::{Filter, Reason, Score, normalize};
use crate::{NodeInfo, PodInfo};

const UNTOLERATED: &str = "node(s) had untolerated taint(s)";

pub(crate) struct TaintToleration;

impl Filter for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Vec<Reason> {
        let forbidding = |taint: &&Taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute");
        let untolerated = taints(node).iter().filter(forbidding).any(|taint| !tolerates(pod, taint));
        if untolerated { vec![UNTOLERATED.into()] } else { Vec::new() }
    }
}

impl Score for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn weight(&self) -> i64 {
        3
    }

    fn score(&self, _: &View, pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<i64> {
        let raw = nodes
            .iter()
            .map(|node| {
                let unwelcome =
                    taints(node).iter().filter(|t| t.effect == "PreferNoSchedule" && !tolerates(pod, t));
                i64::try_from(unwelcome.count()).unwrap_or(i64::MAX)
            })
            .collect();
        normalize(raw, true)
    }
}

fn taints(node: &NodeInfo) -> &[Taint] {
    let spec = node.node.as_ref().and_then(|node| node.spec.as_ref());
    spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// Whether one of the pod's tolerations covers the taint.
pub(crate) fn tolerates(pod: &PodInfo, taint: &Taint) -> bool {
    let tolerations = pod.pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref());
    tolerations.unwrap_or_default().iter().any(|toleration| covers(toleration, taint))
}

/// An empty effect covers every effect, an empty key with `Exists` every key.
fn covers(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    let wanted = toleration.value.as_deref().unwrap_or_default();
    let value = taint.value.as_deref().unwrap_or_default();
    let numbers = || Some((value.parse::<i64>().ok()?, wanted.parse::<i64>().ok()?));
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => !key.is_empty() && wanted == value,
        "Exists" => true,
        "Gt" => numbers().is_some_and(|(value, wanted)| value > wanted),
        "Lt" => numbers().is_some_and(|(value, wanted)| value < wanted),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{node_info, pod_info};

    fn check(taint: Value, toleration: Value, fits: bool) {
        let node = node_info("n1", json!({"spec": {"taints": [taint]}}));
        let pod = pod_info("p", json!({"spec": {"containers": [], "tolerations": [toleration]}}));
        assert_eq!(Filter::filter(&TaintToleration, &pod, &node).is_empty(), fits, "{:?}", pod.pod.spec);
    }

    #[test]
    fn tolerations_cover_taints() {
        let taint = json!({"key": "gpu", "value": "yes", "effect": "NoSchedule"});
        check(taint.clone(), json!({"key": "gpu", "value": "yes"}), true);
        check(
            taint.clone(),
            json!({"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}),
            true,
        );
        check(taint.clone(), json!({"key": "gpu", "value": "no"}), false);
        check(taint.clone(), json!({"key": "gpu", "operator": "Exists"}), true);
        check(taint.clone(), json!({"key": "gpu", "operator": "Exists", "effect": "NoExecute"}), false);
        check(taint.clone(), json!({"operator": "Exists"}), true);
        check(taint.clone(), json!({"key": "other", "operator": "Exists"}), false);
        check(json!({"key": "soft", "effect": "PreferNoSchedule"}), json!({"key": "other"}), true);
        check(json!({"key": "gone", "effect": "NoExecute"}), json!({"key": "other"}), false);
        check(json!({"key": "k", "effect": "NoSchedule"}), json!({"key": "k", "operator": "Equal"}), true);
    }

    #[test]
    fn soft_taints_only_cost() {
        let soft = json!({"spec": {"taints": [{"key": "soft", "effect": "PreferNoSchedule"}]}});
        let nodes = [node_info("n1", soft), node_info("n2", json!({}))];
        let nodes: Vec<&NodeInfo> = nodes.iter().collect();
        assert_eq!(TaintToleration.score(&View::new(), &pod_info("p", json!({})), &nodes), [0, 100]);
    }
}
