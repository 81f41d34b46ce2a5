//! Taints keep pods away that do not tolerate them.

use lichen_api::k8s::api::core::v1::Taint;
use lichen_api::taints::{self, NO_EXECUTE, NO_SCHEDULE, PREFER_NO_SCHEDULE, covers};
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
        let forbidding = |taint: &&Taint| [NO_SCHEDULE, NO_EXECUTE].contains(&taint.effect.as_str());
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
                    taints(node).iter().filter(|t| t.effect == PREFER_NO_SCHEDULE && !tolerates(pod, t));
                i64::try_from(unwelcome.count()).unwrap_or(i64::MAX)
            })
            .collect();
        normalize(raw, true)
    }
}

fn taints(node: &NodeInfo) -> &[Taint] {
    node.node.as_deref().map(taints::of).unwrap_or_default()
}

/// Whether one of the pod's tolerations covers the taint.
pub(crate) fn tolerates(pod: &PodInfo, taint: &Taint) -> bool {
    let tolerations = pod.pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref());
    tolerations.unwrap_or_default().iter().any(|toleration| covers(toleration, taint))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{node_info, pod_info};

    #[test]
    fn only_taints_that_forbid_keep_a_pod_away() {
        let check = |effect: &str, toleration: Value, fits: bool| {
            let node = node_info("n1", json!({"spec": {"taints": [{"key": "k", "effect": effect}]}}));
            let pod = pod_info("p", json!({"spec": {"containers": [], "tolerations": [toleration]}}));
            assert_eq!(Filter::filter(&TaintToleration, &pod, &node).is_empty(), fits, "{:?}", pod.pod.spec);
        };
        check("NoSchedule", json!({"key": "other"}), false);
        check("NoExecute", json!({"key": "other"}), false);
        check("PreferNoSchedule", json!({"key": "other"}), true);
        check("NoSchedule", json!({"key": "k"}), true);
        // To tolerate being ended later is to tolerate being started.
        let later = json!({"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9});
        check("NoExecute", later.clone(), true);
        check("NoSchedule", later, false);
    }

    #[test]
    fn soft_taints_only_cost() {
        let soft = json!({"spec": {"taints": [{"key": "soft", "effect": "PreferNoSchedule"}]}});
        let nodes = [node_info("n1", soft), node_info("n2", json!({}))];
        let nodes: Vec<&NodeInfo> = nodes.iter().collect();
        assert_eq!(TaintToleration.score(&View::new(), &pod_info("p", json!({})), &nodes), [0, 100]);
    }
}
