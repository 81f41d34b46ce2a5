//! The three patch formats. Pure: a document and a patch give a document.
//!
//! A failed patch leaves the target in an undefined state; callers patch a copy.

mod strategic;

use serde_json::Value;

use crate::resource::Resource;
use crate::status::Status;

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn object_only(patch: &Value) -> Result<(), Status> {
    match patch {
        Value::Object(_) => Ok(()),
        Value::Null => Err(Status::bad_request("Invalid JSON Patch")),
        other => Err(Status::bad_request(format!(
            "error decoding patch: json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            type_name(other)
        ))),
    }
}

/// RFC 7386: maps merge, null deletes, everything else replaces.
pub fn merge(target: &mut Value, patch: &Value) -> Result<(), Status> {
    object_only(patch)?;
    json_patch::merge(target, patch);
    Ok(())
}

/// Kubernetes' strategic merge patch: lists merge by the keys that the kind's schema names.
pub fn strategic(target: &mut Value, patch: &Value, resource: &Resource) -> Result<(), Status> {
    object_only(patch)?;
    strategic::merge(target, patch, &resource.strategy.kind())
}

/// RFC 6902.
pub fn json(target: &mut Value, patch: &Value) -> Result<(), Status> {
    if !patch.is_array() {
        return Err(Status::bad_request(format!(
            "error decoding patch: json: cannot unmarshal {} into Go value of type []handlers.jsonPatchOp",
            type_name(patch)
        )));
    }
    let rejected = || {
        let mut status =
            Status::unprocessable("the server rejected our request due to an error in our request");
        status.details_mut();
        status
    };
    let patch: json_patch::Patch = serde_json::from_value(patch.clone()).map_err(|_| rejected())?;
    json_patch::patch(target, &patch).map_err(|_| rejected())
}

#[cfg(test)]
mod tests;
