//! Node: a machine that runs pods.

use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use crate::check::At;
use crate::field::FieldError;
use crate::resource::{FieldSelector, Resource};
use crate::strategy::{Hooks, Typed, copy, set};
use crate::{table, validation};

/// The conditions of a Node that its agent answers for: their heartbeat is the node's, and without the node nobody knows
/// what they are. Others belong to whoever set them.
pub const AGENT_CONDITIONS: [&str; 4] = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];

/// The labels of Kubernetes' own that a node may set on its Node.
const OWN_LABELS: [&str; 11] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

/// Whether a node may set a label on its Node, as Kubernetes' NodeRestriction has it: anything but what is set aside for
/// administrators (`node-restriction.kubernetes.io/`) and, of what is Kubernetes' own, only what a node knows best.
/// Otherwise a stolen device could draw workloads to itself.
pub fn may_label_itself(label: &str) -> bool {
    let prefix = label.split_once('/').map_or("", |(prefix, _)| prefix);
    let within =
        |domain: &str| prefix.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    if within("node-restriction.kubernetes.io") {
        return false;
    }
    let reserved = within("kubernetes.io") || within("k8s.io");
    !reserved
        || OWN_LABELS.contains(&label)
        || within("kubelet.kubernetes.io")
        || within("node.kubernetes.io")
}

/// The table entry of Node.
pub static RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    categories: &[],
    namespaced: false,
    delete_collection: true,
    create_on_update: false,
    update_needs_version: false,
    subresources: &["status"],
    columns: &[
        table::NAME,
        table::column("Status", "The status of the node"),
        table::column("Roles", "The roles of the node"),
        table::AGE,
        table::column("Version", "Version of the agent that the node reported."),
        table::wide("Internal-IP", "Address of the node inside the cluster."),
        table::wide("External-IP", "Address of the node outside the cluster."),
        table::wide("OS-Image", "OS image that the node reported."),
        table::wide("Kernel-Version", "Kernel version that the node reported."),
        table::wide("Container-Runtime", "Runtime version that the node reported."),
    ],
    row,
    fields: &[FieldSelector {
        name: "spec.unschedulable",
        get: |object| (object.pointer("/spec/unschedulable") == Some(&Value::Bool(true))).to_string(),
    }],
    strategy: &STRATEGY,
    stored_as: None,
    deprecation: None,
};

// A node registers itself with its status, so that a create keeps it.
static STRATEGY: Typed<Node> =
    Typed::new(Hooks { has_status: true, default, validate, prepare_update, ..Hooks::NONE });

fn default(object: &mut Value) {
    set(object, "spec", json!({}));
    let cidr = table::text(object, "/spec/podCIDR").to_owned();
    if !cidr.is_empty() {
        set(&mut object["spec"], "podCIDRs", json!([cidr]));
    }
    set(object, "status", json!({}));
    if let Some(capacity) = object.pointer("/status/capacity").cloned() {
        set(&mut object["status"], "allocatable", capacity);
    }
}

fn prepare_update(new: &mut Value, old: &Value) {
    // The address range is given once.
    for field in ["podCIDR", "podCIDRs"] {
        if old["spec"].get(field).is_some() {
            copy(&mut new["spec"], &old["spec"], field);
        }
    }
}

fn validate(object: &At<'_>, errors: &mut Vec<FieldError>) {
    let mut seen = std::collections::BTreeSet::new();
    for taint in object.below(&["spec", "taints"]).items() {
        let (key, value, effect) = (taint.field("key"), taint.field("value"), taint.field("effect"));
        if key.required(errors) {
            key.obeys(validation::qualified_name, errors);
        }
        if !value.is_empty() {
            value.obeys(validation::label_value, errors);
        }
        effect.one_of(&["NoSchedule", "PreferNoSchedule", "NoExecute"], errors);
        if !seen.insert((key.text(), effect.text())) {
            errors.push(FieldError::duplicate(&taint.path, taint.value.clone()));
        }
    }
}

fn row(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let address = |kind: &str| {
        let addresses = table::list(object, "/status/addresses");
        let found = addresses.iter().find(|address| address["type"] == kind);
        json!(found.map_or("<none>", |address| table::text(address, "/address")))
    };
    let info = |field: &str| {
        json!(table::or(table::text(object, &format!("/status/nodeInfo/{field}")), "<unknown>"))
    };
    vec![
        table::name(object),
        json!(status(object)),
        json!(roles(object)),
        table::age(object, now),
        json!(table::text(object, "/status/nodeInfo/kubeletVersion")),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

fn status(object: &Value) -> String {
    let ready =
        table::list(object, "/status/conditions").iter().find(|condition| condition["type"] == "Ready");
    let mut status = match ready {
        Some(ready) if ready["status"] == "True" => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if object.pointer("/spec/unschedulable") == Some(&Value::Bool(true)) {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn roles(object: &Value) -> String {
    let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
    let mut roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => Some(role),
            None if key == "kubernetes.io/role" => value.as_str().filter(|role| !role.is_empty()),
            _ => None,
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    table::or(&roles.join(","), "<none>").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_labels_itself_with_what_is_its_own() {
        let check = |label: &str, expect: bool| assert_eq!(may_label_itself(label), expect, "{label}");
        for own in OWN_LABELS {
            check(own, true);
        }
        check("zone", true);
        check("example.com/role", true);
        check("lichen.dev/runtime.wasm", true);
        check("kubelet.kubernetes.io/x", true);
        check("a.node.kubernetes.io/x", true);
        check("notkubernetes.io/x", true);
        check("kubernetes.io", true);
        check("kubernetes.io/role", false);
        check("node-role.kubernetes.io/control-plane", false);
        check("node-restriction.kubernetes.io/pci", false);
        check("a.node-restriction.kubernetes.io/pci", false);
        check("mynode.kubernetes.io/x", false);
        check("k8s.io/x", false);
        check("a.k8s.io/x", false);
    }

    #[test]
    fn the_status_column_says_what_kubectl_does() {
        let check = |ready: Option<&str>, unschedulable: bool, expect: &str| {
            let conditions: Vec<Value> =
                ready.into_iter().map(|ready| json!({"type": "Ready", "status": ready})).collect();
            let node =
                json!({"spec": {"unschedulable": unschedulable}, "status": {"conditions": conditions}});
            assert_eq!(status(&node), expect);
        };
        check(Some("True"), false, "Ready");
        check(Some("True"), true, "Ready,SchedulingDisabled");
        check(Some("False"), false, "NotReady");
        check(Some("Unknown"), false, "NotReady");
        check(Some("Unknown"), true, "NotReady,SchedulingDisabled");
        check(None, false, "Unknown");
    }
}
