//! ReplicaSet: so many replicas of a pod.

use k8s_openapi::api::apps::v1::ReplicaSet;
use serde_json::{Value, json};

use crate::check::At;
use crate::field::FieldError;
use crate::kinds::deployment::{dns_label_recommended, template};
use crate::pod::rules;
use crate::resource::{FieldSelector, Resource};
use crate::strategy::{Hooks, Typed, set};
use crate::table;

/// The table entry of ReplicaSet.
pub static RESOURCE: Resource = Resource {
    group: "apps",
    version: "v1",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    namespaced: true,
    delete_collection: true,
    create_on_update: false,
    update_needs_version: false,
    subresources: &["scale", "status"],
    columns: &[
        table::NAME,
        table::integers("Desired", "How many pods are wanted."),
        table::integers("Current", "How many pods there are."),
        table::integers("Ready", "How many pods are ready."),
        table::AGE,
        table::wide("Containers", "Names of each container in the template."),
        table::wide("Images", "Images referenced by each container in the template."),
        table::wide("Selector", "Label selector for pods."),
    ],
    row,
    fields: &[FieldSelector {
        name: "status.replicas",
        get: |object| table::number(object, "/status/replicas").to_string(),
    }],
    strategy: &STRATEGY,
    stored_as: None,
    deprecation: None,
};

static STRATEGY: Typed<ReplicaSet> = Typed::new(Hooks {
    has_status: true,
    has_generation: true,
    default,
    prepare_create: |object| object["status"] = json!({"replicas": 0}),
    validate,
    validate_update: |new, old, errors| {
        new.below(&["spec", "selector"]).immutable(&old.below(&["spec", "selector"]), errors);
    },
    warnings: dns_label_recommended,
    ..Hooks::NONE
});

fn default(object: &mut Value) {
    set(object, "spec", json!({}));
    template(&mut object["spec"]);
    set(&mut object["spec"], "replicas", 1);
}

fn validate(object: &At<'_>, errors: &mut Vec<FieldError>) {
    let spec = object.field("spec");
    spec.field("replicas").not_negative(errors);
    spec.field("minReadySeconds").not_negative(errors);
    rules::workload_selector(&spec, errors);
    rules::template(&spec.field("template"), errors);
}

fn row(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let [containers, images] = table::containers_and_images(object);
    vec![
        table::name(object),
        json!(table::number(object, "/spec/replicas")),
        json!(table::number(object, "/status/replicas")),
        json!(table::number(object, "/status/readyReplicas")),
        table::age(object, now),
        containers,
        images,
        table::selector(object, "/spec/selector"),
    ]
}
