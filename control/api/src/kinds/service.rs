//! Service.

use k8s_openapi::api::core::v1::Service;

use crate::resource::Resource;
use crate::strategy::Typed;
use crate::table;

/// The table entry of Service.
pub static RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    namespaced: true,
    delete_collection: true,
    create_on_update: false,
    update_needs_version: false,
    subresources: &["status"],
    columns: &[table::NAME, table::AGE],
    row: |object, now| vec![table::name(object), table::age(object, now)],
    fields: &[],
    strategy: &STRATEGY,
};

static STRATEGY: Typed<Service> = Typed::new();
