//! Pod: containers that run together on one node.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::check::At;
use crate::pod::{defaults, qos_class, rules};
use crate::resource::{FieldSelector, Resource};
use crate::strategy::{Hooks, Typed, set};
use crate::{pod, table};

/// The table entry of Pod.
pub static RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    namespaced: true,
    delete_collection: true,
    create_on_update: false,
    update_needs_version: false,
    subresources: &["binding", "eviction", "log", "status"],
    columns: &[
        table::NAME,
        table::column("Ready", "How many containers are ready, and how many there are."),
        table::column("Status", "The aggregate status of the containers in this pod."),
        table::column("Restarts", "How often containers were restarted, and when last."),
        table::AGE,
        table::wide("IP", "The address of the pod."),
        table::wide("Node", "The node that the pod is bound to."),
        table::wide("Nominated Node", "The node that the pod waits for."),
        table::wide("Readiness Gates", "How many readiness gates are open, and how many there are."),
    ],
    row: pod::row::row,
    fields: &[
        FieldSelector { name: "spec.nodeName", get: |object| of(object, "/spec/nodeName") },
        FieldSelector { name: "spec.restartPolicy", get: |object| of(object, "/spec/restartPolicy") },
        FieldSelector { name: "spec.schedulerName", get: |object| of(object, "/spec/schedulerName") },
        FieldSelector {
            name: "spec.serviceAccountName",
            get: |object| of(object, "/spec/serviceAccountName"),
        },
        FieldSelector {
            name: "spec.hostNetwork",
            get: |object| (object.pointer("/spec/hostNetwork") == Some(&Value::Bool(true))).to_string(),
        },
        FieldSelector { name: "status.phase", get: |object| of(object, "/status/phase") },
        FieldSelector { name: "status.podIP", get: |object| of(object, "/status/podIP") },
        FieldSelector {
            name: "status.nominatedNodeName",
            get: |object| of(object, "/status/nominatedNodeName"),
        },
    ],
    strategy: &STRATEGY,
    stored_as: None,
    deprecation: None,
};

static STRATEGY: Typed<Pod> = Typed::new(Hooks {
    has_status: true,
    has_generation: true,
    default,
    prepare_create,
    validate: |object, errors| {
        rules::pod_spec(&object.field("spec"), errors);
    },
    validate_update: |new, old, errors| rules::pod_update(&new.field("spec"), &old.field("spec"), errors),
    warnings,
    ..Hooks::NONE
});

fn of(object: &Value, pointer: &str) -> String {
    table::text(object, pointer).to_owned()
}

fn default(object: &mut Value) {
    set(object, "spec", json!({}));
    defaults::pod_spec(&mut object["spec"]);
    defaults::pod(&mut object["spec"]);
}

fn prepare_create(object: &mut Value) {
    set(object, "spec", json!({}));
    defaults::admission(&mut object["spec"]);
    object["status"] = json!({"phase": "Pending", "qosClass": qos_class(&object["spec"])});
}

fn warnings(object: &At<'_>, warnings: &mut Vec<String>) {
    crate::kinds::deployment::dns_label_recommended(object, warnings);
}
