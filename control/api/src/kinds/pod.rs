//! Pod.

use k8s_openapi::api::core::v1::Pod;

use crate::resource::Resource;
use crate::strategy::Typed;
use crate::table;

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
    columns: &[table::NAME, table::AGE],
    row: |object, now| vec![table::name(object), table::age(object, now)],
    fields: &[],
    strategy: &STRATEGY,
};

static STRATEGY: Typed<Pod> = Typed::new();
