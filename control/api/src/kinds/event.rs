//! Event.

use k8s_openapi::api::core::v1::Event;

use crate::resource::Resource;
use crate::strategy::Typed;
use crate::table;

/// The table entry of Event.
pub static RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    categories: &[],
    namespaced: true,
    delete_collection: true,
    create_on_update: true,
    update_needs_version: false,
    subresources: &[],
    columns: &[table::NAME, table::AGE],
    row: |object, now| vec![table::name(object), table::age(object, now)],
    fields: &[],
    strategy: &STRATEGY,
};

static STRATEGY: Typed<Event> = Typed::new();
