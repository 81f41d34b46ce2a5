//! Taints of nodes and the tolerations of pods, in Kubernetes' terms.

use k8s_openapi::api::core::v1::{Node, Taint, Toleration};

/// The taint of a node whose Ready condition is not true.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// The taint of a node whose Ready condition is unknown.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// The taint of a node that was cordoned.
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// The effect that keeps new pods away.
pub const NO_SCHEDULE: &str = "NoSchedule";
/// The effect that keeps new pods away if there is another node.
pub const PREFER_NO_SCHEDULE: &str = "PreferNoSchedule";
/// The effect that ends pods.
pub const NO_EXECUTE: &str = "NoExecute";

/// A node's taints.
pub fn of(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// Whether a toleration covers a taint. An empty effect covers every effect, an empty key with `Exists` every key.
pub fn covers(toleration: &Toleration, taint: &Taint) -> bool {
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

    #[test]
    fn tolerations_cover_taints() {
        let check = |taint: &Value, toleration: Value, expect: bool| {
            let (taint, read) = (serde_json::from_value(taint.clone()).unwrap(), toleration.clone());
            assert_eq!(covers(&serde_json::from_value(read).unwrap(), &taint), expect, "{toleration}");
        };
        let gpu = json!({"key": "gpu", "value": "yes", "effect": "NoSchedule"});
        check(&gpu, json!({"key": "gpu", "value": "yes"}), true);
        check(&gpu, json!({"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}), true);
        check(&gpu, json!({"key": "gpu", "value": "no"}), false);
        check(&gpu, json!({"key": "gpu", "operator": "Exists"}), true);
        check(&gpu, json!({"key": "gpu", "operator": "Exists", "effect": "NoExecute"}), false);
        check(&gpu, json!({"operator": "Exists"}), true);
        check(&gpu, json!({"operator": "Exists", "effect": "NoExecute"}), false);
        check(&gpu, json!({"key": "other", "operator": "Exists"}), false);
        check(&gpu, json!({"key": "gpu", "operator": "Like", "value": "yes"}), false);
        let bare = json!({"key": "k", "effect": "NoSchedule"});
        check(&bare, json!({"key": "k", "operator": "Equal"}), true);
        let level = json!({"key": "sla", "value": "950", "effect": "NoExecute"});
        check(&level, json!({"key": "sla", "operator": "Gt", "value": "900"}), true);
        check(&level, json!({"key": "sla", "operator": "Gt", "value": "950"}), false);
        check(&level, json!({"key": "sla", "operator": "Lt", "value": "1000"}), true);
        check(&level, json!({"key": "sla", "operator": "Lt", "value": "many"}), false);
    }
}
