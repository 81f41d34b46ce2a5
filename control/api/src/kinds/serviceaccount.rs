//! ServiceAccount: the identity of a pod.

use k8s_openapi::api::core::v1::ServiceAccount;

use crate::resource::Resource;
use crate::strategy::{Hooks, Typed};
use crate::table;

/// The table entry of ServiceAccount.
pub static RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
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
    stored_as: None,
    deprecation: None,
};

static STRATEGY: Typed<ServiceAccount> = Typed::new(Hooks::NONE);
