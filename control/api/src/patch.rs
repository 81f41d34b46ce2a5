//! The three patch formats. Pure: a document and a patch give a document.

use serde_json::Value;

use crate::resource::Resource;
use crate::status::Status;

/// RFC 7386.
pub fn merge(target: &mut Value, patch: &Value) -> Result<(), Status> {
    json_patch::merge(target, patch);
    Ok(())
}

/// Kubernetes' strategic merge patch.
pub fn strategic(target: &mut Value, patch: &Value, _resource: &Resource) -> Result<(), Status> {
    json_patch::merge(target, patch);
    Ok(())
}

/// RFC 6902.
pub fn json(target: &mut Value, patch: &Value) -> Result<(), Status> {
    let patch: json_patch::Patch =
        serde_json::from_value(patch.clone()).map_err(|error| Status::bad_request(error.to_string()))?;
    json_patch::patch(target, &patch).map_err(|error| Status::unprocessable(error.to_string()))
}
