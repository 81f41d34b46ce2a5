//! What a pod's author leaves out. Deliberately absent: service account volumes (there are no tokens yet).

use serde_json::{Value, json};

use crate::strategy::{get, items, set};
use crate::taints;

/// Defaults of a pod spec, in a pod or in a template.
pub fn pod_spec(spec: &mut Value) {
    set(spec, "dnsPolicy", "ClusterFirst");
    set(spec, "restartPolicy", "Always");
    set(spec, "terminationGracePeriodSeconds", 30);
    set(spec, "securityContext", json!({}));
    set(spec, "schedulerName", "default-scheduler");
    for (from, to) in [("serviceAccountName", "serviceAccount"), ("serviceAccount", "serviceAccountName")] {
        if let Some(name) = spec.get(from).cloned().filter(|name| !name.is_null()) {
            set(spec, to, name);
        }
    }
    for volume in items(spec, "volumes") {
        volume_source(volume);
    }
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for one in items(spec, list) {
            container(one, host_network);
        }
    }
}

/// Defaults that only a pod has, not a template.
pub fn pod(spec: &mut Value) {
    set(spec, "enableServiceLinks", true);
    for list in ["initContainers", "containers"] {
        for container in items(spec, list) {
            let Some(resources) = get(container, "resources") else { continue };
            let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { continue };
            set(resources, "requests", json!({}));
            for (name, limit) in limits {
                set(&mut resources["requests"], &name, limit);
            }
        }
    }
}

/// What admission adds to a new pod: its account, its priority, and that it stays on a node which is not ready or out of
/// reach, unless it says itself for how long.
///
/// Kubernetes has pods stay there for 300 seconds. A node at the edge that is offline still runs its pods, so that here they
/// stay for good unless the cluster's [`Patience`] has an end.
pub fn admission(spec: &mut Value) {
    set(spec, "serviceAccountName", "default");
    let account = spec["serviceAccountName"].clone();
    set(spec, "serviceAccount", account);
    set(spec, "priority", 0);
    set(spec, "preemptionPolicy", "PreemptLowerPriority");
    tolerate(spec, Patience::default());
}

/// How long pods that do not say so themselves stay on a node that is not ready or out of reach; for good where not said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patience {
    /// On a node that is not ready.
    pub not_ready_seconds: Option<u32>,
    /// On a node that is out of reach.
    pub unreachable_seconds: Option<u32>,
}

/// Gives a pod the tolerations by which it stays on such nodes, where it has none of its own.
pub fn tolerate(spec: &mut Value, patience: Patience) {
    for (key, seconds) in
        [(taints::NOT_READY, patience.not_ready_seconds), (taints::UNREACHABLE, patience.unreachable_seconds)]
    {
        let is = |value: &Value, wanted: &str| value.as_str().unwrap_or_default() == wanted;
        let own = spec["tolerations"].as_array().into_iter().flatten().any(|own| {
            let (key_said, effect) = (&own["key"], &own["effect"]);
            (is(key_said, key) || is(key_said, "")) && (is(effect, taints::NO_EXECUTE) || is(effect, ""))
        });
        if own {
            continue;
        }
        set(spec, "tolerations", json!([]));
        let mut stays = json!({ "key": key, "operator": "Exists", "effect": taints::NO_EXECUTE });
        if let Some(seconds) = seconds {
            stays["tolerationSeconds"] = json!(seconds);
        }
        if let Some(Value::Array(all)) = spec.get_mut("tolerations") {
            all.push(stays);
        }
    }
}

fn volume_source(volume: &mut Value) {
    let has_source = volume.as_object().is_some_and(|fields| fields.keys().any(|key| key != "name"));
    if !has_source {
        set(volume, "emptyDir", json!({}));
    }
    for source in ["configMap", "secret", "downwardAPI", "projected"] {
        if let Some(source) = get(volume, source) {
            set(source, "defaultMode", 0o644);
        }
    }
    if let Some(downward) = get(volume, "downwardAPI") {
        downward_items(downward);
    }
    if let Some(projected) = get(volume, "projected") {
        for source in items(projected, "sources") {
            if let Some(token) = get(source, "serviceAccountToken") {
                set(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = get(source, "downwardAPI") {
                downward_items(downward);
            }
        }
    }
    if let Some(host) = get(volume, "hostPath") {
        set(host, "type", "");
    }
}

fn downward_items(downward: &mut Value) {
    for item in items(downward, "items") {
        field_references(item);
    }
}

fn field_references(holder: &mut Value) {
    if let Some(field) = get(holder, "fieldRef") {
        set(field, "apiVersion", "v1");
    }
    if let Some(resource) = get(holder, "resourceFieldRef") {
        set(resource, "divisor", "0");
    }
}

fn container(container: &mut Value, host_network: bool) {
    for port in items(container, "ports") {
        set(port, "protocol", "TCP");
        if host_network && let Some(number) = port.get("containerPort").cloned() {
            set(port, "hostPort", number);
        }
    }
    for variable in items(container, "env") {
        if let Some(source) = get(variable, "valueFrom") {
            field_references(source);
        }
    }
    let policy = pull_policy(container.get("image").and_then(Value::as_str).unwrap_or_default());
    set(container, "imagePullPolicy", policy);
    set(container, "resources", json!({}));
    set(container, "terminationMessagePath", "/dev/termination-log");
    set(container, "terminationMessagePolicy", "File");
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = get(container, name) {
            set(probe, "timeoutSeconds", 1);
            set(probe, "periodSeconds", 10);
            set(probe, "successThreshold", 1);
            set(probe, "failureThreshold", 3);
            if let Some(grpc) = get(probe, "grpc") {
                set(grpc, "service", "");
            }
            http_get(probe);
        }
    }
    if let Some(lifecycle) = get(container, "lifecycle") {
        for handler in ["postStart", "preStop"] {
            if let Some(handler) = get(lifecycle, handler) {
                http_get(handler);
            }
        }
    }
}

fn http_get(handler: &mut Value) {
    if let Some(get_request) = get(handler, "httpGet") {
        set(get_request, "path", "/");
        set(get_request, "scheme", "HTTP");
    }
}

/// An image without a tag, or with the tag `latest`, is always looked up again.
fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_stays_on_a_lost_node_unless_it_says_for_how_long() {
        let stays = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute"});
        let (not_ready, unreachable) = (stays(taints::NOT_READY), stays(taints::UNREACHABLE));
        let check = |own: Value, added: &[&Value]| {
            let mut spec = json!({});
            if !own.is_null() {
                spec["tolerations"] = own.clone();
            }
            admission(&mut spec);
            let mut expect = own.as_array().cloned().unwrap_or_default();
            expect.extend(added.iter().copied().cloned());
            assert_eq!(spec["tolerations"], Value::from(expect), "{own}");
            let once = spec.clone();
            admission(&mut spec);
            assert_eq!(spec, once);
        };
        check(Value::Null, &[&not_ready, &unreachable]);
        let mut kubernetes = json!({});
        tolerate(&mut kubernetes, Patience { not_ready_seconds: Some(300), unreachable_seconds: Some(300) });
        let seconds = |at: usize| kubernetes["tolerations"][at]["tolerationSeconds"].as_u64();
        assert_eq!((seconds(0), seconds(1), seconds(2)), (Some(300), Some(300), None));
        check(kubernetes["tolerations"].clone(), &[]);
        check(json!([{"key": "gpu", "operator": "Exists"}]), &[&not_ready, &unreachable]);
        let mut leaves = unreachable.clone();
        leaves["tolerationSeconds"] = json!(30);
        check(json!([leaves]), &[&not_ready]);
        check(
            json!([{"key": taints::NOT_READY, "operator": "Exists", "effect": "NoSchedule"}]),
            &[&not_ready, &unreachable],
        );
        check(json!([{"key": taints::NOT_READY, "operator": "Exists"}]), &[&unreachable]);
        check(json!([{"operator": "Exists"}]), &[]);
        check(json!([{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]), &[]);
    }

    #[test]
    fn pull_policies() {
        let check = |image: &str, expect: &str| assert_eq!(pull_policy(image), expect, "{image}");
        check("app", "Always");
        check("app:latest", "Always");
        check("app:1", "IfNotPresent");
        check("localhost:5000/app", "Always");
        check("localhost:5000/app:2", "IfNotPresent");
        check("app@sha256:0123", "IfNotPresent");
    }
}
