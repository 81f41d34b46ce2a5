//! What nodes report becomes writes in the registry, each under the node's own identity, and each judged first: a node
//! writes its own Node, the status of pods that are bound to it under the uid that it names, and events about those.
//!
//! A report that is refused is settled all the same, since it would be refused again; one that could not be written for
//! now is tried until it can.

use std::sync::Arc;
use std::time::Duration;

use lichen_api::kinds::node::may_label_itself;
use lichen_api::{Resource, Status, kinds};
use lichen_registry::{DeleteOptions, Identity, Registry, WriteOptions};
use lichen_wire::report;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::conditions::{Link, merge_node, merge_pod, set_link};
use crate::hub::Event;
use crate::lease;
use crate::members::{self, MemberError};
use crate::presence::Presence;
use crate::removal;

/// Times that a write is tried again when the object changed meanwhile.
const ATTEMPTS: usize = 10;
/// The pause before a report is tried again that could not be written.
const RETRY: Duration = Duration::from_millis(500);
/// The largest pause of that kind.
const RETRY_MAX: Duration = Duration::from_secs(15);

/// A report as the session handed it out.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) kind: String,
    pub(crate) key: String,
    pub(crate) uid: String,
    pub(crate) body: Vec<u8>,
}

/// Why a report changed nothing.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("it can't be read: {0}")]
    Unreadable(String),
    #[error("it is about something that is not the node's: {0}")]
    Foreign(String),
    #[error("it is older than what is known: {0}")]
    Stale(&'static str),
    #[error(transparent)]
    Status(#[from] Status),
    #[error(transparent)]
    Member(#[from] MemberError),
}

impl Refused {
    /// Whether the same could succeed later.
    fn may_pass(&self) -> bool {
        match self {
            // After a conflict the object is looked at again.
            Refused::Status(status) => matches!(status.code, 429 | 503 | 504) || status.reason == "Conflict",
            Refused::Member(error) => error.may_pass(),
            _ => false,
        }
    }
}

/// Writes what nodes report.
#[derive(Clone)]
pub(crate) struct Reporter {
    registry: Registry,
    presence: Arc<Presence>,
    /// How long a node's Lease holds.
    lease: Duration,
    hub: mpsc::Sender<Event>,
}

impl Reporter {
    pub(crate) fn new(
        registry: Registry,
        presence: Arc<Presence>,
        lease: Duration,
        hub: mpsc::Sender<Event>,
    ) -> Reporter {
        Reporter { registry, presence, lease, hub }
    }

    /// Writes a report, however long that takes. Whatever comes back, the report is settled.
    pub(crate) async fn write(&self, node: &str, report: &Report) {
        let mut pause = RETRY;
        loop {
            match self.try_write(node, report).await {
                Ok(()) => return,
                Err(error) if error.may_pass() => {
                    tracing::warn!(node, kind = report.kind, key = report.key, %error, "a report waits");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
                Err(Refused::Stale(why)) => {
                    tracing::debug!(
                        node,
                        kind = report.kind,
                        key = report.key,
                        why,
                        "a late report was ignored"
                    );
                    return;
                }
                Err(error) => {
                    tracing::warn!(node, kind = report.kind, key = report.key, %error, "a report was refused");
                    return;
                }
            }
        }
    }

    async fn try_write(&self, node: &str, report: &Report) -> Result<(), Refused> {
        match report.kind.as_str() {
            report::NODE => self.node(node, report).await,
            report::POD => self.pod(node, report).await,
            report::POD_GONE => self.pod_gone(node, report).await,
            report::EVENT => self.event(node, report).await,
            report::LEFT => self.left(node).await,
            other => Err(Refused::Unreadable(format!("unknown kind {other:?}"))),
        }
    }

    /// Creates or updates the node's Node.
    async fn node(&self, node: &str, report: &Report) -> Result<(), Refused> {
        let reported = decode(&report.body)?;
        if report.key != node || reported["metadata"]["name"] != node {
            return Err(Refused::Foreign(format!("the Node {}", report.key)));
        }
        let resource = &kinds::node::RESOURCE;
        let current = match self.registry.get(resource, None, node).await {
            Ok(record) => Some(record),
            Err(status) if status.code == 404 => None,
            Err(status) => return Err(status.into()),
        };
        let identity = identity(node);
        let options = WriteOptions::default();
        if current.is_none() {
            let member = members::find(&self.registry, node)?;
            if member.is_none_or(|(member, _)| member.leaves_until.is_some()) {
                return Err(Refused::Stale("the node was removed"));
            }
            let mut object = json!({
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {
                    "name": node,
                    "labels": own_labels(node, &reported["metadata"]["labels"]),
                    "annotations": removal::without_reserved(&reported["metadata"]["annotations"]),
                },
                "spec": { "taints": reported["spec"]["taints"] },
                "status": merge_node(&Value::Null, &reported["status"]),
            });
            // It is ready from the start, so that nothing follows from a moment in which it was not.
            if self.presence.is_up(node) {
                set_link(&mut object, Link::Up, None, self.registry.now());
            }
            let created =
                self.registry.create(&identity, resource, None, without_nulls(object), &options).await;
            if let Err(status) = created
                && status.reason != "AlreadyExists"
            {
                return Err(status.into());
            }
        } else {
            let metadata = [
                ("labels", own_labels(node, &reported["metadata"]["labels"])),
                ("annotations", removal::without_reserved(&reported["metadata"]["annotations"])),
            ];
            self.change(&identity, resource, None, node, None, |object| {
                for (field, wanted) in &metadata {
                    for (name, value) in wanted.as_object().into_iter().flatten() {
                        object["metadata"][*field][name] = value.clone();
                    }
                }
                Ok(())
            })
            .await?;
        }
        let _verdict = self.presence.verdict(node).await;
        // A report that had to wait may outlive the session that brought it.
        let up = self.presence.is_up(node);
        let now = self.registry.now();
        let mut uid = String::new();
        self.change(&identity, resource, None, node, Some("status"), |object| {
            object["status"] = merge_node(&object["status"], &reported["status"]);
            if up {
                set_link(object, Link::Up, None, now);
            }
            uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
            Ok(())
        })
        .await?;
        if up {
            self.presence.written(node, Link::Up);
        }
        Ok(lease::ensure(&self.registry, &identity, node, &uid, self.lease).await?)
    }

    /// The word of a node that was told to leave that it did.
    async fn left(&self, node: &str) -> Result<(), Refused> {
        match members::find(&self.registry, node)? {
            Some((member, at)) if member.leaves_until.is_some() => {
                match members::forget(&self.registry, node, at).await {
                    // Somebody who joined under the name meanwhile stays.
                    Err(error) if error.is_conflict() => return Ok(()),
                    other => other?,
                }
                tracing::info!(node, "a node has left");
                let _ = self.hub.send(Event::Gone(node.to_owned())).await;
                Ok(())
            }
            Some(_) => Err(Refused::Stale("nobody told the node to leave")),
            None => Ok(()),
        }
    }

    async fn pod(&self, node: &str, report: &Report) -> Result<(), Refused> {
        let reported = decode(&report.body)?;
        let (namespace, name) = split(&report.key)?;
        let resource = &kinds::pod::RESOURCE;
        // Pods of a node that is not ready are made not ready: one that is back says so before its pods do.
        self.presence.confirm(&self.registry, node).await?;
        let written = self
            .change(&identity(node), resource, Some(namespace), name, Some("status"), |object| {
                own_pod(object, node, &report.uid)?;
                let status = merge_pod(&object["status"], &reported["status"]);
                object["status"] = status.ok_or(Refused::Stale("the pod's phase is final"))?;
                Ok(())
            })
            .await;
        match written {
            Err(Refused::Status(status)) if status.code == 404 => Err(Refused::Stale("the pod is gone")),
            other => other,
        }
    }

    /// The node's word that nothing of a deleted pod runs any more: the object goes.
    async fn pod_gone(&self, node: &str, report: &Report) -> Result<(), Refused> {
        let (namespace, name) = split(&report.key)?;
        let resource = &kinds::pod::RESOURCE;
        let record = match self.registry.get(resource, Some(namespace), name).await {
            Ok(record) => record,
            Err(status) if status.code == 404 => return Ok(()),
            Err(status) => return Err(status.into()),
        };
        let object = record.value().map_err(|e| Refused::Unreadable(e.to_string()))?;
        own_pod(&object, node, &report.uid)?;
        if object["metadata"]["deletionTimestamp"].is_null() {
            return Err(Refused::Stale("the pod is not being deleted"));
        }
        let options = DeleteOptions {
            uid: Some(report.uid.clone()),
            grace_seconds: Some(0),
            ..DeleteOptions::default()
        };
        match self.registry.delete(&identity(node), resource, Some(namespace), name, &options).await {
            Ok(_) => Ok(()),
            Err(status) if status.code == 404 => Ok(()),
            Err(status) => Err(status.into()),
        }
    }

    async fn event(&self, node: &str, report: &Report) -> Result<(), Refused> {
        let reported = decode(&report.body)?;
        let (namespace, name) = split(&report.key)?;
        let metadata = &reported["metadata"];
        if metadata["name"] != name || metadata["namespace"] != namespace {
            return Err(Refused::Unreadable("the event has another name than the report".to_owned()));
        }
        self.owns(node, namespace, &reported["involvedObject"]).await?;
        let resource = &kinds::event::RESOURCE;
        let identity = identity(node);
        let mut object = reported.clone();
        object["apiVersion"] = json!("v1");
        object["kind"] = json!("Event");
        object["source"]["host"] = json!(node);
        object["reportingInstance"] = json!(node);
        let options = WriteOptions::default();
        let created = self.registry.create(&identity, resource, Some(namespace), object, &options).await;
        match created {
            Ok(_) => Ok(()),
            Err(status) if status.reason == "AlreadyExists" => {
                // It happened again: the node counts, and no node touches another's events.
                self.change(&identity, resource, Some(namespace), name, None, |object| {
                    if object["source"]["host"] != node {
                        return Err(Refused::Foreign(format!("the event {}", report.key)));
                    }
                    if object["count"].as_i64() >= reported["count"].as_i64() {
                        return Err(Refused::Stale("the event was counted already"));
                    }
                    for field in ["count", "lastTimestamp", "message"] {
                        if !reported[field].is_null() {
                            object[field] = reported[field].clone();
                        }
                    }
                    Ok(())
                })
                .await
            }
            // Events about what is in a namespace that goes have nowhere to be.
            Err(status) if matches!(status.code, 403 | 404) => Err(Refused::Stale("the namespace goes")),
            Err(status) => Err(status.into()),
        }
    }

    /// Whether an event's object is the node's to speak of: itself, or a pod that is bound to it.
    async fn owns(&self, node: &str, namespace: &str, object: &Value) -> Result<(), Refused> {
        let text = |field: &str| object[field].as_str().unwrap_or_default();
        match text("kind") {
            "Node" if text("name") == node => Ok(()),
            "Pod" if text("namespace") == namespace => {
                let pod = self.registry.get(&kinds::pod::RESOURCE, Some(namespace), text("name")).await;
                match pod {
                    Ok(record) => {
                        let pod = record.value().map_err(|e| Refused::Unreadable(e.to_string()))?;
                        own_pod(&pod, node, text("uid"))
                    }
                    Err(status) if status.code == 404 => Err(Refused::Stale("the pod is gone")),
                    Err(status) => Err(status.into()),
                }
            }
            kind => Err(Refused::Foreign(format!("the {kind} {}", text("name")))),
        }
    }

    /// Reads, changes and writes an object until nobody else wrote in between.
    async fn change(
        &self,
        identity: &Identity,
        resource: &'static Resource,
        namespace: Option<&str>,
        name: &str,
        sub: Option<&str>,
        mut change: impl FnMut(&mut Value) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let record = self.registry.get(resource, namespace, name).await?;
            let old = record.value().map_err(|e| Refused::Unreadable(e.to_string()))?;
            let mut new = old.clone();
            change(&mut new)?;
            if new == old {
                return Ok(());
            }
            let options = WriteOptions::default();
            let written = self.registry.update(identity, resource, namespace, name, new, sub, &options).await;
            match written {
                Ok(_) => return Ok(()),
                Err(status) if status.reason == "Conflict" && attempt < ATTEMPTS => {}
                Err(status) => return Err(status.into()),
            }
        }
    }
}

/// Who a node is to the registry.
pub(crate) fn identity(node: &str) -> Identity {
    Identity::new(format!("system:node:{node}"), ["system:nodes", "system:authenticated"])
}

fn own_pod(pod: &Value, node: &str, uid: &str) -> Result<(), Refused> {
    if pod["metadata"]["uid"] != uid {
        return Err(Refused::Stale("the pod of that uid is gone"));
    }
    if pod["spec"]["nodeName"] != node {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        return Err(Refused::Foreign(format!("the pod {name}")));
    }
    Ok(())
}

fn split(key: &str) -> Result<(&str, &str), Refused> {
    key.split_once('/').ok_or_else(|| Refused::Unreadable(format!("the key {key:?} has no namespace")))
}

fn decode(body: &[u8]) -> Result<Value, Refused> {
    let value: Value = serde_cbor::from_slice(body).map_err(|e| Refused::Unreadable(e.to_string()))?;
    if value.is_object() { Ok(value) } else { Err(Refused::Unreadable("it is no object".to_owned())) }
}

/// Labels as a node may set them on its Node. The rest of its report counts all the same, or it would never be ready.
fn own_labels(node: &str, reported: &Value) -> Value {
    let mut labels = reported.clone();
    if let Some(labels) = labels.as_object_mut() {
        labels.retain(|label, _| {
            let own = may_label_itself(label);
            if !own {
                tracing::warn!(node, label, "a node may not set this label on itself: it is left out");
            }
            own
        });
    }
    labels
}

/// Absent fields were read as null; they become absent again.
fn without_nulls(mut value: Value) -> Value {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, field| !field.is_null());
        for field in fields.values_mut() {
            *field = without_nulls(field.take());
        }
    }
    value
}

#[cfg(test)]
mod fuzz;
