//! What every controller does with the metadata of objects.

use jiff::Timestamp;
use lichen_api::k8s::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use lichen_api::view::{Kind, ObjectId, ObjectKey, View};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{Event, Regarding, Severity};

/// Whether the object is being deleted.
pub(crate) fn is_deleting(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some()
}

/// The UID; empty in an object that was never stored.
pub(crate) fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or_default()
}

/// The name.
pub(crate) fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

/// The namespace; empty for an object of the cluster.
pub(crate) fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or_default()
}

/// When the object was made, for ordering.
pub(crate) fn created(meta: &ObjectMeta) -> Timestamp {
    meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

/// The value of an annotation.
pub(crate) fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// A time as the API writes it: whole seconds, so that it compares equal to what comes back.
pub(crate) fn time(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// The id of the object with that kind and metadata.
pub(crate) fn id_of(kind: Kind, meta: &ObjectMeta) -> ObjectId {
    ObjectId { kind, key: ObjectKey::of(meta) }
}

/// An object as JSON. A Kubernetes type always serialises; were it not so, the registry would refuse the null.
pub(crate) fn value(object: &impl Serialize) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

/// The reference by which an object becomes the controller of others.
pub(crate) fn controller_ref(kind: Kind, meta: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: kind.api_version(),
        block_owner_deletion: Some(true),
        controller: Some(true),
        kind: kind.kind.to_owned(),
        name: name(meta).to_owned(),
        uid: uid(meta).to_owned(),
    }
}

/// A merge patch of an object's metadata, only for this incarnation at this version.
pub(crate) fn metadata_patch(meta: &ObjectMeta, fields: Value) -> Value {
    let mut metadata = json!({ "uid": meta.uid, "resourceVersion": meta.resource_version });
    if let (Some(metadata), Value::Object(fields)) = (metadata.as_object_mut(), fields) {
        metadata.extend(fields);
    }
    json!({ "metadata": metadata })
}

/// A merge patch that replaces the owner references of an object.
pub(crate) fn owners_patch(meta: &ObjectMeta, owners: &[&OwnerReference]) -> Value {
    let owners = if owners.is_empty() { Value::Null } else { value(&owners) };
    metadata_patch(meta, json!({ "ownerReferences": owners }))
}

/// A merge patch that takes a finalizer away.
pub(crate) fn without_finalizer(meta: &ObjectMeta, finalizer: &str) -> Value {
    let kept: Vec<&String> = meta.finalizers.iter().flatten().filter(|known| *known != finalizer).collect();
    let kept = if kept.is_empty() { Value::Null } else { value(&kept) };
    metadata_patch(meta, json!({ "finalizers": kept }))
}

/// Whether an object has a finalizer.
pub(crate) fn has_finalizer(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|known| known == finalizer)
}

/// Whether nothing can be created in a namespace any more, or yet.
pub(crate) fn namespace_is_closed(view: &View, namespace: &str) -> bool {
    view.namespaces.get("", namespace).is_none_or(|object| is_deleting(&object.metadata))
}

/// The object an event is about.
pub(crate) fn regarding(kind: Kind, meta: &ObjectMeta) -> Regarding {
    Regarding {
        id: id_of(kind, meta),
        uid: uid(meta).to_owned(),
        resource_version: meta.resource_version.clone().unwrap_or_default(),
    }
}

/// A `Normal` event.
pub(crate) fn normal(regarding: &Regarding, reason: &'static str, message: String) -> Event {
    Event { regarding: regarding.clone(), severity: Severity::Normal, reason, message }
}

/// A `Warning` event.
pub(crate) fn warning(regarding: &Regarding, reason: &'static str, message: String) -> Event {
    Event { regarding: regarding.clone(), severity: Severity::Warning, reason, message }
}
