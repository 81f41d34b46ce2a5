//! What a pod asks for must be left on its node.

use crate::plugin::{Filter, Reason};
use crate::{NodeInfo, PodInfo};

pub(crate) struct NodeResourcesFit;

impl Filter for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Vec<Reason> {
        let mut reasons: Vec<Reason> = Vec::new();
        if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) >= node.allocatable.get("pods") {
            reasons.push("Too many pods".into());
        }
        for (name, wanted) in pod.requests.iter() {
            let left = node.allocatable.get(name).saturating_sub(node.requested.get(name));
            if wanted > 0 && wanted > left {
                reasons.push(format!("Insufficient {name}").into());
            }
        }
        reasons
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{node_info, pod_info};

    fn check(requests: Value, expect: &[&str]) {
        let status =
            json!({"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "1", "example.com/lamp": "2"}});
        let node = node_info("n1", json!({"status": status}));
        let containers = json!([{"name": "c", "resources": {"requests": requests}}]);
        let pod = pod_info("p", json!({"spec": {"containers": containers}}));
        assert_eq!(NodeResourcesFit.filter(&pod, &node), expect);
    }

    #[test]
    fn each_resource_is_counted() {
        check(json!({}), &[]);
        check(json!({"cpu": "1", "memory": "1Gi", "example.com/lamp": "2"}), &[]);
        check(json!({"cpu": "1001m"}), &["Insufficient cpu"]);
        check(json!({"cpu": "2", "memory": "2Gi"}), &["Insufficient cpu", "Insufficient memory"]);
        check(json!({"example.com/lamp": "3"}), &["Insufficient example.com/lamp"]);
        check(json!({"example.com/none": "1"}), &["Insufficient example.com/none"]);
        check(json!({"example.com/none": "0"}), &[]);
    }

    #[test]
    fn a_node_that_says_nothing_takes_nothing() {
        let node = node_info("n1", json!({"status": {"allocatable": {}}}));
        assert_eq!(NodeResourcesFit.filter(&pod_info("p", json!({})), &node), ["Too many pods"]);
    }
}
