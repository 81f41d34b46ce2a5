//! EndpointSlice.

use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::resource::Resource;
use crate::strategy::Typed;
use crate::table;

/// The table entry of EndpointSlice.
pub static RESOURCE: Resource = Resource {
    group: "discovery.k8s.io",
    version: "v1",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    short_names: &[],
    categories: &[],
    namespaced: true,
    delete_collection: true,
    create_on_update: false,
    update_needs_version: false,
    subresources: &[],
    columns: &[table::NAME, table::AGE],
    row: |object, now| vec![table::name(object), table::age(object, now)],
    fields: &[],
    strategy: &STRATEGY,
};

static STRATEGY: Typed<EndpointSlice> = Typed::new();
