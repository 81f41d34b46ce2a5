//! Lease.

use k8s_openapi::api::coordination::v1::Lease;

use crate::resource::Resource;
use crate::strategy::Typed;
use crate::table;

/// The table entry of Lease.
pub static RESOURCE: Resource = Resource {
    group: "coordination.k8s.io",
    version: "v1",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    short_names: &[],
    categories: &[],
    namespaced: true,
    delete_collection: true,
    create_on_update: true,
    update_needs_version: true,
    subresources: &[],
    columns: &[table::NAME, table::AGE],
    row: |object, now| vec![table::name(object), table::age(object, now)],
    fields: &[],
    strategy: &STRATEGY,
};

static STRATEGY: Typed<Lease> = Typed::new();
