//! Event: something that happened to an object.

use k8s_openapi::api::core::v1::Event;
use serde_json::{Value, json};

use crate::check::At;
use crate::field::FieldError;
use crate::resource::{Column, FieldSelector, Resource};
use crate::strategy::{Hooks, Typed};
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
    columns: &[
        table::column("Last Seen", "When the event occurred last."),
        table::column("Type", "Normal or Warning."),
        table::column("Reason", "Why the event was made, for machines."),
        table::column("Object", "The object that this event is about."),
        table::wide("Subobject", "The part of the object that this event is about."),
        table::wide("Source", "The component that reported the event."),
        table::column("Message", "What happened, for people."),
        table::wide("First Seen", "When the event occurred first."),
        table::wide("Count", "How often the event occurred."),
        Column { priority: 1, ..table::NAME },
    ],
    row,
    fields: &[
        FieldSelector { name: "involvedObject.kind", get: |object| of(object, "/involvedObject/kind") },
        FieldSelector {
            name: "involvedObject.namespace",
            get: |object| of(object, "/involvedObject/namespace"),
        },
        FieldSelector { name: "involvedObject.name", get: |object| of(object, "/involvedObject/name") },
        FieldSelector { name: "involvedObject.uid", get: |object| of(object, "/involvedObject/uid") },
        FieldSelector {
            name: "involvedObject.apiVersion",
            get: |object| of(object, "/involvedObject/apiVersion"),
        },
        FieldSelector {
            name: "involvedObject.resourceVersion",
            get: |object| of(object, "/involvedObject/resourceVersion"),
        },
        FieldSelector {
            name: "involvedObject.fieldPath",
            get: |object| of(object, "/involvedObject/fieldPath"),
        },
        FieldSelector { name: "reason", get: |object| of(object, "/reason") },
        FieldSelector { name: "reportingComponent", get: |object| of(object, "/reportingComponent") },
        FieldSelector {
            name: "source",
            get: |object| {
                table::or(
                    table::text(object, "/source/component"),
                    table::text(object, "/reportingComponent"),
                )
                .to_owned()
            },
        },
        FieldSelector { name: "type", get: |object| of(object, "/type") },
    ],
    strategy: &STRATEGY,
    stored_as: None,
    deprecation: None,
};

static STRATEGY: Typed<Event> = Typed::new(Hooks { validate, ..Hooks::NONE });

fn of(object: &Value, pointer: &str) -> String {
    table::text(object, pointer).to_owned()
}

fn validate(object: &At<'_>, errors: &mut Vec<FieldError>) {
    validate_namespace(object, &object.field("involvedObject"), errors);
}

/// An event lives in the namespace of the object that it is about; without one, in the default one.
pub(super) fn validate_namespace(object: &At<'_>, about: &At<'_>, errors: &mut Vec<FieldError>) {
    let (namespace, about) = (object.below(&["metadata", "namespace"]), about.field("namespace"));
    let expected = table::or(about.text(), "default");
    let allowed = namespace.text() == expected || (about.is_empty() && namespace.text() == "kube-system");
    if !allowed {
        about.invalid("does not match event.namespace", errors);
    }
}

fn row(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let since = |pointer: &str| table::since(table::text(object, pointer), now);
    let given = |pointer: &str| !table::text(object, pointer).is_empty();
    let first = if given("/firstTimestamp") { since("/firstTimestamp") } else { since("/eventTime") };
    let last = if given("/series/lastObservedTime") {
        since("/series/lastObservedTime")
    } else if given("/lastTimestamp") {
        since("/lastTimestamp")
    } else {
        first.clone()
    };
    let count = if object.get("series").is_some() {
        table::number(object, "/series/count")
    } else {
        table::number(object, "/count").max(1)
    };
    let kind = table::text(object, "/involvedObject/kind").to_lowercase();
    let target = match table::text(object, "/involvedObject/name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    vec![
        json!(last),
        json!(table::text(object, "/type")),
        json!(table::text(object, "/reason")),
        json!(target),
        json!(table::text(object, "/involvedObject/fieldPath")),
        json!(source(object)),
        json!(table::text(object, "/message").trim()),
        json!(first),
        json!(count),
        table::name(object),
    ]
}

fn source(object: &Value) -> String {
    let either =
        |old: &str, new: &str| table::or(table::text(object, old), table::text(object, new)).to_owned();
    let component = either("/source/component", "/reportingComponent");
    match either("/source/host", "/reportingInstance") {
        instance if instance.is_empty() => component,
        instance => format!("{component}, {instance}"),
    }
}
