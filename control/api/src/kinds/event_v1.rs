//! Event of `events.k8s.io`: the same objects as the core group's, under the names that newer clients have for their
//! fields. What is new is judged more strictly, as Kubernetes does.

use k8s_openapi::api::events::v1::Event;
use serde_json::{Value, json};

use super::event;
use crate::check::At;
use crate::field::FieldError;
use crate::resource::{Resource, StoredAs};
use crate::strategy::{Hooks, Typed};
use crate::validation;

/// Longest action, reason and instance.
const WORD_BYTES_MAX: usize = 128;
/// Longest note.
const NOTE_BYTES_MAX: usize = 1024;

/// The table entry of this Event.
pub static RESOURCE: Resource = Resource {
    group: "events.k8s.io",
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
    columns: event::RESOURCE.columns,
    row: |object, now| {
        let mut object = object.clone();
        to_home(&mut object);
        (event::RESOURCE.row)(&object, now)
    },
    fields: &[],
    strategy: &STRATEGY,
    stored_as: Some(&STORED_AS),
    deprecation: None,
};

static STORED_AS: StoredAs = StoredAs {
    home: &event::RESOURCE,
    to_home,
    from_home,
    fields: &[
        ("regarding.kind", "involvedObject.kind"),
        ("regarding.namespace", "involvedObject.namespace"),
        ("regarding.name", "involvedObject.name"),
        ("regarding.uid", "involvedObject.uid"),
        ("regarding.apiVersion", "involvedObject.apiVersion"),
        ("regarding.resourceVersion", "involvedObject.resourceVersion"),
        ("regarding.fieldPath", "involvedObject.fieldPath"),
        ("reason", "reason"),
        ("reportingController", "reportingComponent"),
        ("type", "type"),
    ],
};

/// Fields that both have, by the name here and the stored one.
const RENAMED: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

/// What an update may not change: only the series goes on.
const FIXED: [&str; 8] = [
    "action",
    "eventTime",
    "note",
    "reason",
    "regarding",
    "related",
    "reportingController",
    "reportingInstance",
];

static STRATEGY: Typed<Event> = Typed::new(Hooks { validate, validate_update, ..Hooks::NONE });

fn to_home(object: &mut Value) {
    rename(object, event::RESOURCE.api_version(), RENAMED);
}

fn from_home(object: &mut Value) {
    rename(object, RESOURCE.api_version(), RENAMED.map(|(new, old)| (old, new)));
}

fn rename(object: &mut Value, api_version: String, names: [(&str, &str); RENAMED.len()]) {
    let Some(fields) = object.as_object_mut() else { return };
    fields.insert("apiVersion".to_owned(), json!(api_version));
    for (from, to) in names {
        if let Some(value) = fields.remove(from) {
            fields.insert(to.to_owned(), value);
        }
    }
}

fn validate(object: &At<'_>, errors: &mut Vec<FieldError>) {
    event::validate_namespace(object, &object.field("regarding"), errors);
    // An event without a time was made by the core group's clients, whose rules are looser.
    let at = object.field("eventTime");
    if at.is_empty() {
        return;
    }
    let controller = object.field("reportingController");
    if controller.required(errors) {
        controller.obeys(validation::qualified_name, errors);
    }
    for field in ["reportingInstance", "action", "reason"] {
        let text = object.field(field);
        if text.required(errors) && text.text().len() > WORD_BYTES_MAX {
            errors.push(FieldError::too_long(&text.path, WORD_BYTES_MAX));
        }
    }
    let note = object.field("note");
    if note.text().len() > NOTE_BYTES_MAX {
        errors.push(FieldError::too_long(&note.path, NOTE_BYTES_MAX));
    }
    object.field("type").one_of(&["Normal", "Warning"], errors);
}

fn validate_update(new: &At<'_>, old: &At<'_>, errors: &mut Vec<FieldError>) {
    for field in FIXED {
        new.field(field).immutable(&old.field(field), errors);
    }
}
