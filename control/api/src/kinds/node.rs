//! Node.

use k8s_openapi::api::core::v1::Node;

use crate::resource::Resource;
use crate::strategy::Typed;
use crate::table;

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
    columns: &[table::NAME, table::AGE],
    row: |object, now| vec![table::name(object), table::age(object, now)],
    fields: &[],
    strategy: &STRATEGY,
};

static STRATEGY: Typed<Node> = Typed::new();
