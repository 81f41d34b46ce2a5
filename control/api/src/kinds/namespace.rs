//! Namespace: a scope for names.

use k8s_openapi::api::core::v1::Namespace;
use serde_json::{Value, json};

use crate::resource::{FieldSelector, Resource};
use crate::strategy::{Hooks, Typed, set};
use crate::{strategy, table, validation};

/// The label that every namespace carries: its own name.
pub const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The table entry of Namespace.
pub static RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    categories: &[],
    namespaced: false,
    delete_collection: false,
    create_on_update: false,
    update_needs_version: false,
    subresources: &["finalize", "status"],
    columns: &[table::NAME, table::column("Status", "The status of the namespace"), table::AGE],
    row: |object, now| {
        vec![table::name(object), json!(table::text(object, "/status/phase")), table::age(object, now)]
    },
    fields: &[FieldSelector {
        name: "status.phase",
        get: |object| table::text(object, "/status/phase").to_owned(),
    }],
    strategy: &STRATEGY,
    stored_as: None,
    deprecation: None,
};

static STRATEGY: Typed<Namespace> = Typed::new(Hooks {
    name: validation::dns_label_name,
    has_status: true,
    default,
    prepare_create,
    prepare_update: |new, old| strategy::copy(new, old, "spec"),
    ..Hooks::NONE
});

fn default(object: &mut Value) {
    let name = table::text(object, "/metadata/name").to_owned();
    if !name.is_empty() {
        set(&mut object["metadata"], "labels", json!({}));
        object["metadata"]["labels"][NAME_LABEL] = json!(name);
    }
}

fn prepare_create(object: &mut Value) {
    set(object, "spec", json!({}));
    let kept = object["spec"]["finalizers"].as_array().cloned().unwrap_or_default();
    let mut finalizers = vec![json!("kubernetes")];
    finalizers.extend(kept.into_iter().filter(|name| name != "kubernetes"));
    object["spec"]["finalizers"] = Value::Array(finalizers);
    object["status"] = json!({"phase": "Active"});
}
