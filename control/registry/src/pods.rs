//! What is done to pods only: binding to a node, eviction.

use lichen_api::{Status, kinds, names};
use lichen_store::Revision;
use serde_json::{Map, Value, json};

use crate::metadata::{is_terminating, metadata_mut};
use crate::modify::Target;
use crate::{DeleteOptions, Deleted, Identity, Registry, WriteOptions, Written};

/// Which node a pod is to run on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Binding {
    /// The node's name.
    pub node: String,
    /// Only the pod with this uid.
    pub uid: Option<String>,
    /// Only the pod at this revision: what the scheduler decided on.
    pub revision: Option<Revision>,
    /// Annotations to add to the pod.
    pub annotations: Map<String, Value>,
}

impl Registry {
    /// Binds a pod to a node, once and for all.
    pub async fn bind(
        &self,
        identity: &Identity,
        namespace: &str,
        name: &str,
        binding: &Binding,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        let resource = &kinds::pod::RESOURCE;
        let now = self.now();
        let refuse = |why: String| {
            let mut status = Status::new(
                409,
                "Conflict",
                format!("Operation cannot be fulfilled on pods/binding \"{name}\": {why}"),
            );
            let details = status.details_mut();
            details.name = name.to_owned();
            details.kind = "pods/binding".to_owned();
            status
        };
        if binding.node.is_empty() {
            let error = lichen_api::FieldError::required("target.name", "");
            return Err(Status::invalid(resource, name, vec![error]));
        }
        let target = Target {
            identity,
            resource,
            namespace: Some(namespace),
            name,
            sub: Some("binding"),
            applies: false,
            options,
        };
        self.modify(&target, |old, _| {
            let own = old["metadata"]["uid"].as_str().unwrap_or_default();
            if let Some(uid) = binding.uid.as_deref().filter(|uid| *uid != own) {
                let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {own}");
                return Err(refuse(why));
            }
            let current = old["metadata"]["resourceVersion"].as_str().unwrap_or_default();
            if let Some(revision) = binding.revision.filter(|revision| revision.to_string() != current) {
                return Err(refuse(format!(
                    "Precondition failed: ResourceVersion in precondition: {revision}, ResourceVersion in object meta: {current}"
                )));
            }
            if is_terminating(old) {
                return Err(refuse(format!("pod {name} is being deleted, cannot be assigned to a host")));
            }
            if let Some(node) = old["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) {
                return Err(refuse(format!("pod {name} is already assigned to node \"{node}\"")));
            }
            let mut new = old.clone();
            new["spec"]["nodeName"] = json!(binding.node);
            if !binding.annotations.is_empty() {
                let annotations = metadata_mut(&mut new).entry("annotations").or_insert_with(|| json!({}));
                for (name, value) in &binding.annotations {
                    annotations[name] = value.clone();
                }
            }
            set_scheduled(&mut new["status"], names::rfc3339(now));
            Ok(new)
        })
        .await
    }

    /// Evicts a pod: a deletion that budgets may refuse. There are no budgets yet.
    pub async fn evict(
        &self,
        identity: &Identity,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        self.delete(identity, &kinds::pod::RESOURCE, Some(namespace), name, options).await
    }
}

/// Sets the condition PodScheduled.
fn set_scheduled(status: &mut Value, at: String) {
    let condition = json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": at});
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else { return };
    match conditions.iter_mut().find(|known| known["type"] == "PodScheduled") {
        Some(known) => *known = condition,
        None => conditions.push(condition),
    }
}
