//! Rules that need more than the object itself: the namespace that it is created in, and what Kubernetes' admission
//! plugins fill in.

use lichen_api::status::Cause;
use lichen_api::{Resource, Status, kinds};
use lichen_store::{Key, Revision};
use serde_json::{Value, json};

use crate::Registry;
use crate::metadata::{is_terminating, metadata_mut, text};
use crate::registry::key_of;

/// The label by which selectors find a namespace by its name.
const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// The finalizer in a namespace's spec, which the namespace controller takes out when nothing is left inside.
const NAMESPACE_FINALIZER: &str = "kubernetes";
/// The service account of a pod that names none.
const DEFAULT_SERVICE_ACCOUNT: &str = "default";

impl Registry {
    /// Fills in and judges a new object. What comes back has to hold when it is written: its namespace is unchanged.
    pub(crate) fn admit_create(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        object: &mut Value,
    ) -> Result<Option<(Key, Revision)>, Status> {
        match (resource.group, resource.kind) {
            ("", "Namespace") => {
                let name = text(object, "name").to_owned();
                let labels = &mut metadata_mut(object).entry("labels").or_insert_with(|| json!({}))
                    [NAMESPACE_NAME_LABEL];
                *labels = json!(name);
                object["spec"]["finalizers"] = json!([NAMESPACE_FINALIZER]);
                object["status"] = json!({"phase": "Active"});
            }
            ("", "Pod") => {
                let spec = &mut object["spec"];
                if spec.get("serviceAccountName").and_then(Value::as_str).unwrap_or_default().is_empty() {
                    spec["serviceAccountName"] = json!(DEFAULT_SERVICE_ACCOUNT);
                }
                spec["serviceAccount"] = spec["serviceAccountName"].clone();
                if spec.get("priority").is_none() {
                    spec["priority"] = json!(0);
                }
                if spec.get("preemptionPolicy").is_none() {
                    spec["preemptionPolicy"] = json!("PreemptLowerPriority");
                }
            }
            _ => {}
        }
        match namespace {
            Some(namespace) if resource.namespaced => {
                self.live_namespace(resource, namespace, object).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn live_namespace(
        &self,
        resource: &Resource,
        namespace: &str,
        object: &Value,
    ) -> Result<(Key, Revision), Status> {
        let home = &kinds::namespace::RESOURCE;
        let key = key_of(home, None, namespace);
        let record = self.inner.store.get(&key).ok_or_else(|| Status::not_found(home, namespace))?;
        // Terminating is what the phase says; the object itself is asked only if it does not say that it is active.
        if record.fields().get("status.phase") != Some("Active")
            && record.value().is_ok_and(|value| is_terminating(&value))
        {
            let why = format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            );
            let mut status = Status::forbidden(resource, text(object, "name"), &why);
            status.details_mut().causes.push(Cause {
                reason: "NamespaceTerminating".to_owned(),
                message: format!("namespace {namespace} is being terminated"),
                field: "metadata.namespace".to_owned(),
            });
            return Err(status);
        }
        Ok((key, record.revision()))
    }
}
