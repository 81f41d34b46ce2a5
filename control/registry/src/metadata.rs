//! The system's own part of an object's metadata, and decoding with its complaints.

use lichen_api::status::Cause;
use lichen_api::{Resource, Status};
use serde_json::{Map, Value, json};

use crate::{FieldValidation, WriteOptions};

/// Most unknown or duplicate fields that one answer names.
const COMPLAINTS_MAX: usize = 64;

/// Fields of the metadata that only the server sets.
const SYSTEM_FIELDS: [&str; 6] = [
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "selfLink",
];

/// Why an object could not be decoded.
pub(crate) enum Undecodable {
    /// It has another shape than its kind.
    Shape(String),
    /// It has fields that its kind does not know, and they were to be refused.
    Strict(String),
}

impl Undecodable {
    /// The answer to a create or an update.
    pub(crate) fn into_bad_request(self, resource: &Resource) -> Status {
        let (Self::Shape(why) | Self::Strict(why)) = self;
        let (kind, version) = (resource.kind, resource.version);
        Status::bad_request(format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"))
    }

    /// The answer to a patch that has `patch` as its text.
    pub(crate) fn into_bad_patch(self, patch: &str) -> Status {
        let (Self::Shape(why) | Self::Strict(why)) = self;
        let message = format!("Invalid value: {}: {why}", Value::from(patch));
        let mut status = Status::unprocessable(format!(" \"\" is invalid: patch: {message}"));
        status.details_mut().causes.push(Cause {
            reason: "FieldValueInvalid".to_owned(),
            message,
            field: "patch".to_owned(),
        });
        status
    }
}

/// Decodes an object; what its kind does not know is dropped, and refused or warned about as the options say.
pub(crate) fn decode(
    resource: &Resource,
    mut object: Value,
    options: &WriteOptions,
    warnings: &mut Vec<String>,
) -> Result<Value, Undecodable> {
    if let Some(fields) = object.as_object_mut() {
        // A client may leave both out, and the codec asks for them.
        fields.entry("apiVersion").or_insert_with(|| json!(resource.api_version()));
        fields.entry("kind").or_insert_with(|| json!(resource.kind));
    }
    let mut complaints: Vec<String> = Vec::new();
    complaints.extend(options.duplicate_fields.iter().map(|path| format!("duplicate field \"{path}\"")));
    let decoded = resource
        .strategy
        .decode(object, &mut |path| {
            if complaints.len() < COMPLAINTS_MAX {
                complaints.push(format!("unknown field \"{path}\""));
            }
        })
        .map_err(|error| Undecodable::Shape(error.message))?;
    match options.field_validation {
        FieldValidation::Strict if !complaints.is_empty() => {
            Err(Undecodable::Strict(format!("strict decoding error: {}", complaints.join(", "))))
        }
        FieldValidation::Warn => {
            warnings.append(&mut complaints);
            Ok(decoded)
        }
        FieldValidation::Strict | FieldValidation::Ignore => Ok(decoded),
    }
}

/// Refuses an object of another kind than the path's.
pub(crate) fn check_kind(resource: &Resource, object: &Value) -> Result<(), Status> {
    let expected = resource.api_version();
    let text = |name: &str| object.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let kind = text("kind").unwrap_or(resource.kind);
    let version = text("apiVersion").unwrap_or(&expected);
    if version != expected {
        return Err(Status::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({expected})"
        )));
    }
    if kind != resource.kind {
        return Err(Status::bad_request(format!(
            "{kind} in version \"{}\" cannot be handled as a {}",
            resource.version, resource.kind
        )));
    }
    Ok(())
}

/// The object's metadata, made if it is not there.
pub(crate) fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    let metadata = &mut object["metadata"];
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    match metadata {
        Value::Object(map) => map,
        _ => unreachable!("it was made an object above"),
    }
}

/// A text in the object's metadata; empty if absent.
pub(crate) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object
        .get("metadata")
        .and_then(|metadata| metadata.get(field))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The object's finalizers.
pub(crate) fn finalizers(object: &Value) -> Vec<&str> {
    let list = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Whether the object waits for its end.
pub(crate) fn is_terminating(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some_and(|at| !at.is_null())
}

/// Makes the object live where the path says.
pub(crate) fn set_namespace(
    resource: &Resource,
    object: &mut Value,
    namespace: Option<&str>,
) -> Result<(), Status> {
    let metadata = metadata_mut(object);
    let Some(namespace) = namespace.filter(|_| resource.namespaced) else {
        metadata.remove("namespace");
        return Ok(());
    };
    match metadata.get("namespace").and_then(Value::as_str) {
        None | Some("") => {
            metadata.insert("namespace".to_owned(), json!(namespace));
            Ok(())
        }
        Some(own) if own == namespace => Ok(()),
        Some(_) => Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        )),
    }
}

/// Takes out of a new object what only the server sets.
pub(crate) fn clear_system_fields(object: &mut Value) {
    let metadata = metadata_mut(object);
    for field in SYSTEM_FIELDS {
        metadata.remove(field);
    }
    metadata.remove("resourceVersion");
}

/// Carries over from `old` what no update changes. A uid that the client did send is left for validation to judge.
pub(crate) fn keep_system_fields(new: &mut Value, old: &Value) {
    let old = old.get("metadata").and_then(Value::as_object);
    let new = metadata_mut(new);
    for field in SYSTEM_FIELDS.into_iter().chain(["generation", "name", "namespace"]) {
        let given = new.get(field).is_some_and(|value| !value.is_null());
        // An empty list of managers is a client's way to take all of them out.
        if matches!(field, "uid" | "managedFields" | "name" | "namespace") && given {
            continue;
        }
        match old.and_then(|old| old.get(field)) {
            Some(value) => new.insert(field.to_owned(), value.clone()),
            None => new.remove(field),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_update_cannot_change() {
        let old = json!({"metadata": {"name": "a", "uid": "1", "generation": 3, "creationTimestamp": "then",
            "deletionTimestamp": "later", "managedFields": [{"manager": "m"}]}});
        let cases = [
            (json!({}), json!(null), "nothing sent"),
            (
                json!({"metadata": {"generation": 9, "creationTimestamp": "x", "deletionTimestamp": null}}),
                json!(null),
                "other values sent",
            ),
            (
                json!({"metadata": {"uid": "2"}}),
                json!({"uid": "2"}),
                "another uid is for validation to refuse",
            ),
            (json!({"metadata": {"managedFields": []}}), json!({"managedFields": []}), "managers taken out"),
            (json!({"metadata": {"selfLink": "/x"}}), json!(null), "a selfLink"),
        ];
        for (mut new, differs, what) in cases {
            keep_system_fields(&mut new, &old);
            let mut expect = old.clone();
            for (field, value) in differs.as_object().into_iter().flatten() {
                expect["metadata"][field] = value.clone();
            }
            assert_eq!(new, expect, "{what}");
        }
    }
}
