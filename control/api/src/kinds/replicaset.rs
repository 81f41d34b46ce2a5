//! ReplicaSet.

use k8s_openapi::api::apps::v1::ReplicaSet;

use crate::resource::Resource;
use crate::strategy::Typed;
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
    columns: &[table::NAME, table::AGE],
    row: |object, now| vec![table::name(object), table::age(object, now)],
    fields: &[],
    strategy: &STRATEGY,
};

static STRATEGY: Typed<ReplicaSet> = Typed::new();
