//! The three patch formats. Pure: a document and a patch give a document.
//!
//! A failed patch leaves the target in an undefined state; callers patch a copy.

mod strategic;

use json_patch::PatchOperation;
use serde_json::Value;

use crate::resource::Resource;
use crate::status::Status;

/// Most operations in a JSON patch, Kubernetes' own limit.
pub const OPERATIONS_MAX: usize = 10_000;
/// Most that a JSON patch may copy and move, all operations together: a copy can double a document, over and over.
const MOVED_WEIGHT_MAX: usize = 3 << 20;
/// What a value weighs beyond its text.
const VALUE_WEIGHT: usize = 64;
/// Deepest nesting that a JSON patch may make, the same that reading JSON allows.
const DEPTH_MAX: usize = 128;

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
    if patch.len() > OPERATIONS_MAX {
        let count = patch.len();
        let why = format!("The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {count}");
        return Err(Status::entity_too_large(why));
    }
    let mut moved = 0;
    for operation in patch.iter() {
        moved += moved_weight(target, operation).ok_or_else(rejected)?;
        if moved > MOVED_WEIGHT_MAX {
            return Err(rejected());
        }
        // Nothing is undone when an operation fails: the target is a copy.
        json_patch::patch_unsafe(target, std::slice::from_ref(operation)).map_err(|_| rejected())?;
    }
    Ok(())
}

/// How much an operation copies or moves within a document; `None` if it would nest too deeply.
fn moved_weight(target: &Value, operation: &PatchOperation) -> Option<usize> {
    let levels = DEPTH_MAX.checked_sub(operation.path().as_str().matches('/').count())?;
    // What is not there is refused by the operation itself.
    let within = |from: &str| target.pointer(from).map_or(Some(0), |value| weight(value, levels));
    match operation {
        PatchOperation::Copy(copy) => within(copy.from.as_str()),
        PatchOperation::Move(moving) => within(moving.from.as_str()),
        PatchOperation::Add(add) => weight(&add.value, levels).map(|_| 0),
        PatchOperation::Replace(replace) => weight(&replace.value, levels).map(|_| 0),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => Some(0),
    }
}

/// About how much memory a value takes; `None` if it is nested deeper than so many levels.
fn weight(value: &Value, levels: usize) -> Option<usize> {
    let levels = levels.checked_sub(1)?;
    let inner = match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().try_fold(0, |sum, item| Some(sum + weight(item, levels)?))?,
        Value::Object(fields) => {
            fields.iter().try_fold(0, |sum, (name, item)| Some(sum + name.len() + weight(item, levels)?))?
        }
        _ => 0,
    };
    Some(VALUE_WEIGHT + inner)
}

#[cfg(test)]
mod tests;
