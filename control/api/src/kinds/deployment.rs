//! Deployment.

use k8s_openapi::api::apps::v1::Deployment;

use crate::resource::Resource;
use crate::strategy::Typed;
use crate::table;

/// The table entry of Deployment.
pub static RESOURCE: Resource = Resource {
    group: "apps",
    version: "v1",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
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

static STRATEGY: Typed<Deployment> = Typed::new();
