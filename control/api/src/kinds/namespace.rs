//! Namespace.

use k8s_openapi::api::core::v1::Namespace;

use crate::resource::Resource;
use crate::strategy::Typed;
use crate::table;

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
    columns: &[table::NAME, table::AGE],
    row: |object, now| vec![table::name(object), table::age(object, now)],
    fields: &[],
    strategy: &STRATEGY,
};

static STRATEGY: Typed<Namespace> = Typed::new();
