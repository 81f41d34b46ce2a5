//! The `scale` subresource: how many replicas, whatever the kind.

use lichen_api::{FieldError, Resource, Status, labels, patch};
use lichen_store::Record;
use serde_json::{Map, Value, json};

use crate::metadata::text;
use crate::modify::Target;
use crate::registry::object_of;
use crate::{Identity, Patch, Registry, WriteOptions};

impl Registry {
    /// Reads an object's `Scale`.
    pub async fn scale(
        &self,
        resource: &'static Resource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Value, Status> {
        let record = self.get(resource, namespace, name).await?;
        scale_of(resource, &record)
    }

    /// Replaces an object's `Scale`.
    pub async fn update_scale(
        &self,
        identity: &Identity,
        resource: &'static Resource,
        namespace: Option<&str>,
        name: &str,
        scale: &Value,
        options: &WriteOptions,
    ) -> Result<Value, Status> {
        let own = text(scale, "name");
        if !own.is_empty() && own != name {
            return Err(Status::bad_request(format!(
                "the name of the object ({own}) does not match the name on the URL ({name})"
            )));
        }
        let target = Target { identity, resource, namespace, name, sub: None, applies: false, options };
        let written = self.modify(&target, |old, _| scaled(old, scale, name)).await?;
        scale_of(resource, &written.record)
    }

    /// Patches an object's `Scale`.
    #[allow(clippy::too_many_arguments, reason = "each is one part of the request")]
    pub async fn patch_scale(
        &self,
        identity: &Identity,
        resource: &'static Resource,
        namespace: Option<&str>,
        name: &str,
        patch: &Patch,
        options: &WriteOptions,
    ) -> Result<Value, Status> {
        let target = Target { identity, resource, namespace, name, sub: None, applies: false, options };
        let written = self
            .modify(&target, |old, _| {
                let mut scale = to_scale(old);
                match patch {
                    Patch::Merge(value) => patch::merge(&mut scale, value)?,
                    // A Scale has no lists: both patches mean the same.
                    Patch::Strategic(value) => patch::merge(&mut scale, value)?,
                    Patch::Json(value) => patch::json(&mut scale, value)?,
                }
                scaled(old, &scale, name)
            })
            .await?;
        scale_of(resource, &written.record)
    }
}

fn scale_of(resource: &Resource, record: &Record) -> Result<Value, Status> {
    object_of(resource, record).map(|object| to_scale(&object))
}

fn to_scale(object: &Value) -> Value {
    let mut metadata = Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(field) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    let mut spec = Map::new();
    if let Some(replicas) = object["spec"]["replicas"].as_i64().filter(|replicas| *replicas != 0) {
        spec.insert("replicas".to_owned(), json!(replicas));
    }
    let mut status = json!({"replicas": object["status"]["replicas"].as_i64().unwrap_or(0)});
    if let Ok(selector) = labels::Selector::from_object(&object["spec"]["selector"]) {
        status["selector"] = json!(selector.to_string());
    }
    json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata, "spec": spec, "status": status})
}

/// The object with what a `Scale` asks for.
fn scaled(object: &Value, scale: &Value, name: &str) -> Result<Value, Status> {
    let replicas = match scale.pointer("/spec/replicas") {
        None | Some(Value::Null) => 0,
        Some(value) => value.as_i64().ok_or_else(|| {
            Status::bad_request(
                "Scale in version \"v1\" cannot be handled as a Scale: spec.replicas must be a whole number",
            )
        })?,
    };
    if replicas < 0 {
        let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        let mut status = Status::unprocessable(format!("Scale.autoscaling \"{name}\" is invalid: {error}"));
        let details = status.details_mut();
        details.name = name.to_owned();
        details.group = "autoscaling".to_owned();
        details.kind = "Scale".to_owned();
        details.causes.push(lichen_api::status::Cause {
            reason: error.kind.reason().to_owned(),
            message: error.body(),
            field: error.field,
        });
        return Err(status);
    }
    let mut object = object.clone();
    object["spec"]["replicas"] = json!(replicas);
    let version = text(scale, "resourceVersion");
    if !version.is_empty() {
        object["metadata"]["resourceVersion"] = json!(version);
    }
    Ok(object)
}
