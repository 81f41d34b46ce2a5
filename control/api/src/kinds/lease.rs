//! Lease: who holds something, and until when.

use k8s_openapi::api::coordination::v1::Lease;
use serde_json::{Value, json};

use crate::check::At;
use crate::field::FieldError;
use crate::resource::Resource;
use crate::strategy::{Hooks, Typed, set};
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
    columns: &[table::NAME, table::column("Holder", "Who holds the lease."), table::AGE],
    row: |object, now| {
        vec![table::name(object), json!(table::text(object, "/spec/holderIdentity")), table::age(object, now)]
    },
    fields: &[],
    strategy: &STRATEGY,
    stored_as: None,
    deprecation: None,
};

static STRATEGY: Typed<Lease> = Typed::new(Hooks { default, validate, ..Hooks::NONE });

fn default(object: &mut Value) {
    set(object, "spec", json!({}));
}

fn validate(object: &At<'_>, errors: &mut Vec<FieldError>) {
    let spec = object.field("spec");
    let duration = spec.field("leaseDurationSeconds");
    if duration.number().is_some_and(|seconds| seconds <= 0) {
        duration.invalid("must be greater than 0", errors);
    }
    spec.field("leaseTransitions").not_negative(errors);
    let holder = spec.field("holderIdentity");
    if !holder.is_absent() && holder.is_empty() {
        holder.invalid("must not be empty", errors);
    }
}
